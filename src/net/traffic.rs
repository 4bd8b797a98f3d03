//! Calls and bytes to peers, counted by path.
//!
//! A counter is looked up once a path and not once a call: that took 2 % of a write's time.

use super::CallError;
use metrics::Counter;
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Calls made, by path and by how they ended.
const CALLS: &str = "annal_peer_calls_total";
/// Bytes of bodies, by path and direction.
const BYTES: &str = "annal_peer_bytes_total";

const ENDS: [&str; 6] = ["answered", "unreached", "lost", "refused", "deadline", "failed"];

/// The counters of every path that was called.
#[derive(Default)]
pub(super) struct Traffic {
    paths: RwLock<HashMap<&'static str, Arc<Counters>>>,
}

/// The counters of one path.
pub(super) struct Counters {
    ends: [Counter; ENDS.len()],
    pub(super) sent: Counter,
    pub(super) received: Counter,
}

impl Traffic {
    pub(super) fn of(&self, path: &'static str) -> Arc<Counters> {
        if let Some(counters) = self.paths.read().unwrap_or_else(PoisonError::into_inner).get(path) {
            return counters.clone();
        }
        let bytes =
            |direction: &'static str| metrics::counter!(BYTES, "path" => path, "direction" => direction);
        let counters = || {
            let ends = ENDS.map(|end| metrics::counter!(CALLS, "path" => path, "end" => end));
            Arc::new(Counters { ends, sent: bytes("sent"), received: bytes("received") })
        };
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        paths.entry(path).or_insert_with(counters).clone()
    }
}

impl Counters {
    /// Counts a call that ended.
    pub(super) fn count(&self, sent: usize, received: usize, error: Option<&CallError>) {
        let end = match error {
            None => 0,
            Some(CallError::Unreached { .. }) => 1,
            Some(CallError::Lost { .. }) => 2,
            Some(CallError::Refused { .. }) => 3,
            Some(CallError::Deadline { .. }) => 4,
            Some(CallError::Failed { .. }) => 5,
        };
        self.ends[end].increment(1);
        self.sent.increment(sent as u64);
        self.received.increment(received as u64);
    }
}
