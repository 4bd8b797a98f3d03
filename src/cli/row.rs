//! A point on its way: as the text that is sent, and what vectors a text that was read holds.

use super::server::Failure;
use annal::model::SparseVector;
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt::Write as _};

/// A point of a file, or of another server.
#[derive(Debug)]
pub(super) struct Row {
    /// The number of its row, from 0, or of its line, from 1.
    pub(super) place: u64,
    /// The id as JSON text: a number, or a quoted UUID as it is usually written.
    pub(super) id: String,
    pub(super) vector: Content,
    pub(super) payload: Option<Box<RawValue>>,
}

/// The vectors of a row.
#[derive(Debug)]
pub(super) enum Content {
    /// Numbers of one vector.
    Dense(Vec<f32>),
    /// JSON as the API takes it: a list of numbers, or vectors by name.
    Written(Box<RawValue>),
    /// Not fetched yet.
    Elsewhere,
}

impl Row {
    /// About how long its text is.
    pub(super) fn bytes(&self) -> usize {
        let vector = match &self.vector {
            Content::Dense(numbers) => numbers.len() * 12,
            Content::Written(text) => text.get().len(),
            Content::Elsewhere => 0,
        };
        vector + self.payload.as_ref().map_or(0, |payload| payload.get().len()) + 64
    }
}

/// The body of an upsert; numbers without a name belong to the vector `name`, if that is given.
///
/// Written as text: a vector's numbers are most of an import, and need no tree in between.
pub(super) fn upsert_body(rows: &[Row], name: Option<&str>) -> Result<String, Failure> {
    let mut body = String::with_capacity(rows.iter().map(Row::bytes).sum::<usize>() + 16);
    let name = name.map(serde_json::to_string).transpose()?;
    body.push_str(r#"{"points":["#);
    for (i, row) in rows.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(body, r#"{comma}{{"id":{},"vector":"#, row.id)?;
        let numbers;
        let text = match &row.vector {
            Content::Dense(dense) => {
                numbers = serde_json::to_string(dense)?;
                &numbers
            }
            Content::Written(text) => text.get(),
            Content::Elsewhere => return Err(format!("point {} was not fetched", row.id).into()),
        };
        match &name {
            Some(name) if text.starts_with('[') => write!(body, "{{{name}:{text}}}")?,
            _ => body.push_str(text),
        }
        if let Some(payload) = &row.payload {
            write!(body, r#","payload":{}"#, payload.get())?;
        }
        body.push('}');
    }
    body.push_str("]}");
    Ok(body)
}

/// A vector that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum OneVector {
    Dense(Vec<f32>),
    Sparse(SparseVector),
}

impl OneVector {
    /// Numbers in it.
    pub(super) fn len(&self) -> usize {
        match self {
            OneVector::Dense(numbers) => numbers.len(),
            OneVector::Sparse(sparse) => sparse.values.len(),
        }
    }
}

/// The vectors of a point as the API writes them, by name; the unnamed one has the name `""`.
pub(super) fn vectors_of(text: &RawValue) -> serde_json::Result<BTreeMap<String, OneVector>> {
    if text.get().starts_with('[') {
        return Ok([(String::new(), OneVector::Dense(serde_json::from_str(text.get())?))].into());
    }
    let named: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text.get())?;
    let one = |text: &RawValue| match text.get().starts_with('[') {
        true => serde_json::from_str(text.get()).map(OneVector::Dense),
        false => serde_json::from_str(text.get()).map(OneVector::Sparse),
    };
    named.into_iter().map(|(name, text)| Ok((name, one(&text)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_as_text() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let row = |id: &str, vector, payload: Option<&str>| Row {
            place: 0,
            id: id.to_owned(),
            vector,
            payload: payload.map(raw),
        };
        let rows = [
            row("1", Content::Dense(vec![0.1, -2.0]), Some(r#"{"a":[1]}"#)),
            row("2", Content::Written(raw("[1,2]")), None),
            row("3", Content::Written(raw(r#"{"b":[3]}"#)), None),
        ];
        assert_eq!(
            upsert_body(&rows, None).unwrap(),
            r#"{"points":[{"id":1,"vector":[0.1,-2.0],"payload":{"a":[1]}},{"id":2,"vector":[1,2]},{"id":3,"vector":{"b":[3]}}]}"#
        );
        assert_eq!(
            upsert_body(&rows, Some("a")).unwrap(),
            r#"{"points":[{"id":1,"vector":{"a":[0.1,-2.0]},"payload":{"a":[1]}},{"id":2,"vector":{"a":[1,2]}},{"id":3,"vector":{"b":[3]}}]}"#
        );
        upsert_body(&[row("4", Content::Elsewhere, None)], None).unwrap_err();
    }
}
