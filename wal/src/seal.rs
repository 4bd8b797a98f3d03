//! The side file of a sealed segment, as bytes.
//!
//! Invariants: the whole file is covered by one crc; a damaged or missing one costs a scan, never truth.
//! Source: the table in `docs/FORMATS.md`, pinned by `tests/golden/`.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    entry::{GroupId, LogIndex, Term},
    fold::{Chapter, Seal},
    frame::{Link, SegmentKey, Sequence},
    index::{Index, Run},
    segment::{SegmentNo, Spot, layout::FORMAT},
    wire::{Take, put_hard},
};

const MAGIC: [u8; 4] = *b"ANLX";
const STATED: u8 = 1;
const KNOWN: u8 = 2;

pub(crate) fn encode(seal: &Seal, store: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&store.to_le_bytes());
    out.extend_from_slice(&seal.segment.0.to_le_bytes());
    for link in [seal.before, seal.last] {
        out.extend_from_slice(&link.sequence.0.to_le_bytes());
        out.extend_from_slice(&link.crc.to_le_bytes());
    }
    out.extend_from_slice(&seal.end.to_le_bytes());
    out.extend_from_slice(&seal.sealed_unix_ms.to_le_bytes());
    out.extend_from_slice(&(seal.groups.len() as u32).to_le_bytes());
    for (group, chapter) in &seal.groups {
        out.extend_from_slice(&group.0.to_le_bytes());
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(flag(chapter.stated, STATED) | flag(chapter.known, KNOWN));
        out.extend_from_slice(&chapter.older_below.0.to_le_bytes());
        put_hard(&mut out, &chapter.hard);
        out.extend_from_slice(&(chapter.index.runs.len() as u32).to_le_bytes());
        for run in &chapter.index.runs {
            out.extend_from_slice(&run.first.0.to_le_bytes());
            out.extend_from_slice(&run.term.0.to_le_bytes());
            out.extend_from_slice(&run.leader.to_le_bytes());
            out.extend_from_slice(&(run.spots.len() as u32).to_le_bytes());
            for spot in &run.spots {
                out.extend_from_slice(&spot.offset.to_le_bytes());
                out.extend_from_slice(&spot.bytes.to_le_bytes());
            }
        }
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Reads a seal; `None` unless every byte of it is as it was written, for this segment of this log.
pub(crate) fn decode(bytes: &[u8], key: SegmentKey) -> Option<Seal> {
    let (bytes, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(bytes) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut take = Take::new(bytes);
    if take.array()? != MAGIC || take.u16()? != FORMAT || take.u16()? != 0 {
        return None;
    }
    if take.u64()? != key.store || take.u64()? != key.segment.0 {
        return None;
    }
    let before = Link { sequence: Sequence(take.u64()?), crc: take.u32()? };
    let last = Link { sequence: Sequence(take.u64()?), crc: take.u32()? };
    let (end, sealed_unix_ms) = (take.u64()?, take.u64()?);
    let mut groups = BTreeMap::new();
    for _ in 0..take.u32()? {
        let group = GroupId(take.u32()?);
        groups.insert(group, chapter(&mut take, key.segment)?);
    }
    take.is_empty().then_some(Seal { segment: key.segment, before, last, end, sealed_unix_ms, groups })
}

fn chapter(take: &mut Take<'_>, segment: SegmentNo) -> Option<Chapter> {
    let flags = take.u8().filter(|flags| flags & !(STATED | KNOWN) == 0)?;
    let older_below = LogIndex(take.u64()?);
    let hard = take.hard()?;
    let mut runs = VecDeque::new();
    for _ in 0..take.u32()? {
        let (first, term, leader) = (LogIndex(take.u64()?), Term(take.u64()?), take.u64()?);
        let mut spots = VecDeque::new();
        for _ in 0..take.u32()? {
            spots.push_back(Spot { offset: take.u32()?, bytes: take.u32()? });
        }
        runs.push_back(Run { segment, first, term, leader, spots });
    }
    let (stated, known) = (flags & STATED != 0, flags & KNOWN != 0);
    Some(Chapter { older_below, stated, known, hard, index: Index { runs } })
}
