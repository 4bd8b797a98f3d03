//! What a load did, written down, and the checks of it.
//!
//! Points are registers. In a *private* register one worker writes the versions 1, 2, 3 …, so the order of writes is
//! known from the values; after a write whose effect is unknown the worker never writes that register again, so the
//! unknown write is the last one whenever it happens. In a *shared* register many workers write, and the order is
//! what the database says: the `operation_id` of each write. Either way a read names a write, and linearizability of
//! single reads and writes comes down to comparing ranks, in O(n log n):
//!
//! * a read is not older than any write that was acknowledged before it began (stale), nor than what an earlier
//!   read gave (inversion), and does not miss a point that one of them proves to exist (absent);
//! * it gives a value that was written (made up), not one whose write is said to have had no effect (ghost), nor one
//!   whose write began after the read ended (early);
//! * writes that follow each other in time follow each other in rank (order);
//! * at the end everything acknowledged is there, or superseded (lost); the end is a read like others.
//!
//! An operation has failed only if the node says `Annal-Effect: none` or was never reached; everything else that is
//! not an acknowledgement is *unknown*.
//! Not here: making the load (`workload`), deletes, operations on several points.
//! Source: Gibbons and Korach, "Testing shared memories" (1997): with the write order known, the test is easy.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use annal::model::PointId;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

/// Time since the load began, in nanoseconds.
pub type Nanos = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged or answered.
    Ok,
    /// Certainly without effect.
    Fail,
    /// Nobody knows.
    Unknown,
}

/// One operation on one register.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    pub key: u64,
    pub kind: Kind,
    /// What was written or read; 0: there was no such point.
    pub value: u64,
    /// Of an acknowledged write: its `operation_id`.
    pub position: u64,
    pub node: usize,
    pub invoked: Nanos,
    pub ended: Nanos,
    pub outcome: Outcome,
}

/// Where the order of writes is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One writer a register: the value is the rank.
    Values,
    /// Many writers a register: the position of the write is its rank.
    Positions,
}

/// Something that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    Stale,
    Inversion,
    Absent,
    MadeUp,
    Ghost,
    Early,
    WriteOrder,
    Lost,
}

/// What a check found.
#[derive(Default)]
pub struct Report {
    pub found: Vec<(Anomaly, String)>,
    /// Reads that were compared with at least one earlier operation.
    pub checks: usize,
}

impl Report {
    pub fn count(&self, of: Anomaly) -> usize {
        self.found.iter().filter(|(anomaly, _)| *anomaly == of).count()
    }

    /// Fails the test if anything was found.
    pub fn assert_clean(&self) {
        let first: Vec<_> = self.found.iter().take(10).map(|(a, why)| format!("{a:?}: {why}")).collect();
        assert!(self.found.is_empty(), "{} anomalies, first:\n{}", self.found.len(), first.join("\n"));
    }
}

/// All operations of a load.
#[derive(Default)]
pub struct History {
    pub ops: Vec<Op>,
    /// Errors, by what was answered.
    pub errors: BTreeMap<String, u64>,
    /// What workers noticed themselves.
    pub noticed: Vec<String>,
    /// Old requests that were sent again, and were told their first outcome or that they are too old.
    pub resent: u64,
    /// Those that were too old.
    pub forgotten: u64,
}

impl History {
    /// Checks every read, and the registers' values at the end: value by key, what is not there left out.
    pub fn check(&self, order: Order, end: &BTreeMap<u64, u64>) -> Report {
        let mut by_key: BTreeMap<u64, Vec<&Op>> = BTreeMap::new();
        for op in &self.ops {
            by_key.entry(op.key).or_default().push(op);
        }
        let mut report = Report::default();
        for (key, ops) in &by_key {
            check_register(order, ops, *key, end.get(key).copied().unwrap_or(0), &mut report);
        }
        for key in end.keys().filter(|key| !by_key.contains_key(key)) {
            report.found.push((Anomaly::MadeUp, format!("point {key} was never written")));
        }
        report
    }

    pub fn acknowledged(&self) -> usize {
        self.writes(Outcome::Ok).count()
    }

    pub fn writes(&self, outcome: Outcome) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(move |op| op.kind == Kind::Write && op.outcome == outcome)
    }

    pub fn reads(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(|op| op.kind == Kind::Read && op.outcome == Outcome::Ok)
    }

    /// From `fault` to the first acknowledgement of a write to `shard` that was invoked after it.
    pub fn outage(&self, fault: Nanos, shard: u32, shards: u32) -> Option<Duration> {
        let after = self.writes(Outcome::Ok).filter(|op| op.invoked >= fault);
        let first = after.filter(|op| shard_of(op.key, shards) == shard).map(|op| op.ended).min();
        first.map(|ended| Duration::from_nanos(ended - fault))
    }

    /// The longest time between two acknowledgements in a row of writes to `shard`.
    pub fn longest_pause(&self, shard: u32, shards: u32) -> Duration {
        let mut ended: Vec<_> = self
            .writes(Outcome::Ok)
            .filter(|op| shard_of(op.key, shards) == shard)
            .map(|op| op.ended)
            .collect();
        ended.sort_unstable();
        Duration::from_nanos(ended.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(0))
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let fail = self.writes(Outcome::Fail).count();
        let unknown = self.writes(Outcome::Unknown).count();
        let errors: Vec<_> = self.errors.iter().map(|(what, count)| format!("{count} x {what}")).collect();
        format!(
            "{} writes acknowledged, {fail} failed, {unknown} unknown; {} reads; {} sent again, {} of them too late; errors: [{}]",
            self.acknowledged(),
            self.reads().count(),
            self.resent,
            self.forgotten,
            errors.join("; ")
        )
    }
}

