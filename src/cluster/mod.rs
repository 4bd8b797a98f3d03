//! Who holds what, and how a request gets there: the one door of `api/` into the database.

mod token;

use crate::model::{
    CollectionId, Effect, FieldPath, FieldType, Filter, Generation, HnswParams, Invalid, Kind, Point,
    PointId, Position, Projection, Record, RequestId, Schema, ScoredPoint, ScrollPage, ScrollRequest,
    SearchRequest, ShardNumber, SparseParams, VectorParams,
};
use std::{collections::BTreeMap, sync::Arc};
pub use token::Token;
use tokio::time::Instant;

/// The live view of the cluster; cheap to clone.
#[derive(Clone)]
pub struct Cluster {}

/// What a user says when creating a collection.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CollectionSpec {
    /// Dense vectors by name; the unnamed one is `""`.
    pub vectors: BTreeMap<String, VectorParams>,
    /// Sparse vectors by name.
    pub sparse: BTreeMap<String, SparseParams>,
    /// How many shards.
    pub shard_number: u32,
    /// How many copies are wanted; placed on what there is.
    pub replication_factor: u32,
    /// Default shape of graphs.
    pub hnsw: HnswParams,
    /// Settings of Qdrant's that are accepted, kept and returned as they came: `optimizers_config`,
    /// `wal_config`, `on_disk_payload`, `metadata`, ….
    pub passthrough: serde_json::Map<String, serde_json::Value>,
}

/// A change of an existing collection; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CollectionChange {
    /// New shapes of graphs, by vector.
    pub hnsw_by_vector: BTreeMap<String, HnswParams>,
    /// New default shape of graphs.
    pub hnsw: Option<HnswParams>,
    /// Settings to merge into [`CollectionSpec::passthrough`], key by key.
    pub passthrough: serde_json::Map<String, serde_json::Value>,
}

/// A collection as it stands.
#[derive(Clone, Debug)]
pub struct CollectionInfo {
    /// Its id.
    pub id: CollectionId,
    /// What its creator said, with later changes.
    pub spec: CollectionSpec,
    /// Its schema now, with indexed fields.
    pub schema: Arc<Schema>,
    /// Points in it.
    pub points: u64,
    /// Points that have a value in the field, by indexed field.
    pub field_points: BTreeMap<FieldPath, u64>,
    /// Vectors in it.
    pub vectors: u64,
    /// Vectors that are found fast: in a graph, or in the exact delta.
    pub indexed_vectors: u64,
    /// Graphs and open deltas over all shards and vectors.
    pub segments: u64,
    /// Whether a sealed batch of vectors is still being built into a graph.
    pub building: bool,
}

/// How a write is carried out.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Answer when applied (true) or when committed (false).
    pub wait: bool,
    /// When to give up.
    pub deadline: Instant,
    /// The intent, if the client named one.
    pub request: Option<RequestId>,
}

/// How a read is carried out. Every read is linearizable; weaker wishes are strengthened to it.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// When to give up.
    pub deadline: Instant,
    /// See at least this.
    pub at_least: Option<Token>,
}

/// Which points to delete.
#[derive(Clone, Debug, PartialEq)]
pub enum PointSelector {
    /// These.
    Ids(Vec<PointId>),
    /// All that pass.
    Matching(Filter),
}

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its position (the highest, if it went to several shards).
    pub position: Position,
    /// Whether it is applied, or only committed.
    pub applied: bool,
    /// What to pass on to see it.
    pub token: Token,
}

/// An answer, and what it had seen.
#[derive(Clone, Debug)]
pub struct Seen<T> {
    /// The answer.
    pub value: T,
    /// The positions it was read at.
    pub token: Token,
}

/// Why a request could not be served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// The request does not fit.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such collection.
    #[error("Not found: Collection `{0}` doesn't exist!")]
    NoCollection(String),
    /// No such point.
    #[error("Not found: No point with id {0} found")]
    NoPoint(PointId),
    /// The collection is there already.
    #[error("Wrong input: Collection `{0}` already exists!")]
    CollectionExists(String),
    /// A request was applied with other content under the same id, or a stale view was used.
    #[error("{0}")]
    Conflict(String),
    /// The token's log suffix is gone, or it is older than what is kept.
    #[error("{0}")]
    Expired(String),
    /// Nothing was proposed.
    #[error("{0}")]
    Unavailable(String),
    /// The deadline passed.
    #[error("{what} did not finish in time")]
    Timeout {
        /// What was waited for.
        what: String,
        /// Whether it may still take effect.
        effect: Effect,
    },
    /// The disk's floor is reached.
    #[error("{0}")]
    Full(String),
    /// Not built yet.
    #[error("{0} is not implemented yet")]
    Unimplemented(String),
    /// A component failed.
    #[error("{message}")]
    Internal {
        /// What failed.
        message: String,
        /// Damaged data, or anything else.
        corrupt: bool,
        /// Whether the request may have taken effect.
        effect: Effect,
    },
}

