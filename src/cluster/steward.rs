//! The slow loop of the catalog's leader: it sees what the cluster lacks and plans it.
//!
//! Invariants: only the node that leads the catalog plans, and every plan goes through the catalog, so that two who
//! believe they lead cannot plan against each other; what an older steward began the next one sees in the catalog.
//! Not here: what to plan (`balancer`, pure), carrying it out (`transfer`, `shards`).

use super::{
    Cluster, NodeName, balancer,
    catalog::{CatalogCommand, CatalogState, Phase},
};
use crate::replica::Role;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// How often the steward looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a new group waits for all its replicas before it is founded by those that are there.
const FOUND_AFTER: Duration = Duration::from_secs(3);
/// How long the catalog may take over a plan; the next look makes it again.
const PLAN_WITHIN: Duration = Duration::from_secs(5);

/// What a steward remembers from look to look; a new one begins with the benefit of the doubt.
#[derive(Default)]
struct Memory {
    /// When each node last answered.
    heard: BTreeMap<NodeName, Instant>,
    /// When each group was first seen without founders.
    unfounded: BTreeMap<u32, Instant>,
}

impl Cluster {
    /// Looks and plans while this node leads the catalog, until it closes.
    pub(super) async fn steward(self) {
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.inner.closing.cancelled() => return,
            }
            if self.inner.catalog_replica.status().role != Role::Leader {
                memory = Memory::default();
                continue;
            }
            if self.catch_up_with_catalog(Instant::now() + LOOK_EVERY).await.is_err() {
                continue;
            }
            let state = self.inner.catalog.state();
            let answering = self.reports(&state).await.into_keys().collect();
            for plan in memory.look(&state, &answering, Instant::now(), self.inner.options.replace_after) {
                tracing::info!(?plan, "planned");
                if let Err(error) = self.propose_catalog(plan, Instant::now() + PLAN_WITHIN).await {
                    tracing::warn!(%error, "a plan was not taken");
                }
            }
            for (number, record) in &state.dropping {
                if let Err(error) = self.retire(*number, record.clone(), Instant::now() + PLAN_WITHIN).await {
                    tracing::debug!(%error, "a dropped collection is not retired yet");
                }
            }
        }
    }
}

impl Memory {
    /// What to plan now.
    fn look(
        &mut self,
        state: &CatalogState,
        answering: &BTreeSet<NodeName>,
        now: Instant,
        replace_after: Duration,
    ) -> Vec<CatalogCommand> {
        self.heard.retain(|name, _| state.nodes.contains_key(name));
        for name in state.nodes.keys() {
            let heard = self.heard.entry(name.clone()).or_insert(now);
            if answering.contains(name) {
                *heard = now;
            }
        }
        let silent = self.heard.iter().filter(|(_, heard)| now - **heard >= replace_after);
        let mut plans = balancer::plan(state, &silent.map(|(name, _)| name.clone()).collect());

        let waits = |g: &&super::catalog::GroupRecord| !g.is_founded();
        let unfounded: BTreeSet<u32> = state.groups().filter(waits).map(|g| g.group).collect();
        self.unfounded.retain(|group, _| unfounded.contains(group));
        for group in state.groups().filter(waits) {
            let since = *self.unfounded.entry(group.group).or_insert(now);
            if now - since >= FOUND_AFTER && group.in_phase(Phase::Opened).next().is_some() {
                plans.push(CatalogCommand::Found { group: group.group });
            }
        }
        plans
    }
}
