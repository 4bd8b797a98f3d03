//! The `annal` binary: parses the command line and hands over.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
