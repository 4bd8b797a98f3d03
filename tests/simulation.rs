//! The simulation: whole nodes in one process, on one clock, under faults that follow from a seed.
//!
//! ```sh
//! cargo sim --seed 1                  # one run
//! cargo sim --seed 1 --seeds 2000     # many
//! cargo sim --seed 7 --trace FILE     # what happened, line by line; the same in every process
//! cargo sim --scene regions --seeds 250
//!                                     # several regions instead of one cluster: homes move, what is lost is compared
//! ANNAL_LOG=annal=debug cargo sim --seed 7
//!                                     # what the nodes say meanwhile
//! cargo sim --mutant stale_read       # a planted bug: found within 20 seeds? (a build of its own, in target/mutants)
//! cargo sim --mutant all              # each of them, and then the same seeds without one
//! ```
//!
//! Without `--seed` and `--seeds` it is a test like others: a number of seeds, and one seed in two processes.
//!
//! What is real: everything from the cluster floor down, but sockets, HTTP/2, okaywal, fjall and graphs; their twins are
//! held to the same scripts by `wal/tests/suite.rs` and `src/store/tests.rs`.
//! Not here: HTTP, real disks and real clocks (`jepsen/`).

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/hunt.rs"]
mod hunt;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/nodes.rs"]
mod nodes;
#[path = "simulation/record.rs"]
mod record;
#[path = "simulation/region_clients.rs"]
mod region_clients;
#[path = "simulation/region_truth.rs"]
mod region_truth;
#[path = "simulation/regions.rs"]
mod regions;
#[path = "simulation/run.rs"]
mod run;
#[path = "simulation/trace.rs"]
mod trace;
#[path = "simulation/ways.rs"]
mod ways;

