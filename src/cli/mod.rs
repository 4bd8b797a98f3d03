//! The commands of the one binary. Exit codes: 0 done, 1 failed, 2 wrong usage or not built yet.

mod bench;
mod collection;
mod export;
mod import;
mod log;
mod matrix;
#[cfg(feature = "mutants")]
mod mutants;
mod node;
mod parquet_file;
mod progress;
mod region;
mod row;
mod serve;
mod server;
mod settings;
mod shard;
mod status;
mod table;
mod tail;
mod wish;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// A distributed vector database whose truth is a log.
#[derive(Parser)]
#[command(name = "annal", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
// What takes arguments describes itself: words here would take the place of its own, examples included.
enum Command {
    Serve(serve::Serve),
    Status(status::Status),
    /// Drains or removes a node.
    #[command(subcommand)]
    Node(node::Node),
    /// Moves, splits or leads a shard.
    #[command(subcommand)]
    Shard(shard::Shard),
    Import(import::Import),
    Export(export::Export),
    /// Generates load and measures what clients see.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Follows a collection's changes; checks or prints a stopped node's log.
    #[command(subcommand)]
    Log(log::Log),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Lists the planted bugs that `ANNAL_MUTANT` may name.
    #[cfg(feature = "mutants")]
    Mutants(mutants::Mutants),
    /// Writes a backup (not built yet).
    Backup(NotBuilt),
    /// Restores a backup (not built yet).
    Restore(NotBuilt),
    /// Follows collections of other regions, and hands homes over.
    #[command(subcommand)]
    Region(region::Region),
}

/// A command whose name is kept for what later work delivers.
#[derive(clap::Args)]
struct NotBuilt {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

/// What a command ends with: an error is printed once, here.
type Done = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Parses the command line and runs what it says.
pub(crate) fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Status(status) => status.run(),
        Command::Node(node) => node.run(),
        Command::Shard(shard) => match shard.run() {
            Ok(done) => done,
            Err(code) => return code,
        },
        Command::Region(region) => region.run(),
        Command::Import(import) => import.run(),
        Command::Export(export) => export.run(),
        Command::Bench(bench) => bench.run(),
        Command::Log(log) => match log.run() {
            Ok(done) => done,
            Err(code) => return code,
        },
        #[cfg(feature = "mutants")]
        Command::Mutants(mutants) => mutants.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "annal", &mut std::io::stdout());
            Ok(())
        }
        Command::Backup(n) => return n.refuse("backup"),
        Command::Restore(n) => return n.refuse("restore"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("annal: {e}");
            ExitCode::FAILURE
        }
    }
}

impl NotBuilt {
    fn refuse(&self, command: &str) -> ExitCode {
        let rest: String = self.rest.iter().map(|word| format!(" {word}")).collect();
        eprintln!("annal: `annal {command}{rest}` is not implemented yet");
        ExitCode::from(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
