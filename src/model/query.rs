//! What a read asks for, and what it answers.

use super::{Filter, PointId, Position, Vectors};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a search looks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// The points nearest to this vector `[dim]`, already checked and normalised by the schema.
    Nearest(Vec<f32>),
    /// The points nearest to this point's vector, without the point itself.
    NearestTo(PointId),
    /// No order but the ids'.
    All,
}

/// Knobs of one search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchParams {
    /// Score every point that passes the filter.
    pub exact: bool,
    /// Candidates kept while the graph is walked.
    pub ef: Option<u32>,
}

/// Which parts of a payload are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PayloadSelector {
    /// None of it.
    #[default]
    None,
    /// All of it.
    All,
    /// These paths only.
    Include(Vec<String>),
    /// All but these paths.
    Exclude(Vec<String>),
}

/// Which vectors are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VectorSelector {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// These names.
    Names(Vec<String>),
}

/// What of a point is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// Of its payload.
    pub payload: PayloadSelector,
    /// Of its vectors.
    pub vectors: VectorSelector,
}

/// One search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchRequest {
    /// What for.
    pub target: Target,
    /// Over which vector of the schema.
    pub using: String,
    /// Among which points.
    pub filter: Option<Filter>,
    /// How many.
    pub limit: usize,
    /// How many of the nearest to leave out.
    pub offset: usize,
    /// Only scores at least as near as this, in the distance's own units.
    pub score_threshold: Option<f32>,
    /// Knobs.
    pub params: SearchParams,
    /// What to return.
    pub projection: Projection,
}

/// A point found by a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredPoint {
    /// Which point.
    pub id: PointId,
    /// The position that last wrote it.
    pub version: Position,
    /// Its score, in the distance's units.
    pub score: f32,
    /// Its payload as JSON text, if asked for (`{}` if it has none).
    #[serde(with = "json_text")]
    pub payload: Option<Bytes>,
    /// Its vectors, if asked for.
    pub vectors: Option<Vectors>,
}

/// A point that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which point.
    pub id: PointId,
    /// The position that last wrote it.
    pub version: Position,
    /// Its payload as JSON text, if asked for (`{}` if it has none).
    #[serde(with = "json_text")]
    pub payload: Option<Bytes>,
    /// Its vectors, if asked for.
    pub vectors: Option<Vectors>,
}

/// Points in the order of their ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrollRequest {
    /// The first id to return, if it is there.
    pub offset: Option<PointId>,
    /// How many.
    pub limit: usize,
    /// Among which points.
    pub filter: Option<Filter>,
    /// What to return.
    pub projection: Projection,
}

/// One page of a scroll.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrollPage {
    /// The points, ascending by id.
    pub points: Vec<Record>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<PointId>,
}

/// A payload between nodes: the bytes of its text.
mod json_text {
    use super::Bytes;
    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, Visitor},
    };

    /// Bytes that are written as bytes, not as a list of numbers.
    struct Text<'a>(&'a [u8]);

    impl Serialize for Text<'_> {
        fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_bytes(self.0)
        }
    }

    struct Owned(Bytes);

    impl<'de> Deserialize<'de> for Owned {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            struct OfBytes;
            impl Visitor<'_> for OfBytes {
                type Value = Owned;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Owned, E> {
                    Ok(Owned(Bytes::copy_from_slice(bytes)))
                }
                fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Owned, E> {
                    Ok(Owned(bytes.into()))
                }
            }
            d.deserialize_byte_buf(OfBytes)
        }
    }

    pub(super) fn serialize<S: Serializer>(text: &Option<Bytes>, s: S) -> Result<S::Ok, S::Error> {
        text.as_deref().map(Text).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Owned>::deserialize(d)?.map(|text| text.0))
    }
}
