//! The end of a run: faults have stopped, and the cluster must be whole again.
//!
//! Invariants: it came to rest in time (`converge`); no node's `log` tells of a panic; every node shows the same
//! points (`final`); all replicas of a shard have one state hash, also when it is recomputed from the store
//! (`state-hash`); what was counted is what was shown.
//! Not here: that everything acknowledged is there (`final` is a read of every point; see `versioned`, `set`).

use super::{Verdict, observe::hits_of};
use crate::history::{Op, Outcome};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks the last operations.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    for op in ops {
        match (op.f.as_str(), op.outcome) {
            ("converge", Outcome::Ok) => verdict.checked += 1,
            ("converge", _) => {
                let why = op.error.clone().unwrap_or_else(|| "the cluster did not come to rest".to_owned());
                verdict.wrong("not-converged", None, &[op.invoked], why);
            }
            ("log", Outcome::Ok) => {
                for panic in op.output.as_array().into_iter().flatten() {
                    verdict.wrong("panicked", None, &[op.invoked], format!("{:?}: {panic}", op.node));
                }
            }
            ("state-hash", Outcome::Ok) => check_hashes(op, &mut verdict),
            _ => {}
        }
    }
    check_nodes(ops, &mut verdict);
    verdict
}

fn check_hashes(op: &Op, verdict: &mut Verdict) {
    for row in op.output.as_array().into_iter().flatten() {
        let replicas = row["replicas"].as_object();
        let hashes: BTreeSet<_> =
            replicas.into_iter().flat_map(|map| map.values()).map(Value::to_string).collect();
        let wanted = op.input["replicas"].as_u64().unwrap_or(1);
        let count = replicas.map_or(0, serde_json::Map::len) as u64;
        let readable =
            hashes.iter().all(|hash| hash.trim_matches('"').bytes().all(|b| b.is_ascii_hexdigit()));
        verdict.checked += 1;
        if hashes.len() != 1 || count < wanted || !readable {
            let why = format!("{wanted} equal replicas were wanted: {row}");
            verdict.wrong("replicas-differ", None, &[op.invoked], why);
        }
    }
}

/// Value and version of every point.
type Held = BTreeMap<u64, (u64, Option<u64>)>;

fn check_nodes(ops: &[Op], verdict: &mut Verdict) {
    let mut first: Option<(&Op, Held)> = None;
    for op in ops.iter().filter(|op| op.f == "final" && op.outcome == Outcome::Ok) {
        let hits = hits_of(op);
        verdict.checked += hits.len() as u64;
        if op.output["count"].as_u64().is_some_and(|count| count != hits.len() as u64) {
            let why = format!("{} points are shown and {} counted", hits.len(), op.output["count"]);
            verdict.wrong("count", None, &[op.invoked], why);
        }
        let held: Held = hits.into_iter().map(|hit| (hit.id, (hit.v, hit.version))).collect();
        match &first {
            None => first = Some((op, held)),
            Some((other, shown)) => {
                let keys: BTreeSet<u64> = held.keys().chain(shown.keys()).copied().collect();
                for key in keys.into_iter().filter(|key| held.get(key) != shown.get(key)) {
                    let why = format!(
                        "point {key}: {:?} shows {:?}, {:?} shows {:?}",
                        other.node,
                        shown.get(&key),
                        op.node,
                        held.get(&key)
                    );
                    verdict.wrong("nodes-differ", Some(key), &[other.invoked, op.invoked], why);
                }
            }
        }
    }
}
