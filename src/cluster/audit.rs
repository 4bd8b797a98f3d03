//! Replicas checked against themselves and against each other, and given up when they are wrong.
//!
//! Every replica reads all it has after it was opened or got a snapshot, and then seldom (a scrub: what is stored must add up to
//! the hash kept while applying); the leader of a group compares the hashes that all its replicas recorded at the
//! same position. Invariants: a replica is given up only by its own scrub or by a majority of others that agree; the
//! catalog refuses to give up more than a group can spare.
//! Not here: the hash (`shard/`), seeding another replica in its place (`transfer`).

use super::{
    Cluster, Consistency, Result,
    catalog::{CatalogCommand, CatalogState, Phase},
    read::{Found, Freshness, ShardRead, Wish},
    shards::LocalShard,
};
use crate::{
    model::{Kind, Position, ReplicaId},
    replica::Role,
    world,
};
use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often the loop looks for something to check.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A scrub rests so many times as long as it works: searches and writes come first.
const SCRUB_RESTS: u32 = 3;
/// How often replicas are compared.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// How long a comparison waits for the others.
const COMPARE_WITHIN: Duration = Duration::from_secs(5);

impl Cluster {
    /// Checks, one shard at a time, until the node closes.
    pub(super) async fn audit(self) {
        let mut compared: BTreeMap<ReplicaId, Instant> = BTreeMap::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.inner.closing.cancelled() => return,
            }
            let (state, open) = (self.inner.catalog.state(), self.inner.shards.open());
            compared.retain(|id, _| open.contains_key(id));
            let mut scrubbed = false;
            for (id, local) in &*open {
                if !scrubbed && local.wants_scrub(self.inner.options.scrub_every) {
                    scrubbed = true;
                    self.scrub(local).await;
                }
                let due = compared.get(id).is_none_or(|at| at.elapsed() >= COMPARE_EVERY);
                if due && local.replica.status().role == Role::Leader {
                    compared.insert(*id, Instant::now());
                    if let Err(error) = self.compare(&state, local).await {
                        tracing::debug!(replica = id.0, %error, "replicas could not be compared");
                    }
                }
            }
        }
    }

    async fn scrub(&self, local: &Arc<LocalShard>) {
        let (shard, id) = (local.shard.clone(), local.id);
        let (installs, closing) = (shard.installs(), self.inner.closing.clone());
        let scrub = move || {
            let mut since = Instant::now();
            shard.scrub_gently(|_| {
                world::rest(since.elapsed() * SCRUB_RESTS);
                since = Instant::now();
                if closing.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        };
        match world::patiently(scrub).await {
            // The node closes.
            Ok(Ok(None)) => {}
            Ok(Ok(Some((position, _)))) => {
                tracing::debug!(replica = id.0, %position, "all that is stored adds up");
                local.scrubbed(installs);
            }
            Ok(Err(error)) if error.kind() == Kind::Corrupt => {
                tracing::error!(replica = id.0, %error, "the store has rotted: the replica is given up");
                self.give_up(id).await;
            }
            Ok(Err(error)) => tracing::warn!(replica = id.0, %error, "a scrub did not finish"),
            Err(lost) => tracing::warn!(replica = id.0, %lost, "a scrub did not finish"),
        }
    }

    /// Compares what the replicas of the group led by `local` recorded at its last mark.
    async fn compare(&self, state: &CatalogState, local: &LocalShard) -> Result<()> {
        let found = state
            .collections
            .values()
            .find_map(|c| c.shards.iter().find(|g| g.replica(local.id).is_some()).map(|group| (c.id, group)));
        let Some((collection, group)) = found else { return Ok(()) };
        let deadline = Instant::now() + COMPARE_WITHIN;
        let fresh = Freshness { consistency: Consistency::Local, at_least: None, of: None, home: None };
        let read = Arc::new(ShardRead::HashAt(local.position()));
        let wish = Wish { collection, read, fresh, keep: false, deadline };
        let asked = group
            .in_phase(Phase::Voter)
            .map(async |r| (r.replica, self.read_replica(r.replica, &wish).await.map(|part| part.found)));
        let mut marks: BTreeMap<ReplicaId, (Position, String)> = BTreeMap::new();
        for (replica, answer) in futures::future::join_all(asked).await {
            if let Ok(Found::Hash(Some(mark))) = answer {
                marks.insert(replica, mark);
            }
        }
        for (replica, position) in minority(&marks) {
            tracing::error!(replica = replica.0, %position, "a replica differs from the others and is given up");
            self.give_up(replica).await;
        }
        Ok(())
    }

    async fn give_up(&self, replica: ReplicaId) {
        let lost = CatalogCommand::Lost { replica };
        if let Err(error) = self.propose_catalog(lost, Instant::now() + COMPARE_WITHIN).await {
            tracing::error!(replica = replica.0, %error, "a wrong replica cannot be given up");
        }
    }
}

/// Those that differ from a majority of all that recorded the same position.
fn minority(marks: &BTreeMap<ReplicaId, (Position, String)>) -> Vec<(ReplicaId, Position)> {
    let mut votes: BTreeMap<&(Position, String), usize> = BTreeMap::new();
    for mark in marks.values() {
        *votes.entry(mark).or_default() += 1;
    }
    let Some((right, agree)) = votes.into_iter().max_by_key(|(_, votes)| *votes) else { return Vec::new() };
    let at_that_position = marks.iter().filter(|(_, mark)| mark.0 == right.0);
    let (agreeing, wrong): (Vec<_>, Vec<_>) = at_that_position.partition(|(_, mark)| *mark == right);
    debug_assert_eq!(agreeing.len(), agree);
    if agree < 2 || agree <= wrong.len() {
        return Vec::new();
    }
    wrong.into_iter().map(|(id, mark)| (*id, mark.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(of: &[(u64, u64, &str)]) -> BTreeMap<ReplicaId, (Position, String)> {
        of.iter().map(|(id, at, hash)| (ReplicaId(*id), (Position(*at), (*hash).to_owned()))).collect()
    }

    #[test]
    fn a_majority_decides_at_one_position() {
        assert_eq!(minority(&marks(&[(1, 2, "a"), (2, 2, "a"), (3, 1, "b")])), []);
        let differs = marks(&[(1, 2, "a"), (2, 2, "a"), (3, 2, "b")]);
        assert_eq!(minority(&differs), [(ReplicaId(3), Position(2))]);
        assert_eq!(minority(&marks(&[(1, 1, "a"), (2, 1, "b")])), []);
        assert_eq!(minority(&marks(&[(1, 1, "a"), (2, 1, "b"), (3, 1, "c")])), []);
        assert_eq!(minority(&BTreeMap::new()), []);
    }
}
