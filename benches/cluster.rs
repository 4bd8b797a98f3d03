//! Trials of a cluster of three real nodes on this machine, as tables: how long faults keep writes away, what writes
//! cost, what agreement costs a read.
//!
//! `cargo bench --bench cluster [-- failover freeze restart writes reads moves]`; all of them if none is named.
//! `writes` gives each node its share of the cores (`ANNAL_THREADS`: so many threads that serve; 0: one a core).
//! `ANNAL_TRIALS` (20) faults, `ANNAL_FREEZE_SECONDS` (20), `ANNAL_LOAD_SECONDS` (3) a turn, `ANNAL_TURNS` (5).
//! `moves` wants `ANNAL_BENCH_DATA`, a folder with `vectors.f16.npy` and `queries.f32.npy`, and is left out without it.
//! The load generator shares the cores with the nodes; the nodes' processor time is read from `/proc`.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../tests/process/cluster.rs"]
mod cluster;
#[path = "../tests/process/connection.rs"]
mod connection;
#[path = "../tests/process/history.rs"]
mod history;
#[path = "../tests/process/mod.rs"]
mod process;
#[path = "../tests/process/workload.rs"]
mod workload;

use cluster::{Options, TestCluster, nodes_wanted, scaled};
use connection::{Connection, Reply};
use history::{History, Nanos, Order};
use npyz::NpyFile;
use serde_json::json;
use std::{
    fs::File,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use workload::{Load, Plan, read_all};

const SHARDS: u32 = 2;

fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|n| n == name);
    let tables: [(&str, fn()); 6] = [
        ("failover", failover),
        ("freeze", freeze),
        ("restart", restart),
        ("writes", writes),
        ("reads", reads),
        ("moves", moves),
    ];
    for (name, table) in tables.into_iter().filter(|(name, _)| wanted(name)) {
        println!("\n## {name}\n");
        table();
    }
}

fn cluster_with_c() -> TestCluster {
    let mut cluster = TestCluster::start(nodes_wanted(), Options::default());
    cluster.create("c", SHARDS);
    cluster
}

fn trials() -> u64 {
    scaled("ANNAL_TRIALS", 20)
}

fn turn() -> Duration {
    Duration::from_secs(scaled("ANNAL_LOAD_SECONDS", 3))
}

/// Stops a load, lets the cluster come to rest and prints what its history says.
fn settle(cluster: &mut TestCluster, load: Load) -> History {
    let history = load.stop();
    cluster.wait_all_ok();
    let end = read_all(&mut Connection::new(&cluster.url(0)), "c").unwrap();
    println!("{}", history.summary());
    let report = history.check(Order::Values, &end);
    println!("{report}");
    for (anomaly, why) in report.found.iter().take(10) {
        println!("  {anomaly:?}: {why}");
    }
    cluster.wait_equal("c", cluster.len().min(3), false);
    println!("replicas are equal");
    history
}

/// Nearest-rank quantile of sorted times, in seconds.
fn at(times: &[Duration], share: f64) -> f64 {
    let rank = (times.len() as f64 * share).ceil() as usize;
    times[rank.clamp(1, times.len()) - 1].as_secs_f64()
}

fn row(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    if times.is_empty() {
        return println!("| {what} | 0 | | | |");
    }
    let shown: Vec<_> = [0.0, 0.5, 0.9, 1.0].iter().map(|q| format!("{:.3}", at(&times, *q))).collect();
    println!("| {what} | {} | {} |", times.len(), shown.join(" | "));
}

const TIMES_HEAD: &str = "| seconds without an acknowledged write | trials | best | median | p90 | worst |\n\
    |---|---|---|---|---|---|";

fn failover() {
    let mut cluster = cluster_with_c();
    let plan = Plan { writers: 6, readers: 8, rest: Duration::ZERO, ..Plan::default() };
    let load = Load::start(cluster.urls(), plan);
    let mut kills: Vec<(Nanos, u32)> = Vec::new();
    for trial in 0..trials() {
        thread::sleep(Duration::from_millis(500));
        let shard = trial as u32 % SHARDS;
        let leader = cluster.leader_of("c", shard);
        cluster.kill(leader);
        kills.push((load.now(), shard));
        cluster.leader_of("c", shard);
        thread::sleep(Duration::from_millis(500));
        cluster.restart(leader);
        cluster.wait_all_ok();
    }
    thread::sleep(Duration::from_millis(500));
    let history = settle(&mut cluster, load);
    println!("\n{TIMES_HEAD}");
    let outages = kills.iter().filter_map(|(at, shard)| history.outage(*at, *shard, SHARDS));
    row("leader killed -9, writes invoked after it", outages.collect());
}

