//! What is broken, when, and how it is mended.
//!
//! Invariants: a seed takes some of the kinds and leaves the others, so that each also meets the rest alone; what
//! loses a node's data happens only to one node of a cluster that is whole; after `heal` nothing goes wrong any more.
//! Not here: what a kill or a cut does (`nodes`, `network`).

use crate::{
    clients::{Entrance, Stage},
    nodes::Host,
    record::COLLECTION,
    trace::Trace,
};
use annal::{
    cluster::{Cluster, PointSelector, WriteOptions},
    model::{PointId, ShardNumber},
};
use annal_jepsen::cluster::Status;
use annal_wal::Fault;
use rand::{
    Rng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A process is killed.
    Kill,
    /// All are, at once.
    KillAll,
    /// A process is asked to stop.
    Stop,
    /// A machine loses power.
    Power,
    /// Power fails in the midst of a commit, which leaves something.
    Torn,
    /// A write or an fsync of the log fails.
    Eio,
    /// The store cannot be made durable.
    Persist,
    /// Power fails between two steps of the store.
    Point,
    /// Some nodes do not reach the others.
    Partition,
    /// One node is not heard, or does not hear.
    OneWay,
    /// One node is cut off for so long that the others' logs no longer reach back to it, and perhaps killed then.
    Behind,
    /// A link is slow.
    Slow,
    /// Messages get lost.
    Lossy,
    /// Links are whole again.
    Mend,
    /// A machine's disks are replaced.
    Wipe,
    /// A shard moves to another node.
    Move,
    /// Another node is to lead a shard.
    Lead,
}

const KINDS: &[Kind] = &[
    Kind::Kill,
    Kind::KillAll,
    Kind::Stop,
    Kind::Power,
    Kind::Torn,
    Kind::Eio,
    Kind::Persist,
    Kind::Point,
    Kind::Partition,
    Kind::OneWay,
    Kind::Behind,
    Kind::Slow,
    Kind::Lossy,
    Kind::Wipe,
    Kind::Move,
    Kind::Lead,
];

/// The one that breaks things, and starts again what is down.
pub(crate) struct Nemesis {
    rng: StdRng,
    pub(crate) hosts: Vec<Host>,
    entrances: Vec<Entrance>,
    trace: Arc<Trace>,
    net: Arc<crate::network::Net>,
    kinds: Vec<Kind>,
    shards: u32,
    /// When nodes that are down come back.
    back: BTreeMap<usize, Instant>,
    /// Whose disks will fail, and whether the power fails with them.
    armed: BTreeMap<usize, bool>,
    /// Clients delete much meanwhile.
    shed: Arc<AtomicBool>,
    /// When a link that is harmed is mended.
    mend_at: Option<Instant>,
    pub(crate) done: BTreeMap<Kind, u64>,
    /// What nodes said when they ended by themselves.
    pub(crate) ends: Vec<String>,
}

impl Nemesis {
    pub(crate) fn new(
        mut rng: StdRng,
        hosts: Vec<Host>,
        net: Arc<crate::network::Net>,
        trace: Arc<Trace>,
        stage: &Stage,
    ) -> Nemesis {
        let kinds = KINDS.iter().copied().filter(|_| rng.random_ratio(1, 2)).collect();
        let entrances = hosts.iter().map(Host::watch).collect();
        let (shards, shed) = (stage.shards, stage.shed.clone());
        let (back, armed, mend_at, done, ends) = Default::default();
        Nemesis { rng, hosts, entrances, trace, net, kinds, shards, back, armed, shed, mend_at, done, ends }
    }

    fn name(&self, node: usize) -> String {
        self.hosts[node].name.clone()
    }

    fn others(&self, node: usize) -> Vec<usize> {
        (0..self.hosts.len()).filter(|other| *other != node).collect()
    }

    /// Breaks things for a time.
    pub(crate) async fn harm(&mut self, time: Duration, pause: Duration) {
        let until = Instant::now() + time;
        let mut next = Instant::now() + pause;
        while Instant::now() < until {
            self.watch_over(Duration::from_millis(25)).await;
            if self.mend_at.is_some_and(|at| at <= Instant::now()) {
                self.mend();
            }
            if next <= Instant::now() {
                if let Some(kind) = self.kinds.choose(&mut self.rng).copied() {
                    self.fault(kind).await;
                }
                next = Instant::now() + pause.mul_f64(self.rng.random_range(0.2..1.8));
            }
        }
    }

    /// Mends everything, and starts all that is down.
    pub(crate) async fn heal(&mut self) {
        self.trace.line(format_args!("heal"));
        self.mend();
        for (node, _) in std::mem::take(&mut self.armed) {
            // What its disk was told to do wrong goes with the power.
            self.hosts[node].cut_power(&mut self.rng).await;
        }
        self.back.clear();
        for node in 0..self.hosts.len() {
            if self.hosts[node].store.has_lost_power() {
                self.hosts[node].cut_power(&mut self.rng).await;
            }
        }
        for host in self.hosts.iter_mut().filter(|host| !host.is_up()) {
            host.start();
        }
    }

