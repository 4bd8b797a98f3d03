//! Planted bugs: is each caught, and is the build without one left in peace?
//!
//! A binary that was built with mutants lists them (`annal mutants`) and behaves like one when `ANNAL_MUTANT` names
//! it. Those that a simulation shows are sought there, under 20 seeds; the others in three real runs of a minute.
//!
//! Invariants: a mutant is caught only by a run that is *not valid*; one that is merely inconclusive is not caught.
//! The clean build runs the same plans under the same seeds.
//! Not here: the bugs themselves, the simulation (`tests/simulation.rs` of the project, which cargo builds and runs).

use crate::{
    checker::Valid,
    cluster::NetKind,
    nemesis::Family,
    run::{self, Plan, Results},
    workload,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// What is asked for.
pub struct Asked<'a> {
    /// A binary that was built with mutants; none: it is built.
    pub binary: Option<&'a Path>,
    /// Only this one.
    pub only: Option<&'a str>,
    /// Seek all in real runs, also those that a simulation shows.
    pub real: bool,
    /// Where the runs' folders are made.
    pub out: &'a Path,
}

/// The build with mutants, beside the one without.
const TARGET: &str = "target/mutants";
const BINARY: &str = "target/mutants/debug/annal";

/// Seeds of the simulation a mutant gets to be caught under.
const SEEDS_MAX: u64 = 20;
/// Runs a mutant gets to be caught in, and how long each lasts.
const RUNS_MAX: u64 = 3;
const RUN: Duration = Duration::from_secs(60);

/// What brings a bug to light: clients, and what is broken meanwhile.
type Bait = (&'static str, &'static [&'static str], &'static [Family]);

const BAITS: &[Bait] = &[
    ("stale_read", &["register"], &[Family::Partition, Family::Pause]),
    ("lease_read_skew", &["register"], &[Family::Clock, Family::Pause, Family::Partition]),
    ("skip_fsync", &["register", "set"], &[Family::Power]),
    ("ack_before_quorum", &["register", "set"], &[Family::Kill, Family::Partition]),
    ("vote_not_durable", &["register"], &[Family::Power, Family::Kill]),
    ("apply_index_nonatomic", &["register", "tail"], &[Family::Kill]),
    ("drop_tail_entry", &["tail"], &[Family::Kill]),
    ("dup_tail_on_reconnect", &["tail"], &[Family::Kill]),
    ("dedup_forget_on_snapshot", &["dedup"], &[Family::Wipe, Family::Snapshot]),
    ("resurrect_delete_on_snapshot", &["register"], &[Family::Wipe, Family::Snapshot]),
    ("partial_batch", &["batch"], &[Family::Kill]),
    ("index_lag_no_wait", &["search"], &[Family::Pause]),
    ("index_drop_on_swap", &["search"], &[Family::Kill]),
    ("purge_other_group", &["register", "set"], &[Family::Snapshot, Family::Kill]),
    ("info_as_fail", &["register"], &[Family::Kill, Family::Partition]),
    ("ignore_eio", &["register", "set"], &[Family::Eio, Family::Power]),
    ("membership_stale_on_snapshot", &["membership"], &[Family::Membership, Family::Wipe]),
    ("follower_region_skip", &[workload::REGION], &[Family::Handover, Family::Kill]),
    ("wrong_shard_accept", &["membership"], &[Family::Membership]),
    ("nondet_apply", &["register", "batch"], &[Family::Kill]),
];

/// For a mutant that is not among them.
const ANYTHING: Bait =
    ("", &["register", "batch", "tail", "search"], &[Family::Kill, Family::Partition, Family::Pause]);

/// The mutants of a binary, by name.
///
/// Errors: it has none, it cannot be built.
pub fn list(binary: Option<&Path>) -> Result<Vec<String>, String> {
    run::mutants(&built(binary)?, &[])
}

/// Runs all mutants, or one, and prints what caught each; gives whether all were caught and the clean build was not
/// accused.
///
/// Errors: the binary has none, or not this one; nothing was checked.
pub fn run(asked: &Asked<'_>) -> Result<bool, String> {
    let binary = built(asked.binary)?;
    let mut mutants = run::mutants(&binary, &[])?;
    if asked.real {
        let of_one_cluster = run::mutants(&binary, &["--real"])?;
        mutants.retain(|name| of_one_cluster.contains(name) || shows_in_regions(name));
    }
    if let Some(only) = asked.only {
        mutants.retain(|name| name == only);
    }
    if mutants.is_empty() {
        return Err(format!("{} knows no such mutant", binary.display()));
    }
    let mut simulated = if asked.real { Vec::new() } else { run::mutants(&binary, &["--simulated"])? };
    simulated.retain(|name| mutants.contains(name));
    let rows = if simulated.is_empty() { BTreeMap::new() } else { simulate(asked.only)? };
    let mut passed = true;
    println!("| mutant | caught by | seeds or runs needed | clean build |\n|---|---|---|---|");
    for mutant in &mutants {
        let row = match rows.get(mutant) {
            Some(row) => row.clone(),
            None if simulated.contains(mutant) => {
                return Err(format!("the simulation says nothing of {mutant}"));
            }
            None => really(&binary, mutant, asked.out)?,
        };
        passed &= row.clean && row.by.is_some();
        let by = row.by.as_deref().unwrap_or("nothing");
        println!("| {mutant} | {by} | {} | {} |", row.needed, if row.clean { "no alarm" } else { "ACCUSED" });
    }
    Ok(passed)
}

/// Whether what brings a bug to light are real runs of two regions.
fn shows_in_regions(mutant: &str) -> bool {
    BAITS.iter().any(|(name, workloads, _)| *name == mutant && workloads.contains(&workload::REGION))
}

/// What became of a mutant, and of the clean build where it was sought.
#[derive(Clone)]
struct Row {
    by: Option<String>,
    needed: String,
    clean: bool,
}

fn built(binary: Option<&Path>) -> Result<PathBuf, String> {
    match binary {
        Some(binary) => Ok(binary.to_owned()),
        None => simulation(&["--no-run"], &[]).map(|_| PathBuf::from(BINARY)),
    }
}

/// Calls cargo for the simulation of the build with mutants, which builds the node's binary too; gives its output,
/// whatever it found.
fn simulation(cargo: &[&str], args: &[&str]) -> Result<String, String> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(program);
    command.args(["test", "--quiet", "--workspace", "--features", "mutants", "--target-dir", TARGET]);
    command.args(["--test", "simulation"]).args(cargo).arg("--").args(args);
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| format!("cargo: {error}"))?;
    let ran = output.status.success() || cargo.is_empty();
    if ran {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err("cargo cannot build".to_owned())
    }
}

