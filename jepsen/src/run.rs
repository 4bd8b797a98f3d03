//! One run: a cluster, its clients and its nemesis, from the first operation to the verdict.
//!
//! ```text
//! DIR/history.jsonl   what happened            DIR/results.json   what the checkers say of it
//! DIR/nodes/n1.log    what a node said         DIR/index.html     for people
//! ```
//!
//! Invariants: a run is *valid* only if nothing was found, every checker came to its end, and there was enough of
//! everything that was asked for: operations, faults of every family, something to look at for every checker its
//! workloads are for. Whatever is missing makes it *unknown*, which is not a pass.

use crate::{
    checker::{self, Valid, Verdict},
    cluster::{Cluster, NetKind, Options},
    history::{History, Op, Outcome, Recorder},
    nemesis::{self, Family, Tallies},
    report, shell,
    workload::{self, Session, Shared, Workload},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of workloads; they run side by side.
    pub workloads: Vec<String>,
    /// What is broken.
    pub families: Vec<Family>,
    /// How many nodes; of several regions each has so many.
    pub nodes: usize,
    /// How long the way from one region to another takes.
    pub way: Duration,
    /// How long clients and nemesis work.
    pub time: Duration,
    /// Where all random numbers come from.
    pub seed: u64,
    /// What lies between nodes.
    pub net: NetKind,
    /// A planted bug.
    pub mutant: Option<String>,
    /// Where everything is written.
    pub out: PathBuf,
    /// The node's binary.
    pub binary: PathBuf,
    /// Clients of each workload.
    pub clients: usize,
    /// Operations a second, of all clients together.
    pub rate: u32,
}

impl Plan {
    /// How many regions its workloads are in.
    pub fn regions(&self) -> usize {
        let workloads = self.workloads.iter().filter_map(|name| workload::by_name(name));
        workloads.map(|workload| workload.regions()).max().unwrap_or(1)
    }
}

/// `results.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Whether the run is a pass.
    pub valid: Valid,
    /// Why it is not, in sentences.
    pub why: Vec<String>,
    /// Operations, and what became of them.
    pub ops: u64,
    /// Those that took effect.
    pub ok: u64,
    /// Those that had none.
    pub fail: u64,
    /// Those of which nobody knows.
    pub info: u64,
    /// Faults, by family.
    pub faults: Tallies,
    /// What each checker says.
    pub checks: BTreeMap<String, Verdict>,
    /// What was asked for.
    pub asked: Asked,
}

/// What of a plan a verdict depends on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Asked {
    /// Names of workloads.
    pub workloads: Vec<String>,
    /// Names of families.
    pub nemesis: Vec<String>,
    /// How many nodes, in each region.
    pub nodes: usize,
    /// How many regions; 0 in what was written before there were any, and means one.
    #[serde(default)]
    pub regions: usize,
    /// How long the way from one region to another took, in milliseconds.
    #[serde(default)]
    pub way_ms: u64,
    /// How long, in seconds.
    pub seconds: u64,
    /// The seed.
    pub seed: u64,
    /// What lay between nodes.
    pub net: String,
    /// The planted bug.
    pub mutant: Option<String>,
    /// What the binary says it is.
    pub binary: String,
}

/// How long the way between two regions takes, if nothing else is asked for: of a round trip over an ocean half.
pub const WAY: Duration = Duration::from_millis(35);

/// How long the searches for an order may take.
const CHECK_WITHIN: Duration = Duration::from_secs(60);
/// Operations a second that must have been answered, on average, for a run to say something.
const OKS_A_SECOND_MIN: u64 = 5;

/// Runs a plan and writes everything to its folder.
///
/// Errors: something that was asked for is not to be had; nothing was checked.
pub fn run(plan: &Plan) -> Result<Results, String> {
    let asked = asked(plan)?;
    let workloads: Vec<Box<dyn Workload>> =
        plan.workloads.iter().filter_map(|name| workload::by_name(name)).collect();
    if plan.out.join("history.jsonl").exists() {
        return Err(format!("{} holds a run already", plan.out.display()));
    }
    fs::create_dir_all(&plan.out).map_err(|e| format!("{}: {e}", plan.out.display()))?;
    let mut cluster = start(plan)?;
    for workload in &workloads {
        workload::prepare(workload.as_ref(), &mut cluster)?;
    }
    let recorder = Recorder::new(Some(&plan.out.join("history.jsonl"))).map_err(|e| e.to_string())?;
    let shared = Shared {
        recorder,
        urls: cluster.urls(),
        names: cluster.nodes.iter().map(|node| node.name.clone()).collect(),
        api_key: cluster.api_key.clone(),
        stop: AtomicBool::new(false),
        at_rest: AtomicBool::new(false),
        next_value: AtomicU64::new(1),
        seed: plan.seed,
    };
    let faults = live(plan, &mut cluster, &shared, &workloads);
    let history = shared.recorder.close().map_err(|e| e.to_string())?;
    let results = conclude(&history, asked, faults)?;
    if results.valid == Valid::True {
        cluster.discard_data();
    }
    drop(cluster);
    write(&plan.out, &history, &results)?;
    Ok(results)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends runs early from now on when somebody wants the process to end (SIGINT, SIGTERM, SIGHUP): what was broken is
/// healed and what was made is taken away; the run is inconclusive.
pub fn heed_interruptions() -> Result<(), String> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).map_err(|e| e.to_string())
}