    /// Kills all processes and starts them again.
    pub(crate) async fn restart_all(&mut self) {
        self.trace.line(format_args!("restart all"));
        for host in &mut self.hosts {
            host.kill().await;
        }
        self.hosts.iter_mut().for_each(Host::start);
    }

    fn mend(&mut self) {
        self.mend_at = None;
        self.shed.store(false, Relaxed);
        self.net.heal();
        self.trace.line(format_args!("{:?}", Kind::Mend));
    }

    /// Lets time pass, and starts what is due.
    pub(crate) async fn watch_over(&mut self, time: Duration) {
        sleep(time).await;
        for node in 0..self.hosts.len() {
            if self.hosts[node].store.has_lost_power() {
                let name = self.name(node);
                self.trace.line(format_args!("{name} lost power"));
                self.armed.remove(&node);
                self.hosts[node].cut_power(&mut self.rng).await;
                self.comes_back(node, 1_500);
            }
            if let Some(why) = self.hosts[node].ended() {
                let name = self.name(node);
                self.trace.line(format_args!("{name} ended"));
                self.ends.push(format!("{name}: {why}"));
                if self.armed.remove(&node) == Some(true) {
                    self.hosts[node].cut_power(&mut self.rng).await;
                } else {
                    self.hosts[node].kill().await;
                }
                self.comes_back(node, 1_500);
            }
            if self.back.get(&node).is_some_and(|at| *at <= Instant::now()) {
                self.back.remove(&node);
                self.hosts[node].start();
            }
        }
    }

    fn comes_back(&mut self, node: usize, within_ms: u64) {
        let after = Duration::from_millis(self.rng.random_range(10..=within_ms));
        self.back.insert(node, Instant::now() + after);
    }

    async fn fault(&mut self, kind: Kind) {
        let node = self.rng.random_range(0..self.hosts.len());
        let name = self.name(node);
        if !self.hosts[node].is_up() && !matches!(kind, Kind::Slow | Kind::Lossy | Kind::KillAll) {
            return;
        }
        match kind {
            Kind::Wipe if self.why_not_whole().await.is_some() || !self.hosts[node].is_up() => return,
            Kind::Move if self.hosts.len() < 4 => return,
            _ => {}
        }
        self.trace.line(format_args!("{kind:?} {name}"));
        *self.done.entry(kind).or_default() += 1;
        match kind {
            Kind::Kill => {
                self.hosts[node].kill().await;
                self.comes_back(node, 4_000);
            }
            Kind::KillAll => {
                let power = self.rng.random();
                for node in 0..self.hosts.len() {
                    if power {
                        self.hosts[node].cut_power(&mut self.rng).await;
                    } else {
                        self.hosts[node].kill().await;
                    }
                    self.comes_back(node, 2_000);
                }
            }
            Kind::Stop => self.hosts[node].ask_to_stop(),
            Kind::Power => {
                self.hosts[node].cut_power(&mut self.rng).await;
                self.comes_back(node, 4_000);
            }
            Kind::Torn => {
                let bytes = self.rng.random_range(0..400);
                let fault = match self.rng.random_range(0..3) {
                    0 => Fault::Torn { bytes },
                    1 => Fault::Zeroed { tail_bytes: bytes },
                    _ => Fault::Garbled,
                };
                self.arm(node, fault, true);
            }
            Kind::Eio => {
                let fault = if self.rng.random() { Fault::Eio } else { Fault::LostFsync };
                let power = self.rng.random();
                self.arm(node, fault, power);
            }
            Kind::Persist => {
                self.hosts[node].store.fail_persist(self.rng.random_range(0..3));
                self.armed.entry(node).or_insert(false);
            }
            Kind::Point => {
                self.hosts[node].store.cut_power_after(self.rng.random_range(0..25));
                self.armed.insert(node, true);
            }
            Kind::Partition => {
                let mut side: Vec<usize> = self.others(node);
                side.retain(|_| self.rng.random_ratio(1, 3));
                side.push(node);
                for (a, b) in pairs(self.hosts.len()) {
                    if side.contains(&a) != side.contains(&b) {
                        self.net.cut(&self.name(a), &self.name(b));
                    }
                }
                self.mends_within(6_000);
            }
            Kind::OneWay => {
                let hears = self.rng.random();
                for other in self.others(node) {
                    let (from, to) = if hears { (node, other) } else { (other, node) };
                    if self.rng.random_ratio(3, 4) {
                        self.net.cut(&self.name(from), &self.name(to));
                    }
                }
                self.mends_within(6_000);
            }
            Kind::Behind => {
                for other in self.others(node) {
                    self.net.cut(&name, &self.name(other));
                    self.net.cut(&self.name(other), &name);
                }
                self.mend_at =
                    Some(Instant::now() + Duration::from_millis(self.rng.random_range(6_000..15_000)));
                // What it has then and the others have not.
                self.shed.store(true, Relaxed);
                // A log keeps what a member lacks until it wants the room.
                let helper = *self.others(node).choose(&mut self.rng).expect("there are others");
                self.ask(helper, fill_the_log);
                // What it will not have heard of: who holds the shard now.
                if self.hosts.len() > 3 {
                    let mut others = self.others(node);
                    others.shuffle(&mut self.rng);
                    let (from, to, shard) = (self.name(others[0]), self.name(others[1]), self.shard());
                    self.ask(others[0], async move |cluster| {
                        let _ = cluster.move_shard(COLLECTION, shard, &from, &to, soon()).await;
                    });
                }
            }
            Kind::Slow => {
                let more = self.rng.random_range(20..700);
                for other in self.others(node) {
                    self.net.slow(&name, &self.name(other), more);
                }
                self.mends_within(5_000);
            }
            Kind::Lossy => {
                self.net.lose(self.rng.random_range(10..200));
                self.mends_within(4_000);
            }
            Kind::Mend => self.mend(),
            Kind::Wipe => {
                self.hosts[node].wipe().await;
                self.comes_back(node, 1_000);
            }
            Kind::Move => {
                let to = *self.others(node).choose(&mut self.rng).expect("there are others");
                let (to, shard) = (self.name(to), self.shard());
                self.ask(node, async move |cluster| {
                    let _ = cluster.move_shard(COLLECTION, shard, &name, &to, soon()).await;
                });
            }
            Kind::Lead => {
                let shard = self.shard();
                self.ask(node, async move |cluster| {
                    let _ = cluster.lead_shard(COLLECTION, shard, &name, soon()).await;
                });
            }
        }
    }

