//! How near replicas come to their logs: proposals through Raft against `GroupLog::append` alone, same clients, same
//! payloads, same disk. Each client waits for its answer before it sends the next command. One replica against its
//! log; then three in this process, over a network in memory, against three logs of which two must have the entry.
//!
//! `cargo bench --bench replica [-- SECONDS]`; the folder is made in `TMPDIR`.

#![allow(clippy::unwrap_used, missing_docs)]

use annal::{
    machine::{Bookmark, MachineError, Outcome, StateMachine, Verdict},
    model::{Position, ReplicaId},
    replica::{GroupId, LogIndex, Network, Nobody, Replica, ReplicaOptions, Term, Unreached},
};
use annal_wal::{Entry, GroupLog, Log, LogId, Options};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::BoxStream, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// Counts commands, and nothing else.
#[derive(Default)]
struct Counter(Mutex<(u64, Option<Bookmark>)>);

impl StateMachine for Counter {
    fn bookmark(&self) -> Option<Bookmark> {
        self.0.lock().unwrap().1.clone()
    }
    fn position(&self) -> Position {
        Position(self.0.lock().unwrap().0)
    }
    fn apply(&self, commands: Vec<Bytes>, bookmark: Bookmark) -> Result<Vec<Outcome>, MachineError> {
        let mut state = self.0.lock().unwrap();
        let first = state.0 + 1;
        *state = (state.0 + commands.len() as u64, Some(bookmark));
        Ok((first..=state.0).map(|n| Outcome { position: Position(n), verdict: Verdict::Applied }).collect())
    }
    fn persist(&self) -> Result<Option<Bookmark>, MachineError> {
        Ok(self.bookmark())
    }
    fn bookmark_at(&self, _: Position) -> Result<Option<(Position, Bookmark)>, MachineError> {
        Ok(None)
    }
    fn write_snapshot(&self, _: &mut dyn io::Write) -> Result<(), MachineError> {
        unreachable!("nothing is purged that a member lacks")
    }
    fn install_snapshot(&self, _: &mut dyn io::Read) -> Result<(), MachineError> {
        unreachable!("nothing is purged that a member lacks")
    }
}

const ROUNDS: usize = 5;

/// What clients saw: answers a second, and how long they waited in microseconds.
struct Load {
    rate: f64,
    p50: u128,
    p99: u128,
}

/// So many clients, each with one command under way at a time.
async fn load<F>(clients: usize, time: Duration, one: impl Fn() -> F + Clone + Send + 'static) -> Load
where
    F: Future + Send,
{
    let start = Instant::now();
    let until = start + time;
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let one = one.clone();
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let at = Instant::now();
                    one().await;
                    waits.push(at.elapsed().as_micros());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
    waits.sort_unstable();
    Load { rate, p50: waits[waits.len() / 2], p99: waits[waits.len() * 99 / 100] }
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(0.5);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(Duration::from_secs_f64(seconds)));
}

async fn run(time: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), Options::default()).unwrap();

    let append = raw(vec![log.create_group(GroupId(1)).await.unwrap()]);

    println!("medians of {ROUNDS} rounds; each round: the log alone, then through Raft");
    println!("clients  bytes |  log alone/s |   applied/s  p50us  p99us  of the log");
    let mut group = 2;
    for (clients, bytes) in [(1, 1 << 10), (64, 1 << 10), (256, 1 << 10), (64, 16 << 10)] {
        let mut rounds: [Vec<Load>; 2] = Default::default();
        for _ in 0..ROUNDS {
            let one: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync> = append(bytes, 1).into();
            rounds[0].push(load(clients, time, move || one()).await);
            let replica = found(&log, &mut group).await;
            let (proposing, payload) = (replica.clone(), Bytes::from(vec![7; bytes]));
            let propose = move || {
                let (replica, payload) = (proposing.clone(), payload.clone());
                let deadline = Instant::now() + Duration::from_secs(10);
                async move { replica.propose(payload, deadline).await.expect("a quorum is there") }
            };
            rounds[1].push(load(clients, time, propose).await);
            replica.shutdown().await.expect("nothing is under way");
        }
        let [alone, applied] = rounds.map(|mut of| {
            of.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            of.swap_remove(ROUNDS / 2)
        });
        let Load { rate, p50, p99 } = applied;
        let of_the_log = rate / alone.rate;
        println!(
            "{clients:7} {bytes:6} | {:12.0} | {rate:11.0} {p50:6} {p99:6} {of_the_log:11.2}",
            alone.rate
        );
    }
    idle(&log, &mut group).await;
    log.shutdown().await.unwrap();
    three(time).await;
}

/// Appends chunks of records to logs alone: done when most of them have it on disk.
fn raw(logs: Vec<GroupLog>) -> impl Fn(usize, u64) -> Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync> {
    let next = Arc::new(tokio::sync::Mutex::new(0));
    let logs = Arc::new(logs);
    move |bytes, records| {
        let (logs, next, payload) = (logs.clone(), next.clone(), Bytes::from(vec![7; bytes]));
        Box::new(move || {
            let (logs, next, payload) = (logs.clone(), next.clone(), payload.clone());
            Box::pin(async move {
                let mut outcomes = FuturesUnordered::new();
                {
                    let mut index = next.lock().await;
                    let entry = |index| {
                        let id = LogId { term: Term(1), leader: 1, index: LogIndex(index) };
                        Entry { id, payload: payload.clone() }
                    };
                    for log in logs.iter() {
                        let (told, outcome) = tokio::sync::oneshot::channel();
                        let chunk = (*index..*index + records).map(entry).collect();
                        // Whoever has enough answers no longer listens.
                        log.append(chunk, move |result| drop(told.send(result))).await.unwrap();
                        outcomes.push(outcome);
                    }
                    *index += records;
                }
                for _ in 0..logs.len() / 2 + 1 {
                    outcomes.next().await.unwrap().unwrap().unwrap();
                }
            })
        })
    }
}

