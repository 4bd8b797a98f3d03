//! Rows of numbers in a file, read one after the other: `.npy`, `.fvecs`, `.bvecs`, `.ivecs`, `.fbin`, `.ibin`.
//!
//! Invariants: a file's length is held against what its head says before a row is read, so a file that was cut off is
//! refused whole; every vector that is given out has finite numbers only.
//! Not here: what the rows mean. `.fvecs`, `.bvecs`, `.ivecs` are those of <http://corpus-texmex.irisa.fr>, `.fbin` that
//! of <https://big-ann-benchmarks.com>.

use super::server::Failure;
use npyz::{DType, NpyHeader, Order};
use std::{
    fs::File,
    io::{BufReader, Read, Seek},
    path::{Path, PathBuf},
};

/// A file of rows that are alike.
pub(super) struct Matrix {
    path: PathBuf,
    reader: BufReader<File>,
    rows: u64,
    columns: usize,
    cell: Cell,
    big_endian: bool,
    /// Whether the number of columns stands before every row, as in `.fvecs`.
    rows_have_heads: bool,
    next: u64,
    /// The bytes of a row, kept for the next one.
    row: Vec<u8>,
}

/// What a number is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    U8,
    I8,
    F16,
    F32,
    F64,
    I32,
    U32,
    I64,
    U64,
}

/// Columns a vector may have at most: what Qdrant and Annal take.
const COLUMNS_MAX: u64 = 65_536;
const READ_AHEAD_BYTES: usize = 1 << 20;

impl Matrix {
    /// Names that end in one of these can be opened.
    pub(super) const ENDINGS: [&str; 6] = ["npy", "fvecs", "bvecs", "ivecs", "fbin", "ibin"];

    /// Reads the head and checks it against the file's length.
    ///
    /// Errors: names the file, and what it has and should have.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        Self::read_head(path).map_err(|e| format!("{}: {e}", path.display()).into())
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The next row as a vector; none behind the last.
    ///
    /// Errors: names the row, and the number that is not finite.
    pub(super) fn next_vector(&mut self) -> Result<Option<Vec<f32>>, Failure> {
        let Some(row) = self.read_row()? else { return Ok(None) };
        let vector: Vec<f32> = self.cells().map(|cell| self.cell.float(cell)).collect();
        match vector.iter().position(|n| !n.is_finite()) {
            Some(at) => {
                Err(self.within(row, &format!("number {at} is {}, every one must be finite", vector[at])))
            }
            None => Ok(Some(vector)),
        }
    }

    /// The next row as ids; none behind the last.
    ///
    /// Errors: names the row, and the number that cannot be an id.
    pub(super) fn next_ids(&mut self) -> Result<Option<Vec<u64>>, Failure> {
        let Some(row) = self.read_row()? else { return Ok(None) };
        let ids: Option<Vec<u64>> = self.cells().map(|cell| self.cell.id(cell)).collect();
        ids.map(Some).ok_or_else(|| self.within(row, "wants numbers of points: integers from 0 on"))
    }

    fn read_head(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(READ_AHEAD_BYTES, file);
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let (head_bytes, rows, columns, cell, big_endian) = match ending {
            "npy" => npy_head(&mut reader)?,
            "fbin" => bin_head(&mut reader, Cell::F32)?,
            "ibin" => bin_head(&mut reader, Cell::I32)?,
            "fvecs" => vecs_head(&mut reader, bytes, Cell::F32)?,
            "bvecs" => vecs_head(&mut reader, bytes, Cell::U8)?,
            "ivecs" => vecs_head(&mut reader, bytes, Cell::I32)?,
            _ => return Err(format!("the name ends in none of .{}", Self::ENDINGS.join(", .")).into()),
        };
        if !(1..=COLUMNS_MAX).contains(&columns) {
            return Err(format!("has {columns} numbers a row, wants 1 to {COLUMNS_MAX}").into());
        }
        let rows_have_heads = ending.ends_with("vecs");
        let row_bytes = columns * cell.bytes() as u64;
        let stored = row_bytes + if rows_have_heads { 4 } else { 0 };
        let wanted = rows.checked_mul(stored).and_then(|n| n.checked_add(head_bytes));
        if wanted != Some(bytes) {
            let wanted = wanted.map_or_else(|| "more than there can be".to_owned(), |n| n.to_string());
            return Err(format!("has {bytes} bytes; {rows} rows of {columns} numbers take {wanted}").into());
        }
        Ok(Matrix {
            path: path.to_owned(),
            reader,
            rows,
            columns: usize::try_from(columns)?,
            cell,
            big_endian,
            rows_have_heads,
            next: 0,
            row: vec![0; usize::try_from(row_bytes)?],
        })
    }

