//! Commands on their way into the log: gathered from all callers into entries, one task a replica.
//!
//! Invariants: commands enter the log in the order in which they entered the queue; the queue is bounded in bytes and
//! entries under way in number, so that a slow log or machine slows its callers; a caller that gives up before its
//! command was taken into an entry knows for certain that it will not be.
//! Not here: retries and who leads (the router), deciding on duplicates (the state machine).
//!
//! An entry goes out at once when none is under way; else the next one fills ([`crate::batch`]). So a lone caller waits
//! for nobody, and many callers share the cost of an entry, which is far above that of a command.

use super::{
    Applier, Members, ReplicaError,
    entry::{Commands, Types},
    progress::Progress,
};
use crate::{
    batch::{BatchLimits, Batches, Item, Slot},
    machine::Outcome,
    model::ReplicaId,
    world,
};
use annal_wal::GroupLog;
use bytes::Bytes;
use openraft::{
    Instant as _, OptionalSend, Raft, ServerState,
    async_runtime::watch::WatchReceiver as _,
    errors::ClientWriteError,
    raft::{ClientWriteResult, responder::Responder},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// Bounds of the way into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposeLimits {
    /// Largest command, in bytes.
    pub command_bytes_max: usize,
    /// An entry is filled up to this many bytes (or holds one larger command),
    pub entry_bytes: usize,
    /// and up to this many commands.
    pub entry_commands: usize,
    /// Bytes of commands that may wait to be taken into an entry.
    pub queue_bytes: usize,
    /// Entries under way: proposed and not yet applied.
    pub entries_under_way: usize,
}

impl Default for ProposeLimits {
    fn default() -> Self {
        ProposeLimits {
            // A write of 32 MiB, and what a mirror puts around it.
            command_bytes_max: 33 << 20,
            entry_bytes: 1 << 20,
            entry_commands: 1024,
            queue_bytes: 64 << 20,
            entries_under_way: 4,
        }
    }
}

impl ProposeLimits {
    /// These limits, as far as the log can hold such entries.
    pub(super) fn within(mut self, log: &GroupLog) -> Result<Self, ReplicaError> {
        let room = log.payload_bytes_max() - Commands::HEAD_BYTES;
        self.entry_bytes = self.entry_bytes.min(room);
        self.command_bytes_max = self.command_bytes_max.min(room - Commands::COMMAND_HEAD_BYTES);
        let wrong = |why: String| Err(ReplicaError::Options(why));
        let Self { command_bytes_max, queue_bytes, .. } = self;
        if self.entry_commands == 0 || self.entries_under_way == 0 {
            return wrong("entry_commands and entries_under_way must be at least 1".into());
        }
        if command_bytes_max > queue_bytes || queue_bytes > u32::MAX as usize {
            return wrong(format!("queue_bytes {queue_bytes} is not within {command_bytes_max}..=2^32-1"));
        }
        Ok(self)
    }
}

/// The end of the queue that callers hold.
pub(super) struct Proposer {
    log: GroupLog,
    limits: ProposeLimits,
    room: Arc<Semaphore>,
    queue: mpsc::UnboundedSender<Waiting>,
    progress: Arc<Progress>,
}

impl Proposer {
    /// Bytes of the largest command that the log here takes.
    pub(super) fn command_bytes_max(&self) -> usize {
        self.limits.command_bytes_max
    }
}

/// A command in the queue.
struct Waiting {
    command: Bytes,
    /// Set by whoever comes first: the proposer that takes the command, or the caller that gives up.
    settled: Arc<AtomicBool>,
    answer: Answer,
    _room: OwnedSemaphorePermit,
}

impl Waiting {
    /// Nothing was proposed: `settled` stays as it is, so that a caller that gives up just now learns that too.
    fn turn_away(self, leader: Option<ReplicaId>) {
        // A caller that gave up is no longer there.
        let _ = self.answer.send(Err(ReplicaError::NotLeader { leader }));
    }
}

impl Item for Waiting {
    fn bytes(&self) -> usize {
        Commands::COMMAND_HEAD_BYTES + self.command.len()
    }
}

