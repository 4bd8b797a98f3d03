//! Intents: what is sent several times happens once, and a conditional write happens only under its condition.

use crate::{
    OUTAGE_MAX, SHARDS,
    cluster::{Options, TestCluster, nodes_wanted, scaled},
    cluster_with_c,
    connection::{Connection, Failed, Reply},
    history::Order,
    load_time, settle, sleep,
    workload::{ENOUGH, Load, Plan},
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
/// be told another position. `ANNAL_WRITERS` (6) makes the load heavier; beyond 6 they do not rest. A shard forgets after
/// a million positions: with `ANNAL_SHARDS=1` all writes are of one.
#[test]
fn retries_take_effect_once() {
    let mut cluster = TestCluster::start(nodes_wanted(), Options::default());
    let shards = scaled("ANNAL_SHARDS", SHARDS.into()) as u32;
    cluster.create("c", shards);
    let mut plan = Plan { retries: true, writers: scaled("ANNAL_WRITERS", 6) as usize, ..Plan::default() };
    if plan.writers > 6 {
        (plan.rest, plan.read_back) = (Duration::ZERO, 5);
    }
    let load = Load::start(cluster.urls(), plan);
    for trial in 0..scaled("ANNAL_TRIALS", 2) {
        sleep(load_time() / 3);
        let leader = cluster.leader_of("c", trial as u32 % shards);
        cluster.kill(leader);
        sleep(Duration::from_secs(1));
        cluster.restart(leader);
        cluster.wait_all_ok();
    }
    sleep(load_time() / 3);
    let history = settle("retries", &mut cluster, load, Order::Values);
    assert!(history.resent > ENOUGH, "too few retries to say anything: {}", history.resent);
}

/// The registers under compare-and-set.
const COUNTERS: [u64; 3] = [7, 8, 9];

/// One who counts up: reads a counter and its version, writes one more at that version.
struct Counting<'a> {
    connections: Vec<Connection>,
    rng: StdRng,
    name: String,
    sequence: u64,
    /// Counters and versions that a success replaced, with the version it made.
    links: Vec<((u64, u64), u64)>,
    refused: u64,
    stop: &'a AtomicBool,
    wanted: &'a AtomicU64,
}

impl Counting<'_> {
    fn count_up(&mut self) {
        while !self.stop.load(Ordering::Relaxed) && self.wanted.load(Ordering::Relaxed) > 0 {
            let id = COUNTERS[self.rng.random_range(0..COUNTERS.len())];
            let Some((version, count)) = self.read(id) else { continue };
            let body = one_more(id, Some(version), count + 1).to_string();
            self.sequence += 1;
            let request = format!("{}/{}", self.name, self.sequence);
            let reply = self.until_known(&request, &body);
            match reply.status {
                200 => {
                    self.links.push(((id, version), reply.number("operation_id").unwrap()));
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

    /// A counter's version and count.
    fn read(&mut self, id: u64) -> Option<(u64, u64)> {
        let body = json!({"query": [0, 0, 0, 0], "filter": {"must": [{"has_id": [id]}]},
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

/// A counter at a version, counted up.
fn one_more(id: u64, version: Option<u64>, count: u64) -> Value {
    let point = json!({"id": id, "vector": [count, 0, 0, 0], "payload": {"count": count}});
    json!({"id": id, "if_version": version, "point": point})
}

fn counted(cluster: &TestCluster, id: u64) -> u64 {
    let point = cluster.client(0).get(&format!("/collections/c/points/{id}")).ok();
    point["payload"]["count"].as_u64().unwrap()
}

#[test]
fn contended_compare_and_set_loses_nothing() {
    let mut cluster = cluster_with_c();
    let wanted = scaled("ANNAL_OPS", 400);
    let cas = |body: Value| cluster.client(0).post("/annal/v1/collections/c/points/cas", &body);
    let firsts = COUNTERS.map(|id| {
        let first = cas(one_more(id, None, 0));
        assert_eq!(first.status, 200, "{}", first.text);
        let first = first.json()["result"]["operation_id"].as_u64().unwrap();
        let again = cas(one_more(id, None, 9));
        assert_eq!((again.status, again.json()["version"].as_u64()), (412, Some(first)), "{}", again.text);
        assert_eq!(counted(&cluster, id), 0);
        first
    });

    let (left, stop) = (AtomicU64::new(wanted), AtomicBool::new(false));
    let urls = cluster.urls();
    let mut links = BTreeMap::new();
    let mut refused = 0;
    thread::scope(|scope| {
        let counters: Vec<_> = (0..9)
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
        for trial in 0..if urls.len() > 1 { scaled("ANNAL_TRIALS", 1) } else { 0 } {
            sleep(Duration::from_millis(700));
            // Faults while they are at it: what nobody was told is told under the same key.
            let shard = crate::history::shard_of(COUNTERS[trial as usize % COUNTERS.len()], SHARDS);
            let leader = cluster.leader_of("c", shard);
            cluster.kill(leader);
            sleep(Duration::from_secs(1));
            cluster.restart(leader);
            cluster.wait_all_ok();
        }
        for counter in counters {
            let (own, own_refused) = counter.join().expect("a counter does not panic");
            refused += own_refused;
            for (old, new) in own {
                let twice = links.insert(old, new);
                assert_eq!(
                    twice, None,
                    "counter and version {old:?} were replaced twice: by {new} and {twice:?}"
                );
            }
        }
    });
    cluster.wait_all_ok();
    println!("{} compare-and-sets took effect, {refused} were refused", links.len());
    for (id, mut version) in COUNTERS.into_iter().zip(firsts) {
        let own = links.keys().filter(|(counter, _)| *counter == id).count() as u64;
        assert_eq!(counted(&cluster, id), own, "an update of {id} was lost, or made twice");
        // Each success replaced what an earlier one had made: one chain from the first version on.
        for _ in 0..own {
            version =
                *links.get(&(id, version)).unwrap_or_else(|| panic!("nobody replaced {version} of {id}"));
        }
    }
    assert!(refused > 0, "nobody met anybody: the test says nothing");
    cluster.wait_equal("c", cluster.len().min(3), false);
}
