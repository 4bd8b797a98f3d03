//! Which slots are live, and whose they are: the check every candidate of an index must pass, in memory.
//!
//! Both tables are persistent structures: a `ReadView` keeps its version for the price of a pointer, and the
//! writer copies only what it touches (8 KiB for each 65,536 slots a batch touches, 2 KiB for each 64, some tree nodes).
//!
//! Invariants: a slot is live in a view iff its incarnation is the current one of a live point at the view's
//! position; a slot number is given out once, so it names one id and one set of vectors for ever.
//! Not here: what the slots hold (`points`), which of them an index covers (`vector_index`).

use super::points::Slot;
use crate::model::{PointId, Position};
use roaring::RoaringBitmap;
use std::sync::Arc;

const WORDS: usize = 1024;
const SLOTS_IN_CHUNK: usize = WORDS * 64;

type Chunk = [u64; WORDS];

/// The set of live slots.
#[derive(Clone, Default)]
pub(super) struct LiveSet {
    chunks: Arc<Vec<Option<Arc<Chunk>>>>,
    count: u64,
}

impl LiveSet {
    /// Whether a slot is live.
    pub(super) fn contains(&self, slot: Slot) -> bool {
        let (chunk, word, bit) = place(slot);
        match self.chunks.get(chunk) {
            Some(Some(chunk)) => chunk[word] & bit != 0,
            _ => false,
        }
    }

    /// How many slots are live.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Makes a slot live.
    pub(super) fn insert(&mut self, slot: Slot) {
        let (chunk, word, bit) = place(slot);
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.len() <= chunk {
            chunks.resize(chunk + 1, None);
        }
        let words = Arc::make_mut(chunks[chunk].get_or_insert_with(|| Arc::new([0; WORDS])));
        self.count += u64::from(words[word] & bit == 0);
        words[word] |= bit;
    }

    /// Makes a slot dead. A chunk without live slots gives its memory back.
    pub(super) fn remove(&mut self, slot: Slot) {
        let (chunk, word, bit) = place(slot);
        let Some(place) = Arc::make_mut(&mut self.chunks).get_mut(chunk) else { return };
        let Some(words) = place else { return };
        let words = Arc::make_mut(words);
        self.count -= u64::from(words[word] & bit != 0);
        words[word] &= !bit;
        if words.iter().all(|w| *w == 0) {
            *place = None;
        }
    }

    /// All live slots.
    pub(super) fn to_bitmap(&self) -> RoaringBitmap {
        let mut all = RoaringBitmap::new();
        for (number, chunk) in self.chunks.iter().enumerate() {
            if let Some(words) = chunk {
                let words = words.map(u64::to_le);
                let bytes = bytemuck::cast_slice(&words);
                all |= RoaringBitmap::from_lsb0_bytes((number * SLOTS_IN_CHUNK) as u32, bytes);
            }
        }
        all
    }
}

fn place(slot: Slot) -> (usize, usize, u64) {
    let slot = slot as usize;
    (slot / SLOTS_IN_CHUNK, slot % SLOTS_IN_CHUNK / 64, 1 << (slot % 64))
}

/// Whose slot each live one is, the position that gave it, and the one that last wrote its point.
#[derive(Clone, Default)]
pub(super) struct SlotTable {
    /// By the number of a group of [`GROUP`] slots; none is empty.
    groups: imbl::OrdMap<u32, Arc<Group>>,
}

/// Slots that lie together: a search asks for a few, and every step down a tree is a wait for memory.
const GROUP: u32 = 64;

#[derive(Clone, Default)]
struct Group {
    /// Which of them are live.
    live: u64,
    /// One for each of those, ascending.
    entries: Vec<Entry>,
}

/// A point id and two positions in 32 bytes.
#[derive(Clone, Copy)]
struct Entry {
    high: u64,
    low: u64,
    /// The position that gave it, and in the top bit whether the id is a UUID.
    born: u64,
    /// The position that last wrote the point.
    version: u64,
}

const UUID: u64 = 1 << 63;

