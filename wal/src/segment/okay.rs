//! The segment on disk: one okaywal log per segment, used for appending alone.
//!
//! okaywal 0.3.1 appends soundly; what it does when it recycles, checkpoints, rolls back or recovers can lose
//! acknowledged bytes. So each log gets a folder that did not exist, never reaches its checkpoint size, and is
//! never opened again: recovery is ours (`scan`).
//!
//! Invariants: after each commit its position and id are those expected, or the commit counts as failed.
//! Deliberately absent: `read_at`, `rollback`, `checkpoint_active`, `LogVoid`.

use std::{fs::File, io, path::Path, sync::Arc};

use okaywal::{
    Configuration, Entry, EntryId, LogManager, LogPosition, RecoveredSegment, Recovery, SegmentReader,
    WriteAheadLog,
};

use super::{
    Segment, SegmentNo,
    layout::{AROUND, HEADER, Spec, version_info},
};
use crate::{frame::SegmentKey, wire::Take};

/// The name okaywal gives the only file of a fresh log.
pub(super) const FILE: &str = "wal-1";

/// Refuses everything okaywal would do beside appending.
#[derive(Debug)]
struct AppendOnly;

impl LogManager for AppendOnly {
    fn should_recover_segment(&mut self, _segment: &RecoveredSegment) -> io::Result<Recovery> {
        Err(io::Error::other("a segment's folder was not fresh"))
    }

    fn recover(&mut self, _entry: &mut Entry<'_>) -> io::Result<()> {
        Err(io::Error::other("a segment was asked to recover"))
    }

    fn checkpoint_to(
        &mut self,
        _last: EntryId,
        _entries: &mut SegmentReader,
        _log: &WriteAheadLog,
    ) -> io::Result<()> {
        // A checkpoint would go on to rename the file and overwrite it. Nothing may follow.
        std::process::abort()
    }
}

pub(super) struct OkaySegment {
    log: WriteAheadLog,
    number: SegmentNo,
    capacity: u64,
    end: u64,
    entries: u64,
}

/// Opens a log in `folder`, which must be empty; its file is fsynced, its folder is not.
pub(super) fn create(folder: &Path, number: SegmentNo, spec: &Spec) -> io::Result<OkaySegment> {
    let mut configuration = Configuration::default_for(folder)
        .preallocate_bytes(u32::try_from(spec.bytes).map_err(io::Error::other)?)
        .checkpoint_after_bytes(u64::MAX)
        .buffer_bytes(spec.buffer_bytes);
    let key = SegmentKey { store: spec.store, segment: number };
    configuration.version_info = Arc::new(version_info(key, spec.bytes).to_vec());
    let log = configuration.open(AppendOnly)?;
    // okaywal writes its zeroes without syncing them.
    let file = File::open(folder.join(FILE))?;
    file.sync_all()?;
    if file.metadata()?.len() != spec.bytes {
        return Err(io::Error::other("a fresh segment has an unexpected length"));
    }
    Ok(OkaySegment { log, number, capacity: spec.bytes, end: HEADER as u64, entries: 0 })
}

impl Segment for OkaySegment {
    fn number(&self) -> SegmentNo {
        self.number
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn commit(&mut self, chunk: &[u8]) -> io::Result<()> {
        let mut entry = self.log.begin_entry()?;
        let id = entry.id().0;
        let written = entry.write_chunk(chunk)?;
        entry.commit()?;
        let mut position = [0; LogPosition::SERIALIZED_LENGTH as usize];
        written.position.serialize_to(&mut position[..])?;
        let mut position = Take::new(&position);
        // okaywal's position is that of the chunk's marker, after the entry's marker and id.
        let expected = (Some(1), Some(self.end + 9), self.entries + 1, chunk.len());
        if (position.u64(), position.u64(), id, written.length as usize) != expected {
            return Err(io::Error::other("a commit landed elsewhere than expected"));
        }
        self.end += (AROUND + chunk.len()) as u64;
        self.entries += 1;
        Ok(())
    }

    fn close(self: Box<Self>) -> io::Result<()> {
        self.log.shutdown()
    }
}
