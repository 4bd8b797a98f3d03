//! Which shard holds a point, and which nodes hold a shard: pure functions.
//!
//! A point hashes to one of [`SLOTS`] slots, and each shard owns a contiguous range of slots, so that a later
//! split can hand over a part of a range.

use super::{
    CollectionSpec, NodeName,
    catalog::{CatalogState, GroupRecord, NodeRecord, NodeState},
};
use crate::model::{PointId, ShardNumber};
use std::collections::{BTreeMap, BTreeSet};

/// Slots of every collection.
pub(super) const SLOTS: u32 = 16_384;

/// The slot of a point: XXH3 of its store key, modulo [`SLOTS`]. Fixed for ever.
pub(super) fn slot_of(id: PointId) -> u32 {
    (xxhash_rust::xxh3::xxh3_64(&id.to_key()) % u64::from(SLOTS)) as u32
}

/// The shard that owns a point in a collection of `shards` (at least 1) shards.
pub(super) fn shard_of(id: PointId, shards: u32) -> ShardNumber {
    ShardNumber((u64::from(slot_of(id)) * u64::from(shards) / u64::from(SLOTS)) as u32)
}

/// The nodes of a new collection's replicas, by shard: on different nodes, of different zones as far as there are,
/// those with the fewest replicas first. Fewer than `replication_factor` if there are fewer nodes.
///
/// `alive`: nodes that answer; the others only if none does.
pub(super) fn place(
    state: &CatalogState,
    spec: &CollectionSpec,
    alive: &BTreeSet<NodeName>,
) -> Vec<Vec<NodeName>> {
    let takes = |n: &&NodeRecord| n.state == NodeState::Active;
    let mut nodes: Vec<&NodeRecord> = state.nodes.values().filter(takes).collect();
    if nodes.iter().any(|n| alive.contains(&n.name)) {
        nodes.retain(|n| alive.contains(&n.name));
    }
    let mut load: BTreeMap<&str, usize> = nodes.iter().map(|n| (n.name.as_str(), 0)).collect();
    for replica in state.groups().filter(|g| g.group != 0).flat_map(GroupRecord::staying) {
        if let Some(load) = load.get_mut(replica.node.as_str()) {
            *load += 1;
        }
    }
    (0..spec.shard_number)
        .map(|_| {
            let mut chosen = Vec::new();
            while chosen.len() < spec.replication_factor.max(1) as usize
                && let Some(node) = next_node(&nodes, &chosen, &load)
            {
                *load.entry(&node.name).or_default() += 1;
                chosen.push(node);
            }
            chosen.into_iter().map(|n| n.name.clone()).collect()
        })
        .collect()
}

/// The best node for one more replica of a group that has `chosen` already: of a zone not taken yet if there is one,
/// then the least loaded, then by name.
pub(super) fn next_node<'a>(
    nodes: &[&'a NodeRecord],
    chosen: &[&NodeRecord],
    load: &BTreeMap<&str, usize>,
) -> Option<&'a NodeRecord> {
    let free = nodes.iter().filter(|n| chosen.iter().all(|c| c.name != n.name));
    let rank = |n: &&&NodeRecord| {
        let zone_taken = chosen.iter().filter(|c| (&c.region, &c.zone) == (&n.region, &n.zone)).count();
        (zone_taken, load.get(n.name.as_str()).copied().unwrap_or(0), n.name.clone())
    };
    free.min_by_key(rank).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_fixed_for_ever() {
        let slots = [PointId::Num(0), PointId::Num(1), PointId::Num(u64::MAX), PointId::Uuid(1)].map(slot_of);
        assert_eq!(slots, [6231, 15960, 6011, 5553]);
    }

    #[test]
    fn points_spread_evenly() {
        let mut held = [0u32; 5];
        for n in 0..50_000 {
            held[shard_of(PointId::Num(n), 5).0 as usize] += 1;
        }
        assert!(held.iter().all(|n| (9_500..10_500).contains(n)), "{held:?}");
    }
}
