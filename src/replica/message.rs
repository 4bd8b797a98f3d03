//! The bytes that replicas of a group send each other.
//!
//! Invariants: a message names whom it is for and whom it is from, and carries a checksum over all of it; what is
//! damaged, of an unknown version, or not of the kind asked for is refused whole; an entry travels in the bytes the
//! log keeps, copied once, into the message.
//! Not here: who may send what to whom (`answer`), the frames of a snapshot (`snapshot`).
//! Source: the tables in `docs/FORMATS.md`, "Messages between replicas".

use super::{
    entry::{
        self, FormatError, LogIdRecord, MembershipRecord, RaftLeaderId, RaftLogId, RaftVote,
        StoredMembership, Types, VERSION, check_version,
    },
    reads::ReadIndex,
};
use crate::model::ReplicaId;
use annal_wal::LogIndex;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::SnapshotMetaOf,
};
use prost::{Message, Oneof};

pub(super) type Append = AppendEntriesRequest<Types>;
pub(super) type Appended = AppendEntriesResponse<Types>;
pub(super) type Ask = VoteRequest<Types>;
pub(super) type Voted = VoteResponse<Types>;
pub(super) type Transfer = TransferLeaderRequest<Types>;
pub(super) type Transferred = TransferLeaderResponse<Types>;
pub(super) type SnapshotMeta = SnapshotMetaOf<Types>;

/// From whom, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) from: ReplicaId,
    pub(super) to: ReplicaId,
}

impl Route {
    /// The way an answer takes.
    pub(super) fn back(self) -> Route {
        Route { from: self.to, to: self.from }
    }
}

/// What a replica asks another.
#[derive(Debug)]
pub(super) enum Request {
    /// Raft's AppendEntries, and what the leader knows of the entry that it goes after.
    Append { append: Append, before: Before },
    /// Raft's RequestVote.
    Vote(Ask),
    /// Whether it would vote so.
    PreVote(Ask),
    /// Leadership goes to a replica, perhaps to this one.
    Transfer(Transfer),
    /// The index a read must wait for, confirmed by a quorum. The vote of the one that asks is what it was after the
    /// read arrived.
    ReadIndex { vote: Option<RaftVote> },
    /// Whether its vote is that of this leader.
    Confirm { vote: RaftVote },
    /// What its log has from an index on, live or history, as far as it is applied.
    History { from: LogIndex },
}

/// What a leader knows of the entry that an append goes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    Unknown,
    /// It is under way still, and may have been overtaken.
    UnderWay,
    /// The replica has told this leader that it is on its disk.
    Acknowledged,
}

/// What it answers; for each request its own.
#[derive(Debug)]
pub(super) enum Answer {
    Append(Appended),
    Vote(Voted),
    Transfer(Transferred),
    ReadIndex(Result<ReadIndex, NoReadIndex>),
    Confirm(bool),
    /// The vote of the replica that was sent a snapshot.
    Snapshot(RaftVote),
    /// Entries without a hole; from where the log begins if that lies above what was asked for.
    History(Vec<annal_wal::Entry>),
}

/// Why there is no index to read at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoReadIndex {
    NotLeader(Option<ReplicaId>),
    NoQuorum,
}

/// What is said before the frames of a snapshot.
#[derive(Debug)]
pub(super) struct SnapshotHead {
    pub(super) vote: RaftVote,
    pub(super) meta: SnapshotMeta,
}

impl Request {
    pub(super) fn encode(self, route: Route) -> Bytes {
        let body = match self {
            Request::Append { append, before } => Body::Append(AppendRecord {
                vote: Some(append.vote.into()),
                before: append.prev_log_id.as_ref().map(LogIdRecord::from),
                committed: append.leader_commit.as_ref().map(LogIdRecord::from),
                entries: append.entries.into_iter().map(|e| entry::to_log(e).into()).collect(),
                follows: before == Before::UnderWay,
                acknowledged: before == Before::Acknowledged,
            }),
            Request::Vote(ask) => Body::Vote(ask.into()),
            Request::PreVote(ask) => Body::PreVote(ask.into()),
            Request::Transfer(transfer) => Body::Transfer(TransferRecord {
                from: Some((*transfer.from_leader()).into()),
                to: *transfer.to_node_id(),
                last: transfer.last_log_id().map(LogIdRecord::from),
            }),
            Request::ReadIndex { vote } => {
                Body::ReadIndex(ReadIndexRecord { vote: vote.map(BallotRecord::from) })
            }
            Request::Confirm { vote } => Body::Confirm(ConfirmRecord { vote: Some(vote.into()) }),
            Request::History { from } => Body::AskHistory(AskHistoryRecord { from: from.0 }),
        };
        encode(route, body)
    }

