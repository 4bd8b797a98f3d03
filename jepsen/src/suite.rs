//! Fixed lists of runs: every workload with every family of faults, at small or at full length.

use crate::{
    checker::Valid,
    cluster::NetKind,
    nemesis::Family,
    run::{self, Plan},
    workload::{self, REGION},
};
use std::{path::Path, time::Duration};

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Three short runs; for every change.
    Ci,
    /// Every workload with every group of families; for every night.
    Nightly,
}

/// A run of a list.
struct Entry {
    name: &'static str,
    workloads: &'static [&'static str],
    families: &'static [Family],
    seconds: u64,
    net: NetKind,
}

const CI: &[Entry] = &[
    Entry {
        name: "processes",
        workloads: &["register", "dedup", "tail"],
        families: &[Family::Kill, Family::Pause],
        seconds: 20,
        net: NetKind::Proxy,
    },
    Entry {
        name: "links",
        workloads: &["register", "search", "read-view"],
        families: &[Family::Partition, Family::Slow],
        seconds: 20,
        net: NetKind::Proxy,
    },
    Entry {
        name: "damage",
        workloads: &["set", "batch"],
        families: &[Family::Flip, Family::Wipe, Family::Restart],
        seconds: 25,
        net: NetKind::Proxy,
    },
];

/// Families that are broken together.
const GROUPS: &[(&str, &[Family], NetKind)] = &[
    ("processes", &[Family::Kill, Family::Pause, Family::Restart], NetKind::Proxy),
    ("links", &[Family::Partition, Family::Slow], NetKind::Netns),
    ("disks", &[Family::Power, Family::Full, Family::Eio, Family::Readonly, Family::Freeze], NetKind::Proxy),
    ("damage", &[Family::Flip, Family::Truncate, Family::Wipe, Family::Snapshot], NetKind::Proxy),
    ("machine", &[Family::Clock, Family::Cpu, Family::Memory], NetKind::Proxy),
    ("changes", &[Family::Membership, Family::Kill, Family::Partition], NetKind::Proxy),
];

/// Families that are broken together where there are two regions, how many nodes each has, and where.
const OF_REGIONS: &[(&str, &[Family], usize, NetKind)] = &[
    ("homes", &[Family::Takeover, Family::Handover], 1, NetKind::Proxy),
    ("ways", &[Family::Apart, Family::Narrow, Family::Takeover], 1, NetKind::Netns),
    (
        "nodes",
        &[Family::Kill, Family::Pause, Family::Partition, Family::Takeover, Family::Handover],
        3,
        NetKind::Netns,
    ),
];

/// Runs a list, one after the other, and prints a table; gives the worst verdict. `time`: of each run of a night.
///
/// Errors: a run could not be made; the others were, and what they found was printed.
pub fn run(which: Which, seed: u64, time: Duration, out: &Path, binary: &Path) -> Result<Valid, String> {
    let plans = plans(which, seed, time, out, binary);
    let mut worst = Valid::True;
    let mut failed = Vec::new();
    println!("| run | seed | ops | ok | info | faults | verdict |\n|---|---|---|---|---|---|---|");
    for plan in plans.iter().take_while(|_| !run::interrupted()) {
        let name = plan.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match run::run(plan) {
            Ok(results) => {
                let faults: u64 = results.faults.values().map(|tally| tally.installed).sum();
                let run::Results { ops, ok, info, valid, .. } = &results;
                println!("| {name} | {} | {ops} | {ok} | {info} | {faults} | {valid:?} |", plan.seed);
                results.why.iter().for_each(|why| println!("|   | | | | | | {why} |"));
                worst = worst.max(results.valid);
            }
            Err(why) => {
                println!("| {name} | {} | | | | | not run: {why} |", plan.seed);
                failed.push(name);
            }
        }
    }
    if run::interrupted() {
        return Err("interrupted".to_owned());
    }
    if failed.is_empty() { Ok(worst) } else { Err(format!("not run: {}", failed.join(", "))) }
}

fn plans(which: Which, seed: u64, time: Duration, out: &Path, binary: &Path) -> Vec<Plan> {
    let plan = |name: String, workloads: &[&str], families: &[Family], time, net, seed| Plan {
        workloads: workloads.iter().map(|name| (*name).to_owned()).collect(),
        families: families.to_vec(),
        nodes: 3,
        way: run::WAY,
        time,
        seed,
        net,
        mutant: None,
        out: out.join(format!("{name}-{seed}")),
        binary: binary.to_owned(),
        clients: 4,
        rate: 300,
    };
    match which {
        Which::Ci => {
            let one = |(n, entry): (usize, &Entry)| {
                let Entry { name, workloads, families, seconds, net } = *entry;
                plan(
                    name.to_owned(),
                    workloads,
                    families,
                    Duration::from_secs(seconds),
                    net,
                    seed + n as u64 + 1,
                )
            };
            CI.iter().enumerate().map(one).collect()
        }
        Which::Nightly => {
            let mut plans = Vec::new();
            for workload in workload::of_one_region() {
                for (group, families, net) in GROUPS {
                    let (name, seed) = (format!("{workload}-{group}"), seed + plans.len() as u64 + 1);
                    plans.push(plan(name, &[workload], families, time, *net, seed));
                }
            }
            for (group, families, nodes, net) in OF_REGIONS {
                let (name, seed) = (format!("{REGION}-{group}"), seed + plans.len() as u64 + 1);
                let plan = plan(name, &[REGION], families, time, *net, seed);
                plans.push(Plan { nodes: *nodes, ..plan });
            }
            plans
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_night_every_workload_meets_every_family() {
        let plans = plans(Which::Nightly, 0, Duration::from_secs(1), Path::new("out"), Path::new("annal"));
        let met: BTreeSet<_> = plans
            .iter()
            .flat_map(|plan| plan.families.iter().map(|family| (plan.workloads[0].clone(), *family)))
            .collect();
        let (of_regions, met): (BTreeSet<_>, BTreeSet<_>) =
            met.into_iter().partition(|(name, _)| name == REGION);
        assert_eq!(met.len(), workload::of_one_region().count() * Family::all(1).len());
        assert!(
            Family::all(2)
                .iter()
                .filter(|family| family.is_of_regions())
                .all(|family| { of_regions.contains(&(REGION.to_owned(), *family)) })
        );
        let folders: BTreeSet<_> = plans.iter().map(|plan| &plan.out).collect();
        assert_eq!(folders.len(), plans.len());
    }
}
