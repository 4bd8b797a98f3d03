//! The log against a raw preallocated file with the same group commit.
//!
//! ```text
//! cargo bench -p annal-wal --bench log          ANNAL_BENCH_MS=500 ANNAL_BENCH_ROUNDS=61
//! ```
//!
//! Each client appends one entry, waits until it is durable, and appends the next. The raw side has the same clients on the
//! same runtime, the same kind of queue, one thread that joins what waits into one `write` and one `fdatasync`: no
//! frames, no checksums, no index. Both take turns, so that what else runs on the machine meets both. `ratio` is the
//! median of the ratios of neighbouring turns; on a busy machine `undisturbed` says more: the ratio of the best deciles.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs::{File, OpenOptions},
    io::{Seek, Write},
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use annal_wal::{Entry, GroupId, GroupLog, Log, LogId, LogIndex, Options, Term};
use bytes::Bytes;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinSet};

const SEGMENT_BYTES: u64 = 64 << 20;
const BATCH_BYTES_MAX: usize = 4 << 20;

fn main() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let time = Duration::from_millis(number("ANNAL_BENCH_MS", 150));
    let rounds = number("ANNAL_BENCH_ROUNDS", 41);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!(
        "| clients | bytes | annal /s | raw /s | annal MB/s | ratio | quartiles | undisturbed | annal p50 us | records per fsync |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for bytes in [1 << 10, 16 << 10] {
        for clients in [1, 8, 64] {
            let (annal, raw) = (Annal::start(&runtime, clients), Raw::start());
            let (mut ours, mut others, mut ratios, mut latency) = (vec![], vec![], vec![], vec![]);
            for round in 0..rounds {
                let other = (round % 2 == 1).then(|| raw.run(&runtime, clients, bytes, time));
                let (per_second, p50_micros) = annal.run(&runtime, clients, bytes, time);
                let (other, _) = other.unwrap_or_else(|| raw.run(&runtime, clients, bytes, time));
                ours.push(per_second);
                others.push(other);
                ratios.push(per_second / other);
                latency.push(p50_micros);
            }
            let per_second = median(&mut ours);
            println!(
                "| {clients} | {bytes} | {per_second:.0} | {:.0} | {:.1} | {:.2} | {:.2}-{:.2} | {:.2} | {:.0} | {:.1} |",
                median(&mut others),
                per_second * bytes as f64 / 1e6,
                median(&mut ratios),
                ratios[ratios.len() / 4],
                ratios[ratios.len() * 3 / 4],
                ours[ours.len() * 9 / 10] / others[others.len() * 9 / 10],
                median(&mut latency),
                annal.records_per_fsync(),
            );
            annal.stop(&runtime);
        }
    }
}

/// Sorts, too.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs `clients` loops of appends for `time`; gives appends per second and the median time of one in microseconds.
fn drive<F>(
    runtime: &Runtime,
    clients: usize,
    time: Duration,
    append: impl Fn(usize) -> F + Clone + Send + 'static,
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
                while started.elapsed() < time {
                    let before = Instant::now();
                    append(client).await;
                    micros.push(before.elapsed().as_secs_f64() * 1e6);
                }
                micros
            });
        }
        let mut micros: Vec<f64> = running.join_all().await.into_iter().flatten().collect();
        let per_second = micros.len() as f64 / started.elapsed().as_secs_f64();
        (per_second, median(&mut micros))
    })
}

/// The log, with a group for each client.
struct Annal {
    log: Log,
    groups: Arc<Vec<GroupLog>>,
    _folder: tempfile::TempDir,
}

impl Annal {
    fn start(runtime: &Runtime, clients: usize) -> Annal {
        let folder = tempfile::tempdir_in(target()).unwrap();
        let options =
            Options { segment_bytes: SEGMENT_BYTES, batch_bytes_max: BATCH_BYTES_MAX, ..Options::default() };
        let (log, _) = Log::open(folder.path(), options).unwrap();
        let create = |client| runtime.block_on(log.create_group(GroupId(client))).unwrap();
        let groups = Arc::new((0..clients as u32).map(create).collect());
        Annal { log, groups, _folder: folder }
    }

    fn run(&self, runtime: &Runtime, clients: usize, bytes: usize, time: Duration) -> (f64, f64) {
        let payload = Bytes::from(vec![0x5a; bytes]);
        let groups = self.groups.clone();
        drive(runtime, clients, time, move |client| {
            let (groups, payload) = (groups.clone(), payload.clone());
            async move {
                let (told, flushed) = oneshot::channel();
                let index = LogIndex(groups[client].state().last.map_or(1, |last| last.index.0 + 1));
                let entry = Entry { id: LogId { term: Term(1), leader: 1, index }, payload };
                let done = move |outcome| drop(told.send(outcome));
                groups[client].append(vec![entry], done).await.unwrap();
                flushed.await.unwrap().unwrap();
            }
        })
    }

    fn records_per_fsync(&self) -> f64 {
        let batches = self.log.status().batch_records;
        batches.sum as f64 / batches.count as f64
    }

    fn stop(self, runtime: &Runtime) {
        runtime.block_on(self.log.shutdown()).unwrap();
    }
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
    _folder: tempfile::TempDir,
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
    fn start() -> Raw {
        let temporary = tempfile::tempdir_in(target()).unwrap();
        let queue: Arc<(Mutex<Waiting>, Condvar)> = Arc::default();
        let waiting = queue.clone();
        let folder = temporary.path().to_path_buf();
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
        Raw { queue, writer: Some(writer), _folder: temporary }
    }

    fn run(&self, runtime: &Runtime, clients: usize, bytes: usize, time: Duration) -> (f64, f64) {
        let payload = Bytes::from(vec![0x5a; bytes]);
        let queue = self.queue.clone();
        drive(runtime, clients, time, move |_| {
            let (told, flushed) = oneshot::channel();
            queue.0.lock().unwrap().requests.push((payload.clone(), told));
            queue.1.notify_one();
            async move { flushed.await.unwrap() }
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.queue.0.lock().unwrap().stop = true;
        self.queue.1.notify_one();
        self.writer.take().unwrap().join().unwrap();
    }
}

/// The build folder: on a real disk, which the system's folder for temporary files may not be.
fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
