//! A cluster of one: it needs no peers, and keeps every promise all the same.

use crate::{
    cluster::{Options, TestCluster, scaled},
    history::Order,
    settle, sleep,
    workload::{ENOUGH, Load, Plan},
};
use std::time::Duration;

#[test]
fn a_cluster_of_one_keeps_what_it_acknowledged() {
    let mut cluster = TestCluster::start(1, Options::default());
    cluster.create("c", 2);
    let plan = Plan { retries: true, ..Plan::default() };
    let load = Load::start(cluster.urls(), plan);
    for _ in 0..scaled("ANNAL_TRIALS", 2) {
        sleep(Duration::from_millis(400));
        cluster.kill(0);
        sleep(Duration::from_millis(100));
        cluster.restart(0);
        cluster.wait_all_ok();
    }
    sleep(Duration::from_millis(300));
    let history = settle("one node, killed", &mut cluster, load, Order::Values);
    assert!(history.resent > ENOUGH, "too few retries to say anything: {}", history.resent);
}

#[test]
fn many_writers_of_one_register_agree_on_its_order() {
    let mut cluster = TestCluster::start(1, Options::default());
    cluster.create("c", 2);
    let plan = Plan { order: Order::Positions, keys: 3, ..Plan::default() };
    let load = Load::start(cluster.urls(), plan);
    sleep(Duration::from_secs(1));
    settle("one node, shared registers", &mut cluster, load, Order::Positions);
}

#[test]
fn a_terminated_node_ends_in_order_and_keeps_its_addresses() {
    let mut cluster = TestCluster::start(1, Options::default());
    cluster.create("c", 1);
    let status = cluster.terminate(0);
    assert!(status.success(), "{status}");
    cluster.restart(0);
    assert_eq!(cluster.wait_all_ok().of("c").count(), 1);
}