impl Proposer {
    /// Starts the proposing task; it ends when this end is dropped.
    pub(super) fn start(
        raft: Raft<Types, Applier>,
        log: GroupLog,
        limits: ProposeLimits,
        lease: Duration,
        progress: Arc<Progress>,
    ) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let entries = BatchLimits {
            bytes: limits.entry_bytes,
            items: limits.entry_commands,
            under_way: limits.entries_under_way,
        };
        world::spawn(propose_all(raft, lease, Batches::of(waiting, entries)));
        Proposer { log, limits, room: Arc::new(Semaphore::new(limits.queue_bytes)), queue, progress }
    }

    /// See [`super::Replica::propose`].
    pub(super) async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Outcome, ReplicaError> {
        let (bytes, max) = (command.len(), self.limits.command_bytes_max);
        if bytes > max {
            return Err(ReplicaError::TooLarge { bytes, max });
        }
        self.progress.check_running()?;
        self.log.check_space().map_err(ReplicaError::Full)?;
        // An empty command still takes its place.
        let room = self.room.clone().acquire_many_owned(bytes.max(1) as u32);
        let room = timeout_at(deadline, room)
            .await
            .map_err(|_| ReplicaError::Limited { max: self.limits.queue_bytes })?
            .map_err(|_| self.progress.stopped(false))?;
        let settled = Arc::new(AtomicBool::new(false));
        let (answer, mut answered) = oneshot::channel();
        let waiting = Waiting { command, settled: settled.clone(), answer, _room: room };
        self.queue.send(waiting).map_err(|_| self.progress.stopped(false))?;

        match timeout_at(deadline, &mut answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.progress.stopped(settled.swap(true, Ordering::AcqRel))),
            Err(_) => {
                let proposed = settled.swap(true, Ordering::AcqRel);
                // The answer may have come just now.
                answered.try_recv().unwrap_or(Err(ReplicaError::Deadline { proposed }))
            }
        }
    }

    /// Turns away whoever still waits for room in the queue.
    pub(super) fn close(&self) {
        self.room.close();
    }
}

/// Takes commands from the queue into entries, until nobody can add one.
async fn propose_all(raft: Raft<Types, Applier>, lease: Duration, mut queue: Batches<Waiting>) {
    loop {
        let next = tokio::select! {
            biased;
            next = queue.next() => next,
            // What was under way when this replica lost its office, or its quorum, may stay so for long. Whoever waits
            // behind it is turned away here; openraft does that with those that come when nothing is.
            () = tokio::time::sleep(LOOK_EVERY), if queue.is_busy() => {
                if let Some(leader) = out_of_office(&raft, lease) {
                    queue.drain().for_each(|waiting| waiting.turn_away(leader));
                }
                continue;
            }
        };
        let Some((mut taken, slot)) = next else { return };
        taken.retain(|waiting| !waiting.settled.swap(true, Ordering::AcqRel));
        if taken.is_empty() {
            continue;
        }
        let commands = Commands::gather(taken.iter().map(|waiting| &waiting.command));
        let waiters = Waiters::new(taken, slot);
        if raft.client_write_ff(commands, Some(waiters)).await.is_err() {
            // openraft has stopped and dropped the waiters, which tells their callers.
            return;
        }
    }
}

/// While entries are under way: how often it is looked whether they can still be committed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whether this replica cannot commit anything at the moment, as far as it knows, and who leads instead, if known.
fn out_of_office(raft: &Raft<Types, Applier>, lease: Duration) -> Option<Option<ReplicaId>> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    if metrics.state != ServerState::Leader {
        return Some(metrics.current_leader.map(ReplicaId));
    }
    let members = Members::from(metrics.membership_config.membership());
    let heard = metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < lease);
    (!heard && !members.is_sole_voter(ReplicaId(metrics.id))).then_some(None)
}

/// Those who wait for one entry. Dropped unanswered when openraft stops: then each caller learns that it stopped.
pub(crate) struct Waiters<T> {
    callers: Callers,
    settle: fn(Callers, T),
}

/// The callers of one entry, in the order of its commands.
struct Callers {
    each: Vec<Answer>,
    _slot: Slot,
}

type Answer = oneshot::Sender<Result<Outcome, ReplicaError>>;

impl Waiters<ClientWriteResult<Types>> {
    fn new(taken: Vec<Waiting>, slot: Slot) -> Self {
        let each = taken.into_iter().map(|waiting| waiting.answer).collect();
        Waiters { callers: Callers { each, _slot: slot }, settle: Callers::settle }
    }
}

// Whether an answer still finds its caller does not matter: it may have given up.
impl Callers {
    fn settle(self, result: ClientWriteResult<Types>) {
        match result {
            Ok(response) => {
                for (answer, outcome) in self.each.into_iter().zip(response.data.0) {
                    let _ = answer.send(Ok(outcome));
                }
            }
            Err(error) => {
                let error = refused(&error);
                for answer in self.each {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// openraft names the two cases apart: refused before the entry was appended, or discarded after.
fn refused(error: &ClientWriteError<Types>) -> ReplicaError {
    match error {
        ClientWriteError::ForwardToLeader(to) => {
            ReplicaError::NotLeader { leader: to.leader_id.map(ReplicaId) }
        }
        ClientWriteError::LogEntryDiscarded(_) => ReplicaError::Superseded,
        other => ReplicaError::Raft(other.to_string().into()),
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for Waiters<T> {
    fn on_complete(self, result: T) {
        (self.settle)(self.callers, result);
    }
}