/// Three replicas against three logs.
async fn three(time: Duration) {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let logs: Vec<Log> =
        dirs.iter().map(|dir| Log::open(dir.path(), Options::default()).unwrap().0).collect();
    let mut groups = Vec::new();
    for log in &logs {
        groups.push(log.create_group(GroupId(1)).await.unwrap());
    }
    let append = raw(groups);
    println!("three replicas in one process; medians of {ROUNDS} rounds");
    println!("points come as many in a command, or records in a chunk");
    println!(
        "clients  points  bytes | points/s in two of three logs  p50us | applied/s  p50us  p99us  of the logs"
    );
    let mut group = 2;
    let rows = [(1, 1, 1), (64, 1, 1), (256, 1, 1), (64, 1, 16), (64, 16, 1)];
    for (clients, points, kib) in rows {
        let bytes = kib << 10;
        let mut rounds: [Vec<Load>; 2] = Default::default();
        for _ in 0..ROUNDS {
            let one: Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync> =
                append(bytes, points as u64).into();
            rounds[0].push(load(clients, time, move || one()).await);
            let replicas = found_three(&logs, &mut group).await;
            let (leader, payload) = (replicas[0].clone(), Bytes::from(vec![7; points * bytes]));
            let propose = move || {
                let (replica, payload) = (leader.clone(), payload.clone());
                let deadline = Instant::now() + Duration::from_secs(10);
                async move { replica.propose(payload, deadline).await.expect("a quorum is there") }
            };
            rounds[1].push(load(clients, time, propose).await);
            for replica in replicas.iter().rev() {
                replica.shutdown().await.unwrap();
            }
        }
        let [alone, applied] = rounds.map(|mut of| {
            of.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            of.swap_remove(ROUNDS / 2)
        });
        println!(
            "{clients:7} {points:7} {bytes:6} | {:29.0} {:6} | {:9.0} {:6} {:6} {:12.2}",
            alone.rate * points as f64,
            alone.p50,
            applied.rate * points as f64,
            applied.p50,
            applied.p99,
            applied.rate / alone.rate
        );
    }
    for log in logs {
        log.shutdown().await.unwrap();
    }
}

/// A group of three, the first of which leads.
async fn found_three(logs: &[Log], group: &mut u32) -> Vec<Replica<Counter>> {
    let id = GroupId(*group);
    *group += 1;
    let wires = Arc::new(Wires::default());
    let mut replicas = Vec::new();
    for (log, replica) in logs.iter().zip(1..) {
        let (options, machine) = (ReplicaOptions::new(ReplicaId(replica)), Arc::new(Counter::default()));
        let of = log.create_group(id).await.unwrap();
        let replica = Replica::open(options, log, of, machine, Arc::new(Wire(wires.clone()))).await.unwrap();
        replicas.push(replica);
    }
    *wires.0.lock().unwrap() = replicas.iter().cloned().zip(1..).map(|(r, n)| (ReplicaId(n), r)).collect();
    replicas[0].found((1..=3).map(ReplicaId).collect()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let first = Bytes::from_static(b"first");
    while replicas[0].propose(first.clone(), deadline).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Should another have won the election.
        for replica in &replicas[1..] {
            let _ = replica.transfer_leadership(Some(ReplicaId(1)), deadline).await;
        }
    }
    replicas
}

/// A network in memory.
#[derive(Default)]
struct Wires(Mutex<BTreeMap<ReplicaId, Replica<Counter>>>);

struct Wire(Arc<Wires>);

impl Network for Wire {
    fn call(
        &self,
        to: ReplicaId,
        message: Bytes,
        _: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let replica = self.0.0.lock().unwrap()[&to].clone();
        Box::pin(async move {
            let answer = tokio::spawn(async move { replica.answer(message).await }).await.unwrap();
            answer.map_err(|error| Unreached(error.to_string()))
        })
    }

    fn send_snapshot(
        &self,
        _: ReplicaId,
        _: Bytes,
        _: BoxStream<'static, io::Result<Bytes>>,
        _: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        unreachable!("nothing is purged that a member lacks")
    }
}

/// A replica of a new group.
async fn found(log: &Log, group: &mut u32) -> Replica<Counter> {
    let id = GroupId(*group);
    *group += 1;
    let (options, machine) = (ReplicaOptions::new(ReplicaId(1)), Arc::new(Counter::default()));
    let of = log.create_group(id).await.unwrap();
    let replica = Replica::open(options, log, of, machine, Arc::new(Nobody)).await.unwrap();
    replica.found([ReplicaId(1)].into()).await.unwrap();
    replica
}

/// What many groups cost that do nothing.
async fn idle(log: &Log, group: &mut u32) {
    let (groups, time) = (200, Duration::from_secs(5));
    let at = Instant::now();
    let mut replicas = Vec::new();
    for _ in 0..groups {
        replicas.push(found(log, group).await);
    }
    println!("{groups} groups founded in {:?}", at.elapsed());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    let before = cpu_ticks();
    tokio::time::sleep(time).await;
    let ticks = cpu_ticks() - before;
    println!("{groups} idle groups: {:.1} % of one core", ticks as f64 / time.as_secs_f64());
}

/// Hundredths of a second of processor time so far.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
