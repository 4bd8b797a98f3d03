//! The change feed as a witness: cut off again and again, it still tells every effect once and in order, and what is
//! rebuilt from it is what the cluster holds.

use crate::{
    SHARDS,
    cluster::{TestCluster, scaled},
    cluster_with_c,
    connection::Connection,
    sleep,
    workload::vector_of,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Payload and vector of a point.
type Content = (Value, Vec<f32>);

/// What was rebuilt from the feed.
#[derive(Default)]
struct Replay {
    points: BTreeMap<u64, Content>,
    /// Of each shard: position, n (from 0) and of, of its last event.
    last: BTreeMap<u64, (u64, u64, u64)>,
    token: Option<String>,
    events: u64,
    /// Heartbeats since the last event.
    quiet: u64,
}

impl Replay {
    /// Takes in one line.
    ///
    /// Errors: an event comes twice, is missing within its command, is out of order, or does not fit.
    fn take(&mut self, line: &str) -> Result<(), String> {
        let event: Value = serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?;
        let token = event["token"].as_str().ok_or_else(|| format!("no token: {line}"))?.to_owned();
        if event["heartbeat"] == true {
            self.quiet += 1;
            self.token = Some(token);
            return Ok(());
        }
        let number = |key: &str| event[key].as_u64().ok_or_else(|| format!("no {key}: {line}"));
        let (shard, at) = (number("shard")?, (number("position")?, number("n")?, number("of")?));
        let (position, n, of) = at;
        let last = self.last.insert(shard, at);
        let follows = match last {
            Some((last, last_n, last_of)) if last_n + 1 < last_of => (position, n) == (last, last_n + 1),
            Some((last, ..)) => position > last && n == 0,
            None => n == 0,
        };
        if !follows || n >= of {
            return Err(format!("after {last:?} of shard {shard} came {line}"));
        }
        let id = number("id")?;
        match event["op"].as_str() {
            Some("upsert") => drop(self.points.insert(id, content(&event))),
            Some("delete") if self.points.remove(&id).is_some() => {}
            Some("delete") => return Err(format!("deleted what was not there: {line}")),
            other => return Err(format!("op {other:?}: {line}")),
        }
        self.quiet = 0;
        self.events += 1;
        self.token = Some(token);
        Ok(())
    }
}

fn content(of: &Value) -> Content {
    (of["payload"].clone(), serde_json::from_value(of["vector"].clone()).unwrap())
}

/// Follows the feed through as many cuts as it can, until it holds `end` (known once the writers have ended) and a
/// heartbeat says that no more is to come.
///
/// Counts how often it was cut off; gives how often it was not let in.
fn consume(
    urls: &[String],
    replay: &mut Replay,
    cuts: &AtomicU64,
    end: &OnceLock<BTreeMap<u64, Content>>,
) -> u64 {
    let mut rng = StdRng::seed_from_u64(scaled("ANNAL_SEED", 1));
    let mut refused = 0;
    let mut ended = None;
    loop {
        let node = rng.random_range(0..urls.len());
        let from = replay.token.clone().unwrap_or_else(|| "begin".to_owned());
        let path = format!("/annal/v1/collections/c/changes?from={from}&with_payload=true&with_vector=true");
        let mut lines = match Connection::new(&urls[node]).within(Duration::from_secs(5)).follow(&path, &[]) {
            Ok(lines) => lines,
            Err((Some(reply), _)) if reply.status != 503 => panic!("{} {}", reply.status, reply.body),
            Err(_) => {
                refused += 1;
                sleep(Duration::from_millis(20));
                continue;
            }
        };
        // Every answer begins with a heartbeat, which says nothing about what is to come. Some cuts come at once, and on
        // the whole the consumer keeps up with the writers.
        for count in 0..rng.random_range(1..400) {
            let Ok(Some(line)) = lines.next(Duration::from_secs(8)) else { break };
            replay.take(&line).unwrap();
            let at_end = end.get().is_some_and(|end| replay.points == *end);
            if at_end && replay.quiet > 0 && count > 0 {
                return refused;
            }
            let since = ended.get_or_insert_with(Instant::now);
            if end.get().is_none() {
                *since = Instant::now();
            } else if since.elapsed() > Duration::from_secs(60) {
                // What differs is for the caller to say.
                return refused;
            }
        }
        cuts.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes batches and deletes by filter within its own range of ids, every request under a key and some of them sent
/// twice; gives what must be there in the end.
fn write(urls: &[String], writer: u64, done: &AtomicBool) -> BTreeMap<u64, Content> {
    let mut rng = StdRng::seed_from_u64(scaled("ANNAL_SEED", 1) << 8 | writer);
    let mut connections: Vec<_> =
        urls.iter().map(|url| Connection::new(url).within(Duration::from_secs(3))).collect();
    let mut points: BTreeMap<u64, Content> = BTreeMap::new();
    for sequence in 1u64.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let (path, body) = if rng.random_ratio(1, 8) {
            let group = rng.random_range(0..5u64);
            points.retain(|_, (payload, _)| payload["group"] != group);
            let matches = |key: &str, value: u64| json!({"key": key, "match": {"value": value}});
            let filter = json!({"must": [matches("writer", writer), matches("group", group)]});
            ("/collections/c/points/delete?wait=true", json!({"filter": filter}))
        } else {
            let batch: Vec<Value> = (0..rng.random_range(1..=50))
                .map(|n| {
                    let id = writer << 16 | rng.random_range(0..200u64);
                    let payload = json!({"writer": writer, "group": id % 5, "v": sequence << 8 | n});
                    let vector = vector_of(id, sequence << 8 | n);
                    points.insert(id, (payload.clone(), vector.to_vec()));
                    json!({"id": id, "vector": vector, "payload": payload})
                })
                .collect();
            ("/collections/c/points?wait=true", json!({"points": batch}))
        };
        let method = if body.get("points").is_some() { "PUT" } else { "POST" };
        let (request, body) = (format!("feed{writer}/{sequence}"), body.to_string());
        let mut copies = 1 + u64::from(rng.random_ratio(1, 5));
        let started = Instant::now();
        while copies > 0 {
            let node = rng.random_range(0..connections.len());
            match connections[node].send(method, path, &[("idempotency-key", &request)], &body) {
                Ok(reply) if reply.status == 200 => copies -= 1,
                Ok(reply) if ![408, 429, 500, 503].contains(&reply.status) => {
                    panic!("{} {}", reply.status, reply.body)
                }
                other => {
                    assert!(started.elapsed() < Duration::from_secs(60), "{other:?}");
                    sleep(Duration::from_millis(20));
                }
            }
        }
        sleep(Duration::from_millis(20));
    }
    points
}

/// Everything in the collection.
fn held(cluster: &TestCluster) -> BTreeMap<u64, Content> {
    let mut found = BTreeMap::new();
    let mut offset = Value::Null;
    loop {
        let body = json!({"limit": 1000, "offset": offset, "with_payload": true, "with_vector": true});
        let page = cluster.client(0).post("/collections/c/points/scroll", &body).ok();
        let points = page["points"].as_array().unwrap();
        found.extend(points.iter().map(|point| (point["id"].as_u64().unwrap(), content(point))));
        offset = page["next_page_offset"].clone();
        if offset.is_null() {
            return found;
        }
    }
}

#[test]
fn a_consumer_that_is_cut_off_again_and_again_misses_nothing() {
    let mut cluster = cluster_with_c();
    let urls = cluster.urls();
    if urls.len() > 1 {
        // Room for shards to move to.
        cluster.add();
    }
    let wanted = scaled("ANNAL_CUTS", 60);
    let written = AtomicBool::new(false);
    let end = OnceLock::new();
    let mut replay = Replay::default();
    let cuts = AtomicU64::new(0);
    let refused = thread::scope(|scope| {
        let writers: Vec<_> = (1..=3)
            .map(|writer| {
                let (urls, written) = (&urls, &written);
                scope.spawn(move || write(urls, writer, written))
            })
            .collect();
        let consumer = scope.spawn(|| consume(&urls, &mut replay, &cuts, &end));
        // A slow machine needs more time for as many cuts.
        let enough = || cuts.load(Ordering::Relaxed) >= wanted / 2;
        for round in
            (0u64..).take_while(|round| *round < (wanted / 30).max(2) || *round < wanted && !enough())
        {
            sleep(Duration::from_millis(1_500));
            let shard = round as u32 % SHARDS;
            match round % 3 {
                _ if urls.len() == 1 => {}
                1 => cluster.move_on("c", shard),
                kind => {
                    let leader = cluster.leader_of("c", shard);
                    cluster.kill(leader);
                    sleep(Duration::from_millis(1_000));
                    // With its folder gone it comes back by a snapshot: the feed must not care.
                    if kind == 2 {
                        cluster.wipe(leader);
                    }
                    cluster.restart(leader);
                    cluster.wait_all_ok();
                }
            }
        }
        written.store(true, Ordering::Relaxed);
        let writers = writers.into_iter().map(|writer| writer.join().expect("a writer does not panic"));
        end.set(writers.flatten().collect()).expect("set once");
        consumer.join().expect("a consumer does not panic")
    });
    let cuts = cuts.into_inner();
    println!("feed: {} events through {cuts} cuts, {refused} times not let in", replay.events);
    let held = held(&cluster);
    assert_eq!(&held, end.get().unwrap(), "the cluster holds something else than was written");
    assert_eq!(replay.points, held, "the feed tells something else than the cluster holds");
    assert!(cuts >= wanted / 2, "too few cuts to say anything: {cuts}");
    assert_eq!(replay.last.len(), SHARDS as usize);
}

mod witness {
    //! The witness itself, against feeds that are known to be bad.

    use super::Replay;
    use serde_json::json;

    fn line(shard: u64, position: u64, n: u64, of: u64, op: &str, id: u64) -> String {
        let event = json!({"token": "t", "shard": shard, "position": position, "n": n, "of": of, "op": op,
            "id": id, "version": position, "payload": {}, "vector": [0.0]});
        event.to_string()
    }

    fn accepts(lines: &[String]) -> bool {
        let mut replay = Replay::default();
        lines.iter().all(|line| replay.take(line).is_ok())
    }

    #[test]
    fn it_accepts_order_and_nothing_else() {
        let two = [line(0, 3, 0, 2, "upsert", 1), line(0, 3, 1, 2, "upsert", 2)];
        let with = |more: String| [&two[..], &[more]].concat();
        assert!(accepts(&with(line(0, 4, 0, 1, "delete", 1))));
        assert!(accepts(&with(line(1, 1, 0, 1, "upsert", 9))));
        assert!(accepts(&with(json!({"token": "t", "heartbeat": true}).to_string())));
        assert!(!accepts(&with(line(0, 3, 1, 2, "upsert", 2))), "an event twice");
        assert!(!accepts(&with(line(0, 2, 0, 1, "upsert", 2))), "a step back");
        assert!(!accepts(&with(line(0, 4, 1, 2, "upsert", 2))), "the first of two is missing");
        assert!(!accepts(&with(line(0, 4, 0, 1, "delete", 7))), "a delete of nothing");
        assert!(!accepts(&[two[0].clone(), line(0, 4, 0, 1, "upsert", 2)]), "the second of two is missing");
    }
}
