//! The words of Annal: ids, points, schemas, filters, queries and the commands that enter the log.
//!
//! Pure data and pure functions: no clock, no I/O, no randomness, nothing of Raft, HTTP or storage.

pub mod command;
pub mod datetime;
pub mod error;
pub mod explain;
pub mod filter;
pub mod id;
pub mod point;
pub mod query;
pub mod region;
pub mod schema;

pub use command::{Body, Command};
pub use error::{Effect, Invalid, Kind};
pub use explain::{Explanation, FilterExplanation, PartExplanation, PartKind, SearchCost, SearchPlan};
pub use filter::{Condition, FieldPath, FieldTest, Filter};
pub use id::{CollectionId, Epoch, Generation, PointId, Position, ReplicaId, RequestId, ShardNumber};
pub use point::{Payload, Point, SparseVector, Vector, Vectors};
pub use query::{
    PayloadSelector, Projection, Record, ScoredPoint, ScrollPage, ScrollRequest, SearchParams, SearchRequest,
    Target, VectorSelector,
};
pub use region::{Counted, Counting, Duty, Home, Homes, Turn};
pub use schema::{
    Distance, FieldType, HnswParams, NAME_BYTES_MAX, Quantization, Residence, Schema, SparseParams,
    VectorParams,
};
