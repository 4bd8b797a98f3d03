//! A segment: one preallocated file of the log, written once from front to back; and the disk it lies on.
//!
//! Invariants: a segment is created fresh and never written again once its writer is gone; what `commit` returned
//! is durable; after any error or panic of a segment it is never called again.
//! Deliberately absent: recycling, renaming, rollback, checkpoints.

pub(crate) mod folder;
pub(crate) mod layout;
pub(crate) mod memory;
mod okay;

use std::{io, sync::Arc};

/// The number of a segment, counted from 1; never reused once it held a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentNo(pub(crate) u64);

impl SegmentNo {
    pub(crate) fn next(self) -> SegmentNo {
        SegmentNo(self.0 + 1)
    }
}

/// Where a record lies within its segment, and its whole length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
}

/// A segment being written.
pub(crate) trait Segment: Send {
    fn number(&self) -> SegmentNo;

    /// Bytes it can hold in all.
    fn capacity(&self) -> u64;

    /// Where the next entry starts; its chunk starts `layout::BEFORE` later.
    fn end(&self) -> u64;

    /// Writes `chunk` as one entry and fsyncs it: durable on return.
    fn commit(&mut self, chunk: &[u8]) -> io::Result<()>;

    /// Gives its descriptors and threads back; what was committed stays.
    fn close(self: Box<Self>) -> io::Result<()>;
}

/// A small file beside the segments, replaced whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SideFile {
    /// Where the log begins, and whose it is.
    Anchor,
    /// The index and hard state at the end of a segment.
    Seal(SegmentNo),
}

/// A segment being read.
pub(crate) trait ReadAt: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len()?).map_err(io::Error::other)?];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// The folder of one log.
pub(crate) trait Disk: Send + Sync {
    /// Segments present, used or not, in order.
    fn list(&self) -> io::Result<Vec<SegmentNo>>;

    /// Creates a segment that must not exist, all zeroes after its header, durable with its folder.
    fn create(&self, number: SegmentNo, spec: &layout::Spec) -> io::Result<Box<dyn Segment>>;

    /// Opens a segment for reading; `NotFound` if its folder or file is missing.
    fn open(&self, number: SegmentNo) -> io::Result<Arc<dyn ReadAt>>;

    /// Makes what will be read what the disk holds: fsync, then drop it from the page cache.
    fn settle(&self, number: SegmentNo) -> io::Result<()>;

    /// Gives the unused bytes from `from` on back to the disk; they read as zeroes.
    fn punch(&self, number: SegmentNo, from: u64) -> io::Result<()>;

    /// Bytes a segment and its side file take on the disk.
    fn allocated(&self, number: SegmentNo) -> io::Result<u64>;

    /// Removes a segment with its side file.
    fn remove(&self, number: SegmentNo) -> io::Result<()>;

    /// Replaces a side file at once and durably.
    fn put(&self, file: SideFile, bytes: &[u8]) -> io::Result<()>;

    fn get(&self, file: SideFile) -> io::Result<Option<Vec<u8>>>;

    fn free_bytes(&self) -> io::Result<u64>;

    /// Whether reads may block, so that they must not run on an async thread.
    fn blocks(&self) -> bool;

    /// Lets another process open the folder: nothing is written any more.
    fn release(&self);
}
