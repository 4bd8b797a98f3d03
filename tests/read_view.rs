//! A writer keeps `payload.v == f(vector)` on every upsert while readers search, get and scroll: no answer may break
//! it, and no reader may go back in time.

#![allow(clippy::unwrap_used)]

mod process;

use process::{Client, Node};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const POINTS: u64 = 50;
const READERS: usize = 8;

fn vector(value: u64) -> Vec<f32> {
    // Exact in f32 and in decimal, and different for every value.
    vec![(value % 1024) as f32, (value / 1024) as f32, 1.0]
}

fn points(value: u64) -> Value {
    let points: Vec<Value> = (0..POINTS)
        .map(|id| json!({"id": id, "vector": vector(value), "payload": {"v": value, "even": value.is_multiple_of(2)}}))
        .collect();
    json!({ "points": points })
}

/// Checks one answer; gives the values in it.
fn values(points: &Value) -> Vec<u64> {
    let value = |point: &Value| {
        let value = point["payload"]["v"].as_u64().unwrap();
        let stored: Vec<f32> = serde_json::from_value(point["vector"].clone()).unwrap();
        assert_eq!(stored, vector(value), "a payload and a vector of two writes: {point}");
        value
    };
    points.as_array().unwrap().iter().map(value).collect()
}

#[test]
fn no_answer_mixes_two_writes() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(folder.path());
    let client = node.client();
    client.put("/collections/c", &json!({"vectors": {"size": 3, "distance": "Euclid"}})).ok();
    client.put("/collections/c/index?wait=true", &json!({"field_name": "even", "field_schema": "bool"})).ok();
    client.put("/collections/c/points?wait=true", &points(0)).ok();
    let (stop, acknowledged, answers) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let read = |reader: usize| {
        let client = Client::new(&node.url);
        while !stop.load(Ordering::Relaxed) {
            let before = acknowledged.load(Ordering::SeqCst);
            let even = before.is_multiple_of(2);
            let filter = json!({"must": [{"key": "even", "match": {"value": even}}]});
            let (path, body) = match reader % 4 {
                0 => (
                    "points/query",
                    json!({"query": vector(before), "limit": POINTS, "params": {"exact": true}}),
                ),
                1 => ("points/query", json!({"query": vector(before), "limit": POINTS, "filter": filter})),
                2 => ("points/scroll", json!({"limit": POINTS})),
                _ => ("points/query", json!({"query": vector(before), "limit": POINTS})),
            };
            let mut body = body;
            body["with_payload"] = true.into();
            body["with_vector"] = true.into();
            let result = client.post(&format!("/collections/c/{path}"), &body).ok();
            let values = values(&result["points"]);
            // One command writes all points, one view answers: all values are the same, and not older than what
            // was acknowledged before the read began.
            assert!(values.windows(2).all(|w| w[0] == w[1]), "{path} mixes writes: {values:?}");
            assert!(values.iter().all(|v| *v >= before), "{path} is older than {before}: {values:?}");
            let all_match = reader % 4 != 1;
            assert!(!all_match || values.len() as u64 == POINTS, "{path} lacks points: {}", values.len());
            assert!(
                values.iter().all(|v| all_match || v.is_multiple_of(2) == even),
                "{path} breaks its filter"
            );
            answers.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for reader in 0..READERS {
            scope.spawn(move || read(reader));
        }
        let began = Instant::now();
        let mut value = 0;
        while began.elapsed() < Duration::from_secs(3) {
            value += 1;
            client.put("/collections/c/points?wait=true", &points(value)).ok();
            acknowledged.store(value, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (writes, answers) = (acknowledged.into_inner(), answers.into_inner());
    println!(
        "{writes} writes of {POINTS} points, {answers} answers of {READERS} readers: none mixed, none old"
    );
    assert!(writes > 10 && answers > 100, "too little to say anything");
}
