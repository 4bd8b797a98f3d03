//! The contract between a log and what is folded from it.
//!
//! `replica/` knows terms, votes and log indexes and nothing of points; a state machine knows commands and
//! [`Position`]s and nothing of Raft. What Raft must find again after a restart (the last applied log id and
//! membership) crosses this line as an opaque [`Bookmark`], stored in the same atomic batch as the effects.
//!
//! Invariants: apply is total and deterministic (no clock, no randomness, ordered iteration); the bookmark
//! returned by [`StateMachine::bookmark`] is never ahead of the effects, and never behind them.

use crate::model::{Kind, Position};
use bytes::Bytes;
use std::{collections::VecDeque, io};

/// What the replica wants to find again: opaque to the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark(pub Bytes);

/// What became of one command. The same on every replica, for ever.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Outcome {
    /// The command's position.
    pub position: Position,
    /// What it did.
    pub verdict: Verdict,
}

impl Outcome {
    /// What became of the intent: of its first copy, if this is a later one.
    pub fn of_first(self) -> Outcome {
        match self.verdict {
            Verdict::Duplicate { first } => *first,
            _ => self,
        }
    }
}

/// What one command did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// It took effect (perhaps on nothing: deleting what is not there takes effect).
    Applied,
    /// A retry of an intent that was applied (or rejected) before, with this outcome.
    Duplicate {
        /// What became of the first copy.
        first: Box<Outcome>,
    },
    /// It no longer fits and changed nothing.
    Rejected(Rejection),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rejection {
    /// Short stable name: `stale_epoch`, `stale_schema`, `wrong_collection`, `expired`, `other_body`,
    /// `version_mismatch`, `retired`, ….
    pub code: String,
    /// For people.
    pub message: String,
    /// With `version_mismatch`, the version the point has; `None`: there is no such point.
    #[serde(default)]
    pub version: Option<Position>,
}

impl Rejection {
    /// A rejection that speaks of no version.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Rejection { code: code.to_owned(), message: message.into(), version: None }
    }
}

/// Something is folded from a log, one batch at a time.
///
/// All methods may block (they read and write files); call them off the async threads.
pub trait StateMachine: Send + Sync + 'static {
    /// The bookmark of the last applied batch; `None` before the first.
    fn bookmark(&self) -> Option<Bookmark>;

    /// Position of the last applied command.
    fn position(&self) -> Position;

    /// Applies commands in order, in one atomic batch together with the bookmark, and publishes the result to
    /// readers. `commands` may be empty (only the bookmark moves).
    ///
    /// Returns one outcome a command: most take the next position, some (a mirror's) several or none; an outcome has
    /// the last position after its command. Errors: the state is as before the call, or the machine is poisoned and
    /// every later call fails.
    fn apply(&self, commands: Vec<Bytes>, bookmark: Bookmark) -> Result<Vec<Outcome>, MachineError>;

    /// Makes everything applied so far durable (fsync) and returns the bookmark that is durable now.
    fn persist(&self) -> Result<Option<Bookmark>, MachineError>;

    /// The newest recorded bookmark whose position is at or below `position`, with that position: where a
    /// reader of commands starts to count. Recorded at least every 4,096 positions.
    fn bookmark_at(&self, position: Position) -> Result<Option<(Position, Bookmark)>, MachineError>;

    /// [`StateMachine::bookmark_at`], with how commands are counted from there on.
    fn waymark(&self, position: Position) -> Result<Waymark, MachineError> {
        let (position, bookmark) = self.bookmark_at(position)?.unzip();
        Ok(Waymark { bookmark, counter: Box::new(OneByOne(position.unwrap_or_default())) })
    }

    /// Writes the whole state at one position, with its bookmark, as a checksummed stream.
    fn write_snapshot(&self, out: &mut dyn io::Write) -> Result<(), MachineError>;

    /// Replaces the whole state by a stream that [`StateMachine::write_snapshot`] wrote; atomic and durable on
    /// return. A damaged stream changes nothing.
    fn install_snapshot(&self, input: &mut dyn io::Read) -> Result<(), MachineError>;

    /// Says that no reader of the log can be given a command below `position` any more: what is kept only
    /// beside such commands may go. Never goes back; cheap, the work is done while applying.
    fn history_starts_at(&self, position: Position) {
        let _ = position;
    }
}

/// Where a reader of commands starts to count.
pub struct Waymark {
    /// Up to where in the log all is counted; none: nothing is.
    pub bookmark: Option<Bookmark>,
    /// Counts from there on.
    pub counter: Box<dyn Counter>,
}

/// Counts the commands of a log as the state machine does that applies them.
pub trait Counter: Send + Sync {
    /// The last position.
    fn position(&self) -> Position;

    /// Takes the log's next command, and adds what has positions, with them.
    ///
    /// A position that moves without anything added is passed over: the log has no command there.
    fn take(&mut self, command: Bytes, out: &mut VecDeque<(Position, Bytes)>) -> Result<(), MachineError>;
}

/// Every command has the next position.
pub struct OneByOne(pub Position);

impl Counter for OneByOne {
    fn position(&self) -> Position {
        self.0
    }

    fn take(&mut self, command: Bytes, out: &mut VecDeque<(Position, Bytes)>) -> Result<(), MachineError> {
        self.0 = self.0.next();
        out.push_back((self.0, command));
        Ok(())
    }
}

/// A state machine that cannot go on, or a read of it that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A command this version cannot read: applying stops here, nothing is skipped.
    #[error("cannot apply the command after position {after}: {source}")]
    Command {
        /// Last applied position.
        after: Position,
        /// Why.
        source: crate::model::command::DecodeError,
    },
    /// What is asked for lies below the oldest position that is kept.
    #[error("nothing is kept of position {position}, the oldest is {oldest}")]
    Forgotten {
        /// What was asked for.
        position: Position,
        /// The oldest of which something is kept.
        oldest: Position,
    },
    /// A request does not fit the state it is asked of.
    #[error(transparent)]
    Invalid(#[from] crate::model::Invalid),
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] crate::store::StoreError),
    /// Stored bytes do not match their checksum or form.
    #[error("damaged {what}: {why}")]
    Damaged {
        /// Which thing.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file outside the store failed.
    #[error("{what}: {source}")]
    Io {
        /// Which file.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// An earlier failure stopped this machine.
    #[error("stopped by an earlier failure: {0}")]
    Poisoned(String),
}

impl MachineError {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            MachineError::Invalid(_) => Kind::Invalid,
            MachineError::Forgotten { .. } => Kind::Expired,
            MachineError::Damaged { .. } | MachineError::Command { .. } => Kind::Corrupt,
            _ => Kind::Internal,
        }
    }
}
