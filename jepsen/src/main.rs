//! The consistency harness: it will prove a cluster wrong over HTTP alone. Not built yet, and it says so: every
//! command exits 2, so that no script takes its silence for a pass.

use clap::Parser;
use std::process::ExitCode;

/// The consistency harness (not built yet).
#[derive(Parser)]
#[command(name = "annal-jepsen", version)]
struct Cli {
    /// `run`, `check`, `export`, `report`, `suite` or `selftest`, with their options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

fn main() -> ExitCode {
    let words = Cli::parse().words.join(" ");
    eprintln!("annal-jepsen: `{words}` is not implemented yet: nothing was checked");
    ExitCode::from(2)
}
