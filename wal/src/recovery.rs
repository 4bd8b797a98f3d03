//! From what lies on the disk to where the log goes on.
//!
//! ```text
//! anchor -> | sealed | sealed | sealed | no seal: scanned | unused |   -> fresh segment
//!             seal     seal     seal     torn end allowed   removed
//! ```
//!
//! Invariants: a sealed segment is taken from its seal, any other from our own scan of it, and both fold into the same
//! seal; nothing is ever appended to a segment found here; a torn end is legitimate iff the next frame follows the
//! last good one; damage whose records no later seal makes up for stops the log from opening.
//! Not here: bytes rotting in sealed segments (see `scrub`, `verify`).

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use crate::{
    anchor::Anchor,
    entry::{GroupId, LogIndex},
    error::Error,
    fold::{Fold, Seal},
    frame::{Link, SegmentKey},
    group::Inner,
    host::Host,
    retention::Kept,
    scan::{Damage, Scan, scan},
    seal,
    segment::{Disk, SegmentNo, SideFile},
};

/// Segments whose bytes are taken from the disk itself, not from the page cache: after a failed fsync the cache may
/// show what the disk does not hold. Only the last one used and the one opened ahead can be concerned.
const SETTLED: usize = 3;

/// What opening the log found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Groups alive.
    pub groups: u64,
    /// Segments kept.
    pub segments: u64,
    /// Those among them that had no good seal and were read whole.
    pub scanned_segments: u64,
    /// Frames read.
    pub frames: u64,
    /// Records read.
    pub records: u64,
    /// Bytes found behind the last good frame: a write that was cut off and never acknowledged.
    pub torn_bytes: u64,
    /// Damage that does not keep the log from opening. An entry with a group and index names the first live entry that
    /// is lost: that replica must not vote, and repairs from its peers. Without a group it concerns history alone.
    pub damage: Vec<Damage>,
    /// Time it took.
    pub took: Duration,
}

pub(crate) struct Recovered {
    pub(crate) anchor: Anchor,
    pub(crate) groups: BTreeMap<GroupId, Inner>,
    pub(crate) fold: Fold,
    /// The last frame there is.
    pub(crate) last: Link,
    /// The number of the segment that comes next.
    pub(crate) next: SegmentNo,
    pub(crate) kept: BTreeMap<SegmentNo, Kept>,
    /// Segments taken from their seals: their bytes were not looked at.
    pub(crate) unread: Vec<SegmentNo>,
    pub(crate) report: Recovery,
}

/// Reads the log, repairs what a crash leaves, and says where to go on.
pub(crate) fn recover(disk: &dyn Disk, host: &Host) -> Result<Recovered, Error> {
    let started = Instant::now();
    let present = disk.list().map_err(Error::io("listing the log's segments"))?;
    let anchor = match Anchor::load(disk)? {
        Some(anchor) => anchor,
        None if present.is_empty() => {
            let anchor = Anchor::fresh(host.chance());
            anchor.save(disk)?;
            anchor
        }
        None => {
            let why = "it is missing although there are segments".to_string();
            return Err(Error::Anchor { why });
        }
    };
    let mut reading = Reading {
        disk,
        host,
        anchor,
        groups: BTreeMap::new(),
        fold: Fold::default(),
        last: None,
        kept: BTreeMap::new(),
        unread: Vec::new(),
        unused: Vec::new(),
        unexplained: Vec::new(),
        report: Recovery::default(),
    };
    for number in present.iter().rev().take(SETTLED) {
        match disk.settle(*number) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("settling segment {}", number.0))(error));
            }
            _ => {}
        }
    }
    for number in present {
        if number < anchor.first {
            // Retention was interrupted after it moved the anchor.
            disk.remove(number).map_err(Error::io(format!("removing segment {}", number.0)))?;
        } else {
            reading.segment(number)?;
        }
    }
    let mut recovered = reading.finish()?;
    recovered.report.took = started.elapsed();
    Ok(recovered)
}

/// Where a segment that was read ends.
#[derive(Clone, Copy)]
struct End {
    segment: SegmentNo,
    offset: u64,
    link: Link,
}

struct Reading<'a> {
    disk: &'a dyn Disk,
    host: &'a Host,
    anchor: Anchor,
    groups: BTreeMap<GroupId, Inner>,
    fold: Fold,
    last: Option<End>,
    kept: BTreeMap<SegmentNo, Kept>,
    unread: Vec<SegmentNo>,
    unused: Vec<SegmentNo>,
    /// Damage after which no seal has yet told how things stand.
    unexplained: Vec<Damage>,
    report: Recovery,
}

