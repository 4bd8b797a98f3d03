//! The bytes of this floor: what an entry's payload and a bookmark hold, and the types openraft is run with.
//!
//! Invariants: an entry is kept for ever, so a kind or version this code does not know is refused, never skipped;
//! what is written is read back to the same value (golden files in `tests/golden/replica/`).
//! Not here: what a command means (`model/command`), frames and checksums (`annal-wal`).
//! Source: the tables in `docs/FORMATS.md`, "Entries and bookmarks".

use super::propose::Waiters;
use crate::{
    machine::{Bookmark, Outcome},
    model::ReplicaId,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use std::{collections::BTreeSet, fmt};

/// The types openraft is run with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Commands;
    type R = Answers;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = RaftLeaderId;
    type Vote = RaftVote;
    type Payload = RaftPayload;
    type Entry = RaftEntry;
    type AsyncRuntime = super::runtime::Runtime;
    type Responder<T>
        = Waiters<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) type RaftLeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(super) type RaftVote = openraft::impls::Vote<RaftLeaderId>;
pub(super) type RaftPayload = openraft::EntryPayload<Commands, u64, ()>;
pub(super) type RaftEntry = openraft::Entry<RaftLeaderId, RaftPayload>;
pub(super) type RaftLogId = openraft::LogId<RaftLeaderId>;
pub(super) type RaftMembership = openraft::Membership<u64, ()>;
pub(super) type StoredMembership = openraft::StoredMembership<RaftLeaderId, u64, ()>;

const KIND_BLANK: u8 = 0;
const KIND_COMMANDS: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// The commands of one entry, in the bytes the log keeps: gathered once, never copied again.
///
/// Several commands share an entry because an entry costs openraft far more than a command does; they are
/// committed together and applied one by one, each at its own `Position`.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Commands(#[serde(with = "never")] Bytes);

impl Commands {
    /// Bytes before the first command: kind and count.
    pub(super) const HEAD_BYTES: usize = 5;
    /// Bytes before each command: its length.
    pub(super) const COMMAND_HEAD_BYTES: usize = 4;

    /// Lays commands out as one payload. Each is shorter than 4 GiB, and there are fewer than 2^32.
    pub(super) fn gather<'a>(commands: impl ExactSizeIterator<Item = &'a Bytes> + Clone) -> Self {
        let bytes: usize = commands.clone().map(|command| Self::COMMAND_HEAD_BYTES + command.len()).sum();
        let mut out = BytesMut::with_capacity(Self::HEAD_BYTES + bytes);
        out.put_u8(KIND_COMMANDS);
        out.put_u32_le(commands.len() as u32);
        for command in commands {
            out.put_u32_le(command.len() as u32);
            out.put_slice(command);
        }
        Commands(out.freeze())
    }

    /// Checks a payload of kind 1 to its last byte.
    fn check(payload: Bytes) -> Result<Self, FormatError> {
        let mut rest = payload.slice(1..);
        let count =
            rest.try_get_u32_le().map_err(|_| FormatError::new("commands", "cut short in the count"))?;
        for n in 0..count {
            let fits = rest.try_get_u32_le().is_ok_and(|bytes| {
                let fits = bytes as usize <= rest.len();
                rest.advance(if fits { bytes as usize } else { 0 });
                fits
            });
            if !fits {
                return Err(FormatError::new("commands", format!("cut short in command {n} of {count}")));
            }
        }
        if rest.has_remaining() {
            return Err(FormatError::new("commands", format!("{} bytes after the last command", rest.len())));
        }
        Ok(Commands(payload))
    }

    /// How many commands.
    pub(super) fn count(&self) -> usize {
        (&self.0[1..]).get_u32_le() as usize
    }

    /// Bytes of the whole payload.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// The commands, sharing this payload's memory.
    pub(super) fn iter(&self) -> impl Iterator<Item = Bytes> + use<> {
        let mut rest = self.0.slice(Self::HEAD_BYTES..);
        (0..self.count()).map(move |_| {
            let bytes = rest.get_u32_le() as usize;
            rest.split_to(bytes)
        })
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands ({} bytes)", self.count(), self.bytes())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What became of the commands of one entry, in order. Never leaves the process.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Answers(#[serde(with = "never")] pub(super) Vec<Outcome>);

/// openraft asks for serde on what it carries; here only the tables above become bytes, so serde is refused.
mod never {
    pub(super) fn serialize<T, S: serde::Serializer>(_: &T, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("entries are written by their own format"))
    }

    pub(super) fn deserialize<'de, T, D: serde::Deserializer<'de>>(_: D) -> Result<T, D::Error> {
        Err(serde::de::Error::custom("entries are read by their own format"))
    }
}

