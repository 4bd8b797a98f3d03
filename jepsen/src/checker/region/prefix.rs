//! What is seen at a position is what the home's acknowledged writes come to there: everything up to it, and nothing
//! behind it.
//!
//! Of a write of unknown outcome nobody knows the place, so its value may be seen, and a delete may have been; what was
//! lost, or had no effect, must never be.
//!
//! Invariants: a read whose token names one home may already be of the next one's count, so it is right if it is right in
//! any home from that on; and from that of the token on that it was to be at least at.

use super::{
    super::Verdict,
    lineage::Place,
    told::{Read, Shown, Told, Wish, Write},
};
use crate::history::Outcome;
use std::collections::{BTreeMap, BTreeSet};

/// Checks every read.
pub(super) fn check(told: &Told<'_>, verdict: &mut Verdict) {
    let points = Points::of(told);
    points.check_places(told, verdict);
    for read in &told.reads {
        match &read.shown {
            Shown::Point { key, value, version } => points.check(read, *key, (*value, *version), verdict),
            Shown::All(hits) => {
                for key in hits.keys().chain(points.0.keys().filter(|key| !hits.contains_key(key))) {
                    let hit = hits.get(key);
                    points.check(
                        read,
                        *key,
                        (hit.map(|hit| hit.v), hit.and_then(|hit| hit.version)),
                        verdict,
                    );
                }
            }
        }
    }
}

/// By point, its writes.
struct Points<'t, 'a>(BTreeMap<u64, Vec<&'t Write<'a>>>, &'t Told<'a>);

/// A value and its version, if that was told; no value if there was no such point.
type Held = (Option<u64>, Option<u64>);

impl<'t, 'a> Points<'t, 'a> {
    fn of(told: &'t Told<'a>) -> Self {
        let mut points: BTreeMap<u64, Vec<&Write<'_>>> = BTreeMap::new();
        told.writes.iter().for_each(|write| points.entry(write.key).or_default().push(write));
        Points(points, told)
    }

    /// Copies of one intent have one place in what any home has, and no two intents share one.
    fn check_places(&self, told: &Told<'_>, verdict: &mut Verdict) {
        let newest = told.newest();
        let (mut by_request, mut by_place) = (BTreeMap::new(), BTreeMap::new());
        for (write, place) in told.acknowledged() {
            verdict.checked += 1;
            let (first, at) = *by_request
                .entry((write.request, told.lineage.keeps(place, newest)))
                .or_insert((write, place));
            let kept = (at.generation.min(place.generation)..=newest)
                .any(|home| told.lineage.keeps(at, home) && told.lineage.keeps(place, home));
            if kept && at.position != place.position {
                let why = format!("{} was applied at {at:?} and at {place:?}", write.request);
                verdict.wrong("applied-twice", Some(write.key), &[first.op.invoked, write.op.invoked], why);
            }
            // A copy that comes to the next home names the place that it has since the last one.
            let (owner, of) = *by_place
                .entry((place.shard, place.position, place.generation))
                .or_insert((write, write.request));
            if of != write.request {
                let why = format!("{place:?} was given to {of} and to {}", write.request);
                verdict.wrong("one-place", Some(write.key), &[owner.op.invoked, write.op.invoked], why);
            }
        }
    }

    fn check(&self, read: &Read<'_>, key: u64, held: Held, verdict: &mut Verdict) {
        let told = self.1;
        let Some(shard) = told.shards.get(&key).copied() else {
            // Nothing of it was acknowledged: whatever shows must have been sent.
            return self.check_sent(read, key, held, verdict);
        };
        let Some(position) = read.seen.shards.get(&shard).copied() else { return };
        verdict.checked += 1;
        let named = read.seen.generation;
        let first = match &read.wish {
            Wish::AtLeast(token) => named.max(token.generation),
            _ => named,
        };
        let wrong = |generation| self.why_not(key, held, Place { generation, shard, position }, read);
        let Some((anomaly, why, op)) = wrong(first) else { return };
        if (first + 1..=told.newest()).all(|generation| wrong(generation).is_some()) {
            let anomaly = if first > named { "passed-over" } else { anomaly };
            let ops: Vec<u64> = op.into_iter().chain([read.op.invoked]).collect();
            let why = format!("{:?}, which names home {named}: {why}", read.op.node);
            verdict.wrong(anomaly, Some(key), &ops, why);
        }
    }

    fn check_sent(&self, read: &Read<'_>, key: u64, (value, _): Held, verdict: &mut Verdict) {
        let sent = |write: &&&Write<'_>| write.value == value && write.op.outcome != Outcome::Fail;
        if value.is_some() && !self.0.get(&key).into_iter().flatten().any(|write| sent(&write)) {
            let why = format!("{:?} shows {value:?} of point {key}, which nobody wrote", read.op.node);
            verdict.wrong("made-up", Some(key), &[read.op.invoked], why);
        }
    }

    /// What is wrong with what a point is shown to hold at a place, and with which write.
    fn why_not(
        &self,
        key: u64,
        (value, version): Held,
        at: Place,
        read: &Read<'_>,
    ) -> Option<(&'static str, String, Option<u64>)> {
        let told = self.1;
        let writes = self.0.get(&key).map_or(&[][..], Vec::as_slice);
        let counts =
            |place: &Place| place.position <= at.position && told.lineage.keeps(*place, at.generation);
        let placed = writes.iter().filter_map(|write| Some((*write, write.place.filter(counts)?)));
        let last = placed.max_by_key(|(_, place)| place.position);
        let floor = last.map(|(_, place)| place.position);
        let shown = || format!("at {at:?} point {key} is {value:?} (version {version:?})");
        if let Some(version) = version.filter(|version| *version > at.position) {
            return Some(("not-a-prefix", format!("{}: {version} is beyond", shown()), None));
        }
        let own: Vec<&Write<'_>> = writes.iter().copied().filter(|write| write.value == value).collect();
        if last.map_or(value.is_none(), |(write, _)| write.value == value) {
            let twice = value.is_some() && version.is_some() && version != floor;
            return twice.then(|| {
                let write = last.map(|(write, _)| write.op.invoked);
                ("applied-twice", format!("{}: it was acknowledged as {floor:?}", shown()), write)
            });
        }
        // A write whose place nobody knows, or of which only a copy does: it may be the one that is seen.
        let known: BTreeSet<&str> =
            own.iter().filter(|write| write.place.is_some()).map(|write| write.request).collect();
        let may = own.iter().any(|write| {
            write.op.outcome == Outcome::Info
                && write.op.invoked < read.op.ended
                && (value.is_none() || !known.contains(write.request) || self.may_be_again(write, at))
        });
        let later = version.is_none_or(|version| floor.is_none_or(|floor| version > floor));
        if may && later {
            return None;
        }
        let op = last.map(|(write, _)| write.op.invoked);
        let last = last.map(|(write, place)| (write.value, place));
        Some(("not-a-prefix", format!("{}, acknowledged last was {last:?}", shown()), op))
    }

    /// Whether a copy of unknown outcome may be what is seen though another one was acknowledged: that one is lost.
    fn may_be_again(&self, write: &Write<'_>, at: Place) -> bool {
        let copies =
            self.0.get(&write.key).into_iter().flatten().filter(|copy| copy.request == write.request);
        copies.filter_map(|copy| copy.place).all(|place| !self.1.lineage.keeps(place, at.generation))
    }
}
