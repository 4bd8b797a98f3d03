//! Every byte of a small sealed segment is flipped once: each flip is found and placed.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use annal_wal::{Error, GroupId, Log, LogIndex, MemoryDisk, Options, dump, verify, verify_in_memory};
use workbench::{append, entries, id, small};

fn options() -> Options {
    Options { segment_bytes: 4096, batch_bytes_max: 1024, hot_bytes_max: 0, ..small() }
}

/// A log of a few sealed segments, stopped.
async fn sealed() -> MemoryDisk {
    let disk = MemoryDisk::new(1 << 20);
    let (log, _) = Log::open_in_memory(disk.clone(), options()).unwrap();
    for number in 1..4 {
        log.create_group(GroupId(number)).await.unwrap();
    }
    for index in 1..25 {
        for number in 1..4 {
            let group = log.group(GroupId(number)).unwrap();
            append(&group, entries(1, index..index + 1, 100)).await.unwrap();
        }
    }
    log.shutdown().await.unwrap();
    assert!(log.status().newest_segment >= 3);
    assert!(verify_in_memory(&disk).unwrap().is_intact());
    disk
}

/// Where the entries of a segment lie: after a header of 41 bytes, 14 bytes, a chunk, 5 bytes, until a zero.
fn places(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut at = 41;
    let mut places = Vec::new();
    while segment[at] == 1 {
        let chunk = u32::from_le_bytes(segment[at + 10..at + 14].try_into().unwrap()) as usize;
        places.push(at..at + 14 + chunk + 5);
        at += 14 + chunk + 5;
    }
    places
}

#[tokio::test]
async fn every_flip_in_a_sealed_segment_is_placed() {
    let disk = sealed().await;
    let bytes = disk.bytes(2).unwrap();
    let places = places(&bytes);
    assert!(places.len() > 5);
    for at in 0..places.last().unwrap().end {
        for mask in [1, 0x80, 0xff] {
            assert!(disk.flip(2, at as u64, mask));
            let report = verify_in_memory(&disk).unwrap();
            let found = report.damage.iter().chain(&report.envelopes).next();
            let Some(found) = found else {
                // A one that became zero around the last frame looks as if a crash had cut the entry off there.
                let last = places.last().unwrap();
                let around =
                    (last.start..last.start + 14).contains(&at) || (last.end - 5..last.end).contains(&at);
                assert!(around && report.torn[0].0 == 2, "the flip of {mask:#x} at {at} was not found");
                disk.flip(2, at as u64, mask);
                continue;
            };
            let entry = places.iter().find(|place| place.contains(&at)).cloned().unwrap_or(0..41);
            assert_eq!(found.segment, 2, "{found:?} for {at}");
            assert!(entry.contains(&(found.offset as usize)), "{found:?} for {at} in {entry:?}");
            assert!(found.offset <= at as u64, "{found:?} for {at}");
            // All but the envelopes and the file's header belongs to an entry, which is named.
            let ours = entry.start > 0 && (entry.start + 14..entry.end - 5).contains(&at);
            assert_eq!(found.group.is_some() && found.index.is_some(), ours, "{found:?} for {at}");
            disk.flip(2, at as u64, mask);
        }
    }
    assert!(verify_in_memory(&disk).unwrap().is_intact());
}

#[tokio::test]
async fn every_flip_in_a_seal_is_found_and_costs_a_scan() {
    let disk = sealed().await;
    let seal = disk.seal(2).unwrap();
    for at in 0..seal.len() {
        let mut flipped = seal.clone();
        flipped[at] ^= 0x10;
        disk.set_seal(2, Some(flipped));
        let report = verify_in_memory(&disk).unwrap();
        assert_eq!(report.damage.first().map(|found| (found.segment, found.offset)), Some((2, 0)), "{at}");
    }
    let (log, report) = Log::open_in_memory(disk.clone(), options()).unwrap();
    // The one that was being written has its seal since it was closed, or is scanned as well.
    assert!(report.scanned_segments >= 1 && report.damage.is_empty());
    for number in 1..4 {
        let group = log.group(GroupId(number)).unwrap();
        let all = group.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap();
        assert_eq!(all, entries(1, 1..25, 100));
    }
    assert_eq!(disk.seal(2).map(|rebuilt| rebuilt.len()), Some(seal.len()), "the seal is made anew");
}

