//! Which shard holds a point: pure functions of the point's id and the collection's shard count.
//!
//! A point hashes to one of [`SLOTS`] slots, and each shard owns a contiguous range of slots, so that a later
//! split can hand over a part of a range.

use crate::model::{PointId, ShardNumber};

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
