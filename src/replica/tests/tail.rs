//! Following the log: from anywhere, over purges and restarts, until retention takes what was not read.

use super::*;

/// The next `count` commands of a tail.
async fn take(tail: &mut Tail, count: u64) -> Vec<(u64, Bytes)> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let next = tokio::time::timeout_at(soon(), tail.next()).await.expect("the tail hangs").unwrap();
        taken.push((next.0.0, next.1));
    }
    taken
}

fn expected(positions: std::ops::RangeInclusive<u64>) -> Vec<(u64, Bytes)> {
    positions.map(|n| (n, command(n))).collect()
}

#[tokio::test]
async fn a_tail_starts_anywhere_and_follows() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    let early = replica.clone();
    let following = tokio::spawn(async move {
        let mut tail = early.tail(Position(1)).await.unwrap();
        take(&mut tail, 30).await
    });
    for n in 1..=20 {
        put(&replica, command(n)).await;
    }
    for from in [0, 1, 2, 13, 20, 21, 25] {
        let mut tail = replica.tail(Position(from)).await.unwrap();
        if from <= 20 {
            assert_eq!(take(&mut tail, 20 - from.max(1) + 1).await, expected(from.max(1)..=20));
        }
        let waits = tokio::time::timeout(Duration::from_millis(5), tail.next()).await;
        assert!(waits.is_err(), "nothing is there yet");
    }
    let mut later = replica.tail(Position(25)).await.unwrap();
    for n in 21..=30 {
        put(&replica, command(n)).await;
    }
    assert_eq!(take(&mut later, 6).await, expected(25..=30));
    assert_eq!(following.await.unwrap(), expected(1..=30));
}

#[tokio::test]
async fn commands_that_share_an_entry_come_one_by_one() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    replica.machine().slow_ms.store(5, Ordering::Relaxed);
    futures::future::join_all((1..=200).map(|n| put(&replica, command(n)))).await;
    let commands = replica.machine().commands();
    for from in [1, 77, 199, 200] {
        let mut tail = replica.tail(Position(from)).await.unwrap();
        let taken = take(&mut tail, 200 - from + 1).await;
        let wanted = (from..=200).map(|n| (n, commands[n as usize - 1].clone()));
        assert_eq!(taken, wanted.collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_tail_reads_below_what_raft_purged_and_over_restarts() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    for n in 1..=10 {
        put(&replica, command(n)).await;
    }
    replica.checkpoint(soon()).await.unwrap();
    put(&replica, command(11)).await;
    let machine = crash(&disk, log, replica).await;
    let (_log, replica) = open(&disk, machine).await;
    put(&replica, command(12)).await;
    replica.checkpoint(soon()).await.unwrap();
    let mut tail = replica.tail(Position(1)).await.unwrap();
    assert_eq!(take(&mut tail, 12).await, expected(1..=12));
    let mut tail = replica.tail(Position(11)).await.unwrap();
    assert_eq!(take(&mut tail, 2).await, expected(11..=12));
}

/// Segments so small that retention takes them soon.
fn short() -> annal_wal::Options {
    let (segment_bytes, retention_bytes, hot_bytes_max) = (16 << 10, 64 << 10, 16 << 10);
    annal_wal::Options { segment_bytes, retention_bytes, hot_bytes_max, ..log_options() }
}

async fn put_many(replica: &Replica<Journal>, from: u64, to: u64) {
    for n in from..=to {
        let mut command = command(n).to_vec();
        command.resize(2 << 10, b'.');
        assert_eq!(put(replica, command.into()).await, n);
    }
}

#[tokio::test]
async fn a_tail_that_comes_too_late_learns_where_history_starts() {
    let disk = memory();
    let (log, group) = open_log(&disk, short()).await;
    let replica = alone(options(), &log, group, Arc::new(Journal::default())).await.unwrap();
    let deadline = soon();
    let mut last = 0;
    while replica.status().ladder.oldest < Some(LogIndex(20)) {
        put_many(&replica, last + 1, last + 10).await;
        last += 10;
        replica.checkpoint(soon()).await.unwrap();
        assert!(Instant::now() < deadline, "{:?}", replica.status().ladder);
    }
    let Err(error) = replica.tail(Position(1)).await else { panic!("the start of history is gone") };
    let ReplicaError::Gone { oldest } = error else { panic!("{error}") };
    assert_eq!((error.kind(), error.effect()), (crate::model::Kind::Expired, Effect::None));
    assert!(Position(1) < oldest && oldest <= Position(last), "{oldest}");
    let mut tail = replica.tail(oldest).await.unwrap();
    let taken = take(&mut tail, last - oldest.0 + 1).await;
    assert_eq!(taken.first().unwrap().0, oldest.0);
    assert_eq!(taken.last().unwrap().0, last);
    // The machine is told too: what it keeps beside commands that nobody can read any more may go.
    replica.checkpoint(soon()).await.unwrap();
    let told = replica.machine().history.load(Ordering::Relaxed);
    assert!(1 < told && told <= last, "{told}");
    assert!(told >= oldest.0, "{told}, though {oldest} is the first that can be read");
}

#[tokio::test]
async fn what_a_tail_still_owes_is_kept() {
    let disk = memory();
    let (log, group) = open_log(&disk, short()).await;
    let replica = alone(options(), &log, group, Arc::new(Journal::default())).await.unwrap();
    put_many(&replica, 1, 5).await;
    let mut tail = replica.tail(Position(1)).await.unwrap();
    for round in 0..20 {
        put_many(&replica, 6 + round * 10, 15 + round * 10).await;
        replica.checkpoint(soon()).await.unwrap();
    }
    assert!(replica.status().ladder.oldest <= Some(LogIndex(2)), "{:?}", replica.status().ladder);
    let positions: Vec<_> = take(&mut tail, 205).await.into_iter().map(|(position, _)| position).collect();
    assert_eq!(positions, (1..=205).collect::<Vec<_>>());
    // Let go, history is shortened again.
    drop(tail);
    let deadline = soon();
    let mut last = 205;
    while replica.status().ladder.oldest < Some(LogIndex(100)) {
        put_many(&replica, last + 1, last + 10).await;
        last += 10;
        replica.checkpoint(soon()).await.unwrap();
        assert!(Instant::now() < deadline, "{:?}", replica.status().ladder);
    }
}

#[tokio::test]
async fn a_tail_of_a_stopped_replica_ends() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    put(&replica, command(1)).await;
    let mut tail = replica.tail(Position(1)).await.unwrap();
    assert_eq!(take(&mut tail, 1).await, expected(1..=1));
    replica.shutdown().await.unwrap();
    assert!(matches!(tail.next().await, Err(ReplicaError::Stopped { failed: false, .. })));
}
