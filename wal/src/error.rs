//! What can go wrong in the log, sorted by what the caller can do next.
//!
//! Invariants: an error whose `effect()` is `None` was raised before anything was queued; every other one leaves
//! the effect unknown, because a failed write may still be found on the disk after a restart.

use std::{io, path::PathBuf, sync::Arc};

use crate::entry::{GroupId, LogId, LogIndex};

/// An error of the log.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A write or fsync failed, panicked or hung; nothing is written any more and the node must exit.
    #[error("the log is poisoned: {why}")]
    Poisoned {
        /// The first failure.
        why: Arc<str>,
    },
    /// The log was shut down.
    #[error("the log is shut down")]
    Closed,
    /// The disk has reached the free-space floor; refused before it was queued.
    #[error("the log's disk has {free} bytes free, its floor is {floor}")]
    Full {
        /// Bytes free when last looked.
        free: u64,
        /// Bytes below which writes are turned away.
        floor: u64,
    },
    /// A record that no segment can hold; refused before it was queued.
    #[error("a record of {bytes} bytes is larger than the largest, {max}")]
    TooLarge {
        /// Bytes of the record.
        bytes: usize,
        /// The largest that fits.
        max: usize,
    },
    /// Stored bytes are not those that were written.
    #[error("segment {segment} is damaged at offset {offset} (group {group:?}, index {index:?}): {why}")]
    Corrupt {
        /// The segment's number.
        segment: u64,
        /// The byte where the damaged frame or record starts.
        offset: u64,
        /// The group concerned, if it can be told.
        group: Option<GroupId>,
        /// The entry concerned, if it can be told.
        index: Option<LogIndex>,
        /// What did not match.
        why: String,
    },
    /// The anchor is not as it was written: nothing tells where the log begins.
    #[error("the log's anchor is damaged: {why}")]
    Anchor {
        /// What did not match.
        why: String,
    },
    /// Entries that do not follow the last one, or a purge or truncation that makes no sense; nothing was queued.
    #[error("group {group:?}: entry {got:?} does not follow {last:?}")]
    Gap {
        /// The group.
        group: GroupId,
        /// The last entry (or the purged one).
        last: Option<LogId>,
        /// What was given.
        got: LogIndex,
    },
    /// History that far back is no longer kept.
    #[error("history starts at {oldest:?}")]
    Gone {
        /// The first index that can still be read.
        oldest: Option<LogIndex>,
    },
    /// The group exists already.
    #[error("group {0:?} exists")]
    GroupExists(GroupId),
    /// No such group, or it was dropped.
    #[error("group {0:?} does not exist")]
    UnknownGroup(GroupId),
    /// Another process has the folder open.
    #[error("the log folder {} is open elsewhere", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// An option that cannot work; nothing was opened.
    #[error("option {name}: {why}")]
    Option {
        /// Its name.
        name: &'static str,
        /// Why not.
        why: String,
    },
    /// The system refused an operation on a file.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// Intact bytes of a kind or format this version does not know; never skipped.
    #[error("{place}: {why}")]
    Format {
        /// The file, and the offset where it matters.
        place: String,
        /// What is unknown.
        why: String,
    },
}

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Fix the request.
    Invalid,
    /// Create it first.
    NotFound,
    /// It is there already, or in use.
    Conflict,
    /// Start again from a snapshot.
    Expired,
    /// Add space.
    Full,
    /// Retry elsewhere, or later.
    Unavailable,
    /// Repair from the peers.
    Corrupt,
    /// Stop the node.
    Poisoned,
    /// Look at the machine.
    Internal,
}

/// Whether a failed request may have changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Certainly not.
    None,
    /// It may have.
    Unknown,
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Poisoned { .. } => ErrorKind::Poisoned,
            Error::Closed => ErrorKind::Unavailable,
            Error::Full { .. } => ErrorKind::Full,
            Error::TooLarge { .. } | Error::Gap { .. } | Error::Option { .. } => ErrorKind::Invalid,
            Error::Corrupt { .. } | Error::Anchor { .. } => ErrorKind::Corrupt,
            Error::Gone { .. } => ErrorKind::Expired,
            Error::GroupExists(_) | Error::Locked { .. } => ErrorKind::Conflict,
            Error::UnknownGroup(_) => ErrorKind::NotFound,
            Error::Io { .. } | Error::Format { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the request may have had an effect.
    pub fn effect(&self) -> Effect {
        match self {
            Error::Poisoned { .. } | Error::Io { .. } => Effect::Unknown,
            _ => Effect::None,
        }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing: doing.into(), source: Arc::new(source) }
    }
}
