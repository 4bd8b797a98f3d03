//! Real processes, real faults: what must hold of a cluster whatever happens to its nodes.
//!
//! Sizes are small so that the whole runs in minutes; the environment makes them larger: `ANNAL_TRIALS` faults of a
//! kind, `ANNAL_FREEZE_SECONDS`, `ANNAL_LOAD_SECONDS`, `ANNAL_OPS`, `ANNAL_CUTS`,
//! `ANNAL_DIVERGENCES`, `ANNAL_SEED`. Bounds on times are
//! loose here; `benches/cluster.rs` prints the tables. Run with `--nocapture` to see the figures.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../process/cluster.rs"]
mod cluster;
#[path = "../process/connection.rs"]
mod connection;
#[path = "../process/history.rs"]
mod history;
#[path = "../process/mod.rs"]
mod process;
#[path = "../process/workload.rs"]
mod workload;

mod checkers;
mod divergence;
mod failover;
mod feed;
mod intents;
mod liar;
mod moves;
mod one;
mod published;
mod reads;
mod repair;

use cluster::{Options, TestCluster, nodes_wanted, scaled};
use connection::Connection;
use history::{History, Order};
use std::{thread, time::Duration};
use workload::{ENOUGH, Load, read_all};

/// Shards of the collection `c`.
const SHARDS: u32 = 2;

/// No fault may keep writes away longer than this here; the benches look closer.
const OUTAGE_MAX: Duration = Duration::from_secs(10);

/// A cluster with the collection `c`.
fn cluster_with_c() -> TestCluster {
    let mut cluster = TestCluster::start(nodes_wanted(), Options::default());
    cluster.create("c", SHARDS);
    cluster
}

/// How long a load runs, unless a test has its own measure.
fn load_time() -> Duration {
    Duration::from_secs(scaled("ANNAL_LOAD_SECONDS", 3))
}

/// Ends a load and lets the cluster come to rest: nothing acknowledged was lost, no read was stale, every node gives the
/// same, replicas are equal.
fn settle(what: &str, cluster: &mut TestCluster, load: Load, order: Order) -> History {
    let history = load.stop();
    cluster.wait_all_ok();
    let ends: Vec<_> = cluster
        .awake()
        .into_iter()
        .map(|i| read_all(&mut Connection::new(&cluster.url(i)), "c").unwrap())
        .collect();
    let report = history.check(order, &ends[0]);
    println!("{what}: {}\n  {report}", history.summary());
    report.assert_clean();
    assert!(history.noticed.is_empty(), "{} oddities, first: {}", history.noticed.len(), history.noticed[0]);
    for (n, end) in ends.iter().enumerate() {
        assert_eq!(*end, ends[0], "the {n}th node gives other points than the first");
    }
    assert!(
        history.acknowledged() as u64 > ENOUGH,
        "too few writes to say anything: {}",
        history.acknowledged()
    );
    assert!(report.checks as u64 > ENOUGH, "too few reads to say anything: {}", report.checks);
    cluster.wait_equal("c", cluster.len().min(3), false);
    history
}

/// Median and worst of some times.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    match times {
        [] => "none".to_owned(),
        times => format!(
            "median {:.3} s, worst {:.3} s of {}",
            times[times.len() / 2].as_secs_f64(),
            times[times.len() - 1].as_secs_f64(),
            times.len()
        ),
    }
}

/// The 99th of a hundred.
fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

fn sleep(time: Duration) {
    thread::sleep(time);
}
