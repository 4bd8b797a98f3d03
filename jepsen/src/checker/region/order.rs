//! Positions agree with real time, with the ages that answers declare, and with the tokens that were asked for.
//!
//! ```text
//!   write acknowledged ... position p |          a linearizable read that begins here sees p or more
//!                                     |--- age ---| a read of this age, begun at the right end, too
//! ```
//!
//! An age counts back from when the read was begun, by the harness's clock, which is the strictest there is: the node
//! measured it later. A write counts as acknowledged when its answer had come.
//!
//! An age is in relation to one home: what that had, not what the next one has given since. Linearizable reads are of the
//! next one's too, if it was handed the home.
//!
//! Invariants: within what one home has, a write has a higher position than whatever ended before it began.

use super::{
    super::Verdict,
    lineage::Place,
    told::{Read, Told, Wish},
};
use std::collections::{BTreeMap, BTreeSet};

/// Something that shows a position of a shard to have been reached.
#[derive(Clone, Copy)]
struct Reached {
    generation: u64,
    shard: u64,
    position: u64,
    /// Index of its end, and nanoseconds.
    ended: u64,
    at: u64,
    op: u64,
}

/// Checks every write and read.
pub(super) fn check(told: &Told<'_>, verdict: &mut Verdict) {
    let mut reached: Vec<Reached> = told
        .acknowledged()
        .map(|(write, place)| Reached {
            generation: place.generation,
            shard: place.shard,
            position: place.position,
            ended: write.op.ended,
            at: write.op.time.1,
            op: write.op.invoked,
        })
        .collect();
    reached.sort_by_key(|one| one.ended);
    let written = Floors::of(told, &reached, Later::IfHanded);
    let held = Floors::of(told, &reached, Later::Not);
    for (write, place) in told.acknowledged().filter(|(write, _)| !write.again) {
        verdict.checked += 1;
        let before = written.before(place.generation, place.shard, |one| one.ended < write.op.invoked);
        if let Some(before) = before.filter(|before| before.position >= place.position) {
            let why = format!("{place:?} was given after {} had been", before.position);
            verdict.wrong("order", Some(write.key), &[before.op, write.op.invoked], why);
        }
    }
    let linearizable = told.reads.iter().filter(|read| read.wish == Wish::Linearizable);
    let mut seen = reached.clone();
    seen.extend(linearizable.flat_map(|read| {
        read.seen.shards.iter().map(|(shard, position)| Reached {
            generation: read.seen.generation,
            shard: *shard,
            position: *position,
            ended: read.op.ended,
            at: read.op.time.1,
            op: read.op.invoked,
        })
    }));
    seen.sort_by_key(|one| one.ended);
    let seen = Floors::of(told, &seen, Later::IfHanded);
    for read in &told.reads {
        check_age(read, &held, verdict);
        match &read.wish {
            Wish::Linearizable => {
                let stale = find(read, &seen, |one| one.ended < read.op.invoked, verdict);
                if let Some((shard, before)) = stale {
                    tell(read, "stale", shard, &before, verdict);
                }
            }
            Wish::AtLeast(token) => check_token(told, read, token, verdict),
            Wish::Bounded(bound) => {
                if read.age_ms.is_none_or(|age| age > *bound) {
                    let why = format!("at most {bound} ms was asked for, {:?} ms is declared", read.age_ms);
                    verdict.wrong("unbounded", read.op.key, &[read.op.invoked], why);
                }
            }
            Wish::Local => {}
        }
    }
    let newest = told.newest();
    for (op, seen) in &told.expired {
        verdict.checked += 1;
        if seen.iter().all(|place| told.lineage.keeps(*place, newest)) {
            let why = format!("{seen:?} was refused as lost, and all of it is there");
            verdict.wrong("expired", op.key, &[op.invoked], why);
        }
    }
}

