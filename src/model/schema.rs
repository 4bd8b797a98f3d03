//! What a collection's points look like: their vectors, distances and indexed payload fields.
//!
//! A schema reaches a shard as an entry in the shard's own log, so apply depends on nothing else.

use super::{FieldPath, Invalid, Point, SparseVector, Vector};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest path of an indexed field and name of a vector, in bytes: they are parts of keys.
pub const NAME_BYTES_MAX: usize = 1024;

/// How near two vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distance {
    /// Cosine of the angle; vectors are normalised before the append; larger is nearer.
    Cosine,
    /// Inner product; larger is nearer.
    Dot,
    /// Euclidean distance in vector units; smaller is nearer.
    Euclid,
    /// Sum of absolute differences in vector units; smaller is nearer.
    Manhattan,
}

impl Distance {
    /// Whether a larger score is nearer.
    pub fn larger_is_nearer(self) -> bool {
        matches!(self, Distance::Cosine | Distance::Dot)
    }
}

/// Shape of the graph over a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HnswParams {
    /// Links of a node on the upper levels; twice as many on the lowest.
    pub m: u32,
    /// Candidates kept while a node is inserted.
    pub ef_construct: u32,
}

impl Default for HnswParams {
    fn default() -> Self {
        HnswParams { m: 16, ef_construct: 128 }
    }
}

/// A dense vector of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorParams {
    /// Dimensions, 1 to [`VectorParams::DIM_MAX`].
    pub dim: u32,
    /// Its distance.
    pub distance: Distance,
    /// Shape of its graph.
    pub hnsw: HnswParams,
    /// Shape of the codes in its graph. The usual one is left out, so that schemas that say nothing of it keep their
    /// bytes, and their hash.
    #[serde(default, skip_serializing_if = "Quantization::is_usual")]
    pub quantization: Quantization,
    /// Where its graph and codes are held; the usual place is left out too.
    #[serde(default, skip_serializing_if = "Residence::is_usual")]
    pub residence: Residence,
}

/// How the vectors of a graph are coded: codes choose candidates, and never answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantization {
    /// 8 bits a number, or 4 where that is enough.
    #[default]
    Scalar,
    /// 1 bit a number, where that was seen to be enough; else as `Scalar`.
    Binary,
    /// Not at all: a walk compares the vectors themselves.
    None,
}

/// Where that of a graph is held which a search jumps about in. Vectors as they were written are read from the file, few
/// for each search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Residence {
    /// Links and codes in memory.
    #[default]
    Memory,
    /// Codes in memory; links are read from the file.
    Codes,
    /// Both are read from the file; what is often read stays in the system's cache as long as there is room.
    Disk,
}

impl Residence {
    fn is_usual(&self) -> bool {
        *self == Residence::default()
    }
}

impl Quantization {
    fn is_usual(&self) -> bool {
        *self == Quantization::default()
    }
}

impl VectorParams {
    /// With the usual codes, in memory.
    pub fn new(dim: u32, distance: Distance, hnsw: HnswParams) -> Self {
        let (quantization, residence) = Default::default();
        VectorParams { dim, distance, hnsw, quantization, residence }
    }

    /// The largest dimension that is accepted (Qdrant's own limit).
    pub const DIM_MAX: u32 = 65_536;
}

/// A sparse vector of the schema: stored and returned, not searched yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparseParams {}

/// How a payload field is indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FieldType {
    /// Exact strings.
    Keyword,
    /// Signed 64-bit numbers.
    Integer,
    /// 64-bit floats (integers count as floats).
    Float,
    /// True or false.
    Bool,
    /// UUID strings, compared by value.
    Uuid,
    /// RFC 3339 instants.
    Datetime,
    /// Words of a text.
    Text,
}

/// What a collection's points look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Counts the changes; a shard applies a schema only if it is newer than its own.
    pub version: u64,
    /// Dense vectors by name; the unnamed one has the name `""`.
    pub vectors: BTreeMap<String, VectorParams>,
    /// Sparse vectors by name.
    pub sparse: BTreeMap<String, SparseParams>,
    /// Indexed payload fields.
    pub fields: BTreeMap<FieldPath, FieldType>,
}

impl Schema {
    /// Checks a point and brings it into the form that enters the log: Cosine vectors normalised, sparse
    /// indices sorted.
    ///
    /// Errors: names the vector and the limit (no effect).
    pub fn admit(&self, point: &mut Point) -> Result<(), Invalid> {
        for (name, vector) in &mut point.vectors {
            let field = if name.is_empty() { "vector".to_owned() } else { format!("vector.{name}") };
            match vector {
                Vector::Dense(values) => {
                    let params = self.vectors.get(name).ok_or_else(|| {
                        Invalid::new(&field, format!("Not existing vector name error: {name}"))
                    })?;
                    params.admit(values).map_err(|e| Invalid::new(&field, e.why))?;
                }
                Vector::Sparse(sparse) => {
                    if !self.sparse.contains_key(name) {
                        return Err(Invalid::new(field, format!("Not existing vector name error: {name}")));
                    }
                    sparse.admit().map_err(|e| e.within(&field))?;
                }
            }
        }
        Ok(())
    }
}

impl VectorParams {
    /// Checks a vector (of a point or of a query) and normalises it if the distance is Cosine.
    ///
    /// Shapes: `values [dim]`. Errors: wrong dimension, a number that is not finite (no effect).
    pub fn admit(&self, values: &mut [f32]) -> Result<(), Invalid> {
        if values.len() != self.dim as usize {
            let why = format!("Vector dimension error: expected dim: {}, got {}", self.dim, values.len());
            return Err(Invalid::new("vector", why));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Invalid::new(
                "vector",
                format!("number {at} is {}, every one must be finite", values[at]),
            ));
        }
        if self.distance == Distance::Cosine {
            normalise(values);
        }
        Ok(())
    }
}

/// Scales a vector to length 1; a vector shorter than 1e-10 (such as all zeroes) stays as it is.
pub fn normalise(values: &mut [f32]) {
    let length = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    // A vector that is already of length 1 keeps its bits, so that reading and writing back changes nothing.
    if length > 1e-10 && (length - 1.0).abs() > 1e-6 {
        for v in values {
            *v = (f64::from(*v) / length) as f32;
        }
    }
}

impl SparseVector {
    /// Checks that indices are unique and values finite, and sorts by index.
    ///
    /// Errors: names what is wrong (no effect).
    pub fn admit(&mut self) -> Result<(), Invalid> {
        if self.indices.len() != self.values.len() {
            let why = format!("{} values for {} indices", self.values.len(), self.indices.len());
            return Err(Invalid::new("values", why));
        }
        if let Some(v) = self.values.iter().find(|v| !v.is_finite()) {
            return Err(Invalid::new("values", format!("{v} is not finite")));
        }
        let mut pairs: Vec<(u32, f32)> =
            self.indices.iter().copied().zip(self.values.iter().copied()).collect();
        pairs.sort_by_key(|p| p.0);
        if let Some(w) = pairs.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(Invalid::new("indices", format!("{} stands twice", w[0].0)));
        }
        (self.indices, self.values) = pairs.into_iter().unzip();
        Ok(())
    }
}
