//! What a node tells of its replicas, and what the cluster looks like from here.
//!
//! Every node reports only what it holds; whoever is asked for the whole asks all others, and names those that did
//! not answer.

use super::{
    Cluster, NodeName,
    catalog::{CatalogState, GroupRecord},
    peers::{Answer, Ask},
};
use crate::{
    model::ReplicaId,
    replica::{ReplicaStatus, Role},
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// How long a node may take to tell what it holds.
const REPORT_WITHIN: Duration = Duration::from_millis(500);

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
    /// Who votes, as far as it knows: of both sets while that changes.
    #[serde(default)]
    pub voters: BTreeSet<ReplicaId>,
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
            voters: status.members.voters.into_iter().flatten().collect(),
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

    /// What every node that answers soon holds, by node.
    pub(super) async fn reports(&self, catalog: &CatalogState) -> BTreeMap<NodeName, NodeReport> {
        let calls = &self.inner.router.calls;
        let deadline = Instant::now() + REPORT_WITHIN;
        let others = catalog.nodes.keys().filter(|name| *name != calls.me());
        let asked = others.map(async |name| (name.clone(), calls.ask(name, &Ask::Report, deadline).await));
        let answers = join_all(asked).await.into_iter().filter_map(|(name, answer)| match answer {
            Ok(Answer::Report(report)) => Some((name, report)),
            _ => None,
        });
        answers.chain([(calls.me().clone(), self.report())]).collect()
    }

    /// Nodes that answer.
    pub(super) async fn alive(&self) -> BTreeSet<NodeName> {
        self.reports(&self.inner.catalog.state()).await.into_keys().collect()
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
                        "indexed": r.applied, "voters": r.voters,
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
}
