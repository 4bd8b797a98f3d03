//! Commands in, answers out: order, limits, deadlines, errors and their effects.

use super::*;
use futures::future::join_all;

#[tokio::test]
async fn positions_follow_the_order_of_proposals() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    for n in 1..=20 {
        assert_eq!(put(&replica, command(n)).await, n);
    }
    assert_eq!(replica.machine().commands(), (1..=20).map(command).collect::<Vec<_>>());
    let status = replica.status();
    assert_eq!(status.position, Position(20));
    assert_eq!((status.role, status.leader, status.failure), (Role::Leader, Some(ME), None));
    assert!(status.members.is_sole_voter(ME));
    assert_eq!(status.ladder.applied, status.ladder.submitted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_entries_and_each_gets_its_own_outcome() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    let before = replica.status().ladder.applied.unwrap().0;
    let positions = join_all((0..500).map(|n| {
        let replica = replica.clone();
        async move { (put(&replica, command(n)).await, n) }
    }))
    .await;
    let commands = replica.machine().commands();
    for (position, n) in &positions {
        assert_eq!(commands[*position as usize - 1], command(*n));
    }
    assert_eq!(commands.len(), 500);
    let entries = replica.status().ladder.applied.unwrap().0 - before;
    assert!(entries < 100, "500 commands took {entries} entries");
}

#[tokio::test]
async fn an_empty_command_is_a_command() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    assert_eq!(put(&replica, Bytes::new()).await, 1);
    assert_eq!(replica.machine().commands(), [Bytes::new()]);
}

#[tokio::test]
async fn the_largest_command_fits_and_a_larger_one_has_no_effect() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    let ReplicaError::TooLarge { max, .. } =
        replica.propose(vec![0; 2 << 20].into(), soon()).await.unwrap_err()
    else {
        panic!()
    };
    assert_eq!(put(&replica, vec![1; max].into()).await, 1);
    let error = replica.propose(vec![2; max + 1].into(), soon()).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (crate::model::Kind::TooLarge, Effect::None));
    assert_eq!(put(&replica, command(2)).await, 2);
}

#[tokio::test]
async fn a_deadline_says_whether_the_command_was_proposed() {
    let disk = memory();
    let (log, group) = open_log(&disk, log_options()).await;
    let mut options = options();
    options.propose.entries_under_way = 1;
    let replica = alone(options, &log, group, Arc::new(Journal::default())).await.unwrap();
    replica.machine().slow_ms.store(300, Ordering::Relaxed);

    let brief = || Instant::now() + Duration::from_millis(100);
    let first = replica.propose(command(1), brief());
    let second = async {
        // The first one holds the only slot.
        tokio::time::sleep(Duration::from_millis(20)).await;
        replica.propose(command(2), brief()).await
    };
    let (first, second) = tokio::join!(first, second);
    let (first, second) = (first.unwrap_err(), second.unwrap_err());
    assert!(matches!(first, ReplicaError::Deadline { proposed: true }), "{first}");
    assert_eq!(first.effect(), Effect::Unknown);
    assert!(matches!(second, ReplicaError::Deadline { proposed: false }), "{second}");
    assert_eq!(second.effect(), Effect::None);

    replica.machine().slow_ms.store(0, Ordering::Relaxed);
    assert_eq!(put(&replica, command(3)).await, 2, "the second must never be applied");
    assert_eq!(replica.machine().commands(), [command(1), command(3)]);
}

#[tokio::test]
async fn a_full_queue_turns_commands_away() {
    let disk = memory();
    let (log, group) = open_log(&disk, log_options()).await;
    let mut options = options();
    options.propose = ProposeLimits {
        entries_under_way: 1,
        queue_bytes: 1000,
        command_bytes_max: 1000,
        ..ProposeLimits::default()
    };
    let replica = alone(options, &log, group, Arc::new(Journal::default())).await.unwrap();
    replica.machine().slow_ms.store(200, Ordering::Relaxed);
    let early = Instant::now() + Duration::from_millis(100);
    let big = || Bytes::from(vec![0; 1000]);
    let (a, b, c) = tokio::join!(
        replica.propose(big(), soon()),
        replica.propose(big(), soon()),
        replica.propose(big(), early),
    );
    assert!(a.is_ok() && b.is_ok());
    let error = c.unwrap_err();
    assert!(matches!(error, ReplicaError::Limited { max: 1000 }), "{error}");
    assert_eq!(error.effect(), Effect::None);
    assert_eq!(replica.machine().commands().len(), 2);
}