/// Bytes that are intact but not of a form this version knows.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct FormatError {
    what: &'static str,
    why: String,
}

impl FormatError {
    pub(super) fn new(what: &'static str, why: impl Into<String>) -> Self {
        FormatError { what, why: why.into() }
    }
}

/// An entry as the log keeps it.
pub(super) fn to_log(entry: RaftEntry) -> annal_wal::Entry {
    let payload = match entry.payload {
        RaftPayload::Blank => Bytes::from_static(&[KIND_BLANK]),
        RaftPayload::Normal(commands) => commands.0,
        RaftPayload::Membership(membership) => {
            let record = MembershipRecord::from(&membership);
            let mut out = BytesMut::with_capacity(1 + record.encoded_len());
            out.put_u8(KIND_MEMBERSHIP);
            record.encode_raw(&mut out);
            out.freeze()
        }
    };
    annal_wal::Entry { id: id_to_log(&entry.log_id), payload }
}

/// An entry as Raft wants it; the inverse of [`to_log`].
pub(super) fn from_log(entry: annal_wal::Entry) -> Result<RaftEntry, FormatError> {
    let payload = match entry.payload.first() {
        Some(&KIND_BLANK) if entry.payload.len() == 1 => RaftPayload::Blank,
        Some(&KIND_COMMANDS) => RaftPayload::Normal(Commands::check(entry.payload)?),
        Some(&KIND_MEMBERSHIP) => {
            let record = MembershipRecord::decode(entry.payload.slice(1..))
                .map_err(|e| FormatError::new("membership", e.to_string()))?;
            RaftPayload::Membership(record.try_into()?)
        }
        kind => return Err(FormatError::new("entry", format!("unknown kind {kind:?}"))),
    };
    Ok(RaftEntry { log_id: id_from_log(&entry.id), payload })
}

/// A log id in the log's words.
pub(super) fn id_to_log(id: &RaftLogId) -> annal_wal::LogId {
    let leader = id.committed_leader_id();
    annal_wal::LogId {
        term: annal_wal::Term(leader.term),
        leader: leader.node_id,
        index: annal_wal::LogIndex(id.index()),
    }
}

/// A log id in Raft's words.
pub(super) fn id_from_log(id: &annal_wal::LogId) -> RaftLogId {
    RaftLogId::new(RaftLeaderId { term: id.term.0, node_id: id.leader }, id.index.0)
}

