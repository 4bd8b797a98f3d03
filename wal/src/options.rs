//! How a log is sized.

use std::time::Duration;

use crate::{error::Error, frame, segment::layout};

/// Sizes and times of a log. Units are in the names; times are durations.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of one segment, preallocated. A record must fit into one.
    pub segment_bytes: u64,
    /// Bytes of one frame, above which waiting records go into the next one (a single larger record is let through).
    pub batch_bytes_max: usize,
    /// Bytes that may wait for the writer; beyond them `append` awaits.
    pub queue_bytes_max: usize,
    /// Bytes the log folder should stay within; the oldest segments go first.
    pub retention_bytes: u64,
    /// Age beyond which a sealed segment goes, if nobody needs it.
    pub retention_age: Option<Duration>,
    /// Bytes up to which history floors are honoured; beyond, readers of history are left behind.
    pub history_bytes_max: u64,
    /// Free bytes of the disk below which appends are turned away.
    pub free_bytes_min: u64,
    /// Bytes of recent entries kept in memory for readers.
    pub hot_bytes_max: usize,
    /// Time without writes after which an empty frame confirms the last one.
    pub idle_mark: Duration,
    /// Time a single write may take before the log counts as hung and is poisoned.
    pub watchdog: Duration,
    /// Bytes of the segment writer's buffer.
    pub buffer_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            batch_bytes_max: 4 << 20,
            queue_bytes_max: 64 << 20,
            retention_bytes: 1 << 30,
            retention_age: None,
            history_bytes_max: 4 << 30,
            free_bytes_min: 256 << 20,
            hot_bytes_max: 64 << 20,
            idle_mark: Duration::from_millis(100),
            watchdog: Duration::from_secs(30),
            buffer_bytes: 64 << 10,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |name, why: String| Err(Error::Option { name, why });
        if self.segment_bytes < 4096 || self.segment_bytes > u64::from(u32::MAX) {
            return wrong("segment_bytes", format!("{} is not within 4096..=2^32-1", self.segment_bytes));
        }
        if self.batch_bytes_max == 0 || self.queue_bytes_max == 0 || self.queue_bytes_max > u32::MAX as usize
        {
            return wrong("queue_bytes_max", "batch and queue must lie within 1..=2^32-1".into());
        }
        if self.buffer_bytes < 512 {
            return wrong("buffer_bytes", format!("{} is less than 512", self.buffer_bytes));
        }
        Ok(())
    }

    /// Bytes of the largest record: what an empty segment holds beside the mark that confirms it.
    pub(crate) fn record_bytes_max(&self) -> usize {
        self.segment_bytes as usize - layout::HEADER - 2 * (layout::AROUND + frame::HEADER)
    }
}
