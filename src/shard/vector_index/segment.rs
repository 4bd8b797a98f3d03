//! A sealed graph and its vectors: one checksummed file, mapped into memory.
//!
//! Invariants: a file is written whole (temporary name, fsync, rename, fsync of the folder) and never changed;
//! every byte is checked against its checksum before a search may use it, so a damaged file is an error, never a
//! crash or a wrong answer; links and entries are checked to name rows.
//! Deliberately absent: which rows are live (the slot table tells), when to build or merge.
//! Layout: `docs/FORMATS.md`, pinned by `tests/golden/segment.bin`.

use super::{
    build::Built,
    graph::{Graph, NONE},
    kernel::Metric,
};
use crate::model::{Distance, Position};
use memmap2::Mmap;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

/// Whose vector a row is: the slot, and the position that wrote the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) slot: u32,
    pub(crate) version: Position,
}

/// What a segment is made of.
pub(crate) struct Content<'a> {
    pub(crate) distance: Distance,
    pub(crate) dim: usize,
    pub(crate) rows: &'a [Row],
    /// `[rows, dim]`.
    pub(crate) vectors: &'a [f32],
    pub(crate) built: &'a Built,
}

/// A segment that was checked whole.
pub(crate) struct Segment {
    map: Mmap,
    head: Head,
    metric: Metric,
    rows: Vec<Row>,
}

/// A file that is not a segment, or not any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SegmentError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its bytes are not what was written.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

const MAGIC: &[u8; 8] = b"ANNALSEG";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const ALIGN: usize = 64;
const ROW_BYTES: usize = 16;

/// The first [`HEAD_BYTES`] of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Head {
    distance: Distance,
    dim: usize,
    degree: usize,
    entries: usize,
    rows: usize,
    /// Of the sections, in the order of the file: vectors, adjacency, rows, entries.
    checksums: [u32; 4],
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = Vec::with_capacity(HEAD_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        let distance = match self.distance {
            Distance::Cosine => 0u32,
            Distance::Dot => 1,
            Distance::Euclid => 2,
            Distance::Manhattan => 3,
        };
        for word in [distance, self.dim as u32, self.degree as u32, self.entries as u32] {
            out.extend(word.to_le_bytes());
        }
        out.extend((self.rows as u64).to_le_bytes());
        for checksum in self.checksums {
            out.extend(checksum.to_le_bytes());
        }
        out.resize(HEAD_BYTES - 4, 0);
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out.try_into().expect("filled to its size")
    }

    fn decode(bytes: &[u8]) -> Result<Self, SegmentError> {
        let head = bytes.get(..HEAD_BYTES).ok_or(SegmentError::Damaged("shorter than its head"))?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if crc32fast::hash(&head[..HEAD_BYTES - 4]) != word(HEAD_BYTES - 4) {
            return Err(SegmentError::Damaged("checksum of the head"));
        }
        if &head[..8] != MAGIC || word(8) != VERSION {
            return Err(SegmentError::Damaged("another format"));
        }
        let distance = match word(12) {
            0 => Distance::Cosine,
            1 => Distance::Dot,
            2 => Distance::Euclid,
            3 => Distance::Manhattan,
            _ => return Err(SegmentError::Damaged("unknown distance")),
        };
        Ok(Head {
            distance,
            dim: word(16) as usize,
            degree: word(20) as usize,
            entries: word(24) as usize,
            rows: u64::from_le_bytes(head[28..36].try_into().expect("eight bytes")) as usize,
            checksums: [word(36), word(40), word(44), word(48)],
        })
    }

    /// Holds every section of a file against its checksum.
    fn check(&self, file: &[u8]) -> Result<(), SegmentError> {
        let (sections, _) = self.sections().ok_or(SegmentError::Damaged("sizes"))?;
        for (section, checksum) in sections.into_iter().zip(self.checksums) {
            if crc32fast::hash(&file[section]) != checksum {
                return Err(SegmentError::Damaged("checksum of a section"));
            }
        }
        Ok(())
    }

    /// Where each section lies, and where the file ends; `None` if that is beyond any file.
    fn sections(&self) -> Option<([std::ops::Range<usize>; 4], usize)> {
        let sizes = [
            self.rows.checked_mul(self.dim)?.checked_mul(4)?,
            self.rows.checked_mul(self.degree)?.checked_mul(4)?,
            self.rows.checked_mul(ROW_BYTES)?,
            self.entries.checked_mul(4)?,
        ];
        let mut end = HEAD_BYTES;
        let mut sections = [const { 0..0 }; 4];
        for (section, size) in sections.iter_mut().zip(sizes) {
            let start = end.checked_next_multiple_of(ALIGN)?;
            end = start.checked_add(size)?;
            *section = start..end;
        }
        Some((sections, end))
    }
}

