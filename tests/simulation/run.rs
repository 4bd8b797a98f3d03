//! One run: a seed, a cluster, harm, healing, and what the checkers say.
//!
//! ```text
//! found the cluster, make the collection -> harm while clients work -> heal -> clients end -> everything must be whole
//!   -> every node reads everything, state hashes, audit by vector, the feed to its end -> checkers
//! ```
//!
//! Invariants: a run has a thread of its own, whose runtime, clock and chance follow from the seed; a run that does not
//! become whole is a violation; so is a panic.

use crate::{
    clients::{Client, KEYS, Stage, witness},
    faults::Nemesis,
    network::Net,
    nodes::{Host, Site},
    record::{COLLECTION, Record, Told},
    regions,
    trace::Trace,
};
use annal::{
    cluster::{CollectionSpec, WriteOptions},
    model::{Distance, HnswParams, VectorParams},
    replica::CheckpointLimits,
    world,
};
use annal_jepsen::{
    checker::{self, Valid},
    history::{self, Outcome},
    point::DIM,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    env, io, panic,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant as RealInstant},
};
use tokio::{
    runtime::{Builder, RngSeed},
    time::{Instant, sleep, timeout},
};

thread_local! {
    /// What panicked on this thread.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// What nodes of this thread said of errors.
    static SAID: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes to `SAID`.
struct Said;

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SAID.with_borrow_mut(|said| said.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a node says when it gives up a replica whose state is wrong. Nothing here damages a state, and the replica that
/// takes its place would leave no sign of it.
const WRONG_STATE: [&str; 2] = ["the store has rotted", "a replica differs from the others"];

/// What a run came to.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) ops: usize,
    pub(crate) ok: usize,
    pub(crate) unknown: usize,
    pub(crate) messages: u64,
    /// What was done to it, and how often.
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) checked: u64,
    pub(crate) simulated: Duration,
    pub(crate) real: Duration,
    /// Lines of the trace and their checksum.
    pub(crate) trace: (u64, u32),
    pub(crate) text: Option<String>,
    pub(crate) findings: Vec<String>,
}

/// How long the cluster has to become whole once nothing goes wrong any more.
const HEAL_WITHIN: Duration = Duration::from_secs(90);
/// How long it has to found itself.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// How long the search for an order may take.
const CHECK_WITHIN: Duration = Duration::from_secs(20);

/// Notes panics of simulations instead of printing them.
pub(crate) fn note_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if world::is_simulated() {
            let noted = format!("{info}").replace('\n', " ");
            PANICS.with_borrow_mut(|panics| panics.push(noted));
        } else {
            before(info);
        }
    }));
}

/// Whether something panicked in this run.
pub(crate) fn has_panicked() -> bool {
    PANICS.with_borrow(|panics| !panics.is_empty())
}

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    /// One cluster.
    Cluster,
    /// Several regions, a cluster each.
    Regions,
}

impl Scene {
    pub(crate) fn named(name: &str) -> Option<Scene> {
        match name {
            "cluster" => Some(Scene::Cluster),
            "regions" => Some(Scene::Regions),
            _ => None,
        }
    }
}

/// Runs one seed on a thread of its own.
pub(crate) fn run(scene: Scene, seed: u64, keep_trace: bool) -> Report {
    let thread = std::thread::Builder::new().name(format!("seed {seed}")).stack_size(16 << 20);
    let work = move || {
        let began = RealInstant::now();
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
            .build()
            .expect("a runtime");
        let heard = env::var_os("ANNAL_LOG").is_none().then(|| {
            let errors = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).without_time();
            tracing::subscriber::set_default(errors.with_ansi(false).with_writer(|| Said).finish())
        });
        let mut report = runtime.block_on(async {
            world::simulate(seed);
            match scene {
                Scene::Cluster => simulate(seed, keep_trace).await,
                Scene::Regions => regions::simulate(seed, keep_trace).await,
            }
        });
        PANICS.with_borrow_mut(|panics| {
            report.findings.extend(panics.drain(..).map(|panic| format!("panic: {panic}")));
        });
        drop(heard);
        let said = SAID.take();
        let wrong = |line: &&str| WRONG_STATE.iter().any(|words| line.contains(words));
        let wrong =
            String::from_utf8_lossy(&said).lines().filter(wrong).map(str::to_owned).collect::<Vec<_>>();
        report.findings.extend(wrong);
        report.real = began.elapsed();
        report
    };
    thread.spawn(work).expect("a thread").join().unwrap_or_else(|_| lost(seed))
}

