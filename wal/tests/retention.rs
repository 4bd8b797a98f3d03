//! What is thrown away, and what is not.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};

use annal_wal::{Error, GroupId, Log, LogIndex, MemoryDisk, Options, Term, Vote, verify};
use workbench::{append, entries, id, small};

const ALL: LogIndex = LogIndex(u64::MAX);

/// Bytes a folder takes on the disk. Files may go while it looks.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(found) = std::fs::read_dir(path) else { return 0 };
    found
        .flatten()
        .map(|item| match item.metadata() {
            Ok(data) if data.is_dir() => disk_bytes(&item.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn five_hundred_idle_groups_do_not_pin_the_log() {
    const IDLE: u32 = 500;
    let segment = 64 << 10;
    let options = Options {
        segment_bytes: segment,
        batch_bytes_max: 32 << 10,
        retention_bytes: 16 * segment,
        hot_bytes_max: 16 << 10,
        ..small()
    };
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), options.clone()).unwrap();
    let vote = |number: u32| Vote { term: Term(7), node: u64::from(number), committed: true };
    let mut setting_up = tokio::task::JoinSet::new();
    for number in 1..=IDLE {
        let log = log.clone();
        setting_up.spawn(async move {
            let group = log.create_group(GroupId(number)).await.unwrap();
            group.save_vote(vote(number)).await.unwrap();
            append(&group, entries(7, 1..3, 10)).await.unwrap();
        });
    }
    setting_up.join_all().await;
    let busy = log.create_group(GroupId(0)).await.unwrap();
    let (mut next, mut most) = (1, 0);
    while log.status().newest_segment < 52 {
        append(&busy, entries(7, next..next + 20, 1000)).await.unwrap();
        next += 20;
        if next % 200 == 1 {
            busy.purge(id(7, next - 100)).await.unwrap();
        }
        // Retention works beside the writer; give it the time a writer of full-size segments would.
        tokio::time::sleep(Duration::from_millis(3)).await;
        most = most.max(disk_bytes(folder.path()));
    }
    let mut patience = 300;
    while log.status().bytes > options.retention_bytes {
        patience -= 1;
        assert!(patience > 0, "{:?}", log.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = log.status();
    let at_rest = disk_bytes(folder.path());
    println!(
        "{} segments written, {} kept, {} KiB on the disk at rest, {} KiB at most, target {} KiB",
        status.newest_segment,
        status.segments,
        at_rest >> 10,
        most >> 10,
        options.retention_bytes >> 10
    );
    // Side files come on top, and at the worst moment a few segments that wait for the retention thread.
    assert!(at_rest <= options.retention_bytes + 2 * segment);
    assert!(most <= 2 * options.retention_bytes);
    assert!(status.oldest_segment > 30);
    log.shutdown().await.unwrap();
    drop((busy, log));

    let (log, report) = Log::open(folder.path(), options).unwrap();
    assert_eq!((report.groups, report.damage), (u64::from(IDLE) + 1, vec![]));
    for number in 1..=IDLE {
        let group = log.group(GroupId(number)).unwrap();
        let state = group.state();
        assert_eq!((state.vote, state.purged, state.last), (Some(vote(number)), None, Some(id(7, 2))));
        assert_eq!(group.read(LogIndex(0)..ALL, usize::MAX).await.unwrap(), entries(7, 1..3, 10));
    }
    let busy = log.group(GroupId(0)).unwrap();
    let live_from = busy.state().purged.unwrap().index.0 + 1;
    assert_eq!(busy.read(LogIndex(0)..ALL, usize::MAX).await.unwrap(), entries(7, live_from..next, 1000));
    drop((busy, log));
    assert!(verify(folder.path()).unwrap().is_intact());
}

async fn fill(log: &Log, group: &annal_wal::GroupLog, segments: u64) -> u64 {
    let until = log.status().newest_segment + segments;
    while log.status().newest_segment < until {
        let next = group.state().last.map_or(1, |last| last.index.0 + 1);
        append(group, entries(1, next..next + 4, 900)).await.unwrap();
    }
    group.state().last.unwrap().index.0
}

async fn until(mut holds: impl FnMut() -> bool, what: &str) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain: {what}");
}

#[tokio::test]
async fn a_big_group_is_asked_to_purge() {
    let options = Options { retention_bytes: 6 * small().segment_bytes, ..small() };
    let (log, _) = Log::open_in_memory(MemoryDisk::new(1 << 30), options.clone()).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    fill(&log, &group, 12).await;
    let mut wanted = log.purge_wanted();
    let upto = wanted.wait_for(|wanted| !wanted.is_empty()).await.unwrap()[&GroupId(1)];
    let late = tokio::time::timeout(Duration::from_secs(5), async {
        let mut late = log.purge_wanted();
        late.changed().await.unwrap();
        late.borrow()[&GroupId(1)]
    });
    assert_eq!(late.await, Ok(upto), "who asks later is told too");
    assert_eq!(log.status().oldest_segment, 1, "live entries are never thrown away");
    let last = group.state().last.unwrap();
    assert!(upto < last.index);
    group.purge(id(1, last.index.0 - 4)).await.unwrap();
    wanted.wait_for(|wanted| wanted.is_empty()).await.unwrap();
    until(|| log.status().bytes <= options.retention_bytes, "the log shrinks to its target").await;
    let oldest = group.state().oldest.unwrap();
    assert!(
        matches!(group.history(LogIndex(1), 1).await, Err(Error::Gone { oldest: Some(at) }) if at == oldest)
    );
    assert_eq!(group.history(oldest, usize::MAX).await.unwrap(), entries(1, oldest.0..last.index.0 + 1, 900));
}

#[tokio::test]
async fn readers_of_history_hold_segments_up_to_the_cap() {
    let segment = small().segment_bytes;
    let options = Options { retention_bytes: 4 * segment, history_bytes_max: 14 * segment, ..small() };
    let (log, _) = Log::open_in_memory(MemoryDisk::new(1 << 30), options).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    log.set_history_floor(GroupId(1), Some(LogIndex(1)));
    let last = fill(&log, &group, 9).await;
    group.purge(id(1, last)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(log.status().oldest_segment, 1, "a reader owes it");
    assert_eq!(group.history(LogIndex(1), usize::MAX).await.unwrap(), entries(1, 1..last + 1, 900));

    let last = fill(&log, &group, 9).await;
    group.purge(id(1, last)).await.unwrap();
    until(|| log.status().bytes <= 14 * segment, "the cap holds").await;
    assert!(log.status().bytes > 4 * segment);
    log.set_history_floor(GroupId(1), None);
    until(|| log.status().bytes <= 4 * segment, "the reader is gone").await;
}

#[tokio::test]
async fn old_segments_go_by_age() {
    let options = Options { retention_age: Some(Duration::from_millis(50)), ..small() };
    let (log, _) = Log::open_in_memory(MemoryDisk::new(1 << 30), options).unwrap();
    let group = log.create_group(GroupId(1)).await.unwrap();
    let last = fill(&log, &group, 5).await;
    group.purge(id(1, last)).await.unwrap();
    until(|| log.status().oldest_segment >= 4, "everything but the last used ones goes").await;
    assert_eq!(group.state().purged, Some(id(1, last)));
}

/// Once, entries that retention had taken while they were still hot stayed in memory for ever, and so did all after
/// them.
#[tokio::test]
async fn hot_entries_that_retention_took_cool_like_others() {
    let segment = 64 << 10;
    let hot = 512 << 10;
    let options = Options {
        segment_bytes: segment,
        batch_bytes_max: 32 << 10,
        retention_bytes: 2 * segment,
        hot_bytes_max: hot,
        ..small()
    };
    let (log, _) = Log::open_in_memory(MemoryDisk::new(64 << 20), options).unwrap();
    let group = log.create_group(GroupId(0)).await.unwrap();
    let mut next = 1;
    while log.status().newest_segment < 60 {
        append(&group, entries(7, next..next + 20, 1000)).await.unwrap();
        next += 20;
        group.purge(id(7, next - 5)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let status = log.status();
    assert!(status.hot_bytes <= hot as u64 + 32 * 1024, "{} hot bytes, at most {hot}", status.hot_bytes);
    assert!(group.state().oldest > Some(LogIndex(1)), "{:?}", group.state());
}
