//! Concurrent writers, `kill -9`, restart, again and again: every acknowledged write is there, nothing torn, nothing
//! made up, and a search finds every acknowledged vector as its own exact nearest neighbour.
//!
//! `ANNAL_KILL_ROUNDS` sets how many rounds (5 by default).

#![allow(clippy::unwrap_used)]

mod process;

use process::{Client, Node};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

const WRITERS: u64 = 8;
/// Ids each writer may use; writers never share one.
const IDS: u64 = 40;
const DIM: usize = 8;

/// What is known of a point: its last acknowledged value, and values that may have been written since.
#[derive(Clone, Default)]
struct Known {
    acknowledged: Option<u64>,
    perhaps: Vec<Option<u64>>,
}

impl Known {
    fn allows(&self, found: Option<u64>) -> bool {
        found == self.acknowledged || self.perhaps.contains(&found)
    }
}

/// The vector that belongs to a value: half of its numbers tell the value, so that a torn point shows.
fn vector(id: u64, value: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(id << 32 | value);
    (0..DIM).map(|_| rng.random_range(-1.0..1.0f32)).collect()
}

fn point(id: u64, value: u64) -> Value {
    json!({"id": id, "vector": vector(id, value), "payload": {"value": value, "id": id}})
}

/// Writes until the node dies; says what was acknowledged and what may have been.
fn write(
    client: &Client,
    writer: u64,
    round: u64,
    known: &mut BTreeMap<u64, Known>,
    stop: &AtomicBool,
) -> u64 {
    let mut rng = StdRng::seed_from_u64(round << 8 | writer);
    let mut acknowledged = 0;
    for count in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = writer * IDS + rng.random_range(0..IDS);
        let value = (rng.random_ratio(4, 5)).then_some(round << 20 | count);
        let (method, path, body) = match value {
            Some(value) => ("PUT", "/collections/c/points?wait=true", json!({"points": [point(id, value)]})),
            None => ("POST", "/collections/c/points/delete?wait=false", json!({"points": [id]})),
        };
        let entry = known.entry(id).or_default();
        entry.perhaps.push(value);
        let answer = client.send(method, path, Some(&body.to_string()));
        match answer.status {
            200 => {
                *entry = Known { acknowledged: value, perhaps: Vec::new() };
                acknowledged += 1;
            }
            // The connection broke: the write may have been applied, or may not.
            0 => break,
            status => panic!("{method} {path}: {status} {}", answer.text),
        }
    }
    acknowledged
}

/// Everything in the collection: value by id, checked against its own vector.
fn read_all(client: &Client) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    let mut offset = Value::Null;
    loop {
        let body = json!({"limit": 100, "offset": offset, "with_payload": true, "with_vector": true});
        let page = client.post("/collections/c/points/scroll", &body).ok();
        for point in page["points"].as_array().unwrap() {
            let id = point["id"].as_u64().unwrap();
            let value = point["payload"]["value"].as_u64().unwrap();
            assert_eq!(point["payload"]["id"], id, "a payload of another point");
            let stored: Vec<f32> = serde_json::from_value(point["vector"].clone()).unwrap();
            assert_eq!(
                stored,
                vector(id, value),
                "point {id} has the vector of another write than its payload"
            );
            assert!(found.insert(id, value).is_none(), "point {id} twice");
        }
        offset = page["next_page_offset"].clone();
        if offset.is_null() {
            return found;
        }
    }
}

fn check(client: &Client, known: &[BTreeMap<u64, Known>]) -> u64 {
    let found = read_all(client);
    for (id, known) in known.iter().flatten() {
        let now = found.get(id).copied();
        assert!(
            known.allows(now),
            "point {id} is {now:?}; acknowledged was {:?}, possible since {:?}",
            known.acknowledged,
            known.perhaps
        );
    }
    for id in found.keys() {
        assert!(known.iter().any(|k| k.contains_key(id)), "point {id} was never written");
    }
    let searches: Vec<Value> = found
        .iter()
        .map(|(id, value)| json!({"query": vector(*id, *value), "limit": 1, "params": {"exact": true}}))
        .collect();
    for (ids, searches) in found.keys().collect::<Vec<_>>().chunks(100).zip(searches.chunks(100)) {
        let answers = client.post("/collections/c/points/query/batch", &json!({"searches": searches})).ok();
        for (id, answer) in ids.iter().zip(answers.as_array().unwrap()) {
            let nearest = &answer["points"][0];
            assert_eq!(nearest["id"], **id, "point {id} is not its own nearest neighbour");
            assert_eq!(nearest["score"].as_f64(), Some(0.0));
        }
    }
    found.len() as u64
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let rounds: u64 = std::env::var("ANNAL_KILL_ROUNDS").map_or(5, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::ready(folder.path());
    node.client()
        .put("/collections/c", &json!({"vectors": {"size": DIM, "distance": "Euclid"}, "shard_number": 2}))
        .ok();
    let mut known: Vec<BTreeMap<u64, Known>> = vec![BTreeMap::new(); WRITERS as usize];
    let (mut acknowledged, mut checked) = (0, 0);
    let mut rng = StdRng::seed_from_u64(42);
    for round in 0..rounds {
        let stop = AtomicBool::new(false);
        let total = Mutex::new(0);
        let client = node.client();
        thread::scope(|scope| {
            for (writer, known) in (0..).zip(&mut known) {
                let (client, stop, total) = (Client::new(&client.url), &stop, &total);
                scope.spawn(move || *total.lock().unwrap() += write(&client, writer, round, known, stop));
            }
            thread::sleep(Duration::from_millis(rng.random_range(50..600)));
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        acknowledged += total.into_inner().unwrap();
        node = node.kill_and_restart();
        checked += check(&node.client(), &known);
        // What was read is what is there: from here on it counts as acknowledged.
        let found = read_all(&node.client());
        for (id, known) in known.iter_mut().flatten() {
            *known = Known { acknowledged: found.get(id).copied(), perhaps: Vec::new() };
        }
    }
    println!(
        "{rounds} kills, {acknowledged} acknowledged writes, {checked} points checked: 0 lost, 0 torn, 0 made up"
    );
    assert!(acknowledged > rounds * 10, "too few writes to say anything: {acknowledged}");
}
