//! Collections: created, changed, described and dropped through the catalog.
//!
//! A change is acknowledged when every shard has applied its part of it.

use super::{
    Cluster, ClusterError, CollectionChange, CollectionInfo, CollectionSpec, ReadOptions, Result, ShardHash,
    Token, WriteOptions, Written,
    catalog::{self, CatalogCommand},
    shards::LocalShard,
};
use crate::{
    machine::{Outcome, Verdict},
    model::{FieldPath, FieldType},
    replica::{Proposed, ReplicaStatus, Role, Wait},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;

impl Cluster {
    /// Creates a collection; its shards are there when this returns.
    pub async fn create_collection(&self, name: &str, spec: CollectionSpec, deadline: Instant) -> Result<()> {
        self.change(CatalogCommand::Create { name: name.to_owned(), spec }, name, deadline).await
    }

    /// Changes a collection.
    pub async fn update_collection(
        &self,
        name: &str,
        change: CollectionChange,
        deadline: Instant,
    ) -> Result<()> {
        self.change(CatalogCommand::Update { name: name.to_owned(), change }, name, deadline).await
    }

    /// Drops a collection; `false` if there was none.
    pub async fn delete_collection(&self, name: &str, deadline: Instant) -> Result<bool> {
        match self.change(CatalogCommand::Drop { name: name.to_owned() }, name, deadline).await {
            Ok(()) => Ok(true),
            Err(ClusterError::NoCollection(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Names of all collections, ascending.
    pub async fn collections(&self, options: &ReadOptions) -> Result<Vec<String>> {
        let replica = &self.inner.catalog_replica;
        let index = replica.read_index(options.deadline).await?;
        replica.wait_applied(index, options.deadline).await?;
        Ok(self.inner.catalog.state().collections.keys().cloned().collect())
    }

    /// A collection as it stands.
    pub async fn collection(&self, name: &str, options: &ReadOptions) -> Result<CollectionInfo> {
        let collection = self.lookup(name, options.deadline).await?;
        let mut info = CollectionInfo {
            id: collection.record.id,
            spec: collection.record.spec.clone(),
            schema: Arc::new(collection.record.schema.clone()),
            points: 0,
            field_points: BTreeMap::new(),
            vectors: 0,
            indexed_vectors: 0,
            segments: 0,
            building: false,
        };
        for shard in &collection.shards {
            let index = shard.replica.read_index(options.deadline).await?;
            shard.replica.wait_applied(index, options.deadline).await?;
            let stats = shard.shard.stats();
            info.points += stats.points;
            info.vectors += stats.vectors;
            info.indexed_vectors += stats.indexed_vectors;
            info.segments += stats.segments;
            info.building |= stats.building;
            for (path, points) in stats.field_points {
                *info.field_points.entry(path).or_default() += points;
            }
        }
        Ok(info)
    }

    /// The hash of each shard's state now: as it was kept while applying, or (`scrub`) computed again from every
    /// record in the store.
    pub async fn state_hash(&self, name: &str, scrub: bool, options: &ReadOptions) -> Result<Vec<ShardHash>> {
        let collection = self.lookup(name, options.deadline).await?;
        let mut hashes = Vec::with_capacity(collection.shards.len());
        for local in &collection.shards {
            let index = local.replica.read_index(options.deadline).await?;
            local.replica.wait_applied(index, options.deadline).await?;
            let shard = local.shard.clone();
            let hash = move || if scrub { shard.scrub() } else { shard.state_hash() };
            let (position, hash) = tokio::task::spawn_blocking(hash).await.map_err(super::task_error)??;
            hashes.push(ShardHash {
                shard: local.number.0,
                position,
                replicas: [(self.inner.options.node.clone(), format!("{hash:032x}"))].into(),
            });
        }
        Ok(hashes)
    }

    /// Indexes a payload field.
    pub async fn create_field_index(
        &self,
        name: &str,
        path: FieldPath,
        of: FieldType,
        options: &WriteOptions,
    ) -> Result<Written> {
        let command = CatalogCommand::CreateField { name: name.to_owned(), path, of };
        self.change(command, name, options.deadline).await?;
        self.written(name, options).await
    }

    /// Drops the index of a payload field.
    pub async fn delete_field_index(
        &self,
        name: &str,
        path: FieldPath,
        options: &WriteOptions,
    ) -> Result<Written> {
        let command = CatalogCommand::DropField { name: name.to_owned(), path };
        self.change(command, name, options.deadline).await?;
        self.written(name, options).await
    }

    /// Changes the catalog and brings the shards to it.
    async fn change(&self, command: CatalogCommand, name: &str, deadline: Instant) -> Result<()> {
        match self.inner.catalog_replica.propose(command.encode(), deadline, Wait::Applied).await? {
            Proposed::Applied(Outcome { verdict: Verdict::Rejected(rejection), .. }) => {
                Err(match rejection.code.as_str() {
                    catalog::EXISTS => ClusterError::CollectionExists(name.to_owned()),
                    catalog::MISSING => ClusterError::NoCollection(name.to_owned()),
                    _ => rejection.into(),
                })
            }
            Proposed::Applied(_) | Proposed::Committed(_) => self.reconcile(deadline).await,
        }
    }

    /// Where the shards stand after a change that they have applied.
    async fn written(&self, name: &str, options: &WriteOptions) -> Result<Written> {
        let collection = self.lookup(name, options.deadline).await?;
        let shards: BTreeMap<_, _> = collection.shards.iter().map(|s| (s.number, s.position())).collect();
        Ok(Written {
            position: shards.values().copied().max(),
            token: Token {
                collection: collection.record.id,
                generation: collection.record.generation,
                shards,
            },
        })
    }

    /// Why this node cannot serve; `None` when it can. A node is open once its shards have applied what was
    /// committed, so only a failure makes it unready later.
    pub fn unready(&self) -> Option<String> {
        let failed = |status: ReplicaStatus| {
            status.failure.map(|why| format!("the replica of group {} stopped: {why}", status.group.0))
        };
        let live = self.inner.shards.live();
        let shards = live.values().flat_map(|c| &c.shards).map(|s| s.replica.status());
        std::iter::once(self.inner.catalog_replica.status()).chain(shards).find_map(failed)
    }

    /// Nodes and shards, in the shape of `GET /annal/v1/cluster`.
    pub fn topology(&self) -> serde_json::Value {
        let options = &self.inner.options;
        let row = |collection: Option<&str>, shard: u32, epoch: u64, status: ReplicaStatus| {
            let ladder = status.ladder;
            let leader = (status.role == Role::Leader).then_some(&options.node);
            serde_json::json!({
                "collection": collection, "shard": shard, "epoch": epoch, "leader": leader,
                "replicas": [{
                    "node": options.node, "role": format!("{:?}", status.role).to_lowercase(),
                    "state": status.failure.as_deref().unwrap_or("ok"), "term": status.term.0,
                    "flushed": ladder.flushed.map(|i| i.0), "committed": ladder.committed.map(|i| i.0),
                    "applied": ladder.applied.map(|i| i.0), "durable": ladder.durable.map(|i| i.0),
                    // Graph ∪ delta covers every applied vector.
                    "indexed": ladder.applied.map(|i| i.0),
                }],
            })
        };
        let mut shards = vec![row(None, 0, 1, self.inner.catalog_replica.status())];
        for (name, collection) in &*self.inner.shards.live() {
            let epoch = collection.record.epoch.0;
            shards.extend(
                collection
                    .shards
                    .iter()
                    .map(|s: &Arc<LocalShard>| row(Some(name), s.number.0, epoch, s.replica.status())),
            );
        }
        serde_json::json!({
            "nodes": [{
                "name": options.node, "region": options.region, "zone": options.zone,
                "http": options.http, "peer": options.peer, "state": "alive",
            }],
            "shards": shards,
        })
    }
}