/// Seeks those that a simulation shows.
fn simulate(only: Option<&str>) -> Result<BTreeMap<String, Row>, String> {
    let seeds = SEEDS_MAX.to_string();
    let hunted = simulation(&[], &["--mutant", only.unwrap_or("all"), "--seed", "1", "--seeds", &seeds])?;
    let clean = simulation(&[], &["--seed", "1", "--seeds", &seeds])?;
    rows(&hunted, clean.contains(&format!("{seeds} seeds:")) && !clean.contains("VIOLATION"))
}

/// Reads the table of `cargo sim --mutant`.
fn rows(hunted: &str, clean: bool) -> Result<BTreeMap<String, Row>, String> {
    let mut rows = BTreeMap::new();
    for line in hunted.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| mutant |")) {
        let cells: Vec<&str> = line.trim_matches('|').splitn(4, '|').map(str::trim).collect();
        let [mutant, needed, _, by] = cells[..] else { return Err(format!("no row of a table: {line}")) };
        let by = (by != "nothing").then(|| format!("simulation: {by}"));
        rows.insert(mutant.to_owned(), Row { by, needed: format!("{needed} seeds"), clean });
    }
    Ok(rows)
}

/// Seeks a mutant in real runs.
fn really(binary: &Path, mutant: &str, out: &Path) -> Result<Row, String> {
    let (by, runs) = hunt(binary, mutant, out)?;
    let clean = run::run(&plan(binary, mutant, None, 1, out))?.valid != Valid::False;
    let needed = if by.is_some() { format!("{runs} runs") } else { format!("more than {runs} runs") };
    Ok(Row { by: by.map(|by| format!("real run: {by}")), needed, clean })
}

/// Runs a mutant until it is caught; gives what caught it, and how many runs there were.
fn hunt(binary: &Path, mutant: &str, out: &Path) -> Result<(Option<String>, u64), String> {
    for seed in 1..=RUNS_MAX {
        let results = run::run(&plan(binary, mutant, Some(mutant), seed, out))?;
        if results.valid == Valid::False {
            return Ok((Some(catchers(&results)), seed));
        }
    }
    Ok((None, RUNS_MAX))
}

fn catchers(results: &Results) -> String {
    let found = results.checks.iter().filter(|(_, verdict)| verdict.valid == Valid::False);
    found.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

fn plan(binary: &Path, bait: &str, mutant: Option<&str>, seed: u64, out: &Path) -> Plan {
    let (_, workloads, families) = BAITS.iter().find(|(name, ..)| *name == bait).unwrap_or(&ANYTHING);
    // Two regions of three nodes are more than a bug in the way between them needs.
    let nodes = if shows_in_regions(bait) { 1 } else { 3 };
    let folder: PathBuf = out.join(format!("{bait}-{}-{seed}", mutant.map_or("clean", |_| "planted")));
    Plan {
        workloads: workloads.iter().map(|name| (*name).to_owned()).collect(),
        families: families.to_vec(),
        nodes,
        way: run::WAY,
        time: RUN,
        seed,
        net: NetKind::Proxy,
        mutant: mutant.map(str::to_owned),
        out: folder,
        binary: binary.to_owned(),
        clients: 4,
        rate: 300,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_bait_is_one_that_can_be_laid() {
        for (name, workloads, families) in BAITS.iter().chain([&ANYTHING]) {
            assert!(!workloads.is_empty() && !families.is_empty(), "{name}");
            assert!(workloads.iter().all(|workload| workload::by_name(workload).is_some()), "{name}");
        }
    }

    #[test]
    fn the_table_of_the_simulation_is_read() {
        let said = "| mutant | seeds needed | took | caught by |\n|---|---|---|---|\n\
            | stale_read | 1 | 3 s | end: shown | counted differ |\n| other | more than 20 | 60 s | nothing |\n\
            index_drop_on_swap: in real runs alone (why)\n";
        let rows = rows(said, true).unwrap();
        let stale = &rows["stale_read"];
        assert_eq!(
            (stale.by.as_deref(), &*stale.needed),
            (Some("simulation: end: shown | counted differ"), "1 seeds")
        );
        assert_eq!((&rows["other"].by, &*rows["other"].needed), (&None, "more than 20 seeds"));
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn a_binary_without_mutants_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("annal");
        std::fs::write(&binary, "#!/bin/sh\ntest \"$1\" = --version && echo annal 0\n").unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let asked = Asked { binary: Some(&binary), only: None, real: true, out: dir.path() };
        let refused = run(&asked).unwrap_err();
        assert!(refused.contains("without mutants"), "{refused}");
        // A run with one is refused before anything starts.
        let plan = plan(&binary, "stale_read", Some("stale_read"), 1, dir.path());
        assert!(run::run(&plan).unwrap_err().contains("without mutants"));
    }
}
