//! The bench the log's tests work at: a place to open logs in, and entries to put there.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::{ops::Range, time::Duration};

use annal_wal::{Entry, Error, GroupLog, Log, LogId, LogIndex, MemoryDisk, Options, Recovery, Term};
use bytes::Bytes;
use tokio::sync::oneshot;

/// Where a log lies.
pub enum Place {
    Folder(tempfile::TempDir),
    Memory(MemoryDisk),
}

impl Place {
    pub fn folder() -> Place {
        Place::Folder(tempfile::tempdir().unwrap())
    }

    pub fn memory() -> Place {
        Place::Memory(MemoryDisk::new(1 << 30))
    }

    pub fn try_open(&self, options: Options) -> Result<(Log, Recovery), Error> {
        match self {
            Place::Folder(dir) => Log::open(dir.path(), options),
            Place::Memory(disk) => Log::open_in_memory(disk.clone(), options),
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

/// Defines a test that runs in a folder and in memory.
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
        }
    };
}