impl ClusterError {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            ClusterError::Invalid(_) => Kind::Invalid,
            ClusterError::NoCollection(_) | ClusterError::NoPoint(_) => Kind::NotFound,
            ClusterError::CollectionExists(_) | ClusterError::Conflict(_) => Kind::Conflict,
            ClusterError::Expired(_) => Kind::Expired,
            ClusterError::Unavailable(_) => Kind::Unavailable,
            ClusterError::Timeout { .. } => Kind::Timeout,
            ClusterError::Full(_) => Kind::Full,
            ClusterError::Unimplemented(_) => Kind::Unimplemented,
            ClusterError::Internal { corrupt: true, .. } => Kind::Corrupt,
            ClusterError::Internal { .. } => Kind::Internal,
        }
    }

    /// Whether the request may have changed something.
    pub fn effect(&self) -> Effect {
        match self {
            ClusterError::Timeout { effect, .. } | ClusterError::Internal { effect, .. } => *effect,
            _ => Effect::None,
        }
    }
}

type Result<T> = std::result::Result<T, ClusterError>;

/// A node, as `GET /annal/v1/info` tells of itself.
#[derive(Clone, Debug, serde::Serialize)]
pub struct NodeInfo {
    /// Annal's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Its region.
    pub region: String,
    /// The cluster's id.
    pub cluster_id: String,
    /// How it was built.
    pub build: String,
}

impl Cluster {
    /// What this node is.
    pub fn info(&self) -> NodeInfo {
        todo!()
    }

    /// Nodes and shards, in the shape of `GET /annal/v1/cluster`.
    pub fn topology(&self) -> serde_json::Value {
        todo!()
    }

    /// Why this node is not ready yet; `None` when it is.
    pub fn unready(&self) -> Option<String> {
        todo!()
    }

    /// Creates a collection; its shards are there when this returns.
    pub async fn create_collection(&self, name: &str, spec: CollectionSpec, deadline: Instant) -> Result<()> {
        todo!()
    }

    /// Changes a collection.
    pub async fn update_collection(
        &self,
        name: &str,
        change: CollectionChange,
        deadline: Instant,
    ) -> Result<()> {
        todo!()
    }

    /// Drops a collection; `false` if there was none.
    pub async fn delete_collection(&self, name: &str, deadline: Instant) -> Result<bool> {
        todo!()
    }

    /// Names of all collections, ascending.
    pub async fn collections(&self, options: &ReadOptions) -> Result<Vec<String>> {
        todo!()
    }

    /// A collection as it stands.
    pub async fn collection(&self, name: &str, options: &ReadOptions) -> Result<CollectionInfo> {
        todo!()
    }

    /// A collection's schema (cheap; for checking a request before it is built).
    pub async fn schema(&self, name: &str) -> Result<Arc<Schema>> {
        todo!()
    }

    /// Writes whole points. They are checked against the schema here; the error names `points[i]`.
    pub async fn upsert(&self, name: &str, points: Vec<Point>, options: &WriteOptions) -> Result<Written> {
        todo!()
    }

    /// Deletes points.
    pub async fn delete_points(
        &self,
        name: &str,
        which: PointSelector,
        options: &WriteOptions,
    ) -> Result<Written> {
        todo!()
    }

    /// Indexes a payload field.
    pub async fn create_field_index(
        &self,
        name: &str,
        path: FieldPath,
        of: FieldType,
        options: &WriteOptions,
    ) -> Result<Written> {
        todo!()
    }

    /// Drops the index of a payload field.
    pub async fn delete_field_index(
        &self,
        name: &str,
        path: FieldPath,
        options: &WriteOptions,
    ) -> Result<Written> {
        todo!()
    }

    /// Reads points by id; those that are not there are left out; order as asked.
    pub async fn retrieve(
        &self,
        name: &str,
        ids: Vec<PointId>,
        projection: Projection,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<Record>>> {
        todo!()
    }

    /// Reads points in the order of their ids.
    pub async fn scroll(
        &self,
        name: &str,
        request: ScrollRequest,
        options: &ReadOptions,
    ) -> Result<Seen<ScrollPage>> {
        todo!()
    }

    /// Counts points.
    pub async fn count(
        &self,
        name: &str,
        filter: Option<Filter>,
        options: &ReadOptions,
    ) -> Result<Seen<u64>> {
        todo!()
    }

    /// Searches; one answer for each request, all at the same position of each shard. Query vectors are
    /// checked against the schema here.
    pub async fn search(
        &self,
        name: &str,
        requests: Vec<SearchRequest>,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<Vec<ScoredPoint>>>> {
        todo!()
    }
}
