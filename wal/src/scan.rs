//! One segment read from front to back: its frames, its end, its damage.
//!
//! ```text
//! header | entry | entry | bad | entry | torn? | zeroes
//! ```
//!
//! Invariants: a bad frame with a good later one behind it is damage, never an end; bytes beyond the one frame that
//! can be in flight are damage, and so is a file that has become shorter; records of an unknown kind are refused. The scan is pure: bytes in, findings out.
//! Not here: what damage means for whom (see `recovery`, `verify`).

use crate::{
    entry::{GroupId, LogIndex},
    error::Error,
    fold::{Fold, Seal},
    frame::{self, BadFrame, Frame, Link, SegmentKey, Sequence},
    record::{Event, NotARecord},
    segment::{
        SegmentNo, Spot,
        layout::{self, AFTER, BEFORE, Envelope, HEADER, HeaderState},
    },
};

/// A place where bytes are not those that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's number.
    pub segment: u64,
    /// The byte at which the damaged frame or record starts.
    pub offset: u64,
    /// The group concerned, if it can be told.
    pub group: Option<GroupId>,
    /// The entry concerned, if it can be told.
    pub index: Option<LogIndex>,
    /// What did not match.
    pub why: String,
}

impl Damage {
    /// Damage that is not told of one entry.
    pub(crate) fn at(segment: SegmentNo, offset: u64, why: impl Into<String>) -> Damage {
        Damage { segment: segment.0, offset, group: None, index: None, why: why.into() }
    }
}

impl From<Damage> for Error {
    fn from(found: Damage) -> Error {
        let Damage { segment, offset, group, index, why } = found;
        Error::Corrupt { segment, offset, group, index, why }
    }
}

/// Damage, and where the next good bytes start.
#[derive(Clone, Debug)]
pub(crate) struct BadSpan {
    pub(crate) damage: Damage,
    until: u64,
}

impl BadSpan {
    /// The damage, with the entry that lay there if the segment's seal knows one.
    pub(crate) fn named_by(self, seal: Option<&Seal>) -> Damage {
        let mut damage = self.damage;
        let Some(seal) = seal else { return damage };
        let within = |spot: Spot| {
            let (start, end) = (u64::from(spot.offset), u64::from(spot.offset) + u64::from(spot.bytes));
            end > damage.offset && start < self.until
        };
        let named = seal.groups.iter().flat_map(|(group, chapter)| {
            chapter
                .index
                .all()
                .filter(|at| within(at.spot))
                .map(move |at| (at.spot.offset, *group, at.id.index))
        });
        if let Some((_, group, index)) = named.min() {
            damage.group = Some(group);
            damage.index = Some(index);
        }
        damage
    }
}

/// What a scan found beside the records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    /// The header of the file is not as it was written; the frames do not depend on it.
    pub(crate) header_damaged: bool,
    /// What the first frame names as the one before it.
    pub(crate) before: Option<Link>,
    /// The last good frame.
    pub(crate) last: Option<Link>,
    /// Where the entries end.
    pub(crate) end: u64,
    pub(crate) frames: u64,
    pub(crate) records: u64,
    /// Nonzero bytes after the end, as a crash leaves them; 1 if only the last entry's own end is missing.
    pub(crate) torn_bytes: u64,
    pub(crate) damage: Vec<BadSpan>,
    /// Entries whose frame is good but whose wrapping is not.
    pub(crate) envelopes: Vec<u64>,
}

/// A record as the scan hands it out.
pub(crate) struct Found<'a> {
    pub(crate) group: GroupId,
    pub(crate) event: Event,
    pub(crate) spot: Spot,
    pub(crate) bytes: &'a [u8],
    pub(crate) sequence: Sequence,
}

