//! Membership follows the catalog: the leader of each group takes it there one step at a time.
//!
//! ```text
//!   catalog says            the leader does                                        then says
//!   Joining                 add as learner, wait until it caught up, make it voter Joined
//!   Leaving                 once nothing is pending: out of the voters             Left
//!   Leaving, and leading    make the others voters, hand leadership over           (the next leader goes on)
//! ```
//!
//! Invariants: each step is decided anew from the catalog and the membership Raft has now, so that any next leader
//! goes on where the last one stopped; a group is never left without a voter; a replica that leaves stays a voter
//! until the one that takes its place votes.
//! Not here: what should be where (`balancer`), copying data (Raft's snapshots and log).

use super::{
    Cluster, Result, WriteOptions,
    catalog::{CatalogCommand, CatalogState, CollectionRecord, GroupRecord, Phase},
    shards::{LiveCollection, LocalShard},
};
use crate::{
    machine::StateMachine,
    model::{Body, ReplicaId, ShardNumber},
    replica::{Members, Replica, Role},
};
use annal_wal::LogIndex;
use futures::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A learner that lacks at most so many entries, and none of those that were there at the last look, is made a voter:
/// an entry may hold much, and a learner that has nothing yet may lack few.
const CAUGHT_UP: u64 = 256;
/// How long one step may take; it is tried again by the next look.
const STEP_WITHIN: Duration = Duration::from_secs(5);
/// Steps taken in one look at a group.
const STEPS_MAX: usize = 8;
/// How often the groups led here are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long whoever changed a schema has to tell the shards of it.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// Looks that a founder leaves to the one before it.
const LOOKS_PER_FOUNDER: u32 = 10;

/// Where logs end, by replica.
type Ends = BTreeMap<ReplicaId, Option<LogIndex>>;

/// How much a replica counts as lacking of a log with this end, if it lacks the last `lag` entries: it must have had all
/// that was there at the last look.
fn lacking(lag: u64, end: Option<LogIndex>, at_last_look: Option<Option<LogIndex>>) -> u64 {
    let had = end.and_then(|end| end.0.checked_sub(lag)).map(LogIndex);
    if at_last_look.is_some_and(|end| had >= end) { lag } else { u64::MAX }
}

/// What a leader does next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    AddLearner(ReplicaId),
    SetVoters(BTreeSet<ReplicaId>),
    HandOver(ReplicaId),
    Remove(BTreeSet<ReplicaId>),
}

/// The next step of a group's leader `me`, if membership is not what the catalog says.
fn next_step(
    group: &GroupRecord,
    members: &Members,
    me: ReplicaId,
    lag: impl Fn(ReplicaId) -> Option<u64>,
) -> Option<Step> {
    let now = members.voters.last()?;
    if members.voters.len() > 1 {
        return Some(Step::SetVoters(now.clone()));
    }
    let member = |id: &ReplicaId| now.contains(id) || members.learners.contains(id);
    let here = || group.staying().filter(|r| !matches!(r.phase, Phase::Planned | Phase::Opened));
    if let Some(new) = here().find(|r| !member(&r.replica)) {
        return Some(Step::AddLearner(new.replica));
    }
    let wanted = voters_wanted(group);
    let mut target: BTreeSet<ReplicaId> = here().map(|r| r.replica).filter(|id| now.contains(id)).collect();
    let caught_up = |id: ReplicaId| lag(id).is_some_and(|lag| lag <= CAUGHT_UP);
    for learner in here().map(|r| r.replica).filter(|id| members.learners.contains(id)) {
        if target.len() < wanted && caught_up(learner) {
            target.insert(learner);
        }
    }
    if target.is_empty() {
        return None;
    }
    let mut voters = target.clone();
    if target.len() < wanted {
        let leaving = group.in_phase(Phase::Leaving).map(|r| r.replica);
        voters.extend(leaving.filter(|id| now.contains(id)));
    }
    if voters == *now {
        let gone = |id: &&ReplicaId| !here().any(|r| r.replica == **id);
        let learners: BTreeSet<ReplicaId> = members.learners.iter().filter(gone).copied().collect();
        return (!learners.is_empty()).then_some(Step::Remove(learners));
    }
    if voters.contains(&me) {
        return Some(Step::SetVoters(voters));
    }
    match target.is_subset(now) {
        true => target.iter().min_by_key(|id| lag(**id).unwrap_or(u64::MAX)).map(|to| Step::HandOver(*to)),
        false => Some(Step::SetVoters(voters.into_iter().chain([me]).collect())),
    }
}

/// How many of a group's replicas vote: all of a shard's; of the catalog's an odd number, at most five.
fn voters_wanted(group: &GroupRecord) -> usize {
    let staying = group.staying().count();
    match (group.group, staying) {
        (0, ..3) => 1,
        (0, 3..5) => 3,
        (0, _) => 5,
        (_, staying) => staying,
    }
}

