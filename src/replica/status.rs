//! What a replica tells about itself.
//!
//! Not here: the rungs of the ladder and their order (`progress`), who leads as a thing to wait for (`membership`).

use super::{Inner, Ladder, Members, Replica};
use crate::{
    machine::StateMachine,
    model::{Position, ReplicaId},
};
use annal_wal::{GroupId, Term};
use openraft::{ServerState, async_runtime::watch::WatchReceiver as _};
use std::sync::Arc;

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Proposes, and decides what is committed.
    Leader,
    /// Follows a leader, and votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Follows a leader without a vote.
    Learner,
    /// No longer takes part: see [`ReplicaStatus::failure`].
    Stopped,
}

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub replica: ReplicaId,
    /// How far it has come.
    pub ladder: Ladder,
    /// Position of the last command applied.
    pub position: Position,
    /// Raft's term.
    pub term: Term,
    /// Whom it voted for in this term, and whether a quorum did.
    pub vote: (ReplicaId, bool),
    /// What it is.
    pub role: Role,
    /// Who leads, if known.
    pub leader: Option<ReplicaId>,
    /// The last membership it knows of, committed or not.
    pub members: Members,
    /// Rounds of ReadIndex it has run.
    pub read_rounds: u64,
    /// Why it stopped, if it failed.
    pub failure: Option<Arc<str>>,
}

impl<M: StateMachine> Replica<M> {
    /// Where this replica stands.
    pub fn status(&self) -> ReplicaStatus {
        let Inner { replica, log, progress, raft, reads, .. } = self.inner.as_ref();
        let ladder = progress.ladder();
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        // A Raft that panicked still calls itself what it was.
        let stopped = progress.check_running().is_err();
        ReplicaStatus {
            group: log.id(),
            replica: *replica,
            ladder,
            position: progress.now().position,
            term: Term(metrics.current_term),
            vote: (ReplicaId(metrics.vote.leader_id.node_id), metrics.vote.committed),
            role: match metrics.state {
                _ if stopped => Role::Stopped,
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            leader: metrics.current_leader.map(ReplicaId).filter(|leader| !stopped || leader != replica),
            members: Members::from(metrics.membership_config.membership()),
            read_rounds: reads.rounds(),
            failure: progress.failure(),
        }
    }
}
