//! One run with regions: a collection's home moves from one to another, by handovers and by takeovers of a home that is
//! cut off or down, while clients write wherever they are let; what was lost is compared with what is true.
//!
//! ```text
//! each region founds itself, one makes the collection, the others follow
//!   -> rounds: harm to ways and nodes -> takeover, handover or nothing -> both sides go on -> heal
//!      -> writers rest -> everyone follows the last home -> compare
//! ```
//!
//! The truth is what clients were told: an acknowledged write has a shard, a position and a home. Of an operation of
//! unknown outcome either is possible, and where there was none, what is compared must be equal.
//! Not here: HTTP and real time (`tests/regions.rs`).

use crate::{
    network::Net,
    nodes::{Host, Site},
    record::COLLECTION,
    run::{self, Report, spawn},
    trace::Trace,
    ways::{Door, Ways, url_of},
};
use annal::{
    changefeed::{self, FeedEvent, FeedOptions, From, Op},
    cluster::{
        Cluster, ClusterError, CollectionSpec, Consistency, Description, HomeRecord, Loss, Part,
        PointSelector, ReadOptions, ShardHash, WriteOptions,
    },
    model::{
        Distance, Effect, Generation, HnswParams, PayloadSelector, Point, PointId, Position, Projection,
        RequestId, ScrollRequest, ShardNumber, Vector, VectorParams, VectorSelector,
    },
    replica::CheckpointLimits,
};
use annal_jepsen::point::{DIM, vector_of};
use futures::{StreamExt, pin_mut};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

const REGIONS: [&str; 3] = ["a", "b", "c"];
const KEYS: u64 = 12;
/// A region that has fewer nodes has fewer.
const REPLICAS: usize = 3;
/// How long one operation is given.
const OP_WITHIN: Duration = Duration::from_secs(3);
/// How long regions have to agree once nothing goes wrong any more.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);
/// Writes that a reader looks back at.
const RECENT: usize = 50;
/// A consumer that has heard of nothing new for so long has had everything.
const QUIET: Duration = Duration::from_millis(800);

/// A write that was acknowledged.
#[derive(Clone, Debug)]
struct Acked {
    region: usize,
    generation: Generation,
    shard: ShardNumber,
    position: Position,
    key: u64,
    /// None: it is deleted.
    value: Option<u64>,
    /// Its writer, and what that meant.
    intent: (u64, u64),
    /// Meant before: it may have taken a position of its own, of which nobody is told.
    again: bool,
    asked: Instant,
    at: Instant,
}

/// A write whose outcome nobody was told.
#[derive(Clone, Debug)]
struct Unknown {
    region: usize,
    key: u64,
    value: Option<u64>,
}

#[derive(Default)]
struct Told {
    acked: Vec<Acked>,
    unknown: Vec<Unknown>,
    refused: usize,
    findings: Vec<String>,
    checked: u64,
}

/// What writers, readers and the one who compares share.
struct Stage {
    ways: Arc<Ways>,
    trace: Arc<Trace>,
    regions: usize,
    next_value: AtomicU64,
    /// Writers wait.
    rest: AtomicBool,
    over: AtomicBool,
    /// Writes under way.
    under_way: AtomicU64,
    told: Mutex<Told>,
}

impl Stage {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, what: impl Into<String>) {
        self.told().findings.push(what.into());
    }

    fn checked(&self, count: usize) {
        self.told().checked += count as u64;
    }

    /// Asks a node of a region something within its life; none if nobody there says anything in time.
    async fn ask<T, F>(&self, region: usize, ask: impl FnOnce(Door) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let door = self.ways.door(REGIONS[region])?;
        let life = door.life.clone();
        let asked = life.spawn(ask(door));
        timeout(OP_WITHIN * 5, asked).await.ok()?.ok()
    }
}

fn point(id: u64, value: u64) -> Point {
    let payload = [("v".to_owned(), json!(value))].into_iter().collect();
    let vectors = BTreeMap::from([(String::new(), Vector::Dense(vector_of(id, value).to_vec()))]);
    Point { id: PointId::Num(id), vectors, payload }
}

fn soon() -> Instant {
    Instant::now() + OP_WITHIN
}

