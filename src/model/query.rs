//! What a read asks for, and what it answers.

use super::{Filter, PointId, Position, Vectors};
use bytes::Bytes;

/// What a search looks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The points nearest to this vector `[dim]`, already checked and normalised by the schema.
    Nearest(Vec<f32>),
    /// The points nearest to this point's vector, without the point itself.
    NearestTo(PointId),
    /// No order but the ids'.
    All,
}

/// Knobs of one search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchParams {
    /// Score every point that passes the filter.
    pub exact: bool,
    /// Candidates kept while the graph is walked.
    pub ef: Option<u32>,
}

/// Which parts of a payload are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// Of its payload.
    pub payload: PayloadSelector,
    /// Of its vectors.
    pub vectors: VectorSelector,
}

/// One search.
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredPoint {
    /// Which point.
    pub id: PointId,
    /// The position that last wrote it.
    pub version: Position,
    /// Its score, in the distance's units.
    pub score: f32,
    /// Its payload as JSON text, if asked for (`{}` if it has none).
    pub payload: Option<Bytes>,
    /// Its vectors, if asked for.
    pub vectors: Option<Vectors>,
}

/// A point that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Which point.
    pub id: PointId,
    /// The position that last wrote it.
    pub version: Position,
    /// Its payload as JSON text, if asked for (`{}` if it has none).
    pub payload: Option<Bytes>,
    /// Its vectors, if asked for.
    pub vectors: Option<Vectors>,
}

/// Points in the order of their ids.
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct ScrollPage {
    /// The points, ascending by id.
    pub points: Vec<Record>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<PointId>,
}
