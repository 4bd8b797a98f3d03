//! Points as answers: JSON text written straight from the store's bytes.
//!
//! A payload is JSON text already and is copied, not parsed. Nulls are left out.

use crate::model::{PointId, Record, ScoredPoint, Vector, Vectors};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;

/// JSON text being written.
#[derive(Default)]
pub(super) struct Answer(pub(super) Vec<u8>);

impl Answer {
    /// A list, each item written by `write`.
    pub(super) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.text("[");
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.text(",");
            }
            write(self, item);
        }
        self.text("]");
    }

    /// `{"id":…,"version":…,"score":…,"payload":…,"vector":…}`
    pub(super) fn scored(&mut self, point: &ScoredPoint) {
        self.text(r#"{"id":"#);
        self.value(&point.id);
        self.text(r#","version":"#);
        self.value(&point.version);
        self.text(r#","score":"#);
        self.value(&point.score);
        self.content(point.payload.as_ref(), point.vectors.as_ref());
    }

    /// `{"id":…,"payload":…,"vector":…}`
    pub(super) fn record(&mut self, record: &Record) {
        self.text(r#"{"id":"#);
        self.value(&record.id);
        self.content(record.payload.as_ref(), record.vectors.as_ref());
    }

    /// The id where the next page starts, or null: the one null that is written, for clients look for it.
    pub(super) fn next_page(&mut self, next: Option<PointId>) {
        self.text(r#","next_page_offset":"#);
        self.value(&next);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn content(&mut self, payload: Option<&Bytes>, vectors: Option<&Vectors>) {
        if let Some(payload) = payload {
            self.text(r#","payload":"#);
            self.0.extend_from_slice(if payload.is_empty() { b"{}" } else { payload });
        }
        if let Some(vectors) = vectors {
            self.text(r#","vector":"#);
            self.vectors(vectors);
        }
        self.text("}");
    }

    fn vectors(&mut self, vectors: &Vectors) {
        match vectors.get("") {
            Some(Vector::Dense(unnamed)) if vectors.len() == 1 => self.value(unnamed),
            _ => {
                let named: BTreeMap<_, _> =
                    vectors.iter().map(|(name, v)| (name, VectorAnswer::of(v))).collect();
                self.value(&named);
            }
        }
    }

    fn value(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut self.0, value).expect("a Vec grows as needed, and keys are strings");
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum VectorAnswer<'a> {
    Dense(&'a [f32]),
    Sparse { indices: &'a [u32], values: &'a [f32] },
}

impl<'a> VectorAnswer<'a> {
    fn of(vector: &'a Vector) -> Self {
        match vector {
            Vector::Dense(values) => VectorAnswer::Dense(values),
            Vector::Sparse(sparse) => {
                VectorAnswer::Sparse { indices: &sparse.indices, values: &sparse.values }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Position, SparseVector};

    fn written(write: impl FnOnce(&mut Answer)) -> String {
        let mut answer = Answer::default();
        write(&mut answer);
        String::from_utf8(answer.0).unwrap()
    }

    #[test]
    fn scored_points() {
        let mut point = ScoredPoint {
            id: PointId::Num(u64::MAX),
            version: Position(7),
            score: 0.1,
            payload: None,
            vectors: None,
        };
        assert_eq!(written(|a| a.scored(&point)), r#"{"id":18446744073709551615,"version":7,"score":0.1}"#);
        point.payload = Some(Bytes::from_static(br#"{"a":"b"}"#));
        point.vectors = Some([(String::new(), Vector::Dense(vec![1.0, -0.5]))].into());
        assert_eq!(
            written(|a| a.scored(&point)),
            r#"{"id":18446744073709551615,"version":7,"score":0.1,"payload":{"a":"b"},"vector":[1.0,-0.5]}"#
        );
    }

    #[test]
    fn records_with_named_and_sparse_vectors() {
        let sparse = SparseVector { indices: vec![3, 9], values: vec![0.5, 2.0] };
        let record = Record {
            id: PointId::Uuid(0x550e8400_e29b_41d4_a716_446655440000),
            version: Position(1),
            payload: Some(Bytes::new()),
            vectors: Some(
                [("a".to_owned(), Vector::Dense(vec![1.0])), ("s".to_owned(), Vector::Sparse(sparse))].into(),
            ),
        };
        assert_eq!(
            written(|a| a.record(&record)),
            r#"{"id":"550e8400-e29b-41d4-a716-446655440000","payload":{},"vector":{"a":[1.0],"s":{"indices":[3,9],"values":[0.5,2.0]}}}"#
        );
    }

    #[test]
    fn lists_and_pages() {
        assert_eq!(written(|a| a.list(&[1, 2], |a, n| a.value(n))), "[1,2]");
        assert_eq!(written(|a| a.list(&[0; 0], |a, n| a.value(n))), "[]");
        assert_eq!(written(|a| a.next_page(None)), r#","next_page_offset":null"#);
        assert_eq!(written(|a| a.next_page(Some(PointId::Num(3)))), r#","next_page_offset":3"#);
    }
}