fn freeze() {
    let time = Duration::from_secs(scaled("ANNAL_FREEZE_SECONDS", 20));
    let mut cluster = cluster_with_c();
    // Writers do not read through other nodes: they would wait there for the thaw, and no longer measure the pause.
    let plan = Plan { writers: 6, readers: 6, read_back: 0, ..Plan::default() };
    let load = Load::start(cluster.urls(), plan);
    let mut frozen: [Vec<(Nanos, u32)>; 2] = Default::default();
    for trial in 0..trials().div_ceil(5).max(2) {
        thread::sleep(Duration::from_millis(500));
        let leads = trial % 2 == 0;
        let leader = cluster.leader_of("c", 0);
        let node = if leads { leader } else { (leader + 1) % cluster.len() };
        cluster.pause(node);
        frozen[usize::from(leads)].extend((0..SHARDS).map(|shard| (load.now(), shard)));
        thread::sleep(time);
        cluster.resume(node);
        cluster.wait_all_ok();
    }
    thread::sleep(Duration::from_millis(500));
    let history = settle(&mut cluster, load);
    println!("\n{TIMES_HEAD}");
    for (what, faults) in ["follower of shard 0 frozen", "leader of shard 0 frozen"].iter().zip(frozen) {
        let outages = faults.iter().filter_map(|(at, shard)| history.outage(*at, *shard, SHARDS));
        row(&format!("{what} {time:?}, each shard"), outages.collect());
    }
}

fn restart() {
    let mut cluster = cluster_with_c();
    let load = Load::start(cluster.urls(), Plan::default());
    for i in 0..cluster.len() {
        thread::sleep(Duration::from_secs(1));
        cluster.terminate(i);
        cluster.restart(i);
        cluster.wait_all_ok();
    }
    thread::sleep(Duration::from_secs(1));
    let history = settle(&mut cluster, load);
    println!("\n| rolling restart | longest pause of acknowledged writes, s |\n|---|---|");
    for shard in 0..SHARDS {
        println!("| shard {shard} | {:.3} |", history.longest_pause(shard, SHARDS).as_secs_f64());
    }
}

/// Single-point upserts of `dim` numbers by 32 clients over kept connections.
fn writes() {
    const CLIENTS: usize = 32;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    // Their share of the cores.
    let threads = scaled("ANNAL_THREADS", (cores / nodes_wanted()).max(1) as u64);
    println!("threads of a node that serve: {threads}\n");
    println!("| dimensions | clients | writes/s | p50 ms | p99 ms | CPU-s per 1,000 writes, all nodes |");
    println!("|---|---|---|---|---|---|");
    for dim in [4, 128] {
        let options = Options::default().with("ANNAL__NODE__THREADS", threads);
        let mut cluster = TestCluster::start(nodes_wanted(), options);
        let body = json!({"vectors": {"size": dim, "distance": "Euclid"}, "shard_number": SHARDS,
            "replication_factor": cluster.len().min(3)});
        cluster.client(0).put("/collections/c", &body).ok();
        cluster.wait_all_ok();
        let urls = cluster.urls();
        for _ in 0..scaled("ANNAL_TURNS", 5) {
            let cpu = |cluster: &TestCluster| (0..cluster.len()).map(|i| cluster.cpu(i)).sum::<Duration>();
            let stop = AtomicBool::new(false);
            let (before, started) = (cpu(&cluster), Instant::now());
            let mut times: Vec<Duration> = thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|client| {
                        let (url, stop) = (&urls[client % urls.len()], &stop);
                        scope.spawn(move || write_on(url, client, dim, stop))
                    })
                    .collect();
                thread::sleep(turn());
                stop.store(true, Ordering::Relaxed);
                clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
            });
            let (cpu, time) = (cpu(&cluster) - before, started.elapsed());
            times.sort_unstable();
            println!(
                "| {dim} | {CLIENTS} | {:.0} | {:.2} | {:.2} | {:.3} |",
                times.len() as f64 / time.as_secs_f64(),
                at(&times, 0.5) * 1e3,
                at(&times, 0.99) * 1e3,
                cpu.as_secs_f64() * 1e3 / times.len() as f64
            );
        }
    }
}

