//! One run with regions: a collection's home moves from one to another, by handovers and by takeovers of a home that is
//! cut off or down, while clients write wherever they are let; what was lost is compared with what is true.
//!
//! ```text
//! each region founds itself, one makes the collection, the others follow
//!   -> rounds: harm to ways and nodes -> takeover, handover or nothing -> both sides go on -> heal
//!      -> writers rest -> everyone follows the last home -> compare
//! ```
//!
//! Not here: who writes and reads (`region_clients`), what is compared (`region_truth`), HTTP and real time (`tests/regions.rs`).

use crate::{
    network::Net,
    nodes::{Host, OfRegion, Site},
    record::COLLECTION,
    region_clients::{Acked, Consumer, REGIONS, Stage, read, soon, write},
    region_truth::{REPLICAS, Rest, Truth, at_rest},
    run::{self, Report, spawn},
    trace::Trace,
    ways::{Door, Ways, url_of},
};
use annal::{
    cluster::{Cluster, CollectionSpec, WriteOptions},
    model::{Distance, HnswParams, VectorParams},
    replica::CheckpointLimits,
};
use annal_jepsen::point::DIM;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long regions have to agree once nothing goes wrong any more.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);
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
            region: Some(OfRegion { name: (*region).to_owned(), ways: ways.clone(), home_lease: lease }),
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
                        cluster
                            .create_collection(COLLECTION, spec, &WriteOptions::until(deadline))
                            .await
                            .map(drop)
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
        let (mut consumer, mut truth) = (Consumer::default(), Truth::of(self.stage.clone()));
        // A home that has just learned of its followers has heard of them then.
        self.watch_over(self.lease.unwrap_or_default()).await;
        for _ in 0..self.rng.random_range(3..7) {
            let Some(rest) = self.round(&mut consumer).await else { break };
            self.home = rest.home;
            truth.compare(&rest, &self.hosts, &mut consumer).await;
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

    /// Harm, a change of the home perhaps, healing, rest; none if there is no rest.
    async fn round(&mut self, consumer: &mut Consumer) -> Option<Rest> {
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
        if let Some(takes_over) = takes_over {
            self.move_home(to, takes_over).await;
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
            let why = match at_rest(&self.stage, &self.hosts).await {
                Ok(rest) => return Some(rest),
                Err(why) => why,
            };
            if Instant::now() >= until || run::has_panicked() {
                self.stage.find(format!("the regions do not come to rest: {why}"));
                return None;
            }
        }
    }

    /// Another region is asked to become the home.
    async fn move_home(&mut self, to: usize, takes_over: bool) {
        let moved = self.stage.ask(to, move |Door { regions, .. }| async move {
            match takes_over {
                true => regions.takeover(COLLECTION, soon()).await.map(drop),
                false => regions.handover(COLLECTION, soon()).await.map(drop),
            }
        });
        let moved = matches!(moved.await, Some(Ok(())));
        let what = if takes_over { "takeover" } else { "handover" };
        self.did(&if moved { what.to_owned() } else { format!("{what} that failed") });
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
}
