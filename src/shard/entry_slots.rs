//! The slots of an index entry, chunk by chunk.
//!
//! Invariants: sets are never changed in place while another state of the shard holds them; a change copies at most 8 KiB.
//! Not here: what entries are (`payload_index`).

use super::points::Slot;
use roaring::RoaringBitmap;
use std::sync::Arc;

/// The slots of one entry in one chunk.
#[derive(Clone)]
pub(super) enum Slots {
    /// At most [`FEW`]: where they lie in the chunk, ascending. Most entries of most fields have few; these are small, and
    /// hundreds of them are quickly put together.
    Few(Arc<[u16]>),
    Many(Arc<RoaringBitmap>),
}

const FEW: usize = 512;
/// Slots in a chunk.
const CHUNK: usize = 1 << 16;
/// From so many small sets' slots on, bits are cheaper than sorting.
const BITS_FROM: usize = 4_096;

impl Slots {
    /// Slots of one chunk that ascend.
    pub(super) fn ascending(slots: &[Slot]) -> Slots {
        match slots.len() <= FEW {
            true => Slots::Few(slots.iter().map(|slot| *slot as u16).collect()),
            false => Slots::Many(Arc::new(slots.iter().copied().collect())),
        }
    }

    /// The same with one more.
    pub(super) fn with(self, slot: Slot) -> Slots {
        match self {
            Slots::Few(few) => match few.binary_search(&(slot as u16)) {
                Ok(_) => Slots::Few(few),
                Err(at) if few.len() < FEW => {
                    let (before, behind) = few.split_at(at);
                    Slots::Few([before, &[slot as u16], behind].concat().into())
                }
                Err(_) => {
                    let base = slot & !(CHUNK as Slot - 1);
                    let all = few.iter().map(|low| base | Slot::from(*low)).chain([slot]);
                    Slots::Many(Arc::new(all.collect()))
                }
            },
            Slots::Many(mut many) => {
                Arc::make_mut(&mut many).insert(slot);
                Slots::Many(many)
            }
        }
    }

    /// The same with one less; `None` if none is left.
    pub(super) fn without(self, slot: Slot) -> Option<Slots> {
        match self {
            Slots::Few(few) => {
                let left: Arc<[u16]> = few.iter().copied().filter(|low| *low != slot as u16).collect();
                (!left.is_empty()).then_some(Slots::Few(left))
            }
            Slots::Many(mut many) => {
                Arc::make_mut(&mut many).remove(slot);
                (!many.is_empty()).then_some(Slots::Many(many))
            }
        }
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Slots::Few(few) => few.len() as u64,
            Slots::Many(many) => many.len(),
        }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Slots::Few(Arc::default())
    }
}

/// The slots of all these, by chunk, together. Small sets are put together at once: merged one after the other, each would cost as much
/// as all before it.
pub(super) fn united<'a>(sets: impl Iterator<Item = (u16, &'a Slots)>) -> RoaringBitmap {
    let (mut few, mut many, mut count) = (Vec::new(), Vec::new(), 0);
    for (chunk, slots) in sets {
        match slots {
            Slots::Few(lows) => {
                count += lows.len();
                few.push((chunk, lows));
            }
            Slots::Many(set) => many.push(&**set),
        }
    }
    let mut all = roaring::MultiOps::union(many);
    if count < BITS_FROM {
        let slots =
            few.into_iter().flat_map(|(chunk, lows)| lows.iter().map(move |low| slot_of(chunk, *low)));
        let mut slots: Vec<Slot> = slots.collect();
        slots.sort_unstable();
        slots.dedup();
        all.extend(slots);
        return all;
    }
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    for (chunk, lows) in few {
        let chunk = usize::from(chunk);
        if chunks.len() <= chunk {
            chunks.resize(chunk + 1, Vec::new());
        }
        let bits = &mut chunks[chunk];
        bits.resize(CHUNK / 8, 0);
        for low in &**lows {
            bits[usize::from(low / 8)] |= 1 << (low % 8);
        }
    }
    for (chunk, bits) in (0..).zip(chunks).filter(|(_, bits)| !bits.is_empty()) {
        all |= RoaringBitmap::from_lsb0_bytes(slot_of(chunk, 0), &bits);
    }
    all
}

/// Which chunk a slot lies in.
pub(super) fn chunk_of(slot: Slot) -> u16 {
    (slot >> 16) as u16
}

fn slot_of(chunk: u16, low: u16) -> Slot {
    Slot::from(chunk) << 16 | Slot::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn many_sets_put_together_hold_what_each_of_them_holds() {
        let put =
            |chunk: u16, slots: Vec<Slot>| (chunk, slots.into_iter().fold(Slots::default(), Slots::with));
        // In the first chunk many small sets and a large one, in the second few, in the last some that share slots.
        let small = (0..300).map(|n| put(0, (0..40).map(|i| (n * 7 + i * 997) % 65_536).collect()));
        let large = put(0, (0..30_000).map(|i| 2 * i).collect());
        let few = (0..3).map(|n| put(1, vec![65_536 + n, 65_600]));
        let shared = (0..300).map(|n| put(9, (0..20).map(|i| 9 * 65_536 + 100 * (n % 3) + i).collect()));
        for sets in [small.chain([large]).chain(shared).collect::<Vec<_>>(), few.collect()] {
            let slots = sets.iter().flat_map(|(chunk, set)| match set {
                Slots::Few(lows) => lows.iter().map(|low| slot_of(*chunk, *low)).collect::<Vec<_>>(),
                Slots::Many(set) => set.iter().collect(),
            });
            let right: BTreeSet<Slot> = slots.collect();
            assert!(united(sets.iter().map(|(chunk, set)| (*chunk, set))).into_iter().eq(right));
        }
    }

    proptest! {
        #[test]
        fn slots_are_a_set(
            steps in prop::collection::vec((prop::bool::weighted(0.9), 0u32..1_500), 0..2_500)
        ) {
            let (mut slots, mut right) = (Slots::default(), BTreeSet::new());
            for (add, slot) in steps {
                let slot = 3 * CHUNK as Slot + slot;
                if add {
                    right.insert(slot);
                    slots = slots.with(slot);
                } else {
                    right.remove(&slot);
                    slots = slots.without(slot).unwrap_or_default();
                }
                prop_assert_eq!(slots.len(), right.len() as u64);
            }
            let ascending: Vec<Slot> = right.iter().copied().collect();
            for slots in [slots, Slots::ascending(&ascending)] {
                prop_assert!(united([(3, &slots)].into_iter()).into_iter().eq(right.iter().copied()));
            }
        }
    }
}
