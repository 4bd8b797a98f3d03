//! How far this replica has come: the rungs of the ladder, and those who wait for one to move.
//!
//! Invariants: the ladder (see the head of [`super`]) holds whenever it is read; a rung never moves down, except
//! `submitted` and `flushed` when Raft truncates what was never committed; the first failure is kept.
//! Not here: who moves the rungs (`log_store`, `apply`, `checkpoint`).

use super::{
    ReplicaError,
    entry::{self, Mark, RaftLeaderId, RaftLogId, RaftVote},
};
use crate::model::Position;
use annal_wal::{GroupLog, LogIndex};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The rungs, lowest first; `None` is before the first entry. See the head of [`super`] for what each means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each rung is explained once, at the head of the floor")]
pub struct Ladder {
    pub oldest: Option<LogIndex>,
    pub purged: Option<LogIndex>,
    pub checkpointed: Option<LogIndex>,
    pub durable: Option<LogIndex>,
    pub applied: Option<LogIndex>,
    pub committed: Option<LogIndex>,
    pub flushed: Option<LogIndex>,
    pub submitted: Option<LogIndex>,
}

impl Ladder {
    /// Panics if a rung lies above the next one: only a bug can do that, and going on could lose data.
    fn check(&self) {
        let after_purged = self.purged.map_or(0, |index| index.0 + 1);
        assert!(self.oldest.is_none_or(|oldest| oldest.0 <= after_purged), "oldest > purged + 1: {self:?}");
        assert!(self.purged <= self.checkpointed, "purged > checkpointed: {self:?}");
        assert!(self.checkpointed <= self.durable, "checkpointed > durable: {self:?}");
        assert!(self.durable <= self.applied, "durable > applied: {self:?}");
        assert!(self.applied <= self.committed, "applied > committed: {self:?}");
        assert!(self.applied <= self.flushed, "applied > flushed: {self:?}");
        assert!(self.committed <= self.submitted, "committed > submitted: {self:?}");
        assert!(self.flushed <= self.submitted, "flushed > submitted: {self:?}");
    }
}

/// The last entry folded into the state machine, and the position that gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    pub(super) id: Option<RaftLogId>,
    pub(super) position: Position,
    /// Why this replica applies nothing any more.
    stopped: Option<Stopped>,
}

impl Applied {
    pub(super) fn index(&self) -> Option<LogIndex> {
        self.id.as_ref().map(|id| LogIndex(id.index()))
    }
}

#[derive(Clone, Debug)]
struct Stopped {
    why: Arc<str>,
    failed: bool,
}

/// Shared by everything that moves a rung or waits for one.
pub(super) struct Progress {
    /// `None` only where log and state machine are tested apart from each other: there is no ladder then.
    log: Option<GroupLog>,
    /// Entries in the log here, perhaps not on disk yet.
    submitted: watch::Sender<Option<LogIndex>>,
    /// Entries on disk here, as far as appended by this process.
    flushed: watch::Sender<Option<LogIndex>>,
    committed: Mutex<Option<LogIndex>>,
    /// The vote as the log has been given it: before any other replica hears of it.
    voted: Mutex<Option<RaftVote>>,
    /// Told to another replica, or to a caller, to be committed; 0 is nothing.
    told: AtomicU64,
    applied: watch::Sender<Applied>,
    durable: Mutex<Mark>,
    /// What Raft may purge: always a value `durable` once had.
    checkpointed: Mutex<Mark>,
    /// The last entry covered by an installed snapshot: on disk as state, though not as entries.
    installed: Mutex<Option<LogIndex>>,
    /// Bytes of commands applied by this process.
    applied_bytes: AtomicU64,
    /// The position it was opened at.
    opened_at: Position,
    /// What others still need of the log: the last index they have, by number of the guard.
    kept: Mutex<(u64, BTreeMap<u64, Option<LogIndex>>)>,
    /// This replica lacks entries that it has acknowledged.
    forgot: CancellationToken,
    /// Told when another replica waits to hear how far its group is committed.
    pub(super) commits_wanted: Notify,
    /// Told when another replica fetches a part of the log that goes with a snapshot.
    pub(super) history_asked: Notify,
}

