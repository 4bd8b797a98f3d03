//! Who holds what, and how a request gets there: the one door of `api/` into the database.
//!
//! The catalog (group 0) says which nodes there are and which replicas they hold; `shards` opens what this node is to
//! hold; `transfer` lets the leader of each group bring its membership to what the catalog says; `steward`, on the
//! catalog's leader alone, plans what is missing. `router` takes a write to the leader of its shard, `scatter` and
//! `read` take a read to a replica of each.
//! Not here: what a shard does with a command (`shard/`), following the log from outside (`changefeed/`).

mod catalog;
mod collections;
mod error;
mod figures;
mod placement;
mod report;
mod router;
mod scatter;
mod shards;
mod token;
mod transfer;

use crate::{
    machine::{Outcome, Verdict},
    model::{
        CollectionId, FieldPath, Filter, HnswParams, PointId, Position, ReplicaId, RequestId, Schema,
        SparseParams, VectorParams,
    },
    replica::{Proposed, Replica, ReplicaOptions, Wait},
    shard::ShardOptions,
    store::Store,
};
use annal_wal::{GroupId, Log};
use catalog::{Catalog, CatalogCommand, FOUNDER, NodeRecord, NodeState};
use shards::{LiveCollection, Shards};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use error::ClusterError;
pub use figures::{Figures, ReplicaFigures};
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
    /// Ends what runs in the background.
    closing: CancellationToken,
}

impl Inner {
    /// Nodes that answer.
    fn alive(&self) -> BTreeSet<NodeName> {
        BTreeSet::from([self.options.node.clone()])
    }
}

/// A node's name, the same for as long as the cluster lives.
pub type NodeName = String;

/// What a cluster node is opened with.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The cluster's id.
    pub cluster_id: String,
    /// This node's name.
    pub node: NodeName,
    /// Which data folder of that node this is.
    pub incarnation: String,
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

/// How a read is carried out.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// When to give up.
    pub deadline: Instant,
    /// See at least this, whatever the consistency.
    pub at_least: Option<Token>,
    /// How new the answer must be.
    pub consistency: Consistency,
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

impl ReadOptions {
    /// A linearizable read.
    pub fn linearizable(deadline: Instant) -> Self {
        ReadOptions { deadline, at_least: None, consistency: Consistency::Linearizable }
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
    /// How old it may be; `None` if the read was linearizable.
    pub age: Option<Duration>,
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
/// How long the catalog may take to hear one piece of news; it is told again by the next look.
const SAY_WITHIN: Duration = Duration::from_secs(2);
/// How long a look at the catalog waits to be certain that it is the last one; if not, it deletes nothing.
const CURRENT_WITHIN: Duration = Duration::from_millis(500);
/// How often a node compares what it holds with the catalog, changes apart.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
        let catalog_log = match log.group(log_group(FOUNDER)) {
            Some(group) => group,
            None => log.create_group(log_group(FOUNDER)).await.map_err(log_error)?,
        };
        let catalog = Arc::new(Catalog::open(store.clone())?);
        let catalog_replica =
            Replica::open(ReplicaOptions::sole(FOUNDER), &log, catalog_log, catalog.clone()).await?;
        let me = (options.node.clone(), options.incarnation.clone());
        let shards = Shards::new(me, log, store, options.index_dir.clone(), options.shard.clone());
        let cluster = Cluster {
            inner: Arc::new(Inner {
                options,
                catalog,
                catalog_replica,
                shards,
                pool,
                closing: CancellationToken::new(),
            }),
        };
        let deadline = Instant::now() + CATALOG_WITHIN;
        cluster.propose_catalog(CatalogCommand::Join { node: cluster.own_record() }, deadline).await?;
        cluster.catch_up_with_catalog(deadline).await?;
        tokio::spawn(cluster.clone().follow_catalog());
        Ok(cluster)
    }

    /// Keeps what this node holds at what the catalog says, until the node closes.
    async fn follow_catalog(self) {
        let mut catalog = self.inner.catalog.watch();
        loop {
            let current = self.catch_up_with_catalog(Instant::now() + CURRENT_WITHIN).await.is_ok();
            let state = catalog.borrow_and_update().clone();
            match self.inner.shards.reconcile(&state, current).await {
                Ok(to_say) => {
                    for news in to_say {
                        if let Err(error) = self.propose_catalog(news, Instant::now() + SAY_WITHIN).await {
                            tracing::debug!(%error, "the catalog could not be told");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "the shards could not be brought to the catalog"),
            }
            tokio::select! {
                changed = catalog.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.inner.closing.cancelled() => return,
            }
        }
    }

    /// This node, as the catalog is to know it.
    fn own_record(&self) -> NodeRecord {
        let options = &self.inner.options;
        NodeRecord {
            name: options.node.clone(),
            incarnation: options.incarnation.clone(),
            region: options.region.clone(),
            zone: options.zone.clone(),
            http: options.http.clone(),
            peer: options.peer.clone(),
            state: NodeState::Active,
        }
    }

    /// Closes every shard, then the catalog. What fails is logged: nothing is lost by it, the log has it all.
    pub async fn close(&self) {
        self.inner.closing.cancel();
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
        Ok(self.inner.shards.live(record))
    }

    /// Waits until the catalog has applied here all that was acknowledged before this call.
    async fn catch_up_with_catalog(&self, deadline: Instant) -> Result<()> {
        let replica = &self.inner.catalog_replica;
        let index = replica.read_index(deadline).await?;
        Ok(replica.wait_applied(index, deadline).await?)
    }

    /// Proposes a change of the catalog, wherever its leader is, and waits until it is applied.
    async fn propose_catalog(&self, command: CatalogCommand, deadline: Instant) -> Result<()> {
        match self.inner.catalog_replica.propose(command.encode(), deadline, Wait::Applied).await? {
            Proposed::Applied(Outcome { verdict: Verdict::Rejected(rejection), .. }) => Err(rejection.into()),
            Proposed::Applied(_) | Proposed::Committed(_) => Ok(()),
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
