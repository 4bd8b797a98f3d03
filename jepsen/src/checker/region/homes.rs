//! Homes that move: one that has heard of the next acknowledges nothing, regions settle after every move, and at the end
//! all of them hold the same.
//!
//! A region has heard of a home once one of its nodes shows that: what a node shows stands in the region's catalog, and
//! was written there before.

use super::{
    super::Verdict,
    told::{Told, Wish},
};
use crate::history::{Op, Outcome};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks moves, and the rest at the end.
pub(super) fn check(told: &Told<'_>, verdict: &mut Verdict) {
    check_heard(told, verdict);
    for op in told.ops {
        match (op.f.as_str(), op.outcome) {
            ("settle", Outcome::Ok) => verdict.checked += 1,
            ("rest", Outcome::Ok) => check_rest(op, verdict),
            ("settle" | "rest", _) => {
                let why = op.error.clone().unwrap_or_else(|| "the regions did not agree".to_owned());
                verdict.wrong("not-settled", None, &[op.invoked], why);
            }
            _ => {}
        }
    }
}

/// When a region showed that it had heard of a home: index of the end, the home, the operation.
type Heard = (u64, u64, u64);

fn check_heard(told: &Told<'_>, verdict: &mut Verdict) {
    let mut heard: BTreeMap<&str, Vec<Heard>> = BTreeMap::new();
    let mut note = |op: &Op, generation: Option<u64>| {
        let region = op.node.as_deref().map(|node| node.trim_end_matches(|c: char| c.is_ascii_digit()));
        let of = told.homes.values().find(|home| Some(**home) == region);
        if let (Some(region), Some(generation)) = (of, generation) {
            heard.entry(region).or_default().push((op.ended, generation, op.invoked));
        }
    };
    for op in told.ops.iter().filter(|op| op.f == "links" && op.outcome == Outcome::Ok) {
        note(op, op.output["generation"].as_u64());
    }
    // What is not linearizable is answered where it is asked.
    for read in told.reads.iter().filter(|read| read.wish != Wish::Linearizable) {
        note(read.op, Some(read.seen.generation));
    }
    for (write, place) in told.acknowledged() {
        let Some(region) = told.homes.get(&place.generation) else { continue };
        verdict.checked += 1;
        let before = heard.get(region).into_iter().flatten();
        let late = before
            .filter(|(ended, generation, _)| *ended < write.op.invoked && *generation > place.generation)
            .min_by_key(|(ended, ..)| *ended);
        if let Some((_, generation, op)) = late {
            let why = format!("{place:?} was given though {region} had heard of home {generation}");
            verdict.wrong("after-it-heard", Some(write.key), &[*op, write.op.invoked], why);
        }
    }
}

/// All regions have every shard at one position, with one hash.
fn check_rest(op: &Op, verdict: &mut Verdict) {
    let mut shards: BTreeMap<u64, BTreeSet<(String, String)>> = BTreeMap::new();
    let regions = op.output["regions"].as_object();
    for rows in regions.into_iter().flat_map(|regions| regions.values()) {
        for row in rows.as_array().into_iter().flatten() {
            let hashes = row["replicas"].as_object().into_iter().flatten();
            let held = hashes.map(|(_, hash)| (row["position"].to_string(), hash.to_string()));
            shards.entry(row["shard"].as_u64().unwrap_or_default()).or_default().extend(held);
        }
    }
    verdict.checked += shards.len() as u64;
    if regions.is_none_or(|regions| regions.len() < 2) || shards.is_empty() {
        let why = format!("not every region shows what it holds: {}", op.output["regions"]);
        verdict.wrong("regions-differ", None, &[op.invoked], why);
    }
    for (shard, held) in shards.iter().filter(|(_, held)| held.len() != 1) {
        let why = format!("shard {shard} is held as {held:?} (position, hash)");
        verdict.wrong("regions-differ", None, &[op.invoked], why);
    }
    if op.output["generation"] == Value::Null {
        verdict.wrong("regions-differ", None, &[op.invoked], "no home is told");
    }
}
