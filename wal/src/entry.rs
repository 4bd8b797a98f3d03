//! The words of the log: groups, Raft's indexes and ids, votes and entries.
//!
//! Invariants: an id is compared whole, never by its parts; two integers of different meaning never share a type.
//! Not here: `Position` (a shard's command count), which this crate does not know.

use std::fmt;

use bytes::Bytes;

/// A Raft group of this node's cluster; 0 is the catalog. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// Raft's term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// Raft's index: counts the entries of one group; the first one may be any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The index right after this one.
    pub fn next(self) -> LogIndex {
        LogIndex(self.0.saturating_add(1))
    }
}

/// The full name of an entry: two entries of a group with the same id are the same entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term in which it was proposed.
    pub term: Term,
    /// The replica that proposed it.
    pub leader: u64,
    /// Its place in the group's log.
    pub index: LogIndex,
}

/// What a replica has promised in an election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vote {
    /// The term voted in.
    pub term: Term,
    /// The replica voted for.
    pub node: u64,
    /// Whether a quorum is known to have granted it.
    pub committed: bool,
}

/// One entry of a group's log; the payload is opaque here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: LogId,
    /// Its bytes.
    pub payload: Bytes,
}

/// What a group must never forget, beside its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The last vote given.
    pub vote: Option<Vote>,
    /// Up to here entries are history.
    pub purged: Option<LogId>,
    /// The last saved commit.
    pub committed: Option<LogId>,
    /// The last entry, or `purged` if that lies beyond it.
    pub last: Option<LogId>,
}

impl HardState {
    /// The first index that is live, if anything is known of the group's entries.
    pub(crate) fn live_from(&self) -> LogIndex {
        self.purged.map_or(LogIndex(0), |id| id.index.next())
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}.{}", self.index.0, self.term.0, self.leader)
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let committed = if self.committed { " committed" } else { "" };
        write!(out, "{} in term {}{committed}", self.node, self.term.0)
    }
}