/// An answer holds everything that its home had acknowledged before the age that it declares.
fn check_age(read: &Read<'_>, held: &Floors, verdict: &mut Verdict) {
    let Some(age) = read.age_ms else { return };
    let as_of = read.op.time.0.saturating_sub(age.saturating_mul(1_000_000));
    if let Some((shard, before)) = find(read, held, |one| one.at <= as_of, verdict) {
        tell(read, "younger", shard, &before, verdict);
    }
}

/// A shard of a read that had reached more than it shows, by the last that was so early.
fn find(
    read: &Read<'_>,
    floors: &Floors,
    early: impl Fn(&Reached) -> bool,
    verdict: &mut Verdict,
) -> Option<(u64, Reached)> {
    read.seen.shards.iter().find_map(|(shard, position)| {
        verdict.checked += 1;
        let before = floors.before(read.seen.generation, *shard, &early)?;
        (before.position > *position).then_some((*shard, before))
    })
}

fn tell(read: &Read<'_>, anomaly: &str, shard: u64, before: &Reached, verdict: &mut Verdict) {
    let why = format!(
        "{:?} shows {:?} (age {:?} ms): shard {shard} had reached {} of home {} before",
        read.op.node, read.seen, read.age_ms, before.position, before.generation
    );
    verdict.wrong(anomaly, read.op.key, &[before.op, read.op.invoked], why);
}

/// What a token names is there, or its loss is told; it is never passed over. (That what is shown is of a home that has
/// it, `prefix` looks at.)
fn check_token(told: &Told<'_>, read: &Read<'_>, token: &crate::token::Seen, verdict: &mut Verdict) {
    let seen = &read.seen;
    for (shard, wanted) in &token.shards {
        let Some(shown) = seen.shards.get(shard) else { continue };
        verdict.checked += 1;
        let at = Place { generation: token.generation, shard: *shard, position: *wanted };
        let there = shown >= wanted && told.lineage.keeps(at, seen.generation.max(token.generation));
        if !there {
            let why = format!("{token:?} was asked for, {:?} shows {seen:?}", read.op.node);
            verdict.wrong("passed-over", read.op.key, &[read.op.invoked], why);
        }
    }
}

/// Whether what the next homes gave counts too.
#[derive(Clone, Copy, PartialEq)]
enum Later {
    Not,
    /// Of those that lost nothing of it.
    IfHanded,
}

/// By home, what was reached in it and in those before it that count there: in order of their ends, each with the highest
/// so far.
struct Floors(BTreeMap<(u64, u64), Vec<(Reached, Reached)>>);

impl Floors {
    fn of(told: &Told<'_>, reached: &[Reached], later: Later) -> Self {
        let homes: BTreeSet<u64> = told.reads.iter().map(|read| read.seen.generation).collect();
        let homes: BTreeSet<u64> =
            homes.into_iter().chain(reached.iter().map(|one| one.generation)).collect();
        let mut floors: BTreeMap<(u64, u64), Vec<(Reached, Reached)>> = BTreeMap::new();
        for home in homes {
            for one in reached {
                let Reached { generation, shard, position, .. } = *one;
                let kept = told.lineage.keeps(Place { generation, shard, position }, home);
                let joined = || later == Later::IfHanded && told.lineage.joined(home, generation);
                if kept || joined() {
                    let of = floors.entry((home, shard)).or_default();
                    let highest =
                        of.last().map_or(
                            *one,
                            |(_, highest)| {
                                if highest.position >= position { *highest } else { *one }
                            },
                        );
                    of.push((*one, highest));
                }
            }
        }
        Floors(floors)
    }

    /// The highest position that was reached so early; `early` holds up to some moment and not after.
    fn before(&self, home: u64, shard: u64, early: impl Fn(&Reached) -> bool) -> Option<Reached> {
        let of = self.0.get(&(home, shard))?;
        let count = of.partition_point(|(one, _)| early(one));
        Some(of[count.checked_sub(1)?].1)
    }
}
