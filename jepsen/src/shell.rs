//! Commands of the system that are run and waited for.

use std::process::{Command, Stdio};

/// Runs a command to its end; gives what it printed.
///
/// Errors: it is not there or failed, with what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    match exit(program, arguments)? {
        (0, printed) => Ok(printed),
        (code, said) => Err(format!("{program} {}: exit {code}: {}", arguments.join(" "), said.trim())),
    }
}

/// Runs a command to its end; gives its exit code, and what it printed or, if it failed, what it said.
///
/// Errors: it is not there, or was killed.
pub(crate) fn exit(program: &str, arguments: &[&str]) -> Result<(i32, String), String> {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|e| format!("{program}: {e}"))?;
    let code = done.status.code().ok_or_else(|| format!("{program}: {}", done.status))?;
    let said = if code == 0 { done.stdout } else { done.stderr };
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}
