//! `annal bench` against a node: what it counts is what was done, and its recall is against the truth.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "process/command.rs"]
mod command;
mod process;

use command::{done, refused, run};
use process::Node;
use serde_json::{Value, json};
use std::fs;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/wordnet-2k");

fn count(node: &Node, collection: &str) -> Value {
    node.client().post(&format!("/collections/{collection}/points/count"), &json!({})).ok()["count"].clone()
}

#[test]
fn loads_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::ready(&folder.path().join("data"));
    let pid = node.pid().to_string();
    let [vectors, payload, queries, truth] =
        ["vectors.f16.npy", "payload.jsonl", "queries.f32.npy", "neighbors10.i32.npy"]
            .map(|name| format!("{DATA}/{name}"));

    // Writing: as many points as are said, each once.
    let ingest = [
        "bench",
        "ingest",
        "--collection",
        "glosses",
        "--vectors",
        &vectors,
        "--payload",
        &payload,
        "--pid",
        &pid,
    ];
    let part = done(&node, &[&ingest[..], &["--count", "730", "--batch", "50", "--clients", "3"]].concat());
    assert_eq!((&part["write"]["operations"], &part["write"]["answered"]), (&json!(730), &json!(15)));
    assert_eq!(count(&node, "glosses"), 730);
    let all = done(&node, &[&ingest[..], &["--until-green"]].concat());
    assert_eq!((&all["write"]["operations"], &all["write"]["errors"]), (&json!(2000), &json!({})));
    assert_eq!(count(&node, "glosses"), 2000);
    assert!(all["green_after_seconds"].as_f64().unwrap() >= all["write"]["seconds"].as_f64().unwrap());
    let cpu = all["cpu"]["seconds"].as_f64().unwrap();
    assert!(
        cpu > 0.0 && (all["cpu"]["seconds_per_1000_operations"].as_f64().unwrap() - cpu / 2.0).abs() < 1e-9
    );
    let record = node.client().get("/collections/glosses/points/1900").ok();
    assert!(record["payload"]["gloss"].is_string());

    // Searching: recall against a file, against exact searches, and against what is not the truth.
    let search = [
        "bench",
        "search",
        "--collection",
        "glosses",
        "--queries",
        &queries,
        "--clients",
        "3",
        "--pid",
        &pid,
    ];
    let with = |more: &[&str]| done(&node, &[&search[..], more].concat());
    let found = with(&["--count", "250", "--truth", &truth]);
    assert_eq!((&found["search"]["answered"], &found["search"]["operations"]), (&json!(250), &json!(250)));
    assert!(found["recall"].as_f64().unwrap() >= 0.95, "{found}");
    let latency = |name: &str| found["search"]["latency_ms"][name].as_f64().unwrap();
    let rising = ["p50", "p95", "p99", "p99.9", "max"].map(latency);
    assert!(rising[0] > 0.0 && rising.is_sorted(), "{rising:?}");
    assert!(found["cpu"]["seconds_per_1000_operations"].as_f64().unwrap() > 0.0);
    assert_eq!(found["recall_answers"], 250);
    let exact = with(&["--count", "150", "--exact", "--truth-sample", "40"]);
    // Of 100 queries, asked one and a half times, every second or third.
    assert_eq!((&exact["recall"], &exact["recall_answers"]), (&json!(1.0), &json!(60)));
    assert_eq!(with(&["--count", "20", "--truth-sample", "0"]).get("recall"), None);
    let wrong = folder.path().join("wrong.ivecs");
    let far: Vec<u8> = (0..100)
        .flat_map(|_| [[10i32].to_vec(), (1990..2000).collect()].concat())
        .flat_map(i32::to_le_bytes)
        .collect();
    fs::write(&wrong, far).unwrap();
    let missed = with(&["--count", "100", "--truth", wrong.to_str().unwrap()]);
    assert!(missed["recall"].as_f64().unwrap() < 0.3, "{missed}");
    let verbs = r#"{"must":[{"key":"pos","match":{"value":"v"}}]}"#;
    let filtered = with(&["--count", "60", "--filter", verbs, "--exact", "--limit", "3"]);
    assert_eq!((&filtered["recall"], &filtered["limit"]), (&json!(1.0), &json!(3)));

    // By time, at a rate: what is due is sent, and no more.
    let paced = with(&["--seconds", "1", "--rate", "40", "--ef", "64"]);
    let answered = paced["search"]["answered"].as_u64().unwrap();
    assert!((1..=40).contains(&answered) && paced["search"]["rate"] == 40.0, "{paced}");

    // Both at once.
    let mixed = [
        "bench",
        "mixed",
        "--collection",
        "glosses",
        "--queries",
        &queries,
        "--vectors",
        &vectors,
        "--payload",
        &payload,
    ];
    let both = done(
        &node,
        &[&mixed[..], &["--seconds", "2", "--write-rate", "30", "--batch", "20", "--pid", &pid]].concat(),
    );
    let (searches, writes) =
        (both["search"]["operations"].as_u64().unwrap(), both["write"]["operations"].as_u64().unwrap());
    assert!(searches > 0 && writes > 0 && writes <= 60 * 20, "{both}");
    assert!(both["recall"].as_f64().unwrap() >= 0.9, "{both}");
    let per_1000 = both["cpu"]["seconds"].as_f64().unwrap() * 1000.0 / (searches + writes) as f64;
    assert!((both["cpu"]["seconds_per_1000_operations"].as_f64().unwrap() - per_1000).abs() < 1e-9);
    assert_eq!(count(&node, "glosses"), 2000);

    // Beside what is there.
    let beside = ["--vectors", &vectors, "--id-offset", "2000", "--count", "50"];
    done(&node, &[&["bench", "ingest", "--collection", "glosses"][..], &beside].concat());
    assert_eq!(count(&node, "glosses"), 2050);

    // For people.
    let table = run(&node, &[&search[..], &["--count", "10"]].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    for word in ["p99.9 ms", "search", "recall@10 ", "CPU-s per 1,000 operations"] {
        assert!(table.contains(word), "{table}");
    }

    // What goes wrong is counted by status, and told if nothing goes right.
    let bad = ["--count", "9", "--filter", r#"{"most":[]}"#, "--truth-sample", "0"];
    let said = refused(&node, &[&search[..], &bad].concat());
    assert!(said.contains("no search was answered with success: 400: 9"), "{said}");
    let nowhere = ["bench", "search", "--collection", "no", "--queries", &queries];
    assert!(refused(&node, &nowhere).contains("there is no collection no"));
    let short = ["--count", "9", "--limit", "11", "--truth", &truth];
    assert!(refused(&node, &[&search[..], &short].concat()).contains("100 queries want 11 each"));
    let gone = ["--count", "9", "--pid", "4294967295"];
    assert!(refused(&node, &[&search[..], &gone].concat()).contains("process 4294967295"));

    node.kill();
    let said = refused(&node, &[&search[..8], &["--count", "9"]].concat());
    assert!(said.contains(&node.url), "{said}");
}
