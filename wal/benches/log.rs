//! The log against a raw preallocated file with the same group commit.
//!
//! ```text
//! cargo bench -p annal-wal --bench log          ANNAL_BENCH_MS=1000 ANNAL_BENCH_ROUNDS=9
//! ```
//!
//! Each client appends one entry, waits until it is durable, and appends the next. The raw side has the same clients on the
//! same runtime, the same kind of queue, one thread that joins what waits into one `write` and one `fdatasync`: no
//! frames, no checksums, no index. Both take turns, so that what else runs on the machine meets both; the table shows
//! medians over the rounds, and the median of the ratios of neighbouring rounds.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs::{File, OpenOptions},
    io::{Seek, Write},
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use annal_wal::{Entry, GroupId, Log, LogId, LogIndex, Options, Term};
use bytes::Bytes;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};

const SEGMENT_BYTES: u64 = 64 << 20;
const BATCH_BYTES_MAX: usize = 4 << 20;

fn main() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let time = Duration::from_millis(number("ANNAL_BENCH_MS", 700));
    let rounds = number("ANNAL_BENCH_ROUNDS", 7);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!(
        "| clients | bytes | annal /s | raw /s | annal MB/s | ratio (median) | ratio (min-max) | annal p50 us | records per fsync |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for bytes in [1 << 10, 16 << 10] {
        for clients in [1, 8, 64] {
            let (mut ours, mut raw, mut ratios, mut latency, mut per_fsync) =
                (vec![], vec![], vec![], vec![], vec![]);
            for round in 0..rounds {
                let (annal, other) = match round % 2 {
                    0 => {
                        let annal = bench_annal(&runtime, clients, bytes, time);
                        (annal, bench_raw(&runtime, clients, bytes, time))
                    }
                    _ => {
                        let other = bench_raw(&runtime, clients, bytes, time);
                        (bench_annal(&runtime, clients, bytes, time), other)
                    }
                };
                ours.push(annal.per_second);
                raw.push(other.per_second);
                ratios.push(annal.per_second / other.per_second);
                latency.push(annal.p50_micros);
                per_fsync.push(annal.per_fsync);
            }
            println!(
                "| {clients} | {bytes} | {:.0} | {:.0} | {:.1} | {:.2} | {:.2}-{:.2} | {:.0} | {:.1} |",
                median(&mut ours),
                median(&mut raw),
                median(&mut ours) * bytes as f64 / 1e6,
                median(&mut ratios),
                ratios.first().unwrap(),
                ratios.last().unwrap(),
                median(&mut latency),
                median(&mut per_fsync),
            );
        }
    }
}

/// Sorts, too.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Measured {
    per_second: f64,
    p50_micros: f64,
    per_fsync: f64,
}

/// Runs `clients` loops for `time`; `append` starts one append and gives what tells its end.
fn drive<F>(
    runtime: &Runtime,
    clients: usize,
    time: Duration,
    append: impl Fn(usize, u64) -> F + Clone + Send + 'static,
) -> (f64, f64)
where
    F: Future<Output = ()> + Send,
{
    runtime.block_on(async {
        let started = Instant::now();
        let mut running = JoinSet::new();
        for client in 0..clients {
            let append = append.clone();
            running.spawn(async move {
                let mut micros = Vec::new();
                let mut index = 1;
                while started.elapsed() < time {
                    let before = Instant::now();
                    append(client, index).await;
                    micros.push(before.elapsed().as_secs_f64() * 1e6);
                    index += 1;
                }
                micros
            });
        }
        let mut micros: Vec<f64> = running.join_all().await.into_iter().flatten().collect();
        let per_second = micros.len() as f64 / started.elapsed().as_secs_f64();
        (per_second, median(&mut micros))
    })
}

