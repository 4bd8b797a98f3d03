//! Every answer shows whole points: payload and vector of one write, and only points that pass its filter.
//!
//! An answer that is none of what was asked for is *odd*, and was recorded so.
//!
//! Invariants: the vector is the function of id and value that `point` says; an answer names no point twice.

use super::{Verdict, observe::hits_of};
use crate::history::{Op, Outcome};
use std::collections::BTreeSet;

/// What the error of an answer begins with that should not be.
pub const ODD: &str = "odd: ";

/// Checks the points of every answer.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    for op in ops {
        if let Some(odd) = op.error.as_deref().and_then(|error| error.strip_prefix(ODD)) {
            verdict.wrong("odd", op.key, &[op.invoked], odd);
        }
    }
    let shows = ["read-batch", "scroll", "final", "search", "audit"];
    for op in ops.iter().filter(|op| op.outcome == Outcome::Ok && shows.contains(&op.f.as_str())) {
        let filter = op.input["g"].as_u64();
        let mut ids = BTreeSet::new();
        for hit in hits_of(op) {
            verdict.checked += 1;
            if let Some(why) = hit.torn() {
                verdict.wrong("torn", Some(hit.id), &[op.invoked], why);
            }
            if filter.is_some_and(|g| hit.g != Some(g)) {
                let why = format!("group {:?} passed the filter for {filter:?}", hit.g);
                verdict.wrong("filter", Some(hit.id), &[op.invoked], why);
            }
            if !ids.insert(hit.id) {
                verdict.wrong("twice", Some(hit.id), &[op.invoked], "one answer names a point twice");
            }
        }
    }
    verdict
}
