//! Lines of JSON: whole points, or what belongs to the rows of a matrix.

use super::{
    super::{
        progress::Extent,
        row::{Content, Row},
        server::Failure,
    },
    Names,
    source::{Ids, Source, id_of},
};
use annal::model::PointId;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Lines of a file, counted.
pub(super) struct Lines {
    name: String,
    reader: BufReader<File>,
    line: Vec<u8>,
    /// Of the line that was read last, from 1.
    number: u64,
    bytes: u64,
    bytes_read: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let within = |e| format!("{name}: {e}");
        let file = File::open(path).map_err(within)?;
        let bytes = file.metadata().map_err(within)?.len();
        let reader = BufReader::with_capacity(1 << 20, file);
        Ok(Lines { name, reader, line: Vec::new(), number: 0, bytes, bytes_read: 0 })
    }

    /// The next line as what it says; none behind the last. Blank lines are passed over only if `blank` says so.
    ///
    /// Errors: names file, line and field.
    fn next<T: DeserializeOwned>(&mut self, blank: Blank) -> Result<Option<T>, Failure> {
        loop {
            self.line.clear();
            let read =
                self.reader.read_until(b'\n', &mut self.line).map_err(|e| self.within(&e.to_string()))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes_read += read as u64;
            let is_blank = self.line.trim_ascii().is_empty();
            if !is_blank || blank == Blank::Refused {
                return self.parsed().map(Some);
            }
        }
    }

    fn parsed<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let mut json = serde_json::Deserializer::from_slice(&self.line);
        let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| match e.path().to_string() {
            // The text ends, or is no JSON: not at a field.
            path if path == "." || path.ends_with('?') => e.into_inner().to_string(),
            path => format!("{path}: {}", e.inner()),
        });
        let ended = parsed.and_then(|parsed| json.end().map(|()| parsed).map_err(|e| e.to_string()));
        ended.map_err(|why| self.within(&column_only(&why)))
    }

    /// What is wrong with the line that was read last.
    fn within(&self, why: &str) -> Failure {
        format!("{} line {}: {why}", self.name, self.number).into()
    }
}

/// Where a parser says "at line 1 column 7", of a text that is one line.
fn column_only(why: &str) -> String {
    why.replace(" at line 1 column ", " at column ").replace(" at line 2 column 0", " at its end")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blank {
    Passed,
    Refused,
}

/// `.jsonl`: a point a line.
pub(super) struct PointLines {
    lines: Lines,
    ids: Ids,
    next: u64,
}

/// A point as its line says it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointLine {
    id: Option<Value>,
    #[serde(alias = "vectors")]
    vector: Box<RawValue>,
    payload: Option<Box<RawValue>>,
}

impl PointLines {
    pub(super) fn open(path: &Path, ids: Ids) -> Result<Self, Failure> {
        Ok(PointLines { lines: Lines::open(path)?, ids, next: 0 })
    }
}

impl Source for PointLines {
    fn extent(&self) -> Extent {
        Extent::Bytes(self.lines.bytes)
    }

    fn passed(&self) -> u64 {
        self.lines.bytes_read
    }

    fn names(&self) -> Names {
        Names::Lines(self.lines.name.clone())
    }

    fn next(&mut self) -> Result<Option<Row>, Failure> {
        let Some(line) = self.lines.next::<PointLine>(Blank::Passed)? else { return Ok(None) };
        let row =
            row(line, self.next, self.lines.number, &self.ids).map_err(|why| self.lines.within(&why))?;
        self.next += 1;
        Ok(Some(row))
    }
}

fn row(line: PointLine, number: u64, place: u64, ids: &Ids) -> Result<Row, String> {
    check_vectors(&line.vector)?;
    let payload = object(line.payload)?;
    let said = line.id.as_ref().map(id_of).transpose().map_err(|why| format!("id: {why}"))?;
    let id = ids.of(number, said, payload.as_deref())?;
    Ok(Row { place, id, vector: Content::Written(line.vector), payload })
}

/// A payload that is an object, or none.
fn object(payload: Option<Box<RawValue>>) -> Result<Option<Box<RawValue>>, String> {
    match payload {
        Some(payload) if payload.get() == "null" => Ok(None),
        Some(payload) if !payload.get().starts_with('{') => Err("payload: wants an object".to_owned()),
        payload => Ok(payload),
    }
}

