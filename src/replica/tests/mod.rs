//! A small state machine in memory, and the replica floor tested on it.

#![allow(clippy::unwrap_used)]

mod elections;
mod follower_reads;
mod formats;
mod group;
mod membership;
mod messages;
mod model;
mod propose;
mod reads;
mod restart;
mod snapshots;
mod suite;
mod tail;

use super::*;
use crate::{
    machine::{Bookmark, MachineError, Outcome, Verdict},
    model::Effect,
};
use annal_wal::MemoryDisk;
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Keeps every command. What `persist` saved is all that a crash leaves.
#[derive(Default)]
pub(super) struct Journal {
    state: Mutex<State>,
    saved: Mutex<State>,
    /// Fails to apply the command at this position.
    pub(super) fail_at: AtomicU64,
    /// Takes this long for a batch.
    pub(super) slow_ms: AtomicU64,
    /// Where it was told that history begins.
    pub(super) history: AtomicU64,
}

#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct State {
    commands: Vec<Bytes>,
    bookmark: Option<Bookmark>,
    /// Every bookmark there was, with its position.
    marks: Vec<(u64, Bookmark)>,
}

impl Journal {
    /// The machine that the process finds when it starts again after a crash.
    pub(super) fn after_crash(&self) -> Arc<Journal> {
        let state = self.saved.lock().unwrap().clone();
        let saved = Mutex::new(state.clone());
        Arc::new(Journal { state: Mutex::new(state), saved, ..Journal::default() })
    }

    pub(super) fn commands(&self) -> Vec<Bytes> {
        self.state.lock().unwrap().commands.clone()
    }

    pub(super) fn saved_position(&self) -> u64 {
        self.saved.lock().unwrap().commands.len() as u64
    }
}

impl StateMachine for Journal {
    fn bookmark(&self) -> Option<Bookmark> {
        self.state.lock().unwrap().bookmark.clone()
    }

    fn position(&self) -> Position {
        Position(self.state.lock().unwrap().commands.len() as u64)
    }

    fn apply(&self, commands: Vec<Bytes>, bookmark: Bookmark) -> Result<Vec<Outcome>, MachineError> {
        std::thread::sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed)));
        let mut state = self.state.lock().unwrap();
        let first = state.commands.len() as u64 + 1;
        let positions = first..first + commands.len() as u64;
        if positions.contains(&self.fail_at.load(Ordering::Relaxed)) {
            return Err(MachineError::Poisoned("told to fail".into()));
        }
        state.commands.extend(commands);
        state.bookmark = Some(bookmark.clone());
        let position = state.commands.len() as u64;
        state.marks.push((position, bookmark));
        let outcome = |n| Outcome { position: Position(n), verdict: Verdict::Applied };
        Ok(positions.map(outcome).collect())
    }

    fn persist(&self) -> Result<Option<Bookmark>, MachineError> {
        let state = self.state.lock().unwrap().clone();
        let bookmark = state.bookmark.clone();
        *self.saved.lock().unwrap() = state;
        Ok(bookmark)
    }

    fn history_starts_at(&self, position: Position) {
        self.history.fetch_max(position.0, Ordering::Relaxed);
    }

    fn bookmark_at(&self, position: Position) -> Result<Option<(Position, Bookmark)>, MachineError> {
        let state = self.state.lock().unwrap();
        let newest = state.marks.iter().rev().find(|(at, _)| *at <= position.0);
        Ok(newest.map(|(at, bookmark)| (Position(*at), bookmark.clone())))
    }

    fn write_snapshot(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        let state = self.state.lock().unwrap().clone();
        let mut write = |bytes: &[u8]| {
            out.write_all(&(bytes.len() as u32).to_le_bytes())?;
            out.write_all(bytes)
        };
        let mut all = || {
            write(&state.bookmark.as_ref().map_or(Bytes::new(), |bookmark| bookmark.0.clone()))?;
            state.commands.iter().try_for_each(|command| write(command))
        };
        all().map_err(|source: io::Error| MachineError::Io { what: "snapshot".into(), source })
    }

    fn install_snapshot(&self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut all = Vec::new();
        input.read_to_end(&mut all).map_err(|source| MachineError::Io { what: "snapshot".into(), source })?;
        let mut rest = Bytes::from(all);
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let bytes = bytes::Buf::get_u32_le(&mut rest) as usize;
            parts.push(rest.split_to(bytes));
        }
        let bookmark = Bookmark(parts.remove(0));
        let marks = vec![(parts.len() as u64, bookmark.clone())];
        *self.state.lock().unwrap() = State { commands: parts, bookmark: Some(bookmark), marks };
        self.persist()?;
        Ok(())
    }
}

pub(super) const GROUP: GroupId = GroupId(7);
pub(super) const ME: ReplicaId = ReplicaId(3);

/// Small segments, so that retention has something to do.
pub(super) fn log_options() -> annal_wal::Options {
    annal_wal::Options { segment_bytes: 1 << 20, free_bytes_min: 0, ..annal_wal::Options::default() }
}

pub(super) fn memory() -> MemoryDisk {
    MemoryDisk::new(1 << 30)
}

/// The log of a disk, and the group in it.
pub(super) async fn open_log(disk: &MemoryDisk, options: annal_wal::Options) -> (Log, GroupLog) {
    let (log, _) = Log::open_in_memory(disk.clone(), options).unwrap();
    let group = match log.group(GROUP) {
        Some(group) => group,
        None => log.create_group(GROUP).await.unwrap(),
    };
    (log, group)
}

pub(super) fn options() -> ReplicaOptions {
    let mut options = ReplicaOptions::new(ME);
    options.checkpoint.keep_entries = 0;
    options
}

/// A replica that founds its group alone, or goes on alone.
pub(super) async fn alone(
    options: ReplicaOptions,
    log: &Log,
    group: GroupLog,
    machine: Arc<Journal>,
) -> Result<Replica<Journal>, ReplicaError> {
    let founder = options.replica;
    let replica = Replica::open(options, log, group, machine, Arc::new(Nobody)).await?;
    replica.found([founder].into()).await?;
    Ok(replica)
}

pub(super) async fn open(disk: &MemoryDisk, machine: Arc<Journal>) -> (Log, Replica<Journal>) {
    let (log, group) = open_log(disk, log_options()).await;
    let replica = alone(options(), &log, group, machine).await.unwrap();
    (log, replica)
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub(super) fn command(n: u64) -> Bytes {
    Bytes::from(format!("command {n}"))
}

/// Proposes and waits until it is applied; gives its position.
pub(super) async fn put(replica: &Replica<Journal>, command: Bytes) -> u64 {
    replica.propose(command, soon()).await.unwrap().position.0
}

/// The process dies: nothing is shut down, and what was not on disk is gone.
pub(super) async fn crash(disk: &MemoryDisk, log: Log, replica: Replica<Journal>) -> Arc<Journal> {
    // The log first: a purge that reached it came after what it relies on had been saved.
    disk.crash();
    let machine = replica.machine().after_crash();
    drop((log, replica));
    machine
}
