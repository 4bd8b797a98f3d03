//! Batches are whole or absent: what was written together is read together.
//!
//! Invariants: one request reads points of one batch group in one shard, so all of them show one value and one
//! version, or none is there.
//! Not here: which of the batches a read must show (each point is a register; see `versioned`).

use super::{Verdict, observe::hits_of};
use crate::history::{Op, Outcome};
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks every `read-batch`.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    for read in ops.iter().filter(|op| op.f == "read-batch" && op.outcome == Outcome::Ok) {
        verdict.checked += 1;
        let asked: BTreeSet<u64> =
            read.input.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let hits = hits_of(read);
        let shown: BTreeSet<u64> = hits.iter().map(|hit| hit.id).collect();
        let values: BTreeSet<_> = hits.iter().map(|hit| hit.v).collect();
        let versions: BTreeSet<_> = hits.iter().filter_map(|hit| hit.version).collect();
        if values.len() > 1 || versions.len() > 1 {
            let why = format!("one batch shows the values {values:?} at the versions {versions:?}");
            verdict.wrong("partial-batch", asked.first().copied(), &[read.invoked], why);
        } else if !hits.is_empty() && shown != asked {
            let why = format!("{} of {} points of a batch are there", shown.len(), asked.len());
            verdict.wrong("partial-batch", asked.first().copied(), &[read.invoked], why);
        }
    }
    verdict
}