    /// Reads the next row's bytes; gives its number.
    fn read_row(&mut self) -> Result<Option<u64>, Failure> {
        if self.next == self.rows {
            return Ok(None);
        }
        let row = self.next;
        if self.rows_have_heads {
            let mut head = [0; 4];
            self.reader.read_exact(&mut head).map_err(|e| self.within(row, &e.to_string()))?;
            let columns = i32::from_le_bytes(head);
            if usize::try_from(columns) != Ok(self.columns) {
                let why = format!("says that it has {columns} numbers, row 0 has {}", self.columns);
                return Err(self.within(row, &why));
            }
        }
        self.reader
            .read_exact(&mut self.row)
            .map_err(|e| format!("{} row {row}: {e}", self.path.display()))?;
        if self.big_endian {
            self.row.chunks_exact_mut(self.cell.bytes()).for_each(<[u8]>::reverse);
        }
        self.next += 1;
        Ok(Some(row))
    }

    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        self.row.chunks_exact(self.cell.bytes())
    }

    fn within(&self, row: u64, why: &str) -> Failure {
        format!("{} row {row}: {why}", self.path.display()).into()
    }
}

/// Bytes before the first row, rows, columns, cell, whether it is big-endian.
type Head = (u64, u64, u64, Cell, bool);

fn npy_head(reader: &mut (impl Read + Seek)) -> Result<Head, Failure> {
    let header = NpyHeader::from_reader(&mut *reader)?;
    let [rows, columns] = *header.shape() else {
        return Err(format!("has shape {:?}, wants [rows, numbers]", header.shape()).into());
    };
    if header.order() != Order::C {
        return Err("is in Fortran order, wants C order".into());
    }
    let name = match header.dtype() {
        DType::Plain(name) => name.to_string(),
        other => other.descr(),
    };
    let cell = match name.trim_start_matches(['<', '>', '|', '=']) {
        "u1" => Cell::U8,
        "i1" => Cell::I8,
        "f2" => Cell::F16,
        "f4" => Cell::F32,
        "f8" => Cell::F64,
        "i4" => Cell::I32,
        "u4" => Cell::U32,
        "i8" => Cell::I64,
        "u8" => Cell::U64,
        _ => return Err(format!("holds {name}, wants f16, f32, f64 or integers").into()),
    };
    Ok((reader.stream_position()?, rows, columns, cell, name.starts_with('>')))
}

fn bin_head(reader: &mut impl Read, cell: Cell) -> Result<Head, Failure> {
    let mut head = [0; 8];
    reader.read_exact(&mut head).map_err(|_| "is shorter than its head of 8 bytes")?;
    let number =
        |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    Ok((8, number(0), number(4), cell, false))
}

fn vecs_head(reader: &mut (impl Read + Seek), bytes: u64, cell: Cell) -> Result<Head, Failure> {
    let mut head = [0; 4];
    reader.read_exact(&mut head).map_err(|_| "is shorter than the head of a row, 4 bytes")?;
    let columns = u64::try_from(i32::from_le_bytes(head)).unwrap_or(0);
    let rows = bytes / (4 + columns * cell.bytes() as u64);
    reader.rewind()?;
    Ok((0, rows, columns, cell, false))
}

