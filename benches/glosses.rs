//! A real data set through the real node: import, recall, search cost, memory, disk, restart; beside raw usearch in
//! this process, on the same vectors.
//!
//! `cargo bench --bench glosses -- DIR`: a folder with `vectors.f16.npy`, `queries.f32.npy`, `neighbors*.i32.npy`
//! (exact), and perhaps `payload.jsonl`; `tests/data/wordnet-2k` if none is named.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../tests/process/mod.rs"]
mod process;

use process::{Client, Node};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

const K: usize = 10;

fn main() {
    let named = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let data = PathBuf::from(named.unwrap_or_else(|| "tests/data/wordnet-2k".to_owned()));
    let (vectors, dim) = matrix::<half::f16>(&data.join("vectors.f16.npy"));
    let vectors: Vec<f32> = vectors.into_iter().map(half::f16::to_f32).collect();
    let (queries, _) = matrix::<f32>(&data.join("queries.f32.npy"));
    let (neighbors, exact_k) = matrix::<i32>(&neighbors_file(&data));
    let rows = vectors.len() / dim;
    let truth: Vec<HashSet<u64>> =
        neighbors.chunks(exact_k).map(|row| row[..K].iter().map(|n| *n as u64).collect()).collect();
    println!("{rows} vectors of {dim} dimensions, {} queries, {}", truth.len(), data.display());

    let folder = tempfile::tempdir().unwrap();
    let node = annal(&data, folder.path(), rows, &queries, dim, &truth);
    restarts(node);
    raw_usearch(&vectors, rows, dim, &queries, &truth);
}

fn matrix<T: npyz::Deserialize>(path: &Path) -> (Vec<T>, usize) {
    let file = npyz::NpyFile::new(fs::File::open(path).unwrap()).unwrap();
    let columns = file.shape()[1] as usize;
    (file.into_vec().unwrap(), columns)
}

fn neighbors_file(data: &Path) -> PathBuf {
    ["neighbors100.i32.npy", "neighbors10.i32.npy"].iter().map(|n| data.join(n)).find(|p| p.exists()).unwrap()
}

/// CPU seconds a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    process::processor_time(pid).as_secs_f64()
}

fn rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(
            |path| {
                if path.is_dir() {
                    disk_bytes(&path)
                } else {
                    path.metadata().map_or(0, |m| m.blocks() * 512)
                }
            },
        )
        .sum()
}

fn annal(
    data: &Path,
    folder: &Path,
    rows: usize,
    queries: &[f32],
    dim: usize,
    truth: &[HashSet<u64>],
) -> Node {
    let node = Node::ready(folder);
    let began = Instant::now();
    let mut import = Command::new(env!("CARGO_BIN_EXE_annal"));
    import.arg("import").arg(data.join("vectors.f16.npy")).args([
        "--collection",
        "glosses",
        "--url",
        &node.url,
    ]);
    if data.join("payload.jsonl").exists() {
        import.arg("--payload").arg(data.join("payload.jsonl"));
    }
    assert!(import.status().unwrap().success());
    let client = node.client();
    println!("import    {:.1} s, server {:.1} CPU-s", began.elapsed().as_secs_f64(), cpu_seconds(node.pid()));
    search(&client, node.pid(), "while graphs are built", &queries[..dim * truth.len().min(200)], dim, truth);
    while client.get("/collections/glosses").ok()["status"] != "green" {
        thread::sleep(Duration::from_millis(200));
    }
    // Merging goes on after green until one graph is left.
    let mut cpu = cpu_seconds(node.pid());
    loop {
        thread::sleep(Duration::from_secs(2));
        let now = cpu_seconds(node.pid());
        if now - cpu < 0.5 {
            break;
        }
        cpu = now;
    }
    let info = client.get("/collections/glosses").ok();
    println!(
        "at rest   {:.1} s after the start, server {:.1} CPU-s, {} segments, {} indexed vectors",
        began.elapsed().as_secs_f64(),
        cpu_seconds(node.pid()),
        info["segments_count"],
        info["indexed_vectors_count"]
    );
    search(&client, node.pid(), "at rest", queries, dim, truth);
    let per = |bytes: u64| bytes as f64 / rows as f64;
    println!("memory    RSS {:.0} bytes a vector", per(rss_bytes(node.pid())));
    for part in ["index", "store", "wal"] {
        println!("disk      {part}: {:.0} bytes a vector", per(disk_bytes(&folder.join(part))));
    }
    node
}

/// One client, one query at a time, default settings.
fn search(client: &Client, pid: u32, when: &str, queries: &[f32], dim: usize, truth: &[HashSet<u64>]) {
    let cpu = cpu_seconds(pid);
    let (mut hits, mut took) = (0, Vec::new());
    for (query, truth) in queries.chunks(dim).zip(truth) {
        let body = json!({"query": query, "limit": K});
        let began = Instant::now();
        let found = client.post("/collections/glosses/points/query", &body).ok();
        took.push(began.elapsed().as_secs_f64() * 1e3);
        hits += found["points"].as_array().unwrap().iter().filter(|p| truth.contains(&id(p))).count();
    }
    took.sort_by(f64::total_cmp);
    println!(
        "search    {when}: recall@{K} {:.4}, p50 {:.2} ms, p99 {:.2} ms, server {:.3} CPU-s per 1,000 queries",
        hits as f64 / (took.len() * K) as f64,
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        (cpu_seconds(pid) - cpu) / took.len() as f64 * 1e3
    );
}

fn id(point: &Value) -> u64 {
    point["id"].as_u64().unwrap()
}

fn restarts(mut node: Node) {
    for _ in 0..3 {
        let began = Instant::now();
        node = node.kill_and_restart();
        println!("restart   after kill -9: ready in {:.2} s", began.elapsed().as_secs_f64());
    }
    assert!(node.stop().success());
}

fn raw_usearch(vectors: &[f32], rows: usize, dim: usize, queries: &[f32], truth: &[HashSet<u64>]) {
    let own = std::process::id();
    let (rss, cpu) = (rss_bytes(own), cpu_seconds(own));
    let options = IndexOptions {
        dimensions: dim,
        metric: MetricKind::IP,
        quantization: ScalarKind::F32,
        connectivity: 16,
        expansion_add: 128,
        expansion_search: 128,
        multi: false,
    };
    let index = Index::new(&options).unwrap();
    index.reserve_capacity_and_threads(rows, 1).unwrap();
    for (row, vector) in vectors.chunks(dim).enumerate() {
        index.add(row as u64, vector).unwrap();
    }
    println!(
        "usearch   built in {:.1} CPU-s; RSS grew by {:.0} bytes a vector",
        cpu_seconds(own) - cpu,
        (rss_bytes(own) - rss) as f64 / rows as f64
    );
    let cpu = cpu_seconds(own);
    let mut hits = 0;
    for (query, truth) in queries.chunks(dim).zip(truth) {
        hits += index.search(query, K).unwrap().keys.iter().filter(|key| truth.contains(key)).count();
    }
    println!(
        "usearch   recall@{K} {:.4}, {:.3} CPU-s per 1,000 queries, in process",
        hits as f64 / (truth.len() * K) as f64,
        (cpu_seconds(own) - cpu) / truth.len() as f64 * 1e3
    );
}