/// Writes wherever it is let; now and then again what it meant before, whatever became of that.
async fn write(stage: Arc<Stage>, mut rng: StdRng, writer: u64, pause_ms: u64) {
    let mut meant: Vec<(u64, Option<u64>)> = Vec::new();
    while !stage.over.load(Relaxed) {
        sleep(Duration::from_millis(rng.random_range(0..=pause_ms))).await;
        if stage.rest.load(Relaxed) {
            continue;
        }
        let region = rng.random_range(0..stage.regions);
        let again = !meant.is_empty() && rng.random_ratio(1, 6);
        let seq = if again { rng.random_range(0..meant.len()) } else { meant.len() };
        if !again {
            let value = (!rng.random_ratio(1, 5)).then(|| stage.next_value.fetch_add(1, Relaxed));
            meant.push((rng.random_range(0..KEYS), value));
        }
        let ((key, value), intent) = (meant[seq], (writer, seq as u64));
        let request = Some(RequestId { client: format!("writer{writer}"), seq: seq as u64 + 1 });
        if stage.ways.door(REGIONS[region]).is_none() {
            stage.told().refused += 1;
            continue;
        }
        stage.under_way.fetch_add(1, Relaxed);
        let asked = Instant::now();
        let answer = stage
            .ask(region, move |Door { regions, .. }| async move {
                let options = WriteOptions { wait: true, deadline: soon(), request, token: None };
                let cluster = regions.cluster();
                match value {
                    Some(value) => cluster.upsert(COLLECTION, vec![point(key, value)], &options).await,
                    None => {
                        let which = PointSelector::Ids(vec![PointId::Num(key)]);
                        cluster.delete_points(COLLECTION, which, &options).await
                    }
                }
            })
            .await;
        let mut told = stage.told();
        match answer {
            Some(Ok(written)) => {
                let (shard, position) = written.token.shards.iter().next().expect("one shard was written");
                let (shard, position, generation) = (*shard, *position, written.token.generation);
                let at = Instant::now();
                stage.trace.line(format_args!(
                    "{} took {key} {value:?} {generation:?} {shard} {position}",
                    REGIONS[region]
                ));
                told.acked.push(Acked {
                    region,
                    generation,
                    shard,
                    position,
                    key,
                    value,
                    intent,
                    again,
                    asked,
                    at,
                });
            }
            Some(Err(error)) if error.effect() == Effect::None => told.refused += 1,
            Some(Err(_)) | None => told.unknown.push(Unknown { region, key, value }),
        }
        drop(told);
        stage.under_way.fetch_sub(1, Relaxed);
    }
}

/// Reads at any region what its node has, and looks whether that is as old as it says at the most.
async fn read(stage: Arc<Stage>, mut rng: StdRng) {
    while !stage.over.load(Relaxed) {
        sleep(Duration::from_millis(rng.random_range(0..=400))).await;
        let (region, key) = (rng.random_range(0..stage.regions), rng.random_range(0..KEYS));
        let asked = Instant::now();
        let answer = stage
            .ask(region, move |Door { regions, .. }| async move {
                let local = Consistency::Local;
                let options = ReadOptions { consistency: local, ..ReadOptions::linearizable(soon()) };
                let ids = vec![PointId::Num(key)];
                regions.cluster().retrieve(COLLECTION, ids, whole(), &options).await
            })
            .await;
        let Some(Ok(seen)) = answer else { continue };
        let Some(as_of) = seen.age.and_then(|age| asked.checked_sub(age)) else { continue };
        let mut told = stage.told();
        let (mut younger, mut checked) = (None, 0);
        let known = |w: &&Acked| w.generation == seen.token.generation && w.at <= as_of;
        for write in told.acked.iter().rev().filter(known).take(RECENT) {
            let Some(shown) = seen.token.shards.get(&write.shard) else { continue };
            checked += 1;
            if write.position > *shown {
                younger = Some(format!(
                    "{write:?} was acknowledged before what {} shows at {shown}, age {:?}",
                    REGIONS[region], seen.age
                ));
            }
        }
        told.checked += checked;
        told.findings.extend(younger);
    }
}

fn whole() -> Projection {
    Projection { payload: PayloadSelector::All, vectors: VectorSelector::None }
}

/// A consumer of the change feed, wherever the home is.
#[derive(Default)]
struct Consumer {
    from: Option<From>,
    /// What the events come to.
    state: BTreeMap<u64, u64>,
    /// Values that came since it began.
    seen: BTreeSet<u64>,
    /// It may have had what the next home has not.
    ahead: bool,
    resumed: u64,
    expired: u64,
}

