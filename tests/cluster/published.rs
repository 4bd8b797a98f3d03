//! Bugs that others found in their databases and published: each as the story of what a user would see here.
//!
//! Only those that no other test tells already; `docs/CONSISTENCY.md` lists all of them.
//! Source: named at each test; the reports are public.

use crate::{
    SHARDS,
    cluster::{Options, TestCluster},
    cluster_with_c,
    connection::{Connection, Failed},
    history::Order,
    settle, sleep,
    workload::{Load, Plan, read_all, upsert_body},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

const POINTS: u64 = 200;

/// Points 0 to `count`, each with the value 1.
fn fill(cluster: &TestCluster, collection: &str, count: u64) {
    let points: Vec<Value> = (0..count).map(|id| point(id, 1)).collect();
    let path = format!("/collections/{collection}/points?wait=true");
    cluster.client(0).put(&path, &json!({ "points": points })).ok();
}

fn point(id: u64, value: u64) -> Value {
    json!({"id": id, "vector": crate::workload::vector_of(id, value), "payload": {"v": value}})
}

/// Everything in a collection as one node gives it, asked again while there is no leader.
fn all(cluster: &TestCluster, i: usize, collection: &str) -> BTreeMap<u64, u64> {
    cluster.wait_for("an answer to a scroll", |cluster| {
        read_all(&mut Connection::new(&cluster.url(i)), collection).ok()
    })
}

/// Ids that a search finds, exact or not.
fn found(cluster: &TestCluster, i: usize, exact: bool) -> Vec<u64> {
    let query = json!({"query": [0, 1, 0, 0], "limit": 2 * POINTS, "params": {"exact": exact}});
    let answer = cluster.client(i).post("/collections/c/points/query", &query).ok();
    answer["points"].as_array().unwrap().iter().map(|point| point["id"].as_u64().unwrap()).collect()
}

/// Half of the points are deleted while a node is away; when it is back, whatever it is asked and however often, no node
/// shows one of them, and they are gone from the node itself.
///
/// Weaviate 4945 (read repair brings them back), Qdrant 4627.
#[test]
fn deletes_that_a_node_missed_stay_deleted() {
    for wiped in [false, true] {
        let mut cluster = cluster_with_c();
        fill(&cluster, "c", POINTS);
        cluster.kill(2);
        let filter = json!({"points": (0..POINTS).step_by(2).collect::<Vec<_>>()});
        cluster.wait_for("a deletion", |cluster| {
            let deleted = cluster.client(0).post("/collections/c/points/delete?wait=true", &filter);
            (deleted.status == 200).then_some(())
        });
        if wiped {
            cluster.wipe(2);
        }
        cluster.restart(2);
        cluster.wait_ready_node(2);
        let left: Vec<u64> = (0..POINTS).filter(|id| id % 2 == 1).collect();
        for round in 0..5 {
            for i in 0..cluster.len() {
                let shown: Vec<u64> = all(&cluster, i, "c").into_keys().collect();
                assert_eq!(shown, left, "node {i}, round {round}, wiped: {wiped}");
                let mut hits = found(&cluster, i, round % 2 == 0);
                hits.sort_unstable();
                assert_eq!(hits, left, "search at node {i}, round {round}, wiped: {wiped}");
            }
            sleep(Duration::from_millis(100));
        }
        cluster.wait_all_ok();
        cluster.wait_equal("c", 3, true);
    }
}

/// One node, half of its points deleted, killed or stopped several times: what was deleted does not reappear.
///
/// Weaviate 9157 (the index is rebuilt from files that still have them).
#[test]
fn deletes_stay_deleted_over_restarts() {
    let mut cluster = TestCluster::start(1, Options::default());
    cluster.create("c", 1);
    fill(&cluster, "c", POINTS);
    let deleted: Vec<u64> = (0..POINTS).step_by(2).collect();
    cluster.client(0).post("/collections/c/points/delete?wait=true", &json!({ "points": deleted })).ok();
    for round in 0..4 {
        match round % 2 {
            0 => cluster.kill(0),
            _ => assert!(cluster.terminate(0).success()),
        }
        cluster.restart(0);
        cluster.wait_all_ok();
        assert!(all(&cluster, 0, "c").keys().all(|id| id % 2 == 1), "round {round}");
        for exact in [true, false] {
            let hits = found(&cluster, 0, exact);
            assert_eq!(
                (hits.len() as u64, hits.iter().any(|id| id % 2 == 0)),
                (POINTS / 2, false),
                "round {round}"
            );
        }
    }
}

/// Batches of 50 points to one shard while its leader is killed: of each batch all points are there, or none.
///
/// Qdrant 4626 (a failed batch is kept in part).
#[test]
fn a_batch_is_whole_or_absent_though_its_leader_is_killed() {
    const OF: u64 = 50;
    let mut cluster = TestCluster::start(crate::cluster::nodes_wanted(), Options::default());
    cluster.create("c", 1);
    let mut acknowledged = Vec::new();
    let mut batches = 0;
    for trial in 0..3 {
        let leader = cluster.leader_of("c", 0);
        let other = (leader + 1) % cluster.len();
        let url = cluster.url(if trial % 2 == 0 { leader } else { other });
        let writing = std::thread::spawn(move || {
            let mut connection = Connection::new(&url);
            let mut done = Vec::new();
            for batch in batches.. {
                let points: Vec<Value> =
                    (batch * OF..(batch + 1) * OF).map(|id| point(id, batch + 1)).collect();
                let body = json!({ "points": points }).to_string();
                let sent = connection.send("PUT", "/collections/c/points?wait=true", &[], &body);
                done.push((batch, sent.as_ref().is_ok_and(|reply| reply.status == 200)));
                if !done.last().unwrap().1 || done.len() > 200 {
                    break;
                }
            }
            done
        });
        sleep(Duration::from_millis(150));
        cluster.kill(leader);
        // Whoever asks another node goes on with the next leader, until it has been there for a while.
        let done = writing.join().unwrap();
        batches = done.last().unwrap().0 + 1;
        acknowledged.extend(done.iter().filter(|(_, ok)| *ok).map(|(batch, _)| *batch));
        cluster.restart(leader);
        cluster.wait_all_ok();
    }
    let shown = all(&cluster, 0, "c");
    for batch in 0..batches {
        let there =
            (batch * OF..(batch + 1) * OF).filter(|id| shown.get(id) == Some(&(batch + 1))).count() as u64;
        assert!(there == OF || there == 0, "{there} of {OF} points of batch {batch}");
        assert!(there == OF || !acknowledged.contains(&batch), "batch {batch} was acknowledged");
    }
    assert!(acknowledged.len() > 3, "{acknowledged:?}");
}

/// One client writes through kills and restarts of all kinds: each position it is told is above the last one, and a feed
/// goes on from every place it was told.
///
/// Milvus 41842 (message ids roll back when another node takes over).
#[test]
fn positions_never_go_back() {
    let mut cluster = TestCluster::start(crate::cluster::nodes_wanted(), Options::default());
    cluster.create("c", 1);
    let mut told = Vec::new();
    let mut write = |cluster: &TestCluster, count: u64| {
        for n in 0..count {
            let position = cluster.wait_for("a write", |cluster| {
                let mut connection =
                    Connection::new(&cluster.url(cluster.awake()[n as usize % cluster.awake().len()]));
                let body = upsert_body(n % 5, told.len() as u64 + 1, 0);
                let reply = connection.send("PUT", "/collections/c/points?wait=true", &[], &body).ok()?;
                (reply.status == 200).then(|| reply.number("operation_id").unwrap())
            });
            assert!(told.last().is_none_or(|last| *last < position), "{position} after {told:?}");
            told.push(position);
        }
    };
    write(&cluster, 20);
    for round in 0..3 {
        let leader = cluster.leader_of("c", 0);
        match round {
            0 => cluster.kill(leader),
            1 => drop(cluster.terminate(leader)),
            _ => cluster.kill_all(),
        }
        if round < 2 {
            write(&cluster, 5);
        }
        (0..cluster.len())
            .filter(|i| !cluster.runs(*i))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|i| cluster.restart(i));
        cluster.wait_all_ok();
        write(&cluster, 10);
    }
}