impl Progress {
    /// `durable` is what the state machine has on disk: nothing in memory is ahead of it yet.
    pub(super) fn new(log: GroupLog, durable: Mark, position: Position) -> Self {
        let state = log.state();
        let committed = state.committed.map(|id| id.index);
        let progress = Progress {
            submitted: watch::Sender::new(state.last.map(|id| id.index)),
            flushed: watch::Sender::new(state.last.map(|id| id.index)),
            committed: Mutex::new(committed.max(durable.index())),
            voted: Mutex::new(state.vote.map(entry::vote_from_log)),
            told: AtomicU64::new(0),
            applied: watch::Sender::new(Applied { id: durable.applied, position, stopped: None }),
            installed: Mutex::new(durable.index()),
            checkpointed: Mutex::new(durable.clone()),
            durable: Mutex::new(durable),
            applied_bytes: AtomicU64::new(0),
            opened_at: position,
            kept: Mutex::default(),
            forgot: CancellationToken::new(),
            commits_wanted: Notify::new(),
            history_asked: Notify::new(),
            log: Some(log),
        };
        progress.ladder();
        progress
    }

    /// For a suite that drives a log and a state machine that do not belong together.
    #[cfg(test)]
    pub(super) fn apart() -> Self {
        Progress {
            submitted: watch::Sender::default(),
            flushed: watch::Sender::new(Some(LogIndex(u64::MAX))),
            committed: Mutex::default(),
            voted: Mutex::default(),
            told: AtomicU64::new(0),
            applied: watch::Sender::default(),
            installed: Mutex::default(),
            checkpointed: Mutex::default(),
            durable: Mutex::default(),
            applied_bytes: AtomicU64::default(),
            opened_at: Position(0),
            kept: Mutex::default(),
            forgot: CancellationToken::new(),
            commits_wanted: Notify::new(),
            history_asked: Notify::new(),
            log: None,
        }
    }

    /// The ladder now, checked. Lower rungs are read before higher ones, so that one that moves meanwhile cannot
    /// make it look broken.
    pub(super) fn ladder(&self) -> Ladder {
        let Some(log) = &self.log else { return Ladder::default() };
        let low = log.state();
        let checkpointed = lock(&self.checkpointed).index();
        let durable = lock(&self.durable).index();
        let applied = self.applied.borrow().index();
        let committed = *lock(&self.committed);
        let installed = *lock(&self.installed);
        let high = log.state();
        let ladder = Ladder {
            oldest: low.oldest,
            purged: low.purged.map(|id| id.index),
            checkpointed,
            durable,
            applied,
            committed,
            flushed: high.flushed.max(installed),
            submitted: high.submitted.max(installed),
        };
        ladder.check();
        ladder
    }

    /// Entries up to `last` are in the log.
    pub(super) fn submitted(&self, last: LogIndex) {
        move_up(&self.submitted, last);
    }

    /// Entries up to `last` are on disk.
    pub(super) fn flushed(&self, last: LogIndex) {
        move_up(&self.flushed, last);
    }

    /// Entries after `last` were never committed and are gone.
    pub(super) fn truncated(&self, last: Option<LogIndex>) {
        self.submitted.send_modify(|submitted| *submitted = (*submitted).min(last));
        self.flushed.send_modify(|flushed| *flushed = (*flushed).min(last));
    }

    /// Waits until the entry is in the log, or for so long.
    pub(super) async fn wait_submitted(&self, index: LogIndex, within: Duration) {
        let mut submitted = self.submitted.subscribe();
        let there = submitted.wait_for(|submitted| *submitted >= Some(index));
        // Whoever waits goes on either way.
        let _ = tokio::time::timeout(within, there).await;
    }

    /// Keeps entries after `index` from being purged, as far as there is room, until the guard is dropped.
    pub(super) fn keep_after(self: &Arc<Self>, index: Option<LogIndex>) -> Kept {
        let mut kept = lock(&self.kept);
        kept.0 += 1;
        let key = kept.0;
        kept.1.insert(key, index);
        Kept { progress: self.clone(), key }
    }

    /// What is kept after which index, if anything is.
    pub(super) fn kept_after(&self) -> Option<Option<LogIndex>> {
        lock(&self.kept).1.values().min().copied()
    }

    /// Raft may apply up to `last`.
    pub(super) fn committed(&self, last: LogIndex) {
        {
            let mut committed = lock(&self.committed);
            *committed = (*committed).max(Some(last));
        }
        self.ladder();
    }

