//! Checking and printing a stopped node's log.
//!
//! Invariants: it never writes; every byte that belongs to the log (anchor, headers, frames, seals) is checked, and what
//! is wrong is named by segment and offset; damage does not end the check, except where nothing can be read any more.
//! Not here: repair (peers hold the truth).

use std::{io, path::Path};

use crate::{
    anchor::Anchor,
    entry::GroupId,
    error::Error,
    fold::{Fold, Seal},
    frame::{Link, SegmentKey},
    record::Event,
    scan::{Damage, scan},
    seal,
    segment::{Disk, SegmentNo, SideFile, folder::Folder, memory::MemoryDisk},
};

/// What checking a log found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Segments that hold frames.
    pub segments: u64,
    /// Good frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Entries among them.
    pub entries: u64,
    /// Bytes of all records.
    pub record_bytes: u64,
    /// Segments without a side file: the one written last, or several after crashes.
    pub unsealed: u64,
    /// Segments that end in a write that was cut off, `(segment, offset, bytes)`: never acknowledged, no damage.
    pub torn: Vec<(u64, u64, u64)>,
    /// Where bytes of the log are not those that were written.
    pub damage: Vec<Damage>,
    /// Where the bytes around a good frame are wrong; nothing depends on them, but the disk is not well.
    pub envelopes: Vec<Damage>,
}

impl VerifyReport {
    /// Whether every byte is as it was written.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty() && self.envelopes.is_empty()
    }
}

/// One record as `dump` shows it.
#[derive(Clone, Debug)]
pub struct DumpedRecord<'a> {
    /// The number of its segment.
    pub segment: u64,
    /// The number of its frame.
    pub sequence: u64,
    /// Where it starts in the segment.
    pub offset: u64,
    /// Its group.
    pub group: GroupId,
    /// What it says.
    pub event: Event,
    /// An entry's payload; empty otherwise.
    pub payload: &'a [u8],
}

/// Checks the log in `dir`, which no process may have open.
///
/// Errors: `Locked`, `Io`, `Format` (an unknown format; a damaged anchor, without which nothing can be checked).
pub fn verify(dir: &Path) -> Result<VerifyReport, Error> {
    walk(&Folder::open_read_only(dir)?, |_| {})
}

/// The same for a log in memory.
///
/// Errors: as `verify`.
pub fn verify_in_memory(disk: &MemoryDisk) -> Result<VerifyReport, Error> {
    walk(&disk.handle(), |_| {})
}