/// All nodes are killed again before they have come to rest, many times, while clients write on.
///
/// Milvus 45088 (several crashes at short intervals lose what was written between them).
#[test]
fn crashes_at_short_intervals_lose_nothing() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan { rest: Duration::from_millis(4), ..Plan::default() });
    sleep(Duration::from_millis(300));
    for wait in [50, 200, 400, 800, 1_600, 3_000] {
        cluster.kill_all();
        (0..cluster.len()).for_each(|i| cluster.restart(i));
        sleep(Duration::from_millis(wait));
    }
    cluster.wait_all_ok();
    settle("killed at short intervals", &mut cluster, load, Order::Values);
}

/// Leaders are killed as soon as they lead, before anything is written, so that terms pass without an entry of a client;
/// writes go on all the same, at once.
///
/// Milvus 49139 (after a restart the fence of an empty log fails for ever).
#[test]
fn leaders_that_wrote_nothing_leave_nothing_stuck() {
    let mut cluster = cluster_with_c();
    for _ in 0..3 {
        for shard in 0..SHARDS {
            let leader = cluster.leader_of("c", shard);
            cluster.kill(leader);
            cluster.wait_led("c", SHARDS);
            cluster.restart(leader);
        }
        cluster.kill_all();
        (0..cluster.len()).for_each(|i| cluster.restart(i));
        cluster.wait_led("c", SHARDS);
    }
    fill(&cluster, "c", 50);
    cluster.wait_all_ok();
    assert_eq!(all(&cluster, 1, "c").len(), 50);
}

