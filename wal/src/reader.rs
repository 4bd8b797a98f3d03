//! Reading entries back: from memory, or with `pread` at known places.
//!
//! Invariants: a record is checked (crc, group, id) before it is handed out; neighbours in a segment are read in one
//! go; a blocking disk is never read on an async thread.
//! Deliberately absent: a cache of blocks. The hot tail serves the near past, the page cache the far one.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use crate::{
    entry::{Entry, GroupId},
    error::Error,
    group::Source,
    index::Located,
    log::Shared,
    record,
    segment::{Disk, ReadAt, SegmentNo},
};

/// Bytes read at once at most, unless a single record is larger.
const SPAN_BYTES_MAX: u64 = 1 << 20;
/// Bytes between two records that are read along rather than skipped.
const GAP_BYTES_MAX: u64 = 4096;
/// Segments kept open for reading.
const OPEN_MAX: usize = 64;

/// The segments open for reading.
#[derive(Default)]
pub(crate) struct Readers {
    open: Mutex<BTreeMap<SegmentNo, Arc<dyn ReadAt>>>,
}

impl Readers {
    fn get(&self, disk: &dyn Disk, number: SegmentNo) -> io::Result<Arc<dyn ReadAt>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = open.get(&number) {
            return Ok(reader.clone());
        }
        let reader = disk.open(number)?;
        if open.len() >= OPEN_MAX {
            open.pop_first();
        }
        open.insert(number, reader.clone());
        Ok(reader)
    }

    pub(crate) fn forget(&self, number: SegmentNo) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

/// Why entries could not be read.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The segment was removed since its place was looked up.
    SegmentGone(SegmentNo),
    Other(Error),
}

impl Failed {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Failed::Other(error) => error,
            Failed::SegmentGone(number) => {
                Error::io(format!("opening segment {}", number.0))(io::ErrorKind::NotFound.into())
            }
        }
    }
}

/// Reads entries from where they lie.
pub(crate) async fn read(
    shared: &Arc<Shared>,
    group: GroupId,
    sources: Vec<Source>,
) -> Result<Vec<Entry>, Failed> {
    let cold = sources.iter().any(|source| matches!(source, Source::Cold(_)));
    if !(cold && shared.disk.blocks()) {
        return read_now(shared, group, sources);
    }
    let shared = shared.clone();
    #[allow(clippy::disallowed_methods, reason = "a disk of a simulation does not block")]
    let read = tokio::task::spawn_blocking(move || read_now(&shared, group, sources));
    read.await
        .unwrap_or_else(|error| Err(Failed::Other(Error::io("reading entries")(io::Error::other(error)))))
}

/// The same, blocking.
pub(crate) fn read_now(shared: &Shared, group: GroupId, sources: Vec<Source>) -> Result<Vec<Entry>, Failed> {
    let mut entries = Vec::with_capacity(sources.len());
    let mut span = Vec::new();
    for source in sources {
        match source {
            Source::Cold(located) => {
                if !span.last().is_none_or(|last| joins(&span[0], last, &located)) {
                    read_span(shared, group, &span, &mut entries)?;
                    span.clear();
                }
                span.push(located);
            }
            Source::Hot(entry) => {
                read_span(shared, group, &span, &mut entries)?;
                span.clear();
                entries.push(entry);
            }
        }
    }
    read_span(shared, group, &span, &mut entries)?;
    Ok(entries)
}

fn end(located: &Located) -> u64 {
    u64::from(located.spot.offset) + u64::from(located.spot.bytes)
}

/// Whether `next` is read in one go with the span from `first` to `last`.
fn joins(first: &Located, last: &Located, next: &Located) -> bool {
    let offset = u64::from(next.spot.offset);
    first.segment == next.segment
        && offset >= end(last)
        && offset - end(last) <= GAP_BYTES_MAX
        && end(next) - u64::from(first.spot.offset) <= SPAN_BYTES_MAX
}

fn read_span(
    shared: &Shared,
    group: GroupId,
    span: &[Located],
    entries: &mut Vec<Entry>,
) -> Result<(), Failed> {
    let (Some(first), Some(last)) = (span.first(), span.last()) else { return Ok(()) };
    let reader = shared.readers.get(&*shared.disk, first.segment).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failed::SegmentGone(first.segment),
        _ => Failed::Other(Error::io(format!("opening segment {}", first.segment.0))(error)),
    })?;
    let start = u64::from(first.spot.offset);
    let mut bytes = vec![0; (end(last) - start) as usize];
    let doing = || format!("reading segment {} at {start}", first.segment.0);
    reader.read_exact_at(&mut bytes, start).map_err(|error| Failed::Other(Error::io(doing())(error)))?;
    let bytes = Bytes::from(bytes);
    for located in span {
        let from = (u64::from(located.spot.offset) - start) as usize;
        let record = bytes.slice(from..from + located.spot.bytes as usize);
        let entry = record::decode_entry(record, group).filter(|entry| entry.id == located.id);
        entries.push(entry.ok_or_else(|| {
            Failed::Other(Error::Corrupt {
                segment: located.segment.0,
                offset: u64::from(located.spot.offset),
                group: Some(group),
                index: Some(located.id.index),
                why: "the record is not the one that was written".into(),
            })
        })?);
    }
    Ok(())
}