/// The run itself panicked.
fn lost(seed: u64) -> Report {
    Report {
        seed,
        nodes: 0,
        ops: 0,
        ok: 0,
        unknown: 0,
        messages: 0,
        faults: BTreeMap::new(),
        checked: 0,
        simulated: Duration::ZERO,
        real: Duration::ZERO,
        trace: (0, 0),
        text: None,
        findings: vec!["the run itself panicked".to_owned()],
    }
}

async fn simulate(seed: u64, keep_trace: bool) -> Report {
    let began = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let trace = Arc::new(Trace::new(keep_trace));
    let nodes = [3, 3, 3, 3, 4, 5][rng.random_range(0..6usize)];
    let shards = [1, 1, 2][rng.random_range(0..3usize)];
    let net = Net::new(StdRng::seed_from_u64(rng.random()), trace.clone());
    let folder = tempfile::Builder::new().prefix("annal-sim-").tempdir_in(memory()).expect("a folder");
    let site = Arc::new(Site {
        net: net.clone(),
        trace: trace.clone(),
        folder: folder.path().to_owned(),
        names: (1..=nodes).map(|n| format!("n{n}")).collect(),
        checkpoint: CheckpointLimits {
            every: Duration::from_millis(rng.random_range(500..5_000)),
            bytes: 64 << 20,
            keep_bytes: 16 << 20,
            keep_entries: if rng.random() { rng.random_range(1..10) } else { rng.random_range(10..120) },
        },
        segment_bytes: [16 << 10, 16 << 10, 64 << 10][rng.random_range(0..3usize)],
        segments: [6, 6, 12, 256][rng.random_range(0..4usize)],
        replace_after: Duration::from_secs(rng.random_range(3..30)),
        region: None,
    });
    let mut hosts: Vec<Host> = site.names.iter().map(|name| Host::new(name, site.clone())).collect();
    hosts.iter_mut().for_each(Host::start);
    let stage = Arc::new(Stage {
        record: Record::new(trace.clone()),
        names: site.names.clone(),
        entrances: hosts.iter().map(Host::watch).collect(),
        next_value: AtomicU64::new(1),
        over: AtomicBool::new(false),
        at_rest: AtomicBool::new(false),
        shed: Arc::default(),
        seed,
        shards,
    });
    let nemesis = StdRng::seed_from_u64(rng.random());
    let mut nemesis = Nemesis::new(nemesis, hosts, net.clone(), trace.clone(), &stage);
    let mut findings = Vec::new();
    match found(&mut nemesis, &stage).await {
        Ok(()) => live(&mut rng, &mut nemesis, &stage).await,
        Err(why) => findings.push(format!("not founded: {why}")),
    }
    let simulated = began.elapsed();
    let history = stage.record.history();
    let mut checked = 0;
    match checker::check(&history, CHECK_WITHIN) {
        Ok(verdicts) => {
            for (name, verdict) in verdicts {
                checked += verdict.checked;
                if verdict.valid == Valid::False {
                    let shown = verdict.findings.iter().take(3);
                    findings.extend(shown.map(|f| format!("{name}: {}: {} {:?}", f.anomaly, f.why, f.ops)));
                }
            }
        }
        Err(error) => findings.push(format!("no history: {error}")),
    }
    if !findings.is_empty() {
        findings.extend(nemesis.ends.iter().map(|end| format!("(ended by itself) {end}")));
    }
    let ops = history.ops().unwrap_or_default();
    let asked = |op: &&history::Op| op.f != "event";
    let count = |outcome| ops.iter().filter(asked).filter(|op| op.outcome == outcome).count();
    Report {
        seed,
        nodes,
        ops: ops.iter().filter(asked).count(),
        ok: count(Outcome::Ok),
        unknown: count(Outcome::Info),
        messages: net.messages(),
        faults: nemesis.done.iter().map(|(kind, count)| (format!("{kind:?}"), *count)).collect(),
        checked,
        simulated,
        real: Duration::ZERO,
        trace: trace.sum(),
        text: trace.take_text(),
        findings,
    }
}

/// A folder whose fsync costs nothing, where there is one.
pub(crate) fn memory() -> std::path::PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() }
}

