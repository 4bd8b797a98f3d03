//! Linearizable reads: what they see, and how they share rounds.

use super::{
    super::message::{Answer, Request, Route},
    group::Group,
    *,
};
use futures::future::join_all;

#[tokio::test]
async fn a_read_sees_every_acknowledged_command() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    replica.machine().slow_ms.store(50, Ordering::Relaxed);
    for n in 1..=5 {
        replica.propose(command(n), soon()).await.unwrap();
        let index = replica.read_index(soon()).await.unwrap();
        replica.wait_applied(index, soon()).await.unwrap();
        assert_eq!(replica.machine().position(), Position(n));
    }
}

#[tokio::test]
async fn a_read_after_a_restart_sees_what_was_acknowledged_before() {
    let disk = memory();
    let (log, replica) = open(&disk, Arc::default()).await;
    put(&replica, command(1)).await;
    let machine = crash(&disk, log, replica).await;
    let (_log, replica) = open(&disk, machine).await;
    let index = replica.read_index(soon()).await.unwrap();
    replica.wait_applied(index, soon()).await.unwrap();
    assert_eq!(replica.machine().position(), Position(1));
}

/// On one thread the readers all queue before the task that runs the rounds gets its turn.
#[tokio::test]
async fn reads_that_wait_together_share_a_round() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    let before = leader.status().read_rounds;
    let results = join_all((0..100).map(|_| leader.read_index(soon()))).await;
    assert!(results.iter().all(|result| result.is_ok()));
    let rounds = leader.status().read_rounds - before;
    // A machine that stood still for a while lets a round go, and another one follows.
    assert!((1..=4).contains(&rounds), "100 reads took {rounds} rounds");
}

#[tokio::test]
async fn a_read_that_comes_later_starts_another_round() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    let before = leader.status().read_rounds;
    for _ in 0..10 {
        leader.read_index(soon()).await.unwrap();
    }
    let rounds = leader.status().read_rounds - before;
    assert!((10..=13).contains(&rounds), "10 reads took {rounds} rounds");
}

#[tokio::test]
async fn a_leader_that_is_a_quorum_by_itself_asks_nobody() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    let before = replica.status().read_rounds;
    reads_its_own(&replica, 100).await;
    assert_eq!(replica.status().read_rounds, before);
}

/// Of an entry that is being applied, and that nobody was told of, a read of this replica need know nothing; one of another
/// replica, which may be behind what is seen here meanwhile, waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_does_not_wait_for_what_nobody_was_told() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    put(&replica, command(1)).await;
    let applied = ReadIndex(replica.status().ladder.applied.unwrap());
    replica.machine().slow_ms.store(500, Ordering::Relaxed);
    let (writer, next) = (replica.clone(), LogIndex(applied.0.0 + 1));
    let writing = tokio::spawn(async move { writer.propose(command(2), soon()).await });
    while replica.status().ladder.committed < Some(next) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(replica.read_index(soon()).await.unwrap(), applied);
    let me = replica.inner.replica;
    let ask = Request::ReadIndex { vote: None }.encode(Route { from: ReplicaId(99), to: me });
    let answer = Answer::decode(replica.answer(ask).await.unwrap()).unwrap().1;
    assert!(matches!(answer, Answer::ReadIndex(Ok(ReadIndex(index))) if index == next), "{answer:?}");
    assert!(!writing.is_finished(), "this machine is too slow for the test");
    writing.await.unwrap().unwrap();
    assert_eq!(replica.read_index(soon()).await.unwrap(), ReadIndex(next));
}

/// Writes, and asks for an index that covers each write.
async fn reads_its_own(replica: &Replica<Journal>, writes: u64) {
    for n in 1..=writes {
        put(replica, command(n)).await;
        let written = ReadIndex(replica.status().ladder.applied.unwrap());
        assert!(replica.read_index(soon()).await.unwrap() >= written);
    }
}

/// A read that arrives while a round is under way must not be answered by it: a command acknowledged between the two
/// would be missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_answered_by_an_earlier_round() {
    let group = Group::of(3).await;
    let replica = group.leader().await;
    let before = replica.status().read_rounds;
    let others = join_all((0..4).map(|_| {
        let replica = replica.clone();
        tokio::spawn(async move {
            for _ in 0..500 {
                replica.read_index(soon()).await.unwrap();
            }
        })
    }));
    tokio::join!(others, reads_its_own(&replica, 200));
    assert!(
        replica.status().read_rounds - before >= 200,
        "each of its reads came after the last round began"
    );
}

#[tokio::test]
async fn waiting_ends_at_the_deadline() {
    let (_log, replica) = open(&memory(), Arc::default()).await;
    let now = || Instant::now() + Duration::from_millis(20);
    for error in [
        replica.wait_position(Position(1), now()).await.unwrap_err(),
        replica.wait_applied(ReadIndex(LogIndex(99)), now()).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.effect()), (crate::model::Kind::Timeout, Effect::None), "{error}");
    }
    let later = replica.clone();
    let waiting = tokio::spawn(async move { later.wait_position(Position(2), soon()).await });
    put(&replica, command(1)).await;
    assert!(!waiting.is_finished());
    put(&replica, command(2)).await;
    waiting.await.unwrap().unwrap();
}
