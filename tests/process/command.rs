//! The commands of the binary that speak to a node, run as people run them.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use crate::process::Node;
use serde_json::Value;
use std::process::{Command, Output};

/// `annal` with these words, and with no key from the environment.
pub fn annal(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_annal"));
    command.args(words).env_remove("ANNAL_API_KEY").env_remove("ANNAL_SOURCE_API_KEY");
    command
}

/// What becomes of a command at this node.
pub fn run(node: &Node, words: &[&str]) -> Output {
    annal(words).args(["--url", &node.url]).output().unwrap()
}

/// What a command that must succeed prints as JSON.
pub fn done(node: &Node, words: &[&str]) -> Value {
    let output = run(node, &[words, &["--json"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command that must fail says.
pub fn refused(node: &Node, words: &[&str]) -> String {
    let output = run(node, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}
