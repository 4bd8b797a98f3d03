//! The points in use: a few at a time, each for a bounded number of operations.
//!
//! Invariants: a point gets at most [`OPS_MAX`] operations and [`UNKNOWN_MAX`] of unknown outcome, so that the
//! search for an order of each comes to its end.

use rand::{Rng, rngs::StdRng};
use std::sync::{Mutex, MutexGuard};

/// Operations of one point.
const OPS_MAX: u32 = 180;
/// Operations of unknown outcome of one point.
const UNKNOWN_MAX: u32 = 8;

/// Some points in use.
pub(super) struct Keys(Mutex<State>);

struct State {
    live: Vec<Key>,
    next: u64,
}

struct Key {
    id: u64,
    ops: u32,
    unknown: u32,
    /// The last version anybody was told.
    version: Option<u64>,
}

impl Keys {
    pub(super) fn new(live: u64) -> Self {
        let key = |id| Key { id, ops: 0, unknown: 0, version: None };
        Keys(Mutex::new(State { live: (1..=live).map(key).collect(), next: live + 1 }))
    }

    /// A point, and the last version anybody was told of it.
    pub(super) fn pick(&self, rng: &mut StdRng) -> (u64, Option<u64>) {
        let mut state = self.lock();
        let at = rng.random_range(0..state.live.len());
        if state.live[at].ops >= OPS_MAX || state.live[at].unknown >= UNKNOWN_MAX {
            let id = state.next;
            state.next += 1;
            state.live[at] = Key { id, ops: 0, unknown: 0, version: None };
        }
        let key = &mut state.live[at];
        key.ops += 1;
        (key.id, key.version)
    }

    /// An operation on a point has an unknown outcome.
    pub(super) fn unknown(&self, id: u64) {
        if let Some(key) = self.lock().live.iter_mut().find(|key| key.id == id) {
            key.unknown += 1;
        }
    }

    /// A version of a point was told (`None`: it is not there).
    pub(super) fn told(&self, id: u64, version: Option<u64>) {
        if let Some(key) = self.lock().live.iter_mut().find(|key| key.id == id) {
            key.version = version;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
