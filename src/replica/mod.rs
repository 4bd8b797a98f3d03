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
//! Not here: connections between replicas (`peer` knows nobody yet: groups of one voter), membership changes, who
//! leads what and retries (`cluster/`), what a command means (`shard/`).
//! Source: openraft's log pointers; Ongaro's dissertation (2014).

mod apply;
mod checkpoint;
mod entry;
mod error;
mod history;
mod log_store;
mod peer;
mod progress;
mod propose;
mod reads;
mod tail;
#[cfg(test)]
mod tests;

pub use annal_wal::{GroupId, LogIndex, Term};
pub use checkpoint::CheckpointLimits;
pub use entry::{FormatError, Members};
pub use error::ReplicaError;
pub use progress::Ladder;
pub use propose::{ProposeLimits, Proposed, Wait};
pub use reads::ReadIndex;
pub use tail::Tail;

use crate::{
    machine::StateMachine,
    model::{Position, ReplicaId},
};
use annal_wal::{GroupLog, Log};
use apply::{Applier, InUse};
use bytes::Bytes;
use checkpoint::Checkpoints;
use entry::{Mark, RaftLogId, Types};
use log_store::LogStore;
use openraft::{Config, Raft, ServerState, SnapshotPolicy, async_runtime::watch::WatchReceiver as _};
use progress::Progress;
use propose::Proposer;
use reads::Reads;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tail::Holds;
use tokio::{
    sync::{OnceCell, mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How one replica is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaOptions {
    /// This replica's id within its group; never reused.
    pub replica: ReplicaId,
    /// The first voters, this replica among them, used only while the group is empty; none for a replica that joins a
    /// group that others founded.
    pub founders: BTreeSet<ReplicaId>,
    /// A leader says that it lives this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for a time within this range, in milliseconds, asks for an election.
    pub election_ms: std::ops::Range<u64>,
    /// Bounds of the way into the log.
    pub propose: ProposeLimits,
    /// When state is made durable.
    pub checkpoint: CheckpointLimits,
}

impl ReplicaOptions {
    /// Defaults for `replica`, which founds its group alone.
    pub fn sole(replica: ReplicaId) -> Self {
        ReplicaOptions {
            replica,
            founders: BTreeSet::from([replica]),
            heartbeat_ms: 200,
            election_ms: 500..1500,
            propose: ProposeLimits::default(),
            checkpoint: CheckpointLimits::default(),
        }
    }

    fn raft_config(&self, group: GroupId) -> Result<Config, ReplicaError> {
        let Self { replica, founders, .. } = self;
        if !founders.is_empty() && !founders.contains(replica) {
            return Err(ReplicaError::Options(format!(
                "replica {replica} is not among the founders {founders:?}"
            )));
        }
        let config = Config {
            cluster_name: format!("group {}", group.0),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_ms.start,
            election_timeout_max: self.election_ms.end,
            // Checkpoints are ours to time, and so is purging.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(true),
            // A leader that restarts asks for a new term: what it had committed is then certain, and no read can be
            // served from a state older than one it had shown before.
            enable_leader_restore: Some(false),
            // No clock runs until there are others to hear from, see `mind`.
            enable_tick: false,
            ..Config::default()
        };
        config.validate().map_err(|e| ReplicaError::Options(e.to_string()))
    }
}

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

/// One replica of one group. A cheap handle; the replica stops when the last one is dropped, or at `shutdown`.
pub struct Replica<M: StateMachine> {
    inner: Arc<Inner<M>>,
}

impl<M: StateMachine> Clone for Replica<M> {
    fn clone(&self) -> Self {
        Replica { inner: self.inner.clone() }
    }
}

struct Inner<M: StateMachine> {
    replica: ReplicaId,
    log: GroupLog,
    machine: Arc<M>,
    /// Cancelled once openraft no longer calls the machine.
    machine_released: CancellationToken,
    progress: Arc<Progress>,
    raft: Raft<Types, Applier<M>>,
    /// Set once openraft has been shut down.
    ended: OnceCell<()>,
    proposer: Proposer,
    reads: Reads,
    holds: Arc<Holds>,
    checkpoints: mpsc::UnboundedSender<checkpoint::Request>,
    /// Ends `mind`, and with it the last hold on openraft; the other tasks end with their queues.
    _dropped: DropGuard,
}

impl<M: StateMachine> Replica<M> {
    /// Opens a replica on its group's log. The machine first catches up with what was committed. A replica that is
    /// the group's only voter leads, and has applied all its log, when this returns.
    ///
    /// Errors: `Gap` and `LogLost` (log and machine do not belong together), `Options`, `Log`, `Machine`, `Format`,
    /// `Raft`.
    pub async fn open(
        options: ReplicaOptions,
        log: &Log,
        group: GroupLog,
        machine: Arc<M>,
    ) -> Result<Self, ReplicaError> {
        let limits = options.propose.within(&group)?;
        let config = Arc::new(options.raft_config(group.id())?);
        history::catch_up(&group, &machine, Mark::of(machine.bookmark().as_ref())?).await?;
        let persisted = machine.clone();
        let (bookmark, position) = tokio::task::spawn_blocking(move || {
            Ok::<_, crate::machine::MachineError>((persisted.persist()?, persisted.position()))
        })
        .await
        .map_err(|lost| ReplicaError::Raft(lost.to_string().into()))??;
        let mark = Mark::of(bookmark.as_ref())?;
        let found =
            (check_continues(&group, &mark)? && !options.founders.is_empty()).then_some(options.founders);

        let progress = Arc::new(Progress::new(group.clone(), mark.clone(), position));
        let machine_released = CancellationToken::new();
        let in_use = InUse::new(progress.clone(), machine_released.clone().drop_guard());
        let raft = Raft::new(
            options.replica.0,
            config,
            peer::NoPeers,
            LogStore::new(group.clone(), progress.clone()),
            Applier::new(machine.clone(), progress.clone(), mark, in_use),
        )
        .await
        .map_err(|fatal| ReplicaError::Raft(fatal.to_string().into()))?;

        let (checkpoints, requests) = mpsc::unbounded_channel();
        let checkpointing = Checkpoints {
            raft: raft.clone(),
            log: group.clone(),
            progress: progress.clone(),
            limits: options.checkpoint,
        };
        tokio::spawn(checkpointing.run(requests, log.purge_wanted()));
        let dropped = CancellationToken::new();
        tokio::spawn(mind(raft.clone(), options.replica, progress.clone(), dropped.clone()));
        let replica = Replica {
            inner: Arc::new(Inner {
                replica: options.replica,
                proposer: Proposer::start(raft.clone(), group.clone(), limits, progress.clone()),
                reads: Reads::start(raft.clone(), progress.clone()),
                holds: Holds::new(log.clone(), group.id()),
                log: group,
                machine,
                machine_released,
                progress,
                raft,
                ended: OnceCell::new(),
                checkpoints,
                _dropped: dropped.drop_guard(),
            }),
        };
        replica.take_office(found).await?;
        Ok(replica)
    }

    /// Founds the group if it is new; a sole voter then elects itself at once, there is nobody to wait for.
    async fn take_office(&self, found: Option<BTreeSet<ReplicaId>>) -> Result<(), ReplicaError> {
        let Inner { raft, replica, .. } = self.inner.as_ref();
        let fatal = |error: String| ReplicaError::Raft(error.into());
        if let Some(founders) = found {
            let members: BTreeMap<u64, ()> = founders.iter().map(|id| (id.0, ())).collect();
            raft.initialize(members).await.map_err(|e| fatal(e.to_string()))?;
        }
        let members = raft.with_raft_state(|state| state.membership_state.effective().clone());
        let members = members.await.map_err(|e| fatal(e.to_string()))?;
        if !Members::from(members.membership()).is_sole_voter(*replica) {
            return Ok(());
        }
        raft.trigger().elect(false).await.map_err(|e| fatal(e.to_string()))?;
        let term = |id: RaftLogId| id.committed_leader_id().term;
        raft.wait(None)
            .metrics(
                |m| m.state == ServerState::Leader && m.last_applied.map(term) == Some(m.current_term),
                "the only voter leads",
            )
            .await
            .map_err(|_| self.inner.progress.stopped(false))?;
        Ok(())
    }

    /// Puts a command into the log. `Wait::Committed` is answered as soon as openraft hands the entry to the state
    /// machine, before it is applied.
    ///
    /// Errors: effect none: `NotLeader`, `TooLarge`, `Limited`, `Full`, `Deadline` and `Stopped` if not `proposed`;
    /// effect unknown: `Deadline` and `Stopped` if `proposed`, `Superseded`. If the future is dropped, the effect is
    /// unknown too.
    pub async fn propose(
        &self,
        command: Bytes,
        deadline: Instant,
        wait: Wait,
    ) -> Result<Proposed, ReplicaError> {
        self.inner.proposer.propose(command, deadline, wait).await
    }

    /// The index a read that starts now must wait for to be linearizable, confirmed by a quorum.
    ///
    /// Errors (no effect): `NotLeader`, `NoQuorum`, `Deadline`, `Stopped`.
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

    /// The state machine, to read from.
    pub fn machine(&self) -> &Arc<M> {
        &self.inner.machine
    }

    /// Where this replica stands.
    pub fn status(&self) -> ReplicaStatus {
        let Inner { replica, log, progress, raft, reads, .. } = self.inner.as_ref();
        let ladder = progress.ladder();
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        ReplicaStatus {
            group: log.id(),
            replica: *replica,
            ladder,
            position: progress.now().position,
            term: Term(metrics.current_term),
            vote: (ReplicaId(metrics.vote.leader_id.node_id), metrics.vote.committed),
            role: match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            leader: metrics.current_leader.map(ReplicaId),
            members: Members::from(metrics.membership_config.membership()),
            read_rounds: reads.rounds(),
            failure: progress.failure(),
        }
    }

    /// Stops: takes no more commands, ends Raft, applies what was committed, makes it durable; on return nobody calls
    /// the machine any more. Whoever still waits learns that the replica stopped. Other handles stay valid and give
    /// `Stopped`.
    ///
    /// Errors: `Machine`: the state machine is not durable (nothing is lost, the log has it).
    pub async fn shutdown(&self) -> Result<(), ReplicaError> {
        let Inner { proposer, progress, raft, ended, machine, machine_released, .. } = self.inner.as_ref();
        proposer.close();
        progress.stop("shut down", false);
        let end =
            || async { raft.shutdown().await.map_err(|lost| ReplicaError::Raft(lost.to_string().into())) };
        ended.get_or_try_init(end).await?;
        machine_released.cancelled().await;
        let machine = machine.clone();
        tokio::task::spawn_blocking(move || machine.persist())
            .await
            .map_err(|lost| ReplicaError::Raft(lost.to_string().into()))??;
        Ok(())
    }
}

/// Whether the log can take the machine on from where it stands; true if both are new.
fn check_continues(group: &GroupLog, mark: &Mark) -> Result<bool, ReplicaError> {
    let state = group.state();
    match (mark.index(), state.purged, state.last) {
        (applied, Some(purged), _) if applied < Some(purged.index) => {
            Err(ReplicaError::Gap { applied, oldest: LogIndex(purged.index.0 + 1) })
        }
        (Some(applied), _, None) if state.vote.is_none() => Err(ReplicaError::LogLost { applied }),
        (None, None, None) => Ok(state.vote.is_none()),
        _ => Ok(false),
    }
}

/// Minds what rarely changes: Raft's clock runs only while there are others to hear from (so that hundreds of
/// idle groups cost nothing), and the end of Raft is told to whoever waits.
async fn mind<M: StateMachine>(
    raft: Raft<Types, Applier<M>>,
    replica: ReplicaId,
    progress: Arc<Progress>,
    dropped: CancellationToken,
) {
    let mut server = raft.server_metrics();
    loop {
        let members = Members::from(server.borrow_and_update().membership_config.membership());
        raft.runtime_config().tick(!(members.is_sole_voter(replica) && members.learners.is_empty()));
        tokio::select! {
            changed = server.changed() => if changed.is_err() { break },
            () = dropped.cancelled() => return,
        }
    }
    match &raft.metrics().borrow_watched().running_state {
        Err(openraft::errors::Fatal::Stopped) | Ok(()) => progress.stop("shut down", false),
        Err(fatal) => progress.stop(fatal.to_string(), true),
    }
}
