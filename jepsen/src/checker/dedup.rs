//! A retry is applied once: all copies of one intent are told one version.
//!
//! Invariants: two acknowledged copies of one intent name one version, and no other intent of that point has it.
//! Not here: that the second copy left no trace (its value would show again at another version; see `versioned`; and
//! there would be two events of it; see `tail`).

use super::Verdict;
use crate::history::{Op, Outcome};
use std::collections::BTreeMap;

/// Checks all `intend`s.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut told: BTreeMap<&str, &Op> = BTreeMap::new();
    let mut versions: BTreeMap<(Option<u64>, u64), &str> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.f == "intend" && op.outcome == Outcome::Ok) {
        let request = op.input["request"].as_str().unwrap_or_default();
        let first = told.entry(request).or_insert(op);
        if first.invoked != op.invoked {
            verdict.checked += 1;
        }
        if first.version != op.version {
            let why = format!("{request} was told version {:?}, its retry {:?}", first.version, op.version);
            verdict.wrong("applied-twice", op.key, &[first.invoked, op.invoked], why);
        }
        if let Some(version) = op.version {
            let owner = versions.entry((op.key, version)).or_insert(request);
            if *owner != request {
                let why = format!("{request} and {owner} were told one version, {version}");
                verdict.wrong("one-version-twice", op.key, &[op.invoked], why);
            }
        }
    }
    verdict
}
