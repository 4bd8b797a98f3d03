//! Intents: what is sent several times happens once, and a conditional write happens only under its condition.

use crate::{
    OUTAGE_MAX, SHARDS,
    cluster::{TestCluster, scaled},
    cluster_with_c,
    connection::{Connection, Failed, Reply},
    history::Order,
    load_time, settle, sleep,
    workload::{Load, Plan},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A retry that were applied again would bring an old value back, which readers and the end would show; and it would
/// be told another position.
#[test]
fn retries_take_effect_once() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan { retries: true, writers: 6, ..Plan::default() });
    for trial in 0..scaled("ANNAL_TRIALS", 2) {
        sleep(load_time() / 3);
        let leader = cluster.leader_of("c", trial as u32 % SHARDS);
        cluster.kill(leader);
        sleep(Duration::from_secs(1));
        cluster.restart(leader);
        cluster.wait_all_ok();
    }
    sleep(load_time() / 3);
    let history = settle("retries", &mut cluster, load, Order::Values);
    assert!(history.resent > 50, "too few retries to say anything: {}", history.resent);
}

/// The register under compare-and-set.
const COUNTER: u64 = 7;

/// One who counts up: reads the counter and its version, writes one more at that version.
struct Counting<'a> {
    connections: Vec<Connection>,
    rng: StdRng,
    name: String,
    sequence: u64,
    /// Versions that a success replaced, with the version it made.
    links: Vec<(u64, u64)>,
    refused: u64,
    stop: &'a AtomicBool,
    wanted: &'a AtomicU64,
}

impl Counting<'_> {
    fn count_up(&mut self) {
        while !self.stop.load(Ordering::Relaxed) && self.wanted.load(Ordering::Relaxed) > 0 {
            let Some((version, count)) = self.read() else { continue };
            let point =
                json!({"id": COUNTER, "vector": [count + 1, 0, 0, 0], "payload": {"count": count + 1}});
            let body = json!({"id": COUNTER, "if_version": version, "point": point}).to_string();
            self.sequence += 1;
            let request = format!("{}/{}", self.name, self.sequence);
            let reply = self.until_known(&request, &body);
            match reply.status {
                200 => {
                    self.links.push((version, reply.number("operation_id").unwrap()));
                    let one_less = |wanted: u64| Some(wanted.saturating_sub(1));
                    let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
                }
                412 => {
                    self.refused += 1;
                    let current = reply.json()["version"].as_u64();
                    assert_ne!(current, Some(version), "refused at the version that it has: {}", reply.body);
                }
                status => panic!("{status} {}", reply.body),
            }
        }
    }

    /// Sends under one key, at any node, until somebody knows what became of it.
    fn until_known(&mut self, request: &str, body: &str) -> Reply {
        let started = Instant::now();
        loop {
            let path = "/annal/v1/collections/c/points/cas";
            let reply = self.any().send("POST", path, &[("idempotency-key", request)], body);
            match reply {
                Ok(reply) if ![408, 429, 500, 503].contains(&reply.status) => return reply,
                other => {
                    assert!(started.elapsed() < 6 * OUTAGE_MAX, "still unknown: {other:?}");
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// The counter's version and count.
    fn read(&mut self) -> Option<(u64, u64)> {
        let body = json!({"query": [0, 0, 0, 0], "filter": {"must": [{"has_id": [COUNTER]}]},
            "limit": 1, "with_payload": true});
        let reply = self.any().send("POST", "/collections/c/points/query", &[], &body.to_string());
        let Ok(Reply { status: 200, .. }) = reply else {
            thread::sleep(Duration::from_millis(20));
            return None;
        };
        let found: Result<Value, Failed> = reply.map(|reply| reply.json()["result"]["points"][0].take());
        let found = found.unwrap();
        assert!(found.is_object(), "the counter is not there");
        Some((found["version"].as_u64()?, found["payload"]["count"].as_u64()?))
    }

    fn any(&mut self) -> &mut Connection {
        let n = self.rng.random_range(0..self.connections.len());
        &mut self.connections[n]
    }
}

fn counted(cluster: &TestCluster) -> u64 {
    let point = cluster.client(0).get(&format!("/collections/c/points/{COUNTER}")).ok();
    point["payload"]["count"].as_u64().unwrap()
}

#[test]
fn contended_compare_and_set_loses_nothing() {
    let mut cluster = cluster_with_c();
    let wanted = scaled("ANNAL_OPS", 400);
    let cas = |version: Option<u64>, count: u64| {
        let point = json!({"id": COUNTER, "vector": [count, 0, 0, 0], "payload": {"count": count}});
        let body = json!({"id": COUNTER, "if_version": version, "point": point});
        cluster.client(0).post("/annal/v1/collections/c/points/cas", &body)
    };
    let first = cas(None, 0);
    assert_eq!(first.status, 200, "{}", first.text);
    let first = first.json()["result"]["operation_id"].as_u64().unwrap();
    let again = cas(None, 9);
    assert_eq!((again.status, again.json()["version"].as_u64()), (412, Some(first)), "{}", again.text);
    assert_eq!(counted(&cluster), 0);

    let (left, stop) = (AtomicU64::new(wanted), AtomicBool::new(false));
    let urls = cluster.urls();
    let mut links = BTreeMap::new();
    let mut refused = 0;
    thread::scope(|scope| {
        let counters: Vec<_> = (0..6)
            .map(|n| {
                let mut counting = Counting {
                    connections: urls
                        .iter()
                        .map(|url| Connection::new(url).within(Duration::from_secs(3)))
                        .collect(),
                    rng: StdRng::seed_from_u64(n),
                    name: format!("counter{n}"),
                    sequence: 0,
                    links: Vec::new(),
                    refused: 0,
                    stop: &stop,
                    wanted: &left,
                };
                scope.spawn(move || {
                    counting.count_up();
                    (counting.links, counting.refused)
                })
            })
            .collect();
        if urls.len() > 1 {
            sleep(Duration::from_millis(700));
            // One fault while they are at it: what nobody was told is told under the same key.
            let shard = crate::history::shard_of(COUNTER, SHARDS);
            let leader = cluster.leader_of("c", shard);
            cluster.kill(leader);
            sleep(Duration::from_secs(1));
            cluster.restart(leader);
        }
        for counter in counters {
            let (own, own_refused) = counter.join().expect("a counter does not panic");
            refused += own_refused;
            for (old, new) in own {
                let twice = links.insert(old, new);
                assert_eq!(twice, None, "version {old} was replaced twice: by {new} and {twice:?}");
            }
        }
    });
    cluster.wait_all_ok();
    println!("{} compare-and-sets took effect, {refused} were refused", links.len());
    assert_eq!(counted(&cluster), links.len() as u64, "an update was lost, or made twice");
    // Each success replaced what an earlier one had made: one chain from the first version on.
    let mut version = first;
    for _ in 0..links.len() {
        version = *links.get(&version).unwrap_or_else(|| panic!("nobody replaced version {version}"));
    }
    assert!(refused > 0, "nobody met anybody: the test says nothing");
    cluster.wait_equal("c", cluster.len().min(3), false);
}
