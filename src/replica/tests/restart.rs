//! What is found again after a restart, and what is refused.

use super::{
    group::{Group, id, write},
    *,
};

#[tokio::test]
async fn acknowledged_commands_outlive_a_crash() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    for n in 1..=50 {
        put(&replica, command(n)).await;
    }
    let machine = crash(&disk, log, replica).await;
    assert_eq!(machine.position(), Position(0), "the machine had nothing on disk");

    let at = Instant::now();
    let (_log, replica) = open(&disk, machine).await;
    assert!(at.elapsed() < Duration::from_millis(300), "leads after {:?}", at.elapsed());
    assert_eq!(replica.machine().commands(), (1..=50).map(command).collect::<Vec<_>>());
    assert_eq!(put(&replica, command(51)).await, 51);
}

#[tokio::test]
async fn what_the_machine_had_on_disk_is_not_applied_again() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    for n in 1..=10 {
        put(&replica, command(n)).await;
    }
    replica.checkpoint(soon()).await.unwrap();
    for n in 11..=15 {
        put(&replica, command(n)).await;
    }
    let machine = crash(&disk, log, replica).await;
    assert_eq!(machine.position(), Position(10));
    let (_log, replica) = open(&disk, machine).await;
    assert_eq!(replica.machine().commands(), (1..=15).map(command).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_graceful_restart_finds_everything_in_the_machine() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    put(&replica, command(1)).await;
    let term = replica.status().term;
    replica.shutdown().await.unwrap();
    log.shutdown().await.unwrap();
    let machine = replica.machine().after_crash();
    assert_eq!(machine.position(), Position(1));
    drop((log, replica));
    disk.restart_process();
    let (_log, replica) = open(&disk, machine).await;
    assert!(replica.status().term > term, "a leader that restarts asks for a new term");
    assert_eq!(put(&replica, command(2)).await, 2);
}

