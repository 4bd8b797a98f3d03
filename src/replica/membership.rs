//! Who takes part in a group, and who leads it: the leader changes both on request.
//!
//! ```text
//!   (not a member) --add_learner--> learner --set_voters--> voter --set_voters, remove--> (not a member)
//! ```
//!
//! Invariants: voters change by joint consensus only; each step is decided by the membership that Raft has now, so a
//! change that was left half way by a lost leader is finished by whoever asks the next one for the same; what is asked
//! for twice is done once; a replica that was taken out is no learner afterwards.
//! Not here: who should take part (the catalog), when a replica has caught up enough (`lag_of` tells, the caller
//! decides).
//! Source: Ongaro's dissertation (2014), chapter 4; openraft's `change_membership`.

use super::{
    Inner, Members, Replica, ReplicaError,
    entry::{RaftMembership, Types},
};
use crate::{machine::StateMachine, model::ReplicaId};
use annal_wal::Term;
use openraft::{
    ChangeMembers, RaftMetrics, ServerState,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, InitializeError, RaftError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

/// Who leads a group, as far as a replica knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader of the term; none while there is an election.
    pub leader: Option<ReplicaId>,
    /// Raft's term.
    pub term: Term,
}

/// How long a step waits for the one before it to be committed.
const STEP_PAUSE: Duration = Duration::from_millis(10);

/// Entries that the next leader may lack when the old one stops taking commands for its sake.
const TRANSFER_LAG_MAX: u64 = 16;

type Change = ChangeMembers<u64, ()>;

