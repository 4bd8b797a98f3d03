//! The bytes of messages: pinned, and refused where they are damaged, unknown or for someone else.

use super::*;
use crate::replica::{
    entry::{
        Commands, RaftEntry, RaftLeaderId, RaftLogId, RaftMembership, RaftPayload, RaftVote, StoredMembership,
    },
    message::{
        Answer, Append, Appended, Ask, Before, NoReadIndex, Request, Route, SnapshotHead, SnapshotMeta,
        Transfer, Voted,
    },
};
use openraft::raft::TransferLeaderError;
use std::fmt::Write;

const ROUTE: Route = Route { from: ReplicaId(300), to: ReplicaId(4) };

fn id(term: u64, index: u64) -> RaftLogId {
    RaftLogId::new(RaftLeaderId { term, node_id: 300 }, index)
}

fn vote(term: u64, committed: bool) -> RaftVote {
    RaftVote { leader_id: RaftLeaderId { term, node_id: 300 }, committed }
}

fn append(entries: Vec<RaftPayload>) -> Append {
    let entries = entries.into_iter().zip(6..).map(|(payload, n)| RaftEntry { log_id: id(2, n), payload });
    Append {
        vote: vote(2, true),
        prev_log_id: Some(id(1, 5)),
        leader_commit: Some(id(1, 4)),
        entries: entries.collect(),
    }
}

fn history(index: u64) -> annal_wal::Entry {
    let id = annal_wal::LogId { term: Term(2), leader: 300, index: LogIndex(index) };
    annal_wal::Entry { id, payload: Bytes::from_static(b"as the log keeps it") }
}

fn requests() -> Vec<(&'static str, Request)> {
    let commands = Commands::gather([Bytes::from_static(b"upsert"), Bytes::from_static(b"")].iter());
    let membership = RaftMembership::new_with_defaults(vec![[1, 2, 3].into(), [2, 3, 4].into()], [9]);
    let entries =
        vec![RaftPayload::Blank, RaftPayload::Normal(commands), RaftPayload::Membership(membership)];
    let first = Append { vote: vote(1, true), prev_log_id: None, leader_commit: None, entries: Vec::new() };
    let mut by_transfer = Ask::new(vote(3, false), Some(id(2, 8)));
    by_transfer.leadership_transfer = true;
    vec![
        ("heartbeat to an empty log", Request::Append { append: first, before: Before::Unknown }),
        ("append", Request::Append { append: append(entries), before: Before::Unknown }),
        (
            "append that follows",
            Request::Append { append: append(vec![RaftPayload::Blank]), before: Before::UnderWay },
        ),
        (
            "append after what was acknowledged",
            Request::Append { append: append(Vec::new()), before: Before::Acknowledged },
        ),
        ("vote", Request::Vote(Ask::new(vote(3, false), Some(id(2, 8))))),
        ("vote, leadership handed over", Request::Vote(by_transfer)),
        ("pre-vote with an empty log", Request::PreVote(Ask::new(vote(1, false), None))),
        ("transfer", Request::Transfer(Transfer::new(vote(2, true), 4, Some(id(2, 8))))),
        ("read index", Request::ReadIndex { vote: None }),
        ("read index, with a vote", Request::ReadIndex { vote: Some(vote(2, true)) }),
        ("confirm", Request::Confirm { vote: vote(2, true) }),
        ("history", Request::History { from: LogIndex(300) }),
    ]
}

fn answers() -> Vec<(&'static str, Answer)> {
    let changed = TransferLeaderError::VoteChanged { expected: vote(2, true), actual: vote(3, false) };
    let not_flushed = TransferLeaderError::LogNotFlushed { expected: Some(id(2, 8)), actual: None };
    vec![
        ("appended", Answer::Append(Appended::Success)),
        ("appended in part", Answer::Append(Appended::PartialSuccess(Some(id(2, 7))))),
        ("conflict", Answer::Append(Appended::Conflict)),
        ("higher vote", Answer::Append(Appended::HigherVote(vote(9, true)))),
        ("voted", Answer::Vote(Voted::new(vote(3, false), Some(id(2, 8)), true))),
        ("not voted", Answer::Vote(Voted::new(vote(4, true), None, false))),
        ("transferred", Answer::Transfer(Ok(()))),
        ("not transferred, vote changed", Answer::Transfer(Err(changed))),
        ("not transferred, not flushed", Answer::Transfer(Err(not_flushed))),
        ("index to read at", Answer::ReadIndex(Ok(ReadIndex(LogIndex(1_000_000))))),
        ("no index, another leads", Answer::ReadIndex(Err(NoReadIndex::NotLeader(Some(ReplicaId(5)))))),
        ("no index, nobody leads", Answer::ReadIndex(Err(NoReadIndex::NotLeader(None)))),
        ("no index, no quorum", Answer::ReadIndex(Err(NoReadIndex::NoQuorum))),
        ("confirmed", Answer::Confirm(true)),
        ("not confirmed", Answer::Confirm(false)),
        ("installed", Answer::Snapshot(vote(2, true))),
        ("no history", Answer::History(Vec::new())),
        ("history", Answer::History(vec![history(300), history(301)])),
    ]
}

