//! A disk that fails, lies, hangs, fills up and loses power.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use annal_wal::{Effect, Error, ErrorKind, Fault, GroupId, Log, LogIndex, MemoryDisk, Options};
use workbench::{append, entries, small};

const ALL: LogIndex = LogIndex(u64::MAX);

/// Writes entries 1..=20 that are acknowledged, then breaks the disk under entry 21 and those that follow.
async fn break_with(fault: Fault, options: Options) -> MemoryDisk {
    let disk = MemoryDisk::new(1 << 30);
    let (log, _) = Log::open_in_memory(disk.clone(), options).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    let other = log.create_group(GroupId(2)).await.unwrap();
    append(&group, entries(1, 1..21, 50)).await.unwrap();
    disk.fail_commit(0, fault);
    let told = Arc::new(AtomicUsize::new(0));
    let mut queued = 0;
    for index in 21..30 {
        let told = told.clone();
        let done = move |outcome: Result<(), Error>| {
            assert!(matches!(outcome, Err(Error::Poisoned { .. })));
            told.fetch_add(1, Ordering::SeqCst);
        };
        match group.append(entries(1, index..index + 1, 50), done).await {
            Ok(()) => queued += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Poisoned),
        }
    }
    let mut failure = log.failure();
    failure.wait_for(Option::is_some).await.unwrap();
    let error = append(&other, entries(1, 1..2, 5)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Poisoned, Effect::Unknown));
    assert!(log.create_group(GroupId(3)).await.is_err());
    assert!(log.shutdown().await.is_err());
    assert_eq!(told.load(Ordering::SeqCst), queued, "everyone who waited is told once");
    disk
}

/// What was acknowledged is there; what was not may be, from the front.
async fn check(disk: &MemoryDisk, options: Options) {
    let (log, report) = Log::open_in_memory(disk.clone(), options).unwrap();
    assert_eq!(report.damage, []);
    let group = log.group(GroupId(1)).unwrap();
    let found = group.read(LogIndex(0)..ALL, usize::MAX).await.unwrap();
    assert!((20..30).contains(&found.len()), "{} entries", found.len());
    assert_eq!(found, entries(1, 1..1 + found.len() as u64, 50));
    let next = found.len() as u64 + 1;
    append(&group, entries(2, next..next + 3, 50)).await.unwrap();
    drop((group, log));
    let (log, _) = Log::open_in_memory(disk.clone(), small()).unwrap();
    let group = log.group(GroupId(1)).unwrap();
    assert_eq!(group.read(LogIndex(next)..ALL, usize::MAX).await.unwrap(), entries(2, next..next + 3, 50));
}

#[tokio::test]
async fn power_fails_during_a_commit() {
    for bytes in [0, 1, 13, 14, 20, 41, 42, 60, 100, 110, 120, 130, 140, 150, 160, 1000] {
        let disk = break_with(Fault::Torn { bytes }, small()).await;
        disk.crash();
        check(&disk, small()).await;
    }
    for tail_bytes in [0, 1, 5, 6, 30, 90] {
        let disk = break_with(Fault::Zeroed { tail_bytes }, small()).await;
        disk.crash();
        check(&disk, small()).await;
    }
    let disk = break_with(Fault::Garbled, small()).await;
    disk.crash();
    check(&disk, small()).await;
}

#[tokio::test]
async fn a_failed_write_or_panic_stops_the_log() {
    for fault in [Fault::Eio, Fault::Panic] {
        for machine_stays in [true, false] {
            let disk = break_with(fault, small()).await;
            if machine_stays {
                disk.restart_process()
            } else {
                disk.crash()
            }
            check(&disk, small()).await;
        }
    }
}

/// After a failed fsync the cache shows bytes that the disk does not hold. A log that believed it would build on them.
#[tokio::test]
async fn a_failed_fsync_is_not_believed_after_a_restart() {
    let disk = break_with(Fault::LostFsync, small()).await;
    disk.restart_process();
    let (log, report) = Log::open_in_memory(disk.clone(), small()).unwrap();
    assert_eq!(report.torn_bytes, 0, "the cache was dropped before it was read");
    let group = log.group(GroupId(1)).unwrap();
    assert_eq!(group.state().last.unwrap().index, LogIndex(20));
    drop((group, log));
    disk.crash();
    check(&disk, small()).await;
}

#[tokio::test]
async fn a_hanging_write_is_told_by_the_watchdog() {
    let options = Options { watchdog: Duration::from_millis(60), ..small() };
    let disk = break_with(Fault::Slow(Duration::from_millis(300)), options.clone()).await;
    disk.restart_process();
    check(&disk, options).await;
}

