//! What a strong read costs over a weak one, and how long a session's token is.

use crate::{
    cluster::{Options, TestCluster, nodes_wanted},
    cluster_with_c,
    connection::Connection,
    history::shard_of,
    p99,
    workload::{upsert_body, vector_of},
};
use annal::{cluster::Token, model::Position};
use serde_json::json;
use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

/// How long reads of one kind take from a follower, one at a time with a rest between.
fn times(connection: &mut Connection, consistency: &str, count: usize) -> Vec<Duration> {
    (0..count)
        .map(|n| {
            let started = Instant::now();
            let path = format!("/collections/c/points/{}", n % 50);
            let reply = connection.get(&path, &[("annal-consistency", consistency)]).unwrap();
            assert_eq!(reply.status, 200, "{}", reply.body);
            let took = started.elapsed();
            thread::sleep(Duration::from_millis(2));
            took
        })
        .collect()
}

#[test]
fn a_linearizable_read_costs_little_over_a_local_one() {
    let cluster = cluster_with_c();
    for key in 0..50 {
        let body = upsert_body(key, 1, 0);
        let mut connection = Connection::new(&cluster.url(0));
        assert_eq!(
            connection.send("PUT", "/collections/c/points?wait=true", &[], &body).unwrap().status,
            200
        );
    }
    let follower = (cluster.leader_of("c", 0) + 1) % cluster.len();
    let mut connection = Connection::new(&cluster.url(follower));
    times(&mut connection, "linearizable", 50);
    // In turns, so that both meet the same noise.
    let (mut weak, mut strong) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        weak.extend(times(&mut connection, "local", 60));
        strong.extend(times(&mut connection, "linearizable", 60));
    }
    let (weak, strong) = (p99(&mut weak), p99(&mut strong));
    println!("read p99 at a follower: local {weak:?}, linearizable {strong:?}");
    assert!(strong < weak + Duration::from_millis(250), "local {weak:?}, linearizable {strong:?}");
}

#[test]
fn a_session_reads_its_own_writes_on_any_node_by_its_token() {
    let cluster = cluster_with_c();
    let mut connections: Vec<_> = cluster.urls().iter().map(|url| Connection::new(url)).collect();
    for n in 0..60u64 {
        let (writes, reads) = (n as usize % connections.len(), (n as usize + 1) % connections.len());
        let written = connections[writes]
            .send("PUT", "/collections/c/points?wait=true", &[], &upsert_body(n % 7, n, 0))
            .unwrap();
        let token = written.header("annal-token").expect("every reply has a token").to_owned();
        let headers = [("annal-consistency", "at-least"), ("annal-token", token.as_str())];
        let read = connections[reads].get(&format!("/collections/c/points/{}", n % 7), &headers).unwrap();
        assert_eq!(crate::workload::value_in(n % 7, &read.body), Ok(n), "{}", read.body);
        assert_eq!(read.number("id"), Some(n % 7));
        assert_eq!(vector_of(n % 7, n)[0], (n % 7) as f32);
    }
}

#[test]
fn a_token_of_sixteen_shards_is_short() {
    let mut cluster = TestCluster::start(nodes_wanted(), Options::default());
    cluster.create("c", 16);
    let keys = 0..400u64;
    assert_eq!(keys.clone().map(|key| shard_of(key, 16)).collect::<BTreeSet<_>>().len(), 16);
    let points: Vec<_> = keys.map(|key| json!({"id": key, "vector": [0, 0, 0, key]})).collect();
    let mut connection = Connection::new(&cluster.url(0));
    let body = json!({"points": points}).to_string();
    let written = connection.send("PUT", "/collections/c/points?wait=true", &[], &body).unwrap();
    assert_eq!(written.status, 200, "{}", written.body);
    let sent = written.header("annal-token").unwrap();
    let mut token: Token = sent.parse().unwrap();
    assert_eq!(token.shards.len(), 16);
    // The same session after years of writes.
    for (n, position) in token.shards.values_mut().enumerate() {
        *position = Position((1 << 40) - 1_000_003 * n as u64);
    }
    let years_later = token.to_string();
    assert_eq!(years_later.parse(), Ok(token));
    println!("token of 16 shards: {} bytes, near 2^40: {} bytes", sent.len(), years_later.len());
    assert!(years_later.len() <= 160, "{} bytes", years_later.len());
}
