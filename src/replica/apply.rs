//! The log folded into a state machine: openraft's state-machine traits on a [`StateMachine`].
//!
//! Invariants: entries are applied in log order, each once (what lies at or below the machine's own bookmark is
//! passed over); a batch and the bookmark after it are one atomic step of the machine; nothing is applied before it
//! is on this replica's own disk; the first error stops the replica and is never stepped over.
//! Not here: what a command does (`shard/`), when to checkpoint (`checkpoint`).

use super::{
    entry::{Answers, Commands, Mark, RaftEntry, RaftPayload, StoredMembership, Types},
    pace::Pace,
    progress::Progress,
    snapshot::SnapshotStream,
};
use crate::{
    machine::{Outcome, StateMachine},
    model::Position,
    mutant::{self, Mutant},
    world,
};
use annal_wal::LogIndex;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
    type_config::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
};
use std::{io, sync::Arc};
use tokio_util::sync::DropGuard;

/// One step of the machine takes at most about so many commands,
const BATCH_COUNT: usize = 4096;
/// and about so many bytes: a step is what a crash makes the machine do again.
const BATCH_BYTES: usize = 8 << 20;

/// A state machine, as openraft sees it.
pub(super) struct Applier {
    machine: Arc<dyn StateMachine>,
    progress: Arc<Progress>,
    /// Where the machine stands.
    mark: Mark,
    /// Of the snapshots it installs.
    pace: Pace,
    in_use: InUse,
}

/// Held by whatever may call the machine on openraft's behalf; once all are dropped, nobody does any more.
#[derive(Clone)]
pub(super) struct InUse {
    progress: Arc<Progress>,
    _released: Arc<DropGuard>,
}

impl InUse {
    pub(super) fn new(progress: Arc<Progress>, released: DropGuard) -> Self {
        InUse { progress, _released: Arc::new(released) }
    }
}

impl Drop for InUse {
    /// openraft would go on without its state machine; a panic here must stop the replica like any other failure.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.progress.stop("a bug: the state machine's keeper panicked", true);
        }
    }
}

impl Applier {
    pub(super) fn new(
        machine: Arc<dyn StateMachine>,
        progress: Arc<Progress>,
        mark: Mark,
        pace: Pace,
        in_use: InUse,
    ) -> Self {
        Applier { machine, progress, mark, pace, in_use }
    }

    /// Folds the whole stream in, in batches.
    async fn fold<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin,
    {
        let mut batch = Batch::default();
        while let Some(item) = entries.next().await {
            let (entry, answer) = item?;
            if self.mark.applied.as_ref() >= Some(&entry.log_id) {
                continue;
            }
            self.take(&mut batch, entry, answer);
            if batch.is_full() {
                self.step(std::mem::take(&mut batch)).await?;
            }
        }
        self.step(batch).await
    }

