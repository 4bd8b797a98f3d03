//! A set that only grows: every element added is there for ever, and nothing else is.
//!
//! Invariants: a reading shows every element whose addition ended before it began, none that was never added, none
//! whose addition had no effect, and none whose addition began after it ended.
//! Not here: one reading against another (points have versions; see `versioned`).

use super::{Verdict, observe::hits_of};
use crate::history::{NEVER, Op, Outcome};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks every `members` (and `final`) against every `add`.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let adds: BTreeMap<u64, &Op> =
        ops.iter().filter(|op| op.f == "add").filter_map(|op| Some((op.key?, op))).collect();
    if adds.is_empty() {
        return verdict;
    }
    let mut by_end: Vec<&Op> = adds.values().copied().filter(|op| op.ended != NEVER).collect();
    by_end.retain(|op| op.outcome == Outcome::Ok);
    by_end.sort_by_key(|op| op.ended);
    let readings = ops.iter().filter(|op| ["members", "final"].contains(&op.f.as_str()));
    for reading in readings.filter(|op| op.outcome == Outcome::Ok) {
        let shown: BTreeSet<u64> = match reading.f.as_str() {
            "final" => hits_of(reading).into_iter().map(|hit| hit.id).collect(),
            _ => reading.output.as_array().into_iter().flatten().filter_map(Value::as_u64).collect(),
        };
        let due = by_end.partition_point(|op| op.ended < reading.invoked);
        verdict.checked += due as u64;
        for add in by_end[..due].iter().filter(|op| op.key.is_some_and(|key| !shown.contains(&key))) {
            verdict.wrong(
                "lost",
                add.key,
                &[add.invoked, reading.invoked],
                "an element that was added is missing",
            );
        }
        for key in &shown {
            let (anomaly, add) = match adds.get(key) {
                None => ("made-up", None),
                Some(add) if add.outcome == Outcome::Fail => ("ghost", Some(add.invoked)),
                Some(add) if add.invoked > reading.ended => ("early", Some(add.invoked)),
                Some(_) => continue,
            };
            let shows: Vec<u64> = add.into_iter().chain([reading.invoked]).collect();
            verdict.wrong(anomaly, Some(*key), &shows, format!("element {key} cannot be there"));
        }
    }
    verdict
}
