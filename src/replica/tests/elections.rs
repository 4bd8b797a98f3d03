//! Who leads: elections, leaders that are lost or cut off, leadership that is handed over.

use super::{
    group::{Group, id, leader_among, set, write},
    model::Told,
    *,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// The others than `replica`.
fn others(group: &Group, replica: &Replica<Journal>) -> Vec<Replica<Journal>> {
    group.replicas().into_iter().filter(|other| other.inner.replica != replica.inner.replica).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_followed_by_another() {
    let mut group = Group::of(3).await;
    let lost = group.leader().await;
    let lost_id = lost.inner.replica;
    for n in 1..=20 {
        put(&lost, command(n)).await;
    }
    drop(lost);
    let (disk, machine) = group.kill(lost_id).await;
    let next = group.leader().await;
    assert_ne!(next.inner.replica, lost_id);
    for n in 21..=40 {
        assert_eq!(put(&next, command(n)).await, n);
    }
    let term = next.status().term;
    // It comes back as a follower and does not disturb the leader there is.
    group.start(lost_id, disk, machine).await;
    group.agree().await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(next.status().role, Role::Leader);
    assert_eq!(next.status().term, term);
    assert_eq!(group.replica(lost_id.0).machine().commands().len(), 40);
}

/// With the options a node has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_missed_for_about_a_second() {
    let mut group = Group::with(3, |options| {
        let usual = ReplicaOptions::new(options.replica);
        (options.heartbeat_ms, options.election_ms) = (usual.heartbeat_ms, usual.election_ms);
    })
    .await;
    let lost = group.leader().await.inner.replica;
    group.kill(lost).await;
    let at = Instant::now();
    group.leader().await;
    println!("a new leader after {:?}", at.elapsed());
    assert!(at.elapsed() < Duration::from_millis(2500), "a new leader after {:?}", at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_answers_no_read_and_its_last_commands_are_overwritten() {
    let group = Group::with(3, |options| options.propose.entries_under_way = 1).await;
    let old = group.leader().await;
    put(&old, command(1)).await;
    group.wires.isolate(old.inner.replica);
    // Accepted at most while its lease lasts, committed never.
    let patient = old.clone();
    let unacknowledged = tokio::spawn(async move { patient.propose(command(666), soon()).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    // What waits behind it was never proposed, and does not wait for ever.
    let impatient = old.propose(command(667), Instant::now() + Duration::from_millis(20)).await;
    assert!(matches!(impatient, Err(ReplicaError::Deadline { proposed: false })), "{impatient:?}");
    let error = old.propose(command(668), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::NotLeader { leader: None }), "{error}");
    assert_eq!(error.effect(), Effect::None);

    let rest = others(&group, &old);
    let next = leader_among(&rest).await;
    for n in 2..=10 {
        put(&next, command(n)).await;
        let error = old.read_index(Instant::now() + Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.effect(), Effect::None);
    }
    let error = old.read_index(soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::NoQuorum), "{error}");
    group.wires.heal();
    let error = unacknowledged.await.unwrap().unwrap_err();
    assert!(matches!(error, ReplicaError::Superseded), "{error}");
    assert_eq!(error.effect(), Effect::Unknown);
    group.agree().await;
    assert_eq!(old.machine().commands(), (1..=10).map(command).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cut_off_does_not_disturb_the_leader_when_it_returns() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    let cut = others(&group, &leader).remove(0);
    group.wires.isolate(cut.inner.replica);
    for n in 1..=10 {
        put(&leader, command(n)).await;
    }
    // It asks for votes again and again, and gets none.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let term = leader.status().term;
    group.wires.heal();
    group.agree().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((leader.status().role, leader.status().term), (Role::Leader, term));
    assert_eq!(cut.status().term, term);

    // One that does not hear the leader, but is heard.
    group.wires.cut(leader.inner.replica, cut.inner.replica);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    put(&leader, command(11)).await;
    assert_eq!((leader.status().role, leader.status().term), (Role::Leader, term));
    group.wires.heal();
    group.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over() {
    let group = Group::of(3).await;
    let mut n = 0;
    for to in [2, 3, 1, 1, 2] {
        let leader = group.leader().await;
        let at = Instant::now();
        leader.transfer_leadership(Some(id(to)), soon()).await.unwrap();
        println!("handed over in {:?}", at.elapsed());
        // Known to lead when that returns; it takes commands once a quorum has answered it.
        assert_eq!(leader.leadership().borrow().leader, Some(id(to)));
        assert_eq!(group.leader().await.inner.replica, id(to));
        n += 1;
        put(&group.replica(to), command(n)).await;
    }
    let (leader, follower) = (group.replica(2), group.replica(3));
    leader.transfer_leadership(None, soon()).await.unwrap();
    let next = group.leader().await;
    assert_ne!(next.inner.replica, id(2));
    let error = leader.transfer_leadership(Some(id(9)), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::NotLeader { .. }), "{error}");
    let error = next.transfer_leadership(Some(id(9)), soon()).await.unwrap_err();
    assert!(matches!(error, ReplicaError::Membership(_)), "{error}");
    let known = *follower.leadership().borrow();
    assert_eq!((known.leader, known.term), (Some(next.inner.replica), next.status().term));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_shuts_down_hands_over() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    put(&leader, command(1)).await;
    leader.shutdown().await.unwrap();
    let rest = others(&group, &leader);
    let known = leader.status().leader;
    assert!(known.is_some() && known != Some(leader.inner.replica), "{:#?}", group.statuses());
    assert_eq!(write(&rest, command(2)).await, 0);
    assert_eq!(leader_among(&rest).await.inner.replica, known.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_lost_and_late_only_slow_a_group_down() {
    let group = Group::of(3).await;
    group.wires.lose(50);
    group.wires.delay(Duration::from_millis(10));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let replicas = group.replicas();
            tokio::spawn(async move {
                for n in 0..25 {
                    write(&replicas, command(writer * 1000 + n)).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    group.wires.heal();
    group.leader().await;
    group.agree().await;
    let commands = group.replica(1).machine().commands();
    for writer in 0..4 {
        for n in 0..25 {
            assert!(commands.contains(&command(writer * 1000 + n)), "{writer} {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_founded_before_most_of_its_founders_are_there() {
    let mut group = Group::of(0).await;
    group.join(1).await;
    for _ in 0..2 {
        group.replica(1).found(set(1..=3)).await.unwrap();
    }
    assert_eq!(group.replica(1).leadership().borrow().leader, None);
    group.join(2).await;
    // Another founder may be asked, too.
    group.replica(2).found(set(1..=3)).await.unwrap();
    let leader = group.leader().await;
    put(&leader, command(1)).await;
    group.join(3).await;
    put(&leader, command(2)).await;
    group.agree().await;
}

/// Whatever happens to leaders: what was acknowledged is there once, and what was said to have had no effect is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_told_the_truth_while_leaders_change() {
    let seed = std::env::var("ANNAL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("ANNAL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut group = Group::of(3).await;
    let mut told = Told::default();
    for _ in 0..5 {
        let leader = group.leader().await.inner.replica;
        let mut under_way = Vec::new();
        let mut propose = |group: &Group, told: &mut Told| {
            for _ in 0..10 {
                for replica in group.replicas() {
                    let (command, proposal) = (told.next(), told.last());
                    let patience = Instant::now() + Duration::from_millis(1500);
                    let answer = tokio::spawn(async move { replica.propose(proposal, patience).await });
                    under_way.push((command, answer));
                }
            }
        };
        propose(&group, &mut told);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..5))).await;
        match random.random_range(0..4) {
            0 => drop(group.replica(leader.0).transfer_leadership(None, soon()).await),
            1 => group.wires.isolate(leader),
            2 => group.restart(leader).await,
            _ => group.wires.lose(200),
        }
        propose(&group, &mut told);
        for (command, answer) in under_way {
            told.answered(command, answer.await.unwrap());
        }
        group.wires.heal();
    }
    let (leader, last) = (group.leader().await, told.next());
    let answer = leader.propose(last.clone(), soon()).await;
    told.answered(last, answer);
    group.agree().await;
    told.check(&group.replica(1).machine().commands());
}

/// Appends that overtake each other by more than a follower waits are no sign of a log that lost entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_overtake_each_other_unseat_nobody() {
    let group = Group::with(3, |options| {
        let usual = ReplicaOptions::new(options.replica);
        (options.heartbeat_ms, options.election_ms) = (usual.heartbeat_ms, usual.election_ms);
    })
    .await;
    let leader = group.leader().await;
    group.wires.delay(Duration::from_millis(300));
    // Each is large enough to be an entry of its own while others are under way.
    let puts = (0..24u8).map(|n| leader.propose(vec![n; 150 << 10].into(), soon()));
    let answers = futures::future::join_all(puts).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    group.wires.heal();
    group.agree().await;
    assert_eq!(leader.status().role, Role::Leader);
    assert_eq!(leader.machine().commands().len(), 24);
}