fn write_on(url: &str, client: usize, dim: usize, stop: &AtomicBool) -> Vec<Duration> {
    // Only the id differs from write to write: the vector is encoded once.
    let numbers: Vec<_> = (0..dim).map(|d| format!("{}", (d + client) as f32 / 100.0)).collect();
    let rest = format!(r#","vector":[{}],"payload":{{"client":{client}}}}}]}}"#, numbers.join(","));
    let mut connection = Connection::new(url);
    let mut times = Vec::new();
    let mut body = String::new();
    while !stop.load(Ordering::Relaxed) {
        body.clear();
        body.extend([r#"{"points":[{"id":"#, &(client * 10_000 + times.len() % 10_000).to_string(), &rest]);
        let started = Instant::now();
        let reply = connection.send("PUT", "/collections/c/points?wait=true", &[], &body).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        times.push(started.elapsed());
    }
    times
}

/// Reads of single points through all nodes: first as many as go, then half as many of each kind, in turns.
fn reads() {
    const CLIENTS: usize = 8;
    const POINTS: u64 = 1_000;
    let cluster = cluster_with_c();
    let points: Vec<_> = (0..POINTS)
        .map(|id| json!({"id": id, "vector": workload::vector_of(id, 1), "payload": {"v": 1}}))
        .collect();
    cluster.client(0).put("/collections/c/points?wait=true", &json!({"points": points})).ok();
    let urls = cluster.urls();
    let read = |consistency: &str, pace: Option<Duration>| -> (f64, Vec<Duration>) {
        let (stop, next) = (AtomicBool::new(false), AtomicU64::new(0));
        let started = Instant::now();
        let mut times: Vec<Duration> = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (url, stop, next) = (&urls[client % urls.len()], &stop, &next);
                    scope.spawn(move || read_on(url, consistency, pace, stop, next, POINTS))
                })
                .collect();
            thread::sleep(turn());
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        times.sort_unstable();
        (times.len() as f64 / started.elapsed().as_secs_f64(), times)
    };
    let (full, _) = read("linearizable", None);
    let pace = Duration::from_secs_f64(CLIENTS as f64 * 2.0 / full);
    println!(
        "{CLIENTS} clients, linearizable, as fast as it goes: {full:.0} reads/s; half of it from here on\n"
    );
    println!("| consistency | reads/s | p50 ms | p99 ms |\n|---|---|---|---|");
    let mut all: [Vec<Duration>; 2] = Default::default();
    for _ in 0..scaled("ANNAL_TURNS", 5) {
        for (n, consistency) in ["local", "linearizable"].into_iter().enumerate() {
            let (rate, times) = read(consistency, Some(pace));
            println!(
                "| {consistency} | {rate:.0} | {:.2} | {:.2} |",
                at(&times, 0.5) * 1e3,
                at(&times, 0.99) * 1e3
            );
            all[n].extend(times);
        }
    }
    all.iter_mut().for_each(|times| times.sort_unstable());
    let [local, linearizable] = all.map(|times| at(&times, 0.99) * 1e3);
    println!("\nlinearizable over local at p99, all turns: {:.2} ms", linearizable - local);
}

fn read_on(
    url: &str,
    consistency: &str,
    pace: Option<Duration>,
    stop: &AtomicBool,
    next: &AtomicU64,
    points: u64,
) -> Vec<Duration> {
    let mut connection = Connection::new(url);
    let headers = [("annal-consistency", consistency)];
    paced(pace, stop, || {
        let path = format!("/collections/c/points/{}", next.fetch_add(1, Ordering::Relaxed) % points);
        connection.get(&path, &headers).expect("the node answers")
    })
}

/// Asks again and again until it is told to stop, at a pace if there is one; how long each took.
fn paced(pace: Option<Duration>, stop: &AtomicBool, mut ask: impl FnMut() -> Reply) -> Vec<Duration> {
    let mut times = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if let Some(pace) = pace {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // Clients that fell behind do not catch up in a burst.
            due = (due + pace).max(Instant::now());
        }
        let started = Instant::now();
        let reply = ask();
        assert_eq!(reply.status, 200, "{}", reply.body);
        times.push(started.elapsed());
    }
    times
}

