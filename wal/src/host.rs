//! What a log runs on: threads of its own and the system's clock, or the tasks and the clock of a simulation.
//!
//! Invariants: the only file of this crate that asks the system for the time of day or for chance; on tasks the same
//! code decides, between the same steps, and what would block a thread is awaited.
//! Not here: time that is only measured (figures, the watchdog): it decides nothing in a simulation.

use std::{
    collections::hash_map::RandomState,
    future::Future,
    hash::{BuildHasher, Hasher},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A simulation's tasks, clock and chance, for [`crate::Log::open_simulated`].
pub trait Tasks: Send + Sync + 'static {
    /// Runs work of the log until it ends, or until its node is killed.
    fn spawn(&self, work: Pin<Box<dyn Future<Output = ()> + Send>>);

    /// Milliseconds since 1970.
    fn unix_ms(&self) -> u64;

    /// A number that nobody expects.
    fn chance(&self) -> u64;

    /// How long the next commit takes until it is durable, and then until it is told.
    fn commit_takes(&self) -> [Duration; 2];
}

/// What one log runs on.
#[derive(Clone)]
pub(crate) enum Host {
    Threads,
    Tasks(Arc<dyn Tasks>),
}

impl Host {
    #[allow(clippy::disallowed_methods, reason = "the one place")]
    pub(crate) fn unix_ms(&self) -> u64 {
        match self {
            Host::Threads => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            Host::Tasks(tasks) => tasks.unix_ms(),
        }
    }

    pub(crate) fn chance(&self) -> u64 {
        match self {
            // The standard library's hasher is seeded by the system at random; no more is needed here.
            Host::Threads => RandomState::new().build_hasher().finish(),
            Host::Tasks(tasks) => tasks.chance(),
        }
    }
}
