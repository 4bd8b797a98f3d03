//! `annal log`: checks or prints the log of a node that does not run; never writes.

use clap::Subcommand;
use std::{path::PathBuf, process::ExitCode};

/// Checks or prints a stopped node's log.
#[derive(Subcommand)]
pub(super) enum Log {
    /// Checks every frame of the log; exits 1 and names segment and offset if one is damaged.
    Verify {
        /// A node's data folder, or its `wal` folder.
        dir: PathBuf,
        /// Prints the report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints every record of the log.
    Dump {
        /// A node's data folder, or its `wal` folder.
        dir: PathBuf,
        /// Prints JSON lines.
        #[arg(long)]
        json: bool,
        /// Only this group's records.
        #[arg(long)]
        group: Option<u32>,
    },
    /// Follows a collection's changes (not built yet).
    Tail(super::NotBuilt),
}