    /// Adds an entry to a batch and moves the mark onto it.
    fn take(&mut self, batch: &mut Batch, entry: RaftEntry, answer: Option<ApplyResponder<Types>>) {
        self.mark.applied = Some(entry.log_id);
        let mut count = 0;
        match entry.payload {
            RaftPayload::Blank => {}
            RaftPayload::Normal(commands) => count = batch.add(&commands),
            RaftPayload::Membership(membership) => {
                self.mark.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
        batch.entries.push((answer, count));
    }

    /// One step of the machine: applies a batch, moves the rung, answers.
    async fn step(&mut self, batch: Batch) -> Result<(), io::Error> {
        let Some(last) = self.mark.applied.filter(|_| !batch.entries.is_empty()) else { return Ok(()) };
        self.progress.wait_flushed(LogIndex(last.index())).await?;

        let Batch { commands, bytes, entries } = batch;
        let (machine, bookmark, count) = (self.machine.clone(), self.mark.to_bookmark(), commands.len());
        let outcomes = blocking(move || machine.apply(commands, bookmark).map_err(io::Error::other)).await?;

        let position = follow_on(self.progress.now().position, &outcomes, count)?;
        self.progress.applied(last, position, bytes);
        let mut outcomes = outcomes.into_iter();
        for (answer, count) in entries {
            let outcomes = outcomes.by_ref().take(count).collect();
            if let Some(answer) = answer {
                answer.send(Answers(outcomes));
            }
        }
        Ok(())
    }

    async fn install(&mut self, stream: SnapshotStream) -> Result<(), io::Error> {
        let (machine, pace) = (self.machine.clone(), self.pace.clone());
        let installed = world::patiently(move || {
            stream.install_into(machine.as_ref(), &pace)?;
            Ok::<_, io::Error>((machine.bookmark(), machine.position()))
        });
        let (bookmark, position) = installed.await??;
        let before =
            std::mem::replace(&mut self.mark, Mark::of(bookmark.as_ref()).map_err(io::Error::other)?);
        if mutant::is(Mutant::MembershipStaleOnSnapshot) {
            self.mark.membership = before.membership;
        }
        self.progress.installed(self.mark.clone(), position);
        Ok(())
    }

    /// Keeps the reason of a failure where `status` and waiting requests find it.
    fn failed<T>(&self, doing: &str, result: Result<T, io::Error>) -> Result<T, io::Error> {
        result.inspect_err(|error| self.progress.stop(format!("{doing}: {error}"), true))
    }
}

/// Commands on their way into the machine.
#[derive(Default)]
struct Batch {
    commands: Vec<Bytes>,
    bytes: usize,
    /// For each entry: who waits for its outcomes (nobody, if it was proposed elsewhere), and how many they are.
    entries: Vec<(Option<ApplyResponder<Types>>, usize)>,
}

impl Batch {
    fn add(&mut self, commands: &Commands) -> usize {
        let before = self.commands.len();
        self.commands.extend(commands.iter());
        self.bytes += commands.bytes();
        self.commands.len() - before
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= BATCH_COUNT || self.bytes >= BATCH_BYTES
    }
}

/// The position after `count` commands from `before` on.
///
/// Errors: the machine did not answer each command, or went back.
fn follow_on(before: Position, outcomes: &[Outcome], count: usize) -> Result<Position, io::Error> {
    let positions = std::iter::once(before).chain(outcomes.iter().map(|outcome| outcome.position));
    if outcomes.len() == count && positions.is_sorted() {
        return Ok(outcomes.last().map_or(before, |last| last.position));
    }
    Err(io::Error::other(format!(
        "the state machine answered {} outcomes for {count} commands after position {before}, or out of order",
        outcomes.len()
    )))
}

/// Runs on a thread that may wait for disks. A panic there is an error here.
pub(super) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, io::Error> + Send + 'static,
) -> Result<T, io::Error> {
    world::blocking(run).await.map_err(io::Error::other)?
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = SnapshotStream;
    type SnapshotBuilder = Persister;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        Ok((self.mark.applied, self.mark.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let result = self.fold(entries).await;
        self.failed("apply", result)
    }

    async fn get_snapshot_builder(&mut self) -> Persister {
        let (machine, progress) = (self.machine.clone(), self.progress.clone());
        Persister { machine, progress, _in_use: self.in_use.clone() }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotStream,
    ) -> Result<(), io::Error> {
        let result = self.install(snapshot).await;
        self.failed("install snapshot", result)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotStream>>, io::Error> {
        let mark = self.progress.checkpoint();
        Ok(mark.applied.is_some().then(|| snapshot(mark, &self.machine)))
    }
}

/// Makes the machine durable, which is all that openraft's snapshot is here: what lies below it may be purged.
pub(super) struct Persister {
    machine: Arc<dyn StateMachine>,
    progress: Arc<Progress>,
    _in_use: InUse,
}

impl RaftSnapshotBuilder<Types> for Persister {
    type SnapshotData = SnapshotStream;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotStream>, io::Error> {
        let machine = self.machine.clone();
        let persist = blocking(move || {
            let bookmark = machine.persist().map_err(io::Error::other)?;
            Mark::of(bookmark.as_ref()).map_err(io::Error::other)
        });
        let mark =
            persist.await.inspect_err(|error| self.progress.stop(format!("persist: {error}"), true))?;
        // The machine may be a step ahead of what its applier has reported.
        if self.progress.wait(|applied| applied.index() >= mark.index(), None).await.is_err() {
            return Ok(snapshot(self.progress.checkpoint(), &self.machine));
        }
        self.progress.durable(mark.clone());
        self.progress.checkpointed(mark.clone());
        Ok(snapshot(mark, &self.machine))
    }
}

fn snapshot(mark: Mark, machine: &Arc<dyn StateMachine>) -> SnapshotOf<Types, SnapshotStream> {
    SnapshotOf::<Types, _> {
        meta: SnapshotMetaOf::<Types> { last_log_id: mark.applied, last_membership: mark.membership },
        snapshot: SnapshotStream::of(machine.clone()),
    }
}