impl Consumer {
    /// Takes what there is in a region until that is quiet; `Err` if its token is no longer good there.
    async fn take(&mut self, stage: &Stage, region: usize) -> Result<bool, ()> {
        let Some(from) = self.from.clone() else { return Ok(false) };
        let answer = stage
            .ask(region, move |Door { regions, .. }| async move {
                let options = FeedOptions {
                    with_payload: true,
                    heartbeat: Duration::from_millis(100),
                    deadline: soon(),
                    ..FeedOptions::default()
                };
                let feed = changefeed::open(regions.cluster(), COLLECTION, from, options).await?;
                pin_mut!(feed);
                let (mut events, mut last) = (Vec::new(), Instant::now());
                while last.elapsed() < QUIET {
                    let Some(item) = feed.next().await else { break };
                    let event = item?;
                    if matches!(event, FeedEvent::Change(_)) {
                        last = Instant::now();
                    }
                    events.push(event);
                }
                Ok::<_, ClusterError>(events)
            })
            .await;
        match answer {
            Some(Ok(events)) => {
                self.resumed += 1;
                for event in events {
                    self.from = Some(From::Token(event.token().clone()));
                    let FeedEvent::Change(change) = event else { continue };
                    let PointId::Num(id) = change.id else { panic!("{} is none of ours", change.id) };
                    match change.op {
                        Op::Delete => drop(self.state.remove(&id)),
                        Op::Upsert { payload, .. } => {
                            let payload: Value =
                                serde_json::from_slice(payload.as_deref().unwrap_or_default()).expect("JSON");
                            let value = payload["v"].as_u64().expect("a number");
                            if !self.seen.insert(value) {
                                stage.find(format!("the feed has value {value} of point {id} twice"));
                            }
                            self.state.insert(id, value);
                        }
                    }
                }
                Ok(true)
            }
            Some(Err(ClusterError::TooOld { .. } | ClusterError::Expired(_))) => {
                self.expired += 1;
                self.from = None;
                Err(())
            }
            _ => Ok(false),
        }
    }

    /// Begins anew at what a region holds, which nobody changes meanwhile.
    async fn begin(&mut self, stage: &Stage, region: usize, held: &BTreeMap<u64, u64>) {
        self.state.clone_from(held);
        self.seen.clear();
        self.from = Some(From::Now);
        if self.take(stage, region).await != Ok(true) {
            self.from = None;
        }
    }
}

/// The run.
pub(crate) async fn simulate(seed: u64, keep_trace: bool) -> Report {
    let began = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let trace = Arc::new(Trace::new(keep_trace));
    let net = Net::new(StdRng::seed_from_u64(rng.random()), trace.clone());
    let ways = Ways::new(StdRng::seed_from_u64(rng.random()), trace.clone());
    ways.delay([0, 5, 40, 80][rng.random_range(0..4usize)]);
    let folder = tempfile::Builder::new().prefix("annal-sim-").tempdir_in(run::memory()).expect("a folder");
    let regions = [2, 2, 3][rng.random_range(0..3usize)];
    let shards = [1, 1, 2][rng.random_range(0..3usize)];
    let lease = rng.random_ratio(1, 3).then(|| Duration::from_millis(rng.random_range(800..2_000)));
    let mut hosts = Vec::new();
    for region in &REGIONS[..regions] {
        let nodes = [1, 1, 3][rng.random_range(0..3usize)];
        let site = Arc::new(Site {
            net: net.clone(),
            trace: trace.clone(),
            folder: folder.path().to_owned(),
            names: (1..=nodes).map(|n| format!("{region}{n}")).collect(),
            checkpoint: CheckpointLimits {
                every: Duration::from_millis(rng.random_range(500..5_000)),
                bytes: 64 << 20,
                keep_bytes: 16 << 20,
                keep_entries: 100,
            },
            // The least that the settings allow: steps of a copy are made for it.
            segment_bytes: 1 << 20,
            segments: [6, 256, 256][rng.random_range(0..3usize)],
            replace_after: Duration::from_secs(600),
            region: Some(((*region).to_owned(), ways.clone(), lease)),
        });
        let mut region: Vec<Host> = site.names.iter().map(|name| Host::new(name, site.clone())).collect();
        region.iter_mut().for_each(Host::start);
        hosts.push(region);
    }
    let stage = Arc::new(Stage {
        ways: ways.clone(),
        trace: trace.clone(),
        regions,
        next_value: AtomicU64::new(1),
        rest: AtomicBool::new(false),
        over: AtomicBool::new(false),
        under_way: AtomicU64::new(0),
        told: Mutex::default(),
    });
    let nodes = hosts.iter().map(Vec::len).sum();
    let mut run = Run {
        rng,
        trace: trace.clone(),
        net: net.clone(),
        hosts,
        stage: stage.clone(),
        home: 0,
        lease,
        at: Vec::new(),
        base: Base::default(),
        done: BTreeMap::new(),
    };
    if let Err(why) = run.found(shards).await {
        stage.find(why);
    } else {
        run.live().await;
    }
    let done = std::mem::take(&mut run.done);
    let told = stage.told();
    Report {
        seed,
        nodes,
        ops: told.acked.len() + told.unknown.len() + told.refused,
        ok: told.acked.len(),
        unknown: told.unknown.len(),
        messages: net.messages() + ways.messages(),
        faults: done,
        checked: told.checked,
        simulated: began.elapsed(),
        real: Duration::ZERO,
        trace: trace.sum(),
        text: trace.take_text(),
        findings: told.findings.clone(),
    }
}

