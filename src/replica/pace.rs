//! How fast snapshots go, so that searches and writes hardly notice them.
//!
//! Invariants: over any stretch of time no more goes than the rate allows and one piece; who shares a pace shares its
//! rate. Waiting is sleeping, with nothing held that others wait for.
//! Not here: pacing the scrub, which is paced by time (`cluster::audit`).

use crate::world;
use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A rate that all clones share.
#[derive(Clone, Debug)]
pub struct Pace {
    /// 0: as fast as it goes.
    bytes_per_second: u64,
    /// When the next piece may go.
    next: Arc<Mutex<Option<Instant>>>,
}

impl Pace {
    /// At most so many bytes a second; 0: as fast as it goes.
    pub fn new(bytes_per_second: u64) -> Self {
        Pace { bytes_per_second, next: Arc::default() }
    }

    /// The same rate, shared with nobody.
    pub(super) fn alone(&self) -> Self {
        Pace::new(self.bytes_per_second)
    }

    /// Takes a turn of so many bytes. Blocks the thread until it has come.
    pub(super) fn take(&self, bytes: usize) {
        if self.bytes_per_second > 0 {
            world::rest(self.turn(Instant::now(), bytes));
        }
    }

    /// The same for a task.
    pub(super) async fn turn_comes(&self, bytes: usize) {
        if self.bytes_per_second > 0 {
            tokio::time::sleep(self.turn(Instant::now(), bytes)).await;
        }
    }

    /// How long to wait from now on for a turn.
    fn turn(&self, now: Instant, bytes: usize) -> Duration {
        let lasts = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = next.map_or(now, |next| next.max(now));
        *next = Some(begins + lasts);
        begins - now
    }
}

/// Reads at a pace.
pub(super) struct Paced<R> {
    input: R,
    pace: Pace,
}

/// Read between two turns: many small reads are one.
const TURN_BYTES: usize = 64 << 10;

impl<R: Read> Paced<R> {
    /// Buffered, so that a turn is of many bytes.
    pub(super) fn new(input: R, pace: Pace) -> io::BufReader<Self> {
        io::BufReader::with_capacity(TURN_BYTES, Paced { input, pace })
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(TURN_BYTES);
        let read = self.input.read(&mut into[..most])?;
        self.pace.take(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_share_a_pace_share_its_rate() {
        let pace = Pace::new(1000);
        let (now, other) = (Instant::now(), pace.clone());
        assert_eq!(pace.turn(now, 500), Duration::ZERO);
        assert_eq!(other.turn(now, 250), Duration::from_millis(500));
        assert_eq!(pace.turn(now, 1), Duration::from_millis(750));
        // What was not used is not saved up.
        let later = now + Duration::from_secs(10);
        assert_eq!(
            (pace.turn(later, 100), pace.turn(later, 100)),
            (Duration::ZERO, Duration::from_millis(100))
        );
        assert_eq!(pace.alone().turn(later, 100), Duration::ZERO);
    }

    #[test]
    fn what_is_read_at_a_pace_is_what_was_there() {
        let bytes: Vec<u8> = (0..3 * TURN_BYTES + 17).map(|n| n as u8).collect();
        for rate in [0, 1 << 30] {
            let mut read = Vec::new();
            Paced::new(&bytes[..], Pace::new(rate)).read_to_end(&mut read).unwrap();
            assert_eq!(read, bytes);
        }
    }
}
