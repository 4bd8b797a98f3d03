//! The change feed as a witness: every acknowledged operation once, in the order of real time, and nothing else.
//!
//! ```text
//! one shard   position  7 7 7 8 9 9 …   n counts the events of one command from 0 to of - 1
//! ```
//!
//! Invariants: the feed of a shard never steps back, repeats or leaves an event of a command out; an event is of an
//! operation that may have had an effect; if operation A ended before B began, A's position is the lower one; once
//! the feed was followed to its end (`feed-end`), every acknowledged write is in it, but for deletes of what was
//! not there, and what it builds is what the collection holds.

use super::{
    Verdict,
    observe::{Access, hits_of, registers},
};
use crate::history::{Op, Outcome};
use std::collections::BTreeMap;

/// An event of the feed.
struct Event<'a> {
    key: u64,
    shard: u64,
    position: u64,
    /// None: deleted.
    value: Option<u64>,
    op: &'a Op,
}

/// Checks all `event`s.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let events = sequence(ops, &mut verdict);
    if events.is_empty() {
        return verdict;
    }
    let registers = registers(ops);
    let mut by_key: BTreeMap<u64, Vec<&Event<'_>>> = BTreeMap::new();
    events.iter().for_each(|event| by_key.entry(event.key).or_default().push(event));
    let none: &[Access] = &[];
    for (key, events) in &by_key {
        let accesses = registers.by_key.get(key).map_or(none, Vec::as_slice);
        events.iter().for_each(|event| check_event(event, accesses, &mut verdict));
    }
    check_real_time(&events, &by_key, &registers.by_key, &mut verdict);
    if ops.iter().any(|op| op.f == "feed-end" && op.outcome == Outcome::Ok) {
        for (key, accesses) in &registers.by_key {
            let events = by_key.get(key).map_or(&[][..], Vec::as_slice);
            accesses.iter().for_each(|access| check_present(*key, access, events, &mut verdict));
        }
        for last in ops.iter().filter(|op| op.f == "final" && op.outcome == Outcome::Ok) {
            check_end(last, &by_key, &mut verdict);
        }
    }
    verdict
}

/// Reads the events, in the order in which they came, and checks that they follow each other.
fn sequence<'a>(ops: &'a [Op], verdict: &mut Verdict) -> Vec<Event<'a>> {
    let mut last: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new();
    let mut events = Vec::new();
    for op in ops.iter().filter(|op| op.f == "event" && op.outcome == Outcome::Ok) {
        let number = |name: &str| op.output[name].as_u64().unwrap_or(u64::MAX);
        let (shard, position, n, of) = (number("shard"), number("position"), number("n"), number("of"));
        let before = last.insert(shard, (position, n, of));
        let follows = match before {
            Some((last, last_n, last_of)) if last_n + 1 < last_of => (position, n) == (last, last_n + 1),
            Some((last, ..)) => position > last && n == 0,
            None => n == 0,
        };
        verdict.checked += 1;
        if !follows || n >= of {
            let why =
                format!("shard {shard}: after {before:?} (position, n, of) came {:?}", (position, n, of));
            verdict.wrong("feed-order", op.key, &[op.invoked], why);
        }
        let Some(key) = op.key else { continue };
        let value = if op.output["op"] == "delete" { None } else { op.output["v"].as_u64() };
        events.push(Event { key, shard, position, value, op });
    }
    events
}

/// An event is of a write that may have had an effect.
fn check_event(event: &Event<'_>, accesses: &[Access], verdict: &mut Verdict) {
    let fits = |access: &&Access| {
        access.act.writes() == Some(event.value)
            && access.version.is_none_or(|version| version == event.position)
    };
    if !accesses.iter().any(|access| fits(&access)) {
        let why = format!(
            "the feed has {:?} of point {} at position {}, which nobody wrote there",
            event.value, event.key, event.position
        );
        verdict.wrong("feed-made-up", Some(event.key), &[event.op.invoked], why);
    }
}

/// An acknowledged write is in the feed, at its version, once (that it is there once, `sequence` has seen).
fn check_present(key: u64, access: &Access, events: &[&Event<'_>], verdict: &mut Verdict) {
    let (Some(value), Some(version)) = (access.act.writes(), access.version) else { return };
    verdict.checked += 1;
    let at = events.iter().filter(|event| event.position == version);
    let there_before =
        || events.iter().filter(|event| event.position < version).max_by_key(|event| event.position);
    match at.clone().count() {
        1 if at.clone().all(|event| event.value == value) => {}
        0 if value.is_none() && there_before().is_none_or(|event| event.value.is_none()) => {}
        count => {
            let why =
                format!("the feed has {count} events of {value:?} of point {key} at position {version}");
            verdict.wrong(if count == 0 { "feed-lost" } else { "feed-twice" }, Some(key), &[access.op], why);
        }
    }
}

/// Positions of one shard grow with time.
fn check_real_time(
    events: &[Event<'_>],
    by_key: &BTreeMap<u64, Vec<&Event<'_>>>,
    accesses: &BTreeMap<u64, Vec<Access>>,
    verdict: &mut Verdict,
) {
    let shard_of: BTreeMap<u64, u64> = events.iter().map(|event| (event.key, event.shard)).collect();
    let mut by_shard: BTreeMap<u64, Vec<&Access>> = BTreeMap::new();
    for key in by_key.keys() {
        let writes = accesses.get(key).into_iter().flatten();
        let writes = writes.filter(|access| access.act.writes().is_some() && access.version.is_some());
        by_shard.entry(shard_of[key]).or_default().extend(writes);
    }
    for (shard, mut writes) in by_shard {
        let mut by_end = writes.clone();
        by_end.sort_by_key(|access| access.ended);
        writes.sort_by_key(|access| access.invoked);
        let mut ended = by_end.into_iter().peekable();
        let mut floor: (Option<u64>, u64) = (None, 0);
        for write in writes {
            while let Some(before) = ended.next_if(|access| access.ended < write.invoked) {
                floor = floor.max((before.version, before.op));
            }
            verdict.checked += 1;
            // A batch writes several points at one position, within one operation.
            if write.version <= floor.0 {
                let why = format!(
                    "shard {shard}: position {:?} was given after {:?} had been",
                    write.version, floor.0
                );
                verdict.wrong("feed-time", None, &[floor.1, write.op], why);
            }
        }
    }
}

/// What the feed builds is what the collection holds.
fn check_end(last: &Op, by_key: &BTreeMap<u64, Vec<&Event<'_>>>, verdict: &mut Verdict) {
    let held: BTreeMap<u64, u64> = hits_of(last).into_iter().map(|hit| (hit.id, hit.v)).collect();
    let built: BTreeMap<u64, u64> =
        by_key.iter().filter_map(|(key, events)| Some((*key, events.last()?.value?))).collect();
    for key in held.keys().chain(built.keys()).filter(|key| held.get(key) != built.get(key)) {
        let why = format!("point {key} holds {:?}, the feed built {:?}", held.get(key), built.get(key));
        verdict.wrong("feed-differs", Some(*key), &[last.invoked], why);
    }
}
