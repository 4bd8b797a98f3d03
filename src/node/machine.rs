//! A simulated machine: what a node stands on instead of sockets, threads, and files of log and store.
//!
//! Not here: what goes wrong with it (its disks' own methods, and its carrier's owner).

use crate::{net::Carrier, replica::CheckpointLimits, store::MemoryStore, world};
use annal_wal::{MemoryDisk, Tasks};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

/// The disks and the network of one node; they outlive it.
#[derive(Clone)]
pub struct Machine {
    /// Under the log.
    pub log: MemoryDisk,
    /// Under the store.
    pub store: MemoryStore,
    /// To the other nodes.
    pub carrier: Arc<dyn Carrier>,
    /// When state is made durable: soon, if snapshots are to happen.
    pub checkpoint: CheckpointLimits,
    /// How often a replica reads all it has.
    pub scrub_every: Duration,
}

/// The log's work, as tasks of the world.
pub(super) struct LogTasks;

/// An fsync takes up to so many milliseconds; most take one.
const COMMIT_MS_MAX: u64 = 4;

impl Tasks for LogTasks {
    fn spawn(&self, work: Pin<Box<dyn Future<Output = ()> + Send>>) {
        world::spawn(work);
    }

    fn unix_ms(&self) -> u64 {
        world::since_1970().as_millis() as u64
    }

    fn chance(&self) -> u64 {
        world::chance()
    }

    fn commit_takes(&self) -> [Duration; 2] {
        let chance = world::chance();
        let slow = if chance.is_multiple_of(8) { 1 + chance / 8 % COMMIT_MS_MAX } else { 1 };
        [Duration::from_millis(slow), Duration::from_millis(chance / 64 % 4 / 3)]
    }
}
