//! The `annal` binary: parses the command line and hands over.

mod cli;

use std::process::ExitCode;

/// A tenth of a small write's processor time went into glibc's allocator (`docs/BENCHMARKS.md`). Without large pages, of
/// which it would touch many and fill few; an index asks for its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