impl SlotTable {
    pub(super) fn insert(&mut self, slot: Slot, id: PointId, born: Position, version: Position) {
        let (high, low, kind) = match id {
            PointId::Num(n) => (0, n, 0),
            PointId::Uuid(u) => ((u >> 64) as u64, u as u64, UUID),
        };
        let entry = Entry { high, low, born: born.0 | kind, version: version.0 };
        let group = Arc::make_mut(self.groups.entry(slot / GROUP).or_default());
        let (bit, at) = group.place(slot);
        match group.live & bit == 0 {
            true => {
                // Slots are given out in order: a group that gets one gets the others too.
                group.entries.reserve_exact(GROUP as usize - group.entries.len());
                group.entries.insert(at, entry);
            }
            false => group.entries[at] = entry,
        }
        group.live |= bit;
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(group) = self.groups.get_mut(&(slot / GROUP)) else { return };
        let group = Arc::make_mut(group);
        let (bit, at) = group.place(slot);
        if group.live & bit != 0 {
            group.live &= !bit;
            group.entries.remove(at);
        }
        if group.live == 0 {
            self.groups.remove(&(slot / GROUP));
        }
    }

    /// The point whose live slot this is.
    pub(super) fn id(&self, slot: Slot) -> Option<PointId> {
        self.entry(slot).map(Entry::id)
    }

    /// The position that gave a live slot.
    pub(super) fn born(&self, slot: Slot) -> Option<Position> {
        self.entry(slot).map(|e| Position(e.born & !UUID))
    }

    /// The point whose live slot this is, and the position that last wrote it.
    pub(super) fn point(&self, slot: Slot) -> Option<(PointId, Position)> {
        self.entry(slot).map(|e| (e.id(), Position(e.version)))
    }

    /// Live slots, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, PointId)> + '_ {
        self.groups.iter().flat_map(|(number, group)| {
            let slots = (0..GROUP).filter(|slot| group.live >> slot & 1 == 1);
            slots.map(move |slot| number * GROUP + slot).zip(group.entries.iter().map(Entry::id))
        })
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        let group = self.groups.get(&(slot / GROUP))?;
        let (bit, at) = group.place(slot);
        if group.live & bit == 0 { None } else { group.entries.get(at) }
    }
}

impl Group {
    /// The bit of a slot, and the place of its entry.
    fn place(&self, slot: Slot) -> (u64, usize) {
        let bit = 1 << (slot % GROUP);
        (bit, (self.live & (bit - 1)).count_ones() as usize)
    }
}

impl Entry {
    fn id(&self) -> PointId {
        match self.born & UUID {
            0 => PointId::Num(self.low),
            _ => PointId::Uuid(u128::from(self.high) << 64 | u128::from(self.low)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn a_live_set_is_a_set_and_old_versions_stand_still(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0u32..100, 65_500u32..65_600, 200_000u32..200_010]), 0..80)
        ) {
            let (mut live, mut truth) = (LiveSet::default(), BTreeSet::new());
            for (add, slot) in steps {
                let (before, truth_before) = (live.clone(), truth.clone());
                if add { live.insert(slot); truth.insert(slot); } else { live.remove(slot); truth.remove(&slot); }
                prop_assert!(before.to_bitmap().iter().eq(truth_before.iter().copied()));
                prop_assert!(live.to_bitmap().iter().eq(truth.iter().copied()));
                prop_assert_eq!(live.count(), truth.len() as u64);
                prop_assert_eq!(live.contains(slot), truth.contains(&slot));
            }
        }
    }

    proptest! {
        #[test]
        fn a_slot_table_is_a_map_and_old_versions_stand_still(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0u32..140, u32::MAX - 70..=u32::MAX], any::<u8>()), 0..80)
        ) {
            let (mut table, mut truth) = (SlotTable::default(), BTreeMap::new());
            for (add, slot, n) in steps {
                let (before, truth_before) = (table.clone(), truth.clone());
                let (id, position) = (PointId::Num(n.into()), Position(n.into()));
                if add {
                    table.insert(slot, id, position, position);
                    truth.insert(slot, id);
                } else {
                    table.remove(slot);
                    truth.remove(&slot);
                }
                prop_assert!(before.iter().eq(truth_before.into_iter()));
                prop_assert!(table.iter().eq(truth.clone().into_iter()));
                prop_assert_eq!(table.id(slot), truth.get(&slot).copied());
                prop_assert!(table.groups.values().all(|group| !group.entries.is_empty()));
            }
        }
    }

    #[test]
    fn a_slot_tells_its_point() {
        let mut table = SlotTable::default();
        for (slot, id) in
            [(1, PointId::Num(u64::MAX)), (2, PointId::Uuid(u128::MAX - 5)), (3, PointId::Num(0))]
        {
            table.insert(slot, id, Position(9), Position(11));
            assert_eq!((table.id(slot), table.born(slot)), (Some(id), Some(Position(9))));
            assert_eq!(table.point(slot), Some((id, Position(11))));
        }
        table.remove(2);
        assert_eq!(table.iter().map(|(slot, _)| slot).collect::<Vec<_>>(), [1, 3]);
    }
}
