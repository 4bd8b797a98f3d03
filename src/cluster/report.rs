//! What a node tells of its replicas, and what the cluster looks like from here.
//!
//! Every node reports only what it holds; whoever is asked for the whole asks all others, and names those that did
//! not answer.

use super::{
    Cluster, NodeName, ReadOptions, Result, ShardHash, Token,
    catalog::{CatalogState, GroupRecord},
};
use crate::{
    machine::MachineError,
    model::{Invalid, Position, ReplicaId},
    replica::{ReplicaStatus, Role},
    shard::Shard,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A replica, as its own node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ReplicaReport {
    pub role: String,
    pub state: String,
    pub term: u64,
    pub leader: Option<ReplicaId>,
    pub flushed: Option<u64>,
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub durable: Option<u64>,
    /// Last command applied, by its position.
    pub position: u64,
}

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeReport {
    pub replicas: BTreeMap<ReplicaId, ReplicaReport>,
}

impl From<ReplicaStatus> for ReplicaReport {
    fn from(status: ReplicaStatus) -> Self {
        let ladder = status.ladder;
        ReplicaReport {
            role: format!("{:?}", status.role).to_lowercase(),
            state: status.failure.map_or_else(|| "ok".to_owned(), |why| why.to_string()),
            term: status.term.0,
            leader: (status.role == Role::Leader).then_some(status.replica).or(status.leader),
            flushed: ladder.flushed.map(|i| i.0),
            committed: ladder.committed.map(|i| i.0),
            applied: ladder.applied.map(|i| i.0),
            durable: ladder.durable.map(|i| i.0),
            position: status.position.0,
        }
    }
}

impl Cluster {
    /// What this node holds.
    pub(super) fn report(&self) -> NodeReport {
        let catalog = self.inner.catalog_replica.status();
        let open = self.inner.shards.open();
        let shards = open.iter().map(|(id, shard)| (*id, shard.replica.status().into()));
        NodeReport { replicas: shards.chain([(catalog.replica, catalog.into())]).collect() }
    }

    /// What every node that answers holds, by node.
    async fn reports(&self, _catalog: &CatalogState) -> BTreeMap<NodeName, NodeReport> {
        BTreeMap::from([(self.inner.options.node.clone(), self.report())])
    }

    /// Nodes and shards, in the shape of `GET /annal/v1/cluster`.
    pub async fn topology(&self) -> serde_json::Value {
        let catalog = self.inner.catalog.state();
        let reports = self.reports(&catalog).await;
        let group = |collection: Option<&str>, shard: usize, epoch: u64, group: &GroupRecord| {
            let reported: Vec<_> = group
                .replicas
                .iter()
                .map(|r| (r, reports.get(&r.node).and_then(|report| report.replicas.get(&r.replica))))
                .collect();
            // The leader of the highest term that anyone has heard of.
            let heard = reported.iter().filter_map(|(_, report)| *report);
            let leader = heard.filter(|r| r.leader.is_some()).max_by_key(|r| r.term).and_then(|r| r.leader);
            let leader = leader.and_then(|id| group.replica(id)).map(|r| &r.node);
            let rows = reported.iter().map(|(record, report)| {
                let phase = format!("{:?}", record.phase).to_lowercase();
                match report {
                    Some(r) => serde_json::json!({
                        "node": record.node, "replica": record.replica, "phase": phase, "role": r.role,
                        "state": r.state, "term": r.term, "flushed": r.flushed, "committed": r.committed,
                        "applied": r.applied, "durable": r.durable, "position": r.position,
                        // Graph ∪ delta covers every applied vector.
                        "indexed": r.applied,
                    }),
                    None => serde_json::json!({
                        "node": record.node, "replica": record.replica, "phase": phase,
                        "role": "unknown", "state": "unreachable",
                    }),
                }
            });
            serde_json::json!({
                "collection": collection, "shard": shard, "epoch": epoch, "leader": leader,
                "replicas": rows.collect::<Vec<_>>(),
            })
        };
        let mut shards = vec![group(None, 0, 1, &catalog.catalog)];
        for (name, collection) in &catalog.collections {
            let rows = collection.shards.iter().enumerate();
            shards.extend(rows.map(|(n, shard)| group(Some(name), n, collection.epoch.0, shard)));
        }
        let nodes = catalog.nodes.values().map(|node| {
            let state = match (reports.contains_key(&node.name), node.state) {
                (false, _) => "unreachable".to_owned(),
                (true, super::NodeState::Active) => "alive".to_owned(),
                (true, other) => format!("{other:?}").to_lowercase(),
            };
            serde_json::json!({
                "name": node.name, "region": node.region, "zone": node.zone,
                "http": node.http, "peer": node.peer, "state": state,
            })
        });
        serde_json::json!({ "nodes": nodes.collect::<Vec<_>>(), "shards": shards })
    }

    /// Why this node cannot serve; `None` when it can.
    pub fn unready(&self) -> Option<String> {
        let failed = |status: ReplicaStatus| {
            status.failure.map(|why| format!("the replica of group {} stopped: {why}", status.group.0))
        };
        failed(self.inner.catalog_replica.status())
    }

    /// The hash of each shard's state: as it was kept while applying, or (`scrub`) computed again from every record
    /// in the store. With `at`, as it was recorded at the mark nearest to the shard's position in the token (at or
    /// below it if there is one; [`ShardHash::position`] names it; none recorded: position 0 and no replicas).
    ///
    /// Errors: `at` is of another collection, or `scrub` is wanted of a state that is past (no effect).
    pub async fn state_hash(
        &self,
        name: &str,
        at: Option<&Token>,
        scrub: bool,
        options: &ReadOptions,
    ) -> Result<Vec<ShardHash>> {
        let collection = self.lookup(name, options.deadline).await?;
        if let Some(at) = at {
            if at.collection != collection.record.id {
                return Err(
                    Invalid::new("at", format!("is a token of another collection than {name}")).into()
                );
            }
            if scrub {
                return Err(Invalid::new(
                    "scrub",
                    "reads the store, which has only the state now: give no at",
                )
                .into());
            }
        }
        let mut hashes = Vec::with_capacity(collection.shards.len());
        for live in &collection.shards {
            let local = self.inner.shards.opened(live, options.deadline).await?;
            let index = local.replica.read_index(options.deadline).await?;
            local.replica.wait_applied(index, options.deadline).await?;
            let shard = local.shard.clone();
            let at = at.map(|at| at.shards.get(&live.number).copied().unwrap_or_default());
            let hash = move || match at {
                Some(at) => marked_hash(&shard, at),
                None if scrub => shard.scrub().map(Some),
                None => shard.state_hash().map(Some),
            };
            let hash = tokio::task::spawn_blocking(hash).await.map_err(super::task_error)??;
            let node = || self.inner.options.node.clone();
            hashes.push(ShardHash {
                shard: live.number.0,
                position: hash.map(|(position, _)| position).unwrap_or_default(),
                replicas: hash.map(|(_, hash)| (node(), format!("{hash:032x}"))).into_iter().collect(),
            });
        }
        Ok(hashes)
    }
}

/// Every so many positions a shard records its hash.
const HASH_EVERY: u64 = 4_096;

/// The recorded hash nearest to a position: at or below it, else the first one above.
fn marked_hash(shard: &Shard, at: Position) -> std::result::Result<Option<(Position, u128)>, MachineError> {
    let below = at.0 - at.0 % HASH_EVERY;
    for mark in [below, below + HASH_EVERY].map(Position) {
        if let Some(hash) = shard.state_hash_at(mark)? {
            return Ok(Some((mark, hash)));
        }
    }
    Ok(None)
}
