//! Who holds what, and how a request gets there: the one door of `api/` into the database.
//!
//! The catalog (group 0) says which nodes there are and which replicas they hold; `shards` opens what this node is to
//! hold; `transfer` lets the leader of each group bring its membership to what the catalog says; `steward`, on the
//! catalog's leader alone, plans what is missing. `router` takes a write to the leader of its shard, `scatter` and
//! `read` take a read to a replica of each.
//! `follow` gives a shard's commands and what they did from wherever a replica reaches back.
//! Not here: what a shard does with a command (`shard/`), following the log from outside (`changefeed/`).

mod admin;
mod audit;
mod balancer;
mod catalog;
mod collections;
mod error;
mod figures;
mod follow;
mod forward;
pub mod found;
mod peers;
mod placement;
mod presence;
mod read;
mod recall;
mod regions;
mod report;
mod router;
mod scatter;
mod shards;
mod steward;
#[cfg(test)]
mod tests;
mod token;
mod transfer;
mod write;

use crate::{
    identity::IdentityFile,
    machine::Verdict,
    model::{
        CollectionId, Explanation, FieldPath, Filter, HnswParams, Invalid, PointId, Position, Quantization,
        ReplicaId, RequestId, Residence, Schema, ShardNumber, SparseParams, VectorParams,
    },
    replica::{Replica, ReplicaError, ReplicaOptions},
    shard::ShardOptions,
};
use annal_wal::GroupId;
use catalog::{Catalog, CatalogCommand, Intent, NodeState};
use read::Reads;
use recall::RecallMeter;
use regions::{Asking, Heard, Leases};
use router::{Router, Way};
use shards::{LiveCollection, Shards};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use catalog::{HomeRecord, Loss, Part, RegionChange, RegionRecord, ShardLoss, homes_of};
pub use error::ClusterError;
pub use figures::{Figures, HomeFigures, ReplicaFigures};
pub use follow::{FollowError, Followed, Parts, ShardEvents, ShardStream, Stand};
pub use presence::check_catalog;
pub use read::ShardStanding;
pub use recall::RecallFigures;
pub use regions::{Description, Elsewhere, FollowedShard, ShardCopy};
pub use token::Token;

/// The live view of the cluster; cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    options: ClusterOptions,
    identity: IdentityFile,
    catalog: Arc<Catalog>,
    catalog_replica: Replica<Catalog>,
    shards: Shards,
    router: Router,
    reads: Arc<Reads>,
    heard: Heard,
    asking: Asking,
    leases: Leases,
    recall: Arc<RecallMeter>,
    pool: rayon::ThreadPool,
    /// Set once all that was committed when the node started is applied here.
    ready: AtomicBool,
    /// Ends what runs in the background.
    closing: CancellationToken,
}

/// A node's name, the same for as long as the cluster lives.
pub type NodeName = String;

/// What a cluster node is opened with.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
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
    /// The part of approximate searches that are answered again, exactly, to know their recall; 0 to 1.
    pub recall_sample: f64,
    /// Folder of the vector indexes: all of it can be rebuilt.
    pub index_dir: PathBuf,
    /// How shards are opened.
    pub shard: ShardOptions,
    /// How replicas are run; each under its own id.
    pub replica: ReplicaOptions,
    /// How long a node may be gone before its replicas are made anew elsewhere.
    pub replace_after: Duration,
    /// How often a replica reads all it has to see whether it still adds up.
    pub scrub_every: Duration,
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
    /// New shapes of codes, by vector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quantization_by_vector: BTreeMap<String, Quantization>,
    /// Where graphs and codes are held from now on, by vector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub residence_by_vector: BTreeMap<String, Residence>,
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
    /// Whether the answer is to name the position. It comes once the write is applied, in any case.
    pub wait: bool,
    /// When to give up.
    pub deadline: Instant,
    /// The intent, if the client named one.
    pub request: Option<RequestId>,
    /// What the client's session had seen.
    pub token: Option<Token>,
}

/// How a read is carried out.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// When to give up.
    pub deadline: Instant,
    /// See at least this, whatever the consistency.
    pub at_least: Option<Token>,
    /// How new the answer must be.
    pub consistency: Consistency,
    /// Whether to tell what a search did.
    pub explain: bool,
}

/// How new a read's answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Consistency {
    /// Everything that was acknowledged before the read began is seen.
    #[default]
    Linearizable,
    /// What the token names is seen, and perhaps no more.
    AtLeast,
    /// Everything that was acknowledged so long before the read began is seen.
    Bounded(Duration),
    /// What a replica happens to have applied.
    Local,
}

impl WriteOptions {
    /// A write in no session, under a name of this node's.
    pub fn until(deadline: Instant) -> Self {
        WriteOptions { wait: true, deadline, request: None, token: None }
    }
}

