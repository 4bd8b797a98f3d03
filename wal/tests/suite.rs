//! One suite for both segments: what the log promises, on the disk and in memory.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use annal_wal::{Error, GroupId, LogIndex, Term, Vote};
use workbench::{Place, append, entries, id, small};

on_both!(appended_entries_are_read_back_after_reopening, |place: Place| async move {
    let (log, report) = place.open(small());
    assert_eq!(report.groups, 0);
    let group = log.create_group(GroupId(7)).await.unwrap();
    for first in (1..200).step_by(10) {
        append(&group, entries(1, first..first + 10, 100)).await.unwrap();
    }
    let read = |from: u64, to: u64| group.read(LogIndex(from)..LogIndex(to), usize::MAX);
    assert_eq!(read(1, 201).await.unwrap(), entries(1, 1..201, 100));
    assert_eq!(read(50, 60).await.unwrap(), entries(1, 50..60, 100));
    assert_eq!(read(190, 300).await.unwrap(), entries(1, 190..201, 100));
    assert_eq!(group.read(LogIndex(3)..LogIndex(9), 1).await.unwrap(), entries(1, 3..4, 100));
    assert!(log.status().segments > 1, "the segments are small enough to roll");
    log.shutdown().await.unwrap();
    drop((group, log));

    let (log, report) = place.open(small());
    assert_eq!((report.groups, report.torn_bytes), (1, 0));
    let group = log.group(GroupId(7)).unwrap();
    let state = group.state();
    assert_eq!(
        (state.last, state.flushed, state.oldest),
        (Some(id(1, 200)), Some(LogIndex(200)), Some(LogIndex(1)))
    );
    assert_eq!(group.read(LogIndex(0)..LogIndex(999), usize::MAX).await.unwrap(), entries(1, 1..201, 100));
    append(&group, entries(2, 201..205, 10)).await.unwrap();
    assert_eq!(group.read(LogIndex(201)..LogIndex(999), usize::MAX).await.unwrap(), entries(2, 201..205, 10));
});

on_both!(truncation_is_ordered_before_the_append_that_follows, |place: Place| async move {
    let (log, _) = place.open(small());
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 5..40, 50)).await.unwrap();
    group.truncate_after(Some(LogIndex(20))).await.unwrap();
    assert_eq!(group.state().last, Some(id(1, 20)));
    append(&group, entries(3, 21..24, 50)).await.unwrap();
    let expected: Vec<_> = entries(1, 5..21, 50).into_iter().chain(entries(3, 21..24, 50)).collect();
    assert_eq!(group.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap(), expected);
    assert!(matches!(group.truncate_after(Some(LogIndex(24))).await, Err(Error::Gap { .. })));
    drop((group, log));

    let (log, _) = place.open(small());
    let group = log.group(GroupId(1)).unwrap();
    assert_eq!(group.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap(), expected);
    group.truncate_after(None).await.unwrap();
    assert_eq!(group.state().last, None);
    append(&group, entries(4, 1..3, 5)).await.unwrap();
    assert_eq!(group.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap(), entries(4, 1..3, 5));
});

on_both!(purged_entries_are_history, |place: Place| async move {
    let (log, _) = place.open(small());
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..31, 20)).await.unwrap();
    group.purge(id(1, 10)).await.unwrap();
    assert_eq!(group.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap(), entries(1, 11..31, 20));
    assert_eq!(group.history(LogIndex(4), usize::MAX).await.unwrap(), entries(1, 4..31, 20));
    assert_eq!(group.state().oldest, Some(LogIndex(1)));
    assert!(matches!(group.truncate_after(Some(LogIndex(9))).await, Err(Error::Gap { .. })));
    // A snapshot takes the group past its end: what lies before the hole is out of reach.
    group.purge(id(5, 100)).await.unwrap();
    assert_eq!(group.state().last, Some(id(5, 100)));
    assert!(group.read(LogIndex(0)..LogIndex(999), usize::MAX).await.unwrap().is_empty());
    append(&group, entries(5, 101..103, 5)).await.unwrap();
    assert!(matches!(group.history(LogIndex(4), 1).await, Err(Error::Gone { oldest: Some(LogIndex(101)) })));
    drop((group, log));

    let (log, _) = place.open(small());
    let group = log.group(GroupId(1)).unwrap();
    let state = group.state();
    assert_eq!(
        (state.purged, state.last, state.oldest),
        (Some(id(5, 100)), Some(id(5, 102)), Some(LogIndex(101)))
    );
    assert_eq!(group.read(LogIndex(0)..LogIndex(999), usize::MAX).await.unwrap(), entries(5, 101..103, 5));
});

