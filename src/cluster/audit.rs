//! Replicas checked against themselves and against each other, and given up when they are wrong.
//!
//! Every replica reads all it has once after it was opened and then seldom (a scrub: what is stored must add up to
//! the hash kept while applying); the leader of a group compares the hashes that all its replicas recorded at the
//! same position. Invariants: a replica is given up only by its own scrub or by a majority of others that agree; the
//! catalog refuses to give up more than a group can spare.
//! Not here: the hash (`shard/`), seeding another replica in its place (`transfer`).

use super::{
    Cluster, Result,
    catalog::{CatalogCommand, CatalogState, GroupRecord, Phase},
    shards::LocalShard,
};
use crate::{
    model::{Kind, Position, ReplicaId},
    replica::Role,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How often the loop looks for something to check.
const LOOK_EVERY: Duration = Duration::from_secs(2);
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
                    if let Err(error) = self.compare(&state, *id).await {
                        tracing::debug!(replica = id.0, %error, "replicas could not be compared");
                    }
                }
            }
        }
    }

    async fn scrub(&self, local: &Arc<LocalShard>) {
        let (shard, id) = (local.shard.clone(), local.id);
        match tokio::task::spawn_blocking(move || shard.scrub()).await {
            Ok(Ok((position, _))) => {
                tracing::debug!(replica = id.0, %position, "all that is stored adds up");
                *local.scrubbed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            }
            Ok(Err(error)) if error.kind() == Kind::Corrupt => {
                tracing::error!(replica = id.0, %error, "the store has rotted: the replica is given up");
                self.give_up(id).await;
            }
            Ok(Err(error)) => tracing::warn!(replica = id.0, %error, "a scrub did not finish"),
            Err(lost) => tracing::warn!(replica = id.0, %lost, "a scrub did not finish"),
        }
    }

    /// Compares what the replicas of the group of `me` recorded at the last position they all recorded.
    async fn compare(&self, state: &CatalogState, me: ReplicaId) -> Result<()> {
        let Some(group) = state.groups().find(|g| g.replica(me).is_some()) else { return Ok(()) };
        let marks = self.marks(group, Instant::now() + COMPARE_WITHIN).await;
        let Some(wrong) = minority(&marks) else { return Ok(()) };
        for (replica, position) in wrong {
            tracing::error!(replica = replica.0, %position, "a replica differs from the others and is given up");
            self.give_up(replica).await;
        }
        Ok(())
    }

    /// The hashes that each replica of a group recorded, by position; those that do not answer are left out.
    async fn marks(
        &self,
        group: &GroupRecord,
        deadline: Instant,
    ) -> BTreeMap<ReplicaId, BTreeMap<Position, u128>> {
        let voters = group.in_phase(Phase::Voter);
        let asked = voters.map(async |r| (r.replica, self.marks_of(r, deadline).await));
        let answers = futures::future::join_all(asked).await;
        answers.into_iter().filter_map(|(id, marks)| Some((id, marks.ok()?))).collect()
    }

    async fn give_up(&self, replica: ReplicaId) {
        let lost = CatalogCommand::Lost { replica };
        if let Err(error) = self.propose_catalog(lost, Instant::now() + COMPARE_WITHIN).await {
            tracing::error!(replica = replica.0, %error, "a wrong replica cannot be given up");
        }
    }
}

/// Those that differ from a majority at the last position that all recorded; `None` while there is no majority
/// against anyone.
fn minority(marks: &BTreeMap<ReplicaId, BTreeMap<Position, u128>>) -> Option<Vec<(ReplicaId, Position)>> {
    let mut all = marks.values();
    let first = all.next()?;
    let shared = first.keys().rev().find(|p| marks.values().all(|m| m.contains_key(p)))?;
    let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
    for hashes in marks.values() {
        *votes.entry(hashes[shared]).or_default() += 1;
    }
    let (right, agree) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
    let wrong: Vec<_> =
        marks.iter().filter(|(_, m)| m[shared] != right).map(|(id, _)| (*id, *shared)).collect();
    (!wrong.is_empty() && agree * 2 > marks.len()).then_some(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(of: &[(u64, &[(u64, u128)])]) -> BTreeMap<ReplicaId, BTreeMap<Position, u128>> {
        let marks = |m: &[(u64, u128)]| m.iter().map(|(p, h)| (Position(*p), *h)).collect();
        of.iter().map(|(id, m)| (ReplicaId(*id), marks(m))).collect()
    }

    #[test]
    fn a_majority_decides_at_the_last_shared_position() {
        let equal = marks(&[(1, &[(1, 7), (2, 8)]), (2, &[(1, 7), (2, 8), (3, 9)]), (3, &[(1, 7)])]);
        assert_eq!(minority(&equal), None);
        let differs = marks(&[(1, &[(1, 7), (2, 8)]), (2, &[(1, 7), (2, 8)]), (3, &[(1, 6), (2, 5)])]);
        assert_eq!(minority(&differs), Some(vec![(ReplicaId(3), Position(2))]));
        let tie = marks(&[(1, &[(1, 7)]), (2, &[(1, 8)])]);
        assert_eq!(minority(&tie), None);
        assert_eq!(minority(&marks(&[(1, &[(1, 7)]), (2, &[])])), None);
        assert_eq!(minority(&BTreeMap::new()), None);
    }
}