/// What a leader tells the catalog of its members.
fn news(group: &GroupRecord, members: &Members) -> Vec<CatalogCommand> {
    let votes = |id: ReplicaId| members.voters.iter().any(|set| set.contains(&id));
    let only_one = members.voters.len() == 1;
    let follows = |id: ReplicaId| members.learners.contains(&id);
    let enough = members.voters.last().map_or(0, BTreeSet::len) >= voters_wanted(group);
    let of = |r: &super::catalog::ReplicaRecord| {
        let replica = r.replica;
        match r.phase {
            Phase::Joining | Phase::Learner if only_one && votes(replica) => {
                Some(CatalogCommand::Joined { replica, voter: true })
            }
            Phase::Joining if group.group == 0 && enough && follows(replica) => {
                Some(CatalogCommand::Joined { replica, voter: false })
            }
            Phase::Leaving if !votes(replica) && !follows(replica) => Some(CatalogCommand::Left { replica }),
            _ => None,
        }
    };
    group.replicas.iter().filter_map(of).collect()
}

impl Cluster {
    /// Takes every group that is led here to what the catalog says, until the node closes.
    pub(super) async fn drive_groups(self) {
        let mut catalog = self.inner.catalog.watch();
        let mut looked = Ends::new();
        loop {
            let state = catalog.borrow_and_update().clone();
            let now = self.ends();
            self.drive_all(&state, &looked).await;
            looked = now;
            tokio::select! {
                changed = catalog.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.inner.closing.cancelled() => return,
            }
        }
    }

    /// Where the logs of the replicas here end.
    fn ends(&self) -> Ends {
        let open = self.inner.shards.open();
        let shards = open.values().map(|local| local.replica.status());
        let all = shards.chain([self.inner.catalog_replica.status()]);
        all.map(|status| (status.replica, status.ladder.flushed)).collect()
    }

    async fn drive_all(&self, state: &CatalogState, looked: &Ends) {
        let open = self.inner.shards.open();
        let mut shards = Vec::new();
        for record in state.collections.values().chain(state.dropping.values()) {
            for group in &record.shards {
                // A node may hold two: one that leaves, and the one that takes its place.
                let here = group.replicas.iter().filter_map(|r| open.get(&r.replica));
                shards.extend(here.map(|local| self.drive_shard(record, group, local, looked)));
            }
        }
        let catalog = self.drive(&state.catalog, &self.inner.catalog_replica, looked);
        let (catalog, shards) = tokio::join!(catalog, join_all(shards));
        for error in shards.into_iter().chain([catalog]).filter_map(std::result::Result::err) {
            tracing::debug!(%error, "a group is not yet what the catalog says");
        }
    }

    async fn drive_shard(
        &self,
        record: &Arc<CollectionRecord>,
        group: &GroupRecord,
        local: &Arc<LocalShard>,
        looked: &Ends,
    ) -> Result<()> {
        if group.founders.contains(&local.id) && local.replica.status().members.voters.is_empty() {
            let before = group.founders.range(..local.id).count() as u32;
            if local.looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= before * LOOKS_PER_FOUNDER {
                local.replica.found(group.founders.clone()).await?;
            }
        }
        self.drive(group, &local.replica, looked).await?;
        // Whoever changed the schema tells the shards; this is for one who could not.
        let stale = record.region.is_home() && local.shard.view().schema().version < record.schema.version;
        if local.replica.status().role == Role::Leader && local.is_stale_for(stale) >= TELL_AFTER {
            let body = Body::Configure(record.schema.clone());
            let collection = LiveCollection::of(record.clone());
            let number = record.shards.iter().position(|g| g.group == group.group).unwrap_or_default();
            let bodies = [(ShardNumber(number as u32), body)].into();
            let deadline = Instant::now() + STEP_WITHIN;
            let options = WriteOptions::until(deadline);
            self.write(&collection, bodies, &options).await?;
        }
        Ok(())
    }