    /// The log is given a vote.
    pub(super) fn votes(&self, vote: RaftVote) {
        *lock(&self.voted) = Some(vote);
    }

    /// The last vote that the log has been given.
    pub(super) fn voted(&self) -> Option<RaftVote> {
        *lock(&self.voted)
    }

    /// Another replica is going to be told that entries up to `last` are committed, and may apply them before this one.
    pub(super) fn tells(&self, last: LogIndex) {
        self.told.fetch_max(last.0, Ordering::SeqCst);
    }

    /// What anyone can have seen by now, of what the leader at this replica commits and of all before: it is told, or
    /// applied here. None if nothing of this leader's is applied: then it may not know what those before it told; a leader
    /// that restarts comes by a new term, so that what this process has not counted is not its own.
    pub(super) fn seen(&self, leader: RaftLeaderId) -> Option<LogIndex> {
        let told = self.told.load(Ordering::SeqCst);
        let applied = self.applied.borrow();
        let own = applied.id.as_ref().filter(|id| *id.committed_leader_id() == leader)?;
        Some(LogIndex(own.index().max(told)))
    }

    /// What is committed as far as anyone can have seen by now.
    pub(super) fn known_committed(&self) -> Option<LogIndex> {
        let told = Some(LogIndex(self.told.load(Ordering::SeqCst))).filter(|told| told.0 > 0);
        told.max(*lock(&self.committed))
    }

    /// Waits until the entry is on this replica's own disk: a quorum of others may commit it sooner.
    ///
    /// Errors: the replica failed meanwhile, so that it may never be.
    pub(super) async fn wait_flushed(&self, last: LogIndex) -> io::Result<()> {
        let (mut flushed, mut applied) = (self.flushed.subscribe(), self.applied.subscribe());
        let failed = |applied: &Applied| applied.stopped.as_ref().is_some_and(|stopped| stopped.failed);
        tokio::select! {
            biased;
            _ = flushed.wait_for(|flushed| *flushed >= Some(last)) => Ok(()),
            _ = applied.wait_for(failed) => Err(io::Error::other("the log failed before it was flushed")),
        }
    }

    /// The log was purged, perhaps beyond its end: whoever waits for it looks again.
    pub(super) fn purged(&self) {
        self.flushed.send_modify(|_| ());
    }

    /// Waits until the log here reaches up to `index`, which a snapshot alone does not make it do.
    ///
    /// Errors: `Stopped` (no effect).
    pub(super) async fn wait_logged(&self, index: LogIndex) -> Result<(), ReplicaError> {
        let is_there =
            || self.log.as_ref().is_none_or(|log| log.state().last.map(|id| id.index) >= Some(index));
        let (mut flushed, mut applied) = (self.flushed.subscribe(), self.applied.subscribe());
        while !is_there() {
            tokio::select! {
                _ = flushed.changed() => {}
                _ = applied.wait_for(|applied| applied.stopped.is_some()) => return Err(self.stopped(false)),
            }
        }
        Ok(())
    }

    /// The state machine has folded in everything up to `id`, `bytes` of commands in this step.
    pub(super) fn applied(&self, id: RaftLogId, position: Position, bytes: usize) {
        self.applied_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.applied.send_modify(|applied| {
            assert!(applied.id.as_ref() <= Some(&id) && applied.position <= position, "applied moves down");
            applied.id = Some(id);
            applied.position = position;
        });
        self.ladder();
    }

    /// A snapshot replaced the whole state: durable, at `mark`.
    pub(super) fn installed(&self, mark: Mark, position: Position) {
        *lock(&self.installed) = mark.index();
        {
            let mut committed = lock(&self.committed);
            *committed = (*committed).max(mark.index());
        }
        if let Some(index) = mark.index() {
            self.submitted(index);
        }
        self.applied.send_modify(|applied| {
            applied.id = mark.applied;
            applied.position = position;
        });
        *lock(&self.durable) = mark.clone();
        *lock(&self.checkpointed) = mark;
        self.ladder();
    }

    /// The state machine has everything up to `mark` on disk.
    pub(super) fn durable(&self, mark: Mark) {
        raise(&self.durable, mark);
        self.ladder();
    }

