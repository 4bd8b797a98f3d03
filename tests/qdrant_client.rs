//! Unmodified Python clients of Qdrant against a real node.
//!
//! Their virtual environment is made under `target/` on the first run and kept. `PYTHON` names the interpreter.

#![allow(clippy::unwrap_used, missing_docs)]

mod process;

use process::Node;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

const PACKAGES: [&str; 3] = ["qdrant-client==1.20.0", "langchain-qdrant==1.1.0", "numpy"];

#[test]
fn qdrant_client() {
    run("qdrant_client_test.py");
}

#[test]
fn langchain() {
    run("langchain_test.py");
}

/// Runs a script of `tests/python` with the node's address as its argument.
fn run(script: &str) {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let python = PYTHON.get_or_init(environment);
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(folder.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let status = Command::new(python).args(["-W", "error"]).arg(script).arg(&node.url).status().unwrap();
    assert!(status.success(), "{status}");
}

/// The interpreter of a virtual environment with exactly the packages, made if it is not there.
fn environment() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("pyenv");
    let python = folder.join("bin/python");
    let made = folder.join("made-of.txt");
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(&made).is_ok_and(|found| found == wanted) {
        return python;
    }
    let _ = fs::remove_dir_all(&folder);
    let interpreter = env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    succeed(Command::new(interpreter).args(["-m", "venv"]).arg(&folder));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    succeed(Command::new(&python).args(pip).args(PACKAGES));
    fs::write(made, wanted).unwrap();
    python
}

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