#[tokio::test]
async fn a_damaged_entry_is_reported_and_the_others_are_read() {
    let disk = sealed().await;
    let bytes = disk.bytes(1).unwrap();
    // The payload of entry 2 of group 2.
    let payload = bytes.windows(4).enumerate().filter(|(_, window)| *window == b"1.2.").nth(1).unwrap().0;
    disk.flip(1, payload as u64 + 30, 4);
    let (log, _) = Log::open_in_memory(disk.clone(), options()).unwrap();
    let group = log.group(GroupId(2)).unwrap();
    let error = group.read(LogIndex(2)..LogIndex(3), 1).await.unwrap_err();
    let Error::Corrupt { segment, offset, group: Some(GroupId(2)), index: Some(LogIndex(2)), .. } = error
    else {
        panic!("{error}")
    };
    assert_eq!((segment, offset), (1, payload as u64 - 40));
    assert_eq!(group.read(LogIndex(3)..LogIndex(9), usize::MAX).await.unwrap(), entries(1, 3..9, 100));
    // The slow look at sealed segments finds it too.
    let mut damage = log.damage();
    let found = damage.wait_for(|found| !found.is_empty()).await.unwrap()[0].clone();
    assert_eq!((found.segment, found.group, found.index), (1, Some(GroupId(2)), Some(LogIndex(2))));
    assert_eq!(log.status().damaged, 1);
    drop((group, log, damage));

    // Without its seal the segment has to be scanned, but the next seal knows how things stand: only what is lost is
    // lost, and it is named.
    disk.set_seal(1, None);
    let (log, report) = Log::open_in_memory(disk.clone(), options()).unwrap();
    assert!(
        report.damage.iter().any(|found| found.group == Some(GroupId(2)) && found.index == Some(LogIndex(2)))
    );
    let unharmed = log.group(GroupId(1)).unwrap();
    assert_eq!(unharmed.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap(), entries(1, 1..25, 100));
    drop((unharmed, log));

    // Below every group's purge it is history damage: the replica is kept.
    let disk = sealed().await;
    let (log, _) = Log::open_in_memory(disk.clone(), options()).unwrap();
    for number in 1..4 {
        log.group(GroupId(number)).unwrap().purge(id(1, 24)).await.unwrap();
    }
    log.shutdown().await.unwrap();
    drop(log);
    disk.flip(1, payload as u64 + 30, 4);
    disk.set_seal(1, None);
    let (log, report) = Log::open_in_memory(disk, options()).unwrap();
    assert!(report.damage.iter().all(|found| found.why != "a live entry is lost"), "{:?}", report.damage);
    assert_eq!(log.group(GroupId(2)).unwrap().state().last, Some(id(1, 24)));
}

#[tokio::test]
async fn missing_segments_and_a_flipped_anchor_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), options()).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..40, 300)).await.unwrap();
    assert!(matches!(Log::open(folder.path(), options()), Err(Error::Locked { .. })));
    assert!(matches!(verify(folder.path()), Err(Error::Locked { .. })));
    log.shutdown().await.unwrap();
    let mut records = 0;
    let report = dump(folder.path(), |record| records += u64::from(record.group == GroupId(1))).unwrap();
    assert!(report.is_intact());
    assert_eq!((records, report.entries), (report.records, 39));

    let anchor = std::fs::read(folder.path().join("anchor")).unwrap();
    for at in 0..anchor.len() {
        let mut flipped = anchor.clone();
        flipped[at] ^= 0x40;
        std::fs::write(folder.path().join("anchor"), flipped).unwrap();
        assert!(matches!(verify(folder.path()), Err(Error::Anchor { .. })), "{at}");
        assert!(matches!(Log::open(folder.path(), options()), Err(Error::Anchor { .. })), "{at}");
    }
    std::fs::remove_file(folder.path().join("anchor")).unwrap();
    let gone = Log::open(folder.path(), options()).err().unwrap();
    assert_eq!(gone.kind(), annal_wal::ErrorKind::Corrupt, "{gone}");
    std::fs::write(folder.path().join("anchor"), anchor).unwrap();

    std::fs::rename(folder.path().join("000000000002"), folder.path().join("aside")).unwrap();
    let report = verify(folder.path()).unwrap();
    assert_eq!(report.damage[0].segment, 2);
    assert!(matches!(Log::open(folder.path(), options()), Err(Error::Corrupt { segment: 2, .. })));
    std::fs::rename(folder.path().join("aside"), folder.path().join("000000000002")).unwrap();
    assert!(verify(folder.path()).unwrap().is_intact());
}

/// What a crash leaves is a file of full length: one that lost its end had lost acknowledged entries with it, and would
/// else pass for torn.
#[tokio::test]
async fn a_file_that_lost_its_end_is_damaged_not_torn() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), Options { segment_bytes: 1 << 20, ..options() }).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..40, 300)).await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    std::fs::create_dir(crashed.path().join("000000000001")).unwrap();
    for file in ["anchor", "000000000001/wal-1"] {
        std::fs::copy(folder.path().join(file), crashed.path().join(file)).unwrap();
    }
    let newest = crashed.path().join("000000000001/wal-1");
    let whole = std::fs::read(&newest).unwrap();
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for bytes in [written / 2, written, whole.len() - 1] {
        std::fs::write(&newest, &whole[..bytes]).unwrap();
        let error = Log::open(crashed.path(), options()).err().unwrap();
        assert!(matches!(error, Error::Corrupt { segment: 1, .. }), "{bytes} bytes: {error}");
        assert!(!verify(crashed.path()).unwrap().is_intact());
    }
    // Only its zeroes: as a crash in the middle of a write would.
    let torn = [&whole[..written / 2], &vec![0; whole.len() - written / 2]].concat();
    std::fs::write(&newest, torn).unwrap();
    let (_log, recovery) = Log::open(crashed.path(), options()).unwrap();
    assert_eq!(recovery.damage, []);
}
