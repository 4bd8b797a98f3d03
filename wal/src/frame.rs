//! A frame: the records of one commit, numbered, chained and checked.
//!
//! ```text
//! magic u32 | body length u32 | sequence u64 | crc of the frame before u32 | crc u32 | header crc u32 | records
//! ```
//!
//! Invariants: a frame's crc is seeded with the store, the segment and its own offset, so that a frame of another
//! log, another segment or another place (also one inside a payload) never passes. It covers the header and the
//! crc of each record, which covers the record: every byte is covered, and each is read once. The header has a crc
//! of its own, so a flipped length can't mislead.
//! Not here: where frames are looked for (see `scan`).
//! Source: the table in `docs/FORMATS.md`.

use crate::{
    record::{NotARecord, RawRecord},
    segment::SegmentNo,
    wire::Take,
};

/// Bytes before a frame's records.
pub(crate) const HEADER: usize = 28;
/// The first four bytes of each frame: `ANLF`.
pub(crate) const MAGIC: [u8; 4] = *b"ANLF";

/// The number of a frame, counted over the whole life of the log from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sequence(pub(crate) u64);

/// A frame's number and crc: what the next frame must name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) sequence: Sequence,
    pub(crate) crc: u32,
}

/// What makes a segment's crcs its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentKey {
    pub(crate) store: u64,
    pub(crate) segment: SegmentNo,
}

impl SegmentKey {
    fn hasher(self, offset: u64) -> crc32fast::Hasher {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.store.to_le_bytes());
        crc.update(&self.segment.0.to_le_bytes());
        crc.update(&offset.to_le_bytes());
        crc
    }
}

/// A frame under construction; its buffers are kept from one frame to the next.
#[derive(Default)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    digests: Vec<u8>,
}

impl FrameBuffer {
    pub(crate) fn begin(&mut self) {
        self.bytes.clear();
        self.bytes.resize(HEADER, 0);
        self.digests.clear();
    }

    /// Bytes so far, header included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, head: &[u8], payload: &[u8], crc: u32) {
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(payload);
        self.digests.extend_from_slice(&crc.to_le_bytes());
    }

    /// Completes the frame that will start at `offset`; gives its bytes and its link.
    pub(crate) fn finish(&mut self, key: SegmentKey, offset: u64, before: Link) -> (&[u8], Link) {
        let sequence = Sequence(before.sequence.0 + 1);
        let body = u32::try_from(self.bytes.len() - HEADER).expect("bounded by the segment size");
        let head = &mut self.bytes[..HEADER];
        head[0..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&body.to_le_bytes());
        head[8..16].copy_from_slice(&sequence.0.to_le_bytes());
        head[16..20].copy_from_slice(&before.crc.to_le_bytes());
        let mut crc = key.hasher(offset);
        crc.update(&head[..20]);
        crc.update(&self.digests);
        let crc = crc.finalize();
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        let mut header_crc = key.hasher(offset);
        header_crc.update(&head[..24]);
        let header_crc = header_crc.finalize();
        head[24..28].copy_from_slice(&header_crc.to_le_bytes());
        (&self.bytes, Link { sequence, crc })
    }
}

/// A frame's header whose own crc holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) sequence: Sequence,
    pub(crate) before_crc: u32,
    pub(crate) crc: u32,
    pub(crate) body_bytes: usize,
}

/// Reads the header at `offset`; `None` unless its crc holds.
pub(crate) fn header(segment: &[u8], key: SegmentKey, offset: usize) -> Option<Header> {
    let bytes = segment.get(offset..offset.checked_add(HEADER)?)?;
    if bytes[..4] != MAGIC {
        return None;
    }
    let mut crc = key.hasher(offset as u64);
    crc.update(&bytes[..24]);
    let mut take = Take::new(&bytes[4..]);
    let body_bytes = take.u32()? as usize;
    let found =
        Header { body_bytes, sequence: Sequence(take.u64()?), before_crc: take.u32()?, crc: take.u32()? };
    (take.u32()? == crc.finalize()).then_some(found)
}

/// A frame of which every crc holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) link: Link,
    pub(crate) before_crc: u32,
    /// Where its records start in the segment.
    pub(crate) body_at: usize,
    pub(crate) body: &'a [u8],
}

/// Why there is no frame at an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadFrame<'a> {
    /// The header, if at least that is intact.
    pub(crate) header: Option<Header>,
    /// The first record that is not intact, and where it starts.
    pub(crate) record: Option<(usize, Option<RawRecord<'a>>)>,
}

/// Reads and checks the frame at `offset`.
pub(crate) fn frame(segment: &[u8], key: SegmentKey, offset: usize) -> Result<Frame<'_>, BadFrame<'_>> {
    let Some(found) = header(segment, key, offset) else {
        return Err(BadFrame { header: None, record: None });
    };
    let body_at = offset + HEADER;
    let Some(body) = segment.get(body_at..body_at.saturating_add(found.body_bytes)) else {
        return Err(BadFrame { header: Some(found), record: None });
    };
    let mut crc = key.hasher(offset as u64);
    crc.update(&segment[offset..offset + 20]);
    let mut at = 0;
    while at < body.len() {
        let record = RawRecord::first_of(&body[at..]);
        match record.filter(RawRecord::crc_holds) {
            Some(record) => {
                crc.update(&record.stored_crc().to_le_bytes());
                at += record.len();
            }
            None => return Err(BadFrame { header: Some(found), record: Some((body_at + at, record)) }),
        }
    }
    if crc.finalize() != found.crc {
        return Err(BadFrame { header: Some(found), record: None });
    }
    let link = Link { sequence: found.sequence, crc: found.crc };
    Ok(Frame { link, before_crc: found.before_crc, body_at, body })
}

impl<'a> Frame<'a> {
    /// Where the frame ends in the segment.
    pub(crate) fn end(&self) -> usize {
        self.body_at + self.body.len()
    }

    /// Its records, each with its offset in the segment.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, RawRecord<'a>)> + use<'a> {
        let (body, body_at) = (self.body, self.body_at);
        let mut at = 0;
        std::iter::from_fn(move || {
            let record = RawRecord::first_of(body.get(at..).filter(|rest| !rest.is_empty())?)?;
            let offset = body_at + at;
            at += record.len();
            Some((offset, record))
        })
    }

    /// Whether all its records are of kinds this version knows.
    pub(crate) fn known(&self) -> Result<(), (usize, NotARecord)> {
        self.records().try_for_each(|(offset, record)| record.decode().map(drop).map_err(|why| (offset, why)))
    }
}
