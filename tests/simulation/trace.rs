//! What happened, in order: one line for each message, fault and operation.
//!
//! Invariants: a seed gives the same lines in every process, so nothing enters that another process would see
//! otherwise: no address, no path, no real time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// The lines so far, or only their checksum.
pub(crate) struct Trace {
    began: Instant,
    state: Mutex<State>,
}

struct State {
    crc: crc32fast::Hasher,
    lines: u64,
    text: Option<String>,
}

impl Trace {
    /// An empty one; `kept`: with its text.
    pub(crate) fn new(kept: bool) -> Trace {
        let state = State { crc: crc32fast::Hasher::new(), lines: 0, text: kept.then(String::new) };
        Trace { began: Instant::now(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line.
    pub(crate) fn line(&self, what: std::fmt::Arguments<'_>) {
        let line = format!("{:>7} {what}\n", self.began.elapsed().as_millis());
        let mut state = self.lock();
        state.crc.update(line.as_bytes());
        state.lines += 1;
        if let Some(text) = &mut state.text {
            text.push_str(&line);
        }
    }

    /// How many lines there are, and their checksum.
    pub(crate) fn sum(&self) -> (u64, u32) {
        let state = self.lock();
        (state.lines, state.crc.clone().finalize())
    }

    /// The lines, if they were kept.
    pub(crate) fn take_text(&self) -> Option<String> {
        self.lock().text.take()
    }
}