#[tokio::test]
async fn a_full_disk_turns_commands_away_and_the_replica_lives_on() {
    let disk = memory();
    let (log, group) = open_log(&disk, annal_wal::Options { free_bytes_min: 8 << 20, ..log_options() }).await;
    let replica = alone(options(), &log, group, Arc::new(Journal::default())).await.unwrap();
    put(&replica, command(1)).await;
    disk.set_capacity_bytes(disk.used_bytes() + (4 << 20));
    // The log looks at the disk now and then; a command on its way just then would wait for room.
    while replica.inner.log.check_space().is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = replica.propose(command(2), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Full(_)), "{error}");
    assert_eq!((error.kind(), error.effect()), (crate::model::Kind::Full, Effect::None));
    assert_eq!(replica.status().role, Role::Leader);
    replica.read_index(soon()).await.unwrap();
}

#[tokio::test]
async fn an_error_of_the_machine_stops_the_replica() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    put(&replica, command(1)).await;
    replica.machine().fail_at.store(2, Ordering::Relaxed);
    let error = replica.propose(command(2), soon()).await.unwrap_err();
    assert!(matches!(&error, ReplicaError::Stopped { failed: true, proposed: true, .. }), "{error}");
    assert_eq!(error.effect(), Effect::Unknown);
    // Nothing is stepped over, and everyone is told why.
    replica.machine().fail_at.store(0, Ordering::Relaxed);
    let error = replica.propose(command(3), soon()).await.unwrap_err();
    assert_eq!(error.effect(), Effect::None);
    assert!(error.to_string().contains("told to fail"), "{error}");
    assert!(
        replica.wait_position(Position(2), soon()).await.unwrap_err().to_string().contains("told to fail")
    );
    assert!(replica.status().failure.unwrap().contains("told to fail"));
    assert_eq!(replica.machine().commands(), [command(1)]);
}

#[tokio::test]
async fn a_poisoned_log_stops_the_replica() {
    let disk = memory();
    let (_log, replica) = open(&disk, Arc::default()).await;
    put(&replica, command(1)).await;
    disk.fail_commit(0, annal_wal::Fault::Eio);
    let error = replica.propose(command(2), soon()).await.unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "{error}");
    let error = replica.propose(command(3), soon()).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (crate::model::Kind::Internal, Effect::None), "{error}");
    assert!(replica.status().failure.is_some());
    replica.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_panic_of_raft_is_a_failure_and_no_shutdown() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    put(&replica, command(1)).await;
    let panicked = replica.inner.raft.with_raft_state(|_| panic!("told to panic")).await;
    assert!(panicked.is_err());
    let error = replica.wait_position(Position(2), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Stopped { failed: true, .. }), "{error}");
    let status = replica.status();
    assert!(status.failure.unwrap().contains("panicked"));
    assert_eq!((status.role, status.leader), (Role::Stopped, None));
    let error = replica.propose(command(2), soon()).await.unwrap_err();
    assert_eq!(error.effect(), Effect::None, "{error}");
}

#[tokio::test]
async fn shutdown_tells_everyone() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    put(&replica, command(1)).await;
    replica.machine().slow_ms.store(200, Ordering::Relaxed);
    let other = replica.clone();
    let under_way = tokio::spawn(async move { other.propose(command(2), soon()).await });
    let other = replica.clone();
    let waiting = tokio::spawn(async move { other.wait_position(Position(99), soon()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    replica.shutdown().await.unwrap();
    match under_way.await.unwrap() {
        // It was under way: the answer is there, or the effect unknown.
        Ok(_) => {}
        Err(error) => assert_eq!(error.effect(), Effect::Unknown, "{error}"),
    }
    assert!(matches!(waiting.await.unwrap(), Err(ReplicaError::Stopped { failed: false, .. })));
    for error in [
        replica.propose(command(3), soon()).await.unwrap_err(),
        replica.read_index(soon()).await.unwrap_err(),
        replica.checkpoint(soon()).await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.effect()),
            (crate::model::Kind::Unavailable, Effect::None),
            "{error}"
        );
    }
    replica.shutdown().await.unwrap();
    assert_eq!(replica.status().role, Role::Stopped);
    assert_eq!(replica.status().failure, None);
    assert_eq!(replica.machine().saved_position(), replica.machine().position().0);
}
