//! Replicas that have diverged from the others: found, and healed.

use crate::{
    cluster::{TestCluster, scaled},
    cluster_with_c,
    connection::Connection,
    workload::{read_all, upsert_body},
};
use annal::{
    shard::rot,
    store::{Store, StoreOptions},
};
use std::{collections::BTreeMap, path::Path};

/// Everything, as one node gives it; asked again while the cluster has no leader.
fn all_from(cluster: &TestCluster, i: usize) -> BTreeMap<u64, u64> {
    cluster.wait_for("an answer to a scroll", |cluster| {
        read_all(&mut Connection::new(&cluster.url(i)), "c").ok()
    })
}

/// One row of a stopped node's store is changed, dropped or doubled: the next scrub finds it, and the replica that holds
/// it is replaced from the others. Its keyspace is then gone from that store: so it was found, not merely overlooked.
#[test]
fn a_replica_that_has_diverged() {
    let mut cluster = cluster_with_c();
    let mut connection = Connection::new(&cluster.url(0));
    for key in 0..300 {
        let (body, request) = (upsert_body(key % 200, key, 0), format!("divergence/{key}"));
        let headers = [("idempotency-key", request.as_str())];
        let written = connection.send("PUT", "/collections/c/points?wait=true", &headers, &body).unwrap();
        assert_eq!(written.status, 200, "{}", written.body);
    }
    let expected = all_from(&cluster, 0);
    for seed in 0..scaled("ANNAL_DIVERGENCES", 3) {
        let i = seed as usize % cluster.len();
        cluster.terminate(i);
        let (keyspace, harm) = inject(&cluster.data_dir(i), seed);
        println!("{}: {keyspace}: {harm}", cluster.name(i));
        cluster.restart(i);
        cluster.wait_all_ok();
        cluster.wait_equal("c", cluster.len().min(3), true);
        cluster.wait_all_ok();
        assert_eq!(all_from(&cluster, i), expected);
        cluster.terminate(i);
        let left = keyspaces(&cluster.data_dir(i));
        assert!(!left.contains(&keyspace), "nobody found {harm} in {keyspace}: {left:?}");
        cluster.restart(i);
        cluster.wait_all_ok();
    }
}

fn store_of(data_dir: &Path) -> Store {
    Store::open(&data_dir.join("store"), StoreOptions { cache_bytes: 16 << 20, ..StoreOptions::default() })
        .unwrap()
}

fn keyspaces(data_dir: &Path) -> Vec<String> {
    store_of(data_dir).keyspaces()
}

/// Damages one row of one shard of a stopped node; gives the keyspace it lies in, and what was done.
fn inject(data_dir: &Path, seed: u64) -> (String, String) {
    let store = store_of(data_dir);
    let names = store.keyspaces();
    // `shard{replica}.{generation}`; of the name without a generation there is one keyspace too.
    let mut held: Vec<_> = names
        .iter()
        .filter_map(|name| Some((name, name.strip_prefix("shard")?.split_once('.')?.0)))
        .collect();
    held.sort_unstable();
    let (keyspace, replica) = held[seed as usize % held.len()];
    let harm =
        rot::inject(&store, &format!("shard{replica}"), seed).unwrap().expect("the shard holds points");
    store.persist().unwrap();
    (keyspace.clone(), harm)
}