on_both!(votes_and_commits_are_remembered, |place: Place| async move {
    let (log, _) = place.open(small());
    let group = log.create_group(GroupId(1)).await.unwrap();
    let vote = Vote { term: Term(9), node: 4, committed: true };
    group.save_vote(vote).await.unwrap();
    append(&group, entries(9, 0..3, 20)).await.unwrap();
    group.save_committed(Some(id(9, 1))).await.unwrap();
    log.shutdown().await.unwrap();
    assert!(matches!(group.save_vote(vote).await, Err(Error::Closed)));
    drop((group, log));
    let (log, _) = place.open(small());
    let state = log.group(GroupId(1)).unwrap().state();
    assert_eq!((state.vote, state.committed), (Some(vote), Some(id(9, 1))));
});

on_both!(groups_come_and_go, |place: Place| async move {
    let (log, _) = place.open(small());
    for number in 0..5 {
        let group = log.create_group(GroupId(number)).await.unwrap();
        append(&group, entries(1, 1..10, 30)).await.unwrap();
    }
    assert!(matches!(log.create_group(GroupId(3)).await, Err(Error::GroupExists(GroupId(3)))));
    let gone = log.group(GroupId(3)).unwrap();
    log.drop_group(GroupId(3)).await.unwrap();
    assert!(matches!(append(&gone, entries(1, 10..11, 1)).await, Err(Error::UnknownGroup(GroupId(3)))));
    assert!(matches!(log.drop_group(GroupId(3)).await, Err(Error::UnknownGroup(GroupId(3)))));
    drop((gone, log));
    let (log, _) = place.open(small());
    assert_eq!(log.groups(), [0, 1, 2, 4].map(GroupId));
    let group = log.group(GroupId(4)).unwrap();
    assert_eq!(group.read(LogIndex(0)..LogIndex(99), usize::MAX).await.unwrap(), entries(1, 1..10, 30));
});

on_both!(what_does_not_follow_is_refused_with_no_effect, |place: Place| async move {
    let (log, _) = place.open(small());
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 1..5, 10)).await.unwrap();
    assert!(matches!(append(&group, entries(1, 6..7, 10)).await, Err(Error::Gap { .. })));
    assert!(matches!(append(&group, entries(1, 4..7, 10)).await, Err(Error::Gap { .. })));
    let mut holed = entries(1, 5..9, 10);
    holed.remove(1);
    assert!(matches!(append(&group, holed).await, Err(Error::Gap { .. })));
    let huge = entries(1, 5..6, small().segment_bytes as usize);
    assert!(matches!(append(&group, huge).await, Err(Error::TooLarge { .. })));
    assert_eq!(group.state().last, Some(id(1, 4)));
    let largest = small().segment_bytes as usize - 200;
    append(&group, entries(1, 5..6, largest)).await.unwrap();
    // Far more than one batch and one segment in one call.
    append(&group, entries(1, 6..300, 1000)).await.unwrap();
    assert_eq!(group.read(LogIndex(6)..LogIndex(300), usize::MAX).await.unwrap(), entries(1, 6..300, 1000));
});

on_both!(flushed_never_counts_what_was_truncated, |place: Place| async move {
    let (log, _) = place.open(annal_wal::Options { hot_bytes_max: 1 << 20, ..small() });
    let group = log.create_group(GroupId(1)).await.unwrap();
    append(&group, entries(1, 5..21, 10)).await.unwrap();
    assert_eq!(group.state().flushed, Some(LogIndex(20)));
    let (told, flushed) = tokio::sync::oneshot::channel();
    group.truncate_after(Some(LogIndex(14))).await.unwrap();
    assert_eq!((group.state().flushed, group.state().submitted), (Some(LogIndex(14)), Some(LogIndex(14))));
    let seen = group.clone();
    let state = move |_| told.send(seen.state().flushed).unwrap();
    group.append(entries(2, 15..18, 10), state).await.unwrap();
    assert!(group.state().flushed == Some(LogIndex(14)) || group.state().flushed == Some(LogIndex(17)));
    assert_eq!(flushed.await.unwrap(), Some(LogIndex(17)), "told after it is on the disk");
    let state = group.state();
    assert_eq!((state.oldest, state.last), (Some(LogIndex(5)), Some(id(2, 17))));
});