/// Whether somebody wants the process to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Clients work and the nemesis breaks things; then everything is healed and looked at.
fn live(plan: &Plan, cluster: &mut Cluster, shared: &Shared, workloads: &[Box<dyn Workload>]) -> Tallies {
    let clients = workloads.len() * plan.clients;
    let rest = Duration::from_secs_f64(clients as f64 / f64::from(plan.rate.max(1)));
    thread::scope(|scope| {
        let _over = Over(shared);
        let mut workers = Vec::new();
        for (w, workload) in workloads.iter().enumerate() {
            for n in 0..plan.clients {
                let mut session = Session::new(shared, workload.name(), w * plan.clients + n);
                workers.push(scope.spawn(move || {
                    while !session.stopped() {
                        let started = Instant::now();
                        workload.step(&mut session);
                        thread::sleep(rest.saturating_sub(started.elapsed()));
                    }
                }));
            }
            let mut session = Session::new(shared, workload.name(), clients + w);
            scope.spawn(move || workload.beside(&mut session));
        }
        let faults = match plan.families.as_slice() {
            [] => {
                nemesis::pause(plan.time, Instant::now() + plan.time);
                Tallies::new()
            }
            families => nemesis::torment(cluster, &shared.recorder, families, plan.seed, plan.time),
        };
        shared.stop.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|worker| drop(worker.join()));
        workload::finish(cluster, shared, workloads);
        faults
    })
}

/// Tells every client that it is over, also when something panicked: a thread that waits for ever would hide that.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.0.at_rest.store(true, Ordering::Relaxed);
    }
}

fn start(plan: &Plan) -> Result<Cluster, String> {
    let root = rustix::process::geteuid().is_root();
    let options = Options {
        binary: plan.binary.clone(),
        regions: plan.regions(),
        // Moves and drains want somewhere to go.
        nodes: plan.nodes + usize::from(moves_replicas(plan)),
        net: plan.net,
        way: plan.way,
        disks: root && plan.families.iter().any(|family| family.wants_disks()),
        faketime: plan.families.contains(&Family::Clock).then(faketime).flatten(),
        mutant: plan.mutant.clone(),
        out: fs::canonicalize(&plan.out).map_err(|e| format!("{}: {e}", plan.out.display()))?,
    };
    Cluster::start(&options)
}

fn moves_replicas(plan: &Plan) -> bool {
    plan.families.contains(&Family::Membership) || plan.workloads.iter().any(|name| name == "membership")
}

/// Where libfaketime is, if it is installed.
fn faketime() -> Option<PathBuf> {
    let folders = [
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib/faketime",
        "/usr/local/lib/faketime",
    ];
    folders.iter().map(|folder| Path::new(folder).join("libfaketimeMT.so.1")).find(|path| path.exists())
}

/// Looks whether what is asked for can be had.
fn asked(plan: &Plan) -> Result<Asked, String> {
    if plan.regions() > 1 && plan.workloads.len() > 1 {
        return Err(format!("{} run alone, in a cluster for each region", plan.workloads.join(" and ")));
    }
    let binary = plan.binary.display().to_string();
    let version = shell::run(&binary, &["--version"]).map_err(|why| format!("no binary to run: {why}"))?;
    if let Some(mutant) = &plan.mutant {
        let known = mutants(&plan.binary, &[])?;
        if !known.contains(mutant) {
            return Err(format!("{binary} does not know the mutant {mutant}"));
        }
    }
    Ok(Asked {
        workloads: plan.workloads.clone(),
        nemesis: plan.families.iter().map(|family| family.name()).collect(),
        nodes: plan.nodes,
        regions: plan.regions(),
        way_ms: u64::try_from(plan.way.as_millis()).unwrap_or(u64::MAX),
        seconds: plan.time.as_secs(),
        seed: plan.seed,
        net: format!("{:?}", plan.net).to_lowercase(),
        mutant: plan.mutant.clone(),
        binary: version.trim().to_owned(),
    })
}

