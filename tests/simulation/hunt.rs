//! Planted bugs: is each one found, and is the program without one left in peace on the same seeds?
//!
//! Invariants: a mutant is a process of its own (`ANNAL_MUTANT`) of a build that has them (`target/mutants`); it is caught
//! by a run that is not valid, under one of the first seeds.
//! Not here: the bugs (`src/mutant.rs`, `wal/src/mutant.rs`), real runs (`cargo jepsen selftest`).

use crate::{
    Wish, all,
    run::{Report, Scene},
};
use annal::mutant::{MUTANTS, Shows};
use std::{
    env,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Seeds a mutant gets to be caught under.
pub(crate) const SEEDS_MAX: u64 = 20;

/// Seeds of regions under which the program without a bug is left in peace.
const CLEAN_REGIONS: u64 = 2;

/// Mutants that are sought from a later seed on, since the first ones have not just now what shows them: a node that comes
/// back by a snapshot after a shard has moved; a read at a leader that was cut off, of what its successor has changed. What
/// seeds do changes with the program.
const BEGIN: &[(&str, u64)] = &[("lease_read_skew", 41), ("membership_stale_on_snapshot", 131)];

/// Stands for all mutants.
const ALL: &str = "all";
const VARIABLE: &str = "ANNAL_MUTANT";

/// Whether this process is that mutant, or is to go through all of them.
pub(crate) fn is_planted(mutant: &str) -> bool {
    cfg!(feature = "mutants") && (mutant == ALL || env::var(VARIABLE).is_ok_and(|planted| planted == mutant))
}

/// Starts the process that is.
pub(crate) fn plant(mutant: &str, args: &[String]) -> ExitCode {
    if mutant != ALL && !simulated().any(|name| name == mutant) {
        let known: Vec<_> = simulated().collect();
        eprintln!("{mutant}: no mutant that a simulation shows; there are {}", known.join(" "));
        return ExitCode::from(2);
    }
    let mut command = match cfg!(feature = "mutants") {
        true => Command::new(env::current_exe().expect("this program has a file")),
        false => {
            let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
            cargo.args(["test", "--quiet", "--workspace", "--features", "mutants", "--target-dir"]);
            cargo.args(["target/mutants", "--test", "simulation", "--"]);
            cargo
        }
    };
    if mutant != ALL {
        command.env(VARIABLE, mutant);
    }
    match command.args(args).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{command:?}: {error}");
            ExitCode::from(2)
        }
    }
}

fn simulated() -> impl Iterator<Item = &'static str> {
    MUTANTS.iter().filter(|(.., shows)| !matches!(shows, Shows::RealRuns(_))).map(|(_, name, ..)| *name)
}

/// What shows a mutant.
fn scene(mutant: &str) -> Scene {
    let of_regions = MUTANTS.iter().any(|(_, name, _, shows)| *name == mutant && *shows == Shows::Regions);
    if of_regions { Scene::Regions } else { Scene::Cluster }
}

/// Runs seed after seed until the mutant of this process is caught; or, for all of them, a process each.
pub(crate) fn hunt(wish: &Wish) -> ExitCode {
    if wish.mutant.as_deref() == Some(ALL) {
        return hunt_all(wish);
    }
    let mutant = wish.mutant.as_deref().unwrap_or_default();
    let began = Instant::now();
    for seed in wish.seed..wish.seed + wish.seeds {
        let one = Wish::of(scene(mutant), seed, 1);
        let caught = all(&one, |_| ()).pop().filter(|report: &Report| !report.findings.is_empty());
        if let Some(report) = caught {
            let (seeds, took) = (seed - wish.seed + 1, began.elapsed().as_secs_f64());
            let by = report.findings[0].chars().take(160).collect::<String>();
            println!("| {mutant} | {seeds} | {took:.0} s | {by} |");
            return ExitCode::SUCCESS;
        }
    }
    println!("| {mutant} | more than {} | {:.0} s | nothing |", wish.seeds, began.elapsed().as_secs_f64());
    ExitCode::FAILURE
}

fn hunt_all(wish: &Wish) -> ExitCode {
    println!("| mutant | seeds needed | took | caught by |\n|---|---|---|---|");
    let (left, missed) = (Mutex::new(simulated()), Mutex::new(Vec::new()));
    let seeds = wish.seeds.to_string();
    let one_after_another = || {
        // The lock is not held while a mutant runs.
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(mutant) = next() {
            let later = BEGIN.iter().find(|(name, _)| *name == mutant).map_or(0, |(_, seed)| seed - 1);
            let seed = (wish.seed + later).to_string();
            let args = ["--mutant", mutant, "--seed", &seed, "--seeds", &seeds].map(str::to_owned);
            if plant(mutant, &args) != ExitCode::SUCCESS {
                missed.lock().unwrap_or_else(PoisonError::into_inner).push(mutant);
            }
        }
    };
    std::thread::scope(|scope| (0..wish.jobs).for_each(|_| drop(scope.spawn(one_after_another))));
    let missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let clean = Wish { trace: None, mutant: None, ..wish.clone() };
    let regions = Wish { scene: Scene::Regions, seeds: CLEAN_REGIONS, ..clean.clone() };
    let mut reports = all(&clean, |_| ());
    for (_, begin) in BEGIN {
        reports.extend(all(&Wish { seed: clean.seed + begin - 1, ..clean.clone() }, |_| ()));
    }
    let seeds = reports.len();
    reports.extend(all(&regions, |_| ()));
    let accused: Vec<u64> =
        reports.iter().filter(|report| !report.findings.is_empty()).map(|r| r.seed).collect();
    for (_, name, _, shows) in MUTANTS {
        match shows {
            Shows::Everywhere | Shows::Regions => {}
            Shows::RealRuns(why) => println!("{name}: in real runs alone ({why})"),
        }
    }
    println!("without a mutant: {seeds} seeds and {CLEAN_REGIONS} of regions, violations under {accused:?}");
    println!("not caught: {missed:?}");
    if missed.is_empty() && accused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