impl<M: StateMachine> Replica<M> {
    /// Founds the group with these voters, this replica among them, and asks to be elected at once; a sole founder
    /// leads, and has applied all its log, when this returns. No effect on a group that has a membership already.
    /// Several founders may be asked to, with the same set.
    ///
    /// Errors: `Options` (this replica is not among them), `Stopped`.
    pub async fn found(&self, founders: BTreeSet<ReplicaId>) -> Result<(), ReplicaError> {
        let members: BTreeMap<u64, ()> = founders.iter().map(|id| (id.0, ())).collect();
        match self.inner.raft.initialize(members).await {
            // openraft asks for an election with that.
            Ok(()) => self.take_office(false).await,
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => self.take_office(true).await,
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                let me = self.inner.replica;
                let why = format!("replica {me} is not among the founders {founders:?}");
                Err(ReplicaError::Options(why))
            }
            Err(RaftError::Fatal(_)) => Err(self.inner.progress.stopped(false)),
        }
    }

    /// A sole voter elects itself at once: there is nobody to wait for. Leads when this returns.
    pub(super) async fn take_office(&self, elect: bool) -> Result<(), ReplicaError> {
        let Inner { raft, replica, progress, .. } = self.inner.as_ref();
        let (members, _) = self.membership().await?;
        if !members.is_sole_voter(*replica) {
            return Ok(());
        }
        let stopped = || progress.stopped(false);
        if elect {
            raft.trigger().elect(false).await.map_err(|_| stopped())?;
        }
        raft.wait(None)
            .metrics(
                |m| {
                    let applied = m.last_applied.map(|id| id.committed_leader_id().term);
                    m.state == ServerState::Leader && applied == Some(m.current_term)
                },
                "the only voter leads",
            )
            .await
            .map_err(|_| stopped())?;
        let mut leadership = self.leadership();
        leadership.wait_for(|known| known.leader == Some(*replica)).await.map_err(|_| stopped())?;
        Ok(())
    }

    /// Who leads, and every change of that.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Adds a replica that receives the log and does not vote. No effect if it is a learner or voter already. On the
    /// leader; returns when the change is committed, see `lag_of` for how far the learner has come.
    ///
    /// Errors: `NotLeader` (no effect), `Superseded`, `Deadline`, `Stopped` (effect unknown: ask the next leader again).
    pub async fn add_learner(&self, replica: ReplicaId, deadline: Instant) -> Result<(), ReplicaError> {
        self.change(deadline, |members| {
            let there = members.learners.contains(&replica)
                || members.voters.iter().any(|set| set.contains(&replica));
            Ok((!there).then(|| Change::AddNodes(BTreeMap::from([(replica.0, ())]))))
        })
        .await
    }

    /// Makes exactly these replicas the voters, by joint consensus; each must be a voter or learner. Voters that are
    /// not among them leave altogether, other learners stay. Finishes a change that was left half way. On the leader,
    /// which may be among those that leave; returns when the new membership is committed.
    ///
    /// Errors: `NotLeader`, `Membership` (no effect); `Superseded`, `Deadline`, `Stopped` (effect unknown: ask the next
    /// leader again).
    pub async fn set_voters(
        &self,
        voters: BTreeSet<ReplicaId>,
        deadline: Instant,
    ) -> Result<(), ReplicaError> {
        self.change(deadline, |members| {
            let done = matches!(&members.voters[..], [only] if *only == voters);
            Ok((!done).then(|| Change::ReplaceAllVoters(ids(&voters))))
        })
        .await
    }

    /// Takes replicas out of the group, voters by joint consensus. No effect on those that are no members. On the
    /// leader, which may be among them; returns when the new membership is committed.
    ///
    /// Errors: `NotLeader`, `Membership` (no voter would be left; no effect); `Superseded`, `Deadline`, `Stopped`
    /// (effect unknown: ask the next leader again).
    pub async fn remove(&self, replicas: BTreeSet<ReplicaId>, deadline: Instant) -> Result<(), ReplicaError> {
        self.change(deadline, |members| {
            let target = members.voters.last().cloned().unwrap_or_default();
            let left: BTreeSet<ReplicaId> = target.difference(&replicas).copied().collect();
            if left.is_empty() {
                return Err(ReplicaError::Membership(format!("without {replicas:?} no voter is left")));
            }
            if members.voters.len() > 1 || left.len() < target.len() {
                return Ok(Some(Change::ReplaceAllVoters(ids(&left))));
            }
            let learners: BTreeSet<ReplicaId> = members.learners.intersection(&replicas).copied().collect();
            Ok((!learners.is_empty()).then(|| Change::RemoveNodes(ids(&learners))))
        })
        .await
    }

    /// Entries of the log that `replica` is not known to have, on the leader; none if this replica does not lead or
    /// does not know the other.
    pub fn lag_of(&self, replica: ReplicaId) -> Option<u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&replica.0)?;
        let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
        let matched = matched.as_ref().map(|id| id.index());
        Some(next(metrics.last_log_index).saturating_sub(next(matched)))
    }

    /// Hands leadership to the voter `to`, or to the one that is most caught up; returns when it leads. No effect if
    /// `to` leads already. Commands that wait meanwhile meet `NotLeader`.
    ///
    /// Errors: `NotLeader` (this replica does not lead, or another took over meanwhile), `Membership` (`to` does not
    /// vote, or there is nobody else), `Deadline` (it may still happen), `Stopped`.
    pub async fn transfer_leadership(
        &self,
        to: Option<ReplicaId>,
        deadline: Instant,
    ) -> Result<(), ReplicaError> {
        let Inner { raft, replica, progress, .. } = self.inner.as_ref();
        progress.check_running()?;
        let mut metrics = raft.metrics();
        let now = metrics.borrow_and_update().clone();
        let leader = now.current_leader.map(ReplicaId);
        if to.is_some() && leader == to {
            return Ok(());
        }
        if now.state != ServerState::Leader {
            return Err(ReplicaError::NotLeader { leader });
        }
        let others = successors(&now, *replica);
        let target = match to {
            None => others.first().copied(),
            Some(to) => others.into_iter().find(|other| *other == to),
        };
        let target = target.ok_or_else(|| {
            ReplicaError::Membership(match to {
                Some(to) => format!("replica {to} has no vote"),
                None => "there is no other voter".into(),
            })
        })?;

        let handed_over = async {
            // A follower far behind would keep the group without a leader while it catches up.
            while self.lag_of(target).is_some_and(|lag| lag > TRANSFER_LAG_MAX) {
                metrics.changed().await.map_err(|_| progress.stopped(false))?;
            }
            raft.trigger().transfer_leader(target.0).await.map_err(|_| progress.stopped(false))?;
            let mut leadership = self.leadership();
            let next = leadership
                .wait_for(|known| known.leader.is_some_and(|leader| leader != *replica))
                .await
                .map_err(|_| progress.stopped(false))?;
            Ok::<_, ReplicaError>(next.leader)
        };
        let next = timeout_at(deadline, handed_over)
            .await
            .map_err(|_| ReplicaError::Deadline { proposed: true })??;
        if to.is_none() || next == to { Ok(()) } else { Err(ReplicaError::NotLeader { leader: next }) }
    }

    /// Proposes what `next` wants done about the membership there is, until it wants nothing and that is committed.
    async fn change(
        &self,
        deadline: Instant,
        next: impl Fn(&Members) -> Result<Option<Change>, ReplicaError>,
    ) -> Result<(), ReplicaError> {
        let Inner { raft, progress, .. } = self.inner.as_ref();
        let mut proposed = false;
        loop {
            progress.check_running()?;
            let (role, leader) = self.leader_now();
            let leads = role == ServerState::Leader;
            if !leads && !proposed {
                return Err(ReplicaError::NotLeader { leader });
            }
            let (members, committed) = self.membership().await?;
            match next(&members)? {
                // Whoever took itself out may have stepped down by now.
                None if committed => return Ok(()),
                _ if !leads => return Err(ReplicaError::Superseded),
                Some(change) if committed => {
                    proposed = true;
                    // Without `retain`: voters that leave do not stay as learners.
                    let changed = timeout_at(deadline, raft.change_membership(change, false));
                    match changed.await.map_err(|_| ReplicaError::Deadline { proposed })? {
                        Ok(_) => continue,
                        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                            ChangeMembershipError::InProgress(_),
                        ))) => {}
                        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))
                            if self.membership().await?.0 != members =>
                        {
                            // Its first step was taken, its second refused.
                            return Err(ReplicaError::Superseded);
                        }
                        Err(RaftError::APIError(error)) => return Err(refused(&error)),
                        Err(RaftError::Fatal(_)) => return Err(progress.stopped(true)),
                    }
                }
                // Some earlier change is under way.
                _ => {}
            }
            if Instant::now() >= deadline {
                return Err(ReplicaError::Deadline { proposed });
            }
            sleep(STEP_PAUSE).await;
        }
    }

    fn leader_now(&self) -> (ServerState, Option<ReplicaId>) {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state, metrics.current_leader.map(ReplicaId))
    }

    /// The membership Raft goes by, and whether it is known to be committed.
    async fn membership(&self) -> Result<(Members, bool), ReplicaError> {
        let state = self.inner.raft.with_raft_state(|state| {
            let (effective, committed) =
                (state.membership_state.effective().clone(), state.membership_state.committed().clone());
            (effective, committed)
        });
        let (effective, committed) = state.await.map_err(|_| self.inner.progress.stopped(false))?;
        let members: &RaftMembership = effective.membership();
        Ok((Members::from(members), effective.log_id() == committed.log_id()))
    }
}