fn bench_annal(runtime: &Runtime, clients: usize, bytes: usize, time: Duration) -> Measured {
    let folder = tempfile::tempdir_in(target()).unwrap();
    let options =
        Options { segment_bytes: SEGMENT_BYTES, batch_bytes_max: BATCH_BYTES_MAX, ..Options::default() };
    let (log, _) = Log::open(folder.path(), options).unwrap();
    // Eight shards, as a node has them, or as many as there are clients.
    let groups: Vec<_> = (0..clients as u32)
        .map(|client| runtime.block_on(log.create_group(GroupId(client))).unwrap())
        .collect();
    let payload = Bytes::from(vec![0x5a; bytes]);
    let groups = Arc::new(groups);
    let (per_second, p50_micros) = drive(runtime, clients, time, move |client, index| {
        let (groups, payload) = (groups.clone(), payload.clone());
        async move {
            let (told, flushed) = oneshot::channel();
            let id = LogId { term: Term(1), leader: 1, index: LogIndex(index) };
            let done = move |outcome| drop(told.send(outcome));
            groups[client].append(vec![Entry { id, payload }], done).await.unwrap();
            flushed.await.unwrap().unwrap();
        }
    });
    let batches = log.status().batch_records;
    runtime.block_on(log.shutdown()).unwrap();
    Measured { per_second, p50_micros, per_fsync: batches.sum as f64 / batches.count as f64 }
}

#[derive(Default)]
struct Waiting {
    requests: Vec<(Bytes, oneshot::Sender<()>)>,
    stop: bool,
}

/// A file of zeroes, already on the disk, written from front to back with one `write` and one `fdatasync` per batch; the
/// next file is made ahead on another thread, as the log does it.
struct Raw {
    queue: Arc<(Mutex<Waiting>, Condvar)>,
    writer: Option<JoinHandle<()>>,
}

fn zeroes(path: &Path) -> File {
    let mut file = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
    let zeroes = vec![0; 1 << 20];
    for _ in 0..SEGMENT_BYTES >> 20 {
        file.write_all(&zeroes).unwrap();
    }
    file.sync_all().unwrap();
    file.rewind().unwrap();
    file
}

impl Raw {
    fn start(folder: &Path) -> Raw {
        let queue: Arc<(Mutex<Waiting>, Condvar)> = Arc::default();
        let waiting = queue.clone();
        let folder = folder.to_path_buf();
        let mut file = zeroes(&folder.join("0"));
        let writer = std::thread::spawn(move || {
            let (made, next) = std::sync::mpsc::sync_channel(0);
            std::thread::spawn(move || {
                (1..).all(|number| made.send(zeroes(&folder.join(number.to_string()))).is_ok())
            });
            let (mut batch, mut buffer, mut at) = (Vec::new(), Vec::new(), 0);
            loop {
                let mut state = waiting.0.lock().unwrap();
                while state.requests.is_empty() && !state.stop {
                    state = waiting.1.wait(state).unwrap();
                }
                if state.requests.is_empty() {
                    return;
                }
                std::mem::swap(&mut batch, &mut state.requests);
                drop(state);
                buffer.clear();
                batch.iter().for_each(|(payload, _): &(Bytes, _)| buffer.extend_from_slice(payload));
                if at + buffer.len() as u64 > SEGMENT_BYTES {
                    (file, at) = (next.recv().unwrap(), 0);
                }
                file.write_all(&buffer).unwrap();
                file.sync_data().unwrap();
                at += buffer.len() as u64;
                for (_, told) in batch.drain(..) {
                    let _ = told.send(());
                }
            }
        });
        Raw { queue, writer: Some(writer) }
    }

    fn append(&self, payload: Bytes) -> oneshot::Receiver<()> {
        let (told, flushed) = oneshot::channel();
        self.queue.0.lock().unwrap().requests.push((payload, told));
        self.queue.1.notify_one();
        flushed
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.queue.0.lock().unwrap().stop = true;
        self.queue.1.notify_one();
        self.writer.take().unwrap().join().unwrap();
    }
}

fn bench_raw(runtime: &Runtime, clients: usize, bytes: usize, time: Duration) -> Measured {
    let folder = tempfile::tempdir_in(target()).unwrap();
    let raw = Arc::new(Raw::start(folder.path()));
    let payload = Bytes::from(vec![0x5a; bytes]);
    let (per_second, p50_micros) = drive(runtime, clients, time, {
        let raw = raw.clone();
        move |_, _| {
            let flushed = raw.append(payload.clone());
            async move { flushed.await.unwrap() }
        }
    });
    Measured { per_second, p50_micros, per_fsync: 0.0 }
}

/// The build folder: on a real disk, which the system's folder for temporary files may not be.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