/// Checks that vectors are what the API takes, so that the error can name the number.
fn check_vectors(text: &RawValue) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sparse {
        indices: Vec<u32>,
        values: Vec<f32>,
    }
    let check = |at: &str, text: &RawValue| match text.get().as_bytes()[0] {
        b'[' if read::<Vec<f32>>(at, text)?.is_empty() => Err(format!("{at}: has no numbers")),
        b'[' => Ok(()),
        b'{' => {
            let Sparse { indices, values } = read(at, text)?;
            match indices.len() == values.len() {
                true => Ok(()),
                false => Err(format!("{at}: {} values for {} indices", values.len(), indices.len())),
            }
        }
        _ => Err(format!("{at}: wants a list of numbers, or indices and values")),
    };
    match text.get().as_bytes()[0] {
        b'[' => check("vector", text),
        b'{' => {
            let named: BTreeMap<String, Box<RawValue>> = read("vector", text)?;
            named.iter().try_for_each(|(name, text)| check(&format!("vector.{name}"), text))
        }
        _ => Err("vector: wants a list of numbers, or vectors by name".to_owned()),
    }
}

fn read<T: DeserializeOwned>(at: &str, text: &RawValue) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text.get());
    serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let (path, why) = (e.path().to_string(), e.inner().to_string());
        let dot = if path.starts_with('[') { "" } else { "." };
        let at = if path == "." { at.to_owned() } else { format!("{at}{dot}{path}") };
        format!("{at}: {}", why.split(" at line ").next().unwrap_or_default())
    })
}

/// What stands beside the rows of a matrix: line k belongs to row k.
pub(super) enum Beside {
    Nothing,
    Payloads(Lines),
    Points(Lines),
}

/// A point without its vector.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BarePoint {
    id: Value,
    payload: Option<Box<RawValue>>,
}

impl Beside {
    pub(super) fn payloads(path: &Path) -> Result<Self, Failure> {
        Lines::open(path).map(Beside::Payloads)
    }

    pub(super) fn points(path: &Path) -> Result<Self, Failure> {
        Lines::open(path).map(Beside::Points)
    }

    /// What belongs to the next of so many rows.
    pub(super) fn next(&mut self, rows: u64) -> Result<(Option<PointId>, Option<Box<RawValue>>), Failure> {
        let (lines, said) = match self {
            Beside::Nothing => return Ok((None, None)),
            Beside::Payloads(lines) => {
                let payload = lines.next::<Box<RawValue>>(Blank::Refused)?;
                let found = payload.map(|payload| object(Some(payload)).map(|payload| (None, payload)));
                (lines, found)
            }
            Beside::Points(lines) => {
                let point = lines.next::<BarePoint>(Blank::Refused)?;
                let found = point.map(|point| {
                    let id = id_of(&point.id).map_err(|why| format!("id: {why}"))?;
                    Ok((Some(id), object(point.payload)?))
                });
                (lines, found)
            }
        };
        let said = said.ok_or_else(|| {
            format!("{}: ends behind line {}, the matrix has {rows} rows", lines.name, lines.number)
        })?;
        said.map_err(|why| lines.within(&why))
    }

