//! Acknowledged single-point writes over HTTP against the ceiling under them: as many threads handing the same bytes
//! to one writer that batches what waits, writes it to a preallocated file and calls fdatasync.
//!
//! `cargo bench --bench writes`: 384 dimensions (synthetic numbers), 1, 8 and 64 clients, interleaved, medians.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../tests/process/mod.rs"]
mod process;

use process::{Client, Node};
use serde_json::json;
use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const DIM: usize = 384;
/// Bytes of such a command in the log: the vector, and a little around it.
const COMMAND_BYTES: usize = DIM * 4 + 64;
const FILE_BYTES: usize = 128 << 20;
const BATCH_BYTES: usize = 4 << 20;
const TURN: Duration = Duration::from_millis(1500);
const TURNS: usize = 7;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(&folder.path().join("node"));
    node.client().put("/collections/c", &json!({"vectors": {"size": DIM, "distance": "Dot"}})).ok();
    let raw = RawFile::start(&folder.path().join("raw"));
    println!(
        "{:>8} {:>12} {:>12} {:>8}   median of {TURNS} interleaved turns of {TURN:?}",
        "clients", "annal /s", "raw /s", "ratio"
    );
    for clients in [1, 8, 64] {
        let mut turns: Vec<(f64, f64)> = (0..TURNS)
            .map(|_| {
                let raw = rate(clients, |_| {
                    let raw = raw.clone();
                    move || raw.write()
                });
                let annal = rate(clients, |client| {
                    let http = Client::new(&node.url);
                    let mut count = 0u64;
                    move || {
                        count += 1;
                        let vector: Vec<f32> = (0..DIM).map(|d| (d as f32 + count as f32) / 1e3).collect();
                        let point = json!({"id": client * 10_000 + count % 10_000, "vector": vector});
                        http.put("/collections/c/points?wait=true", &json!({"points": [point]})).ok();
                    }
                });
                (annal, raw)
            })
            .collect();
        let mut median = |key: fn(&(f64, f64)) -> f64| {
            turns.sort_by(|a, b| key(a).total_cmp(&key(b)));
            key(&turns[TURNS / 2])
        };
        let (annal, raw, ratio) = (median(|t| t.0), median(|t| t.1), median(|t| t.0 / t.1));
        println!("{clients:>8} {annal:>12.0} {raw:>12.0} {ratio:>8.2}");
    }
    println!("fsyncs are shared: see `annal log dump` for how many writes one frame holds");
}

/// Writes a second, over all clients.
fn rate<W: FnMut() + Send>(clients: u64, client: impl Fn(u64) -> W) -> f64 {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for number in 0..clients {
            let mut write = client(number);
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    write();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(TURN);
        stop.store(true, Ordering::Relaxed);
    });
    done.into_inner() as f64 / began.elapsed().as_secs_f64()
}

/// The ceiling: one writer, one file, one fdatasync for all that waited.
#[derive(Clone)]
struct RawFile(mpsc::SyncSender<mpsc::SyncSender<()>>);

impl RawFile {
    fn start(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&[0; 1 << 20]).unwrap();
        }
        file.sync_all().unwrap();
        let (requests, waiting) = mpsc::sync_channel::<mpsc::SyncSender<()>>(4096);
        thread::spawn(move || {
            let mut at = FILE_BYTES;
            while let Ok(first) = waiting.recv() {
                let mut batch = vec![first];
                while batch.len() * COMMAND_BYTES < BATCH_BYTES {
                    let Ok(next) = waiting.try_recv() else { break };
                    batch.push(next);
                }
                let bytes = vec![7u8; batch.len() * COMMAND_BYTES];
                if at + bytes.len() > FILE_BYTES {
                    file.seek(SeekFrom::Start(0)).unwrap();
                    at = 0;
                }
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                at += bytes.len();
                for waiter in batch {
                    let _ = waiter.send(());
                }
            }
        });
        RawFile(requests)
    }

    fn write(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        self.0.send(done).unwrap();
        wait.recv().unwrap();
    }
}
