//! What the log tells of itself.
//!
//! Invariants: counting never blocks the writer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Counts in buckets that double: bucket `n` holds values below `2^n`.
#[derive(Default)]
pub(crate) struct Counts {
    buckets: [AtomicU64; 32],
    sum: AtomicU64,
}

impl Counts {
    pub(crate) fn add(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()).min(31) as usize;
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub(crate) fn add_micros(&self, time: Duration) {
        self.add(time.as_micros() as u64);
    }

    pub(crate) fn snapshot(&self) -> Histogram {
        let buckets: Vec<(u64, u64)> = self
            .buckets
            .iter()
            .enumerate()
            .map(|(power, count)| (1 << power, count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Histogram {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum: self.sum.load(Relaxed),
            buckets,
        }
    }
}

/// How often values of which size were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Values counted.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
    /// `(bound, count)`: that many values lay below the bound and not below half of it. Empty buckets are left out.
    pub buckets: Vec<(u64, u64)>,
}

impl Histogram {
    /// An upper bound of the quantile `q` in 0..=1; 0 if nothing was counted.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = (self.count as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (bound, count) in &self.buckets {
            seen += count;
            if seen >= rank {
                return *bound;
            }
        }
        0
    }
}

/// What the writer counts.
#[derive(Default)]
pub(crate) struct Meters {
    pub(crate) commits: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) record_bytes: AtomicU64,
    pub(crate) marks: AtomicU64,
    pub(crate) rolls: AtomicU64,
    pub(crate) fsync_micros: Counts,
    pub(crate) batch_records: Counts,
    pub(crate) batch_bytes: Counts,
    pub(crate) roll_micros: Counts,
}

/// The log as it is now.
#[derive(Clone, Debug)]
pub struct LogStatus {
    /// Bytes the segments take on the disk, the one being written and the one opened ahead included.
    pub bytes: u64,
    /// Segments that hold or will hold records.
    pub segments: u64,
    /// The number of the oldest one.
    pub oldest_segment: u64,
    /// The number of the one being written.
    pub newest_segment: u64,
    /// Frames committed since the log was opened, empty ones included.
    pub commits: u64,
    /// Records committed since the log was opened.
    pub records: u64,
    /// Bytes of those records.
    pub record_bytes: u64,
    /// Empty frames among the commits.
    pub marks: u64,
    /// Bytes of recent entries held in memory.
    pub hot_bytes: u64,
    /// Time of a commit (write and fsync), in microseconds.
    pub fsync_micros: Histogram,
    /// Records per commit.
    pub batch_records: Histogram,
    /// Bytes per commit.
    pub batch_bytes: Histogram,
    /// Time the writer waited for its next segment, in microseconds.
    pub roll_micros: Histogram,
    /// Free bytes of the disk when last looked.
    pub free_bytes: u64,
    /// Places known to be damaged: found at the start, and by the slow look at sealed segments.
    pub damaged: u64,
    /// Why the log is poisoned, if it is.
    pub failure: Option<Arc<str>>,
}
