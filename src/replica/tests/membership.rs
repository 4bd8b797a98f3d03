//! Members that come and go.

use super::{
    group::{Group, id, set, write},
    *,
};
use std::sync::atomic::AtomicBool;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_replaced_one_by_one_under_load() {
    let mut group = Group::of(3).await;
    let serving = Arc::new(Mutex::new(group.replicas()));
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (serving, done) = (serving.clone(), done.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !done.load(Ordering::SeqCst) {
                    let replicas = serving.lock().unwrap().clone();
                    write(&replicas, command(writer << 32 | n)).await;
                    n += 1;
                }
                n
            })
        })
        .collect();
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        group.join(new).await;
        *serving.lock().unwrap() = group.replicas();
        replace(&group, old, new).await;
        let leader = group.leader().await;
        let members = leader.status().members;
        assert!(members.learners.is_empty(), "{members:?}");
        assert!(!members.voters[0].contains(&id(old)), "{members:?}");
        *serving.lock().unwrap() =
            group.replicas().into_iter().filter(|replica| replica.inner.replica != id(old)).collect();
        group.replica(old).shutdown().await.unwrap();
        group.nodes.remove(&id(old));
    }
    done.store(true, Ordering::SeqCst);
    let mut counts = Vec::new();
    for writer in writers {
        counts.push(writer.await.unwrap());
    }
    group.agree().await;
    assert_eq!(group.leader().await.status().members.voters, [set(4..=6)]);
    let there: BTreeSet<Bytes> = group.replica(4).machine().commands().into_iter().collect();
    for (writer, count) in (0..).zip(counts) {
        assert!(count > 0);
        for n in 0..count {
            assert!(there.contains(&command(writer << 32 | n)), "writer {writer} lost {n} of {count}");
        }
    }
}

/// As the catalog's tasks do it: whoever leads goes on with what the last one left.
async fn replace(group: &Group, old: u64, new: u64) {
    let deadline = soon();
    loop {
        let leader = group.leader().await;
        let step = async {
            leader.add_learner(id(new), deadline).await?;
            while leader.lag_of(id(new)).is_some_and(|lag| lag > 5) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut voters = leader.status().members.voters.last().cloned().unwrap();
            voters.remove(&id(old));
            voters.insert(id(new));
            leader.set_voters(voters, deadline).await
        };
        match step.await {
            Ok(()) => return,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_lost_its_leader_is_finished_by_the_next() {
    let mut half_way = 0;
    for pause_us in [0, 300, 1000, 3000] {
        let mut group = Group::of(3).await;
        group.join(4).await;
        group.join(5).await;
        let leader = group.leader().await;
        put(&leader, command(1)).await;
        leader.add_learner(id(4), soon()).await.unwrap();
        leader.add_learner(id(5), soon()).await.unwrap();
        let stays = if leader.inner.replica == id(1) { 2 } else { 1 };
        let target = set([stays, 4, 5]);
        group.wires.delay(Duration::from_micros(500));
        let (lost, voters) = (leader.inner.replica, target.clone());
        let change = tokio::spawn(async move { leader.set_voters(voters, soon()).await });
        tokio::time::sleep(Duration::from_micros(pause_us)).await;
        group.wires.isolate(lost);
        half_way += group.statuses().iter().any(|status| status.members.voters.len() > 1) as u32;

        let rest: Vec<_> = group.replicas().into_iter().filter(|r| r.inner.replica != lost).collect();
        let deadline = soon();
        loop {
            let next = super::group::leader_among(&rest).await;
            match next.set_voters(target.clone(), deadline).await {
                Ok(()) => break,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
        let next = super::group::leader_among(&rest).await;
        let members = next.status().members;
        assert_eq!((members.voters, members.learners), (vec![target], set([])));
        put(&next, command(2)).await;
        change.abort();
    }
    println!("{half_way} of 4 were left half way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_added_and_removed_once() {
    let mut group = Group::of(3).await;
    let leader = group.leader().await;
    let follower = group.replicas().into_iter().find(|r| r.inner.replica != leader.inner.replica).unwrap();
    let error = follower.add_learner(id(4), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::NotLeader { leader: Some(of) } if of == leader.inner.replica));
    group.join(4).await;
    group.join(5).await;
    for learner in [4, 5, 4] {
        leader.add_learner(id(learner), soon()).await.unwrap();
    }
    let error = leader.set_voters(set([1, 2, 3, 9]), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Membership(_)), "{error}");
    assert_eq!(error.effect(), Effect::None);
    leader.set_voters(set(1..=4), soon()).await.unwrap();
    leader.set_voters(set(1..=4), soon()).await.unwrap();
    let members = leader.status().members;
    assert_eq!((members.voters, members.learners), (vec![set(1..=4)], set([5])), "learners stay");

    // A learner and a voter at once, and someone nobody knows.
    let gone = follower.inner.replica;
    for _ in 0..2 {
        leader.remove([gone, id(5), id(77)].into(), soon()).await.unwrap();
        let members = leader.status().members;
        let left: BTreeSet<ReplicaId> = set(1..=4).into_iter().filter(|voter| *voter != gone).collect();
        assert_eq!((members.voters, members.learners), (vec![left], set([])));
    }
    let error = leader.remove(set(1..=4), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Membership(_)), "{error}");
    put(&leader, command(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_can_take_itself_out() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    let me = leader.inner.replica;
    put(&leader, command(1)).await;
    leader.remove([me].into(), soon()).await.unwrap();
    let rest: Vec<_> = group.replicas().into_iter().filter(|r| r.inner.replica != me).collect();
    write(&rest, command(2)).await;
    let next = super::group::leader_among(&rest).await;
    let members = next.status().members;
    assert_eq!(members.voters[0].len(), 2);
    assert!(members.learners.is_empty() && !members.voters[0].contains(&me), "{members:?}");
    let deadline = soon();
    while leader.status().role == Role::Leader {
        assert!(Instant::now() < deadline, "{:?}", leader.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// From one replica to three and back, as a cluster grows and shrinks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_grows_and_shrinks() {
    let mut group = Group::of(1).await;
    let first = group.replica(1);
    put(&first, command(1)).await;
    for (new, voters) in [(2, set(1..=2)), (3, set(1..=3))] {
        group.join(new).await;
        first.add_learner(id(new), soon()).await.unwrap();
        first.set_voters(voters, soon()).await.unwrap();
        put(&first, command(new)).await;
    }
    group.agree().await;
    first.set_voters(set([1]), soon()).await.unwrap();
    assert_eq!(put(&first, command(4)).await, 4);
    // Alone again, it needs nobody, also after a restart.
    drop(first);
    group.wires.detach(id(2));
    group.wires.detach(id(3));
    group.restart(id(1)).await;
    assert_eq!(put(&group.replica(1), command(5)).await, 5);
}
