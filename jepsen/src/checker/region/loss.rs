//! What a takeover says it lost is what the old home had acknowledged beyond it, and the file that it keeps holds that.
//!
//! Of a write of unknown outcome that was under way around the takeover either is possible; a copy that was sent again may
//! have taken a position of its own, of which nobody is told.
//!
//! Invariants: what is named and what was acknowledged and is not there are the same points; the last lost position is
//! the last one that was acknowledged there, but for as many as may have been given without anybody's knowing.

use super::{
    super::Verdict,
    lineage::Place,
    told::{Loss, ShardLoss, Told, Write},
};
use crate::history::Outcome;
use std::collections::BTreeSet;

/// A write that was given up longer ago than this (nanoseconds) has happened or has not: nodes give up a request sooner,
/// and nothing is broken for longer before a takeover begins.
const UNSETTLED_NS: u64 = 20_000_000_000;

/// Checks every loss.
pub(super) fn check(told: &Told<'_>, verdict: &mut Verdict) {
    for (generation, loss) in &told.losses {
        for shard in &loss.manifest {
            verdict.checked += 1;
            check_shard(told, *generation, loss, shard, verdict);
        }
    }
}

fn check_shard(told: &Told<'_>, generation: u64, loss: &Loss<'_>, shard: &ShardLoss, verdict: &mut Verdict) {
    let of_shard = |place: &Place| place.shard == shard.shard && place.generation < generation;
    let lost: Vec<(&Write<'_>, Place)> = told
        .acknowledged()
        .filter(|(_, place)| of_shard(place) && told.lineage.keeps(*place, generation - 1))
        .filter(|(_, place)| place.position >= shard.from)
        .collect();
    let mut wrong = |anomaly: &str, write: Option<&Write<'_>>, why: String| {
        let ops: Vec<u64> =
            write.map(|write| write.op.invoked).into_iter().chain([loss.op.invoked]).collect();
        verdict.wrong(anomaly, write.map(|write| write.key), &ops, why);
    };
    for (write, place) in &lost {
        // A delete of what was not there changes nothing, and need not be named.
        if place.position > shard.to || (write.value.is_some() && !shard.ids.contains(&write.key)) {
            wrong(
                "loss-unnamed",
                Some(write),
                format!("{place:?} is lost, home {generation} names {shard:?}"),
            );
        }
    }
    let unknown: Vec<&Write<'_>> = told.writes.iter().filter(|write| in_doubt(write, loss)).collect();
    let may: BTreeSet<u64> =
        lost.iter().map(|(write, _)| write).chain(&unknown).map(|write| write.key).collect();
    if let Some(id) = shard.ids.difference(&may).next() {
        wrong("loss-made-up", None, format!("home {generation} names {id}, which was not lost: {shard:?}"));
    }
    let last = lost.iter().max_by_key(|(_, place)| place.position);
    let (position, since) =
        last.map_or((shard.from.saturating_sub(1), 0), |(write, place)| (place.position, write.op.time.0));
    // What stands behind the last one was carried out after that was asked for.
    let again = |write: &&Write<'_>| {
        write.again
            && write.place.is_some_and(|place| of_shard(&place))
            && around(write, loss)
            && write.op.time.1 >= since
    };
    let of_shard = |write: &&&Write<'_>| told.shards.get(&write.key).is_none_or(|of| *of == shard.shard);
    let more = told.writes.iter().filter(again).count() + unknown.iter().filter(of_shard).count();
    if !(position..=position + more as u64).contains(&shard.to) {
        let why = format!(
            "{position} was acknowledged last, and {more} more may be: home {generation} says {shard:?}"
        );
        wrong("loss-end", None, why);
    }
    if shard.to >= shard.from && !shard.ids.is_empty() {
        let kept = |file: &&ShardLoss| {
            file.shard == shard.shard
                && file.ids == shard.ids
                && shard.from <= file.from
                && file.to <= shard.to
        };
        if !loss.files.iter().any(|file| kept(&file)) {
            wrong("loss-not-kept", None, format!("no file holds {shard:?}: {:?}", loss.files));
        }
    }
}

/// Whether a write was under way, or could still be, around the takeover that a loss is of.
fn around(write: &Write<'_>, loss: &Loss<'_>) -> bool {
    let (began, ended) = (write.op.time.0, write.op.time.1);
    began <= loss.op.time.1 && ended.saturating_add(UNSETTLED_NS) >= loss.op.time.0
}

fn in_doubt(write: &Write<'_>, loss: &Loss<'_>) -> bool {
    write.op.outcome == Outcome::Info && around(write, loss)
}
