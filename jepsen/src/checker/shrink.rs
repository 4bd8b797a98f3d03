//! The smallest history of a point that still cannot be, for people to look at.
//!
//! Whole values are taken away first (a write with everything that shows it), then single reads; what is left is a
//! violation of which no such part can be spared.
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
    let values: BTreeSet<u64> = left.iter().filter_map(value_of).collect();
    for value in values {
        let without: Vec<Access> =
            left.iter().filter(|access| value_of(access) != Some(value)).copied().collect();
        if fails(&without) && still_explained(&without) {
            left = without;
        }
    }
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
            push(Act::Write(Some(n)), Some(n), 3 * n);
            push(Act::Read(Some(if n == 40 { 38 } else { n })), None, 3 * n + 1);
        }
        let left = shrink(&accesses, Instant::now() + Duration::from_secs(20));
        let acts: Vec<_> = left.iter().map(|access| access.act).collect();
        assert!(acts.len() <= 3, "{acts:?}");
        assert!(acts.contains(&Act::Read(Some(38))), "{acts:?}");
    }
}
