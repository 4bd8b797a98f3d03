//! A follower region holds a prefix of its home: everything up to a position, and nothing behind it.
//!
//! A `follow` operation shows what a follower holds of one shard: `{shard, position, hits}`. The home's feed
//! (`event`s) says what must be there at that position.
//!
//! Invariants: what is held at position p is what the feed builds up to p; a follower's position never goes back.
//! Not here: takeovers, which may lose a suffix that their loss manifest names (there are no regions yet).

use super::{Verdict, observe::hits_of};
use crate::history::{Op, Outcome};
use std::collections::BTreeMap;

/// Checks every `follow`.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut events: BTreeMap<u64, Vec<&Op>> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.f == "event" && op.outcome == Outcome::Ok) {
        events.entry(op.output["shard"].as_u64().unwrap_or_default()).or_default().push(op);
    }
    let mut reached: BTreeMap<(Option<&str>, u64), (u64, u64)> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.f == "follow" && op.outcome == Outcome::Ok) {
        let number = |name: &str| op.output[name].as_u64().unwrap_or_default();
        let (shard, position) = (number("shard"), number("position"));
        verdict.checked += 1;
        let last = reached.entry((op.node.as_deref(), shard)).or_insert((position, op.invoked));
        if position < last.0 {
            let why = format!("shard {shard} was at {} and is at {position}", last.0);
            verdict.wrong("went-back", None, &[last.1, op.invoked], why);
        }
        *last = (*last).max((position, op.invoked));
        let mut built: BTreeMap<u64, u64> = BTreeMap::new();
        for event in events.get(&shard).into_iter().flatten() {
            let (Some(key), Some(at)) = (event.key, event.output["position"].as_u64()) else { continue };
            match event.output["v"].as_u64().filter(|_| event.output["op"] != "delete") {
                _ if at > position => {}
                Some(value) => drop(built.insert(key, value)),
                None => drop(built.remove(&key)),
            }
        }
        let held: BTreeMap<u64, u64> = hits_of(op).into_iter().map(|hit| (hit.id, hit.v)).collect();
        let keys = held.keys().chain(built.keys());
        if let Some(key) = keys.into_iter().find(|key| held.get(key) != built.get(key)) {
            let why = format!(
                "shard {shard} at {position} holds {:?} of point {key}, the home had {:?}",
                held.get(key),
                built.get(key)
            );
            verdict.wrong("not-a-prefix", Some(*key), &[op.invoked], why);
        }
    }
    verdict
}