impl Found<'_> {
    /// Folds the record in; an entry that does not follow the last one is damage.
    pub(crate) fn fold_into(&self, fold: &mut Fold, segment: SegmentNo) -> Result<(), Damage> {
        fold.apply(self.group, &self.event, segment, self.spot).map_err(|wrong| Damage {
            group: Some(self.group),
            index: Some(wrong.got.index),
            ..Damage::at(
                segment,
                u64::from(self.spot.offset),
                format!("the entry does not follow {:?}", wrong.last),
            )
        })
    }
}

/// Scans a segment, giving each record of each good frame to `on`.
pub(crate) fn scan(
    segment: &[u8],
    key: SegmentKey,
    mut on: impl FnMut(Found<'_>) -> Result<(), Damage>,
) -> Result<Scan, Error> {
    let mut scan = Scan { end: HEADER as u64, ..Scan::default() };
    let mut made_with = None;
    match layout::check_header(segment, key) {
        HeaderState::Good => {}
        HeaderState::Damaged => scan.header_damaged = true,
        HeaderState::CutShort(bytes) => made_with = Some(bytes),
        HeaderState::Newer(format) => {
            let place = format!("segment {}", key.segment.0);
            return Err(Error::Format { place, why: format!("format {format} is not known") });
        }
    }
    let mut at = HEADER;
    // After damage the chain can't be checked across it.
    let mut chained = true;
    // A crash may cut the last entry off behind its frame, which is then as good as any.
    let mut last_cut_off = false;
    loop {
        match frame::frame(segment, key, at + BEFORE) {
            Ok(found) => {
                scan.good_frame(&found, key, at, chained)?;
                hand_out(segment, key, &found, &mut scan, &mut on)?;
                // Entries and frames are counted alike, so a frame's number tells its entry's.
                let entry_id =
                    scan.before.map(|before| found.link.sequence.0.wrapping_sub(before.sequence.0));
                let envelope = entry_id.map(|id| layout::check_envelope(segment, at, id, found.end()));
                last_cut_off = envelope == Some(Envelope::CutOff);
                if envelope.is_some_and(|envelope| envelope != Envelope::Good) {
                    scan.envelopes.push(at as u64);
                }
                at = found.end() + AFTER;
                scan.end = at as u64;
                chained = true;
            }
            Err(bad) => {
                let rest = segment.get(at..).unwrap_or_default();
                let Some(written) = rest.iter().rposition(|byte| *byte != 0).map(|last| last + 1) else {
                    break;
                };
                if let Some(later) = later_frame(segment, key, at, scan.last) {
                    let damage = describe(&bad, key, at, "a good frame follows");
                    scan.damage.push(BadSpan { damage, until: later as u64 });
                    at = later - BEFORE;
                    chained = false;
                    continue;
                }
                let beyond =
                    |header: frame::Header| written > BEFORE + frame::HEADER + header.body_bytes + AFTER;
                if bad.header.is_some_and(beyond) {
                    let why = "bytes follow the one frame that can be in flight";
                    let damage = describe(&bad, key, at, why);
                    scan.damage.push(BadSpan { damage, until: segment.len() as u64 });
                }
                scan.torn_bytes = written as u64;
                break;
            }
        }
    }
    // Without a frame it may never have been handed out: a crash interrupts the making of a segment anywhere.
    if let Some(bytes) = made_with.filter(|_| scan.frames > 0) {
        let why = format!("the file ends here, it was made with {bytes} bytes");
        let damage = Damage::at(key.segment, segment.len() as u64, why);
        scan.damage.push(BadSpan { damage, until: bytes });
    }
    if last_cut_off {
        scan.envelopes.pop();
        scan.torn_bytes = scan.torn_bytes.max(1);
    }
    Ok(scan)
}

impl Scan {
    /// What the segment's seal knows to have been written at the end, and the scan took for cut off.
    pub(crate) fn short_of(&self, seal: &Seal) -> Option<BadSpan> {
        if seal.end == self.end && Some(seal.last) == self.last {
            return None;
        }
        let why =
            format!("the seal says the segment ends at {} with frame {}", seal.end, seal.last.sequence.0);
        let damage = Damage::at(seal.segment, self.end, why);
        Some(BadSpan { damage, until: seal.end })
    }

    fn good_frame(
        &mut self,
        found: &Frame<'_>,
        key: SegmentKey,
        at: usize,
        chained: bool,
    ) -> Result<(), Error> {
        if let Err((offset, why)) = found.known() {
            let why = match why {
                NotARecord::UnknownKind(kind) => format!("record kind {kind} is not known"),
                NotARecord::Damaged => "a record's body does not fit its kind".to_string(),
            };
            return Err(Error::Format { place: format!("segment {} offset {offset}", key.segment.0), why });
        }
        let broken = self
            .last
            .is_some_and(|last| last.sequence.0 + 1 != found.link.sequence.0 || last.crc != found.before_crc);
        if chained && broken {
            let why = format!("frame {} does not follow the one before it", found.link.sequence.0);
            let damage = Damage::at(key.segment, at as u64, why);
            self.damage.push(BadSpan { damage, until: at as u64 });
        }
        if self.frames == 0 && chained {
            let sequence = Sequence(found.link.sequence.0.saturating_sub(1));
            self.before = Some(Link { sequence, crc: found.before_crc });
        }
        self.last = Some(found.link);
        self.frames += 1;
        Ok(())
    }
}

fn hand_out(
    segment: &[u8],
    key: SegmentKey,
    found: &Frame<'_>,
    scan: &mut Scan,
    on: &mut impl FnMut(Found<'_>) -> Result<(), Damage>,
) -> Result<(), Error> {
    for (offset, record) in found.records() {
        let Ok(event) = record.decode() else {
            let place = format!("segment {} offset {offset}", key.segment.0);
            return Err(Error::Format { place, why: "a record changed while it was read".into() });
        };
        let spot = Spot { offset: offset as u32, bytes: record.len() as u32 };
        let bytes = &segment[offset..offset + record.len()];
        scan.records += 1;
        if let Err(damage) =
            on(Found { group: record.group(), event, spot, bytes, sequence: found.link.sequence })
        {
            scan.damage.push(BadSpan { damage, until: offset as u64 });
        }
    }
    Ok(())
}

/// The next good frame after `at` that the log wrote after `last`.
fn later_frame(segment: &[u8], key: SegmentKey, at: usize, last: Option<Link>) -> Option<usize> {
    let start = at + BEFORE + 1;
    let rest = segment.get(start..)?;
    let mut from = 0;
    while let Some(found) = find(&rest[from..], &frame::MAGIC) {
        let offset = start + from + found;
        if let Ok(good) = frame::frame(segment, key, offset)
            && last.is_none_or(|last| good.link.sequence > last.sequence)
        {
            return Some(offset);
        }
        from += found + 1;
    }
    None
}

fn find(bytes: &[u8], wanted: &[u8; 4]) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = bytes.get(from..)?.iter().position(|byte| *byte == wanted[0]) {
        if bytes.get(from + found..from + found + 4) == Some(wanted) {
            return Some(from + found);
        }
        from += found + 1;
    }
    None
}

fn describe(bad: &BadFrame<'_>, key: SegmentKey, at: usize, tail: &str) -> Damage {
    let Some((offset, record)) = bad.record else {
        let part = if bad.header.is_some() { "frame's crc" } else { "frame's header" };
        let why = format!("the {part} does not hold; {tail}");
        return Damage::at(key.segment, at as u64, why);
    };
    // The record is damaged, so its own words are a hint and no more.
    let group = record.map(|record| record.group());
    let index = record.and_then(|record| match record.decode() {
        Ok(Event::Entry(id) | Event::Again(id)) => Some(id.index),
        _ => None,
    });
    let why = format!("a record's crc does not hold; {tail}");
    Damage { group, index, ..Damage::at(key.segment, offset as u64, why) }
}