    /// Raft may purge up to `mark`.
    pub(super) fn checkpointed(&self, mark: Mark) {
        raise(&self.checkpointed, mark);
        self.ladder();
    }

    pub(super) fn checkpoint(&self) -> Mark {
        lock(&self.checkpointed).clone()
    }

    pub(super) fn applied_bytes(&self) -> u64 {
        self.applied_bytes.load(Ordering::Relaxed)
    }

    /// Mean bytes of a command applied by this process; 0 if there was none.
    pub(super) fn command_bytes(&self) -> u64 {
        let count = self.applied.borrow().position.0.saturating_sub(self.opened_at.0);
        self.applied_bytes().checked_div(count).unwrap_or_default()
    }

    pub(super) fn now(&self) -> Applied {
        self.applied.borrow().clone()
    }

    /// Nothing is applied any more. The first reason stays, but a failure outlasts a shutdown.
    pub(super) fn stop(&self, why: impl Into<Arc<str>>, failed: bool) {
        self.applied.send_if_modified(|applied| {
            let news = applied.stopped.as_ref().is_none_or(|stopped| failed && !stopped.failed);
            if news {
                applied.stopped = Some(Stopped { why: why.into(), failed });
            }
            news
        });
    }

    /// The log lacks entries that this replica has acknowledged, and perhaps votes: it failed, for good.
    pub(super) fn forgets(&self) {
        const WHY: &str = "the log lacks entries that this replica has acknowledged";
        tracing::error!(group = ?self.log.as_ref().map(GroupLog::id), WHY);
        self.stop(WHY, true);
        self.forgot.cancel();
    }

    /// Returns once the log is found to lack what was acknowledged.
    pub(super) async fn forgot(&self) {
        self.forgot.cancelled().await;
    }

    /// Why it stopped, if it did.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        self.applied
            .borrow()
            .stopped
            .as_ref()
            .filter(|stopped| stopped.failed)
            .map(|stopped| stopped.why.clone())
    }

    /// The error of a request that meets a stopped replica.
    pub(super) fn stopped(&self, proposed: bool) -> ReplicaError {
        stopped_error(&self.applied.borrow(), proposed)
    }

    /// Errors if the replica has stopped.
    pub(super) fn check_running(&self) -> Result<(), ReplicaError> {
        let applied = self.applied.borrow();
        if applied.stopped.is_some() { Err(stopped_error(&applied, false)) } else { Ok(()) }
    }

    /// Waits until `reached` holds of what is applied.
    ///
    /// Errors: `Deadline`, `Stopped` (nothing was asked of Raft: no effect).
    pub(super) async fn wait(
        &self,
        reached: impl Fn(&Applied) -> bool,
        deadline: Option<Instant>,
    ) -> Result<Applied, ReplicaError> {
        let mut watch = self.applied.subscribe();
        let wait = watch.wait_for(|applied| reached(applied) || applied.stopped.is_some());
        let applied = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, wait)
                .await
                .map_err(|_| ReplicaError::Deadline { proposed: false })?,
            None => wait.await,
        };
        let applied = applied.expect("the sender lives in self");
        if reached(&applied) { Ok(applied.clone()) } else { Err(stopped_error(&applied, false)) }
    }
}

fn stopped_error(applied: &Applied, proposed: bool) -> ReplicaError {
    match &applied.stopped {
        Some(stopped) => ReplicaError::Stopped { why: stopped.why.clone(), failed: stopped.failed, proposed },
        None => ReplicaError::Stopped { why: "raft no longer answers".into(), failed: true, proposed },
    }
}

fn move_up(rung: &watch::Sender<Option<LogIndex>>, to: LogIndex) {
    rung.send_if_modified(|rung| {
        let moved = *rung < Some(to);
        if moved {
            *rung = Some(to);
        }
        moved
    });
}

/// See [`Progress::keep_after`].
pub(super) struct Kept {
    progress: Arc<Progress>,
    key: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        lock(&self.progress.kept).1.remove(&self.key);
    }
}

/// A rung only moves up; a late report of an earlier mark changes nothing.
fn raise(rung: &Mutex<Mark>, mark: Mark) {
    let mut rung = lock(rung);
    if rung.index() < mark.index() {
        *rung = mark;
    }
}

/// A panic elsewhere leaves these values whole: each is written in one step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
