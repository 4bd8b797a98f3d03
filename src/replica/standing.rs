//! What a replica can say of itself at once: how it has voted, and where it stands if it leads.
//!
//! Invariants: the vote is what the log has been given, and the log has it before any other replica hears of it: as
//! long as it is `V` here, nobody has had this replica's help to lead later than `V`'s leader; the index of a
//! [`Lead`] covers every command that was acknowledged, applied anywhere or told to anyone before it was made.
//! Not here: asking the others (`reads`).
//! Source: `docs/decisions/0009-a-followers-vote-confirms-its-leader.md`,
//! `docs/decisions/0019-a-lone-replica-reads-what-it-has-applied.md`.

use super::{
    Applier, ReadIndex,
    entry::{RaftVote, Types},
    progress::Progress,
};
use crate::model::ReplicaId;
use annal_wal::LogIndex;
use openraft::{Raft, ServerState, async_runtime::watch::WatchReceiver as _};
use std::{collections::BTreeSet, sync::Arc};

/// One replica, as it knows itself.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) replica: ReplicaId,
    pub(super) raft: Raft<Types, Applier>,
    pub(super) progress: Arc<Progress>,
}

/// What a leader knows. It leads still only if a quorum has the same vote.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    pub(super) vote: RaftVote,
    /// What a read must wait for, if it leads still.
    pub(super) index: ReadIndex,
    /// The configurations in force: of each a majority is needed.
    voters: Vec<BTreeSet<u64>>,
}

impl Standing {
    /// Its vote; none if it never voted.
    pub(super) fn vote(&self) -> Option<RaftVote> {
        self.progress.voted()
    }

    /// Whether it has voted for the leader of `vote`, and for nobody later.
    pub(super) fn has_voted(&self, vote: RaftVote) -> bool {
        // That the leader has a quorum, it may not have heard yet.
        self.vote().is_some_and(|own| own.leader_id == vote.leader_id)
    }

    /// What it knows as the leader, once an entry of its own is committed: from then on it knows of all that those
    /// before it committed. None if it does not lead.
    pub(super) async fn lead(&self) -> Option<Lead> {
        let mut metrics = self.raft.metrics();
        loop {
            if metrics.borrow_and_update().state != ServerState::Leader {
                return None;
            }
            match self.lead_now() {
                Some(lead) => return Some(lead),
                None => metrics.changed().await.ok()?,
            }
        }
    }

    /// The same, if it can be said at once.
    ///
    /// openraft's metrics may be a step behind. Of the state, the vote and the committed entry that only makes this
    /// say nothing for a while; a configuration that is superseded unnoticed is one that every next leader's quorum
    /// still meets, since two changes take two steps.
    pub(super) fn lead_now(&self) -> Option<Lead> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let vote = self.vote().filter(|vote| vote.committed && *vote == metrics.vote)?;
        let committed = metrics.local_committed.filter(|id| *id.committed_leader_id() == vote.leader_id)?;
        let leads = metrics.state == ServerState::Leader && vote.leader_id.node_id == self.replica.0;
        let index = self.progress.known_committed().max(Some(LogIndex(committed.index())))?;
        let voters = metrics.membership_config.membership().get_joint_config().clone();
        leads.then_some(Lead { vote, index: ReadIndex(index), voters })
    }

    /// What it knows as the leader, if it is a quorum by itself.
    pub(super) fn alone(&self) -> Option<Lead> {
        // Of most groups this is all that is looked at.
        let several = self.raft.metrics().borrow_watched().membership_config.voter_ids().nth(1).is_some();
        let lead = if several { None } else { self.lead_now() }?;
        lead.is_quorum(&[self.replica]).then_some(lead)
    }

    /// The index to read at on this very replica, if it leads still.
    ///
    /// What is committed and nobody can have seen need not be waited for. That holds of this replica alone: another one
    /// may be behind what was seen here while it was being applied.
    pub(super) fn index_here(&self, lead: &Lead) -> ReadIndex {
        self.progress.seen(lead.vote.leader_id).map_or(lead.index, ReadIndex)
    }

    /// The index to read at, if this replica leads by `vote`, of which `other` says that it is its own too, and the two
    /// of them are a quorum.
    pub(super) fn confirmed_by(&self, other: ReplicaId, vote: RaftVote) -> Option<ReadIndex> {
        let lead = self.lead_now().filter(|lead| lead.vote.leader_id == vote.leader_id)?;
        (other != self.replica && lead.is_quorum(&[self.replica, other])).then_some(lead.index)
    }
}

impl Lead {
    /// Whether these replicas are a majority of every configuration in force.
    pub(super) fn is_quorum(&self, replicas: &[ReplicaId]) -> bool {
        let of = |voters: &BTreeSet<u64>| replicas.iter().filter(|r| voters.contains(&r.0)).count();
        self.voters.iter().all(|voters| 2 * of(voters) > voters.len())
    }

    /// Everyone whose vote counts, but `replica`.
    pub(super) fn others(&self, replica: ReplicaId) -> BTreeSet<ReplicaId> {
        let all = self.voters.iter().flatten().copied().map(ReplicaId);
        all.filter(|other| *other != replica).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::entry::RaftLeaderId;

    #[test]
    fn a_quorum_is_one_of_every_configuration() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
        let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect::<Vec<_>>();
        let vote = RaftVote { leader_id: RaftLeaderId { term: 1, node_id: 1 }, committed: true };
        let lead = |voters| Lead { vote, index: ReadIndex(LogIndex(1)), voters };
        let three = lead(vec![set(&[1, 2, 3])]);
        assert!(three.is_quorum(&ids(&[1, 2])) && !three.is_quorum(&ids(&[1, 4])));
        let joint = lead(vec![set(&[1, 2, 3]), set(&[3, 4, 5])]);
        assert!(!joint.is_quorum(&ids(&[1, 2])) && !joint.is_quorum(&ids(&[1, 3])));
        assert!(joint.is_quorum(&ids(&[1, 3, 4])));
        assert_eq!(joint.others(ReplicaId(1)), ids(&[2, 3, 4, 5]).into_iter().collect());
        // A leader that is on its way out does not count.
        assert!(!lead(vec![set(&[2, 3, 4])]).is_quorum(&ids(&[1, 2])));
    }
}
