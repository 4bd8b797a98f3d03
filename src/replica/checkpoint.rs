//! When the state machine is made durable, and how much of the log may then be purged: one task a replica.
//!
//! Invariants: nothing is purged that is not durable in the state machine; checkpoints of one replica follow each
//! other, never overlap; an idle replica is not checkpointed twice.
//! Not here: making it durable (`apply::Persister`, which openraft calls), freeing bytes on disk (the log's
//! retention, which may ask for a purge here so that one group does not pin the node's whole log).

use super::{
    Applier, ReplicaError,
    entry::{RaftLogId, Types},
    progress::Progress,
    tail,
};
use crate::machine::StateMachine;
use annal_wal::{GroupId, GroupLog, LogIndex};
use openraft::{Raft, async_runtime::watch::WatchReceiver as _, metrics::WaitError};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

/// When a replica makes its state durable by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointLimits {
    /// At the latest this long after something was applied,
    pub every: Duration,
    /// or after so many bytes of commands: what a restart applies again.
    pub bytes: u64,
    /// Entries that stay in Raft's log below a checkpoint. A leader keeps what its members lack besides, as long as
    /// the log has room: who falls behind that is sent a snapshot.
    pub keep_entries: u64,
    /// Of those, the last of about so many bytes: who lacks more is served sooner by a snapshot, which brings graphs.
    pub keep_bytes: u64,
}

impl Default for CheckpointLimits {
    fn default() -> Self {
        CheckpointLimits {
            every: Duration::from_secs(30),
            bytes: 64 << 20,
            keep_entries: 4096,
            keep_bytes: 16 << 20,
        }
    }
}

/// How long a purge is waited for.
const PURGE_WITHIN: Duration = Duration::from_secs(2);

/// How often the limits are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) type Request = oneshot::Sender<Result<(), ReplicaError>>;

/// The task's own state.
pub(super) struct Checkpoints {
    pub(super) raft: Raft<Types, Applier>,
    pub(super) log: GroupLog,
    pub(super) machine: Arc<dyn StateMachine>,
    pub(super) progress: Arc<Progress>,
    pub(super) limits: CheckpointLimits,
}

/// What was applied last.
#[derive(Default)]
struct Recent {
    /// Where the machine stood, and how many bytes it had applied, oldest first.
    marks: VecDeque<(LogIndex, u64)>,
    /// What lies at or below is more than that many bytes ago, as far as is known.
    begins: Option<LogIndex>,
}

impl Recent {
    /// Notes where the machine stands now; `keep`: bytes that count as recent.
    fn note(&mut self, applied: Option<LogIndex>, bytes: u64, keep: u64) {
        if let Some(applied) =
            applied.filter(|applied| self.marks.back().is_none_or(|(last, _)| last < applied))
        {
            self.marks.push_back((applied, bytes));
        }
        while let Some((index, _)) = self.marks.pop_front_if(|(_, then)| bytes - *then > keep) {
            self.begins = Some(index);
        }
    }
}

impl Checkpoints {
    /// Up to where the log wants the group purged, if that was not done yet: what was wanted before may have been more than
    /// could be purged then.
    fn pins(&self, wanted: &watch::Receiver<BTreeMap<GroupId, LogIndex>>) -> Option<LogIndex> {
        let upto = wanted.borrow().get(&self.log.id()).copied();
        upto.filter(|upto| Some(*upto) > self.log.state().purged.map(|id| id.index))
    }

