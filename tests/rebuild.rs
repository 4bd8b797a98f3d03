//! What can be thrown away: indexes, then store and indexes; and damage that must be found: in an index file, in a
//! sealed segment of the log. On real glosses, imported by the real command.

#![allow(clippy::unwrap_used)]

mod process;

use process::{Client, Node, NodeOptions};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

const DATA: &str = "tests/data/wordnet-2k";

const DELETED_EVERY: usize = 13;

fn annal(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_annal")).args(arguments).output().unwrap()
}

fn import(url: &str, more: &[&str]) -> Value {
    let (vectors, payload) = (format!("{DATA}/vectors.f16.npy"), format!("{DATA}/payload.jsonl"));
    let arguments =
        ["import", &vectors, "--payload", &payload, "--collection", "glosses", "--batch", "100", "--json"];
    let done = annal(&[&arguments[..], &["--url", url], more].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Small segments, so that some are sealed; small graphs, so that there are some.
fn options(folder: &Path) -> NodeOptions {
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    NodeOptions {
        environment: vec![
            set("ANNAL__LOG__SEGMENT_BYTES", "1048576"),
            set("ANNAL__LIMITS__REQUEST_BYTES_MAX", "524288"),
            set("ANNAL__INDEX__SEAL_BYTES", "524288"),
        ],
        ..NodeOptions::new(folder)
    }
}

fn start(folder: &Path) -> Node {
    let mut node = Node::start(options(folder));
    node.wait_ready();
    node
}

/// Real queries, exact, with and without a filter; every point; the state hash, kept and computed again.
fn answers(client: &Client) -> Vec<Value> {
    let mut answers = Vec::new();
    for id in (0..2000).step_by(97).filter(|id| id % DELETED_EVERY != 0) {
        let mut body = json!({"query": id, "limit": 10, "params": {"exact": true}, "with_payload": true});
        answers.push(client.post("/collections/glosses/points/query", &body).ok());
        body["filter"] = json!({"must": [{"key": "pos", "match": {"value": "v"}}]});
        answers.push(client.post("/collections/glosses/points/query", &body).ok());
    }
    let all = json!({"limit": 2000, "with_payload": true, "with_vector": true});
    answers.push(client.post("/collections/glosses/points/scroll", &all).ok());
    let [kept, scrubbed] = ["false", "true"].map(|scrub| {
        let answer = client.get(&format!("/annal/v1/collections/glosses/state-hash?scrub={scrub}"));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    });
    assert_eq!(kept, scrubbed, "the hash kept while applying is not that of the store");
    answers.push(kept);
    answers
}

/// Waits until every vector is in a graph.
fn wait_green(client: &Client) {
    let began = Instant::now();
    while client.get("/collections/glosses").ok()["status"] != "green" {
        assert!(began.elapsed() < Duration::from_secs(60), "still building");
        thread::sleep(Duration::from_millis(50));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect();
    found.sort();
    found
}

fn flip(file: &Path, at: u64) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at as usize] ^= 0x20;
    fs::write(file, bytes).unwrap();
}

#[test]
fn what_is_derived_can_be_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut node = start(data);
    assert_eq!(import(&node.url, &[])["sent"], 2000);
    let resumed = import(&node.url, &["--resume"]);
    assert_eq!((&resumed["sent"], &resumed["there_already"]), (&json!(0), &json!(2000)));
    let field = json!({"field_name": "pos", "field_schema": "keyword"});
    node.client().put("/collections/glosses/index?wait=true", &field).ok();
    // Deletes and overwrites, so that there is something to resurrect.
    let some: Vec<usize> = (0..2000).step_by(DELETED_EVERY).collect();
    node.client().post("/collections/glosses/points/delete?wait=true", &json!({ "points": some })).ok();
    wait_green(&node.client());
    let wanted = answers(&node.client());

    node.kill();
    let indexes: Vec<PathBuf> =
        files(&data.join("index")).into_iter().filter(|f| f.metadata().unwrap().len() > 10_000).collect();
    assert!(!indexes.is_empty(), "no graph was written");
    for (file, part) in indexes.iter().zip([2, 3, 5].iter().cycle()) {
        flip(file, file.metadata().unwrap().len() / part);
    }
    node = start(data);
    assert_eq!(answers(&node.client()), wanted, "after flipped bytes in every graph");

    node.kill();
    fs::remove_dir_all(data.join("index")).unwrap();
    node = start(data);
    assert_eq!(answers(&node.client()), wanted, "without index/");
    wait_green(&node.client());
    assert_eq!(answers(&node.client()), wanted, "with index/ built again");

    node.kill();
    fs::remove_dir_all(data.join("index")).unwrap();
    fs::remove_dir_all(data.join("store")).unwrap();
    node = start(data);
    assert_eq!(answers(&node.client()), wanted, "without store/ and index/");

    assert!(node.stop().success(), "a node that is told to stop exits 0");
    let verified = annal(&["log", "verify", data.to_str().unwrap()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let segment = files(&data.join("wal"))
        .into_iter()
        .find(|file| file.metadata().unwrap().len() == 1 << 20)
        .expect("a segment of the log");
    let at = 300_000;
    flip(&segment, at);
    let verified = annal(&["log", "verify", data.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert_eq!(verified.status.code(), Some(1), "{said}");
    let number: u64 = segment.parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    assert!(said.contains(&format!("segment {number} offset ")), "{said}");
    let offset: u64 = said.split("offset ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    assert!(offset <= at, "the damage at {at} is reported at {offset}");
}
