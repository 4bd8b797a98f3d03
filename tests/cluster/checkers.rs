//! The checkers against histories that are known to be bad, and good ones that look bad.

use crate::history::{Anomaly, History, Kind, Nanos, Op, Order, Outcome, shard_of};
use std::{collections::BTreeMap, time::Duration};

fn op(kind: Kind, value: u64, during: (Nanos, Nanos), outcome: Outcome) -> Op {
    Op { key: 1, kind, value, position: value, node: 0, invoked: during.0, ended: during.1, outcome }
}

fn wrote(value: u64, from: Nanos, to: Nanos) -> Op {
    op(Kind::Write, value, (from, to), Outcome::Ok)
}

fn perhaps(value: u64, from: Nanos, to: Nanos) -> Op {
    op(Kind::Write, value, (from, to), Outcome::Unknown)
}

fn failed(value: u64, from: Nanos, to: Nanos) -> Op {
    op(Kind::Write, value, (from, to), Outcome::Fail)
}

fn read(value: u64, from: Nanos, to: Nanos) -> Op {
    op(Kind::Read, value, (from, to), Outcome::Ok)
}

/// What is found in a history that ends with `end` in the register.
fn found(order: Order, ops: &[Op], end: u64) -> Vec<Anomaly> {
    let history = History { ops: ops.to_vec(), ..History::default() };
    let end = BTreeMap::from([(1, end)]);
    let end = if end[&1] == 0 { BTreeMap::new() } else { end };
    history.check(order, &end).found.into_iter().map(|(anomaly, _)| anomaly).collect()
}

#[test]
fn good_histories_pass() {
    let good: &[(&[Op], u64)] = &[
        // A read during a write may give either value.
        (&[wrote(1, 0, 10), wrote(2, 20, 40), read(1, 25, 30), read(2, 35, 38)], 2),
        (&[wrote(1, 0, 10), read(0, 5, 20)], 1),
        // Reads that overlap may disagree.
        (&[wrote(1, 0, 10), wrote(2, 20, 60), read(2, 25, 50), read(1, 30, 40)], 2),
        // What nobody knows may show at any time, or never.
        (&[wrote(1, 0, 10), perhaps(2, 20, 30), read(1, 50, 60), read(2, 70, 80)], 2),
        (&[wrote(1, 0, 10), perhaps(2, 20, 30), read(1, 50, 60)], 1),
        (&[perhaps(1, 0, 10), read(0, 20, 30)], 0),
        (&[wrote(1, 0, 10), failed(2, 20, 30), read(1, 40, 50)], 1),
        // A read that starts at the moment a write ends is not after it.
        (&[wrote(1, 0, 10), read(0, 10, 20)], 1),
    ];
    for order in [Order::Values, Order::Positions] {
        for (ops, end) in good {
            assert_eq!(found(order, ops, *end), [], "{ops:?}");
        }
    }
}

