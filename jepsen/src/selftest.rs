//! Planted bugs: is each caught by real runs, and is the build without one left in peace?
//!
//! A binary that was built with mutants lists them (`annal mutants`) and behaves like one when `ANNAL_MUTANT` names
//! it.
//!
//! Invariants: a mutant is caught only by a run that is *not valid*; one that is merely inconclusive is not caught.
//! The clean build runs the same plans under the same seeds.
//! Not here: the bugs themselves, and the seeds of the simulation that must catch them too.

use crate::{
    checker::Valid,
    cluster::NetKind,
    nemesis::Family,
    run::{self, Plan, Results},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

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
    ("wrong_shard_accept", &["membership"], &[Family::Membership]),
    ("nondet_apply", &["register", "batch"], &[Family::Kill]),
];

/// For a mutant that is not among them.
const ANYTHING: Bait =
    ("", &["register", "batch", "tail", "search"], &[Family::Kill, Family::Partition, Family::Pause]);

/// Runs all mutants, or one, and prints what caught each; gives whether all were caught and the clean build was not
/// accused.
///
/// Errors: the binary has none, or not this one; nothing was checked.
pub fn run(binary: &Path, only: Option<&str>, out: &Path) -> Result<bool, String> {
    let mut mutants = run::mutants(binary)?;
    if let Some(only) = only {
        mutants.retain(|name| name == only);
    }
    if mutants.is_empty() {
        return Err(format!("{} knows no such mutant", binary.display()));
    }
    let mut passed = true;
    println!("| mutant | caught by | runs needed | clean build |\n|---|---|---|---|");
    for mutant in &mutants {
        let (caught, runs) = hunt(binary, mutant, out)?;
        let clean = run::run(&plan(binary, mutant, None, 1, out))?;
        let quiet = clean.valid != Valid::False;
        let (by, needed) = match caught {
            Some(by) => (by, runs.to_string()),
            None => ("nothing".to_owned(), format!("more than {runs}")),
        };
        passed &= quiet && by != "nothing";
        println!("| {mutant} | {by} | {needed} | {} |", if quiet { "no alarm" } else { "ACCUSED" });
    }
    Ok(passed)
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
    let folder: PathBuf = out.join(format!("{bait}-{}-{seed}", mutant.map_or("clean", |_| "planted")));
    Plan {
        workloads: workloads.iter().map(|name| (*name).to_owned()).collect(),
        families: families.to_vec(),
        nodes: 3,
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
    use crate::workload;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_bait_is_one_that_can_be_laid() {
        for (name, workloads, families) in BAITS.iter().chain([&ANYTHING]) {
            assert!(!workloads.is_empty() && !families.is_empty(), "{name}");
            assert!(workloads.iter().all(|workload| workload::by_name(workload).is_some()), "{name}");
        }
    }

    #[test]
    fn a_binary_without_mutants_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("annal");
        std::fs::write(&binary, "#!/bin/sh\ntest \"$1\" = --version && echo annal 0\n").unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let refused = run(&binary, None, dir.path()).unwrap_err();
        assert!(refused.contains("without mutants"), "{refused}");
        // A run with one is refused before anything starts.
        let plan = plan(&binary, "stale_read", Some("stale_read"), 1, dir.path());
        assert!(run::run(&plan).unwrap_err().contains("without mutants"));
    }
}
