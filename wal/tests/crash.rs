//! A real process killed in the middle of its work, again and again.
//!
//! The test starts itself as a child that writes to a log as fast as it can and prints what was acknowledged; the parent
//! kills it (SIGKILL), opens the log and checks that every acknowledged write is there, intact, and nothing else.
//! `ANNAL_CRASH_ROUNDS` scales it.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use annal_wal::{GroupId, GroupLog, Log, LogIndex, Options, Term, Vote, verify};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::Semaphore;
use workbench::{entries, id, small};

const GROUPS: u32 = 5;
const CHILD: &str = "ANNAL_CRASH_CHILD";
const ROUND: &str = "ANNAL_CRASH_ROUND";

fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        batch_bytes_max: 16 << 10,
        retention_bytes: 1 << 20,
        idle_mark: Duration::from_millis(3),
        ..small()
    }
}

fn say(line: String) {
    let mut out = std::io::stdout().lock();
    // The parent may be gone; the child dies soon after.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (log, _) = Log::open(Path::new(&dir), options()).unwrap();
        let mut writers = Vec::new();
        for number in 0..GROUPS {
            let group = match log.group(GroupId(number)) {
                Some(group) => group,
                None => log.create_group(GroupId(number)).await.unwrap(),
            };
            writers.push(tokio::spawn(write(group, round)));
        }
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// Appends without end, up to eight appends in flight; votes, purges and truncates now and then.
async fn write(group: GroupLog, round: u64) {
    let number = group.id().0;
    let mut random = StdRng::seed_from_u64(round * 31 + u64::from(number));
    let in_flight = Arc::new(Semaphore::new(8));
    let mut next = group.state().last.map_or(1, |last| last.index.0 + 1);
    for step in 0.. {
        let count = random.random_range(1..5);
        let last = next + count - 1;
        let permit = in_flight.clone().acquire_owned().await.unwrap();
        let batch = entries(round, next..next + count, random.random_range(0..900));
        let done = move |outcome: Result<(), annal_wal::Error>| {
            outcome.unwrap();
            say(format!("\nack {number} {last} {round}\n"));
            drop(permit);
        };
        group.append(batch, done).await.unwrap();
        next += count;
        match step % 97 {
            20 => {
                let vote = Vote { term: Term(round), node: step, committed: false };
                group.save_vote(vote).await.unwrap();
                say(format!("\nvote {number} {step} {round}\n"));
            }
            40 if next > 300 => {
                let upto = next - 200;
                let upto = group.read(LogIndex(upto)..LogIndex(upto + 1), 1).await.unwrap()[0].id;
                group.purge(upto).await.unwrap();
                say(format!("\npurge {number} {} {round}\n", upto.index.0));
            }
            60 => {
                // All that is in flight first, so that what was acknowledged and cut is known.
                drop(in_flight.acquire_many(8).await.unwrap());
                let keep = group.state().last.unwrap().index.0 - 3;
                say(format!("\ncutting {number} {keep} {round}\n"));
                group.truncate_after(Some(LogIndex(keep))).await.unwrap();
                next = keep + 1;
            }
            _ => {}
        }
    }
}

/// What the child said of one group.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    last: u64,
    vote: Option<(u64, u64)>,
    purged: u64,
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let rounds: u64 = std::env::var("ANNAL_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut told: BTreeMap<u32, Told> = BTreeMap::new();
    let (mut acks, mut checked, mut torn, mut scanned) = (0, 0, 0, 0);
    let started = Instant::now();
    for round in 1..=rounds {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, folder.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<String>>());
        // Some are killed while they open the log.
        let life = if round % 5 == 0 { random.random_range(0..20) } else { random.random_range(60..350) };
        std::thread::sleep(Duration::from_millis(life));
        assert!(process.try_wait().unwrap().is_none(), "the child ended by itself");
        process.kill().unwrap();
        process.wait().unwrap();
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            let [verb, group, number, term] = words[..] else { continue };
            let (Ok(group), Ok(number), Ok(term)) = (group.parse(), number.parse::<u64>(), term.parse::<u64>()) else {
                continue;
            };
            let told = told.entry(group).or_default();
            match verb {
                "ack" => told.last = number,
                "vote" => told.vote = Some((term, number)),
                "purge" => told.purged = number,
                "cutting" => told.last = number,
                _ => continue,
            }
            acks += 1;
        }
        runtime.block_on(async {
            let (log, report) = Log::open(folder.path(), options()).unwrap();
            assert_eq!(report.damage, []);
            torn += u64::from(report.torn_bytes > 0);
            scanned += report.scanned_segments;
            for (number, told) in &told {
                checked += check(&log.group(GroupId(*number)).unwrap(), *told, round).await;
            }
            log.shutdown().await.unwrap();
        });
        let report = verify(folder.path()).unwrap();
        assert!(report.is_intact(), "{report:?}");
    }
    println!(
        "{rounds} kills, {acks} acknowledgements, {checked} entries read back, {torn} torn ends, {scanned} segments \
         scanned, 0 lost, 0 bogus, {:.1} s",
        started.elapsed().as_secs_f64()
    );
    assert!(acks > 0, "no round lived long enough to write");
}

/// Reads a group whole; gives the count of its live entries.
async fn check(group: &GroupLog, told: Told, round: u64) -> u64 {
    let state = group.state();
    let number = group.id().0;
    let last = state.last.map_or(0, |id| id.index.0);
    assert!(last >= told.last, "group {number}: {} was acknowledged, {last} is the last", told.last);
    assert!(state.purged.map_or(0, |id| id.index.0) >= told.purged, "group {number}: a purge was lost");
    if let Some((term, node)) = told.vote {
        let vote = state.vote.unwrap();
        assert!((vote.term.0, vote.node) >= (term, node), "group {number}: {vote:?} is older than {term}, {node}");
    }
    let live = group.read(LogIndex(0)..LogIndex(u64::MAX), usize::MAX).await.unwrap();
    let first = state.purged.map_or(1, |id| id.index.0 + 1);
    assert_eq!(live.len() as u64, last + 1 - first, "group {number} has a hole");
    for (entry, index) in live.iter().zip(first..) {
        let term = entry.id.term.0;
        assert!((1..=round).contains(&term), "group {number}: {} was never written", entry.id);
        let bytes = entry.payload.len() - format!("{term}.{index}.").len();
        assert_eq!(*entry, entries(term, index..index + 1, bytes)[0], "group {number}");
        assert_eq!(entry.id, id(term, index));
    }
    live.len() as u64
}
