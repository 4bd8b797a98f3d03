//! Nodes that die, freeze, and stop in order, under load.

use crate::{
    OUTAGE_MAX, SHARDS,
    cluster::{TestCluster, scaled},
    cluster_with_c,
    connection::Connection,
    history::{Nanos, Order},
    load_time, settle, sleep, spread,
    workload::{Load, Plan},
};
use std::time::Duration;

/// Faults and the shards whose writes they may hold up.
#[derive(Default)]
struct Faults(Vec<(Nanos, u32)>);

impl Faults {
    /// A fault has just happened.
    fn happened(&mut self, load: &Load, shard: u32) {
        self.0.push((load.now(), shard));
    }

    /// How long each kept writes to its shard away.
    fn outages(&self, history: &crate::history::History) -> Vec<Duration> {
        let outage = |(at, shard): &(Nanos, u32)| {
            history.outage(*at, *shard, SHARDS).expect("writes went on after the last fault")
        };
        self.0.iter().map(outage).collect()
    }
}

/// Reads that ask for no agreement are answered at once by every node that is awake.
fn local_reads_go_on(cluster: &TestCluster) {
    for i in cluster.awake() {
        let mut connection = Connection::new(&cluster.url(i)).within(Duration::from_secs(2));
        let reply = connection.get("/collections/c/points/1", &[("annal-consistency", "local")]);
        let status = reply.as_ref().map(|reply| reply.status);
        assert!(matches!(status, Ok(200 | 404)), "{} answers {reply:?}", cluster.name(i));
    }
}

#[test]
fn a_leader_killed() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan::default());
    let mut faults = Faults::default();
    for trial in 0..scaled("ANNAL_TRIALS", 3) {
        sleep(Duration::from_millis(300));
        let shard = trial as u32 % SHARDS;
        let leader = cluster.leader_of("c", shard);
        cluster.kill(leader);
        faults.happened(&load, shard);
        local_reads_go_on(&cluster);
        cluster.leader_of("c", shard);
        sleep(Duration::from_millis(300));
        cluster.restart(leader);
        cluster.wait_all_ok();
    }
    sleep(Duration::from_millis(300));
    let history = settle("leader killed", &mut cluster, load, Order::Values);
    let mut outages = faults.outages(&history);
    println!("  from the kill to the next acknowledged write: {}", spread(&mut outages));
    assert!(*outages.last().unwrap() <= OUTAGE_MAX, "{outages:?}");
}

#[test]
fn a_leader_frozen_and_a_follower_frozen() {
    let freeze = Duration::from_secs(scaled("ANNAL_FREEZE_SECONDS", 4));
    let mut cluster = cluster_with_c();
    // Readers wait longer than the freeze: what a thawed node answers to them must be new.
    // Writers do not read through other nodes: they would wait there for the thaw, and no longer measure the pause.
    let load = Load::start(cluster.urls(), Plan { readers: 6, read_back: 0, ..Plan::default() });
    let mut faults = Faults::default();
    for leads in [true, false] {
        sleep(Duration::from_millis(300));
        let leader = cluster.leader_of("c", 0);
        let frozen = if leads { leader } else { (leader + 1) % cluster.len() };
        cluster.pause(frozen);
        faults.happened(&load, 0);
        faults.happened(&load, 1);
        sleep(freeze);
        cluster.resume(frozen);
        cluster.wait_all_ok();
    }
    sleep(Duration::from_millis(300));
    let history = settle("frozen", &mut cluster, load, Order::Values);
    let outages = faults.outages(&history);
    println!(
        "  from the freeze to the next acknowledged write, leader then follower of shard 0: {outages:?}"
    );
    assert!(outages.iter().all(|outage| *outage <= OUTAGE_MAX), "{outages:?}");
}

#[test]
fn one_of_three_down() {
    let mut cluster = cluster_with_c();
    let down = cluster.leader_of("c", 0);
    cluster.kill(down);
    cluster.wait_led("c", SHARDS);
    // With new leaders there is no reason left to turn anybody away, on either of the others.
    let awake = cluster.awake().into_iter().map(|i| cluster.url(i)).collect();
    let load = Load::start(awake, Plan::default());
    sleep(load_time());
    local_reads_go_on(&cluster);
    cluster.restart(down);
    let history = settle("one of three down", &mut cluster, load, Order::Values);
    assert!(history.errors.is_empty(), "{:?}", history.errors);
}

#[test]
fn one_register_through_different_nodes() {
    let mut cluster = cluster_with_c();
    let plan = Plan { order: Order::Positions, keys: 5, writers: 6, readers: 6, ..Plan::default() };
    let load = Load::start(cluster.urls(), plan);
    sleep(load_time());
    let history = settle("shared registers", &mut cluster, load, Order::Positions);
    assert!(history.errors.is_empty(), "{:?}", history.errors);
}

#[test]
fn all_nodes_killed_at_once() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan { rest: Duration::from_millis(4), ..Plan::default() });
    for _ in 0..scaled("ANNAL_TRIALS", 2) {
        sleep(Duration::from_millis(500));
        cluster.kill_all();
        (0..cluster.len()).for_each(|i| cluster.restart(i));
        cluster.wait_all_ok();
    }
    sleep(Duration::from_millis(500));
    settle("all killed", &mut cluster, load, Order::Values);
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan::default());
    for i in 0..cluster.len() {
        sleep(Duration::from_millis(500));
        let status = cluster.terminate(i);
        assert!(status.success(), "{} ended with {status}", cluster.name(i));
        cluster.restart(i);
        cluster.wait_all_ok();
    }
    sleep(Duration::from_millis(500));
    let history = settle("rolling restart", &mut cluster, load, Order::Values);
    let pauses = (0..SHARDS).map(|shard| history.longest_pause(shard, SHARDS));
    println!("  longest pause of writes to a shard: {:?}", pauses.max().unwrap());
    // A client may be turned away before anything happened; it is never left in doubt.
    let retried = ["write: 503", "read: 503", "write: not sent", "read: not sent"];
    let failed: Vec<_> =
        history.errors.iter().filter(|(what, _)| !retried.iter().any(|r| what.starts_with(r))).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