/// A log that tells of collections that were dropped, and of one that was made anew under the same name, is replayed
/// without its stores; nothing of the dropped ones is seen.
///
/// Milvus 47802 (the replay meets a collection that is no more, and panics).
#[test]
fn a_log_with_dropped_collections_is_replayed() {
    let mut cluster = TestCluster::start(crate::cluster::nodes_wanted(), Options::default());
    for n in 0..3 {
        cluster.create("c", 1 + n);
        fill(&cluster, "c", POINTS + u64::from(n));
        cluster.client(0).delete("/collections/c").ok();
    }
    cluster.create("c", SHARDS);
    fill(&cluster, "c", 20);
    for store_too in [false, true] {
        cluster.kill_all();
        for i in 0..cluster.len() {
            if store_too {
                cluster.corrupt(i, crate::cluster::Damage::StoreGone);
            }
            cluster.restart(i);
        }
        cluster.wait_all_ok();
        for i in 0..cluster.len() {
            assert_eq!(all(&cluster, i, "c").len(), 20, "node {i}, stores gone: {store_too}");
        }
        cluster.wait_equal("c", cluster.len().min(3), true);
    }
}

/// A node that is brought up by snapshots is killed at many moments meanwhile; it always starts again, and becomes whole.
///
/// Qdrant 7577 (the log is cleared before the state of the snapshot is persisted; a crash in between is the last one).
#[test]
fn a_crash_while_a_snapshot_is_installed_is_only_a_delay() {
    let mut cluster = cluster_with_c();
    fill(&cluster, "c", 2_000);
    cluster.kill(2);
    cluster.wipe(2);
    for wait in [100, 250, 400, 550, 700, 850, 1_000, 1_300] {
        cluster.restart(2);
        sleep(Duration::from_millis(wait));
        cluster.kill(2);
    }
    cluster.restart(2);
    cluster.wait_all_ok();
    assert_eq!(all(&cluster, 2, "c").len(), 2_000);
    cluster.wait_equal("c", 3, true);
}

/// A client is told `no effect` only if nothing happened: what was refused is not there, whatever is done to the nodes.
///
/// Qdrant 4626 again, and the general case of it.
#[test]
fn what_had_no_effect_is_not_there() {
    let mut cluster = cluster_with_c();
    let urls = cluster.urls();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let refused: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|n| {
                let (url, stop) = (&urls[n as usize], &stop);
                scope.spawn(move || {
                    let mut connection = Connection::new(url).within(Duration::from_secs(5));
                    let mut refused = Vec::new();
                    for id in (n << 32..).take_while(|_| !stop.load(std::sync::atomic::Ordering::Relaxed)) {
                        let sent = connection.send(
                            "PUT",
                            "/collections/c/points?wait=true",
                            &[],
                            &upsert_body(id, 1, 0),
                        );
                        match sent {
                            Ok(reply) if reply.status != 200 && reply.no_effect() => refused.push(id),
                            Err(Failed::NotSent(_)) => refused.push(id),
                            _ => {}
                        }
                        sleep(Duration::from_millis(2));
                    }
                    refused
                })
            })
            .collect();
        for _ in 0..3 {
            let leader = cluster.leader_of("c", 0);
            cluster.kill(leader);
            sleep(Duration::from_millis(1_500));
            cluster.restart(leader);
            cluster.wait_all_ok();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    let shown = all(&cluster, 0, "c");
    let there: Vec<_> = refused.iter().filter(|id| shown.contains_key(id)).collect();
    assert!(there.is_empty(), "{} of {} refused writes are there: {there:?}", there.len(), refused.len());
    assert!(!refused.is_empty() && !shown.is_empty());
}