#[test]
fn bad_histories_are_found() {
    let bad: &[(&[Op], u64, Anomaly)] = &[
        (&[wrote(1, 0, 10), wrote(2, 20, 30), read(1, 31, 40)], 2, Anomaly::Stale),
        (&[wrote(1, 0, 10), read(0, 11, 20)], 1, Anomaly::Absent),
        // Nothing acknowledged, but somebody has seen it.
        (&[perhaps(1, 0, 100), read(1, 20, 30), read(0, 40, 50)], 1, Anomaly::Absent),
        (&[wrote(1, 0, 10), wrote(2, 20, 90), read(2, 30, 40), read(1, 50, 60)], 2, Anomaly::Inversion),
        (&[wrote(1, 0, 10), read(7, 20, 30)], 1, Anomaly::MadeUp),
        (&[wrote(1, 0, 10), failed(2, 20, 30), read(2, 40, 50)], 2, Anomaly::Ghost),
        (&[wrote(1, 0, 10), read(2, 20, 30), wrote(2, 40, 50)], 2, Anomaly::Early),
        (&[wrote(1, 0, 10), wrote(2, 20, 30)], 1, Anomaly::Lost),
        (&[wrote(1, 0, 10)], 0, Anomaly::Lost),
        (&[wrote(2, 0, 10), wrote(1, 20, 30)], 2, Anomaly::WriteOrder),
        // The later of two writes comes first although they do not overlap; the first read of many is the stale one.
        (
            &[wrote(1, 0, 10), wrote(2, 11, 12), wrote(3, 13, 14), read(2, 15, 16), read(3, 17, 18)],
            3,
            Anomaly::Stale,
        ),
    ];
    for (ops, end, anomaly) in bad {
        assert!(found(Order::Values, ops, *end).contains(anomaly), "{anomaly:?} in {ops:?}");
    }
    for (ops, end, anomaly) in bad {
        // In a shared register a write of unknown effect has no rank.
        if !ops.iter().any(|op| op.outcome == Outcome::Unknown) {
            assert!(found(Order::Positions, ops, *end).contains(anomaly), "{anomaly:?} in {ops:?}");
        }
    }
}

#[test]
fn a_point_that_nobody_wrote_is_found() {
    let report = History::default().check(Order::Values, &BTreeMap::from([(5, 1)]));
    assert_eq!(report.count(Anomaly::MadeUp), 1);
}

#[test]
fn every_read_after_something_counts_as_a_check() {
    let ops = vec![wrote(1, 0, 10), read(1, 5, 8), read(1, 20, 30), read(1, 40, 50)];
    let history = History { ops, ..History::default() };
    assert_eq!(history.check(Order::Values, &BTreeMap::from([(1, 1)])).checks, 2);
}

/// The fast check agrees with the obvious one, which compares every read with every operation.
#[test]
fn the_fast_check_is_the_obvious_one() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut bad = 0;
    for seed in 0..2_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ops: Vec<Op> = Vec::new();
        let mut at = 0;
        for value in 1..=4 {
            let (from, to) = (at + rng.random_range(1..5), at + rng.random_range(5..15));
            ops.push(wrote(value, from, to));
            at = to;
        }
        for _ in 0..6 {
            // As a good register would answer at some moment of the read, and now and then not.
            let from = rng.random_range(0..at + 10);
            let (moment, to) = (from + 1, from + rng.random_range(2..15));
            let good = ops.iter().filter(|op| op.kind == Kind::Write && op.ended <= moment).count() as u64;
            ops.push(read(if rng.random_ratio(1, 8) { rng.random_range(0..=4) } else { good }, from, to));
        }
        let obvious = ops.iter().filter(|r| r.kind == Kind::Read).any(|r| {
            let future =
                ops.iter().any(|w| w.kind == Kind::Write && w.value == r.value && w.invoked > r.ended);
            future || ops.iter().any(|o| o.ended < r.invoked && o.value > r.value)
        });
        bad += u32::from(obvious);
        let found = found(Order::Values, &ops, 4);
        assert_eq!(!found.is_empty(), obvious, "seed {seed}: {found:?} in {ops:?}");
    }
    assert!((200..1_900).contains(&bad), "{bad} of 2,000 are bad: the test says little");
}

#[test]
fn outages_and_pauses() {
    let shard = shard_of(1, 2);
    let ops = vec![wrote(1, 0, 10), wrote(2, 15, 50), wrote(3, 60, 100), perhaps(4, 101, 110)];
    let history = History { ops, ..History::default() };
    // The write under way at the fault does not count, nor do other shards.
    assert_eq!(history.outage(20, shard, 2), Some(Duration::from_nanos(80)));
    assert_eq!(history.outage(20, 1 - shard, 2), None);
    assert_eq!(history.outage(61, shard, 2), None);
    assert_eq!(history.longest_pause(shard, 2), Duration::from_nanos(50));
}
