//! Replicas that are brought up by a snapshot, and snapshots that do not arrive whole.

use super::{group::Group, *};

fn large(n: u64) -> Bytes {
    let mut command = command(n).to_vec();
    command.resize(200 << 10, b'.');
    command.into()
}

/// Three replicas that no longer have the entries of their first commands, 4 MB of them.
async fn purged() -> Group {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    for n in 1..=20 {
        put(&leader, large(n)).await;
    }
    group.agree().await;
    for replica in group.replicas() {
        replica.checkpoint(soon()).await.unwrap();
    }
    assert!(leader.status().ladder.purged.is_some(), "{:?}", leader.status());
    group
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = soon();
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The first commands, as who follows the log sees them.
async fn first_commands(replica: &Replica<Journal>, count: u64) -> Vec<Bytes> {
    let mut tail = replica.tail(Position(1)).await.unwrap();
    let mut commands = Vec::new();
    for n in 1..=count {
        let (position, command) = tail.next().await.unwrap();
        assert_eq!(position, Position(n));
        commands.push(command);
    }
    commands
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_joins_by_snapshot_and_goes_on() {
    let mut group = purged().await;
    let leader = group.leader().await;
    group.join(4).await;
    assert_eq!(leader.lag_of(ReplicaId(4)), None);
    leader.add_learner(ReplicaId(4), soon()).await.unwrap();
    leader.add_learner(ReplicaId(4), soon()).await.unwrap();
    for n in 21..=30 {
        put(&leader, large(n)).await;
    }
    until("it catches up", || leader.lag_of(ReplicaId(4)) == Some(0)).await;
    assert!(group.wires.snapshots() >= 1);
    group.agree().await;
    let learner = group.replica(4);
    assert_eq!(learner.status().role, Role::Learner);
    assert_eq!(learner.machine().position(), Position(30));
    // The log goes on after the snapshot, and reaches back as far as the leader's.
    let ladder = learner.status().ladder;
    assert!(ladder.purged.is_some() && ladder.oldest == leader.status().ladder.oldest, "{ladder:?}");
    assert_eq!(first_commands(&learner, 30).await, learner.machine().commands());
    drop(learner);

    // It finds all of that again.
    group.restart(ReplicaId(4)).await;
    put(&leader, command(31)).await;
    group.agree().await;
    assert_eq!(group.replica(4).machine().position(), Position(31));
    assert_eq!(first_commands(&group.replica(4), 31).await, leader.machine().commands());
    assert_eq!(leader.status().members.learners, [ReplicaId(4)].into());
}

/// The machine is ahead of its log just after a snapshot: commands went on while it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_dies_just_after_a_snapshot_goes_on_from_it() {
    let mut group = purged().await;
    let leader = group.leader().await;
    let writing = {
        let leader = leader.clone();
        tokio::spawn(async move {
            for n in 21..=120 {
                put(&leader, command(n)).await;
            }
        })
    };
    for learner in [4, 5, 6] {
        group.join(learner).await;
        leader.add_learner(ReplicaId(learner), soon()).await.unwrap();
        let replica = group.replica(learner);
        until("a snapshot is installed", || replica.machine().position() > Position(0)).await;
        drop(replica);
        group.restart(ReplicaId(learner)).await;
    }
    writing.await.unwrap();
    group.agree().await;
    assert_eq!(group.replica(6).machine().position(), Position(120));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_or_damaged_changes_nothing() {
    let mut group = purged().await;
    let leader = group.leader().await;
    group.join(4).await;
    let learner = group.replica(4);
    group.wires.break_snapshots_after(2);
    leader.add_learner(ReplicaId(4), soon()).await.unwrap();
    until("it is tried again", || group.wires.snapshots() >= 3).await;
    assert_eq!(learner.machine().position(), Position(0));
    group.wires.heal();
    group.wires.garble_snapshots();
    let tried = group.wires.snapshots();
    until("it is tried again", || group.wires.snapshots() >= tried + 3).await;
    assert_eq!(learner.machine().position(), Position(0));
    assert_eq!(learner.status().failure, None);
    group.wires.heal();
    put(&leader, command(21)).await;
    group.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_keeps_what_a_member_lacks() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    put(&leader, command(1)).await;
    group.agree().await;
    let away = group.replicas().into_iter().find(|r| r.inner.replica != leader.inner.replica).unwrap();
    let had = away.status().ladder.submitted;
    group.wires.isolate(away.inner.replica);
    for n in 2..=20 {
        put(&leader, command(n)).await;
        leader.checkpoint(soon()).await.unwrap();
    }
    assert!(leader.status().ladder.purged <= had, "{:?}", leader.status().ladder);
    group.wires.heal();
    group.agree().await;
    assert_eq!(group.wires.snapshots(), 0);
    let deadline = soon();
    while leader.status().ladder.purged != leader.status().ladder.applied {
        assert!(Instant::now() < deadline, "{:?}", leader.status());
        leader.checkpoint(soon()).await.unwrap();
    }
}

/// One that was away while the log ran out of room is brought up by a snapshot; nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_gone_does_not_pin_the_log() {
    let mut group = Group::with(3, |options| {
        options.checkpoint = CheckpointLimits { every: Duration::from_millis(50), ..options.checkpoint };
    })
    .await;
    let leader = group.leader().await;
    put(&leader, command(1)).await;
    group.agree().await;
    let away = group.replicas().into_iter().find(|r| r.inner.replica != leader.inner.replica).unwrap();
    let away = away.inner.replica;
    let (disk, machine) = group.kill(away).await;
    let had = machine.position();
    let deadline = soon();
    let mut n = 1;
    // As the log's retention does when it wants room.
    while leader.status().ladder.purged.is_none_or(|purged| purged.0 < had.0 + 20) {
        n += 1;
        put(&leader, command(n)).await;
        let applied = leader.status().ladder.applied.unwrap();
        leader.inner.raft.trigger().purge_log(applied.0).await.unwrap();
        assert!(Instant::now() < deadline, "{:?}", leader.status());
    }
    group.start(away, disk, machine).await;
    group.agree().await;
    assert!(group.wires.snapshots() > 0);
    // What it missed came with the snapshot: its log has no hole.
    assert_eq!(first_commands(&group.replica(away.0), n).await, leader.machine().commands());
}
