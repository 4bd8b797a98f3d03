//! The smallest history of a point that still cannot be, for people to look at.
//!
//! Conditions are forgotten first, if the violation does without them (a write is possible wherever a
//! compare-and-set is, so this accuses nobody falsely); then whole values are taken away (a write with everything
//! that shows it), then single reads, in turns; what is left is a violation of which no such part can be spared.
//!
//! Invariants: what is given still fails the same check; nothing is invented.
//! Source: Zeller's delta debugging, in its simplest greedy form.

use super::{
    linearizable::{Found, search},
    observe::{Access, Act},
    register::{Register, searched, timed},
};
use std::{collections::BTreeSet, time::Instant};

/// Takes away what a violation does not need; gives what it was given if that is none, or time is up.
pub fn shrink(accesses: &[Access], deadline: Instant) -> Vec<Access> {
    let mut left = searched(accesses);
    let fails = |accesses: &[Access]| {
        matches!(search(&Register, &timed(accesses), deadline), Found::Not { .. })
            && Instant::now() < deadline
    };
    if !fails(&left) {
        return left;
    }
    let forgotten: Vec<Access> = left.iter().map(forget).collect();
    if fails(&forgotten) {
        left = forgotten;
    }
    loop {
        let before = left.len();
        left = without_values(left, &fails);
        left = without_reads(left, &fails);
        if left.len() == before {
            return left;
        }
    }
}

/// Takes values away, each with all that shows it, as long as every version that is named keeps its write.
fn without_values(mut left: Vec<Access>, fails: &impl Fn(&[Access]) -> bool) -> Vec<Access> {
    let values: BTreeSet<u64> = left.iter().filter_map(value_of).collect();
    for value in values {
        let without: Vec<Access> =
            left.iter().filter(|access| value_of(access) != Some(value)).copied().collect();
        if still_explained(&without) && fails(&without) {
            left = without;
        }
    }
    left
}

/// Takes single reads and deletes away.
fn without_reads(mut left: Vec<Access>, fails: &impl Fn(&[Access]) -> bool) -> Vec<Access> {
    let mut at = 0;
    while at < left.len() {
        let mut without = left.clone();
        without.remove(at);
        let spared = left[at].act.writes().is_none_or(|value| value.is_none());
        if spared && fails(&without) {
            left = without;
        } else {
            at += 1;
        }
    }
    left
}

/// A write under a condition as a plain write.
fn forget(access: &Access) -> Access {
    let act = access.act.writes().map_or(access.act, Act::Write);
    Access { act, ..*access }
}

fn value_of(access: &Access) -> Option<u64> {
    match access.act {
        Act::Write(value) | Act::Cas { value, .. } | Act::Read(value) => value,
        Act::Seen | Act::There(_) => None,
    }
}

/// Whether every version that is named still belongs to a write that is left.
fn still_explained(accesses: &[Access]) -> bool {
    let versions: BTreeSet<u64> = accesses
        .iter()
        .filter(|access| access.act.writes().is_some())
        .filter_map(|access| access.version)
        .collect();
    accesses.iter().all(|access| match access.act {
        Act::Cas { expected: Some(version), .. } => versions.contains(&version),
        Act::Seen => access.version.is_none_or(|version| versions.contains(&version)),
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_what_shows_the_violation_is_left() {
        // Many values come and go in order; amid them one read gives what was overwritten.
        let mut accesses = Vec::new();
        let mut push = |act, version, at: u64| {
            accesses.push(Access { act, version, invoked: 2 * at, ended: 2 * at + 1, op: 2 * at });
        };
        for n in 1..=50u64 {
            // Each write builds on the one before.
            push(Act::Cas { expected: (n > 1).then_some(n - 1), value: Some(n) }, Some(n), 3 * n);
            push(Act::Read(Some(if n == 40 { 38 } else { n })), None, 3 * n + 1);
        }
        let left = shrink(&accesses, Instant::now() + Duration::from_secs(20));
        let acts: Vec<_> = left.iter().map(|access| access.act).collect();
        assert!(acts.len() <= 3, "{acts:?}");
        assert!(acts.contains(&Act::Read(Some(38))), "{acts:?}");
    }
}
