//! A sealed graph with its vectors and their codes: one checksummed file.
//!
//! Adjacency and codes, which a walk jumps about in, are copied into memory, if the vector's [`Residence`] does not say
//! otherwise; the vectors, of which a search reads a few, stay mapped.
//!
//! Invariants: a file is written whole (temporary name, fsync, rename, fsync of the folder) and never changed;
//! every byte is checked against its checksum when it is opened, so a damaged file is an error, never a crash or a wrong
//! answer; links and entries are checked to name rows. What goes bad later of what is not held in memory is the scrub's to
//! find.
//! Deliberately absent: which rows are live (the slot table tells), when to build or merge.
//! Layout: `docs/FORMATS.md`, pinned by `tests/golden/segment.bin`.

use super::{
    bits::{self, Signs},
    build::Built,
    codes::{self, CodedQuery, Grid, Vectors},
    graph::{Exact, Graph, NONE, ROWS_MAX},
    kernel::{self, Metric},
    resident::Resident,
};
use crate::{
    durable,
    model::{Distance, Position, Residence},
    world,
};
use memmap2::{Advice, Mmap};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
    sync::Arc,
};

/// Whose vector a row is: the slot, and the position that wrote the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) slot: u32,
    pub(crate) version: Position,
}

/// What a segment is made of, beside its vectors.
pub(crate) struct Content<'a> {
    pub(crate) distance: Distance,
    pub(crate) dim: usize,
    pub(crate) rows: &'a [Row],
    pub(crate) built: &'a Built,
    /// How the vectors are coded, and their codes `[rows, stride]`; `None`: not at all.
    pub(crate) coded: Option<(&'a Coder, &'a [u8])>,
}

/// How vectors are coded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Coder {
    /// 8 or 4 bits a number.
    Numbers(Grid),
    /// One bit a number.
    Signs(Signs),
}

/// A segment that was checked whole; cheap to clone.
#[derive(Clone)]
pub(crate) struct Segment {
    map: Arc<Mmap>,
    head: Head,
    sections: [Range<usize>; SECTIONS],
    metric: Metric,
    rows: Arc<[Row]>,
    entries: Arc<[u32]>,
    residence: Residence,
    /// Unless they are read from the file.
    adjacency: Option<Arc<Resident>>,
    coder: Option<Coder>,
    /// Unless they are read from the file.
    codes: Option<Arc<Resident>>,
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

/// Of a file until it is whole.
const UNFINISHED: &str = "new";
const MAGIC: &[u8; 8] = b"ANNALSEG";
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 128;
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
    coding: Option<Coding>,
    checksums: [u32; SECTIONS],
}

/// What a [`Coder`] has beside its centre.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coding {
    Numbers { step: f32, half: bool },
    Signs,
}

/// In the order of the file: vectors, adjacency, rows, entries, centre, codes.
const SECTIONS: usize = 6;
const VECTORS: usize = 0;
const ADJACENCY: usize = 1;
const ROWS: usize = 2;
const ENTRIES: usize = 3;
const CENTRE: usize = 4;
const CODES: usize = 5;

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
        let (bits, step) = match self.coding {
            None => (0u32, 0f32),
            Some(Coding::Numbers { step, half }) => (if half { 4 } else { 8 }, step),
            Some(Coding::Signs) => (1, 0.0),
        };
        out.extend(bits.to_le_bytes());
        out.extend(step.to_le_bytes());
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
        let step = f32::from_bits(word(40));
        let coding = match word(36) {
            0 => None,
            1 if step == 0.0 => Some(Coding::Signs),
            bits @ (4 | 8) if step.is_finite() && step > 0.0 => {
                Some(Coding::Numbers { step, half: bits == 4 })
            }
            _ => return Err(SegmentError::Damaged("unknown codes")),
        };
        Ok(Head {
            distance,
            dim: word(16) as usize,
            degree: word(20) as usize,
            entries: word(24) as usize,
            rows: u64::from_le_bytes(head[28..36].try_into().expect("eight bytes")) as usize,
            coding,
            checksums: std::array::from_fn(|section| word(44 + 4 * section)),
        })
    }

    /// Holds every section of a file against its checksum.
    fn check(&self, file: &[u8]) -> Result<(), SegmentError> {
        let (sections, _) = self.sections().ok_or(SegmentError::Damaged("sizes"))?;
        for (section, checksum) in sections.into_iter().zip(self.checksums) {
            if hash(&file[section]) != checksum {
                return Err(SegmentError::Damaged("checksum of a section"));
            }
        }
        Ok(())
    }

    /// Where each section lies, and where the file ends; `None` if that is beyond any file.
    fn sections(&self) -> Option<([Range<usize>; SECTIONS], usize)> {
        let (coded, stride) = match self.coding {
            None => (0, 0),
            Some(Coding::Numbers { half, .. }) => (self.dim, codes::stride(self.dim, half)),
            Some(Coding::Signs) => (self.dim, bits::stride(self.dim)),
        };
        let sizes = [
            self.rows.checked_mul(self.dim)?.checked_mul(4)?,
            self.rows.checked_mul(self.degree)?.checked_mul(4)?,
            self.rows.checked_mul(ROW_BYTES)?,
            self.entries.checked_mul(4)?,
            coded.checked_mul(4)?,
            self.rows.checked_mul(stride)?,
        ];
        let mut end = HEAD_BYTES;
        let mut sections = [const { 0..0 }; SECTIONS];
        for (section, size) in sections.iter_mut().zip(sizes) {
            let start = end.checked_next_multiple_of(ALIGN)?;
            end = start.checked_add(size)?;
            *section = start..end;
        }
        Some((sections, end))
    }
}