fn heads() -> Vec<(&'static str, SnapshotHead)> {
    let membership = RaftMembership::new_with_defaults(vec![[1, 2, 3].into()], [4]);
    let last_membership = StoredMembership::new(Some(id(1, 2)), membership);
    let meta = SnapshotMeta { last_log_id: Some(id(2, 700)), last_membership };
    vec![("snapshot", SnapshotHead { vote: vote(2, true), meta })]
}

/// Every message, its name and what it says.
fn all() -> Vec<(&'static str, Bytes, String)> {
    let requests = requests().into_iter().map(|(name, r)| (name, format!("{r:?}"), r.encode(ROUTE)));
    let answers = answers().into_iter().map(|(name, a)| (name, format!("{a:?}"), a.encode(ROUTE)));
    let heads = heads().into_iter().map(|(name, h)| (name, format!("{h:?}"), h.encode(ROUTE)));
    requests.chain(answers).chain(heads).map(|(name, said, bytes)| (name, bytes, said)).collect()
}

/// What the bytes say, whichever of the three they are.
fn read(bytes: &Bytes) -> Result<(Route, String), FormatError> {
    let request = Request::decode(bytes.clone()).map(|(route, request)| (route, format!("{request:?}")));
    let answer = || Answer::decode(bytes.clone()).map(|(route, answer)| (route, format!("{answer:?}")));
    let head = || SnapshotHead::decode(bytes.clone()).map(|(route, head)| (route, format!("{head:?}")));
    request.or_else(|_| answer()).or_else(|_| head())
}

/// Replicas of different versions talk to each other: `REWRITE=1` adds what is new; a line that changes breaks that.
#[test]
fn golden_messages() {
    let mut lines = String::new();
    for (name, bytes, said) in all() {
        assert_eq!(read(&bytes).unwrap(), (ROUTE, said), "{name}");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{name}: {hex}").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/replica/messages.txt");
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path, &lines).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), lines);
}

#[test]
fn damaged_messages_are_refused() {
    for (name, bytes, _) in all() {
        for cut in 0..bytes.len() {
            assert!(read(&bytes.slice(..cut)).is_err(), "{name} cut to {cut} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes.into()).is_err(), "{name} with bit {bit} flipped");
        }
    }
}

/// A message with another body, and a checksum that fits it.
fn with_body(body: &[u8]) -> Bytes {
    [&crc32fast::hash(body).to_le_bytes(), body].concat().into()
}

#[test]
fn unknown_messages_are_refused() {
    let of = |body: &[u8]| read(&with_body(body)).unwrap_err().to_string();
    let (version_2, kind_15) = ([8, 2, 16, 4, 24, 5, 66, 0], [8, 1, 16, 4, 24, 5, 122, 0]);
    assert!(of(&version_2).contains("version 2"), "{}", of(&version_2));
    assert!(of(&kind_15).contains("unknown kind"), "{}", of(&kind_15));
    assert!(of(&[]).contains("version 0"), "{}", of(&[]));
    // An outcome left out, as an empty field is, says nothing.
    for answer in [&[162, 1, 0][..], &[178, 1, 0], &[186, 1, 0]] {
        let body = [&[8, 1, 16, 4, 24, 5][..], answer].concat();
        assert!(Answer::decode(with_body(&body)).unwrap_err().to_string().contains("outcome 0"));
    }
}

#[test]
fn entries_out_of_order_are_refused() {
    let mut wrong = append(vec![RaftPayload::Blank, RaftPayload::Blank]);
    wrong.entries.swap(0, 1);
    let bytes = Request::Append { append: wrong, before: Before::Unknown }.encode(ROUTE);
    assert!(Request::decode(bytes).unwrap_err().to_string().contains("entry 7 where 6 should be"));
}

#[tokio::test]
async fn a_message_for_another_replica_is_refused() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    let before = replica.status();
    for (name, request) in requests() {
        let error = replica.answer(request.encode(ROUTE)).await.unwrap_err();
        assert!(matches!(error, ReplicaError::Misdirected { to: ReplicaId(4), here: ME }), "{name}: {error}");
        assert_eq!(error.effect(), Effect::None);
    }
    let (_, head) = heads().remove(0);
    let error = replica.receive_snapshot(head.encode(ROUTE), Box::pin(futures::stream::empty())).await;
    assert!(matches!(error, Err(ReplicaError::Misdirected { .. })), "{error:?}");
    assert_eq!(replica.status(), before);
    // One for this replica is answered, by way of its sender.
    let route = Route { to: ME, ..ROUTE };
    let answer = replica.answer(Request::ReadIndex { vote: None }.encode(route)).await.unwrap();
    let (back, answer) = Answer::decode(answer).unwrap();
    assert_eq!(back, Route { from: ME, to: ROUTE.from });
    assert!(matches!(answer, Answer::ReadIndex(Ok(_))), "{answer:?}");
}
