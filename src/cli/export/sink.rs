//! The formats an export writes.

use super::{
    super::{
        collection::{Record, id_text},
        parquet_file::TableWriter,
        row::{OneVector, vectors_of},
        server::Failure,
        settings::Settings,
    },
    part::{PartFile, beside},
};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

/// Takes points one after the other.
pub(super) trait Sink {
    /// Errors: names the point that the format cannot hold.
    fn write(&mut self, record: &Record) -> Result<(), Failure>;

    /// Gives its files their names; tells them, the one that was asked for last.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, Failure>;
}

/// What writes a file whose name ends like this.
///
/// Errors: a format that is not written, files that are there already, a vector that is not there.
pub(super) fn sink(
    path: &Path,
    settings: &Settings,
    vector: Option<&str>,
    overwrite: bool,
) -> Result<Box<dyn Sink>, Failure> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let layout = match ending {
        "npy" => Layout::Npy,
        "fvecs" => Layout::Fvecs,
        "fbin" => Layout::Fbin,
        "jsonl" | "parquet" if vector.is_some() => {
            return Err(format!("--vector: .{ending} holds all vectors").into());
        }
        "jsonl" => return Ok(Box::new(PointLines(PartFile::create(path, overwrite)?))),
        "parquet" => {
            return Ok(Box::new(Table(TableWriter::new(PartFile::create(path, overwrite)?, settings)?)));
        }
        _ => {
            let ends = "its name ends in none of .jsonl, .parquet, .npy, .fvecs, .fbin";
            return Err(format!("{}: {ends}", path.display()).into());
        }
    };
    let (name, columns) = one_vector(settings, vector)?;
    let points = PartFile::create(&beside(path, ".jsonl"), overwrite)?;
    let mut file = PartFile::create(path, overwrite)?;
    file.write_all(&layout.head(0, columns)?)?;
    Ok(Box::new(Matrix { layout, name, columns, rows: 0, file, points }))
}

/// The dense vector that is asked for, or the only one.
fn one_vector(settings: &Settings, asked: Option<&str>) -> Result<(String, usize), Failure> {
    let names = || settings.vectors.keys().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let found = match asked {
        Some(name) => settings.vectors.get_key_value(name),
        None if settings.vectors.len() == 1 => settings.vectors.iter().next(),
        None => return Err(format!("the collection has the vectors {}: --vector says which", names()).into()),
    };
    let (name, dense) = found.ok_or_else(|| {
        format!("the collection has no dense vector \"{}\", but {}", asked.unwrap_or_default(), names())
    })?;
    Ok((name.clone(), dense.size))
}

fn vectors(record: &Record) -> Result<BTreeMap<String, OneVector>, Failure> {
    let vectors = record.vector.as_deref().map_or_else(|| Ok(BTreeMap::new()), vectors_of);
    vectors.map_err(|e| format!("point {}: its vectors are not what they should be: {e}", record.id).into())
}

/// A payload that says something.
fn payload(record: &Record) -> Option<&str> {
    record.payload.as_ref().map(|payload| payload.get()).filter(|text| *text != "{}")
}

/// `.jsonl`
struct PointLines(PartFile);