    /// Whether it ends where the matrix does.
    pub(super) fn ends(&mut self, rows: u64) -> Result<(), Failure> {
        match self {
            Beside::Nothing => Ok(()),
            Beside::Payloads(lines) | Beside::Points(lines) => match lines.next::<Value>(Blank::Passed)? {
                None => Ok(()),
                Some(_) => {
                    Err(lines.within(&format!("the file has more lines than the {rows} rows of the matrix")))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, ids: &Ids) -> Result<Vec<Row>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut lines = PointLines::open(&path, ids.clone()).unwrap();
        let mut rows = Vec::new();
        while let Some(row) = lines.next().map_err(|e| e.to_string())? {
            rows.push(row);
        }
        assert_eq!(lines.extent(), Extent::Bytes(lines.passed()));
        Ok(rows)
    }

    #[test]
    fn a_point_a_line() {
        let text = "{\"id\":7,\"vector\":[1,2.5]}\n\n{\"vectors\":{\"a\":[1],\"s\":{\"indices\":[3],\"values\":[0.5]}},\
                    \"payload\":{\"n\":1}}\n{\"id\":\"550E8400E29B41D4A716446655440000\",\"vector\":{},\"payload\":null}";
        let rows = rows(text, &Ids::Usual).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| {
                let Content::Written(vector) = &row.vector else { panic!("{row:?}") };
                (row.place, row.id.as_str(), vector.get(), row.payload.as_ref().map(|p| p.get()))
            })
            .collect();
        assert_eq!(
            seen,
            [
                (1, "7", "[1,2.5]", None),
                (3, "1", r#"{"a":[1],"s":{"indices":[3],"values":[0.5]}}"#, Some(r#"{"n":1}"#)),
                (4, "\"550e8400-e29b-41d4-a716-446655440000\"", "{}", None),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field() {
        let good = "{\"id\":1,\"vector\":[1]}\n";
        for (line, wanted) in [
            (r#"{"id":1,"vector":[1]"#, "line 2: EOF while parsing an object at its end"),
            (r#"{"id":1}"#, "missing field `vector`"),
            (r#"{"id":1,"vector":[1],"payloads":{}}"#, "payloads: unknown field `payloads`"),
            (r#"{"id":1,"vector":[1]} {}"#, "trailing characters"),
            (r#"{"id":-1,"vector":[1]}"#, "id: -1 is no id"),
            (r#"{"id":"x","vector":[1]}"#, "id: \"x\" is no id"),
            (r#"{"id":1,"vector":[1,"x"]}"#, "vector[1]: invalid type: string \"x\", expected f32"),
            (r#"{"id":1,"vector":[1,1e39]}"#, "vector[1]: number out of range"),
            (r#"{"id":1,"vector":[[1]]}"#, "vector[0]: invalid type: sequence"),
            (r#"{"id":1,"vector":[]}"#, "vector: has no numbers"),
            (r#"{"id":1,"vector":7}"#, "vector: wants a list of numbers, or vectors by name"),
            (r#"{"id":1,"vector":{"a":[null]}}"#, "vector.a[0]: invalid type: null"),
            (r#"{"id":1,"vector":{"a":7}}"#, "vector.a: wants a list of numbers, or indices"),
            (r#"{"id":1,"vector":{"s":{"indices":[1],"values":[]}}}"#, "vector.s: 0 values for 1 indices"),
            (
                r#"{"id":1,"vector":{"s":{"indices":[-1],"values":[1]}}}"#,
                "vector.s.indices[0]: invalid value",
            ),
            (r#"{"id":1,"vector":[1],"payload":[]}"#, "payload: wants an object"),
            ("\u{1}", "expected value at column 1"),
        ] {
            let said = rows(&format!("{good}{line}\n"), &Ids::Usual).unwrap_err();
            assert!(said.contains("a.jsonl line 2: ") && said.contains(wanted), "{line}: {said}");
        }
        let said = rows(good, &Ids::Field("word".into())).unwrap_err();
        assert!(said.ends_with("a.jsonl line 1: the payload has no field word"), "{said}");
    }

    #[test]
    fn lines_beside_a_matrix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.jsonl");
        let file = |text: &str| std::fs::write(&path, text).unwrap();
        let said = |beside: Result<Beside, Failure>, rows: u64| {
            let mut beside = beside.unwrap();
            for _ in 0..rows {
                beside.next(rows).map_err(|e| e.to_string())?;
            }
            beside.ends(rows).map_err(|e| e.to_string())
        };
        file("{\"id\":1}\n{\"id\":2,\"payload\":{\"a\":1}}\n");
        assert_eq!(said(Beside::points(&path), 2), Ok(()));
        assert_eq!(said(Beside::payloads(&path), 2), Ok(()));
        for (rows, wanted) in
            [(3, "ends behind line 2, the matrix has 3 rows"), (1, "line 2: the file has more lines")]
        {
            let said = said(Beside::points(&path), rows).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
        file("{\"a\":1}\n\n");
        assert!(said(Beside::points(&path), 1).unwrap_err().contains("line 1: a: unknown field `a`"));
        assert_eq!(said(Beside::payloads(&path), 1), Ok(()));
        assert!(said(Beside::payloads(&path), 2).unwrap_err().contains("line 2: EOF"));
        file("[1]\n");
        assert!(said(Beside::payloads(&path), 1).unwrap_err().contains("line 1: payload: wants an object"));
    }
}