    pub(super) fn decode(message: Bytes) -> Result<(Route, Request), FormatError> {
        let (route, body) = decode(message)?;
        let request = match body {
            Body::Append(record) => {
                let before = match (record.follows, record.acknowledged) {
                    (_, true) => Before::Acknowledged,
                    (true, false) => Before::UnderWay,
                    (false, false) => Before::Unknown,
                };
                Request::Append { append: record.try_into()?, before }
            }
            Body::Vote(record) => Request::Vote(record.try_into()?),
            Body::PreVote(record) => Request::PreVote(record.try_into()?),
            Body::Transfer(record) => {
                let last = record.last.map(RaftLogId::from);
                Request::Transfer(Transfer::new(vote(record.from)?, record.to, last))
            }
            Body::ReadIndex(record) => Request::ReadIndex { vote: record.vote.map(RaftVote::from) },
            Body::Confirm(record) => Request::Confirm { vote: vote(record.vote)? },
            Body::AskHistory(record) => Request::History { from: LogIndex(record.from) },
            _ => return Err(wrong("not a request")),
        };
        Ok((route, request))
    }
}

impl Answer {
    pub(super) fn encode(self, route: Route) -> Bytes {
        let body = match self {
            Answer::Append(appended) => Body::Appended(appended.into()),
            Answer::Vote(voted) => Body::Voted(VotedRecord {
                vote: Some(voted.vote.into()),
                granted: voted.vote_granted,
                last: voted.last_log_id.as_ref().map(LogIdRecord::from),
            }),
            Answer::Transfer(transferred) => Body::Transferred(transferred.into()),
            Answer::ReadIndex(index) => Body::ReadAt(index.into()),
            Answer::Confirm(same) => Body::Confirmed(ConfirmedRecord { same }),
            Answer::Snapshot(vote) => Body::Installed(InstalledRecord { vote: Some(vote.into()) }),
            Answer::History(entries) => {
                Body::History(HistoryRecord { entries: entries.into_iter().map(EntryRecord::from).collect() })
            }
        };
        encode(route, body)
    }

    pub(super) fn decode(message: Bytes) -> Result<(Route, Answer), FormatError> {
        let (route, body) = decode(message)?;
        let answer = match body {
            Body::Appended(record) => Answer::Append(record.try_into()?),
            Body::Voted(record) => Answer::Vote(Voted {
                vote: vote(record.vote)?,
                vote_granted: record.granted,
                last_log_id: record.last.map(RaftLogId::from),
            }),
            Body::Transferred(record) => Answer::Transfer(record.try_into()?),
            Body::ReadAt(record) => Answer::ReadIndex(record.try_into()?),
            Body::Confirmed(record) => Answer::Confirm(record.same),
            Body::Installed(record) => Answer::Snapshot(vote(record.vote)?),
            Body::History(record) => Answer::History(record.try_into()?),
            _ => return Err(wrong("not an answer")),
        };
        Ok((route, answer))
    }
}

impl SnapshotHead {
    pub(super) fn encode(self, route: Route) -> Bytes {
        let membership = &self.meta.last_membership;
        encode(
            route,
            Body::Snapshot(SnapshotRecord {
                vote: Some(self.vote.into()),
                last: self.meta.last_log_id.as_ref().map(LogIdRecord::from),
                membership_id: membership.log_id().as_ref().map(LogIdRecord::from),
                membership: Some(MembershipRecord::from(membership.membership())),
            }),
        )
    }

    pub(super) fn decode(message: Bytes) -> Result<(Route, SnapshotHead), FormatError> {
        let (route, Body::Snapshot(record)) = decode(message)? else {
            return Err(wrong("not the head of a snapshot"));
        };
        let membership = record.membership.ok_or_else(|| wrong("a snapshot without a membership"))?;
        let membership =
            StoredMembership::new(record.membership_id.map(RaftLogId::from), membership.try_into()?);
        let meta =
            SnapshotMeta { last_log_id: record.last.map(RaftLogId::from), last_membership: membership };
        Ok((route, SnapshotHead { vote: vote(record.vote)?, meta }))
    }
}

