//! Search after acknowledgement: what is written can be found, and what is gone cannot.
//!
//! Invariants: a search for a vector that was acknowledged before it began, and that nothing can have replaced before
//! it ended, shows that point first, at distance 0; scores are the distances of what is shown, nearest first; an
//! approximate answer has enough of what the exact answer *at the same token* has; an `audit`, made at rest, shows
//! every point it asks for.
//! Not here: deleted or old points among the answers (every hit is a read; see `versioned`), torn ones (see `view`).

use super::{
    Verdict,
    observe::{Access, hits_of, registers},
};
use crate::{
    history::{Op, Outcome},
    point::{distance, vector_of},
};
use std::collections::{BTreeMap, BTreeSet};

/// Recall of approximate answers, on average, below which a run is not valid.
pub const RECALL_MIN: f64 = 0.9;
/// Pairs of answers from which on an average says something.
const PAIRS_MIN: usize = 10;

/// Checks every search.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let registers = registers(ops);
    let searches =
        ops.iter().filter(|op| op.outcome == Outcome::Ok && ["search", "audit"].contains(&op.f.as_str()));
    let none = Vec::new();
    for op in searches.clone() {
        let (Some(key), Some(value)) = (op.key, op.input["v"].as_u64()) else { continue };
        check_scores(op, key, value, &mut verdict);
        let accesses = registers.by_key.get(&key).unwrap_or(&none);
        let due = op.f == "audit" || must_show(accesses, value, op);
        if due {
            verdict.checked += 1;
            let first = hits_of(op).into_iter().next();
            if first.as_ref().is_none_or(|hit| (hit.id, hit.v) != (key, value)) {
                let written = accesses.iter().find(|access| access.act.writes() == Some(Some(value)));
                let shows: Vec<u64> =
                    written.map(|access| access.op).into_iter().chain([op.invoked]).collect();
                let why =
                    format!("value {value} of point {key} is there and was not found; first: {first:?}");
                verdict.wrong("not-found", Some(key), &shows, why);
            }
        }
    }
    check_recall(searches, &mut verdict);
    verdict
}

/// Whether a value was acknowledged before the search began and nothing can have replaced it before it ended.
fn must_show(accesses: &[Access], value: u64, search: &Op) -> bool {
    let written = accesses.iter().find(|access| access.act.writes() == Some(Some(value)));
    let Some(written) = written.filter(|access| access.ended < search.invoked) else { return false };
    let replaces = |other: &&Access| {
        let later = match (other.version, written.version) {
            (Some(other), Some(written)) => other > written,
            _ => other.ended > written.invoked,
        };
        other.act.writes().is_some() && other.op != written.op && later && other.invoked < search.ended
    };
    !accesses.iter().any(|access| replaces(&access))
}

fn check_scores(op: &Op, key: u64, value: u64, verdict: &mut Verdict) {
    let mut last = 0.0;
    let query = vector_of(key, value);
    for hit in hits_of(op) {
        let Some(score) = hit.score else { continue };
        let real = distance(&query, &vector_of(hit.id, hit.v));
        verdict.checked += 1;
        if (score - real).abs() > 1e-3 * real.max(1.0) {
            let why = format!("value {} of point {} is {real} away, scored {score}", hit.v, hit.id);
            verdict.wrong("score", Some(hit.id), &[op.invoked], why);
        }
        if score < last {
            verdict.wrong("unsorted", Some(hit.id), &[op.invoked], format!("{score} comes after {last}"));
        }
        last = score;
    }
}

/// Compares approximate answers with exact ones to the same question at the same token.
fn check_recall<'a>(searches: impl Iterator<Item = &'a Op>, verdict: &mut Verdict) {
    let mut pairs: BTreeMap<(u64, u64, &str), [Option<&Op>; 2]> = BTreeMap::new();
    for op in searches {
        let (Some(key), Some(value)) = (op.key, op.input["v"].as_u64()) else { continue };
        let (Some(token), Some(exact)) = (op.output["token"].as_str(), op.input["exact"].as_bool()) else {
            continue;
        };
        pairs.entry((key, value, token)).or_default()[usize::from(exact)] = Some(op);
    }
    let ids = |op: &Op| hits_of(op).into_iter().map(|hit| hit.id).collect::<BTreeSet<_>>();
    let recalls: Vec<(f64, u64)> = pairs
        .values()
        .filter_map(|pair| Some((ids(pair[0]?), ids(pair[1]?), pair[0]?.invoked)))
        .filter(|(_, exact, _)| !exact.is_empty())
        .map(|(found, exact, op)| (found.intersection(&exact).count() as f64 / exact.len() as f64, op))
        .collect();
    if recalls.len() < PAIRS_MIN {
        return;
    }
    verdict.checked += recalls.len() as u64;
    let mean = recalls.iter().map(|(recall, _)| recall).sum::<f64>() / recalls.len() as f64;
    if mean < RECALL_MIN {
        let worst: Vec<u64> =
            recalls.iter().filter(|(recall, _)| *recall < RECALL_MIN).map(|(_, op)| *op).take(8).collect();
        let why = format!("recall is {mean:.3} over {} answers, {RECALL_MIN} is the least", recalls.len());
        verdict.wrong("recall", None, &worst, why);
    }
}
