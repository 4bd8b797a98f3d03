//! Which positions of which home count in which later one.
//!
//! Invariants: a home that was handed over lost nothing, so only takeovers cut positions off; where each begins, its
//! manifest says.

use std::collections::BTreeMap;

/// The position of a command of one shard, in the count of the home that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) generation: u64,
    pub(super) shard: u64,
    pub(super) position: u64,
}

/// The takeovers of a run: by the generation of the new home, the first position of each shard.
#[derive(Clone, Debug, Default)]
pub(super) struct Lineage(BTreeMap<u64, BTreeMap<u64, u64>>);

impl Lineage {
    pub(super) fn note(&mut self, generation: u64, firsts: BTreeMap<u64, u64>) {
        self.0.insert(generation, firsts);
    }

    /// The first position of a shard that was given by a home after `older`, up to `newer`, which took over; none if none
    /// did.
    fn end(&self, shard: u64, older: u64, newer: u64) -> Option<u64> {
        let firsts = self.0.iter().filter(|(generation, _)| older < **generation && **generation <= newer);
        firsts.filter_map(|(_, firsts)| firsts.get(&shard).copied()).min()
    }

    /// Whether what stands at a place is part of what a home has, or will have.
    pub(super) fn keeps(&self, at: Place, generation: u64) -> bool {
        at.generation <= generation
            && self.end(at.shard, at.generation, generation).is_none_or(|end| at.position < end)
    }

    /// Whether all of an older home's positions count in a newer one.
    pub(super) fn joined(&self, older: u64, newer: u64) -> bool {
        older <= newer && !self.0.keys().any(|generation| older < *generation && *generation <= newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_cuts_off_what_it_has_not() {
        let mut lineage = Lineage::default();
        // 1 is handed over to 2, 3 takes over at 10, 4 is handed.
        lineage.note(3, [(0, 10)].into());
        let at = |generation, position| Place { generation, shard: 0, position };
        assert!(lineage.keeps(at(1, 12), 2), "a handover loses nothing");
        assert!(lineage.keeps(at(2, 9), 4) && !lineage.keeps(at(2, 10), 3) && !lineage.keeps(at(1, 11), 4));
        assert!(lineage.keeps(at(3, 10), 4));
        assert!(!lineage.keeps(at(3, 1), 2), "a later home is no part of an earlier one");
        assert!(lineage.joined(1, 2) && lineage.joined(3, 4) && lineage.joined(2, 2));
        assert!(!lineage.joined(2, 3) && !lineage.joined(1, 4) && !lineage.joined(4, 3));
    }
}