/// Gives every intact record of the log in `dir` to `on`, in log order; then says what `verify` would.
///
/// Errors: as `verify`.
pub fn dump(dir: &Path, on: impl FnMut(DumpedRecord<'_>)) -> Result<VerifyReport, Error> {
    walk(&Folder::open_read_only(dir)?, on)
}

fn walk(disk: &dyn Disk, on: impl FnMut(DumpedRecord<'_>)) -> Result<VerifyReport, Error> {
    let Some(anchor) = Anchor::load(disk)? else {
        return Err(Error::Format { place: "anchor".into(), why: "it is missing; this is no log".into() });
    };
    let known = anchor.first == SegmentNo(1);
    let mut walk = Walk {
        disk,
        anchor,
        fold: known.then(Fold::default),
        end: None,
        report: VerifyReport::default(),
        on,
    };
    let present = disk.list().map_err(Error::io("listing the log's segments"))?;
    for number in present.into_iter().filter(|number| *number >= anchor.first) {
        walk.segment(number)?;
    }
    if walk.end.is_none() && !known {
        walk.damaged(anchor.first, 0, "the segment is missing".into());
    }
    Ok(walk.report)
}

struct Walk<'a, F> {
    disk: &'a dyn Disk,
    anchor: Anchor,
    /// The log so far, unless it begins with segments that are gone and no seal has told yet.
    fold: Option<Fold>,
    /// The last segment with frames, where it ends, and its last frame.
    end: Option<(SegmentNo, u64, Link)>,
    report: VerifyReport,
    on: F,
}

impl<F: FnMut(DumpedRecord<'_>)> Walk<'_, F> {
    fn damaged(&mut self, segment: SegmentNo, offset: u64, why: String) {
        self.report.damage.push(Damage::at(segment, offset, why));
    }

    fn segment(&mut self, number: SegmentNo) -> Result<(), Error> {
        let doing = || format!("reading segment {}", number.0);
        let key = SegmentKey { store: self.anchor.store, segment: number };
        let bytes = match self.disk.open(number).and_then(|file| file.read_all()) {
            Ok(bytes) => bytes,
            // A folder without a file is half a segment, made ahead and never used.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(doing())(error)),
        };
        let stored = self.disk.get(SideFile::Seal(number)).map_err(Error::io(doing()))?;
        let seal = stored.as_deref().and_then(|bytes| seal::decode(bytes, key));

        let mut fold = self.fold.take();
        let (report, on) = (&mut self.report, &mut self.on);
        let found = scan(&bytes, key, |found| {
            report.records += 1;
            report.record_bytes += u64::from(found.spot.bytes);
            let entry = matches!(found.event, Event::Entry(_) | Event::Again(_));
            report.entries += u64::from(entry);
            let folded = fold.as_mut().map_or(Ok(()), |fold| found.fold_into(fold, number));
            on(DumpedRecord {
                segment: number.0,
                sequence: found.sequence.0,
                offset: u64::from(found.spot.offset),
                group: found.group,
                event: found.event,
                payload: if entry { &found.bytes[crate::record::ENTRY_HEAD..] } else { &[] },
            });
            folded
        })?;

        let unused = found.frames == 0 && found.damage.is_empty() && seal.is_none();
        if found.header_damaged {
            self.damaged(number, 0, "the header of the file is not as it was written".into());
        }
        let short = seal.as_ref().and_then(|seal| found.short_of(seal));
        if found.torn_bytes > 0 && short.is_none() {
            self.report.torn.push((number.0, found.end, found.torn_bytes));
        }
        if unused {
            self.fold = fold;
            return Ok(());
        }
        self.chain(number, found.before.or(seal.as_ref().map(|seal| seal.before)));
        self.report.segments += 1;
        self.report.frames += found.frames;
        self.report.unsealed += u64::from(stored.is_none());
        let intact = found.damage.is_empty() && short.is_none();
        let (last, end) = (found.last, found.end);
        let spans = found.damage.into_iter().chain(short);
        self.report.damage.extend(spans.map(|span| span.named_by(seal.as_ref())));
        let envelope =
            |offset| Damage::at(number, offset, "the bytes around the frame are not as they were written");
        self.report.envelopes.extend(found.envelopes.into_iter().map(envelope));
        if stored.is_some() && seal.is_none() {
            self.damaged(number, 0, "the seal's crc does not hold".into());
        }
        if let Some(seal) = &seal
            && intact
        {
            self.compare(seal, fold.as_ref(), end);
        }
        let link = seal.as_ref().map(|seal| seal.last).or(last).unwrap_or_default();
        self.end = Some((number, end, link));
        // After damage only a seal knows how things stand.
        self.fold = match (seal, fold) {
            (Some(seal), _) => {
                let mut fold = Fold::default();
                fold.resume(&seal);
                Some(fold)
            }
            (None, Some(mut fold)) if intact => {
                fold.seal();
                Some(fold)
            }
            _ => None,
        };
        Ok(())
    }

    /// Checks that a segment goes on where the one before it ended.
    fn chain(&mut self, number: SegmentNo, before: Option<Link>) {
        let expected = self.end.map_or(self.anchor.first, |(segment, ..)| segment.next());
        if number != expected {
            self.damaged(expected, 0, "the segment is missing or holds no frame".into());
        } else if let (Some((segment, offset, link)), Some(before)) = (self.end, before)
            && link != before
        {
            let (last, next) = (link.sequence.0, before.sequence.0 + 1);
            let why = format!("ends with frame {last}, but the next segment starts with frame {next}");
            self.damaged(segment, offset, why);
        }
    }

    /// Checks a seal against the records of its segment.
    fn compare(&mut self, seal: &Seal, fold: Option<&Fold>, end: u64) {
        let Some(mut fold) = fold.cloned() else { return };
        // Of a log whose beginning is gone, a group counts once its whole state was logged again.
        let whole = self.anchor.first == SegmentNo(1);
        let records = fold.seal();
        let known = records.iter().filter(|(_, chapter)| whole || chapter.known);
        let agree = known.clone().all(|(group, chapter)| seal.groups.get(group) == Some(chapter));
        if !agree || (whole && records.len() != seal.groups.len()) {
            self.damaged(seal.segment, end, "the seal says other things than the records".into());
        }
    }
}