/// Waits until the nodes are one cluster, and makes the collection.
async fn found(nemesis: &mut Nemesis, stage: &Arc<Stage>) -> Result<(), String> {
    let until = Instant::now() + FOUND_WITHIN;
    let mut made = false;
    loop {
        nemesis.watch_over(Duration::from_millis(100)).await;
        let why = match nemesis.why_not_whole().await {
            None if made => return Ok(()),
            None => "the collection is not made".to_owned(),
            Some(why) => why,
        };
        if Instant::now() > until || has_panicked() {
            return Err(why);
        }
        let Some((life, cluster)) = stage.entrances[0].borrow().clone().filter(|_| !made) else { continue };
        if nemesis.why_not_whole().await.is_some() {
            continue;
        }
        let vector = VectorParams::new(DIM as u32, Distance::Euclid, HnswParams::default());
        let spec = CollectionSpec {
            vectors: BTreeMap::from([(String::new(), vector)]),
            shard_number: stage.shards,
            replication_factor: 3,
            ..CollectionSpec::default()
        };
        let asked = life.spawn(async move {
            let options = WriteOptions::until(Instant::now() + Duration::from_secs(20));
            cluster.create_collection(COLLECTION, spec, &options).await
        });
        made = matches!(asked.await, Ok(Ok(_)));
    }
}

/// What is missing still when there is no more time for it.
async fn wait_whole(nemesis: &mut Nemesis) -> Option<String> {
    // A planted bug shows sooner, and what a run is busy with then costs much.
    let within = if env::var_os("ANNAL_MUTANT").is_some() { HEAL_WITHIN / 3 } else { HEAL_WITHIN };
    let until = Instant::now() + within;
    loop {
        nemesis.watch_over(Duration::from_millis(200)).await;
        let why = nemesis.why_not_whole().await;
        // A panic is found already, and what it left behind may be busy for long.
        if why.is_none() || Instant::now() >= until || has_panicked() {
            return why;
        }
    }
}

/// Harm, healing, and the last look.
async fn live(rng: &mut StdRng, nemesis: &mut Nemesis, stage: &Arc<Stage>) {
    let clients = rng.random_range(3..7);
    let pause_ms = [60, 200, 400][rng.random_range(0..3usize)];
    let working: Vec<_> = (0..clients)
        .map(|number| {
            let client = Client::new(stage.clone(), number);
            spawn(client.run(pause_ms))
        })
        .collect();
    let feed = spawn(witness(stage.clone()));
    let harm = Duration::from_millis(rng.random_range(6_000..18_000));
    let pause = Duration::from_millis(rng.random_range(150..1_500));
    nemesis.harm(harm, pause).await;
    nemesis.heal().await;
    nemesis.watch_over(Duration::from_millis(rng.random_range(0..3_000))).await;
    stage.over.store(true, Relaxed);
    for client in working {
        let _ = client.await;
    }
    let mut last = Client::new(stage.clone(), 1 << 21);
    let mut why = wait_whole(nemesis).await;
    if why.is_none() && rng.random() {
        // What each of them has in memory alone is gone now.
        nemesis.restart_all().await;
        why = wait_whole(nemesis).await;
    }
    let whole = why.is_none();
    let kind = if whole { history::Kind::Ok } else { history::Kind::Fail };
    last.note("converge", kind, why.map_or_else(Told::default, Told::failed)).await;
    if !whole {
        feed.abort();
        return;
    }
    let nodes = stage.names.len();
    // Every node takes a write again.
    for node in 0..nodes {
        if last.write_by(node, node as u64 % KEYS).await.is_none() {
            let why = format!("{} takes no writes though all is whole", stage.names[node]);
            last.note("converge", history::Kind::Fail, Told::failed(why)).await;
        }
    }
    stage.at_rest.store(true, Relaxed);
    let mut held = Vec::new();
    for node in 0..nodes {
        held = match last.read_all(node).await {
            Some(held) => held,
            None => {
                let why = format!("{} does not read though all is whole", stage.names[node]);
                last.note("converge", history::Kind::Fail, Told::failed(why)).await;
                Vec::new()
            }
        };
    }
    for scrub in [false, true] {
        last.compare(nodes.min(3), scrub).await;
    }
    for (n, point) in held.into_iter().enumerate() {
        last.find(n % nodes, "audit", point, n % 2 == 0).await;
    }
    if timeout(Duration::from_secs(60), feed).await.is_err() {
        last.note("converge", history::Kind::Fail, Told::failed("the feed has no end")).await;
    }
    sleep(Duration::from_millis(1)).await;
}

/// A task of no node.
pub(crate) fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}