/// A vote in the log's words.
pub(super) fn vote_to_log(vote: &RaftVote) -> annal_wal::Vote {
    annal_wal::Vote {
        term: annal_wal::Term(vote.leader_id.term),
        node: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// A vote in Raft's words.
pub(super) fn vote_from_log(vote: annal_wal::Vote) -> RaftVote {
    RaftVote { leader_id: RaftLeaderId { term: vote.term.0, node_id: vote.node }, committed: vote.committed }
}

/// Where a state machine stands: what a [`Bookmark`] holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The last entry folded in.
    pub(super) applied: Option<RaftLogId>,
    /// The last membership at or before it.
    pub(super) membership: StoredMembership,
}

impl Mark {
    pub(super) fn to_bookmark(&self) -> Bookmark {
        let record = BookmarkRecord {
            version: VERSION,
            applied: self.applied.as_ref().map(LogIdRecord::from),
            membership_id: self.membership.log_id().as_ref().map(LogIdRecord::from),
            membership: Some(MembershipRecord::from(self.membership.membership())),
        };
        Bookmark(record.encode_to_vec().into())
    }

    /// Errors: bytes that are no bookmark, or of a version this code does not know.
    pub(super) fn from_bookmark(bookmark: &Bookmark) -> Result<Self, FormatError> {
        let record = BookmarkRecord::decode(bookmark.0.clone())
            .map_err(|e| FormatError::new("bookmark", e.to_string()))?;
        check_version("bookmark", record.version)?;
        let membership = match record.membership {
            Some(membership) => membership.try_into()?,
            None => return Err(FormatError::new("bookmark", "without a membership")),
        };
        Ok(Mark {
            applied: record.applied.map(RaftLogId::from),
            membership: StoredMembership::new(record.membership_id.map(RaftLogId::from), membership),
        })
    }

    /// The mark of an optional bookmark: nothing applied if there is none.
    pub(super) fn of(bookmark: Option<&Bookmark>) -> Result<Self, FormatError> {
        bookmark.map_or(Ok(Mark::default()), Mark::from_bookmark)
    }

    /// Index of the last entry folded in.
    pub(super) fn index(&self) -> Option<annal_wal::LogIndex> {
        self.applied.as_ref().map(|id| annal_wal::LogIndex(id.index()))
    }
}

/// Who takes part in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The sets of voters; two while a change is under way, then a quorum needs a majority of each.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// Replicas that receive the log and do not vote.
    pub learners: BTreeSet<ReplicaId>,
}

impl From<&RaftMembership> for Members {
    fn from(membership: &RaftMembership) -> Self {
        let ids = |set: &BTreeSet<u64>| set.iter().copied().map(ReplicaId).collect();
        Members {
            voters: membership.get_joint_config().iter().map(ids).collect(),
            learners: membership.learner_ids().map(ReplicaId).collect(),
        }
    }
}

impl Members {
    /// Whether `replica` is the only voter: it needs nobody to elect it or to commit.
    pub fn is_sole_voter(&self, replica: ReplicaId) -> bool {
        !self.voters.is_empty() && self.voters.iter().all(|set| set.len() == 1 && set.contains(&replica))
    }
}

/// The version of membership records, bookmarks and messages.
pub(super) const VERSION: u32 = 1;

pub(super) fn check_version(what: &'static str, version: u32) -> Result<(), FormatError> {
    match version {
        VERSION => Ok(()),
        other => Err(FormatError::new(what, format!("version {other}, known is {VERSION}"))),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MembershipRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, repeated, tag = "2")]
    voters: Vec<VoterSetRecord>,
    #[prost(uint64, repeated, tag = "3")]
    learners: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct VoterSetRecord {
    #[prost(uint64, repeated, tag = "1")]
    replicas: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    leader: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

#[derive(Clone, PartialEq, Message)]
struct BookmarkRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    applied: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    membership_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "4")]
    membership: Option<MembershipRecord>,
}

impl From<&RaftMembership> for MembershipRecord {
    fn from(membership: &RaftMembership) -> Self {
        let set = |set: &BTreeSet<u64>| VoterSetRecord { replicas: set.iter().copied().collect() };
        MembershipRecord {
            version: VERSION,
            voters: membership.get_joint_config().iter().map(set).collect(),
            learners: membership.learner_ids().collect(),
        }
    }
}

impl TryFrom<MembershipRecord> for RaftMembership {
    type Error = FormatError;

    fn try_from(record: MembershipRecord) -> Result<Self, FormatError> {
        check_version("membership", record.version)?;
        let voters = record.voters.into_iter().map(|set| set.replicas.into_iter().collect()).collect();
        Ok(RaftMembership::new_with_defaults(voters, record.learners))
    }
}

impl From<annal_wal::LogId> for LogIdRecord {
    fn from(id: annal_wal::LogId) -> Self {
        LogIdRecord { term: id.term.0, leader: id.leader, index: id.index.0 }
    }
}

impl From<&RaftLogId> for LogIdRecord {
    fn from(id: &RaftLogId) -> Self {
        let leader = id.committed_leader_id();
        LogIdRecord { term: leader.term, leader: leader.node_id, index: id.index() }
    }
}

impl From<LogIdRecord> for RaftLogId {
    fn from(record: LogIdRecord) -> Self {
        RaftLogId::new(RaftLeaderId { term: record.term, node_id: record.leader }, record.index)
    }
}