/// A disk that acknowledges what it does not write: not noticed at the end of the log, but never taken for good when
/// something durable follows.
#[tokio::test]
async fn a_lost_write_under_a_later_one_is_damage() {
    let disk = MemoryDisk::new(1 << 30);
    let (log, _) = Log::open_in_memory(disk.clone(), small()).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..5, 50)).await.unwrap();
    disk.fail_commit(0, Fault::SilentlyLost);
    append(&group, entries(1, 5..6, 50)).await.unwrap();
    append(&group, entries(1, 6..7, 50)).await.unwrap();
    disk.crash();
    drop((group, log));
    let Err(Error::Corrupt { segment: 1, offset, .. }) = Log::open_in_memory(disk, small()) else {
        panic!("the hole was not noticed")
    };
    assert!(offset > 41);
}

/// The empty frame that is written when idle tells rot of the last acknowledged frame from a torn end.
#[tokio::test]
async fn rot_of_the_last_frame_is_not_taken_for_a_torn_end() {
    let disk = MemoryDisk::new(1 << 30);
    let (log, _) = Log::open_in_memory(disk.clone(), small()).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..2, 50)).await.unwrap();
    for _ in 0..1000 {
        if log.status().marks > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(log.status().marks > 0, "the last frame was never confirmed");
    drop((group, log));
    let bytes = disk.bytes(1).unwrap();
    let payload = bytes.windows(4).position(|window| window == b"1.1.").unwrap();
    assert!(disk.flip(1, payload as u64, 1));
    let Err(Error::Corrupt { segment: 1, offset, group, index, .. }) = Log::open_in_memory(disk, small())
    else {
        panic!("an acknowledged entry was dropped in silence")
    };
    assert_eq!((offset, group, index), (payload as u64 - 40, Some(GroupId(1)), Some(LogIndex(1))));
}

#[tokio::test]
async fn a_full_disk_turns_appends_away_and_recovers() {
    let segment = small().segment_bytes;
    let options = Options { free_bytes_min: 2 * segment, retention_bytes: 1 << 30, ..small() };
    let disk = MemoryDisk::new(12 * segment);
    let (log, _) = Log::open_in_memory(disk.clone(), options.clone()).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    let mut next = 1;
    let error = loop {
        match append(&group, entries(1, next..next + 1, 1000)).await {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
        assert!(next < 10_000, "the disk never filled up");
    };
    assert!(matches!(error, Error::Full { .. }));
    assert_eq!(error.effect(), Effect::None);
    assert_eq!(log.status().failure, None, "a full disk is no failure");
    // What frees space still works.
    group.purge(entries(1, next - 1..next, 0)[0].id).await.unwrap();
    disk.set_capacity_bytes(40 * segment);
    let mut patience = 200;
    while let Err(error) = append(&group, entries(1, next..next + 1, 1000)).await {
        assert!(matches!(error, Error::Full { .. }));
        patience -= 1;
        assert!(patience > 0, "space was never seen again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop((group, log));
    disk.crash();
    let (log, _) = Log::open_in_memory(disk, options).unwrap();
    let group = log.group(GroupId(1)).unwrap();
    assert_eq!(group.read(LogIndex(0)..ALL, usize::MAX).await.unwrap(), entries(1, next..next + 1, 1000));
    assert_eq!(group.history(LogIndex(1), usize::MAX).await.unwrap().len() as u64, next);
}

#[tokio::test]
async fn a_disk_that_others_fill_is_noticed_while_a_reader_asks_for_looks() {
    let disk = MemoryDisk::new(1 << 30);
    let (log, _) = Log::open_in_memory(disk.clone(), small()).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..9, 100)).await.unwrap();
    let before = log.status().free_bytes;
    disk.set_capacity_bytes(1 << 29);
    let reading = async {
        while log.status().free_bytes == before {
            for floor in 1..9 {
                log.set_history_floor(GroupId(1), Some(LogIndex(floor)));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("it is looked at");
    assert!(log.status().free_bytes < before);
}

/// A spent budget makes `append` wait, and a dropped wait leaves nothing behind.
#[tokio::test]
async fn the_queue_pushes_back() {
    let disk = MemoryDisk::new(1 << 30);
    let options = Options { queue_bytes_max: 4000, ..small() };
    let (log, _) = Log::open_in_memory(disk.clone(), options).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    disk.fail_commit(0, Fault::Slow(Duration::from_millis(150)));
    group.append(entries(1, 1..3, 1500), |outcome| outcome.unwrap()).await.unwrap();
    let waiting = group.append(entries(1, 3..5, 1500), |_| panic!("was never queued"));
    assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err(), "the budget was spent");
    assert_eq!(group.state().last.unwrap().index, LogIndex(2));
    append(&group, entries(1, 3..6, 1500)).await.unwrap();
    assert_eq!(group.read(LogIndex(0)..ALL, usize::MAX).await.unwrap(), entries(1, 1..6, 1500));
}
