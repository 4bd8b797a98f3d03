//! The one that breaks things: one fault after the other, each installed, held for some seconds, and healed.
//!
//! ```text
//! wait -> install -> hold -> heal -> (sometimes, and always after damage: wait until the cluster is whole) -> wait …
//! ```
//!
//! Invariants: a fault counts as *installed* only if something showed it (a process that is gone, a frame that was
//! dropped, a write that failed); what cannot be had here is *skipped* and says why; what nobody can tell is
//! *indeterminate*. Data of a minority alone is damaged, and only while the rest is whole. The same seed plans the
//! same faults.
//! Not here: what clients do meanwhile.

mod damage;
mod disk;
mod machine;
mod membership;
mod network;
mod process;
mod region;

pub(crate) use region::settled_value;

use crate::{cluster::Cluster, history::Recorder, run::interrupted};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

/// A kind of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Family {
    /// SIGKILL of one node, some, or all.
    Kill,
    /// SIGSTOP, and later SIGCONT.
    Pause,
    /// Power cut: what was not fsynced is gone (own disks).
    Power,
    /// Links cut: a node alone, one way, partly, a ring of majorities.
    Partition,
    /// Links slow and lossy.
    Slow,
    /// The wall clock jumps, or goes at another rate (libfaketime).
    Clock,
    /// The disk is full (own disks).
    Full,
    /// Every access of the disk fails (own disks).
    Eio,
    /// The disk turns read-only (own disks).
    Readonly,
    /// The disk hangs (own disks).
    Freeze,
    /// A bit of a stopped node's files is flipped.
    Flip,
    /// A file of a stopped node is cut short.
    Truncate,
    /// A node's folder is lost.
    Wipe,
    /// A node gets next to no processor time (control groups).
    Cpu,
    /// A node gets next to no more memory (control groups).
    Memory,
    /// Leadership, moves and drains.
    Membership,
    /// A node is away until the log no longer reaches back to it.
    Snapshot,
    /// All nodes are stopped in order and started again, one after the other.
    Restart,
    /// Nothing passes between two regions, both ways or one.
    Apart,
    /// The ways between two regions are longer, lossy, or carry little.
    Narrow,
    /// A region takes over from one that is cut off or down.
    Takeover,
    /// A region is handed the home.
    Handover,
}

impl Family {
    /// All that so many regions can have.
    pub fn all(regions: usize) -> Vec<Family> {
        let all = <Family as clap::ValueEnum>::value_variants().iter().copied();
        all.filter(|family| regions > 1 || !family.is_of_regions()).collect()
    }

    /// Whether it is something between two regions.
    pub fn is_of_regions(self) -> bool {
        matches!(self, Family::Apart | Family::Narrow | Family::Takeover | Family::Handover)
    }

    /// As on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Whether it wants each node to have a disk of its own.
    pub fn wants_disks(self) -> bool {
        matches!(self, Family::Power | Family::Full | Family::Eio | Family::Readonly | Family::Freeze)
    }

    /// Whether it takes something away that only a whole cluster can spare.
    fn damages(self) -> bool {
        self.wants_disks()
            || matches!(
                self,
                Family::Flip | Family::Truncate | Family::Wipe | Family::Snapshot | Family::Membership
            )
    }
}

/// A fault that is in force.
struct Injected {
    /// What was done, for people.
    what: Value,
    heal: Heal,
}

/// Takes a fault back. Errors: it may not have been in force.
type Heal = Box<dyn FnOnce(&mut Cluster, &Recorder) -> Result<(), String>>;

impl Injected {
    fn new(what: Value, heal: impl FnOnce(&mut Cluster) -> Result<(), String> + 'static) -> Self {
        Injected { what, heal: Box::new(move |cluster, _| heal(cluster)) }
    }

    /// One whose healing is part of the history.
    fn recorded(
        what: Value,
        heal: impl FnOnce(&mut Cluster, &Recorder) -> Result<(), String> + 'static,
    ) -> Self {
        Injected { what, heal: Box::new(heal) }
    }
}

/// A fault that is not in force.
enum Refused {
    /// It cannot be had here.
    Skipped(String),
    /// It was tried, and nobody can tell.
    Indeterminate(String),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Refused::Indeterminate(why)
    }
}

type Try = Result<Injected, Refused>;

/// Faults of one kind, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Shown to have been in force.
    pub installed: u64,
    /// Not to be had here.
    pub skipped: u64,
    /// Nobody can tell.
    pub indeterminate: u64,
}

/// By family's name.
pub type Tallies = BTreeMap<String, Tally>;

/// Tells the nemesis's random numbers from those of clients under the same seed.
const NEMESIS: u64 = 0x006e_656d_6573_6973;
/// Between two faults, and how long one lasts.
const WAIT_MS: std::ops::Range<u64> = 700..2_500;
const HOLD_MS: std::ops::Range<u64> = 1_500..5_000;
/// How long a cluster may take to be whole before it is damaged.
const WHOLE_WITHIN: Duration = Duration::from_secs(25);

