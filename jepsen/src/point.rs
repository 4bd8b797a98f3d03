//! Points under test: a value, and the vector that belongs to it.
//!
//! Invariants: the vector is a function of id and value, exact in f32, and no two (id, value) within a workload share
//! one; so a torn point shows by itself, and a search for a vector asks for one value of one point.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Dimensions of every vector.
pub const DIM: usize = 4;

/// Payload values of the field `g`, which filters ask for: `value % GROUPS`.
pub const GROUPS: u64 = 8;

/// The vector that belongs to a value.
pub fn vector_of(id: u64, value: u64) -> [f32; DIM] {
    let part = |n: u64| (n & 0xffff) as f32;
    [part(id), part(id >> 16), part(value), part(value >> 16)]
}

/// The JSON of a point to write.
pub fn body_of(id: u64, value: u64) -> Value {
    json!({"id": id, "vector": vector_of(id, value), "payload": {"v": value, "g": value % GROUPS}})
}

/// Distance of two vectors (Euclid), as the database scores it.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// A point as an answer showed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Its id.
    pub id: u64,
    /// Its payload's value.
    pub v: u64,
    /// Its payload's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub g: Option<u64>,
    /// Its vector, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
    /// Its version, if the answer tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Its distance from what was searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
}

impl Hit {
    /// Reads a point of an answer (`{"id", "payload", "vector"?, "version"?, "score"?}`).
    ///
    /// Errors: it is none of ours.
    pub fn from_answer(point: &Value) -> Result<Self, String> {
        let number = |at: &Value| at.as_u64();
        let payload = &point["payload"];
        let (Some(id), Some(v)) = (number(&point["id"]), number(&payload["v"])) else {
            return Err(format!("not a point of ours: {point}"));
        };
        Ok(Hit {
            id,
            v,
            g: number(&payload["g"]),
            vector: serde_json::from_value(point["vector"].clone()).ok(),
            version: number(&point["version"]),
            score: point["score"].as_f64().map(|score| score as f32),
        })
    }

    /// Why its parts do not belong together, if they do not.
    pub fn torn(&self) -> Option<String> {
        if self.g.is_some_and(|g| g != self.v % GROUPS) {
            return Some(format!("group {:?} of value {}", self.g, self.v));
        }
        let vector = self.vector.as_deref()?;
        (vector != vector_of(self.id, self.v)).then(|| format!("vector {vector:?} of value {}", self.v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_point_shows() {
        let whole = Hit::from_answer(&body_of(70_000, 70_001)).unwrap();
        assert_eq!(whole.torn(), None);
        let vector = Some(vector_of(70_000, 70_002).to_vec());
        assert!(Hit { vector, ..whole.clone() }.torn().is_some());
        assert!(Hit { g: Some(0), ..whole }.torn().is_some());
    }

    #[test]
    fn values_have_vectors_of_their_own() {
        let all: std::collections::BTreeSet<_> = (0..3u64)
            .flat_map(|id| (0..3u64).map(move |v| vector_of(id << 15, v << 16 | v).map(f32::to_bits)))
            .collect();
        assert_eq!(all.len(), 9);
    }
}