/// What all regions held when they were last at rest: nothing before it is in doubt any more.
#[derive(Default)]
struct Base {
    held: BTreeMap<u64, u64>,
    /// The last position, by shard.
    at: Vec<Position>,
    generation: Generation,
    when: Option<Instant>,
}

struct Run {
    rng: StdRng,
    trace: Arc<Trace>,
    net: Arc<Net>,
    /// By region.
    hosts: Vec<Vec<Host>>,
    stage: Arc<Stage>,
    /// Whose turn it is to be the home.
    home: usize,
    lease: Option<Duration>,
    /// Where the shards were last seen at rest.
    at: Vec<Position>,
    base: Base,
    done: BTreeMap<String, u64>,
}

impl Run {
    fn did(&mut self, what: &str) {
        self.trace.line(format_args!("{what}"));
        *self.done.entry(what.to_owned()).or_default() += 1;
    }

    /// Time passes; a process that ended by itself is started again.
    async fn watch_over(&mut self, time: Duration) {
        sleep(time).await;
        for host in self.hosts.iter_mut().flatten() {
            if let Some(why) = host.ended() {
                self.trace.line(format_args!("{} ended: {why}", host.name));
                host.kill().await;
                host.start();
            }
        }
    }

    /// Until every region is a cluster, and all follow the first one's collection.
    async fn found(&mut self, shards: u32) -> Result<(), String> {
        let until = Instant::now() + SETTLE_WITHIN;
        let mut made = vec![false; self.hosts.len()];
        while !made.iter().all(|made| *made) {
            self.watch_over(Duration::from_millis(100)).await;
            let region = made.iter().position(|made| !made).expect("one is left");
            let nodes = self.hosts[region].len();
            let all_up = |cluster: &Cluster| cluster.unready().is_none();
            let answer = self
                .stage
                .ask(region, move |Door { regions, .. }| async move {
                    let cluster = regions.cluster();
                    if !all_up(cluster)
                        || cluster.topology().await["nodes"].as_array().map_or(0, Vec::len) < nodes
                    {
                        return Err("not founded".to_owned());
                    }
                    let deadline = Instant::now() + Duration::from_secs(10);
                    let outcome = if region == 0 {
                        let params = VectorParams::new(DIM as u32, Distance::Euclid, HnswParams::default());
                        let spec = CollectionSpec {
                            vectors: BTreeMap::from([(String::new(), params)]),
                            shard_number: shards,
                            replication_factor: REPLICAS as u32,
                            ..CollectionSpec::default()
                        };
                        cluster.create_collection(COLLECTION, spec, deadline).await.map(drop)
                    } else {
                        regions.follow(COLLECTION, &url_of(REGIONS[0]), deadline).await
                    };
                    outcome.map_err(|error| error.to_string())
                })
                .await;
            match answer {
                Some(Ok(())) => made[region] = true,
                Some(Err(why)) if Instant::now() > until => return Err(format!("not founded: {why}")),
                _ if Instant::now() > until => return Err("not founded".to_owned()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn live(&mut self) {
        let pause_ms = [60, 150, 400][self.rng.random_range(0..3usize)];
        let mut working = Vec::new();
        for writer in 0..self.rng.random_range(2..5) {
            let rng = StdRng::seed_from_u64(self.rng.random());
            working.push(spawn(write(self.stage.clone(), rng, writer, pause_ms)));
        }
        let rng = StdRng::seed_from_u64(self.rng.random());
        working.push(spawn(read(self.stage.clone(), rng)));
        let mut consumer = Consumer::default();
        // A home that has just learned of its followers has heard of them then.
        self.watch_over(self.lease.unwrap_or_default()).await;
        for _ in 0..self.rng.random_range(3..7) {
            let of = self.round(&mut consumer).await;
            let Some(of) = of else { break };
            self.compare(&of, &mut consumer).await;
            if !self.stage.told().findings.is_empty() || run::has_panicked() {
                break;
            }
            self.stage.rest.store(false, Relaxed);
        }
        let (resumed, expired) = (consumer.resumed, consumer.expired);
        self.done.extend([("resumed".to_owned(), resumed), ("expired".to_owned(), expired)]);
        self.stage.over.store(true, Relaxed);
        for work in working {
            let _ = work.await;
        }
    }

    /// Harm, a change of the home perhaps, healing, rest; gives what the home says then, or none if there is no rest.
    async fn round(&mut self, consumer: &mut Consumer) -> Option<Description> {
        let wait = Duration::from_millis(self.rng.random_range(200..3_000));
        self.watch_over(wait).await;
        let to = (self.home + self.rng.random_range(1..self.stage.regions)) % self.stage.regions;
        let takes_over = match self.rng.random_range(0..10) {
            0..7 => Some(true),
            7..9 => Some(false),
            _ => None,
        };
        let cut_off = self.harm(to, takes_over).await;
        let wait = Duration::from_millis(self.rng.random_range(0..2_000));
        self.watch_over(wait).await;
        if self.rng.random() {
            // What it sees now, the next home may not have.
            match consumer.take(&self.stage, self.home).await {
                Ok(more) => consumer.ahead = more,
                Err(()) => self.stage.find("a token was refused by the home that gave it"),
            }
        }
        match takes_over {
            Some(true) => {
                let taken = self
                    .stage
                    .ask(to, |Door { regions, .. }| async move {
                        regions.takeover(COLLECTION, soon()).await.map(drop)
                    })
                    .await;
                self.did(if matches!(taken, Some(Ok(()))) { "takeover" } else { "takeover that failed" });
            }
            Some(false) => {
                let handed = self
                    .stage
                    .ask(to, |Door { regions, .. }| async move {
                        regions.handover(COLLECTION, soon()).await.map(drop)
                    })
                    .await;
                self.did(if matches!(handed, Some(Ok(()))) { "handover" } else { "handover that failed" });
            }
            None => {}
        }
        let wait = Duration::from_millis(self.rng.random_range(0..2_500));
        self.watch_over(wait).await;
        if let Some(cut_off) = cut_off {
            self.outlive_lease(cut_off).await;
        }
        self.trace.line(format_args!("heal"));
        self.stage.ways.heal();
        self.net.heal();
        for host in self.hosts.iter_mut().flatten().filter(|host| !host.is_up()) {
            host.start();
        }
        let wait = Duration::from_millis(self.rng.random_range(0..2_000));
        self.watch_over(wait).await;
        self.stage.rest.store(true, Relaxed);
        let until = Instant::now() + SETTLE_WITHIN;
        loop {
            self.watch_over(Duration::from_millis(200)).await;
            let why = match self.at_rest().await {
                Ok(of) => return Some(of),
                Err(why) => why,
            };
            if Instant::now() >= until || run::has_panicked() {
                self.stage.find(format!("the regions do not come to rest: {why}"));
                return None;
            }
        }
    }

    /// Harms ways or nodes, before another region becomes the home perhaps; since when the home is cut off, if it is.
    async fn harm(&mut self, to: usize, takes_over: Option<bool>) -> Option<Instant> {
        let (old, new) = (REGIONS[self.home], REGIONS[to]);
        // A handover wants a way; a takeover is for when there is none, but may come at any time.
        let harms = if takes_over == Some(false) { 20 } else { 10 };
        match self.rng.random_range(0..harms) {
            0..3 => {
                self.did("cut");
                for other in REGIONS.iter().filter(|other| **other != old) {
                    self.stage.ways.cut(old, other);
                    self.stage.ways.cut(other, old);
                }
                return Some(Instant::now());
            }
            3..5 => {
                self.did("one way");
                let hears = self.rng.random();
                let (from, to) = if hears { (new, old) } else { (old, new) };
                self.stage.ways.cut(from, to);
            }
            5 => {
                self.did("lossy");
                self.stage.ways.lose(200);
            }
            6..8 => self.harm_nodes(self.home).await,
            8 => self.harm_nodes(to).await,
            _ => {}
        }
        None
    }

    /// A home that is cut off goes on for as long as its lease.
    async fn outlive_lease(&mut self, cut_off: Instant) {
        let Some(lease) = self.lease else { return };
        self.watch_over(lease).await;
        self.did("lease");
        let (until, told) = (cut_off + lease, self.stage.told());
        let late = |w: &&Acked| w.region == self.home && w.at > until;
        let late = told
            .acked
            .iter()
            .find(late)
            .map(|w| format!("{w:?} though the home is cut off since {cut_off:?}"));
        drop(told);
        late.into_iter().for_each(|late| self.stage.find(late));
        self.stage.checked(1);
    }

    /// Some of a region's nodes die.
    async fn harm_nodes(&mut self, region: usize) {
        for node in 0..self.hosts[region].len() {
            if node > 0 && !self.rng.random_ratio(1, 3) {
                continue;
            }
            if self.rng.random() {
                self.did("kill");
                self.hosts[region][node].kill().await;
            } else {
                self.did("power");
                self.hosts[region][node].cut_power(&mut self.rng).await;
            }
            if self.rng.random() {
                self.hosts[region][node].start();
            }
        }
    }

    /// The home's description, once one region is the home, the others follow it and hold the same.
    async fn at_rest(&mut self) -> Result<Description, String> {
        if self.stage.under_way.load(Relaxed) > 0 {
            return Err("writes are under way".to_owned());
        }
        let mut described = Vec::new();
        for (region, name) in REGIONS.iter().enumerate().take(self.stage.regions) {
            let answer = self
                .stage
                .ask(region, |Door { regions, .. }| async move {
                    regions.cluster().describe(COLLECTION, soon()).await
                })
                .await;
            match answer {
                Some(Ok(of)) => described.push(of),
                Some(Err(error)) => return Err(format!("{name}: {error}")),
                None => return Err(format!("{name} does not answer")),
            }
        }
        let homes: Vec<usize> =
            (0..described.len()).filter(|n| described[*n].region.part == Part::Home).collect();
        let [home] = homes[..] else {
            let parts: Vec<_> = described.iter().map(|of| &of.region.part).collect();
            return Err(format!("homes are {homes:?} of {parts:?}"));
        };
        let of = described[home].clone();
        for (region, there) in described.iter().enumerate().filter(|(region, _)| *region != home) {
            match &there.region.part {
                Part::Follower { home: url }
                    if *url == url_of(REGIONS[home]) && there.region.homes == of.region.homes => {}
                part => return Err(format!("{} is {part:?} of {:?}", REGIONS[region], there.region.homes)),
            }
        }
        if of.region.followers.len() + 1 != self.stage.regions {
            return Err(format!("the home knows of {:?}", of.region.followers));
        }
        if of.region.tell.is_some() {
            return Err("the old home is not told".to_owned());
        }
        // The last one is complete once the old home is back; those before were looked at in their turn.
        if let Some(loss) =
            of.region.losses.last().filter(|loss| loss.shards.iter().any(|shard| !shard.complete))
        {
            return Err(format!("a loss is not told whole: {loss:?}"));
        }
        let mut hashes: Vec<Vec<(Position, BTreeSet<String>)>> = Vec::new();
        for (region, hosts) in self.hosts.iter().enumerate() {
            let answer = self
                .stage
                .ask(region, |Door { regions, .. }| async move {
                    let local = Consistency::Local;
                    let options = ReadOptions { consistency: local, ..ReadOptions::linearizable(soon()) };
                    regions.cluster().state_hash(COLLECTION, None, false, &options).await
                })
                .await;
            let Some(Ok(shards)) = answer else { return Err(format!("{} has no hash", REGIONS[region])) };
            if let Some(few) = shards.iter().find(|shard| shard.replicas.len() < hosts.len().min(REPLICAS)) {
                return Err(format!("{}: {few:?}", REGIONS[region]));
            }
            let of = |shard: &ShardHash| (shard.position, shard.replicas.values().cloned().collect());
            hashes.push(shards.iter().map(of).collect());
        }
        hashes.dedup();
        if hashes.len() > 1 || hashes[0].iter().any(|(_, hashes)| hashes.len() > 1) {
            return Err(format!("they hold different things: {hashes:?}"));
        }
        self.home = home;
        self.at = hashes[0].iter().map(|(position, _)| *position).collect();
        Ok(of)
    }

    /// Compares what the home says was lost, and what it holds, with what clients know.
    async fn compare(&mut self, of: &Description, consumer: &mut Consumer) {
        let stage = self.stage.clone();
        let held = self.held().await;
        let Some(held) = held else { return stage.find("the home does not read though all is at rest") };
        let (acked, unknown) = {
            let told = stage.told();
            (told.acked.clone(), told.unknown.clone())
        };
        let (homes, base) = (&of.region.homes, std::mem::take(&mut self.base));
        for heard in stage.ways.heard() {
            let late = |w: &&Acked| {
                REGIONS[w.region] == heard.region && w.generation < heard.generation && w.asked > heard.at
            };
            if let Some(write) = acked.iter().find(late) {
                stage.find(format!("{heard:?}, and yet took {write:?}"));
            }
        }
        let lost = |w: &Acked| {
            next_home(homes, w.generation).is_some_and(|next| w.position >= next.firsts[w.shard.0 as usize])
        };
        let mut once = BTreeMap::new();
        for write in acked.iter().filter(|w| !lost(w)) {
            let first: &Acked = once.entry(write.intent).or_insert(write);
            if first.position != write.position {
                stage.find(format!("applied twice: {first:?} and {write:?}"));
            }
        }
        // The losses that this region knows are those of its own takeovers; older ones were looked at in their turn.
        for loss in of.region.losses.iter().filter(|loss| loss.generation > base.generation) {
            let Some(next) = homes.iter().find(|home| home.generation == loss.generation) else {
                stage.find(format!("a loss of no home: {loss:?}"));
                continue;
            };
            let before = before(homes, next.generation);
            let of_old = |w: &&Acked| w.generation == before && lost(w);
            let repeats =
                acked.iter().filter(|w| w.again && w.generation == before && Some(w.at) > base.when).count()
                    as u64;
            let of_old: Vec<_> = acked.iter().filter(of_old).collect();
            self.compare_loss(loss, next, &of_old, (&unknown, repeats));
        }
        // Nothing is lost but by a takeover.
        let newer = homes.iter().filter(|home| home.generation > base.generation);
        let handed = newer.filter(|home| of.region.losses.iter().all(|l| l.generation != home.generation));
        for next in handed {
            let before = before(homes, next.generation);
            let here = |w: &&Acked| w.generation == before && lost(w);
            // Another region may have taken over, and tells its own loss.
            if !self.taken_elsewhere(next.generation).await
                && let Some(write) = acked.iter().find(here)
            {
                stage.find(format!("lost by a handover: {write:?}"));
            }
        }
        stage.checked(acked.len());
        for key in 0..KEYS {
            let since = |w: &&Acked| base.at.get(w.shard.0 as usize).is_none_or(|at| w.position > *at);
            let of_key = acked.iter().filter(|w| w.key == key && !lost(w)).filter(since);
            let before = base.held.get(&key).copied();
            let last = of_key.max_by_key(|w| w.position).map_or(before, |w| w.value);
            let shown = held.get(&key).copied();
            let possible = |w: &Unknown| w.key == key && w.value == shown;
            if shown != last && !unknown.iter().any(possible) {
                stage.find(format!("point {key} is {shown:?}, and {last:?} was acknowledged last"));
            }
        }
        let had = consumer.from.is_some();
        match consumer.take(&stage, self.home).await {
            Ok(true) if consumer.state != held => {
                stage.find(format!("the feed comes to {:?}, the home holds {held:?}", consumer.state));
            }
            Ok(true) => stage.checked(held.len()),
            Ok(false) if had => stage.find("the home gives no feed though all is at rest"),
            // What it had of the old home is lost.
            Err(()) if consumer.ahead && of.region.generation() > base.generation => {}
            Err(()) => stage.find("a token was refused whose positions all came over"),
            Ok(false) => {}
        }
        if consumer.from.is_none() {
            consumer.begin(&stage, self.home, &held).await;
        }
        consumer.ahead = false;
        // Positions are equal everywhere: what was in doubt has happened or has not.
        stage.told().unknown.clear();
        self.base = Base {
            held,
            at: std::mem::take(&mut self.at),
            generation: of.region.generation(),
            when: Some(Instant::now()),
        };
    }

    async fn taken_elsewhere(&self, generation: Generation) -> bool {
        for region in 0..self.stage.regions {
            let answer = self
                .stage
                .ask(region, |Door { regions, .. }| async move {
                    regions.cluster().describe(COLLECTION, soon()).await
                })
                .await;
            if let Some(Ok(of)) = answer
                && of.region.losses.iter().any(|loss| loss.generation == generation)
            {
                return true;
            }
        }
        false
    }

    fn compare_loss(
        &self,
        loss: &Loss,
        next: &HomeRecord,
        lost: &[&Acked],
        (unknown, repeats): (&[Unknown], u64),
    ) {
        let stage = &self.stage;
        for (number, told) in loss.shards.iter().enumerate() {
            let lost: Vec<_> = lost.iter().filter(|w| w.shard.0 as usize == number).collect();
            stage.checked(lost.len() + 1);
            if told.from != next.firsts[number] {
                stage.find(format!(
                    "home {} begins at {}, and says {told:?}",
                    loss.generation.0, next.firsts[number]
                ));
            }
            let ids: BTreeSet<u64> =
                told.ids.iter().map(|id| if let PointId::Num(id) = id { *id } else { u64::MAX }).collect();
            if let Some(write) =
                lost.iter().find(|w| w.position > told.to || (w.value.is_some() && !ids.contains(&w.key)))
            {
                stage.find(format!("{write:?} is lost, and not named by {told:?}"));
            }
            let may: BTreeSet<u64> =
                lost.iter().map(|w| w.key).chain(unknown.iter().map(|u| u.key)).collect();
            if let Some(id) = ids.difference(&may).next() {
                stage.find(format!("point {id} is named and was not lost: {told:?}"));
            }
            let old = lost.first().map(|w| w.region);
            let doubtful = old.is_none_or(|old| unknown.iter().any(|u| u.region == old));
            let last = lost.iter().map(|w| w.position).max().unwrap_or_default();
            if !doubtful && !(last.0..=last.0 + repeats).contains(&told.to.0) {
                stage.find(format!("the last lost position is {last}, and {told:?} says another"));
            }
            if told.to >= told.from {
                self.compare_file(loss.generation, number, &ids, (told.from, told.to));
            }
        }
    }

    /// What was lost lies in a file of one of the old home's nodes.
    fn compare_file(
        &self,
        generation: Generation,
        shard: usize,
        ids: &BTreeSet<u64>,
        (from, to): (Position, Position),
    ) {
        let end = format!("-shard{shard}-home{}.jsonl", generation.0);
        let mut kept = Vec::new();
        for host in self.hosts.iter().flatten() {
            let files = std::fs::read_dir(host.lost_dir()).into_iter().flatten().filter_map(Result::ok);
            let files = files.map(|file| file.path()).filter(|path| path.to_string_lossy().ends_with(&end));
            for text in files.map(|path| std::fs::read_to_string(path).expect("a file that is there")) {
                let lines: Vec<Value> =
                    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
                let inside =
                    |line: &Value| line["position"].as_u64().is_some_and(|at| from.0 <= at && at <= to.0);
                let named: BTreeSet<u64> = lines.iter().filter_map(|line| line["id"].as_u64()).collect();
                kept.push(lines.iter().all(inside) && named == *ids);
            }
        }
        if !kept.contains(&true) {
            self.stage.find(format!("of {} files {end} none holds what was lost: {ids:?}", kept.len()));
        }
    }

    /// What the home holds.
    async fn held(&self) -> Option<BTreeMap<u64, u64>> {
        let answer = self
            .stage
            .ask(self.home, |Door { regions, .. }| async move {
                let request = ScrollRequest { offset: None, limit: 1_000, filter: None, projection: whole() };
                regions.cluster().scroll(COLLECTION, request, &ReadOptions::linearizable(soon())).await
            })
            .await;
        let points = answer?.ok()?.value.points;
        let of = |record: &annal::model::Record| {
            let payload: Value = serde_json::from_slice(record.payload.as_deref()?).ok()?;
            let PointId::Num(id) = record.id else { return None };
            Some((id, payload["v"].as_u64()?))
        };
        points.iter().map(of).collect()
    }
}

/// The home after one.
fn next_home(homes: &[HomeRecord], generation: Generation) -> Option<&HomeRecord> {
    homes.iter().find(|home| home.generation > generation)
}

/// The home before one.
fn before(homes: &[HomeRecord], generation: Generation) -> Generation {
    let before = homes.iter().map(|home| home.generation).filter(|of| *of < generation).max();
    before.unwrap_or(Generation(1))
}
