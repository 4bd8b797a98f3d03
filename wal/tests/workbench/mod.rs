//! The bench the log's tests work at: a place to open logs in, and entries to put there.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use annal_wal::{Entry, Error, GroupLog, Log, LogId, LogIndex, MemoryDisk, Options, Recovery, Tasks, Term};
use bytes::Bytes;
use tokio::sync::oneshot;

/// Where a log lies.
pub enum Place {
    Folder(tempfile::TempDir),
    Memory(MemoryDisk),
    /// In memory, on the tasks of the test's own runtime.
    Tasks(MemoryDisk),
}

/// Tasks on tokio, and chances that are counted.
#[derive(Default)]
pub struct OnTokio(AtomicU64);

impl Tasks for OnTokio {
    fn spawn(&self, work: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(work);
    }

    fn unix_ms(&self) -> u64 {
        1_800_000_000_000 + self.0.fetch_add(1, Relaxed)
    }

    fn chance(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed)
    }

    fn commit_takes(&self) -> [Duration; 2] {
        [Duration::from_millis(self.0.fetch_add(1, Relaxed) % 3), Duration::from_millis(1)]
    }
}

impl Place {
    pub fn folder() -> Place {
        Place::Folder(tempfile::tempdir().unwrap())
    }

    pub fn memory() -> Place {
        Place::Memory(MemoryDisk::new(1 << 30))
    }

    pub fn tasks() -> Place {
        Place::Tasks(MemoryDisk::new(1 << 30))
    }

    pub fn try_open(&self, options: Options) -> Result<(Log, Recovery), Error> {
        match self {
            Place::Folder(dir) => Log::open(dir.path(), options),
            Place::Memory(disk) => Log::open_in_memory(disk.clone(), options),
            Place::Tasks(disk) => {
                // A log of tasks that was dropped ends when they do; its handles are dead at once.
                disk.restart_process();
                Log::open_simulated(disk, options, Arc::new(OnTokio::default()))
            }
        }
    }

    pub fn open(&self, options: Options) -> (Log, Recovery) {
        self.try_open(options).unwrap()
    }
}

/// Segments so small that tests roll through many.
pub fn small() -> Options {
    Options {
        segment_bytes: 16 << 10,
        batch_bytes_max: 4 << 10,
        queue_bytes_max: 64 << 10,
        hot_bytes_max: 2 << 10,
        free_bytes_min: 0,
        idle_mark: Duration::from_millis(20),
        buffer_bytes: 4 << 10,
        ..Options::default()
    }
}

pub fn id(term: u64, index: u64) -> LogId {
    LogId { term: Term(term), leader: 1, index: LogIndex(index) }
}

/// Entries whose payloads tell their term and index.
pub fn entries(term: u64, indexes: Range<u64>, bytes: usize) -> Vec<Entry> {
    indexes
        .map(|index| {
            let mut payload = format!("{term}.{index}.").into_bytes();
            payload.extend((0..bytes).map(|at| (at as u64 ^ index ^ term) as u8));
            Entry { id: id(term, index), payload: Bytes::from(payload) }
        })
        .collect()
}

/// Appends and waits for the fsync.
pub async fn append(group: &GroupLog, entries: Vec<Entry>) -> Result<(), Error> {
    let (told, flushed) = oneshot::channel();
    group.append(entries, move |outcome| drop(told.send(outcome))).await?;
    flushed.await.unwrap_or(Err(Error::Closed))
}

/// Defines a test that runs in a folder, in memory, and in memory on tasks of a paused clock.
#[macro_export]
macro_rules! on_both {
    ($name:ident, $test:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn on_disk() {
                ($test)(Place::folder()).await;
            }

            #[tokio::test]
            async fn in_memory() {
                ($test)(Place::memory()).await;
            }

            #[tokio::test(start_paused = true)]
            async fn on_tasks() {
                ($test)(Place::tasks()).await;
            }
        }
    };
}
