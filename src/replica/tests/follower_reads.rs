//! Linearizable reads on every replica, while leaders come and go.

use super::{
    group::{Group, leader_among, write},
    *,
};
use crate::replica::{
    entry::{RaftLeaderId, RaftVote},
    message::{Answer, Request, Route},
};
use futures::future::join_all;
use std::sync::atomic::AtomicBool;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_sees_every_acknowledged_write() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    for n in 1..=100 {
        put(&leader, command(n)).await;
        let reads = group.replicas().into_iter().map(|replica| async move {
            let index = replica.read_index(soon()).await.unwrap();
            replica.wait_applied(index, soon()).await.unwrap();
            assert!(replica.machine().position() >= Position(n));
        });
        join_all(reads).await;
    }
}

#[tokio::test]
async fn reads_of_a_follower_that_wait_together_share_a_round() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    let follower = group.replicas().into_iter().find(|r| r.inner.replica != leader.inner.replica).unwrap();
    // From now on it knows its leader, and has its vote.
    follower.read_index(soon()).await.unwrap();
    let before = (follower.status().read_rounds, leader.status().read_rounds);
    let results = join_all((0..100).map(|_| follower.read_index(soon()))).await;
    assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
    let after = (follower.status().read_rounds, leader.status().read_rounds);
    // A machine that stood still for a while lets a round go, and another one follows.
    assert!((1..=4).contains(&(after.0 - before.0)), "100 reads took {} rounds", after.0 - before.0);
    // Of three, the two of them are a quorum: the leader asks nobody.
    assert_eq!(after.1, before.1);
}

#[tokio::test]
async fn of_five_the_leader_asks_others_too() {
    let group = Group::of(5).await;
    let leader = group.leader().await;
    let follower = group.replicas().into_iter().find(|r| r.inner.replica != leader.inner.replica).unwrap();
    let before = leader.status().read_rounds;
    follower.read_index(soon()).await.unwrap();
    assert_eq!(leader.status().read_rounds - before, 1);
}

/// A leader that reaches nobody may count on the one that asks it, but only on a vote for itself in its own term, and
/// only on a voter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_voters_vote_for_the_leader_confirms_it() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    put(&leader, command(1)).await;
    let me = leader.inner.replica;
    let other = group.replicas().into_iter().map(|r| r.inner.replica).find(|id| *id != me).unwrap();
    let vote = leader.inner.raft.with_raft_state(|state| *state.vote_ref()).await.unwrap();
    group.wires.isolate(me);
    let ask = async |from: ReplicaId, vote: Option<RaftVote>| {
        let answer = leader.answer(Request::ReadIndex { vote }.encode(Route { from, to: me })).await.unwrap();
        match Answer::decode(answer).unwrap().1 {
            Answer::ReadIndex(index) => index.ok(),
            other => panic!("{other:?}"),
        }
    };
    let applied = leader.status().ladder.applied.unwrap();
    assert_eq!(ask(other, Some(vote)).await, Some(ReadIndex(applied)));
    let with = |term, node_id, committed| RaftVote { leader_id: RaftLeaderId { term, node_id }, committed };
    let term = vote.leader_id.term;
    // It need not have heard that the leader has a quorum.
    assert_eq!(ask(other, Some(with(term, me.0, false))).await, Some(ReadIndex(applied)));
    let (none, later, elsewhere, alone, stranger) = tokio::join!(
        ask(other, None),
        ask(other, Some(with(term + 1, me.0, true))),
        ask(other, Some(with(term, other.0, true))),
        ask(me, Some(vote)),
        ask(ReplicaId(99), Some(vote)),
    );
    assert_eq!([none, later, elsewhere, alone, stranger], [None; 5]);
}

/// A read never misses what was acknowledged before it started, whoever it asks, and whoever led then. A leader that
/// was cut off must not answer; in doubt there is no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_see_acknowledged_writes_while_leaders_change() {
    let group = Group::of(3).await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (replicas, acknowledged, done) = (group.replicas(), acknowledged.clone(), done.clone());
        tokio::spawn(async move {
            let mut n = 0;
            while !done.load(Ordering::SeqCst) {
                n += 1;
                // What is not known to be refused may be applied twice: no fewer than acknowledged.
                write(&replicas, command(n)).await;
                acknowledged.store(n, Ordering::SeqCst);
            }
        })
    };
    let readers: Vec<_> = group
        .replicas()
        .into_iter()
        .map(|replica| {
            let (acknowledged, done) = (acknowledged.clone(), done.clone());
            tokio::spawn(async move {
                let (mut answered, mut refused) = (0, 0);
                while !done.load(Ordering::SeqCst) {
                    let (at_least, patience) =
                        (acknowledged.load(Ordering::SeqCst), Instant::now() + Duration::from_millis(300));
                    match replica.read_index(patience).await {
                        Ok(index) => {
                            replica.wait_applied(index, soon()).await.unwrap();
                            assert!(replica.machine().position() >= Position(at_least), "after {at_least}");
                            answered += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.effect(), Effect::None);
                            refused += 1;
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                }
                (answered, refused)
            })
        })
        .collect();
    for n in 0..4 {
        let leader = group.leader().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if n % 2 == 0 {
            leader.transfer_leadership(None, soon()).await.unwrap();
        } else {
            group.wires.isolate(leader.inner.replica);
            let rest: Vec<_> =
                group.replicas().into_iter().filter(|r| r.inner.replica != leader.inner.replica).collect();
            leader_among(&rest).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            group.wires.heal();
        }
    }
    done.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let mut all = 0;
    for reader in readers {
        let (answered, refused) = reader.await.unwrap();
        println!("{answered} reads answered, {refused} refused");
        all += answered;
    }
    assert!(all > 100, "{all} reads were answered");
    group.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_a_frozen_leader_holds_is_answered_by_the_next() {
    let group = Group::of(3).await;
    let old = group.leader().await;
    put(&old, command(1)).await;
    let rest: Vec<_> =
        group.replicas().into_iter().filter(|r| r.inner.replica != old.inner.replica).collect();
    group.wires.isolate(old.inner.replica);
    let early = join_all(rest.iter().map(|replica| replica.read_index(soon())));
    let (early, next) = tokio::join!(early, leader_among(&rest));
    assert!(early.iter().all(|read| read.is_ok()), "{early:?}");
    // Later ones do not wait behind those that were held.
    let at = Instant::now();
    put(&next, command(2)).await;
    for replica in &rest {
        let index = replica.read_index(soon()).await.unwrap();
        replica.wait_applied(index, soon()).await.unwrap();
        assert_eq!(replica.machine().position(), Position(2));
    }
    assert!(at.elapsed() < Duration::from_millis(600), "{:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_reaches_nobody_gives_up_at_the_deadline() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    let follower = group.replicas().into_iter().find(|r| r.inner.replica != leader.inner.replica).unwrap();
    group.wires.isolate(follower.inner.replica);
    let error = follower.read_index(Instant::now() + Duration::from_millis(1200)).await.unwrap_err();
    assert!(
        matches!(error, ReplicaError::Deadline { proposed: false } | ReplicaError::NotLeader { .. }),
        "{error}"
    );
    group.wires.heal();
    let (deadline, mut answer) = (soon(), follower.read_index(soon()).await);
    while answer.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        answer = follower.read_index(soon()).await;
    }
    answer.unwrap();
    leader.shutdown().await.unwrap();
    let error = leader.read_index(soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Stopped { failed: false, .. }), "{error}");
}