impl Cell {
    fn bytes(self) -> usize {
        match self {
            Cell::U8 | Cell::I8 => 1,
            Cell::F16 => 2,
            Cell::F32 | Cell::I32 | Cell::U32 => 4,
            Cell::F64 | Cell::I64 | Cell::U64 => 8,
        }
    }

    /// The number of a cell's little-endian bytes.
    fn float(self, bytes: &[u8]) -> f32 {
        match self {
            Cell::U8 => f32::from(bytes[0]),
            Cell::I8 => f32::from(bytes[0].cast_signed()),
            Cell::F16 => half::f16::from_le_bytes(of(bytes)).to_f32(),
            Cell::F32 => f32::from_le_bytes(of(bytes)),
            Cell::F64 => f64::from_le_bytes(of(bytes)) as f32,
            Cell::I32 => i32::from_le_bytes(of(bytes)) as f32,
            Cell::U32 => u32::from_le_bytes(of(bytes)) as f32,
            Cell::I64 => i64::from_le_bytes(of(bytes)) as f32,
            Cell::U64 => u64::from_le_bytes(of(bytes)) as f32,
        }
    }

    /// None for what is no integer from 0 on.
    fn id(self, bytes: &[u8]) -> Option<u64> {
        match self {
            Cell::U8 => Some(bytes[0].into()),
            Cell::I8 => bytes[0].cast_signed().try_into().ok(),
            Cell::I32 => i32::from_le_bytes(of(bytes)).try_into().ok(),
            Cell::U32 => Some(u32::from_le_bytes(of(bytes)).into()),
            Cell::I64 => i64::from_le_bytes(of(bytes)).try_into().ok(),
            Cell::U64 => Some(u64::from_le_bytes(of(bytes))),
            Cell::F16 | Cell::F32 | Cell::F64 => None,
        }
    }
}