    /// Runs until nobody can send a request, or the replica stops.
    pub(super) async fn run(
        self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut wanted: watch::Receiver<BTreeMap<GroupId, LogIndex>>,
    ) {
        let mut look = interval(LOOK_EVERY.min(self.limits.every));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last_at, mut last_bytes) = (Instant::now(), self.progress.applied_bytes());
        let mut recent = Recent::default();
        let mut told = None;
        loop {
            let mut asked = None;
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => asked = Some(request),
                    None => return,
                },
                Ok(()) = wanted.changed() => {
                    wanted.mark_unchanged();
                    if self.pins(&wanted).is_none() {
                        continue;
                    }
                }
                _ = look.tick() => {
                    recent.note(self.progress.now().index(), self.progress.applied_bytes(), self.limits.keep_bytes);
                    let bytes = self.progress.applied_bytes() - last_bytes;
                    if last_at.elapsed() < self.limits.every && bytes < self.limits.bytes {
                        continue;
                    }
                }
            }
            (last_at, last_bytes) = (Instant::now(), self.progress.applied_bytes());
            let result = self.checkpoint(&recent, self.pins(&wanted)).await;
            self.tell_history(&mut told).await;
            let stopped = result.is_err();
            if let Some(request) = asked {
                // Whoever asked may have gone.
                let _ = request.send(result);
            }
            if stopped {
                return;
            }
        }
    }

    /// Makes what is applied now durable, then purges what need not be kept, or what the log wants purged.
    async fn checkpoint(&self, recent: &Recent, purge_to: Option<LogIndex>) -> Result<(), ReplicaError> {
        let Some(target) = self.progress.now().index() else { return Ok(()) };
        if self.progress.checkpoint().index() < Some(target) {
            self.persist(target).await?;
        }
        let old = target.0.checked_sub(self.limits.keep_entries).map(LogIndex);
        let unneeded = old.max(recent.begins).min(self.had_by_all());
        let upto = unneeded.max(purge_to.map(|wanted| wanted.min(target)));
        match upto {
            Some(upto) if self.log.state().purged.is_none_or(|purged| purged.index < upto) => {
                self.purge(upto).await
            }
            _ => Ok(()),
        }
    }

    /// Tells the machine where the log's history begins, if that has moved; what cannot be found out now is told later.
    async fn tell_history(&self, told: &mut Option<LogIndex>) {
        let Some(oldest) = self.log.state().oldest.filter(|oldest| Some(*oldest) > *told) else { return };
        let first = tail::with(&self.machine, move |machine| {
            tail::first_from(machine, oldest).inspect(|first| machine.history_starts_at(*first))
        });
        match first.await {
            Ok(_) => *told = Some(oldest),
            Err(error) => {
                tracing::warn!(group = self.log.id().0, %error, "where history begins is not known")
            }
        }
    }

    /// openraft drops a trigger while an older build runs, hence the loop.
    async fn persist(&self, target: LogIndex) -> Result<(), ReplicaError> {
        loop {
            self.raft.trigger().snapshot().await.map_err(|_| self.progress.stopped(false))?;
            let wait = self.raft.wait(Some(LOOK_EVERY));
            match wait.metrics(|m| m.snapshot.is_some_and(|id| id.index() >= target.0), "checkpoint").await {
                Ok(_) => return Ok(()),
                Err(WaitError::Timeout(..)) => {}
                Err(WaitError::ShuttingDown) => return Err(self.progress.stopped(false)),
            }
        }
    }

    /// What every member of the group has, as the leader knows it; the others answer for nobody. A member that is gone
    /// holds on to the log until the log wants its room back.
    fn had_by_all(&self) -> Option<LogIndex> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<RaftLogId>| id.as_ref().map(|id| LogIndex(id.index()));
        let members = metrics.replication.iter().flatten().map(|(_, matched)| index(matched));
        members.chain(self.progress.kept_after()).min().unwrap_or(Some(LogIndex(u64::MAX)))
    }

    /// openraft waits with a purge while it sends some of it, and is not waited for: it purges when it can.
    async fn purge(&self, upto: LogIndex) -> Result<(), ReplicaError> {
        self.raft.trigger().purge_log(upto.0).await.map_err(|_| self.progress.stopped(false))?;
        let wait = self.raft.wait(Some(PURGE_WITHIN));
        match wait.metrics(|m| m.purged.is_some_and(|id| id.index() >= upto.0), "purge").await {
            Ok(_) | Err(WaitError::Timeout(..)) => {}
            Err(WaitError::ShuttingDown) => return Err(self.progress.stopped(false)),
        }
        self.progress.ladder();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recent_is_counted_in_bytes() {
        let mut recent = Recent::default();
        recent.note(None, 0, 100);
        for (index, bytes) in [(1, 60), (2, 120), (2, 120), (3, 150)] {
            recent.note(Some(LogIndex(index)), bytes, 100);
            assert_eq!(recent.begins, None, "at {index}");
        }
        recent.note(Some(LogIndex(4)), 161, 100);
        assert_eq!(recent.begins, Some(LogIndex(1)));
        recent.note(Some(LogIndex(9)), 1_000, 100);
        assert_eq!((recent.begins, recent.marks.len()), (Some(LogIndex(4)), 1));
        // Nothing new makes nothing old.
        recent.note(Some(LogIndex(9)), 1_000, 100);
        assert_eq!(recent.begins, Some(LogIndex(4)));
    }
}