/// Bytes of the checksum before the protobuf message.
const CRC_BYTES: usize = 4;

fn encode(route: Route, body: Body) -> Bytes {
    let message = MessageRecord { version: VERSION, to: route.to.0, from: route.from.0, body: Some(body) };
    let mut out = BytesMut::with_capacity(CRC_BYTES + message.encoded_len());
    out.put_u32_le(0);
    message.encode_raw(&mut out);
    let crc = crc32fast::hash(&out[CRC_BYTES..]);
    out[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

fn decode(mut message: Bytes) -> Result<(Route, Body), FormatError> {
    let crc = message.try_get_u32_le().map_err(|_| wrong("cut short"))?;
    if crc32fast::hash(&message) != crc {
        return Err(wrong("the checksum does not match"));
    }
    let record = MessageRecord::decode(message).map_err(|e| wrong(e.to_string()))?;
    check_version("message", record.version)?;
    let route = Route { from: ReplicaId(record.from), to: ReplicaId(record.to) };
    // A kind this version does not know leaves the field empty.
    Ok((route, record.body.ok_or_else(|| wrong("of an unknown kind"))?))
}

fn wrong(why: impl Into<String>) -> FormatError {
    FormatError::new("message", why)
}

#[derive(Clone, PartialEq, Message)]
struct MessageRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(oneof = "Body", tags = "4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 26")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Body {
    #[prost(message, tag = "4")]
    Append(AppendRecord),
    #[prost(message, tag = "5")]
    Vote(VoteRecord),
    #[prost(message, tag = "6")]
    PreVote(VoteRecord),
    #[prost(message, tag = "7")]
    Transfer(TransferRecord),
    #[prost(message, tag = "8")]
    ReadIndex(ReadIndexRecord),
    #[prost(message, tag = "9")]
    Snapshot(SnapshotRecord),
    #[prost(message, tag = "10")]
    AskHistory(AskHistoryRecord),
    #[prost(message, tag = "11")]
    Confirm(ConfirmRecord),
    #[prost(message, tag = "20")]
    Appended(AppendedRecord),
    #[prost(message, tag = "21")]
    Voted(VotedRecord),
    #[prost(message, tag = "22")]
    Transferred(TransferredRecord),
    #[prost(message, tag = "23")]
    ReadAt(ReadAtRecord),
    #[prost(message, tag = "24")]
    Installed(InstalledRecord),
    #[prost(message, tag = "25")]
    History(HistoryRecord),
    #[prost(message, tag = "26")]
    Confirmed(ConfirmedRecord),
}

/// Raft's vote: whom for, in which term, and whether a quorum agreed.
#[derive(Clone, Copy, PartialEq, Message)]
struct BallotRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    replica: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, PartialEq, Message)]
struct AppendRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
    #[prost(message, optional, tag = "2")]
    before: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    committed: Option<LogIdRecord>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<EntryRecord>,
    #[prost(bool, tag = "5")]
    follows: bool,
    #[prost(bool, tag = "6")]
    acknowledged: bool,
}

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(message, optional, tag = "1")]
    id: Option<LogIdRecord>,
    #[prost(bytes = "bytes", tag = "2")]
    payload: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct VoteRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdRecord>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}