/// Something known to be at least so new once `at` has passed.
#[derive(Clone, Copy)]
struct Known {
    at: Nanos,
    rank: u64,
}

/// Sorted by time, each with the highest rank up to it.
fn frontier(mut known: Vec<Known>) -> Vec<Known> {
    known.sort_unstable_by_key(|k| k.at);
    let mut highest = 0;
    for k in &mut known {
        highest = highest.max(k.rank);
        k.rank = highest;
    }
    known
}

/// The highest rank known before `at`; 0 if none.
fn before(frontier: &[Known], at: Nanos) -> u64 {
    let count = frontier.partition_point(|k| k.at < at);
    count.checked_sub(1).map_or(0, |last| frontier[last].rank)
}

fn check_register(order: Order, ops: &[&Op], key: u64, end: u64, report: &mut Report) {
    let mut found = |anomaly, why: String| report.found.push((anomaly, format!("point {key}: {why}")));
    let writes: HashMap<u64, &Op> =
        ops.iter().filter(|op| op.kind == Kind::Write).map(|op| (op.value, *op)).collect();
    let rank_of = |value: u64| match order {
        Order::Values => Some(value),
        Order::Positions if value == 0 => Some(0),
        Order::Positions => writes.get(&value).filter(|op| op.outcome == Outcome::Ok).map(|op| op.position),
    };
    let acknowledged: Vec<&Op> = writes.values().filter(|op| op.outcome == Outcome::Ok).copied().collect();
    let known = |op: &&Op| Known { at: op.ended, rank: rank_of(op.value).unwrap_or(0) };
    let written = frontier(acknowledged.iter().map(known).collect());
    for op in &acknowledged {
        let rank = known(op).rank;
        if before(&written, op.invoked) >= rank {
            found(Anomaly::WriteOrder, format!("{op:?} stands before a write that was acknowledged earlier"));
        }
    }
    let reads: Vec<&Op> =
        ops.iter().filter(|op| op.kind == Kind::Read && op.outcome == Outcome::Ok).copied().collect();
    let seen = frontier(reads.iter().map(known).collect());
    let last = Op {
        key,
        kind: Kind::Read,
        value: end,
        position: 0,
        node: 0,
        invoked: Nanos::MAX,
        ended: Nanos::MAX,
        outcome: Outcome::Ok,
    };
    for read in reads.iter().copied().chain([&last]) {
        let at_end = read.invoked == Nanos::MAX;
        let by_write = before(&written, read.invoked);
        let by_read = before(&seen, read.invoked);
        report.checks += usize::from(!at_end && by_write.max(by_read) > 0);
        match writes.get(&read.value) {
            _ if read.value == 0 => {}
            None => found(Anomaly::MadeUp, format!("{read:?} gave what was never written")),
            Some(write) if write.outcome == Outcome::Fail => {
                found(Anomaly::Ghost, format!("{read:?} gave what {write:?} says it did not write"));
            }
            Some(write) if write.invoked > read.ended => {
                found(Anomaly::Early, format!("{read:?} gave what only {write:?} wrote"));
            }
            Some(_) => {}
        }
        // A write of unknown effect in a shared register has no rank to compare.
        let Some(rank) = rank_of(read.value) else { continue };
        if rank >= by_write.max(by_read) {
            continue;
        }
        let anomaly = match (at_end, read.value == 0) {
            (true, _) => Anomaly::Lost,
            (false, true) => Anomaly::Absent,
            (false, false) if rank < by_write => Anomaly::Stale,
            (false, false) => Anomaly::Inversion,
        };
        found(
            anomaly,
            format!(
                "{read:?} has rank {rank}, where {by_write} was acknowledged and {by_read} was read before"
            ),
        );
    }
}

/// The shard of a numbered point: XXH3 of its key, modulo 16,384 slots, in even ranges (as the formats promise).
pub fn shard_of(id: u64, shards: u32) -> u32 {
    let slot = xxhash_rust::xxh3::xxh3_64(&PointId::Num(id).to_key()) % 16_384;
    (slot * u64::from(shards) / 16_384) as u32
}

impl History {
    /// Takes in what another worker did.
    pub fn join(&mut self, other: History) {
        self.ops.extend(other.ops);
        self.noticed.extend(other.noticed);
        self.resent += other.resent;
        self.forgotten += other.forgotten;
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |anomaly| self.count(anomaly);
        write!(
            f,
            "{} checks: {} stale, {} inversions, {} absent, {} lost, {} others",
            self.checks,
            of(Anomaly::Stale),
            of(Anomaly::Inversion),
            of(Anomaly::Absent),
            of(Anomaly::Lost),
            of(Anomaly::MadeUp) + of(Anomaly::Ghost) + of(Anomaly::Early) + of(Anomaly::WriteOrder)
        )
    }
}