use run::{Report, Scene, run};
use std::{
    collections::BTreeMap,
    env,
    process::{Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What is wished for.
#[derive(Clone)]
struct Wish {
    scene: Scene,
    seed: u64,
    seeds: u64,
    jobs: usize,
    trace: Option<String>,
    mutant: Option<String>,
}

impl Wish {
    /// Seeds of a scene, two at a time.
    fn of(scene: Scene, seed: u64, seeds: u64) -> Wish {
        Wish { scene, seed, seeds, jobs: 2, trace: None, mutant: None }
    }
}

fn main() -> ExitCode {
    run::note_panics();
    // What the nodes say, beside the trace.
    if let Ok(filter) = env::var("ANNAL_LOG") {
        tracing_subscriber::fmt().without_time().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let args: Vec<String> = env::args().skip(1).collect();
    match wish(&args) {
        Ok(Some(Wish { mutant: Some(mutant), .. })) if !hunt::is_planted(&mutant) => {
            hunt::plant(&mutant, &args)
        }
        Ok(Some(wish)) if wish.mutant.is_some() => hunt::hunt(&wish),
        Ok(Some(wish)) => simulate(&wish),
        Ok(None) => test(&args),
        Err(why) => {
            eprintln!(
                "{why}\nusage: cargo sim [--scene cluster|regions] [--seed S] [--seeds N] [--jobs J] [--trace FILE] \
                 [--mutant M|all]"
            );
            ExitCode::from(2)
        }
    }
}

/// None: it is run as a test.
fn wish(args: &[String]) -> Result<Option<Wish>, String> {
    let mut wish = Wish::of(Scene::Cluster, 1, 1);
    let hunts = args.iter().any(|arg| arg == "--mutant");
    if hunts {
        wish.seeds = hunt::SEEDS_MAX;
    }
    let mut wished = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if !["--scene", "--seed", "--seeds", "--jobs", "--trace", "--mutant"].contains(&arg.as_str()) {
            if wished {
                return Err(format!("{arg} is not known here"));
            }
            return Ok(None);
        }
        wished = true;
        let value = args.next().ok_or_else(|| format!("{arg} wants a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{arg} wants a number, not {value}"));
        match arg.as_str() {
            "--scene" => {
                let scene = Scene::named(value);
                wish.scene = scene.ok_or_else(|| format!("--scene is cluster or regions, not {value}"))?;
            }
            "--seed" => wish.seed = number()?,
            "--seeds" => wish.seeds = number()?,
            "--jobs" => wish.jobs = number()?.max(1) as usize,
            "--mutant" => wish.mutant = Some(value.clone()),
            _ => wish.trace = Some(value.clone()),
        }
    }
    Ok(wished.then_some(wish))
}

fn simulate(wish: &Wish) -> ExitCode {
    let began = Instant::now();
    let reports = all(wish, |report| {
        println!("{}", line(report));
        report.findings.iter().for_each(|finding| println!("    {finding}"));
        if !report.findings.is_empty() {
            println!("    again: {}", again(wish.scene, report.seed));
        }
    });
    if let (Some(file), Some(text)) = (&wish.trace, reports.first().and_then(|r| r.text.as_deref()))
        && let Err(error) = std::fs::write(file, text)
    {
        eprintln!("{file}: {error}");
        return ExitCode::from(2);
    }
    let wrong: Vec<u64> = reports.iter().filter(|r| !r.findings.is_empty()).map(|r| r.seed).collect();
    println!("{}", summary(&reports, began.elapsed()));
    if wrong.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("violations under the seeds {wrong:?}");
    ExitCode::FAILURE
}

/// Runs all seeds on so many threads; `each` sees them as they end.
fn all(wish: &Wish, each: impl Fn(&Report) + Sync) -> Vec<Report> {
    let (next, reports) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..wish.jobs.min(wish.seeds as usize) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= wish.seeds {
                        return;
                    }
                    let report = run(wish.scene, wish.seed + n, wish.trace.is_some() && n == 0);
                    let mut reports = reports.lock().unwrap();
                    each(&report);
                    reports.push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap();
    reports.sort_by_key(|report| report.seed);
    reports
}

fn again(scene: Scene, seed: u64) -> String {
    let scene = if scene == Scene::Regions { "--scene regions " } else { "" };
    format!("cargo sim {scene}--seed {seed} --trace trace.txt")
}

fn line(report: &Report) -> String {
    let faults: Vec<String> = report.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    format!(
        "seed {}: {}, {} nodes, {} ops ({} ok, {} unknown), {} checks, {} messages, {:.1} s simulated in {:.2} s, \
         trace {} lines {:08x}; {}",
        report.seed,
        if report.findings.is_empty() { "valid" } else { "VIOLATION" },
        report.nodes,
        report.ops,
        report.ok,
        report.unknown,
        report.checked,
        report.messages,
        report.simulated.as_secs_f64(),
        report.real.as_secs_f64(),
        report.trace.0,
        report.trace.1,
        faults.join(", ")
    )
}

fn summary(reports: &[Report], took: Duration) -> String {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let mut kinds = BTreeMap::new();
    for (kind, count) in reports.iter().flat_map(|report| &report.faults) {
        *kinds.entry(kind.clone()).or_insert(0) += count;
    }
    format!(
        "{} seeds: {} ops ({} ok), {} faults, {} checks, {} messages, {:.0} s simulated in {:.0} s; {kinds:?}",
        reports.len(),
        sum(|r| r.ops as u64),
        sum(|r| r.ok as u64),
        kinds.values().sum::<u64>(),
        sum(|r| r.checked),
        sum(|r| r.messages),
        reports.iter().map(|r| r.simulated.as_secs_f64()).sum::<f64>(),
        took.as_secs_f64()
    )
}

/// Seeds that every `cargo test` runs: of a cluster, and of regions.
const TEST_SEEDS: u64 = 8;
const REGION_SEEDS: u64 = 6;

type Test = fn() -> Result<(), String>;

/// As `cargo test` calls it: with a filter, or `--list`, or neither.
fn test(args: &[String]) -> ExitCode {
    let tests: [(&str, Test); 3] = [
        ("seeds_are_valid", seeds_are_valid),
        ("regions_lose_only_what_they_name", regions_are_valid),
        ("a_seed_in_two_processes_is_the_same", twice),
    ];
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = false;
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        match test() {
            Ok(()) => println!("test {name} ... ok"),
            Err(why) => {
                println!("test {name} ... FAILED\n{why}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Seeds that have found something. What a seed does changes with the program, so they may meet something else by now.
const ONCE_WRONG: [u64; 2] = [862, 879];

fn seeds_are_valid() -> Result<(), String> {
    let began = Instant::now();
    let mut reports = all(&Wish::of(Scene::Cluster, 1, TEST_SEEDS), |_| ());
    for seed in ONCE_WRONG {
        reports.extend(all(&Wish::of(Scene::Cluster, seed, 1), |_| ()));
    }
    println!("{}", summary(&reports, began.elapsed()));
    let mut wrong = violations(Scene::Cluster, &reports);
    // A run in which little happened says little.
    if reports.iter().map(|report| report.ok).sum::<usize>() < 100 * TEST_SEEDS as usize / 2 {
        wrong += "too few operations came through to say anything\n";
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn regions_are_valid() -> Result<(), String> {
    let began = Instant::now();
    let reports = all(&Wish::of(Scene::Regions, 1, REGION_SEEDS), |_| ());
    println!("{}", summary(&reports, began.elapsed()));
    let mut wrong = violations(Scene::Regions, &reports);
    if reports.iter().filter_map(|report| report.faults.get("takeover")).sum::<u64>() < REGION_SEEDS {
        wrong += "too few takeovers to say anything\n";
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn violations(scene: Scene, reports: &[Report]) -> String {
    let mut wrong = String::new();
    for report in reports.iter().filter(|report| !report.findings.is_empty()) {
        wrong += &format!(
            "{}\n    {}\n    again: {}\n",
            line(report),
            report.findings.join("\n    "),
            again(scene, report.seed)
        );
    }
    wrong
}

/// One seed in two processes writes the same trace, byte by byte.
fn twice() -> Result<(), String> {
    twice_of("cluster", "3", 1_000)?;
    twice_of("regions", "8", 100)
}

fn twice_of(scene: &str, seed: &str, lines_min: usize) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let traces = [1, 2].map(|n| {
        let file = folder.path().join(format!("{n}"));
        let this = env::current_exe().unwrap();
        let run = Command::new(this)
            .args(["--scene", scene, "--seed", seed, "--trace"])
            .arg(&file)
            .output()
            .unwrap();
        (run.status.success(), std::fs::read_to_string(file).unwrap_or_default())
    });
    let [(good, first), (also_good, second)] = traces;
    if !good || !also_good {
        return Err(format!("a run of seed {seed} of {scene} was not valid"));
    }
    if first.lines().count() < lines_min {
        return Err(format!("a trace of {} lines says little", first.lines().count()));
    }
    match first.lines().zip(second.lines()).enumerate().find(|(_, (a, b))| a != b) {
        None if first == second => Ok(()),
        None => Err("one trace is longer than the other".to_owned()),
        Some((at, (a, b))) => Err(format!("line {at} differs:\n    {a}\n    {b}")),
    }
}