/// Breaks things until the time is over; everything it installed is healed when it returns.
pub fn torment(
    cluster: &mut Cluster,
    recorder: &Recorder,
    families: &[Family],
    seed: u64,
    time: Duration,
) -> Tallies {
    let until = Instant::now() + time;
    let mut rng = StdRng::seed_from_u64(seed ^ NEMESIS);
    let mut tallies: Tallies = families.iter().map(|family| (family.name(), Tally::default())).collect();
    let mut next: Vec<Family> = Vec::new();
    loop {
        pause(Duration::from_millis(rng.random_range(WAIT_MS)), until);
        if next.is_empty() {
            next = families.to_vec();
            next.shuffle(&mut rng);
        }
        let Some(family) = next.pop().filter(|_| Instant::now() < until && !interrupted()) else {
            pause(time, until);
            cluster.revive();
            return tallies;
        };
        let tally = tallies.entry(family.name()).or_default();
        strike(cluster, recorder, family, &mut rng, until, tally);
        if family.damages() || rng.random() {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(5));
            if let Err(why) = cluster.wait_whole(WHOLE_WITHIN.min(left)) {
                recorder.fault("not-whole", json!({"after": family.name(), "why": why}));
            }
        }
    }
}

/// Installs one fault, holds it and heals it.
fn strike(
    cluster: &mut Cluster,
    recorder: &Recorder,
    family: Family,
    rng: &mut StdRng,
    until: Instant,
    tally: &mut Tally,
) {
    let name = family.name();
    let hold = Duration::from_millis(rng.random_range(HOLD_MS));
    let tried = match family.damages().then(|| cluster.wait_whole(WHOLE_WITHIN)) {
        Some(Err(why)) => Err(Refused::Skipped(format!("the cluster is not whole: {why}"))),
        _ => inject(cluster, recorder, family, rng),
    };
    if tried.is_err() {
        // It may have come half the way.
        cluster.links.heal();
        cluster.revive();
    }
    match tried {
        Ok(Injected { what, heal }) => {
            recorder.fault(&name, json!({"phase": "start", "what": what}));
            pause(hold, until);
            match heal(cluster, recorder) {
                Ok(()) => {
                    tally.installed += 1;
                    recorder.fault(&name, json!({"phase": "end", "outcome": "installed"}));
                }
                Err(why) => {
                    tally.indeterminate += 1;
                    recorder.fault(&name, json!({"phase": "end", "outcome": "indeterminate", "why": why}));
                }
            }
        }
        Err(Refused::Skipped(why)) => {
            tally.skipped += 1;
            recorder.fault(&name, json!({"phase": "none", "outcome": "skipped", "why": why}));
        }
        Err(Refused::Indeterminate(why)) => {
            tally.indeterminate += 1;
            recorder.fault(&name, json!({"phase": "none", "outcome": "indeterminate", "why": why}));
        }
    }
}

fn inject(cluster: &mut Cluster, recorder: &Recorder, family: Family, rng: &mut StdRng) -> Try {
    match family {
        Family::Kill => process::kill(cluster, rng),
        Family::Pause => process::pause(cluster, rng),
        Family::Restart => process::restart(cluster),
        Family::Snapshot => process::outlive_the_log(cluster, rng),
        Family::Partition => network::partition(cluster, rng),
        Family::Slow => network::slow(cluster, rng),
        Family::Power => disk::cut_power(cluster, rng),
        Family::Full => disk::fill(cluster, rng),
        Family::Eio => disk::fail(cluster, rng),
        Family::Readonly => disk::set_read_only(cluster, rng),
        Family::Freeze => disk::freeze(cluster, rng),
        Family::Flip => damage::flip(cluster, rng),
        Family::Truncate => damage::truncate(cluster, rng),
        Family::Wipe => damage::wipe(cluster, rng),
        Family::Clock => machine::clock(cluster, rng),
        Family::Cpu => machine::squeeze(cluster, rng, machine::Resource::Cpu),
        Family::Memory => machine::squeeze(cluster, rng, machine::Resource::Memory),
        Family::Membership => membership::change(cluster, rng),
        Family::Apart => region::apart(cluster, rng),
        Family::Narrow => region::narrow(cluster, rng),
        Family::Takeover => region::takeover(cluster, recorder, rng),
        Family::Handover => region::handover(cluster, recorder, rng),
    }
}

/// Sleeps, but not past the end, nor past an interruption.
pub(crate) fn pause(time: Duration, until: Instant) {
    let until = until.min(Instant::now() + time);
    while Instant::now() < until && !interrupted() {
        thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
    }
}

/// A node, of any region: half of the time one that leads a shard.
fn target(cluster: &Cluster, rng: &mut StdRng) -> usize {
    let shards = if rng.random() { cluster.status().shards } else { Vec::new() };
    let leaders: Vec<_> = shards.into_iter().filter_map(|row| row.leader).collect();
    let chosen = leaders.get(rng.random_range(0..leaders.len().max(1)));
    let number = chosen.and_then(|name| cluster.nodes.iter().position(|node| node.name == *name));
    number.unwrap_or_else(|| rng.random_range(0..cluster.len()))
}

/// Mostly one node, sometimes some, sometimes all.
fn targets(cluster: &Cluster, rng: &mut StdRng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..cluster.len()).collect();
    match rng.random_range(0..6) {
        0 => all,
        1 => {
            all.shuffle(rng);
            all.truncate(cluster.len().div_ceil(2));
            all
        }
        _ => vec![target(cluster, rng)],
    }
}

/// Names of nodes, for people.
fn names(cluster: &Cluster, of: &[usize]) -> Vec<String> {
    of.iter().map(|i| cluster.nodes[*i].name.clone()).collect()
}