impl Segment {
    /// Writes a segment; it is there whole and durable when this returns, or not at all.
    pub(crate) fn write(path: &Path, content: &Content<'_>) -> Result<(), SegmentError> {
        let rows: Vec<u8> = content
            .rows
            .iter()
            .flat_map(|row| [&row.slot.to_le_bytes()[..], &[0; 4], &row.version.0.to_le_bytes()].concat())
            .collect();
        let bodies: [&[u8]; 4] = [
            bytemuck::cast_slice(content.vectors),
            bytemuck::cast_slice(&content.built.adjacency),
            &rows,
            bytemuck::cast_slice(&content.built.entries),
        ];
        let head = Head {
            distance: content.distance,
            dim: content.dim,
            degree: content.built.degree as usize,
            entries: content.built.entries.len(),
            rows: content.rows.len(),
            checksums: bodies.map(crc32fast::hash),
        };
        let (sections, _) = head.sections().ok_or(SegmentError::Damaged("larger than any file"))?;
        let new = path.with_extension("new");
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&new)?);
        out.write_all(&head.encode())?;
        let mut at = HEAD_BYTES;
        for (section, body) in sections.into_iter().zip(bodies) {
            assert_eq!(section.len(), body.len(), "every section has its size");
            out.write_all(&[0; ALIGN][..section.start - at])?;
            out.write_all(body)?;
            at = section.end;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&new, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// Maps a file and checks every byte of it.
    pub(crate) fn open(path: &Path) -> Result<Self, SegmentError> {
        let file = File::open(path)?;
        #[expect(
            unsafe_code,
            reason = "a mapped file; nothing writes to a segment once it is renamed into place"
        )]
        // SAFETY: sealed files are only ever deleted, which keeps a mapping alive.
        let map = unsafe { Mmap::map(&file)? };
        let head = Head::decode(&map)?;
        let (sections, end) = head.sections().ok_or(SegmentError::Damaged("sizes"))?;
        if map.len() != end {
            return Err(SegmentError::Damaged("length"));
        }
        head.check(&map)?;
        let rows = map[sections[2].clone()]
            .as_chunks::<ROW_BYTES>()
            .0
            .iter()
            .map(|row| Row {
                slot: u32::from_le_bytes(row[..4].try_into().expect("four bytes")),
                version: Position(u64::from_le_bytes(row[8..].try_into().expect("eight bytes"))),
            })
            .collect();
        let segment = Segment { metric: Metric::of(head.distance), rows, head, map };
        let graph = segment.graph();
        let names_a_row = |row: &u32| (*row as usize) < head.rows;
        if !graph.entries.iter().all(names_a_row)
            || !graph.adjacency.iter().all(|link| *link == NONE || names_a_row(link))
        {
            return Err(SegmentError::Damaged("a link to no row"));
        }
        Ok(segment)
    }

    fn section<T: bytemuck::AnyBitPattern>(&self, number: usize) -> &[T] {
        let (sections, _) = self.head.sections().expect("checked when it was opened");
        bytemuck::cast_slice(&self.map[sections[number].clone()])
    }

    /// The graph over the rows.
    pub(crate) fn graph(&self) -> Graph<'_> {
        Graph {
            metric: self.metric,
            dim: self.head.dim,
            vectors: self.section(0),
            degree: self.head.degree,
            adjacency: self.section(1),
            entries: self.section(3),
        }
    }

    /// Whose vectors the rows are, by row.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A row's vector `[dim]`.
    pub(crate) fn vector(&self, row: u32) -> &[f32] {
        &self.section(0)[row as usize * self.head.dim..][..self.head.dim]
    }

    /// Its distance and dimension: a segment of another schema is of no use.
    pub(crate) fn fits(&self, distance: Distance, dim: usize) -> bool {
        self.head.distance == distance && self.head.dim == dim
    }

    /// Checks every byte again.
    pub(crate) fn verify(&self) -> Result<(), SegmentError> {
        if Head::decode(&self.map)? != self.head {
            return Err(SegmentError::Damaged("the head is another"));
        }
        self.head.check(&self.map)
    }

    /// The whole file, as it is mapped: it can be read when it has no name any more.
    pub(crate) fn file_bytes(&self) -> &[u8] {
        &self.map
    }

    /// The checksum of the head, which holds those of all else.
    pub(crate) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.map[..HEAD_BYTES - 4])
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HnswParams;
    use std::sync::atomic::AtomicBool;

    fn written(path: &Path) -> Vec<u8> {
        let vectors: Vec<f32> = (0..30).map(|n| n as f32 / 8.0).collect();
        let rows: Vec<Row> =
            (0..10).map(|n| Row { slot: 100 + n, version: Position(7 + u64::from(n)) }).collect();
        // Not a graph of usearch's: golden bytes must not change with its version.
        let built = Built {
            degree: 2,
            adjacency: (0..10u32)
                .flat_map(|n| [(n + 1) % 10, if n == 3 { NONE } else { (n + 9) % 10 }])
                .collect(),
            entries: vec![4, 9],
        };
        let content =
            Content { distance: Distance::Euclid, dim: 3, rows: &rows, vectors: &vectors, built: &built };
        Segment::write(path, &content).expect("written");
        fs::read(path).expect("read")
    }

    #[test]
    fn the_bytes_are_golden() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes = written(&folder.path().join("a.seg"));
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment.bin");
        if std::env::var_os("REWRITE").is_some() {
            fs::write(&golden, &bytes).expect("rewritten");
        }
        assert_eq!(fs::read(&golden).expect("the golden file"), bytes);
    }

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        written(&path);
        let segment = Segment::open(&path).expect("whole");
        assert_eq!(segment.rows()[3], Row { slot: 103, version: Position(10) });
        assert_eq!(segment.vector(1), [3.0 / 8.0, 4.0 / 8.0, 5.0 / 8.0]);
        assert!(segment.fits(Distance::Euclid, 3) && !segment.fits(Distance::Dot, 3));
        let hits = segment.graph().search(&[1.0, 1.0, 1.0], 10, &mut Default::default(), |_| true);
        assert_eq!(hits[0].1, 2);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        let bytes = written(&path);
        let (sections, _) = Head::decode(&bytes).expect("whole").sections().expect("small");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).expect("written");
            // Bytes between two sections say nothing.
            let counts = at < HEAD_BYTES || sections.iter().any(|s| s.contains(&at));
            assert_eq!(Segment::open(&path).is_err(), counts, "byte {at}");
        }
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).expect("written");
            assert!(Segment::open(&path).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_real_graph_survives_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        let vectors: Vec<f32> =
            (0..4000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7).collect();
        let metric = Metric::of(Distance::Euclid);
        let built =
            super::super::build::build(metric, 8, &vectors, HnswParams::default(), &AtomicBool::new(false))
                .expect("built");
        let rows: Vec<Row> = (0..500).map(|slot| Row { slot, version: Position(1) }).collect();
        Segment::write(
            &path,
            &Content { distance: Distance::Euclid, dim: 8, rows: &rows, vectors: &vectors, built: &built },
        )
        .expect("written");
        let segment = Segment::open(&path).expect("whole");
        for row in [0u32, 250, 499] {
            let query = &vectors[row as usize * 8..][..8];
            let from_file = segment.graph().search(query, 10, &mut Default::default(), |_| true);
            assert_eq!(
                from_file,
                built.graph(metric, 8, &vectors).search(query, 10, &mut Default::default(), |_| true)
            );
            assert_eq!(from_file[0], (0.0, row));
        }
    }
}
