//! Nodes that come back without their data, or with damaged data: they become whole by themselves.

use crate::{
    SHARDS,
    cluster::{Damage, TestCluster},
    cluster_with_c,
    connection::Connection,
    history::Order,
    settle, sleep,
    workload::{Load, Plan, read_all},
};
use std::{collections::BTreeMap, time::Duration};

/// Takes a node down under load, does something to its data, brings it back, and expects it whole: in every shard,
/// equal to the others also when hashed anew from the store, and serving.
fn heals(what: &str, harm: impl FnOnce(&mut TestCluster, usize)) {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan { rest: Duration::from_millis(4), ..Plan::default() });
    sleep(Duration::from_millis(500));
    // The one that leads a shard has most to lose.
    let harmed = cluster.leader_of("c", 0);
    cluster.kill(harmed);
    harm(&mut cluster, harmed);
    sleep(Duration::from_millis(500));
    cluster.restart(harmed);
    cluster.wait_all_ok();
    sleep(Duration::from_millis(300));
    settle(what, &mut cluster, load, Order::Values);
    let replicas = cluster.len().min(3);
    let scrubbed = cluster.wait_equal("c", replicas, true);
    assert_eq!(scrubbed, cluster.wait_equal("c", replicas, false), "the store is not what the hash says");
    // It takes part like any other: with another node down, the two that are left are a quorum.
    let before = read_all(&mut Connection::new(&cluster.url(harmed)), "c").unwrap();
    let other = (harmed + 1) % cluster.len();
    cluster.kill(other);
    cluster.wait_led("c", SHARDS);
    assert_eq!(all_from(&cluster, harmed), before);
}

/// Everything, as one node gives it; asked again while the cluster has no leader.
fn all_from(cluster: &TestCluster, i: usize) -> BTreeMap<u64, u64> {
    cluster.wait_for("an answer to a scroll", |cluster| {
        read_all(&mut Connection::new(&cluster.url(i)), "c").ok()
    })
}

#[test]
fn a_deleted_data_folder() {
    heals("data folder deleted", |cluster, i| cluster.wipe(i));
}

#[test]
fn a_damaged_log() {
    heals("log damaged", |cluster, i| println!("  {:?}", cluster.corrupt(i, Damage::Log)));
}

#[test]
fn a_lost_log() {
    heals("log lost", |cluster, i| drop(cluster.corrupt(i, Damage::LogGone)));
}

#[test]
fn a_damaged_store() {
    heals("store damaged", |cluster, i| println!("  {:?}", cluster.corrupt(i, Damage::Store)));
}

/// A data folder that was brought back from a copy lacks what its node has acknowledged since, votes too: it must not
/// go on as who it was.
#[test]
fn a_data_folder_that_went_back() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan { rest: Duration::from_millis(4), ..Plan::default() });
    sleep(Duration::from_millis(500));
    let harmed = 0;
    cluster.kill(harmed);
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("copy");
    cluster.keep_copy(harmed, &copy);
    // While it is away the others come to lead everything.
    cluster.wait_led("c", SHARDS);
    sleep(Duration::from_millis(1_500));
    cluster.restart(harmed);
    cluster.wait_all_ok();
    sleep(Duration::from_millis(500));
    cluster.kill(harmed);
    cluster.bring_back(harmed, &copy);
    cluster.restart(harmed);
    assert!(!cluster.wait_end(harmed).success(), "it says that it cannot go on");
    cluster.restart(harmed);
    cluster.wait_all_ok();
    settle("data folder brought back", &mut cluster, load, Order::Values);
    let scrubbed = cluster.wait_equal("c", 3, true);
    assert_eq!(scrubbed, cluster.wait_equal("c", 3, false), "the store is not what the hash says");
}
