//! The replica floor: one state machine under Raft, over one group of the node's log. The only floor that names
//! openraft.
//!
//! The log on a ruler, and the rungs of the ladder on it:
//!
//! ```text
//!            history            live entries
//!   . . . . |- - - - - - - - -|================================|
//!           ^                ^         ^     ^      ^     ^     ^
//!           oldest      purged         |     |      |     |     submitted: appended here, can be read here
//!                                      |     |      |     flushed: on this replica's disk
//!                                      |     |      committed: in the log of a quorum
//!                                      |     applied: folded into the state machine, visible to reads
//!                                      durable: the state machine has it on disk
//!                          (checkpointed: openraft knows that it is durable and may purge up to there)
//! ```
//!
//! Invariants, asserted wherever a rung moves:
//! `oldest ≤ purged + 1` · `purged ≤ checkpointed ≤ durable ≤ applied ≤ min(committed, flushed)` ·
//! `committed, flushed ≤ submitted`. History lies below `purged`: openraft no longer sees it, [`Tail`]s do.
//!
//! What the rest of the house relies on: a command is acknowledged only when a quorum has it in its log; an error says
//! whether the command may still be applied; a linearizable read asks a quorum, never a clock.
//!
//! Not here: connections between replicas (behind [`Network`]), who should take part in a group and who should lead it
//! (`cluster/`), retries, what a command means (`shard/`).
//! Source: openraft's log pointers; Ongaro's dissertation (2014).

mod answer;
mod apply;
mod backfill;
mod checkpoint;
mod entry;
mod error;
mod history;
mod log_store;
mod membership;
mod message;
mod network;
mod options;
mod pace;
mod peer;
mod progress;
mod propose;
mod reads;
mod runtime;
mod snapshot;
mod standing;
mod status;
mod tail;
#[cfg(test)]
mod tests;

pub use annal_wal::{GroupId, LogIndex, Term};
pub use checkpoint::CheckpointLimits;
pub use entry::{FormatError, Members};
pub use error::ReplicaError;
pub use history::check_reaches;
pub use membership::Leadership;
pub use network::{Network, Nobody, Unreached};
pub use options::ReplicaOptions;
pub use pace::Pace;
pub use progress::Ladder;
pub use propose::ProposeLimits;
pub use reads::ReadIndex;
pub use status::{ReplicaStatus, Role};
pub use tail::Tail;

