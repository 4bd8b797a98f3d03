//! The bytes of entries and bookmarks: pinned, and refused where they are damaged or unknown.

use super::*;
use crate::replica::entry::{
    Commands, Mark, RaftEntry, RaftLeaderId, RaftLogId, RaftMembership, RaftPayload, StoredMembership,
    from_log, to_log,
};
use proptest::prelude::*;
use std::fmt::Write;

fn id(term: u64, leader: u64, index: u64) -> RaftLogId {
    RaftLogId::new(RaftLeaderId { term, node_id: leader }, index)
}

fn entry(payload: RaftPayload) -> RaftEntry {
    RaftEntry { log_id: id(2, 3, 5), payload }
}

fn commands(commands: &[&'static [u8]]) -> RaftPayload {
    let commands: Vec<_> = commands.iter().copied().map(Bytes::from_static).collect();
    RaftPayload::Normal(Commands::gather(commands.iter()))
}

fn membership(voters: &[&[u64]], learners: &[u64]) -> RaftMembership {
    let voters = voters.iter().map(|set| set.iter().copied().collect()).collect();
    RaftMembership::new_with_defaults(voters, learners.iter().copied())
}

fn payloads() -> Vec<(&'static str, RaftPayload)> {
    vec![
        ("blank", RaftPayload::Blank),
        ("one command", commands(&[b"upsert"])),
        ("three commands, one empty", commands(&[b"a", b"", b"bc"])),
        ("sole voter", RaftPayload::Membership(membership(&[&[3]], &[]))),
        ("joint, with a learner", RaftPayload::Membership(membership(&[&[1, 2, 3], &[2, 3, 400]], &[9]))),
    ]
}

fn marks() -> Vec<(&'static str, Mark)> {
    let membership = StoredMembership::new(Some(id(0, 3, 0)), membership(&[&[3]], &[4]));
    vec![
        ("bookmark of nothing", Mark::default()),
        ("bookmark", Mark { applied: Some(id(7, 3, 1_000_000)), membership }),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

/// Entries are kept for ever: what is here was written by some version and must be read by every later one.
/// `REWRITE=1` adds what is new; a line that changes is a broken promise.
#[test]
fn golden_entries_and_bookmarks() {
    let mut lines = String::new();
    for (name, payload) in payloads() {
        let written = to_log(entry(payload.clone()));
        assert_eq!(from_log(written.clone()).unwrap(), entry(payload), "{name}");
        writeln!(lines, "{name}: {}", hex(&written.payload)).unwrap();
    }
    for (name, mark) in marks() {
        let written = mark.to_bookmark();
        assert_eq!(Mark::from_bookmark(&written).unwrap(), mark, "{name}");
        writeln!(lines, "{name}: {}", hex(&written.0)).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/replica/entries.txt");
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path, &lines).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), lines);
}

fn read_back(payload: Bytes) -> Result<RaftEntry, FormatError> {
    let log_id = annal_wal::LogId { term: Term(2), leader: 3, index: LogIndex(5) };
    from_log(annal_wal::Entry { id: log_id, payload })
}

#[test]
fn commands_cut_short_or_too_long_are_refused() {
    for (name, payload) in payloads() {
        let RaftPayload::Normal(_) = payload else { continue };
        let whole = to_log(entry(payload)).payload;
        for cut in 0..whole.len() {
            assert!(read_back(whole.slice(..cut)).is_err(), "{name} cut to {cut} bytes");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(
            read_back(longer.into()).unwrap_err().to_string().contains("after the last command"),
            "{name}"
        );
    }
}

#[test]
fn unknown_kinds_and_versions_are_refused() {
    assert!(read_back(Bytes::new()).is_err());
    assert!(read_back(Bytes::from_static(&[3])).unwrap_err().to_string().contains("unknown kind"));
    assert!(read_back(Bytes::from_static(&[0, 0])).is_err(), "a blank entry has no body");
    let newer = Bytes::from_static(&[2, 0x08, 2]);
    assert!(read_back(newer.clone()).unwrap_err().to_string().contains("version 2"));
    let bookmark = Bookmark(newer.slice(1..));
    assert!(Mark::from_bookmark(&bookmark).unwrap_err().to_string().contains("version 2"));
    assert!(Mark::from_bookmark(&Bookmark(Bytes::new())).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let bytes = Bytes::from(bytes);
        if let Ok(RaftEntry { payload: RaftPayload::Normal(commands), .. }) = read_back(bytes.clone()) {
            prop_assert_eq!(commands.iter().count(), commands.count());
        }
        let _ = Mark::from_bookmark(&Bookmark(bytes));
    }

    #[test]
    fn commands_come_back_as_they_were(
        given in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)
    ) {
        let given: Vec<Bytes> = given.into_iter().map(Bytes::from).collect();
        let written = to_log(entry(RaftPayload::Normal(Commands::gather(given.iter()))));
        let RaftPayload::Normal(commands) = from_log(written).unwrap().payload else { panic!() };
        prop_assert_eq!(commands.iter().collect::<Vec<_>>(), given);
    }
}
