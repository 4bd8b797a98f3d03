//! The exact check by versions: the database itself says in which order a point was written.
//!
//! The version of a write is its *rank*; what shows a value shows its rank. Then linearizability of one point comes
//! down to comparing ranks as time goes on:
//!
//! ```text
//! floor   the highest rank that any access had which ended before now
//! a read that begins at floor f must show a rank >= f; a write that begins at floor f must get a rank > f
//! "no such point" shows the lowest rank >= f at which the point was not there
//! ```
//!
//! Invariants: exact for points whose writes all have a rank, in O(n log n) whatever the concurrency. A write of
//! unknown outcome that nobody saw has no rank; what depends on it is left out and counted as not checked.
//! Source: Gibbons and Korach, "Testing shared memories" (1997).

use super::{
    Verdict,
    observe::{Access, Act, Registers},
};
use crate::history::NEVER;
use std::collections::{BTreeMap, BTreeSet};

/// Checks every point.
pub fn check(registers: &Registers) -> Verdict {
    let mut verdict = Verdict::default();
    for (key, accesses) in &registers.by_key {
        let ghost = |value| registers.ghosts.contains(&(*key, value));
        Point::new(*key, accesses, &mut verdict).check(accesses, ghost, &mut verdict);
    }
    verdict
}

/// What is known of the order in which a point was written.
struct Point {
    key: u64,
    /// What was written at each rank; at rank 0 nothing is there.
    ranks: BTreeMap<u64, Written>,
    /// Ranks at which the point was not there.
    absent: BTreeSet<u64>,
    by_value: BTreeMap<u64, u64>,
    /// Values whose writes have no rank, and whether a delete is among them.
    unranked: BTreeSet<u64>,
    unranked_delete: bool,
}

#[derive(Clone, Copy)]
struct Written {
    value: Option<u64>,
    op: u64,
}

/// What an access shows of the order.
enum Shows {
    Rank(u64),
    /// Nothing that can be compared.
    Nothing,
    /// It cannot be.
    Wrong(&'static str, String),
}

impl Point {
    fn new(key: u64, accesses: &[Access], verdict: &mut Verdict) -> Self {
        let mut point = Point {
            key,
            ranks: BTreeMap::from([(0, Written { value: None, op: 0 })]),
            absent: BTreeSet::from([0]),
            by_value: BTreeMap::new(),
            unranked: BTreeSet::new(),
            unranked_delete: false,
        };
        for access in accesses {
            if let Some(value) = access.act.writes() {
                point.wrote(value, access.version, access.op, verdict);
            }
        }
        point
    }

    fn wrote(&mut self, value: Option<u64>, rank: Option<u64>, op: u64, verdict: &mut Verdict) {
        let Some(rank) = rank else {
            match value {
                Some(value) => drop(self.unranked.insert(value)),
                None => self.unranked_delete = true,
            }
            return;
        };
        if let Some(other) = self.ranks.insert(rank, Written { value, op }) {
            let why = format!("two writes of point {} have version {rank}", self.key);
            verdict.wrong("one-version-twice", Some(self.key), &[other.op, op], why);
        }
        match value {
            Some(value) => drop(self.by_value.insert(value, rank)),
            None => drop(self.absent.insert(rank)),
        }
    }

    fn check(&self, accesses: &[Access], ghost: impl Fn(u64) -> bool, verdict: &mut Verdict) {
        let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(accesses.len() * 2);
        for (n, access) in accesses.iter().enumerate() {
            moments.push((access.invoked, false, n));
            if access.ended != NEVER {
                moments.push((access.ended, true, n));
            }
        }
        moments.sort_unstable();
        let mut floors = vec![Floor::default(); accesses.len()];
        let mut floor = Floor::default();
        for (_, ends, n) in moments {
            let access = &accesses[n];
            if !ends {
                floors[n] = floor;
                // It may never end, but if somebody saw it, it must not have been seen before it began.
                if access.ended == NEVER && access.act.writes().is_some() {
                    self.compare(access, floor, &ghost, verdict);
                }
            } else if let Some(rank) = self.compare(access, floors[n], &ghost, verdict) {
                floor = floor.max(Floor { rank, op: access.op });
            }
        }
        accesses.iter().for_each(|access| self.check_condition(access, verdict));
    }

