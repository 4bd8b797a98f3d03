//! The bytes around the frames: the file's header and the envelope of each entry.
//!
//! ```text
//! header    6f 6b 77 00 | 24 | version info (36 bytes, ours)
//! entry     01 | id u64 | 02 | length u32 | chunk (a frame) | crc32c u32 | 03
//! ```
//!
//! Invariants: ids count from 1 within a file; after the last entry there are only zeroes. The segment library
//! writes this; both segments must give the same bytes (`tests/golden.rs`).
//! Source: the table in `docs/FORMATS.md`.

use crate::{frame::SegmentKey, wire::Take};

/// Bytes of an entry before its chunk.
pub(crate) const BEFORE: usize = 14;
/// Bytes of an entry after its chunk.
pub(crate) const AFTER: usize = 5;
/// Bytes of an entry around its chunk.
pub(crate) const AROUND: usize = BEFORE + AFTER;
/// Bytes of the version info.
pub(crate) const INFO: usize = 36;
/// Bytes of a file before its first entry.
pub(crate) const HEADER: usize = 5 + INFO;

const INFO_MAGIC: [u8; 4] = *b"ANLS";
/// The format of segments, frames and records.
pub(crate) const FORMAT: u16 = 1;

/// What a segment is created with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) store: u64,
    pub(crate) bytes: u64,
    pub(crate) buffer_bytes: usize,
}

/// `magic | format u16 | 0 u16 | store u64 | segment u64 | bytes u64 | crc u32`.
pub(crate) fn version_info(key: SegmentKey, bytes: u64) -> [u8; INFO] {
    let mut info = [0; INFO];
    info[0..4].copy_from_slice(&INFO_MAGIC);
    info[4..6].copy_from_slice(&FORMAT.to_le_bytes());
    info[8..16].copy_from_slice(&key.store.to_le_bytes());
    info[16..24].copy_from_slice(&key.segment.0.to_le_bytes());
    info[24..32].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32fast::hash(&info[..32]);
    info[32..].copy_from_slice(&crc.to_le_bytes());
    info
}

pub(crate) fn header(key: SegmentKey, bytes: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(b"okw\0");
    header[4] = INFO as u8;
    header[5..].copy_from_slice(&version_info(key, bytes));
    header
}

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderState {
    Good,
    Damaged,
    /// Intact, but the file had so many bytes when it was made: no crash takes any away.
    CutShort(u64),
    /// Intact, but of a format this version does not know.
    Newer(u16),
}

pub(crate) fn check_header(segment: &[u8], key: SegmentKey) -> HeaderState {
    let Some(found) = segment.get(..HEADER) else { return HeaderState::Damaged };
    if found == header(key, segment.len() as u64) {
        return HeaderState::Good;
    }
    let info = &found[5..];
    let bytes = Take::new(&info[24..]).u64().filter(|bytes| *bytes > segment.len() as u64);
    if let Some(bytes) = bytes.filter(|bytes| found == header(key, *bytes)) {
        return HeaderState::CutShort(bytes);
    }
    let mut tail = Take::new(&info[32..]);
    match Take::new(&info[4..]).u16() {
        Some(format) if format != FORMAT && tail.u32() == Some(crc32fast::hash(&info[..32])) => {
            HeaderState::Newer(format)
        }
        _ => HeaderState::Damaged,
    }
}

/// The bytes of an entry before its chunk.
pub(crate) fn before(id: u64, chunk_bytes: usize) -> [u8; BEFORE] {
    let mut bytes = [0; BEFORE];
    bytes[0] = 1;
    bytes[1..9].copy_from_slice(&id.to_le_bytes());
    bytes[9] = 2;
    bytes[10..14].copy_from_slice(&(chunk_bytes as u32).to_le_bytes());
    bytes
}

/// The bytes of an entry after its chunk.
pub(crate) fn after(chunk: &[u8]) -> [u8; AFTER] {
    let mut bytes = [0; AFTER];
    bytes[..4].copy_from_slice(&crc32c::crc32c(chunk).to_le_bytes());
    bytes[4] = 3;
    bytes
}

/// What is wrong with the bytes around a chunk. Nothing of ours depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Envelope {
    Good,
    /// Some were never written, as a crash leaves them.
    CutOff,
    Damaged,
}

/// Looks at the envelope of the entry at `at`, whose chunk is good and ends at `chunk_end`.
pub(crate) fn check_envelope(segment: &[u8], at: usize, id: u64, chunk_end: usize) -> Envelope {
    let (Some(chunk), Some(found)) =
        (segment.get(at + BEFORE..chunk_end), segment.get(chunk_end..chunk_end + AFTER))
    else {
        return Envelope::Damaged;
    };
    let wrapped = segment[at..at + BEFORE].iter().chain(found);
    let expected = before(id, chunk.len()).into_iter().chain(after(chunk));
    if wrapped.clone().copied().eq(expected.clone()) {
        Envelope::Good
    } else if wrapped.zip(expected).all(|(found, expected)| *found == 0 || *found == expected) {
        Envelope::CutOff
    } else {
        Envelope::Damaged
    }
}
