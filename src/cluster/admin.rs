//! What people ask of the cluster itself: nodes drained and removed, shards moved and led.
//!
//! A wish becomes a plan in the catalog, and the call waits until it is carried out (`true`) or its deadline has come
//! (`false`: it goes on by itself). It can be asked again: what is done is not done twice.

use super::{
    Cluster, ClusterError, NodeName, Result, balancer,
    catalog::{CatalogCommand, CatalogState, GroupRecord, NodeState, Phase},
    peers::Ask,
};
use crate::{
    model::{ReplicaId, ShardNumber},
    replica::Role,
    world,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// How long handing a group over may take: its leader takes no commands meanwhile.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

impl Cluster {
    /// Moves all shards off a node; `true` once none is left there. The node stays a member.
    ///
    /// Errors: `Conflict` (a shard has no other place to go to; no effect), `NotFound`.
    pub async fn drain_node(&self, node: &str, deadline: Instant) -> Result<bool> {
        self.catch_up_with_catalog(deadline).await?;
        let state = self.inner.catalog.state();
        let silent = self.silent(&state).await;
        if let Some((collection, shard)) = balancer::stuck_on(&state, node, &silent) {
            return Err(ClusterError::Conflict(format!(
                "shard {shard} of {collection} has a replica on every node that could take the one of {node}"
            )));
        }
        self.propose_catalog(CatalogCommand::Drain { node: node.to_owned(), drain: true }, deadline).await?;
        let empty = |state: &CatalogState| {
            let shards = state.groups().filter(|g| g.group != 0);
            shards.flat_map(|g| &g.replicas).all(|r| r.node != node)
        };
        Ok(self.until(deadline, empty).await)
    }

    /// Lets a drained node take replicas again.
    pub async fn undrain_node(&self, node: &str, deadline: Instant) -> Result<()> {
        self.propose_catalog(CatalogCommand::Drain { node: node.to_owned(), drain: false }, deadline).await
    }

    /// Moves all off a node and forgets it; `true` once it is forgotten. A node that is not there is forgotten.
    ///
    /// Errors: `Conflict` (it holds the only copy of a shard and no other node can take it; no effect).
    pub async fn remove_node(&self, node: &str, deadline: Instant) -> Result<bool> {
        self.catch_up_with_catalog(deadline).await?;
        let state = self.inner.catalog.state();
        if !state.nodes.contains_key(node) {
            return Ok(true);
        }
        let others = state.nodes.values().filter(|n| n.name != node && n.state == NodeState::Active).count();
        let only_copy = |g: &GroupRecord| g.staying().all(|r| r.node == node) && g.staying().next().is_some();
        let stuck = balancer::stuck_on(&state, node, &BTreeSet::new()).is_some();
        if others == 0 || state.groups().any(only_copy) && stuck {
            return Err(ClusterError::Conflict(format!("{node} holds the only copy of something")));
        }
        self.propose_catalog(CatalogCommand::Remove { node: node.to_owned() }, deadline).await?;
        Ok(self.until(deadline, |state| !state.nodes.contains_key(node)).await)
    }

    /// Moves a shard's replica from one node to another; `true` once it is there and the old one is gone.
    ///
    /// Errors: `NotFound`, `Conflict` (both have one, or neither; no effect).
    pub async fn move_shard(
        &self,
        collection: &str,
        shard: ShardNumber,
        from: &NodeName,
        to: &NodeName,
        deadline: Instant,
    ) -> Result<bool> {
        self.catch_up_with_catalog(deadline).await?;
        let state = self.inner.catalog.state();
        for node in [from, to] {
            if !state.nodes.contains_key(node) {
                return Err(ClusterError::NotFound(format!("node {node}")));
            }
        }
        let group = group_of(&state, collection, shard)?;
        let on = |node: &NodeName| group.staying().find(|r| r.node == *node);
        match (on(from), on(to)) {
            (Some(_), Some(_)) => {
                return Err(ClusterError::Conflict(format!("{from} and {to} both hold shard {shard}")));
            }
            (None, None) => {
                return Err(ClusterError::Conflict(format!(
                    "{from} does not hold shard {shard} of {collection}"
                )));
            }
            (None, Some(_)) => {}
            (Some(old), None) => {
                let instead_of = Some(old.replica);
                let plan = CatalogCommand::Plan { group: group.group, to: Some(to.clone()), instead_of };
                self.propose_catalog(plan, deadline).await?;
            }
        }
        let number = group.group;
        let there = |state: &CatalogState| {
            state.groups().find(|g| g.group == number).is_none_or(|g| {
                let votes = g.in_phase(Phase::Voter).any(|r| r.node == *to);
                votes && g.replicas.iter().all(|r| r.node != *from)
            })
        };
        Ok(self.until(deadline, there).await)
    }

    /// Makes a node the leader of a shard; `true` once it is.
    ///
    /// Errors: `NotFound` (no such node holds a voter of it).
    pub async fn lead_shard(
        &self,
        collection: &str,
        shard: ShardNumber,
        node: &NodeName,
        deadline: Instant,
    ) -> Result<bool> {
        self.catch_up_with_catalog(deadline).await?;
        let state = self.inner.catalog.state();
        let group = group_of(&state, collection, shard)?;
        let voter = group.in_phase(Phase::Voter).find(|r| r.node == *node);
        let voter = voter.ok_or_else(|| {
            ClusterError::NotFound(format!("a voter of shard {shard} of {collection} on node {node}"))
        })?;
        let mut asked: Option<Instant> = None;
        loop {
            let reports = self.reports(&state).await;
            let report = reports.get(node).and_then(|report| report.replicas.get(&voter.replica));
            if report.is_some_and(|r| r.leader == Some(voter.replica)) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if asked.is_none_or(|at| at.elapsed() > HAND_OVER_WITHIN) {
                asked = Some(Instant::now());
                self.hand_over(&group, voter.replica, deadline).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the catalog is as wanted; whether it was by the deadline.
    async fn until(&self, deadline: Instant, done: impl Fn(&CatalogState) -> bool) -> bool {
        let mut watch = self.inner.catalog.watch();
        tokio::time::timeout_at(deadline, watch.wait_for(|state| done(state))).await.is_ok()
    }

    /// Nodes that do not answer now.
    async fn silent(&self, state: &CatalogState) -> BTreeSet<NodeName> {
        let reports = self.reports(state).await;
        state.nodes.keys().filter(|name| !reports.contains_key(*name)).cloned().collect()
    }

    /// Asks the leader of a group to hand over to one of its voters.
    async fn hand_over(&self, group: &GroupRecord, to: ReplicaId, deadline: Instant) {
        let calls = &self.inner.router.calls;
        let everywhere = group.in_phase(Phase::Voter).map(async |r| {
            if r.node == *calls.me() {
                self.hand_over_here(r.replica, to);
            } else {
                // Whoever does not lead has nothing to hand over; who cannot be reached does not lead.
                let _ = calls.ask(&r.node, &Ask::HandOver { from: r.replica, to }, deadline).await;
            }
        });
        futures::future::join_all(everywhere).await;
    }

    /// Hands leadership of a group over in the background, if the replica here leads it.
    pub(super) fn hand_over_here(&self, from: ReplicaId, to: ReplicaId) {
        let Some(local) = self.held(from) else { return };
        if local.replica.status().role != Role::Leader {
            return;
        }
        world::spawn(async move {
            let deadline = Instant::now() + HAND_OVER_WITHIN;
            if let Err(error) = local.replica.transfer_leadership(Some(to), deadline).await {
                tracing::info!(replica = from.0, %error, "leadership was not handed over");
            }
        });
    }
}

fn group_of(state: &CatalogState, collection: &str, shard: ShardNumber) -> Result<GroupRecord> {
    let record =
        state.collection(collection).ok_or_else(|| ClusterError::NoCollection(collection.to_owned()))?;
    let group = record.shards.get(shard.0 as usize).cloned();
    group.ok_or_else(|| ClusterError::NotFound(format!("shard {shard} of {collection}")))
}
