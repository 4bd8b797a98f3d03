//! The commands that speak to a node, run as people run them.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "process/command.rs"]
mod command;
mod process;

use command::{annal, run};
use process::{Node, NodeOptions};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

/// A node named n1 with a collection `a` of two shards and one point.
fn node(folder: &std::path::Path) -> Node {
    let mut options = NodeOptions::new(folder);
    options.arguments.extend(["--node", "n1", "--region", "east"].map(String::from));
    let mut node = Node::start(options);
    node.wait_ready();
    let client = node.client();
    client.put("/collections/a", &json!({"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 2})).ok();
    client.put("/collections/a/points?wait=true", &json!({"points": [{"id": 1, "vector": [1, 2]}]})).ok();
    node
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn commands_that_speak_to_a_node() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path());

    let status = run(&node, &["status"]);
    let table = text(&status.stdout);
    assert!(status.status.success(), "{status:?}");
    for part in ["REGION east", "(catalog)", "n1 *", "LAG"] {
        assert!(table.contains(part), "no {part} in\n{table}");
    }
    let status = run(&node, &["status", "--json"]);
    let cluster: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(cluster["shards"].as_array().unwrap().len(), 3);

    // What the cluster refuses is told, with exit code 1.
    for (words, message) in [
        (&["node", "drain", "n9"][..], "node n9"),
        (&["shard", "move", "a", "0", "--from", "n1", "--to", "n9"], "node n9"),
        (&["shard", "move", "nowhere", "0", "--from", "n1", "--to", "n1"], "comes from"),
        (&["shard", "lead", "a", "7", "n1"], "shard 7"),
    ] {
        let refused = run(&node, words);
        assert_eq!(refused.status.code(), Some(1), "{words:?} {refused:?}");
        assert!(text(&refused.stderr).contains(message), "{words:?}: {}", text(&refused.stderr));
    }
    // What is so already is done at once, however often it is asked for.
    for words in [&["node", "remove", "n9"][..], &["node", "drain", "n1", "--undo"]] {
        let done = run(&node, words);
        assert!(done.status.success() && text(&done.stdout).ends_with(": done\n"), "{words:?} {done:?}");
    }
    let done = run(&node, &["node", "remove", "n9", "--json"]);
    assert_eq!(text(&done.stdout), "{\"done\":true}\n");
}

#[test]
fn what_is_not_built_ends_with_2() {
    for words in [&["shard", "split", "a", "0"][..], &["backup", "file:///x"]] {
        let refused = annal(words).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{words:?}");
        assert!(text(&refused.stderr).contains("is not implemented yet"), "{words:?}");
    }
}

#[test]
fn every_command_explains_itself_and_shells_complete_it() {
    for words in [
        &["status"][..],
        &["node", "drain"],
        &["node", "remove"],
        &["shard", "move"],
        &["shard", "lead"],
        &["log", "tail"],
        &["import"],
        &["export"],
        &["bench", "search"],
        &["bench", "ingest"],
        &["bench", "mixed"],
    ] {
        let help = annal(words).arg("--help").output().unwrap();
        let help = text(&help.stdout);
        assert!(
            help.contains("Example") && help.contains("--url") && help.contains("ANNAL_API_KEY"),
            "{help}"
        );
    }
    let script = annal(&["completions", "bash"]).output().unwrap();
    assert!(
        ["drain", "remove", "tail", "export", "ingest"]
            .iter()
            .all(|word| text(&script.stdout).contains(word))
    );
}

#[test]
fn a_key_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = NodeOptions::new(folder.path());
    options.environment = vec![("ANNAL__AUTH__API_KEY".into(), "secret".into())];
    let mut node = Node::start(options);
    node.wait_ready();
    let refused = run(&node, &["status"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("401"), "{refused:?}");
    assert!(run(&node, &["status", "--api-key", "secret"]).status.success());
    let by_environment =
        annal(&["status", "--url", &node.url]).env("ANNAL_API_KEY", "secret").output().unwrap();
    assert!(by_environment.status.success());
}

/// A running `annal log tail`; killed when dropped.
struct Tail(Child, BufReader<std::process::ChildStdout>);

impl Tail {
    fn start(node: &Node, words: &[&str]) -> Self {
        let words = [&["log", "tail", "a", "--url", &node.url], words].concat();
        let mut child = annal(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Tail(child, lines)
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tail_goes_on_behind_the_last_line_when_the_node_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = probe.local_addr().unwrap().to_string();
    drop(probe);
    let mut options = NodeOptions::new(folder.path());
    options.http = address;
    let mut node = Node::start(options);
    node.wait_ready();
    let client = node.client();
    client.put("/collections/a", &json!({"vectors": {"size": 1, "distance": "Dot"}})).ok();
    let write = |id: u64| {
        let points = json!({"points": [{"id": id, "vector": [1], "payload": {"n": id}}]});
        client.put("/collections/a/points?wait=true", &points).ok()
    };
    write(1);
    write(2);
    let mut tail = Tail::start(&node, &["--from", "begin", "--with-payload"]);
    let first = tail.next();
    assert_eq!(
        (&first["id"], &first["payload"]["n"], &first["op"]),
        (&json!(1), &json!(1), &json!("upsert"))
    );
    assert_eq!(tail.next()["id"], 2);
    let node = node.kill_and_restart();
    write(3);
    assert_eq!(tail.next()["id"], 3, "each once");
    // Behind a token; with heartbeats, the first of which comes at once.
    let token = first["token"].as_str().unwrap();
    let mut tail = Tail::start(&node, &["--from", token, "--heartbeats"]);
    assert_eq!(tail.next()["heartbeat"], true);
    let second = tail.next();
    assert_eq!((&second["id"], second.get("payload")), (&json!(2), None));
}
