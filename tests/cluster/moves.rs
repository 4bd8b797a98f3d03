//! Nodes that come and go on purpose, and replicas that move between them under load.

use crate::{
    SHARDS,
    cluster::{TestCluster, scaled},
    cluster_with_c,
    connection::Connection,
    history::Order,
    p99, settle, sleep,
    workload::{Load, Plan},
};
use serde_json::json;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// No operation of a load may fail while nothing fails but a move.
fn assert_nothing_failed(history: &crate::history::History) {
    let failed = history.errors.iter().filter(|(what, _)| !what.contains(" 503 ")).count();
    assert_eq!(failed, 0, "{:?}", history.errors);
}

fn drain(cluster: &TestCluster, node: &str) {
    let answer = cluster.client(0).post(&format!("/annal/v1/cluster/nodes/{node}/drain"), &json!({}));
    assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text);
}

#[test]
fn a_node_is_added_drained_and_removed_under_load() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan::default());
    let added = cluster.add();
    assert_eq!(cluster.name(added), "n4");
    drain(&cluster, "n3");
    cluster.wait_for("n3 to hold no shard", |cluster| {
        let status = cluster.status();
        status.of("c").all(|row| !row.nodes().contains(&"n3")).then_some(())
    });
    for shard in 0..SHARDS {
        cluster.wait_on("c", shard, &["n1", "n2", "n4"]);
    }
    // Asked again it is done already.
    drain(&cluster, "n3");
    // It stops in order before it is removed: clients that were at it go elsewhere.
    cluster.terminate(2);
    let removed = cluster.client(0).delete("/annal/v1/cluster/nodes/n3");
    assert!((200..300).contains(&removed.status), "{} {}", removed.status, removed.text);
    cluster.wait_for("n3 to be gone from the catalog", |cluster| {
        let status = cluster.status();
        let named = status.nodes.iter().any(|node| node.name == "n3")
            || status.shards.iter().any(|row| row.nodes().contains(&"n3"));
        (!named).then_some(())
    });
    sleep(Duration::from_millis(300));
    let history = settle("added, drained, removed", &mut cluster, load, Order::Values);
    let failed: Vec<_> = history
        .errors
        .iter()
        .filter(|(what, _)| !what.contains(" 503 ") && !what.contains("not sent"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Searches until told to stop; gives how long each took.
fn search(
    urls: &[String],
    n: usize,
    stop: &AtomicBool,
    during: &AtomicBool,
    times: &Mutex<[Vec<Duration>; 2]>,
) {
    let mut connection = Connection::new(&urls[n % urls.len()]);
    let body = json!({"query": [1, 2, 3, 4], "limit": 10, "with_payload": true}).to_string();
    while !stop.load(Ordering::Relaxed) {
        let moving = during.load(Ordering::Relaxed);
        let started = Instant::now();
        let reply = connection.send("POST", "/collections/c/points/query", &[], &body).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        times.lock().unwrap()[usize::from(moving)].push(started.elapsed());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_shard_moves_under_load() {
    let mut cluster = cluster_with_c();
    // Something to carry over.
    for first in (0..scaled("ANNAL_POINTS", 20_000)).step_by(500) {
        let points: Vec<_> = (first..first + 500)
            .map(|n| json!({"id": 1 << 40 | n, "vector": [n % 97, n % 89, n % 83, n], "payload": {"n": n}}))
            .collect();
        cluster.client(0).put("/collections/c/points?wait=true", &json!({"points": points})).ok();
    }
    let added = cluster.add();
    let urls = cluster.urls()[..added].to_vec();
    let load = Load::start(urls.clone(), Plan::default());
    let (stop, during, times) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::default());
    thread::scope(|scope| {
        let searches: Vec<_> = (0..2)
            .map(|n| {
                let (urls, stop, during, times) = (&urls, &stop, &during, &times);
                scope.spawn(move || search(urls, n, stop, during, times))
            })
            .collect();
        sleep(Duration::from_secs(2));
        during.store(true, Ordering::Relaxed);
        cluster.move_on("c", 0);
        sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        searches.into_iter().for_each(|thread| thread.join().expect("no search failed"));
    });
    let [mut before, mut while_moving] = times.into_inner().unwrap();
    let (before, while_moving) = (p99(&mut before), p99(&mut while_moving));
    println!(
        "search p99 before the move {before:?}, while it went on {while_moving:?}: ratio {:.2}",
        while_moving.as_secs_f64() / before.as_secs_f64()
    );
    assert!(while_moving < Duration::from_secs(2));
    let history = load.stop();
    assert_nothing_failed(&history);
    assert_eq!(history.writes(crate::history::Outcome::Unknown).count(), 0);
    cluster.wait_equal("c", 3, false);
}

/// Few entries may hold much: a replica that has none of them yet lacks few, and must not vote in the place of one that
/// has them all on disk. (It may still be applying them.)
#[test]
fn a_new_replica_votes_only_once_it_has_everything() {
    let mut cluster = cluster_with_c();
    let padding = "x".repeat(2_000);
    let point = |n| json!({"id": n, "vector": [n % 97, n % 89, n % 83, n], "payload": {"padding": padding}});
    let points: Vec<_> = (0..8_000).map(point).collect();
    for points in points.chunks(1_000) {
        cluster.client(0).put("/collections/c/points?wait=true", &json!({ "points": points })).ok();
    }
    let added = cluster.add();
    let (url, name) = (cluster.url(added), cluster.name(added).to_owned());
    let replicas_of_0 = |status: serde_json::Value| {
        let status = status.get("result").unwrap_or(&status).clone();
        let shards = status["shards"].as_array().unwrap().clone();
        let shard = shards.into_iter().find(|row| row["collection"] == "c" && row["shard"] == 0).unwrap();
        shard["replicas"].as_array().unwrap().clone()
    };
    let status = cluster.client(0).get("/annal/v1/cluster").json();
    let all = replicas_of_0(status).iter().filter_map(|replica| replica["committed"].as_u64()).max().unwrap();
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = Connection::new(&url);
            while !stop.load(Ordering::Relaxed) {
                let status = connection.get("/annal/v1/cluster", &[]).unwrap().json();
                let replicas = replicas_of_0(status);
                let new = replicas.iter().find(|replica| replica["node"] == name.as_str());
                if let Some(new) = new.filter(|new| new["phase"] == "voter") {
                    seen.lock().unwrap().push(new["flushed"].as_u64().unwrap());
                }
            }
        });
        cluster.move_on("c", 0);
        sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    assert!(!seen.is_empty(), "it votes in the end");
    assert!(seen.iter().all(|flushed| *flushed >= all), "it voted at {seen:?} of {all}");
}