#[derive(Clone, PartialEq, Message)]
struct TransferRecord {
    #[prost(message, optional, tag = "1")]
    from: Option<BallotRecord>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    membership_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "4")]
    membership: Option<MembershipRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct AppendedRecord {
    #[prost(uint32, tag = "1")]
    outcome: u32,
    #[prost(message, optional, tag = "2")]
    upto: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    higher: Option<BallotRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct VotedRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
    #[prost(bool, tag = "2")]
    granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct TransferredRecord {
    #[prost(uint32, tag = "1")]
    outcome: u32,
    #[prost(message, optional, tag = "2")]
    expected_vote: Option<BallotRecord>,
    #[prost(message, optional, tag = "3")]
    vote: Option<BallotRecord>,
    #[prost(message, optional, tag = "4")]
    expected: Option<LogIdRecord>,
    #[prost(message, optional, tag = "5")]
    flushed: Option<LogIdRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ReadIndexRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct ReadAtRecord {
    #[prost(uint32, tag = "1")]
    outcome: u32,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, optional, tag = "3")]
    leader: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct InstalledRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ConfirmRecord {
    #[prost(message, optional, tag = "1")]
    vote: Option<BallotRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ConfirmedRecord {
    #[prost(bool, tag = "1")]
    same: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct AskHistoryRecord {
    #[prost(uint64, tag = "1")]
    from: u64,
}

#[derive(Clone, PartialEq, Message)]
struct HistoryRecord {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<EntryRecord>,
}

/// Outcomes of [`AppendedRecord`]; 0 is what a field left out would say, and means nothing.
const APPENDED: u32 = 1;
const APPENDED_PARTLY: u32 = 2;
const APPEND_CONFLICT: u32 = 3;
const APPEND_HIGHER_VOTE: u32 = 4;

/// Outcomes of [`TransferredRecord`].
const TRANSFERRED: u32 = 1;
const TRANSFER_VOTE_CHANGED: u32 = 2;
const TRANSFER_NOT_FLUSHED: u32 = 3;

/// Outcomes of [`ReadAtRecord`].
const READ_AT: u32 = 1;
const READ_NOT_LEADER: u32 = 2;
const READ_NO_QUORUM: u32 = 3;

impl From<RaftVote> for BallotRecord {
    fn from(vote: RaftVote) -> Self {
        let RaftLeaderId { term, node_id } = vote.leader_id;
        BallotRecord { term, replica: node_id, committed: vote.committed }
    }
}

impl From<BallotRecord> for RaftVote {
    fn from(BallotRecord { term, replica, committed }: BallotRecord) -> Self {
        RaftVote { leader_id: RaftLeaderId { term, node_id: replica }, committed }
    }
}

/// A vote that must be there.
fn vote(record: Option<BallotRecord>) -> Result<RaftVote, FormatError> {
    Ok(record.ok_or_else(|| wrong("without a vote"))?.into())
}

impl From<annal_wal::Entry> for EntryRecord {
    fn from(entry: annal_wal::Entry) -> Self {
        EntryRecord { id: Some(entry.id.into()), payload: entry.payload }
    }
}

impl TryFrom<EntryRecord> for annal_wal::Entry {
    type Error = FormatError;

    fn try_from(record: EntryRecord) -> Result<Self, FormatError> {
        let id = record.id.ok_or_else(|| wrong("an entry without its id"))?;
        Ok(annal_wal::Entry { id: entry::id_to_log(&id.into()), payload: record.payload })
    }
}

impl TryFrom<HistoryRecord> for Vec<annal_wal::Entry> {
    type Error = FormatError;

    fn try_from(record: HistoryRecord) -> Result<Self, FormatError> {
        let entries: Self = record.entries.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        let hole = entries.windows(2).find(|two| two[0].id.index.0 + 1 != two[1].id.index.0);
        match hole {
            Some(two) => Err(wrong(format!("entry {} follows {}", two[1].id.index.0, two[0].id.index.0))),
            None => Ok(entries),
        }
    }
}

impl TryFrom<AppendRecord> for Append {
    type Error = FormatError;

    fn try_from(record: AppendRecord) -> Result<Self, FormatError> {
        let entry = |record: EntryRecord| entry::from_log(record.try_into()?);
        let append = Append {
            vote: vote(record.vote)?,
            prev_log_id: record.before.map(RaftLogId::from),
            leader_commit: record.committed.map(RaftLogId::from),
            entries: record.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        };
        let first = append.prev_log_id.map_or(0, |id| id.index() + 1);
        for (index, entry) in (first..).zip(&append.entries) {
            if entry.log_id.index() != index {
                return Err(wrong(format!("entry {} where {index} should be", entry.log_id.index())));
            }
        }
        Ok(append)
    }
}

impl From<Ask> for VoteRecord {
    fn from(ask: Ask) -> Self {
        VoteRecord {
            vote: Some(ask.vote.into()),
            last: ask.last_log_id.as_ref().map(LogIdRecord::from),
            transfer: ask.leadership_transfer,
        }
    }
}

impl TryFrom<VoteRecord> for Ask {
    type Error = FormatError;

    fn try_from(record: VoteRecord) -> Result<Self, FormatError> {
        let mut ask = Ask::new(vote(record.vote)?, record.last.map(RaftLogId::from));
        ask.leadership_transfer = record.transfer;
        Ok(ask)
    }
}

impl From<Appended> for AppendedRecord {
    fn from(appended: Appended) -> Self {
        match appended {
            Appended::Success => AppendedRecord { outcome: APPENDED, ..Default::default() },
            Appended::PartialSuccess(upto) => AppendedRecord {
                outcome: APPENDED_PARTLY,
                upto: upto.as_ref().map(LogIdRecord::from),
                ..Default::default()
            },
            Appended::Conflict => AppendedRecord { outcome: APPEND_CONFLICT, ..Default::default() },
            Appended::HigherVote(vote) => AppendedRecord {
                outcome: APPEND_HIGHER_VOTE,
                higher: Some(vote.into()),
                ..Default::default()
            },
        }
    }
}

impl TryFrom<AppendedRecord> for Appended {
    type Error = FormatError;

    fn try_from(record: AppendedRecord) -> Result<Self, FormatError> {
        Ok(match record.outcome {
            APPENDED => Appended::Success,
            APPENDED_PARTLY => Appended::PartialSuccess(record.upto.map(RaftLogId::from)),
            APPEND_CONFLICT => Appended::Conflict,
            APPEND_HIGHER_VOTE => Appended::HigherVote(vote(record.higher)?),
            other => return Err(wrong(format!("outcome {other} of an append"))),
        })
    }
}

impl From<Transferred> for TransferredRecord {
    fn from(transferred: Transferred) -> Self {
        match transferred {
            Ok(()) => TransferredRecord { outcome: TRANSFERRED, ..Default::default() },
            Err(TransferLeaderError::VoteChanged { expected, actual }) => TransferredRecord {
                outcome: TRANSFER_VOTE_CHANGED,
                expected_vote: Some(expected.into()),
                vote: Some(actual.into()),
                ..Default::default()
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => TransferredRecord {
                outcome: TRANSFER_NOT_FLUSHED,
                expected: expected.as_ref().map(LogIdRecord::from),
                flushed: actual.as_ref().map(LogIdRecord::from),
                ..Default::default()
            },
        }
    }
}

impl TryFrom<TransferredRecord> for Transferred {
    type Error = FormatError;

    fn try_from(record: TransferredRecord) -> Result<Self, FormatError> {
        Ok(match record.outcome {
            TRANSFERRED => Ok(()),
            TRANSFER_VOTE_CHANGED => Err(TransferLeaderError::VoteChanged {
                expected: vote(record.expected_vote)?,
                actual: vote(record.vote)?,
            }),
            TRANSFER_NOT_FLUSHED => Err(TransferLeaderError::LogNotFlushed {
                expected: record.expected.map(RaftLogId::from),
                actual: record.flushed.map(RaftLogId::from),
            }),
            other => return Err(wrong(format!("outcome {other} of a transfer"))),
        })
    }
}

impl From<Result<ReadIndex, NoReadIndex>> for ReadAtRecord {
    fn from(index: Result<ReadIndex, NoReadIndex>) -> Self {
        match index {
            Ok(index) => ReadAtRecord { outcome: READ_AT, index: index.0.0, leader: None },
            Err(NoReadIndex::NotLeader(leader)) => {
                ReadAtRecord { outcome: READ_NOT_LEADER, index: 0, leader: leader.map(|id| id.0) }
            }
            Err(NoReadIndex::NoQuorum) => ReadAtRecord { outcome: READ_NO_QUORUM, index: 0, leader: None },
        }
    }
}

impl TryFrom<ReadAtRecord> for Result<ReadIndex, NoReadIndex> {
    type Error = FormatError;

    fn try_from(record: ReadAtRecord) -> Result<Self, FormatError> {
        Ok(match record.outcome {
            READ_AT => Ok(ReadIndex(LogIndex(record.index))),
            READ_NOT_LEADER => Err(NoReadIndex::NotLeader(record.leader.map(ReplicaId))),
            READ_NO_QUORUM => Err(NoReadIndex::NoQuorum),
            other => return Err(wrong(format!("outcome {other} of a ReadIndex"))),
        })
    }
}
