//! Files of other writers, files of our own, and damaged ones. Those in `tests/data/parquet` were written by pyarrow
//! (`tests/data/parquet/README.md`).

use super::{
    super::{
        import::{Ids, Source},
        row::{Content, OneVector, Row, vectors_of},
        settings::Settings,
    },
    Table, TableWriter,
};
use serde_json::{Value, json, value::RawValue};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

fn foreign(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parquet").join(name)
}

fn read(path: &Path, column: Option<&str>, ids: Ids) -> Result<Vec<Row>, String> {
    let mut table = Table::open(path, column, ids).map_err(|e| e.to_string())?;
    let mut rows = Vec::new();
    while let Some(row) = table.next().map_err(|e| e.to_string())? {
        rows.push(row);
    }
    Ok(rows)
}

/// Vectors as they are sent.
fn vectors(row: &Row) -> Value {
    match &row.vector {
        Content::Dense(numbers) => json!(numbers),
        Content::Written(text) => serde_json::from_str(text.get()).unwrap(),
        Content::Elsewhere => panic!("not fetched"),
    }
}

fn payload(row: &Row) -> Value {
    row.payload.as_ref().map_or(Value::Null, |text| serde_json::from_str(text.get()).unwrap())
}

#[test]
fn a_file_of_another_writer() {
    let rows = read(&foreign("pyarrow.parquet"), None, Ids::Field("key".into())).unwrap();
    assert_eq!(rows.len(), 6, "of two row groups");
    for (at, row) in rows.iter().enumerate() {
        assert_eq!((row.place, row.id.as_str()), (at as u64, (10 + at).to_string().as_str()));
        assert_eq!(vectors(row), json!([at as f32 + 0.5, -(at as f32), 0.25]));
    }
    assert_eq!(
        payload(&rows[5]),
        json!({"key": 15, "word": "w5", "tags": ["t0", "t1"], "nested": {"a": 5, "b": [5, null]},
               "when": "2024-01-02T03:04:05.030Z", "score": 1.25, "ok": false})
    );
    assert_eq!(payload(&rows[2]).get("word"), None, "what is null is left out");
    let by_number = read(&foreign("pyarrow.parquet"), Some("emb"), Ids::Usual).unwrap();
    assert_eq!(by_number[5].id, "5");
}

#[test]
fn lists_of_every_kind_and_every_compression() {
    for name in ["double.parquet", "half.parquet", "fixed.parquet", "large.parquet"] {
        let rows = read(&foreign(name), None, Ids::Usual).unwrap();
        assert_eq!(rows.len(), 6, "{name}");
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(vectors(row), json!([at as f32 + 0.5, -(at as f32), 0.25]), "{name}");
            assert_eq!((row.id.as_str(), payload(row)), (at.to_string().as_str(), Value::Null), "{name}");
        }
    }
}

#[test]
fn what_a_file_does_not_say_is_named() {
    for (name, column, ids, wanted) in [
        ("null-vector.parquet", None, Ids::Usual, "row 1: has no vector"),
        ("null-id.parquet", None, Ids::Usual, "row 1: column id is null"),
        ("null-number.parquet", None, Ids::Usual, "column emb: a number is null"),
        ("two-lists.parquet", None, Ids::Usual, "columns a, b hold lists of numbers: --column says which"),
        ("two-lists.parquet", Some("c"), Ids::Usual, "column c is not there, or holds no lists of numbers"),
        ("two-lists.parquet", Some("id"), Ids::Usual, "column id is not there, or holds no lists of numbers"),
        ("two-lists.parquet", Some("b"), Ids::Usual, "row 0: column id: \"x1\" is no id"),
        ("two-lists.parquet", Some("b"), Ids::Field("no".into()), "row 0: the payload has no field no"),
        ("no.parquet", None, Ids::Usual, "No such file"),
        ("README.md", None, Ids::Usual, "README.md: "),
    ] {
        let said = read(&foreign(name), column, ids).unwrap_err();
        assert!(said.contains(wanted) && said.contains(name), "{name}: {said}");
    }
    let rows = read(&foreign("two-lists.parquet"), Some("b"), Ids::Rows).unwrap();
    assert_eq!((rows[0].id.as_str(), payload(&rows[0])), ("0", json!({"id": "x1", "a": [1.0]})));
}