/// Searches and writes while a replica of each shard moves to a node that was added: first as many searches as go, then
/// half as many.
fn moves() {
    const CLIENTS: usize = 4;
    let Ok(data) = std::env::var("ANNAL_BENCH_DATA").map(PathBuf::from) else {
        return println!("left out: ANNAL_BENCH_DATA is not set");
    };
    let queries = NpyFile::new(File::open(data.join("queries.f32.npy")).expect("queries beside the vectors"))
        .expect("a file of NumPy");
    let dim = queries.shape()[1] as usize;
    let queries = queries.into_vec::<f32>().expect("f32 queries");
    let bodies: Vec<String> =
        queries.chunks(dim).map(|query| json!({"query": query, "limit": 10}).to_string()).collect();

    let mut cluster = TestCluster::start(nodes_wanted(), Options::default());
    let replicas = cluster.len().min(3);
    let body = json!({"vectors": {"size": dim, "distance": "Cosine"}, "shard_number": SHARDS,
        "replication_factor": replicas});
    cluster.client(0).put("/collections/v", &body).ok();
    cluster.create("c", SHARDS);
    let mut import = Command::new(env!("CARGO_BIN_EXE_annal"));
    import.arg("import").arg(data.join("vectors.f16.npy"));
    import.args(["--collection", "v", "--url", &cluster.url(0)]);
    assert!(import.status().expect("the program is there").success());
    at_rest(&cluster);
    let points = cluster.client(0).post("/collections/v/points/count", &json!({})).ok()["count"].clone();
    println!(
        "{points} points of {dim} dimensions, {SHARDS} shards, {replicas} replicas, {CLIENTS} clients that search"
    );

    // All nodes are there from the start: what is compared is the same machine with and without a move.
    let added = cluster.add();
    cluster.wait_all_ok();
    let urls = cluster.urls()[..added].to_vec();
    let search = |pace: Option<Duration>, stop: &AtomicBool| -> Vec<Duration> {
        let next = AtomicU64::new(0);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (url, next, bodies) = (&urls[client % urls.len()], &next, &bodies);
                    scope.spawn(move || search_on(url, pace, stop, next, bodies))
                })
                .collect();
            clients.into_iter().flat_map(|client| client.join().expect("no search failed")).collect()
        })
    };
    let for_a = |time: Duration, pace: Option<Duration>| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                stop.store(true, Ordering::Relaxed);
            });
            search(pace, &stop)
        })
    };
    let load = Load::start(
        urls.clone(),
        Plan { writers: 2, readers: 2, rest: Duration::from_millis(50), ..Plan::default() },
    );
    let full = for_a(turn(), None).len() as f64 / turn().as_secs_f64();
    let pace = Duration::from_secs_f64(CLIENTS as f64 * 2.0 / full);
    println!("beside few reads and writes {full:.0} searches/s; half of it from here on\n");
    println!("| | seconds | searches | p50 ms | p99 ms |\n|---|---|---|---|---|");
    let report = |what: &str, time: Duration, mut times: Vec<Duration>| -> f64 {
        times.sort_unstable();
        let (p50, p99) = (at(&times, 0.5) * 1e3, at(&times, 0.99) * 1e3);
        println!("| {what} | {:.1} | {} | {p50:.2} | {p99:.2} |", time.as_secs_f64(), times.len());
        p99
    };
    let mut ratios = Vec::new();
    for turn_number in 0..scaled("ANNAL_TURNS", 5) {
        let quiet = report("no move", turn() * 2, for_a(turn() * 2, Some(pace)));
        let started = Instant::now();
        let stop = AtomicBool::new(false);
        let times = thread::scope(|scope| {
            let searching = scope.spawn(|| search(Some(pace), &stop));
            cluster.move_on("v", turn_number as u32 % SHARDS);
            stop.store(true, Ordering::Relaxed);
            searching.join().expect("no search failed")
        });
        let moving = report("a replica moves", started.elapsed(), times);
        ratios.push(moving / quiet);
        at_rest(&cluster);
    }
    let history = load.stop();
    println!("\n{}", history.summary());
    ratios.sort_by(f64::total_cmp);
    println!("p99 during a move over without: median {:.2}, all {ratios:.2?}", ratios[ratios.len() / 2]);
}

/// Waits until the nodes have little to do beside few reads and writes.
fn at_rest(cluster: &TestCluster) {
    let spent = || (0..cluster.len()).map(|i| cluster.cpu(i)).sum::<Duration>();
    let mut before = spent();
    loop {
        thread::sleep(Duration::from_secs(3));
        let now = spent();
        if now - before < Duration::from_millis(1_500) {
            return;
        }
        before = now;
    }
}

fn search_on(
    url: &str,
    pace: Option<Duration>,
    stop: &AtomicBool,
    next: &AtomicU64,
    bodies: &[String],
) -> Vec<Duration> {
    let mut connection = Connection::new(url);
    paced(pace, stop, || {
        let body = &bodies[next.fetch_add(1, Ordering::Relaxed) as usize % bodies.len()];
        connection.send("POST", "/collections/v/points/query", &[], body).expect("the node answers")
    })
}
