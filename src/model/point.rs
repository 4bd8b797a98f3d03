//! A point: an id, its vectors by name, its payload.

use super::PointId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A JSON object that travels with a point.
pub type Payload = serde_json::Map<String, serde_json::Value>;

/// A point's vectors by name; the unnamed vector has the name `""`.
pub type Vectors = BTreeMap<String, Vector>;

/// One vector of a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Vector {
    /// One number for each dimension; every one is finite.
    Dense(Vec<f32>),
    /// Numbers for some dimensions only.
    Sparse(SparseVector),
}

/// A vector given by its non-zero places.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SparseVector {
    /// The dimensions, ascending, each once.
    pub indices: Vec<u32>,
    /// As many values as indices; every one is finite.
    pub values: Vec<f32>,
}

/// A point as a user writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Which point.
    pub id: PointId,
    /// Its vectors; a point may lack some of the schema's.
    pub vectors: Vectors,
    /// Its payload; empty if it has none.
    pub payload: Payload,
}