/// Points of every shape: `(id, vectors, payload)`.
fn shapes() -> Vec<(Value, Value, Value)> {
    vec![
        (
            json!(0),
            json!({"a": [0.5, -1.5], "s": {"indices": [7, 4_294_967_295u32], "values": [0.25, -2.0]}}),
            Value::Null,
        ),
        (json!(u64::MAX), json!({"a": [0.1, 3.0e38]}), json!({"é\n": [1, null, {"x": 1.5e300}]})),
        (json!("550e8400-e29b-41d4-a716-446655440000"), json!({}), json!({"vector": "none"})),
        (
            json!("650e8400-e29b-41d4-a716-446655440000"),
            json!({"s": {"indices": [], "values": []}}),
            json!({"id": 7}),
        ),
    ]
}

fn write(path: &Path, settings: &str, points: &[(Value, Value, Value)]) {
    let settings: Settings = serde_json::from_str(settings).unwrap();
    let mut table = TableWriter::new(File::create(path).unwrap(), &settings).unwrap();
    for (id, vectors, payload) in points {
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let text = payload.to_string();
        let vectors = vectors_of(&RawValue::from_string(vectors.to_string()).unwrap()).unwrap();
        table.write(id, (!payload.is_null()).then_some(text.as_str()), vectors).unwrap();
    }
    table.finish().unwrap();
}

const NAMED: &str = r#"{"vectors": {"a": {"size": 2, "distance": "Dot"}}, "sparse_vectors": ["s"]}"#;
const UNNAMED: &str = r#"{"vectors": {"": {"size": 1, "distance": "Dot"}}}"#;

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, NAMED, &shapes());
    let rows = read(&path, None, Ids::Usual).unwrap();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (serde_json::from_str::<Value>(&row.id).unwrap(), vectors_of_row(row), payload(row)))
        .collect();
    let wanted: Vec<_> = shapes()
        .into_iter()
        .map(|(id, vectors, payload)| {
            (id, vectors_of(&RawValue::from_string(vectors.to_string()).unwrap()).unwrap(), payload)
        })
        .collect();
    assert_eq!(found, wanted);

    // Several row groups, of the unnamed vector.
    let many: Vec<_> = (0..40_000).map(|n| (json!(n), json!([n as f32]), json!({ "n": n }))).collect();
    write(&path, UNNAMED, &many);
    let rows = read(&path, None, Ids::Usual).unwrap();
    assert_eq!(rows.len(), many.len());
    for (row, (id, vector, content)) in rows.iter().zip(&many) {
        assert_eq!((&row.id, &vectors(row), &payload(row)), (&id.to_string(), vector, content));
    }
}

fn vectors_of_row(row: &Row) -> std::collections::BTreeMap<String, OneVector> {
    vectors_of(&RawValue::from_string(vectors(row).to_string()).unwrap()).unwrap()
}

#[test]
fn what_the_columns_cannot_hold_is_refused() {
    let settings: Settings = serde_json::from_str(NAMED).unwrap();
    let mut table = TableWriter::new(Vec::new(), &settings).unwrap();
    for (vectors, wanted) in [
        (r#"{"a":[1,2],"b":[1]}"#, "point 1: vector \"b\" was not there when the export began"),
        (r#"{"s":[1,2]}"#, "point 1: vector \"s\" is of another kind"),
    ] {
        let vectors = vectors_of(&RawValue::from_string(vectors.to_owned()).unwrap()).unwrap();
        let said = table.write("1".into(), None, vectors).unwrap_err().to_string();
        assert_eq!(said, wanted);
    }
}

#[test]
fn a_damaged_file_is_an_error_or_reads_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, NAMED, &shapes());
    let good = fs::read(&path).unwrap();
    let wanted = read(&path, None, Ids::Usual).unwrap().len();
    let mut errors = 0;
    for at in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            fs::write(&path, bytes).unwrap();
            match read(&path, None, Ids::Usual) {
                Ok(rows) => assert!(rows.len() <= wanted, "byte {at}: {} rows", rows.len()),
                Err(why) => {
                    assert!(why.contains("a.parquet"), "{why}");
                    errors += 1;
                }
            }
        }
    }
    assert!(errors > good.len() / 4, "{errors} errors of {} flips", 2 * good.len());
    for bytes in (0..good.len()).step_by(7) {
        fs::write(&path, &good[..bytes]).unwrap();
        read(&path, None, Ids::Usual).expect_err("a file that was cut off");
    }
}