#[tokio::test]
async fn a_real_disk_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Arc::new(Journal::default());
    for round in 0..3 {
        let (log, _) = Log::open(dir.path(), log_options()).unwrap();
        let group = match log.group(GROUP) {
            Some(group) => group,
            None => log.create_group(GROUP).await.unwrap(),
        };
        let replica = alone(options(), &log, group, machine).await.unwrap();
        for n in 1..=10 {
            assert_eq!(put(&replica, command(n)).await, round * 10 + n);
        }
        if round == 1 {
            replica.checkpoint(soon()).await.unwrap();
        }
        machine = replica.machine().after_crash();
        replica.shutdown().await.unwrap();
        drop(replica);
        log.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn checkpoints_purge_what_is_durable() {
    let disk = memory();
    let (_log, replica) = open(&disk, Arc::default()).await;
    for n in 1..=10 {
        put(&replica, command(n)).await;
    }
    let before = replica.status().ladder;
    assert_eq!((before.purged, before.durable), (None, None));
    replica.checkpoint(soon()).await.unwrap();
    let after = replica.status().ladder;
    assert_eq!(after.durable, before.applied);
    assert_eq!(after.checkpointed, before.applied);
    assert_eq!(after.purged, before.applied);
    assert_eq!(after.oldest, Some(LogIndex(0)), "history stays");
    assert_eq!(replica.machine().saved_position(), 10);
    // Nothing new: nothing to do.
    replica.checkpoint(soon()).await.unwrap();
    assert_eq!(replica.status().ladder, after);
}

#[tokio::test]
async fn checkpoints_happen_by_themselves() {
    let disk = memory();
    let (log, group) = open_log(&disk, log_options()).await;
    let mut options = options();
    options.checkpoint.every = Duration::from_millis(50);
    options.checkpoint.keep_entries = 5;
    let replica = alone(options, &log, group, Arc::new(Journal::default())).await.unwrap();
    for n in 1..=20 {
        put(&replica, command(n)).await;
    }
    let applied = replica.status().ladder.applied.unwrap();
    let deadline = soon();
    while replica.status().ladder.purged != Some(LogIndex(applied.0 - 5)) {
        assert!(Instant::now() < deadline, "{:?}", replica.status().ladder);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(replica.machine().saved_position(), 20);
}

#[tokio::test]
async fn a_group_that_pins_the_log_is_checkpointed_and_purged() {
    let disk = memory();
    let small = annal_wal::Options { segment_bytes: 64 << 10, retention_bytes: 256 << 10, ..log_options() };
    let (log, group) = open_log(&disk, small).await;
    let mut options = options();
    options.checkpoint = CheckpointLimits {
        every: Duration::MAX,
        bytes: u64::MAX,
        keep_entries: u64::MAX,
        keep_bytes: u64::MAX,
    };
    let replica = alone(options, &log, group, Arc::new(Journal::default())).await.unwrap();
    let deadline = soon();
    let mut n = 0;
    while replica.status().ladder.purged.is_none() || log.status().bytes > 512 << 10 {
        put(&replica, vec![7; 8 << 10].into()).await;
        n += 1;
        assert!(Instant::now() < deadline, "{:?} {} bytes", replica.status().ladder, log.status().bytes);
    }
    assert_eq!(replica.machine().position(), Position(n));
}

#[tokio::test]
async fn a_machine_that_was_lost_is_folded_again_from_history() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    for n in 1..=20 {
        put(&replica, command(n)).await;
        if n == 10 || n == 15 {
            replica.checkpoint(soon()).await.unwrap();
        }
    }
    assert!(replica.status().ladder.purged > Some(LogIndex(10)));
    crash(&disk, log, replica).await;
    // The machine's disk was lost; the log's was not.
    let (log, replica) = open(&disk, Arc::default()).await;
    assert_eq!(replica.machine().commands(), (1..=20).map(command).collect::<Vec<_>>());
    assert_eq!(put(&replica, command(21)).await, 21);
    // And from the middle of the history.
    let machine = crash(&disk, log, replica).await;
    let (_log, replica) = open(&disk, machine).await;
    assert_eq!(replica.machine().commands(), (1..=21).map(command).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_machine_behind_all_history_is_refused() {
    let small = || annal_wal::Options { retention_bytes: 2 << 20, hot_bytes_max: 8 << 20, ..log_options() };
    let disk = memory();
    let (log, group) = open_log(&disk, small()).await;
    let replica = alone(options(), &log, group, Arc::new(Journal::default())).await.unwrap();
    let deadline = soon();
    while replica.status().ladder.oldest.is_none_or(|oldest| oldest.0 == 0) {
        put(&replica, Bytes::from(vec![7; 200_000])).await;
        replica.checkpoint(soon()).await.unwrap();
        assert!(Instant::now() < deadline, "{:?} {:?}", replica.status().ladder, log.status());
    }
    crash(&disk, log, replica).await;
    // The machine's disk was lost, and the log no longer reaches back.
    let (log, group) = open_log(&disk, small()).await;
    let begins = group.state().oldest.unwrap();
    assert!(begins > LogIndex(0));
    let error = alone(options(), &log, group, Arc::new(Journal::default())).await.err().unwrap();
    assert!(matches!(error, ReplicaError::Gap { applied: None, oldest } if oldest == begins), "{error}");
    assert_eq!(error.kind(), crate::model::Kind::Corrupt);
}

/// What a crash leaves just after a snapshot of a later term was installed: entries of an older leader at the same
/// places.
#[tokio::test]
async fn entries_that_a_snapshot_superseded_are_dropped() {
    use crate::replica::entry::{RaftLeaderId, RaftLogId, RaftMembership, StoredMembership};
    let disk = memory();
    let (log, group) = open_log(&disk, log_options()).await;
    for index in 0..20 {
        let id = annal_wal::LogId { term: Term(1), leader: 1, index: LogIndex(index) };
        let entry = annal_wal::Entry { id, payload: Bytes::from_static(&[0]) };
        group.append(vec![entry], |result| result.unwrap()).await.unwrap();
    }
    let committed = annal_wal::LogId { term: Term(1), leader: 1, index: LogIndex(5) };
    group.save_committed(Some(committed)).await.unwrap();
    let vote = annal_wal::Vote { term: Term(3), node: 2, committed: true };
    group.save_vote(vote).await.unwrap();

    let applied = RaftLogId::new(RaftLeaderId { term: 3, node_id: 2 }, 12);
    let membership = RaftMembership::new_with_defaults(vec![[ME.0].into()], []);
    let mark = Mark { applied: Some(applied), membership: StoredMembership::new(Some(applied), membership) };
    let machine = Arc::new(Journal::default());
    machine.apply(vec![command(1)], mark.to_bookmark()).unwrap();
    machine.persist().unwrap();
    let replica = alone(options(), &log, group, machine).await.unwrap();
    assert_eq!(put(&replica, command(2)).await, 2);
    let ladder = replica.status().ladder;
    assert_eq!(ladder.purged, Some(LogIndex(12)), "{ladder:?}");
    assert_eq!(ladder.applied, Some(LogIndex(14)), "{ladder:?}");
}

#[tokio::test]
async fn a_machine_without_its_log_is_refused() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    put(&replica, command(1)).await;
    replica.checkpoint(soon()).await.unwrap();
    let machine = crash(&disk, log, replica).await;
    let (log, group) = open_log(&memory(), log_options()).await;
    let error = alone(options(), &log, group, machine).await.err().unwrap();
    assert!(matches!(error, ReplicaError::LogLost { .. }), "{error}");
}

/// What a sealed segment holds is not looked at when the log is opened.
#[tokio::test]
async fn an_entry_that_rots_in_a_sealed_segment_is_named_when_it_is_read() {
    let options = || annal_wal::Options { segment_bytes: 64 << 10, ..log_options() };
    let disk = memory();
    let (log, group) = open_log(&disk, options()).await;
    let replica = alone(super::options(), &log, group, Arc::default()).await.unwrap();
    for n in 0..200u8 {
        put(&replica, vec![n + 1; 1 << 10].into()).await;
    }
    let machine = crash(&disk, log, replica).await;
    let bytes = disk.bytes(1).unwrap();
    let at = bytes.windows(1 << 10).position(|window| window == [3; 1 << 10]).unwrap();
    assert!(disk.flip(1, at as u64, 1));
    let (log, group) = open_log(&disk, options()).await;
    let error = alone(super::options(), &log, group, machine).await.err().unwrap();
    assert!(matches!(error, ReplicaError::Log(annal_wal::Error::Corrupt { segment: 1, .. })), "{error}");
    assert_eq!(error.kind(), crate::model::Kind::Corrupt);
}

#[tokio::test]
async fn an_empty_group_waits_to_be_founded() {
    let (log, group) = open_log(&memory(), log_options()).await;
    let machine = Arc::new(Journal::default());
    let replica = Replica::open(options(), &log, group, machine, Arc::new(Nobody)).await.unwrap();
    assert_eq!(replica.status().role, Role::Learner);
    assert_eq!(replica.status().members, Members::default());
    let error = replica.propose(command(1), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::NotLeader { leader: None }), "{error}");

    let error = replica.found([ReplicaId(9)].into()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Options(_)), "{error}");
    replica.found([ME].into()).await.unwrap();
    assert_eq!(put(&replica, command(1)).await, 1);
    let members = replica.status().members;
    replica.found([ME, ReplicaId(4)].into()).await.unwrap();
    assert_eq!(replica.status().members, members, "a group is founded once");
    assert_eq!(put(&replica, command(2)).await, 2);
}