/// The checksum of many bytes.
fn hash(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    world::breathing(bytes).for_each(|piece| hasher.update(piece));
    hasher.finalize()
}

impl Coder {
    fn centre(&self) -> &[f32] {
        match self {
            Coder::Numbers(grid) => &grid.centre,
            Coder::Signs(signs) => &signs.centre,
        }
    }

    fn coding(&self) -> Coding {
        match self {
            Coder::Numbers(grid) => Coding::Numbers { step: grid.step, half: grid.half },
            Coder::Signs(_) => Coding::Signs,
        }
    }
}

impl Segment {
    /// Writes a segment over vectors, a row of the content each; it is there whole and durable when this returns, or
    /// not at all.
    pub(crate) fn write<'v>(
        path: &Path,
        content: &Content<'_>,
        vectors: impl Vectors<'v>,
    ) -> Result<(), SegmentError> {
        assert_eq!(vectors.len(), content.rows.len(), "every row has a vector");
        let rows: Vec<u8> = content
            .rows
            .iter()
            .flat_map(|row| [&row.slot.to_le_bytes()[..], &[0; 4], &row.version.0.to_le_bytes()].concat())
            .collect();
        let bodies: [&[u8]; SECTIONS - 1] = [
            bytemuck::cast_slice(&content.built.adjacency),
            &rows,
            bytemuck::cast_slice(&content.built.entries),
            content.coded.map_or(&[], |(coder, _)| bytemuck::cast_slice(coder.centre())),
            content.coded.map_or(&[], |(_, codes)| codes),
        ];
        let mut head = Head {
            distance: content.distance,
            dim: content.dim,
            degree: content.built.degree as usize,
            entries: content.built.entries.len(),
            rows: content.rows.len(),
            coding: content.coded.map(|(coder, _)| coder.coding()),
            checksums: [0; SECTIONS],
        };
        let (sections, _) = head.sections().ok_or(SegmentError::Damaged("larger than any file"))?;
        let new = path.with_extension(UNFINISHED);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&new)?);
        // The checksums of the head are known when all else is written.
        out.write_all(&[0; HEAD_BYTES])?;
        let mut checksum = crc32fast::Hasher::new();
        for vector in vectors {
            assert_eq!(vector.len(), content.dim, "every vector has its dimension");
            let bytes = bytemuck::cast_slice(vector);
            checksum.update(bytes);
            out.write_all(bytes)?;
        }
        head.checksums[VECTORS] = checksum.finalize();
        let mut at = sections[VECTORS].end;
        for ((section, checksum), body) in sections.into_iter().zip(&mut head.checksums).skip(1).zip(bodies) {
            assert_eq!(section.len(), body.len(), "every section has its size");
            out.write_all(&[0; ALIGN][..section.start - at])?;
            let mut hasher = crc32fast::Hasher::new();
            for piece in world::breathing(body) {
                hasher.update(piece);
                out.write_all(piece)?;
            }
            *checksum = hasher.finalize();
            at = section.end;
        }
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&head.encode())?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(durable::rename(&new, path)?)
    }

    /// Removes what there is of a file that was to be written.
    pub(crate) fn remove(path: &Path) {
        for left in [path, &path.with_extension(UNFINISHED)] {
            if let Err(error) = fs::remove_file(left)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file = %left.display(), %error, "an index file cannot be removed");
            }
        }
    }

    /// Maps a file and checks every byte of it; `residence` says what of it is copied into memory.
    pub(crate) fn open(path: &Path, residence: Residence) -> Result<Self, SegmentError> {
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
        if head.rows >= ROWS_MAX {
            return Err(SegmentError::Damaged("more rows than a graph can have"));
        }
        let rows = map[sections[ROWS].clone()]
            .as_chunks::<ROW_BYTES>()
            .0
            .iter()
            .map(|row| Row {
                slot: u32::from_le_bytes(row[..4].try_into().expect("four bytes")),
                version: Position(u64::from_le_bytes(row[8..].try_into().expect("eight bytes"))),
            })
            .collect();
        let section = |number: usize| &map[sections[number].clone()];
        let coder = head.coding.map(|coding| {
            let centre = bytemuck::cast_slice(section(CENTRE)).to_vec();
            match coding {
                Coding::Numbers { step, half } => Coder::Numbers(Grid { centre, step, half }),
                Coding::Signs => Coder::Signs(Signs { centre }),
            }
        });
        let (metric, adjacency, codes) = (Metric::of(head.distance), None, None);
        let entries = bytemuck::cast_slice(section(ENTRIES)).into();
        let (map, mapped) = (Arc::new(map), Residence::Disk);
        let segment = Segment {
            metric,
            rows,
            entries,
            residence: mapped,
            adjacency,
            coder,
            codes,
            head,
            sections,
            map,
        };
        let graph = segment.graph();
        let names_a_row = |row: &u32| (*row as usize) < head.rows;
        if !graph.entries.iter().all(names_a_row)
            || !graph.adjacency.iter().all(|link| *link == NONE || names_a_row(link))
        {
            return Err(SegmentError::Damaged("a link to no row"));
        }
        Ok(segment.held(residence)?)
    }

    /// The same segment, with what `residence` says in memory; only that is read again.
    pub(crate) fn held(&self, residence: Residence) -> io::Result<Self> {
        let in_memory = |wanted: bool, there: &Option<Arc<Resident>>, number: usize| match there {
            _ if !wanted => Ok(None),
            Some(there) => Ok(Some(there.clone())),
            None => Resident::copy(self.section(number)).map(|copy| Some(Arc::new(copy))),
        };
        let held = Segment {
            residence,
            adjacency: in_memory(residence == Residence::Memory, &self.adjacency, ADJACENCY)?,
            codes: in_memory(residence != Residence::Disk, &self.codes, CODES)?,
            ..self.clone()
        };
        held.let_go();
        // Where memory is short, what is read beside a row takes the place of what is needed.
        let random = residence != Residence::Memory;
        held.map.advise(if random { Advice::Random } else { Advice::Normal })?;
        Ok(held)
    }

    /// Gives back the pages that checking and copying have touched: a search needs few of them.
    fn let_go(&self) {
        #[cfg(unix)]
        #[expect(unsafe_code, reason = "memory of a mapping is given back; it is read from the file again")]
        // SAFETY: the mapping is of a file and was never written to, so nothing can be lost. No more than a wish.
        let _wish = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    fn section<T: bytemuck::AnyBitPattern>(&self, number: usize) -> &[T] {
        bytemuck::cast_slice(&self.map[self.sections[number].clone()])
    }

    /// The graph over the rows.
    pub(crate) fn graph(&self) -> Graph<'_> {
        Graph {
            degree: self.head.degree,
            adjacency: match &self.adjacency {
                Some(adjacency) => bytemuck::cast_slice(adjacency.bytes()),
                None => self.section(ADJACENCY),
            },
            entries: &self.entries,
        }
    }

    /// The vectors, to be compared with a query.
    pub(super) fn exact<'a>(&'a self, query: &'a [f32]) -> Exact<'a> {
        Exact { metric: self.metric, vectors: self.section(VECTORS), query }
    }

    /// Asks for the vectors of some rows all at once, so that they are not waited for one by one.
    pub(super) fn prefetch(&self, rows: &[u32]) {
        let bytes = 4 * self.head.dim;
        for row in rows {
            match self.residence {
                Residence::Memory => kernel::prefetch(self.vector(*row)),
                // No more than a wish: a search reads them in any case. Vectors are the first section.
                _ => _ = self.map.advise_range(Advice::WillNeed, HEAD_BYTES + *row as usize * bytes, bytes),
            }
        }
    }

    /// The query in codes, if they say enough about it.
    pub(super) fn code(&self, query: &[f32]) -> Option<CodedQuery> {
        match self.coder.as_ref()? {
            Coder::Numbers(grid) => grid.query(self.head.distance, query),
            Coder::Signs(signs) => Some(signs.query(query)),
        }
    }

    /// Candidates to keep, and to compare by their vectors, for `count` rows: many more where codes say little about each.
    pub(super) fn candidates_min(&self, count: usize) -> usize {
        match &self.coder {
            Some(Coder::Signs(_)) => count.saturating_mul(bits::OVERSAMPLED),
            _ => count,
        }
    }

    /// Bits of a code, and bytes of a row of codes, if there are any.
    pub(super) fn coding(&self) -> Option<(u32, usize)> {
        let coding = |coder: &Coder| match coder {
            Coder::Numbers(grid) => (grid.bits(), grid.stride()),
            Coder::Signs(signs) => (1, signs.stride()),
        };
        self.coder.as_ref().map(coding)
    }

    /// The rows' codes `[rows, stride]`.
    pub(super) fn codes(&self) -> &[u8] {
        self.codes.as_ref().map_or_else(|| self.section(CODES), |codes| codes.bytes())
    }

    /// What of it is in memory.
    pub(crate) fn residence(&self) -> Residence {
        self.residence
    }

    /// Whose vectors the rows are, by row.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A row's vector `[dim]`.
    pub(crate) fn vector(&self, row: u32) -> &[f32] {
        &self.section(VECTORS)[row as usize * self.head.dim..][..self.head.dim]
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
    use std::fs;

    fn written(path: &Path, coder: &Coder) -> Vec<u8> {
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
        let codes = match coder {
            Coder::Numbers(grid) => grid.encode(vectors.chunks_exact(3)),
            Coder::Signs(signs) => signs.encode(vectors.chunks_exact(3)),
        };
        let content = Content {
            distance: Distance::Euclid,
            dim: 3,
            rows: &rows,
            built: &built,
            coded: Some((coder, &codes)),
        };
        Segment::write(path, &content, vectors.chunks_exact(3)).expect("written");
        fs::read(path).expect("read")
    }

    /// Of each kind one.
    fn coders() -> [(&'static str, Coder); 2] {
        let centre = vec![1.5, 1.625, 1.75];
        let grid = Grid { centre: centre.clone(), step: 1.0 / 64.0, half: false };
        [("segment.bin", Coder::Numbers(grid)), ("segment-bits.bin", Coder::Signs(Signs { centre }))]
    }

    #[test]
    fn the_bytes_are_golden() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, coder) in coders() {
            let bytes = written(&folder.path().join("a.seg"), &coder);
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
            if std::env::var_os("REWRITE").is_some() {
                fs::write(&golden, &bytes).expect("rewritten");
            }
            assert_eq!(fs::read(&golden).expect("the golden file"), bytes, "{name}");
        }
    }

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        for (name, coder) in coders() {
            written(&path, &coder);
            let segment = Segment::open(&path, Residence::Memory).expect("whole");
            assert_eq!(segment.rows()[3], Row { slot: 103, version: Position(10) });
            assert_eq!(segment.vector(1), [3.0 / 8.0, 4.0 / 8.0, 5.0 / 8.0]);
            assert!(segment.fits(Distance::Euclid, 3) && !segment.fits(Distance::Dot, 3));
            let exact = segment.exact(&[1.0, 1.0, 1.0]);
            assert_eq!((exact.distance(2), segment.graph().entries), (0.078125, &[4, 9][..]));
            let of_third = match coder {
                Coder::Numbers(_) => [80, 80, 80, 0],
                // 0.75, 0.875 and 1 lie below the centre.
                Coder::Signs(_) => [0; 4],
            };
            assert_eq!(segment.codes()[2 * 16..][..4], of_third, "{name}");
            assert_eq!(segment.coder, Some(coder));
        }
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        for (_, coder) in coders() {
            every_damage_is_found(&path, &coder);
        }
    }

    fn every_damage_is_found(path: &Path, coder: &Coder) {
        let bytes = written(path, coder);
        let (sections, _) = Head::decode(&bytes).expect("whole").sections().expect("small");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(path, &damaged).expect("written");
            // Bytes between two sections say nothing.
            let counts = at < HEAD_BYTES || sections.iter().any(|s| s.contains(&at));
            assert_eq!(Segment::open(path, Residence::Memory).is_err(), counts, "byte {at}");
        }
        for length in 0..bytes.len() {
            fs::write(path, &bytes[..length]).expect("written");
            assert!(Segment::open(path, Residence::Memory).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_file_of_another_version_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        let mut bytes = written(&path, &coders()[0].1);
        bytes[8] = 1;
        let crc = crc32fast::hash(&bytes[..HEAD_BYTES - 4]);
        bytes[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).expect("written");
        assert!(matches!(
            Segment::open(&path, Residence::Memory),
            Err(SegmentError::Damaged("another format"))
        ));
    }
}
