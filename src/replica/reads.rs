//! Linearizable reads: rounds of ReadIndex, each shared by all reads that were waiting when it started.
//!
//! Invariants: a round confirms with a quorum that this replica still leads (never by the lease, which trusts
//! clocks); a read takes part only in a round that starts after the read arrived, so it sees everything that was
//! committed before it.
//! Not here: the read itself, which waits for the index to be applied and then looks at the state machine.
//! Source: Ongaro's dissertation (2014), section 6.4.

use super::{Applier, ReplicaError, entry::Types, progress::Progress};
use crate::{machine::StateMachine, model::ReplicaId};
use annal_wal::LogIndex;
use openraft::{
    Raft, ReadPolicy,
    errors::{LinearizableReadError, RaftError},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// What must be applied before a linearizable read may look: valid on every replica of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadIndex(pub LogIndex);

type Answer = oneshot::Sender<Result<ReadIndex, ReplicaError>>;

/// The end of the rounds that readers hold.
pub(super) struct Reads {
    waiting: mpsc::UnboundedSender<Answer>,
    rounds: Arc<AtomicU64>,
    progress: Arc<Progress>,
}

impl Reads {
    /// Starts the task that runs the rounds; it ends when this end is dropped.
    pub(super) fn start<M: StateMachine>(raft: Raft<Types, Applier<M>>, progress: Arc<Progress>) -> Self {
        let (waiting, queue) = mpsc::unbounded_channel();
        let rounds = Arc::new(AtomicU64::new(0));
        tokio::spawn(run_rounds(raft, queue, rounds.clone(), progress.clone()));
        Reads { waiting, rounds, progress }
    }

    /// See [`super::Replica::read_index`].
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<ReadIndex, ReplicaError> {
        self.progress.check_running()?;
        let (answer, answered) = oneshot::channel();
        self.waiting.send(answer).map_err(|_| self.progress.stopped(false))?;
        timeout_at(deadline, answered)
            .await
            .map_err(|_| ReplicaError::Deadline { proposed: false })?
            .map_err(|_| self.progress.stopped(false))?
    }

    /// Rounds run so far.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}

async fn run_rounds<M: StateMachine>(
    raft: Raft<Types, Applier<M>>,
    mut queue: mpsc::UnboundedReceiver<Answer>,
    rounds: Arc<AtomicU64>,
    progress: Arc<Progress>,
) {
    let mut readers = Vec::new();
    // Everyone who is in the queue now arrived before the round that starts now.
    while queue.recv_many(&mut readers, usize::MAX).await > 0 {
        readers.retain(|reader| !reader.is_closed());
        if readers.is_empty() {
            continue;
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        let result = match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(confirmed) => Ok(ReadIndex(LogIndex(confirmed.read_log_id().index()))),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(ReplicaError::NotLeader { leader: to.leader_id.map(ReplicaId) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ReplicaError::NoQuorum)
            }
            Err(RaftError::Fatal(_)) => Err(progress.stopped(false)),
        };
        for reader in readers.drain(..) {
            // A reader that gave up is no longer there.
            let _ = reader.send(result.clone());
        }
    }
}
