//! Who holds what, and how a request gets there: the one door of `api/` into the database.
//!
//! One node so far: it holds every shard, and its catalog (group 0) has one voter. Deliberately absent until the
//! cluster is built: other nodes, forwarding, moves, aliases.

mod catalog;
mod collections;
mod error;
pub mod found;
mod placement;
mod router;
mod scatter;
mod shards;
mod token;

use crate::{
    model::{
        CollectionId, FieldPath, Filter, HnswParams, PointId, Position, ReplicaId, RequestId, Schema,
        SparseParams, VectorParams,
    },
    replica::{Replica, ReplicaOptions},
    shard::ShardOptions,
    store::Store,
};
use annal_wal::{GroupId, Log};
use catalog::Catalog;
use shards::{LiveCollection, Shards};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

pub use error::ClusterError;
pub use token::Token;

/// The live view of the cluster; cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClusterOptions,
    catalog: Arc<Catalog>,
    catalog_replica: Replica<Catalog>,
    shards: Shards,
    pool: rayon::ThreadPool,
}

/// What a cluster node is opened with.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node's name.
    pub node: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Where its HTTP service listens.
    pub http: String,
    /// Where its peers reach it.
    pub peer: String,
    /// Threads that search, fixed.
    pub search_threads: usize,
    /// Folder of the vector indexes: all of it can be rebuilt.
    pub index_dir: PathBuf,
    /// How shards are opened.
    pub shard: ShardOptions,
}

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
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
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
    /// Its position (the highest, if it went to several shards) once it is applied; `None` if it is only
    /// committed so far.
    pub position: Option<Position>,
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

/// The hash of a shard's whole state, on each replica.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ShardHash {
    /// The shard's number.
    pub shard: u32,
    /// The position it belongs to.
    pub position: Position,
    /// 32 hexadecimal digits by the node's name; two that differ at one position are a bug or rot.
    pub replicas: BTreeMap<String, String>,
}

type Result<T> = std::result::Result<T, ClusterError>;

/// How long the start waits for the catalog to have a leader and to have applied its log.
const CATALOG_WITHIN: Duration = Duration::from_secs(60);

impl Cluster {
    /// Opens the catalog, then every shard it names; returns once all have applied what was committed.
    ///
    /// Errors: see [`ClusterError`]; nothing that was acknowledged is changed by a failed start.
    pub async fn open(options: ClusterOptions, log: Log, store: Store) -> Result<Cluster> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.search_threads)
            .thread_name(|i| format!("search-{i}"))
            .build()
            .map_err(|e| internal(format!("search threads: {e}")))?;
        let catalog_log = match log.group(GroupId(0)) {
            Some(group) => group,
            None => log.create_group(GroupId(0)).await.map_err(log_error)?,
        };
        let catalog = Arc::new(Catalog::open(store.clone())?);
        let catalog_replica =
            Replica::open(ReplicaOptions::sole(ReplicaId(1)), &log, catalog_log, catalog.clone()).await?;
        let shards = Shards::new(log, store, options.index_dir.clone(), options.shard.clone());
        let cluster = Cluster { inner: Arc::new(Inner { options, catalog, catalog_replica, shards, pool }) };
        cluster.catch_up_with_catalog(Instant::now() + CATALOG_WITHIN).await?;
        Ok(cluster)
    }

    /// Hands leadership over before this node stops. One node has nobody to hand it to.
    pub async fn drain(&self) {}

    /// Closes every shard, then the catalog. What fails is logged: nothing is lost by it, the log has it all.
    pub async fn close(&self) {
        self.inner.shards.close().await;
        if let Err(error) = self.inner.catalog_replica.shutdown().await {
            tracing::warn!(%error, "the catalog did not close in order");
        }
    }

    /// What this node is.
    pub fn info(&self) -> NodeInfo {
        let options = &self.inner.options;
        NodeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: options.node.clone(),
            region: options.region.clone(),
            cluster_id: options.cluster_id.clone(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        }
    }

    fn pool(&self) -> &rayon::ThreadPool {
        &self.inner.pool
    }

    /// The collection of this name, open on this node.
    ///
    /// A name that is not there is looked up again in a catalog that is known to be current before it is
    /// called unknown.
    async fn lookup(&self, name: &str, deadline: Instant) -> Result<Arc<LiveCollection>> {
        if let Some(collection) = self.inner.shards.live().get(name) {
            return Ok(collection.clone());
        }
        self.catch_up_with_catalog(deadline).await?;
        self.inner.shards.live().get(name).cloned().ok_or_else(|| ClusterError::NoCollection(name.to_owned()))
    }

    /// Waits until the catalog has applied all that was acknowledged before this call, and the shards follow it.
    async fn catch_up_with_catalog(&self, deadline: Instant) -> Result<()> {
        let replica = &self.inner.catalog_replica;
        let index = replica.read_index(deadline).await?;
        replica.wait_applied(index, deadline).await?;
        self.reconcile(deadline).await
    }

    /// Brings the shards to what the catalog says; goes on in the background if the caller gives up.
    async fn reconcile(&self, deadline: Instant) -> Result<()> {
        let inner = self.inner.clone();
        let work = tokio::spawn(async move { inner.shards.reconcile(|| inner.catalog.state()).await });
        match tokio::time::timeout_at(deadline, work).await {
            Ok(done) => done.map_err(task_error)?,
            Err(_) => Err(ClusterError::Timeout {
                what: "opening the shards that the catalog names".to_owned(),
                effect: crate::model::Effect::Unknown,
            }),
        }
    }
}

fn internal(message: String) -> ClusterError {
    ClusterError::Internal { message, corrupt: false, effect: crate::model::Effect::Unknown }
}

fn task_error(e: tokio::task::JoinError) -> ClusterError {
    internal(format!("a task stopped half-way: {e}"))
}

fn log_error(e: annal_wal::Error) -> ClusterError {
    crate::replica::ReplicaError::from(e).into()
}
