//! What a consumer of the change feed is told, wherever the home is: each change once, in order, and nothing else; or that
//! its token is good no more.
//!
//! ```text
//!   changes      what it begins after
//!   change …     a life of the consumer: all that its last home has between the two, once
//!   changes-end, changes-refused (what it saw is lost), changes-too-old: how far it came
//! ```
//!
//! Invariants: a life's changes are those that its last home had acknowledged, of whatever home they were first; a deletion
//! of what was not there is none.
//! Not here: whether a token was refused without need (see `order`, which looks at all that are).

use super::{
    super::Verdict,
    lineage::Place,
    told::{Shown, Told},
};
use crate::{
    history::{Op, Outcome},
    token::Fed,
};
use std::collections::BTreeMap;

/// An event.
struct Change<'a> {
    op: &'a Op,
    key: u64,
    value: Option<u64>,
    shard: u64,
    position: u64,
}

/// What a consumer was told from where it began until its token was refused, or all was told.
struct Life<'a> {
    after: BTreeMap<u64, Fed>,
    changes: Vec<Change<'a>>,
    until: BTreeMap<u64, Fed>,
    /// It came to the end of what there is.
    whole: bool,
}

impl Life<'_> {
    /// The home whose count a shard was told in last.
    fn home(&self, shard: u64) -> u64 {
        self.until.get(&shard).map_or(1, |fed| fed.generation)
    }
}

/// Checks every life.
pub(super) fn check(told: &Told<'_>, verdict: &mut Verdict) {
    for life in lives(told, verdict) {
        check_order(&life, verdict);
        for change in &life.changes {
            check_change(told, &life, change, verdict);
        }
        check_present(told, &life, verdict);
        if life.whole {
            check_end(told, &life, verdict);
        }
    }
}

fn lives<'a>(told: &Told<'a>, verdict: &mut Verdict) -> Vec<Life<'a>> {
    let mut lives: Vec<Life<'a>> = Vec::new();
    for op in told.ops.iter().filter(|op| op.outcome == Outcome::Ok && op.f.starts_with("change")) {
        let number = |name: &str| op.output[name].as_u64();
        let read = match (op.f.as_str(), fed(op)) {
            ("changes", Some(fed)) => {
                lives.push(Life { after: fed.clone(), changes: Vec::new(), until: fed, whole: false });
                Some(())
            }
            (f, Some(fed)) => lives.last_mut().and_then(|life| {
                if f == "change" {
                    let deletes = op.output["op"] == "delete";
                    let (shard, position) = (number("shard")?, number("position")?);
                    let value = if deletes { None } else { Some(number("v")?) };
                    life.changes.push(Change { op, key: op.key?, value, shard, position });
                }
                life.until = fed;
                life.whole = f == "changes-end";
                Some(())
            }),
            (_, None) => None,
        };
        if read.is_none() {
            verdict.wrong("unreadable", op.key, &[op.invoked], format!("{}: {}", op.f, op.output));
        }
    }
    lives
}

/// How far the consumer had come.
pub(super) fn fed(op: &Op) -> Option<BTreeMap<u64, Fed>> {
    // JSON has no keys that are numbers.
    let fed: BTreeMap<String, Fed> = serde_json::from_value(op.output["fed"].clone()).ok()?;
    fed.into_iter().map(|(shard, fed)| Some((shard.parse().ok()?, fed))).collect()
}

/// Positions grow: clients here send one point a command.
fn check_order(life: &Life<'_>, verdict: &mut Verdict) {
    let mut last: BTreeMap<u64, u64> = life.after.iter().map(|(shard, fed)| (*shard, fed.position)).collect();
    for Change { op, key, shard, position, .. } in &life.changes {
        verdict.checked += 1;
        let before = last.insert(*shard, *position);
        if before.is_some_and(|before| before >= *position) {
            let why = format!("shard {shard}: after {before:?} came {position}");
            verdict.wrong("feed-order", Some(*key), &[op.invoked], why);
        }
    }
}

/// A change is of a write that may have had an effect there, and is no part of what was lost before the life ended.
fn check_change(told: &Told<'_>, life: &Life<'_>, change: &Change<'_>, verdict: &mut Verdict) {
    let Change { op, key, value, shard, position } = change;
    verdict.checked += 1;
    let writes = told.writes.iter().filter(|write| write.key == *key && write.value == *value);
    let mut may = writes.filter(|write| match (&write.place, write.op.outcome) {
        (Some(place), _) => place.position == *position && told.lineage.keeps(*place, life.home(*shard)),
        (None, outcome) => outcome == Outcome::Info && write.op.invoked < op.ended,
    });
    if may.next().is_none() {
        let why = format!(
            "the feed has {value:?} of point {key} at position {position} of shard {shard}, which nobody wrote there"
        );
        verdict.wrong("feed-made-up", Some(*key), &[op.invoked], why);
    }
}

/// What its last home has of acknowledged writes came, once.
fn check_present(told: &Told<'_>, life: &Life<'_>, verdict: &mut Verdict) {
    let newest = told.newest();
    let home = |shard| if life.whole { newest } else { life.home(shard) };
    let mut by_key: BTreeMap<u64, Vec<&Change<'_>>> = BTreeMap::new();
    life.changes.iter().for_each(|change| by_key.entry(change.key).or_default().push(change));
    let kept = |place: &Place| told.lineage.keeps(*place, home(place.shard));
    for (write, place) in told.acknowledged().filter(|(_, place)| kept(place)) {
        let Place { shard, position, .. } = place;
        let (Some(after), Some(until)) = (life.after.get(&shard), life.until.get(&shard)) else { continue };
        if position <= after.position || (position > until.position && !life.whole) {
            continue;
        }
        verdict.checked += 1;
        let changes = by_key.get(&write.key).map_or(&[][..], Vec::as_slice);
        let there = changes.iter().filter(|change| change.position == position).count();
        let before = changes.iter().filter(|change| change.position < position);
        let was = before.max_by_key(|change| change.position).and_then(|change| change.value);
        let nothing_to_delete = write.value.is_none() && was.is_none();
        if there != 1 && !(there == 0 && nothing_to_delete) {
            let why = format!("the feed has {there} changes of point {} at {place:?}", write.key);
            let anomaly = if there == 0 { "feed-lost" } else { "feed-twice" };
            verdict.wrong(anomaly, Some(write.key), &[write.op.invoked], why);
        }
    }
}

/// What it was told last of a point is what the point holds at the end.
fn check_end(told: &Told<'_>, life: &Life<'_>, verdict: &mut Verdict) {
    let last: BTreeMap<u64, &Change<'_>> = life.changes.iter().map(|change| (change.key, change)).collect();
    for read in told.reads.iter().filter(|read| read.op.f == "held") {
        let Shown::All(hits) = &read.shown else { continue };
        for (key, change) in &last {
            verdict.checked += 1;
            let held = hits.get(key).map(|hit| hit.v);
            if held != change.value {
                let why = format!("{:?} holds {held:?}, the feed told {:?} last", read.op.node, change.value);
                verdict.wrong("feed-differs", Some(*key), &[change.op.invoked, read.op.invoked], why);
            }
        }
    }
}