/// Planted bugs a binary knows (`annal mutants`, one a line), or those that it lists with `flags`.
///
/// Errors: it was built without them.
pub fn mutants(binary: &Path, flags: &[&str]) -> Result<Vec<String>, String> {
    if !binary.exists() {
        return Err(format!(
            "{} is not there; planted bugs want a binary that was built with them",
            binary.display()
        ));
    }
    let listed = shell::run(&binary.display().to_string(), &[&["mutants"], flags].concat());
    let listed = listed.map_err(|_| format!("{} was built without mutants", binary.display()))?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// Checks a history and says whether the run is a pass.
pub fn conclude(history: &History, asked: Asked, faults: Tallies) -> Result<Results, String> {
    let checks = checker::check(history, CHECK_WITHIN).map_err(|e| e.to_string())?;
    let ops = history.ops().map_err(|e| e.to_string())?;
    let count = |outcome| ops.iter().filter(|op| op.outcome == outcome).count() as u64;
    let (ok, fail, info) = (count(Outcome::Ok), count(Outcome::Fail), count(Outcome::Info));
    let mut why: Vec<String> = Vec::new();
    let mut valid = Valid::True;
    for (name, verdict) in &checks {
        valid = valid.max(verdict.valid);
        if verdict.valid != Valid::True {
            let first =
                verdict.findings.first().map(|finding| format!("{}: {}", finding.anomaly, finding.why));
            why.push(format!("{name} found {}: {}", verdict.found, first.unwrap_or_default()));
        }
    }
    let missing = missing(&asked, &faults, &checks, &ops, ok);
    if !missing.is_empty() {
        valid = valid.max(Valid::Unknown);
    }
    why.extend(missing);
    Ok(Results { valid, why, ops: ops.len() as u64, ok, fail, info, faults, checks, asked })
}

/// What there was too little of.
fn missing(
    asked: &Asked,
    faults: &Tallies,
    checks: &BTreeMap<String, Verdict>,
    ops: &[Op],
    ok: u64,
) -> Vec<String> {
    let mut missing = Vec::new();
    if interrupted() {
        missing.push("inconclusive: the run was interrupted".to_owned());
    }
    let least = OKS_A_SECOND_MIN * asked.seconds.max(1);
    if ok < least {
        missing.push(format!("inconclusive: {ok} operations were answered, {least} are the least"));
    }
    for family in &asked.nemesis {
        if faults.get(family).is_none_or(|tally| tally.installed == 0) {
            missing.push(format!("inconclusive: no fault of the family {family} was installed"));
        }
    }
    for workload in asked.workloads.iter().filter_map(|name| workload::by_name(name)) {
        for name in workload.proves() {
            if checks.get(*name).is_none_or(|verdict| verdict.checked == 0) {
                missing.push(format!("inconclusive: {name} had nothing to look at of {}", workload.name()));
            }
        }
        let finals = ops.iter().filter(|op| op.f == workload.shows() && op.outcome == Outcome::Ok);
        let of: BTreeSet<_> = finals.filter(|op| op.workload == workload.name()).map(|op| &op.node).collect();
        let nodes = asked.nodes * asked.regions.max(1);
        if of.len() < nodes {
            missing.push(format!(
                "inconclusive: {} nodes of {} showed the end of {}",
                of.len(),
                nodes,
                workload.name()
            ));
        }
        let compared = ops.iter().any(|op| {
            op.f == "state-hash"
                && op.outcome == Outcome::Ok
                && op.input["scrub"] == true
                && op.workload == workload.name()
        });
        if !compared {
            missing.push(format!(
                "inconclusive: the replicas of {} were not recomputed and compared",
                workload.name()
            ));
        }
        let end = match workload.name() {
            "tail" => Some("feed-end"),
            workload::REGION => Some("changes-end"),
            _ => None,
        };
        if end.is_some_and(|end| !ops.iter().any(|op| op.f == end && op.outcome == Outcome::Ok)) {
            missing.push("inconclusive: the change feed was not followed to its end".to_owned());
        }
    }
    missing
}

/// Writes results and report.
pub fn write(out: &Path, history: &History, results: &Results) -> Result<(), String> {
    let text = serde_json::to_string_pretty(results).map_err(|e| e.to_string())?;
    fs::write(out.join("results.json"), text + "\n").map_err(|e| e.to_string())?;
    fs::write(out.join("index.html"), report::page(history, results)?).map_err(|e| e.to_string())
}

/// Reads a run's results.
pub fn read_results(out: &Path) -> Result<Results, String> {
    let path = out.join("results.json");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}
