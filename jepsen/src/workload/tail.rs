//! Writes, deletes and batches, and a consumer that follows the change feed from its begin through cuts and nodes.

use super::{Session, Workload, batch::write_batch, feed::follow, keys::Keys, register::one_of_all};
use rand::Rng;
use std::sync::atomic::{AtomicU64, Ordering};

/// The workload.
pub(super) struct Tail {
    keys: Keys,
    next_batch: AtomicU64,
}

impl Default for Tail {
    fn default() -> Self {
        Tail { keys: Keys::new(12), next_batch: AtomicU64::new(BATCHES) }
    }
}

/// Ids of points written in batches begin here; each batch has ids of its own, wherever their shards are.
const BATCHES: u64 = 1_000_000;

impl Workload for Tail {
    fn name(&self) -> &'static str {
        "tail"
    }

    /// The version of a batch is one position, so all of it must be in one shard.
    fn shards(&self) -> u32 {
        1
    }

    fn step(&self, session: &mut Session) {
        if session.rng.random_ratio(1, 10) {
            let count = session.rng.random_range(2..6);
            let first = self.next_batch.fetch_add(count, Ordering::Relaxed);
            write_batch(session, &(first..first + count).collect::<Vec<_>>());
        } else {
            one_of_all(session, &self.keys);
        }
    }

    fn beside(&self, session: &mut Session) -> bool {
        follow(session);
        true
    }

    fn proves(&self) -> &'static [&'static str] {
        &["tail", "versioned"]
    }
}
