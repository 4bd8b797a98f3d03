//! The bytes on the disk, pinned: the anchor, a segment with the segment library's own layout around our frames, a seal.
//!
//! `REWRITE=1 cargo test -p annal-wal --test golden` writes the files anew; the change is then reviewed as code, together
//! with `docs/FORMATS.md`.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use annal_wal::{GroupId, Log, LogIndex, MemoryDisk, Options, Term, Vote, verify};
use workbench::{append, entries, id};

const STORE: u64 = 0x0123_4567_89ab_cdef;
const SEGMENT_BYTES: u64 = 4096;

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES,
        free_bytes_min: 0,
        // Frames only where the script makes them.
        idle_mark: Duration::from_secs(3600),
        ..Options::default()
    }
}

/// The anchor by the table in FORMATS.md, independent of the code that writes it.
fn anchor() -> Vec<u8> {
    let mut bytes = b"ANLA".to_vec();
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(STORE.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// One record of each kind but `again`, one frame each but for `committed`, which rides along; then a second segment.
async fn script(log: &Log) {
    let group = log.create_group(GroupId(3)).await.unwrap();
    group.save_vote(Vote { term: Term(2), node: 9, committed: true }).await.unwrap();
    append(&group, entries(2, 1..4, 20)).await.unwrap();
    group.save_committed(Some(id(2, 2))).await.unwrap();
    append(&group, entries(2, 4..5, 0)).await.unwrap();
    let commits = log.status().commits;
    group.truncate_after(Some(LogIndex(3))).await.unwrap();
    // It does not wait for its fsync; the script does, so that it gets a frame of its own.
    while log.status().commits == commits {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    group.purge(id(2, 1)).await.unwrap();
    log.create_group(GroupId(4)).await.unwrap();
    log.drop_group(GroupId(4)).await.unwrap();
    append(&group, entries(5, 4..5, 3500)).await.unwrap();
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn hex(bytes: &[u8]) -> String {
    let line = |(at, bytes): (usize, &[u8])| {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:06x}  {}\n", at * 16, bytes.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let words = text.lines().flat_map(|line| line.split_whitespace().skip(1));
    words.map(|word| u8::from_str_radix(word, 16).unwrap()).collect()
}

fn pinned(name: &str, bytes: &[u8]) {
    if std::env::var("REWRITE").is_ok() {
        fs::write(golden(name), hex(bytes)).unwrap();
    }
    let expected = fs::read_to_string(golden(name)).unwrap();
    assert_eq!(hex(bytes), expected, "{name} changed: is old data still read?");
}

/// Without the zeroes at the end.
fn used(mut bytes: Vec<u8>) -> Vec<u8> {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    bytes
}

/// A seal tells when it was made; that and the crc over it are left out.
fn timeless(mut seal: Vec<u8>) -> Vec<u8> {
    seal[56..64].fill(0);
    let crc = seal.len() - 4;
    seal[crc..].fill(0);
    seal
}

#[tokio::test]
async fn bytes_are_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("anchor"), anchor()).unwrap();
    let (log, _) = Log::open(folder.path(), options()).unwrap();
    script(&log).await;
    log.shutdown().await.unwrap();
    drop(log);
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let segment = read("000000000001/wal-1");
    assert_eq!(segment.len() as u64, SEGMENT_BYTES);
    pinned("anchor.hex", &read("anchor"));
    pinned("segment.hex", &used(segment));
    pinned("seal.hex", &timeless(read("000000000001/seal")));
    assert!(verify(folder.path()).unwrap().is_intact());
}

/// What an older build wrote is read.
#[tokio::test]
async fn golden_bytes_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| unhex(&fs::read_to_string(golden(name)).unwrap());
    let mut segment = read("segment.hex");
    segment.resize(SEGMENT_BYTES as usize, 0);
    fs::write(folder.path().join("anchor"), read("anchor.hex")).unwrap();
    fs::create_dir(folder.path().join("000000000001")).unwrap();
    fs::write(folder.path().join("000000000001/wal-1"), segment).unwrap();
    let mut seal = read("seal.hex");
    let crc = seal.len() - 4;
    let hash = crc32fast::hash(&seal[..crc]);
    seal[crc..].copy_from_slice(&hash.to_le_bytes());
    for with_seal in [true, false] {
        let path = folder.path().join("000000000001/seal");
        match with_seal {
            true => fs::write(&path, &seal).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        assert!(verify(folder.path()).unwrap().is_intact());
        let (log, report) = Log::open(folder.path(), options()).unwrap();
        assert_eq!((report.scanned_segments, report.groups), (u64::from(!with_seal), 1));
        let group = log.group(GroupId(3)).unwrap();
        let state = group.state();
        assert_eq!(state.vote, Some(Vote { term: Term(2), node: 9, committed: true }));
        assert_eq!(
            (state.committed, state.purged, state.last),
            (Some(id(2, 2)), Some(id(2, 1)), Some(id(2, 3)))
        );
        assert_eq!(group.history(LogIndex(1), usize::MAX).await.unwrap(), entries(2, 1..4, 20));
        assert_eq!(log.groups(), [GroupId(3)]);
    }
}

/// The segment in memory stands for the one on disk in every other test: it must write the same bytes.
#[tokio::test]
async fn both_segments_write_the_same_bytes() {
    let disk = MemoryDisk::new(1 << 20);
    let (log, _) = Log::open_in_memory(disk.clone(), options()).unwrap();
    script(&log).await;
    log.shutdown().await.unwrap();
    let memory = disk.bytes(1).unwrap();
    let segment = unhex(&fs::read_to_string(golden("segment.hex")).unwrap());
    let memory = used(memory);
    assert_eq!(memory.len(), segment.len());
    // The log's number is another one, so crcs differ: those of the header (37..41), of each entry (its crc32c) and
    // of each frame (bytes 16..28 of it). All else is equal, and both are checked whole by `verify`.
    let mut at = 41;
    let mut blank: Vec<usize> = (13..21).chain(37..41).collect();
    while at < segment.len() {
        let chunk = u32::from_le_bytes(segment[at + 10..at + 14].try_into().unwrap()) as usize;
        blank.extend((at + 14 + 16)..(at + 14 + 28));
        blank.extend((at + 14 + chunk)..(at + 14 + chunk + 4));
        at += 14 + chunk + 5;
    }
    let without = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().enumerate().map(|(at, byte)| if blank.contains(&at) { 0 } else { *byte }).collect()
    };
    assert_eq!(hex(&without(&memory)), hex(&without(&segment)));
    assert!(annal_wal::verify_in_memory(&disk).unwrap().is_intact());
}