use crate::{
    machine::{Outcome, StateMachine},
    model::{Position, ReplicaId},
    world,
};
use annal_wal::{GroupLog, Log};
use apply::{Applier, InUse};
use backfill::Shelf;
use bytes::Bytes;
use checkpoint::Checkpoints;
use entry::{Mark, Types};
use log_store::LogStore;
use openraft::{Raft, async_runtime::watch::WatchReceiver as _};
use peer::Peers;
use progress::Progress;
use propose::Proposer;
use reads::Reads;
use standing::Standing;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tail::Holds;
use tokio::{
    sync::{OnceCell, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One replica of one group. A cheap handle; the replica stops when the last one is dropped, or at `shutdown`.
pub struct Replica<M: StateMachine> {
    inner: Arc<Inner>,
    machine: Arc<M>,
}

impl<M: StateMachine> Clone for Replica<M> {
    fn clone(&self) -> Self {
        Replica { inner: self.inner.clone(), machine: self.machine.clone() }
    }
}

struct Inner {
    replica: ReplicaId,
    log: GroupLog,
    machine: Arc<dyn StateMachine>,
    /// Cancelled once openraft no longer calls the machine.
    machine_released: CancellationToken,
    progress: Arc<Progress>,
    raft: Raft<Types, Applier>,
    peers: Peers,
    shelf: Arc<Shelf>,
    /// Set once openraft has been shut down.
    ended: OnceCell<()>,
    proposer: Proposer,
    reads: Reads,
    standing: Standing,
    leadership: watch::Receiver<Leadership>,
    /// Where a snapshot is kept while it is received.
    incoming: PathBuf,
    holds: Arc<Holds>,
    checkpoints: mpsc::UnboundedSender<checkpoint::Request>,
    /// Ends `mind`, and with it the last hold on openraft; the other tasks end with their queues.
    _dropped: DropGuard,
}

impl<M: StateMachine> Replica<M> {
    /// Opens a replica on its group's log. The machine first catches up with what was committed. A replica that is
    /// the group's only voter leads, and has applied all its log, when this returns; one with an empty log waits to be
    /// founded (`found`) or to be added by its group's leader.
    ///
    /// Errors: `Gap` and `LogLost` (log and machine do not belong together), `Options`, `Log`, `Machine`, `Format`,
    /// `Raft`.
    pub async fn open(
        options: ReplicaOptions,
        log: &Log,
        group: GroupLog,
        machine: Arc<M>,
        network: Arc<dyn Network>,
    ) -> Result<Self, ReplicaError> {
        let inner = Inner::open(options, log, group, machine.clone(), network).await?;
        let opened = Replica { inner: Arc::new(inner), machine };
        opened.take_office(true).await?;
        Ok(opened)
    }

    /// Puts a command into the log, and waits until it is applied here.
    ///
    /// Errors: effect none: `NotLeader`, `TooLarge`, `Limited`, `Full`, `Deadline` and `Stopped` if not `proposed`;
    /// effect unknown: `Deadline` and `Stopped` if `proposed`, `Superseded`. If the future is dropped, the effect is
    /// unknown too.
    pub async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Outcome, ReplicaError> {
        self.inner.proposer.propose(command, deadline).await
    }

    /// The index a read here that starts now must wait for to be linearizable, confirmed by a quorum. On any replica: one
    /// that follows asks the leader, and when the leader changes meanwhile, the next one.
    ///
    /// Errors (no effect): `NotLeader` (no leader is known), `NoQuorum`, `Deadline`, `Stopped`.
    pub async fn read_index(&self, deadline: Instant) -> Result<ReadIndex, ReplicaError> {
        self.inner.reads.read_index(deadline).await
    }

    /// Waits until everything up to `index` is applied here.
    ///
    /// Errors (no effect): `Deadline`, `Stopped`.
    pub async fn wait_applied(&self, index: ReadIndex, deadline: Instant) -> Result<(), ReplicaError> {
        self.inner.progress.wait(|applied| applied.index() >= Some(index.0), Some(deadline)).await?;
        Ok(())
    }

    /// Waits until the command at `position` is applied here.
    ///
    /// Errors (no effect): `Deadline`, `Stopped`.
    pub async fn wait_position(&self, position: Position, deadline: Instant) -> Result<(), ReplicaError> {
        self.inner.progress.wait(|applied| applied.position >= position, Some(deadline)).await?;
        Ok(())
    }

    /// Follows the commands from position `from` on, those to come included.
    ///
    /// Errors: `Gone`; `Machine` and `Format` (damage).
    pub async fn tail(&self, from: Position) -> Result<Tail, ReplicaError> {
        let Inner { log, machine, progress, holds, .. } = self.inner.as_ref();
        Tail::start(log.clone(), machine.clone(), progress.clone(), from, holds.follow()).await
    }

    /// Makes everything applied so far durable, and purges what the limits do not keep.
    ///
    /// Errors: `Deadline` (it goes on), `Stopped`.
    pub async fn checkpoint(&self, deadline: Instant) -> Result<(), ReplicaError> {
        let stopped = || self.inner.progress.stopped(false);
        let (answer, answered) = oneshot::channel();
        self.inner.checkpoints.send(answer).map_err(|_| stopped())?;
        let answered =
            timeout_at(deadline, answered).await.map_err(|_| ReplicaError::Deadline { proposed: false })?;
        answered.unwrap_or_else(|_| Err(stopped()))
    }

    /// Mean bytes of the commands applied since it was opened; 0 if there were none.
    pub fn command_bytes(&self) -> u64 {
        self.inner.progress.command_bytes()
    }

    /// Returns once this replica has failed for good, because its log lacks entries that it has acknowledged: it may
    /// have forgotten votes as well, and must not come back under its id.
    pub async fn forgot(&self) {
        self.inner.progress.forgot().await;
    }

    /// Bytes of the largest command that the log here takes.
    pub fn command_bytes_max(&self) -> usize {
        self.inner.proposer.command_bytes_max()
    }

    /// The state machine, to read from.
    pub fn machine(&self) -> &Arc<M> {
        &self.machine
    }

    /// Stops: takes no more commands, hands leadership over if it leads others (for about a second at most), ends Raft,
    /// applies what was committed, makes it durable; on return nobody calls the machine any more. Whoever still waits learns that the replica stopped. Other handles stay valid and give
    /// `Stopped`.
    ///
    /// Errors: `Machine`: the state machine is not durable (nothing is lost, the log has it).
    pub async fn shutdown(&self) -> Result<(), ReplicaError> {
        let Inner { proposer, progress, machine, machine_released, .. } = self.inner.as_ref();
        proposer.close();
        // It goes on without if there is nobody to take over; the others then elect a leader themselves.
        if let Err(error) = self.transfer_leadership(None, Instant::now() + HAND_OVER_WITHIN).await {
            tracing::debug!(replica = self.inner.replica.0, %error, "leadership was not handed over");
        }
        progress.stop("shut down", false);
        self.inner.end_raft().await?;
        machine_released.cancelled().await;
        let machine = machine.clone();
        world::blocking(move || machine.persist())
            .await
            .map_err(|lost| ReplicaError::Raft(lost.to_string().into()))??;
        Ok(())
    }
}

impl Inner {
    /// Ends openraft, once.
    async fn end_raft(&self) -> Result<(), ReplicaError> {
        let end = || async {
            self.raft.shutdown().await.map_err(|lost| ReplicaError::Raft(lost.to_string().into()))
        };
        self.ended.get_or_try_init(end).await.map(|_| ())
    }

    /// openraft and the tasks around it. Once for all machines: its code is large.
    async fn open(
        options: ReplicaOptions,
        log: &Log,
        group: GroupLog,
        machine: Arc<dyn StateMachine>,
        network: Arc<dyn Network>,
    ) -> Result<Self, ReplicaError> {
        let limits = options.propose.within(&group)?;
        let config = Arc::new(options.raft_config(group.id())?);
        history::catch_up(&group, &machine).await?;
        let persisted = machine.clone();
        let (bookmark, position) = world::blocking(move || {
            Ok::<_, crate::machine::MachineError>((persisted.persist()?, persisted.position()))
        })
        .await
        .map_err(|lost| ReplicaError::Raft(lost.to_string().into()))??;
        let mark = Mark::of(bookmark.as_ref())?;
        check_not_lost(&group, &mark)?;
        drop_superseded(&group, &mark).await?;

        let progress = Arc::new(Progress::new(group.clone(), mark.clone(), position));
        let machine_released = CancellationToken::new();
        let in_use = InUse::new(progress.clone(), machine_released.clone().drop_guard());
        let replica = options.replica;
        let (answer_within, lease) = (options.answer_within(), options.lease());
        let pace = options.snapshot_pace;
        let peers = Peers {
            network,
            pace: pace.clone(),
            replica,
            append_within: answer_within,
            progress: progress.clone(),
            acknowledged: Arc::default(),
        };
        let shelf = Arc::new(Shelf::default());
        let store = LogStore::new(group.clone(), progress.clone(), shelf.clone());
        let raft = Raft::new(
            replica.0,
            config,
            peers.clone(),
            store.clone(),
            Applier::new(machine.clone(), progress.clone(), mark, pace, in_use),
        )
        .await
        .map_err(|fatal| match store.damage() {
            Some(damage) => ReplicaError::Log(damage),
            None => ReplicaError::Raft(fatal.to_string().into()),
        })?;

        let (checkpoints, requests) = mpsc::unbounded_channel();
        let checkpointing = Checkpoints {
            raft: raft.clone(),
            log: group.clone(),
            machine: machine.clone(),
            progress: progress.clone(),
            limits: options.checkpoint,
        };
        world::spawn(checkpointing.run(requests, log.purge_wanted()));
        let dropped = CancellationToken::new();
        let (tell, leadership) = watch::channel(Leadership::default());
        world::spawn(mind(raft.clone(), replica, progress.clone(), tell, dropped.clone()));
        let standing = Standing { replica, raft: raft.clone(), progress: progress.clone() };
        let reads = Reads::start(standing.clone(), peers.clone(), leadership.clone(), answer_within);
        Ok(Inner {
            replica,
            proposer: Proposer::start(raft.clone(), group.clone(), limits, lease, progress.clone()),
            reads,
            standing,
            leadership,
            incoming: options.incoming,
            holds: Holds::new(log.clone(), group.id()),
            log: group,
            machine,
            machine_released,
            progress,
            raft,
            peers,
            shelf,
            ended: OnceCell::new(),
            checkpoints,
            _dropped: dropped.drop_guard(),
        })
    }
}

/// How long `shutdown` tries to hand leadership over.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(1);

/// Errors: `LogLost`: the machine has applied something, and the log knows of nothing.
fn check_not_lost(group: &GroupLog, mark: &Mark) -> Result<(), ReplicaError> {
    let state = group.state();
    match mark.index() {
        Some(applied) if state.last.is_none() && state.vote.is_none() => {
            Err(ReplicaError::LogLost { applied })
        }
        _ => Ok(()),
    }
}

/// A crash can leave a snapshot installed beside entries that an older leader had appended at or above the snapshot's
/// last one. That one is committed, so those above it of an older term never will be: they are dropped.
async fn drop_superseded(group: &GroupLog, mark: &Mark) -> Result<(), ReplicaError> {
    let state = group.state();
    let (Some(applied), Some(last)) = (mark.applied, state.last.as_ref().map(entry::id_from_log)) else {
        return Ok(());
    };
    if last < applied && last.index() >= applied.index() {
        let certain = state.committed.max(state.purged).map(|id| id.index);
        group.truncate_after(certain).await?;
    }
    Ok(())
}

/// Minds what rarely changes: who leads is told; Raft's clock runs only while there are others to hear from (so that
/// hundreds of idle groups cost nothing); the end of Raft is told to whoever waits.
async fn mind(
    raft: Raft<Types, Applier>,
    replica: ReplicaId,
    progress: Arc<Progress>,
    leadership: watch::Sender<Leadership>,
    dropped: CancellationToken,
) {
    let mut server = raft.server_metrics();
    loop {
        {
            let now = server.borrow_and_update();
            let members = Members::from(now.membership_config.membership());
            let alone = members.is_sole_voter(replica) && members.learners.is_empty();
            raft.runtime_config().tick(!alone && !members.voters.is_empty());
            let known =
                Leadership { leader: now.current_leader.map(ReplicaId), term: Term(now.vote.leader_id.term) };
            leadership.send_if_modified(|told| std::mem::replace(told, known) != known);
        }
        tokio::select! {
            changed = server.changed() => if changed.is_err() { break },
            () = dropped.cancelled() => return,
        }
    }
    leadership.send_modify(|told| told.leader = told.leader.filter(|leader| *leader != replica));
    match &raft.metrics().borrow_watched().running_state {
        Err(openraft::errors::Fatal::Stopped) => progress.stop("shut down", false),
        Err(fatal) => progress.stop(fatal.to_string(), true),
        Ok(()) => progress.stop("raft ended without a word: it panicked", true),
    }
}