    fn shard(&mut self) -> ShardNumber {
        ShardNumber(self.rng.random_range(0..self.shards))
    }

    /// Lets a commit soon to come go wrong.
    fn arm(&mut self, node: usize, fault: Fault, power: bool) {
        self.hosts[node].log.fail_commit(self.rng.random_range(0..20), fault);
        *self.armed.entry(node).or_insert(false) |= power;
    }

    fn mends_within(&mut self, ms: u64) {
        let at = Instant::now() + Duration::from_millis(self.rng.random_range(200..ms));
        self.mend_at = Some(self.mend_at.map_or(at, |before| before.max(at)));
    }

    /// Asks a node for something, and does not wait for it.
    fn ask<F>(&self, node: usize, what: impl FnOnce(Cluster) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some((life, cluster)) = self.entrances[node].borrow().clone() {
            life.spawn(what(cluster));
        }
    }

    /// What is missing for every node to be up and ready, and every replica in order, as all nodes see it.
    pub(crate) async fn why_not_whole(&mut self) -> Option<String> {
        let mut answers = Vec::new();
        for node in 0..self.hosts.len() {
            let name = self.name(node);
            let Some((life, cluster)) = self.entrances[node].borrow().clone() else {
                return Some(format!("{name} is not up"));
            };
            if let Some(why) = cluster.unready() {
                return Some(format!("{name} is not ready: {why}"));
            }
            let asked = life.spawn(async move { cluster.topology().await });
            match timeout(Duration::from_secs(3), asked).await {
                Ok(Ok(answer)) => answers.push(answer),
                _ => return Some(format!("{name} does not answer")),
            }
        }
        let (nodes, wanted) = (self.hosts.len(), self.hosts.len().min(3));
        for answer in &answers {
            let known = answer["nodes"].as_array().map_or(0, Vec::len);
            if known != nodes {
                return Some(format!("{known} nodes are known, {nodes} there are"));
            }
            let shards = answer["shards"].as_array().into_iter().flatten();
            for shard in shards.filter(|shard| !shard["collection"].is_null()) {
                let replicas = shard["replicas"].as_array().map_or(0, Vec::len);
                if replicas != wanted {
                    let shard = format!("{}: {}", shard["shard"], shard["replicas"]);
                    return Some(format!("{replicas} replicas, {wanted} are wanted, of shard {shard}"));
                }
            }
        }
        let read = answers.into_iter().map(|answer| serde_json::from_value(answer).expect("of this form"));
        read.map(|status: Status| status.why_not_whole()).find(Option::is_some).flatten()
    }
}

/// Writes large commands that change nothing.
async fn fill_the_log(cluster: Cluster) {
    for n in 0..60 {
        let nobody = (0..1_000).map(|id| PointId::Num((1 << 40) + 1_000 * n + id)).collect();
        let options = WriteOptions::until(soon());
        let _ = cluster.delete_points(COLLECTION, PointSelector::Ids(nobody), &options).await;
        sleep(Duration::from_millis(50)).await;
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
}