#[tokio::test]
async fn one_of_three_leads_nobody() {
    let (log, group) = open_log(&memory(), log_options()).await;
    let options = ReplicaOptions { heartbeat_ms: 10, election_ms: 70..100, ..options() };
    let machine = Arc::new(Journal::default());
    let replica = Replica::open(options, &log, group, machine, Arc::new(Nobody)).await.unwrap();
    replica.found([ME, ReplicaId(4), ReplicaId(5)].into()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = replica.status();
    assert_ne!(status.role, Role::Leader);
    assert_eq!(status.leader, None);
    let error = replica.propose(command(1), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::NotLeader { leader: None }), "{error}");
    assert_eq!((error.kind(), error.effect()), (crate::model::Kind::Unavailable, Effect::None));
    assert!(matches!(replica.read_index(soon()).await, Err(ReplicaError::NotLeader { .. })));
}

#[tokio::test]
async fn an_unknown_kind_of_entry_is_never_skipped() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    put(&replica, command(1)).await;
    let term = replica.status().term;
    let machine = crash(&disk, log, replica).await;
    let (log, group) = open_log(&disk, log_options()).await;
    let last = group.state().last.unwrap();
    let id = annal_wal::LogId { term, leader: ME.0, index: LogIndex(last.index.0 + 1) };
    let entry = annal_wal::Entry { id, payload: Bytes::from_static(&[9, 1, 2]) };
    let (told, outcome) = oneshot::channel();
    group.append(vec![entry], move |result| told.send(result).unwrap()).await.unwrap();
    outcome.await.unwrap().unwrap();
    let error = tokio::time::timeout_at(soon(), alone(options(), &log, group, machine)).await;
    let error = error.expect("it must not hang").err().expect("it must not open");
    assert!(error.to_string().contains("unknown kind"), "{error}");
}

#[tokio::test]
async fn dropping_the_last_handle_stops_it() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    put(&replica, command(1)).await;
    let machine = Arc::downgrade(replica.machine());
    let other = replica.clone();
    drop(replica);
    put(&other, command(2)).await;
    drop(other);
    let deadline = soon();
    while machine.strong_count() > 0 {
        assert!(Instant::now() < deadline, "someone still holds the machine");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    log.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_replica_whose_log_went_back_stops_for_good() {
    let mut group = Group::of(3).await;
    let leader = group.leader().await;
    let back = (1..=3).map(id).find(|r| *r != leader.inner.replica).unwrap();
    write(&group.replicas(), command(1)).await;
    group.agree().await;
    let (disk, machine) = group.kill(back).await;
    let old = disk.copy();
    group.start(back, disk, machine).await;
    for n in 2..=20 {
        write(&group.replicas(), command(n)).await;
    }
    group.agree().await;
    // What it has acknowledged since is gone, as if its disk had been brought back from a copy.
    let (_, machine) = group.kill(back).await;
    group.start(back, old, machine).await;
    let reverted = group.replica(back.0);
    tokio::time::timeout(Duration::from_secs(10), reverted.forgot()).await.expect("it was told");
    let failure = reverted.status().failure.expect("it failed");
    assert!(failure.contains("lacks entries"), "{failure}");
    assert_eq!(reverted.status().role, Role::Stopped);
    // The others go on, by the same leader.
    write(std::slice::from_ref(&leader), command(21)).await;
    assert_eq!(leader.machine().commands(), (1..=21).map(command).collect::<Vec<_>>());
}