impl ReadOptions {
    /// A linearizable read.
    pub fn linearizable(deadline: Instant) -> Self {
        ReadOptions { deadline, at_least: None, consistency: Consistency::Linearizable, explain: false }
    }
}

/// A change of the aliases.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum AliasAction {
    /// Gives a collection one more name, or takes a name from another one.
    Create {
        /// The new name.
        alias: String,
        /// The collection.
        collection: String,
    },
    /// Takes a name away.
    Delete {
        /// The name.
        alias: String,
    },
    /// Changes a name.
    Rename {
        /// The name now.
        from: String,
        /// The name then.
        to: String,
    },
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
    /// Its position (the highest, if it went to several shards); `None` if that was not asked for, or no shard is left.
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
    /// How old it may be; `None` if the read was linearizable, or nothing is known of its age.
    pub age: Option<Duration>,
    /// What a search did on each shard, if that was asked for.
    pub explained: Option<Vec<ShardExplanation>>,
}

/// What a request's searches did on one shard.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ShardExplanation {
    /// The shard.
    pub shard: ShardNumber,
    /// The node that searched it; `None` if the catalog does not name it any more.
    pub node: Option<NodeName>,
    /// The position it was read at.
    pub position: Position,
    /// Search by search; empty if the node is of a version that does not tell.
    pub searches: Vec<Explanation>,
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

/// How long the catalog is given to find its next leader before it is asked again.
const BETWEEN_LEADERS: Duration = Duration::from_millis(30);

impl Cluster {
    /// What this node is.
    pub fn info(&self) -> NodeInfo {
        let (options, who) = (&self.inner.options, self.inner.identity.get());
        NodeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: who.node,
            region: options.region.clone(),
            cluster_id: who.cluster_id,
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        }
    }

    fn pool(&self) -> &rayon::ThreadPool {
        &self.inner.pool
    }

    /// The collection of this name or alias.
    ///
    /// A name that is not there is looked up again in a catalog that is known to be current before it is
    /// called unknown; an alias always, since it may have moved on.
    async fn lookup(&self, name: &str, deadline: Instant) -> Result<LiveCollection> {
        let known = self.inner.catalog.state();
        let record = match known.collections.get(name) {
            Some(record) => record.clone(),
            None => {
                self.catch_up_with_catalog(deadline).await?;
                let known = self.inner.catalog.state();
                known.collection(name).cloned().ok_or_else(|| ClusterError::NoCollection(name.to_owned()))?
            }
        };
        Ok(LiveCollection::of(record))
    }

    /// Waits until the catalog has applied here all that was acknowledged before this call.
    async fn catch_up_with_catalog(&self, deadline: Instant) -> Result<()> {
        let replica = &self.inner.catalog_replica;
        loop {
            let error = match replica.read_index(deadline).await {
                Ok(index) => return Ok(replica.wait_applied(index, deadline).await?),
                Err(error) => error,
            };
            let wait = router::jittered(BETWEEN_LEADERS);
            let passes = matches!(error, ReplicaError::NotLeader { .. } | ReplicaError::NoQuorum);
            if !passes || Instant::now() + wait >= deadline {
                return Err(error.into());
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Proposes a change of the catalog that a user asks for; a copy of it changes nothing.
    async fn propose_intent(&self, command: CatalogCommand, options: &WriteOptions) -> Result<()> {
        let request = options.request.clone().unwrap_or_else(|| self.inner.router.own_request());
        let intent = command.named(request);
        self.propose_change(command, intent, options.deadline).await
    }

    /// Proposes a change of the catalog that the cluster makes by itself.
    async fn propose_catalog(&self, command: CatalogCommand, deadline: Instant) -> Result<()> {
        self.propose_change(command, None, deadline).await
    }

    /// Proposes a change of the catalog, wherever its leader is, and waits until it is applied.
    async fn propose_change(
        &self,
        command: CatalogCommand,
        intent: Option<Intent>,
        deadline: Instant,
    ) -> Result<()> {
        let replica = &self.inner.catalog_replica;
        let here = || Some((replica.status().replica, replica.clone()));
        let way = Way { deadline, safe_twice: intent.is_some() || command.is_safe_twice() };
        let bytes = command.encode(intent);
        // What a log holds and nobody can read stops every node.
        CatalogCommand::decode(&bytes).map_err(|e| Invalid::new("request", e.to_string()))?;
        let carried = self.inner.router.propose(0, here, bytes, way).await?;
        match carried.outcome.of_first().verdict {
            Verdict::Rejected(rejection) => Err(rejection.into()),
            _ => Ok(()),
        }
    }
}

/// The group of the node's log that holds a replica's entries: what a node keeps is named by replica.
fn log_group(replica: ReplicaId) -> GroupId {
    GroupId(u32::try_from(replica.0).expect("replica ids are given out one by one"))
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
