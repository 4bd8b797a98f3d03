//! Several replicas of one group in one process: a network of switches, and a group whose nodes can be stopped.

use super::*;
use crate::replica::{Network, Unreached};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use rand::Rng;
use std::collections::BTreeMap;

/// Carries messages between the replicas of a process, as far as its switches let it.
#[derive(Default)]
pub(super) struct Wires(Mutex<Switches>);

#[derive(Default)]
struct Switches {
    replicas: BTreeMap<ReplicaId, Replica<Journal>>,
    /// From, to: nothing gets through, and nobody is told.
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    /// Each way takes up to so long.
    delay: Duration,
    /// So many of a thousand messages or answers are lost.
    lost_of_1000: u32,
    /// Frames of a snapshot that get through before the connection breaks.
    snapshot_frames: Option<usize>,
    /// One byte of so many frames is changed on the way.
    garble_frames: bool,
    /// Snapshots that were begun.
    pub(super) snapshots: u64,
}

impl Wires {
    fn switches(&self) -> std::sync::MutexGuard<'_, Switches> {
        self.0.lock().unwrap()
    }

    pub(super) fn attach(&self, replica: &Replica<Journal>) {
        self.switches().replicas.insert(replica.inner.replica, replica.clone());
    }

    pub(super) fn detach(&self, replica: ReplicaId) {
        self.switches().replicas.remove(&replica);
    }

    /// Nothing gets from `from` to `to`.
    pub(super) fn cut(&self, from: ReplicaId, to: ReplicaId) {
        self.switches().cut.insert((from, to));
    }

    /// Nothing gets to `replica` or away from it.
    pub(super) fn isolate(&self, replica: ReplicaId) {
        let mut switches = self.switches();
        let others: Vec<ReplicaId> = switches.replicas.keys().copied().collect();
        for other in others {
            switches.cut.extend([(replica, other), (other, replica)]);
        }
    }

    pub(super) fn heal(&self) {
        let mut switches = self.switches();
        switches.cut.clear();
        switches.delay = Duration::ZERO;
        switches.lost_of_1000 = 0;
        switches.snapshot_frames = None;
        switches.garble_frames = false;
    }

    pub(super) fn delay(&self, up_to: Duration) {
        self.switches().delay = up_to;
    }

    pub(super) fn lose(&self, of_1000: u32) {
        self.switches().lost_of_1000 = of_1000;
    }

    pub(super) fn break_snapshots_after(&self, frames: usize) {
        self.switches().snapshot_frames = Some(frames);
    }

    pub(super) fn garble_snapshots(&self) {
        self.switches().garble_frames = true;
    }

    pub(super) fn snapshots(&self) -> u64 {
        self.switches().snapshots
    }

    /// One way of a message: it arrives after a while, or never.
    async fn pass(&self, from: ReplicaId, to: ReplicaId) {
        let (lost, delay) = {
            let switches = self.switches();
            let mut random = rand::rng();
            let lost =
                switches.cut.contains(&(from, to)) || random.random_range(0..1000) < switches.lost_of_1000;
            (lost, switches.delay.mul_f64(random.random_range(0.0..=1.0)))
        };
        if lost {
            std::future::pending::<()>().await;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// Ends once a replica's process is dead, which in here goes on for a while.
    async fn lose_sight(&self, of: &Replica<Journal>) {
        let lives = |other: &Replica<Journal>| Arc::ptr_eq(&other.inner, &of.inner);
        while self.switches().replicas.get(&of.inner.replica).is_some_and(lives) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn find(&self, to: ReplicaId) -> Result<Replica<Journal>, Unreached> {
        let found = self.switches().replicas.get(&to).cloned();
        found.ok_or_else(|| Unreached(format!("replica {to} is down")))
    }
}

/// One replica's end of the wires.
struct End {
    wires: Arc<Wires>,
    from: ReplicaId,
}

impl Network for End {
    fn call(
        &self,
        to: ReplicaId,
        message: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let (wires, from) = (self.wires.clone(), self.from);
        Box::pin(async move {
            let way = async {
                wires.pass(from, to).await;
                let replica = wires.find(to)?;
                // What has arrived is handled, even if nobody waits for the answer any more.
                let handled = tokio::spawn(async move { replica.answer(message).await }).await;
                let handled = handled.map_err(|lost| Unreached(lost.to_string()))?;
                let answer = handled.map_err(|error| Unreached(error.to_string()))?;
                wires.pass(to, from).await;
                Ok(answer)
            };
            let late = |_| Unreached("the deadline passed".into());
            tokio::time::timeout_at(deadline, way).await.map_err(late)?
        })
    }

    fn send_snapshot(
        &self,
        to: ReplicaId,
        head: Bytes,
        body: BoxStream<'static, io::Result<Bytes>>,
        _: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let (wires, from) = (self.wires.clone(), self.from);
        Box::pin(async move {
            wires.pass(from, to).await;
            let replica = wires.find(to)?;
            let (frames, garble) = {
                let mut switches = wires.switches();
                switches.snapshots += 1;
                (switches.snapshot_frames.unwrap_or(usize::MAX), switches.garble_frames)
            };
            let broken = move |n: usize| n >= frames;
            let body = body.enumerate().map(move |(n, frame)| {
                if broken(n) {
                    return Err(io::Error::other("the connection broke"));
                }
                let mut frame = frame?.to_vec();
                if garble {
                    *frame.last_mut().unwrap() ^= 1;
                }
                Ok(Bytes::from(frame))
            });
            let answer = tokio::select! {
                answer = replica.receive_snapshot(head, Box::pin(body)) => answer,
                () = wires.lose_sight(&replica) => return Err(Unreached("its process died".into())),
            };
            let answer = answer.map_err(|error| Unreached(error.to_string()))?;
            wires.pass(to, from).await;
            Ok(answer)
        })
    }
}

/// A node: its disk outlives it.
pub(super) struct Node {
    pub(super) disk: MemoryDisk,
    pub(super) log: Log,
    pub(super) replica: Replica<Journal>,
}

/// The nodes of one group.
pub(super) struct Group {
    pub(super) wires: Arc<Wires>,
    pub(super) nodes: BTreeMap<ReplicaId, Node>,
    options: fn(&mut ReplicaOptions),
}

pub(super) fn id(replica: u64) -> ReplicaId {
    ReplicaId(replica)
}

pub(super) fn set(replicas: impl IntoIterator<Item = u64>) -> BTreeSet<ReplicaId> {
    replicas.into_iter().map(ReplicaId).collect()
}

impl Group {
    /// Replicas 1 to `count`, founded and led, or none.
    pub(super) async fn of(count: u64) -> Group {
        Group::with(count, |_| {}).await
    }

    pub(super) async fn with(count: u64, options: fn(&mut ReplicaOptions)) -> Group {
        let mut group = Group { wires: Arc::default(), nodes: BTreeMap::new(), options };
        for replica in 1..=count {
            group.start(id(replica), memory(), Arc::default()).await;
        }
        if count > 0 {
            group.replica(1).found(set(1..=count)).await.unwrap();
            group.leader().await;
        }
        group
    }

    /// Starts a replica on a disk, with the machine that was found there.
    pub(super) async fn start(&mut self, replica: ReplicaId, disk: MemoryDisk, machine: Arc<Journal>) {
        let (log, _) = Log::open_in_memory(disk.clone(), log_options()).unwrap();
        let of = GroupId(replica.0 as u32);
        let group = match log.group(of) {
            Some(group) => group,
            None => log.create_group(of).await.unwrap(),
        };
        let mut options = ReplicaOptions { heartbeat_ms: 50, election_ms: 450..650, ..options() };
        options.replica = replica;
        (self.options)(&mut options);
        let end = Arc::new(End { wires: self.wires.clone(), from: replica });
        let replica = Replica::open(options, &log, group, machine, end).await.unwrap();
        self.wires.attach(&replica);
        self.nodes.insert(replica.inner.replica, Node { disk, log, replica });
    }

    /// A new replica on a new node, which nobody knows yet.
    pub(super) async fn join(&mut self, replica: u64) {
        self.start(id(replica), memory(), Arc::default()).await;
    }

    /// The process dies.
    pub(super) async fn kill(&mut self, replica: ReplicaId) -> (MemoryDisk, Arc<Journal>) {
        self.wires.detach(replica);
        let Node { disk, log, replica } = self.nodes.remove(&replica).unwrap();
        let machine = crash(&disk, log, replica).await;
        (disk, machine)
    }

    pub(super) async fn restart(&mut self, replica: ReplicaId) {
        let (disk, machine) = self.kill(replica).await;
        self.start(replica, disk, machine).await;
    }

    pub(super) fn replica(&self, replica: u64) -> Replica<Journal> {
        self.nodes[&id(replica)].replica.clone()
    }

    pub(super) fn replicas(&self) -> Vec<Replica<Journal>> {
        self.nodes.values().map(|node| node.replica.clone()).collect()
    }

    /// Waits for a leader of the highest term that a quorum of its voters follows, and that takes commands.
    pub(super) async fn leader(&self) -> Replica<Journal> {
        leader_among(&self.replicas()).await
    }

    /// Waits until all replicas have applied the same, and checks that they did.
    pub(super) async fn agree(&self) {
        let deadline = soon();
        loop {
            let applied: BTreeSet<_> =
                self.replicas().iter().map(|replica| replica.status().ladder.applied).collect();
            if applied.len() == 1 {
                break;
            }
            assert!(Instant::now() < deadline, "{:#?}", self.statuses());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut journals = self.replicas().into_iter().map(|replica| replica.machine().commands());
        let first = journals.next().unwrap();
        assert!(journals.all(|other| other == first), "replicas differ");
    }

    pub(super) fn statuses(&self) -> Vec<ReplicaStatus> {
        self.replicas().iter().map(Replica::status).collect()
    }
}

pub(super) async fn leader_among(replicas: &[Replica<Journal>]) -> Replica<Journal> {
    let deadline = soon();
    loop {
        let statuses: Vec<ReplicaStatus> = replicas.iter().map(Replica::status).collect();
        let leader = statuses.iter().filter(|status| status.role == Role::Leader).max_by_key(|s| s.term);
        if let Some(leader) = leader {
            let follow = |voters: &BTreeSet<ReplicaId>| {
                let following = statuses
                    .iter()
                    .filter(|s| voters.contains(&s.replica))
                    .filter(|s| s.leader == Some(leader.replica) && s.term == leader.term);
                following.count() > voters.len() / 2
            };
            let replica = replicas.iter().find(|r| r.inner.replica == leader.replica).unwrap();
            // It takes commands once a quorum has answered it.
            if leader.members.voters.iter().all(follow) && replica.read_index(soon()).await.is_ok() {
                return replica.clone();
            }
        }
        assert!(Instant::now() < deadline, "nobody leads: {statuses:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Proposes to whoever leads until it is acknowledged, as a router would; gives how often it met an error whose effect
/// is unknown.
pub(super) async fn write(replicas: &[Replica<Journal>], command: Bytes) -> u32 {
    let (deadline, mut unknown) = (soon(), 0);
    loop {
        for replica in replicas {
            if replica.status().role != Role::Leader {
                continue;
            }
            let patience = Instant::now() + Duration::from_millis(700);
            match replica.propose(command.clone(), patience).await {
                Ok(_) => return unknown,
                Err(error) if error.effect() == Effect::Unknown => unknown += 1,
                Err(_) => {}
            }
        }
        let statuses: Vec<_> = replicas.iter().map(Replica::status).collect();
        assert!(Instant::now() < deadline, "not acknowledged: {statuses:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn three_replicas_apply_the_same() {
    let group = Group::of(3).await;
    let leader = group.leader().await;
    for n in 1..=50 {
        assert_eq!(put(&leader, command(n)).await, n);
    }
    group.agree().await;
    for replica in group.replicas() {
        let status = replica.status();
        assert_eq!(status.members.voters, [set(1..=3)]);
        assert_eq!(status.leader, Some(leader.inner.replica));
        let leads = status.replica == leader.inner.replica;
        assert_eq!(status.role, if leads { Role::Leader } else { Role::Follower });
        if !leads {
            let error = replica.propose(command(0), soon()).await.unwrap_err();
            assert!(
                matches!(error, ReplicaError::NotLeader { leader: Some(id) } if id == leader.inner.replica)
            );
        }
    }
}