fn ids(replicas: &BTreeSet<ReplicaId>) -> BTreeSet<u64> {
    replicas.iter().map(|id| id.0).collect()
}

/// The other voters, the best next leader first: those that answered of late before those that did not, then by how
/// much of the log they have.
fn successors(metrics: &RaftMetrics<Types>, replica: ReplicaId) -> Vec<ReplicaId> {
    let heard_of = |id: &u64| metrics.heartbeat.as_ref()?.get(id).copied().flatten().map(|at| *at);
    let last_heard = metrics.membership_config.membership().voter_ids().filter_map(|id| heard_of(&id)).max();
    let of_late = |id: &u64| heard_of(id) >= last_heard.map(|at| at - HEARD_OF_LATE);
    let matched = |id: &u64| metrics.replication.as_ref().and_then(|known| *known.get(id)?);
    let mut others: Vec<u64> =
        metrics.membership_config.membership().voter_ids().filter(|id| *id != replica.0).collect();
    others.sort_by_key(|id| std::cmp::Reverse((of_late(id), matched(id))));
    others.into_iter().map(ReplicaId).collect()
}

/// A voter that was heard of so much longer ago than another may be gone.
const HEARD_OF_LATE: Duration = Duration::from_millis(500);

fn refused(error: &ClientWriteError<Types>) -> ReplicaError {
    match error {
        ClientWriteError::ForwardToLeader(to) => {
            ReplicaError::NotLeader { leader: to.leader_id.map(ReplicaId) }
        }
        ClientWriteError::LogEntryDiscarded(_) => ReplicaError::Superseded,
        ClientWriteError::ChangeMembershipError(error) => ReplicaError::Membership(error.to_string()),
        other => ReplicaError::Raft(other.to_string().into()),
    }
}