fn of<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a row is cut into cells of this length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// Writes a file of that name into a folder of its own.
    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn vectors(name: &str, bytes: &[u8]) -> Result<Vec<Vec<f32>>, String> {
        let (_folder, path) = file(name, bytes);
        let mut matrix = Matrix::open(&path).map_err(|e| e.to_string())?;
        let mut rows = Vec::new();
        while let Some(row) = matrix.next_vector().map_err(|e| e.to_string())? {
            assert_eq!(row.len(), matrix.columns());
            rows.push(row);
        }
        assert_eq!(rows.len() as u64, matrix.rows());
        Ok(rows)
    }

    fn le<const N: usize, T>(numbers: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
        numbers.iter().flat_map(bytes).collect()
    }

    fn fvecs(rows: &[&[f32]]) -> Vec<u8> {
        let row =
            |row: &&[f32]| [&(row.len() as i32).to_le_bytes()[..], &le(row, |n| n.to_le_bytes())].concat();
        rows.iter().flat_map(row).collect()
    }

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        while (10 + head.len() + 1) % 64 != 0 {
            head.push(' ');
        }
        head.push('\n');
        [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), data].concat()
    }

    #[test]
    fn every_format_gives_its_rows() {
        let wanted = vec![vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 250.0]];
        let flat = [1.0f32, 2.0, 3.0, 4.0, 5.0, 250.0];
        let singles = le(&flat, |n| n.to_le_bytes());
        let bvecs: Vec<u8> = wanted
            .iter()
            .flat_map(|row| [2, 0, 0, 0].into_iter().chain(row.iter().map(|n| *n as u8)))
            .collect();
        let ints = le(&flat, |n| (*n as i32).to_le_bytes());
        for (name, bytes) in [
            ("a.fvecs", fvecs(&[&flat[..2], &flat[2..4], &flat[4..]])),
            ("a.bvecs", bvecs),
            ("a.fbin", [&[3, 0, 0, 0, 2, 0, 0, 0][..], &singles].concat()),
            ("a.npy", npy("<f4", "(3, 2)", &singles)),
            ("b.npy", npy(">f4", "(3, 2)", &le(&flat, |n| n.to_be_bytes()))),
            ("c.npy", npy("<f2", "(3, 2)", &le(&flat, |n| half::f16::from_f32(*n).to_le_bytes()))),
            ("d.npy", npy("<f8", "(3, 2)", &le(&flat, |n| f64::from(*n).to_le_bytes()))),
            ("e.npy", npy("<i4", "(3, 2)", &ints)),
            ("f.npy", npy("|u1", "(3, 2)", &[1, 2, 3, 4, 5, 250])),
        ] {
            assert_eq!(vectors(name, &bytes), Ok(wanted.clone()), "{name}");
        }
    }

    #[test]
    fn ids_are_integers() {
        let ids = |name: &str, bytes: &[u8]| {
            let (_folder, path) = file(name, bytes);
            Matrix::open(&path).unwrap().next_ids().map_err(|e| e.to_string())
        };
        let large = (1u64 << 53) + 1;
        assert_eq!(
            ids("a.npy", &npy("<i8", "(1, 2)", &le(&[large, 7], |n| n.to_le_bytes()))),
            Ok(Some(vec![large, 7]))
        );
        assert_eq!(ids("a.ivecs", &[1, 0, 0, 0, 9, 1, 0, 0]), Ok(Some(vec![265])));
        assert_eq!(ids("a.ibin", &[1, 0, 0, 0, 1, 0, 0, 0, 9, 1, 0, 0]), Ok(Some(vec![265])));
        for bytes in [npy("<i4", "(1, 1)", &[255; 4]), npy("<f4", "(1, 1)", &[0; 4])] {
            assert!(ids("b.npy", &bytes).unwrap_err().contains("row 0: wants numbers of points"));
        }
    }

    #[test]
    fn what_is_damaged_is_named() {
        let good = fvecs(&[&[1.0, 2.0], &[3.0, 4.0]]);
        let mut other_length = good.clone();
        other_length[12] = 3;
        let nan = fvecs(&[&[1.0, 2.0], &[3.0, f32::NAN]]);
        for (name, bytes, wanted) in [
            ("a.fvecs", &good[..23], "has 23 bytes; 1 rows of 2 numbers take 12"),
            ("a.fvecs", &[], "is shorter than the head of a row"),
            ("a.fvecs", &[0; 4], "has 0 numbers a row, wants 1 to 65536"),
            ("a.fvecs", &[255; 4], "has 0 numbers a row"),
            ("a.fvecs", &other_length, "row 1: says that it has 3 numbers, row 0 has 2"),
            ("a.fvecs", &nan, "row 1: number 1 is NaN, every one must be finite"),
            ("a.fbin", &[1, 0, 0, 0, 1, 0, 0], "is shorter than its head"),
            ("a.fbin", &[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "has 12 bytes; 2 rows of 1 numbers take 16"),
            ("a.fbin", &[255; 16], "has 4294967295 numbers a row"),
            ("a.npy", &npy("<f4", "(2, 1)", &[0; 4]), "2 rows of 1 numbers take"),
            ("a.npy", &npy("<f4", "(2,)", &[0; 8]), "has shape [2], wants"),
            ("a.npy", &npy("<c8", "(1, 1)", &[0; 8]), "holds <c8, wants f16"),
            ("a.npy", b"\x93NUMPY", "a.npy: "),
            ("a.csv", b"1,2", "ends in none of .npy, .fvecs"),
        ] {
            let said = vectors(name, bytes).unwrap_err();
            assert!(said.contains(wanted) && said.contains(name), "{wanted}: {said}");
        }
        assert!(
            Matrix::open(Path::new("/nowhere/a.npy")).err().unwrap().to_string().contains("/nowhere/a.npy")
        );
    }

    #[test]
    fn no_head_brings_a_reader_down() {
        let mut said = String::new();
        let good = npy("<f4", "(2, 1)", &[0; 8]);
        for at in 0..good.len() - 8 {
            for value in [0, b'9', b'-', b'(', 0xff, good[at] ^ 1] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Err(e) = vectors("a.npy", &bytes) {
                    writeln!(said, "{e}").unwrap();
                }
            }
        }
        assert!(said.lines().count() > 100, "{said}");
    }
}