impl Sink for PointLines {
    fn write(&mut self, record: &Record) -> Result<(), Failure> {
        let vector = one_line(record.vector.as_ref().map_or("{}", |vector| vector.get()));
        write!(self.0, r#"{{"id":{},"vector":{vector}"#, id_text(record.id))?;
        end_line(&mut self.0, record)
    }

    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, Failure> {
        Ok(vec![self.0.commit()?])
    }
}

fn end_line(file: &mut PartFile, record: &Record) -> Result<(), Failure> {
    if let Some(payload) = payload(record) {
        write!(file, r#","payload":{}"#, one_line(payload))?;
    }
    Ok(file.write_all(b"}\n")?)
}

/// JSON as one line: a break in it is space between what it says, for in text it would be escaped.
fn one_line(json: &str) -> Cow<'_, str> {
    match json.contains(['\n', '\r']) {
        true => json.replace(['\n', '\r'], " ").into(),
        false => json.into(),
    }
}

/// `.parquet`
struct Table(TableWriter<PartFile>);

impl Sink for Table {
    fn write(&mut self, record: &Record) -> Result<(), Failure> {
        self.0.write(record.id.to_string(), payload(record), vectors(record)?)
    }

    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, Failure> {
        Ok(vec![self.0.finish()?.commit()?])
    }
}

/// A vector a row.
struct Matrix {
    layout: Layout,
    name: String,
    columns: usize,
    rows: u64,
    file: PartFile,
    /// Lines for what a matrix cannot hold.
    points: PartFile,
}

#[derive(Clone, Copy)]
enum Layout {
    Npy,
    Fvecs,
    Fbin,
}

impl Sink for Matrix {
    fn write(&mut self, record: &Record) -> Result<(), Failure> {
        let Some(OneVector::Dense(row)) = vectors(record)?.remove(&self.name) else {
            let name = &self.name;
            return Err(format!(
                "point {} has no vector \"{name}\": .jsonl and .parquet can hold that",
                record.id
            )
            .into());
        };
        if row.len() != self.columns {
            return Err(format!("point {} has {} numbers, not {}", record.id, row.len(), self.columns).into());
        }
        if let Layout::Fvecs = self.layout {
            self.file.write_all(&i32::try_from(self.columns)?.to_le_bytes())?;
        }
        for number in row {
            self.file.write_all(&number.to_le_bytes())?;
        }
        self.rows += 1;
        write!(self.points, r#"{{"id":{}"#, id_text(record.id))?;
        end_line(&mut self.points, record)
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Failure> {
        let head = self.layout.head(self.rows, self.columns)?;
        if !head.is_empty() {
            self.file.put_head(&head)?;
        }
        Ok(vec![self.points.commit()?, self.file.commit()?])
    }
}

/// Bytes of the head of a `.npy` file: room for any number of rows.
const NPY_HEAD_BYTES: usize = 128;

impl Layout {
    /// What stands before the rows; as long for any number of rows.
    fn head(self, rows: u64, columns: usize) -> Result<Vec<u8>, Failure> {
        Ok(match self {
            Layout::Fvecs => Vec::new(),
            Layout::Fbin => [u32::try_from(rows)?, u32::try_from(columns)?].map(u32::to_le_bytes).concat(),
            Layout::Npy => {
                let shape =
                    format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
                let length = NPY_HEAD_BYTES - 10;
                let mut head = b"\x93NUMPY\x01\x00".to_vec();
                head.extend_from_slice(&u16::try_from(length)?.to_le_bytes());
                head.extend_from_slice(format!("{shape:<width$}\n", width = length - 1).as_bytes());
                head
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        serde_json::from_str(text).unwrap()
    }

    fn settings(text: &str) -> Settings {
        serde_json::from_str(text).unwrap()
    }

    const TWO: &str =
        r#"{"vectors": {"a": {"size": 2, "distance": "Dot"}, "b": {"size": 1, "distance": "Dot"}}}"#;

    #[test]
    fn heads_are_as_long_for_any_number_of_rows() {
        for layout in [Layout::Npy, Layout::Fvecs, Layout::Fbin] {
            let none = layout.head(0, 65_536).unwrap();
            assert_eq!(none.len(), layout.head(u32::MAX.into(), 65_536).unwrap().len());
        }
        assert_eq!(Layout::Npy.head(u64::MAX, 65_536).unwrap().len(), NPY_HEAD_BYTES);
        assert_eq!(Layout::Fbin.head(2, 3).unwrap(), [2, 0, 0, 0, 3, 0, 0, 0]);
        Layout::Fbin.head(1 << 32, 1).unwrap_err();
    }

    #[test]
    fn a_matrix_holds_one_vector_of_every_point() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.fvecs");
        let open = |vector: Option<&str>| sink(&path, &settings(TWO), vector, false);
        assert!(open(None).err().unwrap().to_string().contains("\"a\", \"b\": --vector says which"));
        assert!(
            open(Some("c")).err().unwrap().to_string().contains("no dense vector \"c\", but \"a\", \"b\"")
        );
        let mut matrix = open(Some("b")).unwrap();
        matrix.write(&record(r#"{"id":1,"vector":{"b":[2]},"payload":{}}"#)).unwrap();
        let lacking =
            matrix.write(&record(r#"{"id":2,"vector":{"a":[1,2]},"payload":{"n":1}}"#)).unwrap_err();
        assert!(lacking.to_string().contains("point 2 has no vector \"b\""), "{lacking}");
        matrix.write(&record(r#"{"id":3,"vector":{"b":[-1]},"payload":{"n":1}}"#)).unwrap();
        let files = matrix.finish().unwrap();
        assert_eq!(files, [beside(&path, ".jsonl"), path.clone()]);
        let wanted = [&[1, 0, 0, 0][..], &2f32.to_le_bytes(), &[1, 0, 0, 0], &(-1f32).to_le_bytes()].concat();
        assert_eq!(std::fs::read(&path).unwrap(), wanted);
        let points = std::fs::read_to_string(beside(&path, ".jsonl")).unwrap();
        assert_eq!(points, "{\"id\":1}\n{\"id\":3,\"payload\":{\"n\":1}}\n");
    }

    #[test]
    fn a_point_is_a_line_however_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut lines = sink(&path, &settings(TWO), None, false).unwrap();
        lines.write(&record("{\"id\":1,\"vector\":[1,\n2],\"payload\":{\r\n\"a\":\"x\\ny\"}}")).unwrap();
        lines
            .write(&record(r#"{"id":"550e8400-e29b-41d4-a716-446655440000","vector":null,"payload":null}"#))
            .unwrap();
        lines.finish().unwrap();
        let wanted = "{\"id\":1,\"vector\":[1, 2],\"payload\":{  \"a\":\"x\\ny\"}}\n\
                      {\"id\":\"550e8400-e29b-41d4-a716-446655440000\",\"vector\":{}}\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), wanted);
    }

    #[test]
    fn formats_by_ending() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, vector| sink(&folder.path().join(name), &settings(TWO), vector, false).err();
        assert!(open("a.bvecs", None).unwrap().to_string().contains("ends in none of .jsonl, .parquet"));
        assert!(open("a.jsonl", Some("a")).unwrap().to_string().contains(".jsonl holds all vectors"));
        assert!(open("a.parquet", None).is_none());
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is left");
    }
}