impl Reading<'_> {
    fn key(&self, segment: SegmentNo) -> SegmentKey {
        SegmentKey { store: self.anchor.store, segment }
    }

    fn segment(&mut self, number: SegmentNo) -> Result<(), Error> {
        let doing = || format!("reading segment {}", number.0);
        let stored = self.disk.get(SideFile::Seal(number)).map_err(Error::io(doing()))?;
        if let Some(seal) = stored.and_then(|bytes| seal::decode(&bytes, self.key(number))) {
            self.follows(number, seal.before)?;
            self.report.damage.append(&mut self.unexplained);
            self.fold.resume(&seal);
            self.unread.push(number);
            return self.take(&seal);
        }
        let bytes = match self.disk.open(number).and_then(|file| file.read_all()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.unused.push(number);
                return Ok(());
            }
            Err(error) => return Err(Error::io(doing())(error)),
        };
        let found = scan(&bytes, self.key(number), |found| found.fold_into(&mut self.fold, number))?;
        self.report.torn_bytes += found.torn_bytes;
        if found.frames == 0 && found.damage.is_empty() {
            self.unused.push(number);
            return Ok(());
        }
        self.scanned(number, found)
    }

    fn scanned(&mut self, number: SegmentNo, found: Scan) -> Result<(), Error> {
        self.report.scanned_segments += 1;
        self.report.frames += found.frames;
        self.report.records += found.records;
        if let Some(before) = found.before {
            self.follows(number, before)?;
        }
        let intact = found.damage.is_empty();
        self.unexplained.extend(found.damage.into_iter().map(|span| span.named_by(None)));
        let before = found.before.or(self.last.map(|end| end.link)).unwrap_or_default();
        let last = found.last.unwrap_or(before);
        let groups = self.fold.seal();
        let seal = Seal {
            segment: number,
            before,
            last,
            end: found.end,
            sealed_unix_ms: self.host.unix_ms(),
            groups,
        };
        if intact && self.unexplained.is_empty() {
            let doing = || format!("sealing segment {}", number.0);
            // What a cut-off write left stays as it is; only untouched zeroes are given back.
            self.disk.punch(number, found.end + found.torn_bytes).map_err(Error::io(doing()))?;
            let bytes = seal::encode(&seal, self.anchor.store);
            self.disk.put(SideFile::Seal(number), &bytes).map_err(Error::io(doing()))?;
        }
        self.take(&seal)
    }

    /// Checks that a segment goes on where the one before it ended.
    fn follows(&mut self, number: SegmentNo, before: Link) -> Result<(), Error> {
        let expected = self.last.map_or(self.anchor.first, |end| end.segment.next());
        if let Some(unused) = self.unused.first() {
            let why = format!("the segment holds no frame, but segment {} does", number.0);
            return Err(Damage::at(*unused, 0, why).into());
        }
        if number != expected {
            return Err(Damage::at(expected, 0, "the segment is missing").into());
        }
        if let Some(end) = self.last.filter(|end| end.link != before) {
            let (last, next) = (end.link.sequence.0, before.sequence.0 + 1);
            let why = format!("ends with frame {last}, but the next segment starts with frame {next}");
            self.unexplained.push(Damage::at(end.segment, end.offset, why));
        }
        Ok(())
    }

    /// Lays what a segment says over what the older ones said.
    fn take(&mut self, seal: &Seal) -> Result<(), Error> {
        let number = seal.segment;
        self.groups.retain(|group, _| seal.groups.contains_key(group));
        for (group, chapter) in &seal.groups {
            let inner = self.groups.entry(*group).or_default();
            if chapter.stated {
                inner.stated_in = number;
            }
            inner.index.cut_above(chapter.older_below.0.checked_sub(1).map(LogIndex));
            inner.index.overlay(&chapter.index);
            inner.hard = chapter.hard;
            inner.purged_flushed = chapter.hard.purged;
        }
        let bytes =
            self.disk.allocated(number).map_err(Error::io(format!("looking at segment {}", number.0)))?;
        self.kept.insert(number, Kept { bytes, sealed_unix_ms: Some(seal.sealed_unix_ms) });
        self.last = Some(End { segment: number, offset: seal.end, link: seal.last });
        Ok(())
    }

    fn finish(mut self) -> Result<Recovered, Error> {
        if let Some(damage) = self.unexplained.into_iter().next() {
            return Err(damage.into());
        }
        if self.last.is_none() && self.anchor.first > SegmentNo(1) {
            return Err(Damage::at(self.anchor.first, 0, "the segment is missing").into());
        }
        for (group, chapter) in self.fold.seal() {
            if !chapter.known {
                let damage = Damage::at(self.anchor.first, 0, "the group's creation is not in the log");
                return Err(Damage { group: Some(group), ..damage }.into());
            }
        }
        for (group, inner) in &mut self.groups {
            let needed = inner.needed_from();
            let lost = lost_entry(inner, needed);
            inner.index.keep_suffix();
            if let Some(index) = lost {
                let place = self.report.damage.first().map_or((0, 0), |at| (at.segment, at.offset));
                let damage = Damage::at(SegmentNo(place.0), place.1, "a live entry is lost");
                self.report.damage.push(Damage { group: Some(*group), index: Some(index), ..damage });
            }
        }
        for number in self.unused {
            self.disk.remove(number).map_err(Error::io(format!("removing segment {}", number.0)))?;
        }
        self.report.groups = self.groups.len() as u64;
        self.report.segments = self.kept.len() as u64;
        Ok(Recovered {
            anchor: self.anchor,
            groups: self.groups,
            fold: self.fold,
            last: self.last.map(|end| end.link).unwrap_or_default(),
            next: self.last.map_or(self.anchor.first, |end| end.segment.next()),
            kept: self.kept,
            unread: self.unread,
            report: self.report,
        })
    }
}

/// The last entry from `needed` on that lies in no segment although a later one does, or that should be the last.
fn lost_entry(inner: &Inner, needed: LogIndex) -> Option<LogIndex> {
    let last = inner.hard.last.map(|id| id.index).filter(|last| *last >= needed)?;
    let mut suffix = inner.index.clone();
    suffix.keep_suffix();
    let Some(first) = suffix.first().filter(|_| suffix.last() == Some(last)) else { return Some(last) };
    let whole = match inner.purged_flushed {
        Some(_) => first <= needed,
        // Without a purge the first entry ever written is needed, wherever it is.
        None => Some(first) == inner.index.first(),
    };
    (!whole).then(|| LogIndex(first.0 - 1))
}
