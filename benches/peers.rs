//! What a call between two nodes costs: both sides in one process, over a real connection.
//!
//! `cargo bench --bench peers`; `SECONDS` (default 2) is the time of each row. CPU is that of both sides.

#![allow(clippy::unwrap_used, missing_docs)]

use annal::net::{self, Credentials, Failure, Peers, Service, socket};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Echo;

impl Service for Echo {
    fn answer(&self, _: &str, _: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
        Box::pin(async { Ok(body) })
    }
}

/// CPU time of this process, in microseconds.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10_000
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let seconds = std::env::var("SECONDS").map_or(2, |s| s.parse().unwrap());
    let listener = socket::listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let peers = Peers::new(Credentials { node: "n".into(), secret: Some("s".into()) });
    peers.set_cluster("c".into());
    tokio::spawn(net::serve(listener, peers.clone(), Arc::new(Echo), CancellationToken::new()));
    println!(
        "| in flight | bytes each way | calls/s | CPU us/call | p50 us | p99 us |\n|---|---|---|---|---|---|"
    );
    for (in_flight, bytes) in
        [(1, 0), (1, 200), (16, 200), (64, 200), (256, 200), (16, 16 << 10), (4, 1 << 20)]
    {
        let body = Bytes::from(vec![7; bytes]);
        let call = async || {
            let started = Instant::now();
            let (peers, to, body) = (peers.clone(), to.clone(), body.clone());
            let deadline = started + Duration::from_secs(10);
            let call = tokio::spawn(async move { peers.call(&to, "/echo", body, deadline).await });
            call.await.unwrap().unwrap();
            started.elapsed().as_micros() as u64
        };
        call().await;
        let (started, cpu) = (Instant::now(), cpu_us());
        let mut calls: FuturesUnordered<_> = (0..in_flight).map(|_| call()).collect();
        let mut took = Vec::new();
        while let Some(us) = calls.next().await {
            took.push(us);
            if started.elapsed() < Duration::from_secs(seconds) {
                calls.push(call());
            }
        }
        let (elapsed, cpu) = (started.elapsed().as_secs_f64(), cpu_us() - cpu);
        took.sort_unstable();
        println!(
            "| {in_flight} | {bytes} | {:.0} | {:.1} | {} | {} |",
            took.len() as f64 / elapsed,
            cpu as f64 / took.len() as f64,
            took[took.len() / 2],
            took[took.len() * 99 / 100],
        );
    }
}
