//! What can go wrong on the replica floor, sorted by what the caller can do next.
//!
//! Invariants: `effect()` is `None` only where it is certain that no entry was handed to Raft, or where Raft says
//! that it refused the entry before appending it; everything later is `Unknown`.

use super::entry::FormatError;
use crate::{
    machine::MachineError,
    model::{Effect, Kind, Position, ReplicaId},
};
use annal_wal::LogIndex;
use std::sync::Arc;

/// An error of a replica.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplicaError {
    /// This replica does not lead; nothing was appended.
    #[error("not the leader{}", leader.map(|id| format!("; replica {id} is")).unwrap_or_default())]
    NotLeader {
        /// Who does, if known.
        leader: Option<ReplicaId>,
    },
    /// The leader could not reach a quorum, so that a read could be stale.
    #[error("no quorum confirmed the leader")]
    NoQuorum,
    /// A command larger than an entry may be; nothing was appended.
    #[error("a command of {bytes} bytes is larger than the largest, {max}")]
    TooLarge {
        /// Bytes of the command.
        bytes: usize,
        /// The largest that fits.
        max: usize,
    },
    /// The queue before Raft stayed full until the deadline; nothing was appended.
    #[error("the queue of {max} bytes stayed full until the deadline")]
    Limited {
        /// Its size.
        max: usize,
    },
    /// The log has no room; nothing was appended.
    #[error("the log has no room: {0}")]
    Full(#[source] annal_wal::Error),
    /// The deadline passed.
    #[error("the deadline passed {}", if *proposed { "after the command was proposed" } else { "before anything was proposed" })]
    Deadline {
        /// Whether a command had been handed to Raft: then it may still be applied.
        proposed: bool,
    },
    /// Another leader took over after the entry was appended here: it may have been committed or not.
    #[error("another leader took over before the command was known to be committed")]
    Superseded,
    /// The replica was shut down or has failed and stopped.
    #[error("the replica has stopped: {why}")]
    Stopped {
        /// The first reason.
        why: Arc<str>,
        /// Whether it failed, rather than having been shut down.
        failed: bool,
        /// Whether a command may have been handed to Raft.
        proposed: bool,
    },
    /// The log no longer reaches back to the position asked for.
    #[error("commands are kept from position {oldest} on")]
    Gone {
        /// The first position that can still be read.
        oldest: Position,
    },
    /// Commands are missing in the middle of the log, or counted differently by log and state machine.
    #[error("the log does not continue at index {index:?}: {why}")]
    Hole {
        /// Where.
        index: LogIndex,
        /// What is there instead.
        why: String,
    },
    /// The log starts after the last entry the state machine has applied: entries between them are lost.
    #[error(
        "the state machine has applied up to {applied:?}, the log starts at {oldest:?}: the entries between are gone"
    )]
    Gap {
        /// The last entry applied.
        applied: Option<LogIndex>,
        /// The first entry the log has.
        oldest: LogIndex,
    },
    /// The state machine has applied entries of a log that is empty: the log was lost.
    #[error("the state machine has applied up to {applied:?}, but its log is empty")]
    LogLost {
        /// The last entry applied.
        applied: LogIndex,
    },
    /// A message for another replica than this one.
    #[error("a message for replica {to} came to replica {here}")]
    Misdirected {
        /// Whom it was for.
        to: ReplicaId,
        /// Who received it.
        here: ReplicaId,
    },
    /// A snapshot that came damaged or was cut off; nothing was changed.
    #[error("a snapshot could not be received: {0}")]
    Snapshot(#[source] Arc<std::io::Error>),
    /// A membership that cannot be.
    #[error("membership: {0}")]
    Membership(String),
    /// Options that cannot work.
    #[error("options: {0}")]
    Options(String),
    /// Stored bytes of a form this version does not know.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The log failed.
    #[error("log: {0}")]
    Log(#[from] annal_wal::Error),
    /// The state machine failed.
    #[error("state machine: {0}")]
    Machine(#[source] Arc<MachineError>),
    /// openraft stopped, or a task of ours was lost.
    #[error("raft: {0}")]
    Raft(Arc<str>),
}

impl ReplicaError {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            ReplicaError::NotLeader { .. }
            | ReplicaError::NoQuorum
            | ReplicaError::Misdirected { .. }
            | ReplicaError::Snapshot(_) => Kind::Unavailable,
            ReplicaError::Stopped { failed: false, proposed: false, .. } => Kind::Unavailable,
            ReplicaError::Deadline { .. } | ReplicaError::Superseded => Kind::Timeout,
            ReplicaError::Stopped { failed: false, proposed: true, .. } => Kind::Timeout,
            ReplicaError::TooLarge { .. } => Kind::TooLarge,
            ReplicaError::Limited { .. } => Kind::Limited,
            ReplicaError::Full(_) | ReplicaError::Log(annal_wal::Error::Full { .. }) => Kind::Full,
            ReplicaError::Gone { .. } => Kind::Expired,
            ReplicaError::Options(_) | ReplicaError::Membership(_) => Kind::Invalid,
            ReplicaError::Hole { .. }
            | ReplicaError::Gap { .. }
            | ReplicaError::LogLost { .. }
            | ReplicaError::Format(_)
            | ReplicaError::Log(annal_wal::Error::Corrupt { .. } | annal_wal::Error::Format { .. }) => {
                Kind::Corrupt
            }
            ReplicaError::Machine(error) => error.kind(),
            ReplicaError::Stopped { failed: true, .. } | ReplicaError::Log(_) | ReplicaError::Raft(_) => {
                Kind::Internal
            }
        }
    }

    /// Whether the command that met this error may be applied, now or later.
    pub fn effect(&self) -> Effect {
        match self {
            ReplicaError::Deadline { proposed } | ReplicaError::Stopped { proposed, .. } if !proposed => {
                Effect::None
            }
            ReplicaError::Deadline { .. } | ReplicaError::Stopped { .. } | ReplicaError::Superseded => {
                Effect::Unknown
            }
            ReplicaError::Log(_) | ReplicaError::Machine(_) | ReplicaError::Raft(_) => Effect::Unknown,
            _ => Effect::None,
        }
    }
}

impl From<MachineError> for ReplicaError {
    fn from(error: MachineError) -> Self {
        ReplicaError::Machine(Arc::new(error))
    }
}
