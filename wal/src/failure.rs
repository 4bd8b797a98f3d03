//! Fail-stop: the first failure of a write is the last thing the log does.
//!
//! Invariants: the reason is set once and never cleared; every waiter is told exactly once, also when the writer
//! hangs; a failed fsync is never retried, since the system may have forgotten what was not written.
//! Source: Rebello et al., "Can Applications Recover from fsync Failures?", 2020.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::{
    error::Error,
    queue::{Closed, Done, Queue},
};

/// The place where a failure is noted and from which everybody is told.
pub(crate) struct Failure {
    queue: Arc<Queue>,
    why: watch::Sender<Option<Arc<str>>>,
    /// Those who wait for the write in progress.
    in_flight: Mutex<Vec<Done>>,
    started: Instant,
    /// Milliseconds after `started` at which the operation in progress began, plus one; 0 if none is.
    busy_since: AtomicU64,
}

impl Failure {
    pub(crate) fn new(queue: Arc<Queue>) -> Failure {
        Failure {
            queue,
            why: watch::Sender::new(None),
            in_flight: Mutex::default(),
            started: Instant::now(),
            busy_since: AtomicU64::new(0),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.why.subscribe()
    }

    pub(crate) fn why(&self) -> Option<Arc<str>> {
        self.why.borrow().clone()
    }

    /// Poisons the log: nothing enters, and everyone who waits is told. Gives the first failure, which may be another.
    pub(crate) fn poison(&self, why: &str) -> Arc<str> {
        let why: Arc<str> = why.into();
        self.why.send_if_modified(|noted| {
            let first = noted.is_none();
            if first {
                tracing::error!(%why, "the log is poisoned; the node must stop");
                *noted = Some(why.clone());
            }
            first
        });
        let why = self.why().expect("noted above");
        let left = self.queue.close(Closed::Poisoned(why.clone()));
        let in_flight = std::mem::take(&mut *self.in_flight());
        let waiting = left.into_iter().filter_map(|request| request.done);
        for done in in_flight.into_iter().chain(waiting) {
            done(Err(Error::Poisoned { why: why.clone() }));
        }
        why
    }

    fn in_flight(&self) -> MutexGuard<'_, Vec<Done>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entrusts those who wait for the write about to start.
    pub(crate) fn begin(&self, waiters: &mut Vec<Done>) {
        std::mem::swap(&mut *self.in_flight(), waiters);
        let now = self.started.elapsed().as_millis() as u64 + 1;
        self.busy_since.store(now, Ordering::Release);
    }

    /// Takes them back when the write is done; `None` if the log was poisoned meanwhile.
    pub(crate) fn end(&self, waiters: &mut Vec<Done>) -> Option<()> {
        self.busy_since.store(0, Ordering::Release);
        if self.why.borrow().is_some() {
            return None;
        }
        std::mem::swap(&mut *self.in_flight(), waiters);
        Some(())
    }

    /// Poisons the log if the write in progress takes longer than `patience`.
    pub(crate) fn watch(&self, patience: Duration) {
        let since = self.busy_since.load(Ordering::Acquire);
        let Some(since) = since.checked_sub(1) else { return };
        let busy = self.started.elapsed().saturating_sub(Duration::from_millis(since));
        if busy > patience {
            self.poison(&format!("a write has not returned for {} ms", busy.as_millis()));
        }
    }
}