    async fn drive<M: StateMachine>(
        &self,
        group: &GroupRecord,
        replica: &Replica<M>,
        looked: &Ends,
    ) -> Result<()> {
        for _ in 0..STEPS_MAX {
            let status = replica.status();
            if status.role != Role::Leader {
                return Ok(());
            }
            let deadline = Instant::now() + STEP_WITHIN;
            let before = looked.get(&status.replica).copied();
            let lag = |id| Some(lacking(replica.lag_of(id)?, status.ladder.flushed, before));
            let step = next_step(group, &status.members, status.replica, lag);
            if let Some(step) = &step {
                tracing::info!(group = group.group, ?step, "membership follows the catalog");
            }
            match step {
                Some(Step::AddLearner(id)) => replica.add_learner(id, deadline).await?,
                Some(Step::SetVoters(voters)) => replica.set_voters(voters, deadline).await?,
                Some(Step::HandOver(to)) => {
                    return Ok(replica.transfer_leadership(Some(to), deadline).await?);
                }
                Some(Step::Remove(ids)) => replica.remove(ids, deadline).await?,
                None => {
                    for news in news(group, &status.members) {
                        self.propose_catalog(news, deadline).await?;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::catalog::ReplicaRecord;

    fn group(number: u32, replicas: &[(u64, Phase)]) -> GroupRecord {
        let record = |(id, phase): &(u64, Phase)| ReplicaRecord {
            replica: ReplicaId(*id),
            node: format!("n{id}"),
            incarnation: "1".into(),
            phase: *phase,
        };
        GroupRecord {
            group: number,
            founders: BTreeSet::from([ReplicaId(1)]),
            replicas: replicas.iter().map(record).collect(),
        }
    }

    fn ids(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        Members { voters: vec![ids(voters)], learners: ids(learners) }
    }

    fn step(group: &GroupRecord, members: &Members, me: u64) -> Option<Step> {
        next_step(group, members, ReplicaId(me), |_| Some(0))
    }

    #[test]
    fn a_replica_moves_in_small_steps() {
        use Phase::{Joining, Leaving, Planned, Voter};
        let before = group(7, &[(1, Leaving), (2, Voter), (3, Voter), (4, Planned)]);
        assert_eq!(step(&before, &members(&[1, 2, 3], &[]), 1), None, "nothing is there yet");
        let joining = group(7, &[(1, Leaving), (2, Voter), (3, Voter), (4, Joining)]);
        let now = members(&[1, 2, 3], &[]);
        assert_eq!(step(&joining, &now, 1), Some(Step::AddLearner(ReplicaId(4))));
        let now = members(&[1, 2, 3], &[4]);
        assert_eq!(next_step(&joining, &now, ReplicaId(1), |_| Some(100_000)), None, "it lags");
        assert_eq!(step(&joining, &now, 1), Some(Step::SetVoters(ids(&[1, 2, 3, 4]))));
        assert_eq!(step(&joining, &now, 2), Some(Step::SetVoters(ids(&[2, 3, 4]))));
        let now = members(&[1, 2, 3, 4], &[]);
        assert!(matches!(step(&joining, &now, 1), Some(Step::HandOver(_))));
        assert_eq!(news(&joining, &now), [CatalogCommand::Joined { replica: ReplicaId(4), voter: true }]);
        let now = members(&[2, 3, 4], &[]);
        assert_eq!(step(&joining, &now, 2), None);
        assert_eq!(
            news(&joining, &now),
            [
                CatalogCommand::Left { replica: ReplicaId(1) },
                CatalogCommand::Joined { replica: ReplicaId(4), voter: true }
            ]
        );
    }

    #[test]
    fn few_entries_may_be_all_there_are() {
        let end = Some(LogIndex(9));
        // Nothing of ten entries that were there before.
        assert_eq!(lacking(10, end, Some(end)), u64::MAX);
        // All but two that came since.
        assert_eq!(lacking(2, end, Some(Some(LogIndex(7)))), 2);
        assert_eq!(lacking(3, end, Some(Some(LogIndex(7)))), u64::MAX);
        // At the first look nothing is known.
        assert_eq!(lacking(0, end, None), u64::MAX);
        assert_eq!([lacking(0, None, Some(None)), lacking(10, end, Some(None))], [0, 10]);
    }

    #[test]
    fn the_last_copy_moves_too() {
        let group = group(7, &[(1, Phase::Leaving), (2, Phase::Joining)]);
        assert_eq!(step(&group, &members(&[1], &[]), 1), Some(Step::AddLearner(ReplicaId(2))));
        assert_eq!(step(&group, &members(&[1], &[2]), 1), Some(Step::SetVoters(ids(&[1, 2]))));
        assert_eq!(step(&group, &members(&[1, 2], &[]), 1), Some(Step::HandOver(ReplicaId(2))));
        assert_eq!(step(&group, &members(&[1, 2], &[]), 2), Some(Step::SetVoters(ids(&[2]))));
        assert_eq!(step(&group, &members(&[2], &[]), 2), None);
    }

    #[test]
    fn a_change_left_half_way_is_finished_first() {
        let group = group(7, &[(1, Phase::Voter), (2, Phase::Voter), (3, Phase::Joining)]);
        let joint = Members { voters: vec![ids(&[1, 2]), ids(&[1, 2, 3])], learners: ids(&[]) };
        assert_eq!(step(&group, &joint, 1), Some(Step::SetVoters(ids(&[1, 2, 3]))));
        assert_eq!(news(&group, &joint), []);
    }

    #[test]
    fn the_catalog_has_an_odd_number_of_voters() {
        use Phase::{Joining, Learner, Voter};
        let two = group(0, &[(1, Voter), (2, Joining)]);
        assert_eq!(step(&two, &members(&[1], &[2]), 1), None);
        assert_eq!(
            news(&two, &members(&[1], &[2])),
            [CatalogCommand::Joined { replica: ReplicaId(2), voter: false }]
        );
        let three = group(0, &[(1, Voter), (2, Learner), (3, Joining)]);
        assert_eq!(step(&three, &members(&[1], &[2, 3]), 1), Some(Step::SetVoters(ids(&[1, 2, 3]))));
        let four = group(0, &[(1, Voter), (2, Voter), (3, Voter), (4, Joining)]);
        assert_eq!(step(&four, &members(&[1, 2, 3], &[4]), 1), None);
    }
}