    /// Compares what an access shows with the floor at which it began; gives its rank.
    fn compare(
        &self,
        access: &Access,
        floor: Floor,
        ghost: &impl Fn(u64) -> bool,
        verdict: &mut Verdict,
    ) -> Option<u64> {
        let writes = access.act.writes().is_some();
        let rank = match self.shows(access, floor.rank, ghost) {
            Shows::Nothing => return None,
            Shows::Rank(rank) => rank,
            Shows::Wrong(anomaly, why) => {
                verdict.wrong(anomaly, Some(self.key), &[floor.op, access.op], why);
                return None;
            }
        };
        verdict.checked += 1;
        if rank < floor.rank || writes && rank == floor.rank && rank > 0 {
            let anomaly = if writes { "order" } else { "stale" };
            let why = format!(
                "{:?} of point {} is at version {rank}, but version {} was known before it began",
                access.act, self.key, floor.rank
            );
            verdict.wrong(anomaly, Some(self.key), &[floor.op, access.op], why);
        }
        Some(rank)
    }

    fn shows(&self, access: &Access, floor: u64, ghost: &impl Fn(u64) -> bool) -> Shows {
        let key = self.key;
        match access.act {
            Act::Write(_) | Act::Cas { .. } => access.version.map_or(Shows::Nothing, Shows::Rank),
            // It has no version.
            Act::There(_) => Shows::Nothing,
            Act::Seen => match access.version {
                None => self.absent_from(floor),
                Some(version) => match self.ranks.get(&version) {
                    Some(Written { value: Some(_), .. }) => Shows::Rank(version),
                    None if !self.unranked.is_empty() => Shows::Rank(version),
                    _ => Shows::Wrong("made-up", format!("point {key} never had version {version}")),
                },
            },
            Act::Read(None) => self.absent_from(floor),
            Act::Read(Some(value)) => match self.by_value.get(&value) {
                Some(rank) if access.version.is_none_or(|version| version == *rank) => Shows::Rank(*rank),
                Some(rank) => {
                    let why = format!(
                        "value {value} of point {key} has version {rank}, shown {:?}",
                        access.version
                    );
                    Shows::Wrong("version", why)
                }
                None if self.unranked.contains(&value) => Shows::Nothing,
                None if ghost(value) => {
                    Shows::Wrong("ghost", format!("value {value} of point {key} was refused without effect"))
                }
                None => Shows::Wrong("made-up", format!("value {value} of point {key} was never written")),
            },
        }
    }

    /// The lowest rank from `floor` on at which the point was not there.
    fn absent_from(&self, floor: u64) -> Shows {
        let here = self.ranks.range(..=floor).next_back();
        if here.is_some_and(|(_, written)| written.value.is_none()) {
            return Shows::Rank(floor);
        }
        // One of unknown outcome may have been the delete, at a rank that nobody knows.
        if self.unranked_delete {
            return Shows::Nothing;
        }
        match self.absent.range(floor..).next() {
            Some(rank) => Shows::Rank(*rank),
            None => {
                let why = format!(
                    "point {} is not there, but version {floor} was, and no delete came after it",
                    self.key
                );
                Shows::Wrong("absent", why)
            }
        }
    }

    /// A write under a condition follows the version it names, with nothing in between.
    fn check_condition(&self, access: &Access, verdict: &mut Verdict) {
        let (Act::Cas { expected, .. }, Some(rank)) = (access.act, access.version) else { return };
        let Some((before, written)) = self.ranks.range(..rank).next_back() else { return };
        let fits = match expected {
            Some(version) if *before == version => written.value.is_some(),
            Some(version) => !self.unranked.is_empty() && !self.ranks.contains_key(&version),
            None => written.value.is_none() || self.unranked_delete,
        };
        verdict.checked += 1;
        if !fits {
            let why = format!(
                "a write of point {} at version {expected:?} became version {rank}, but version {before} came between",
                self.key
            );
            verdict.wrong("lost-update", Some(self.key), &[written.op, access.op], why);
        }
    }
}

/// The highest rank known, and which operation showed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Floor {
    rank: u64,
    op: u64,
}
