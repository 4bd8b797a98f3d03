//! The anchor: whose log this is and where it begins.
//!
//! Invariants: it is moved forward before the segments below it are removed, so a segment missing at or above it is
//! damage, and one present below it is a leftover.
//! Source: the table in `docs/FORMATS.md`.

use crate::{
    error::Error,
    segment::{Disk, SegmentNo, SideFile, layout::FORMAT},
    wire::Take,
};

const MAGIC: [u8; 4] = *b"ANLA";

/// Where the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// The log's own random number, in every crc of a frame.
    pub(crate) store: u64,
    /// The oldest segment that is kept.
    pub(crate) first: SegmentNo,
}

impl Anchor {
    /// An anchor for a new log with this number.
    pub(crate) fn fresh(store: u64) -> Anchor {
        Anchor { store, first: SegmentNo(1) }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.store.to_le_bytes());
        out.extend_from_slice(&self.first.0.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn save(&self, disk: &dyn Disk) -> Result<(), Error> {
        disk.put(SideFile::Anchor, &self.encode()).map_err(Error::io("writing the anchor"))
    }

    /// Reads the anchor; `None` if there is no log yet.
    pub(crate) fn load(disk: &dyn Disk) -> Result<Option<Anchor>, Error> {
        let Some(bytes) = disk.get(SideFile::Anchor).map_err(Error::io("reading the anchor"))? else {
            return Ok(None);
        };
        let damaged = || Error::Anchor { why: "its crc does not hold".into() };
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        let mut take = Take::new(body);
        match (take.array(), take.u16()) {
            (Some(MAGIC), Some(FORMAT)) => {}
            (_, format) => {
                return Err(Error::Format { place: "anchor".into(), why: format!("format {format:?}") });
            }
        }
        let _reserved = take.u16();
        match (take.u64(), take.u64()) {
            (Some(store), Some(first)) => Ok(Some(Anchor { store, first: SegmentNo(first) })),
            _ => Err(damaged()),
        }
    }
}
