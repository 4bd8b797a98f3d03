//! Which points hold which value, field by field.
//!
//! A field's entries are byte strings that keep the order of the values they stand for, each with the slots
//! that have it. The same entries lie in the store (one key for an entry and slot, in the batch that wrote the
//! point) and in memory (a persistent map, so that every `ReadView` keeps its own version).
//!
//! | entry | holds for |
//! |---|---|
//! | `00` | slots whose field is not empty (as `is_empty` means it) |
//! | `01` | slots with a null |
//! | `02` value | slots with that value; a number as ordered f64, then the i64 if it is one; a text as its words |
//!
//! Invariants: entries name live slots only; a slot's entries are those of its current payload.
//! Not here: conditions over them (`plan`), how an entry keeps its slots (`entry_slots`).

use super::{
    entry_slots::{Slots, chunk_of, united},
    points,
    points::Slot,
};
use crate::{
    machine::MachineError,
    model::{FieldPath, FieldType, Payload, datetime::parse_micros, filter},
    store::{Keyspace, View},
};
use roaring::RoaringBitmap;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

/// Entry of slots whose field is not empty.
pub(super) const PRESENT: &[u8] = &[0];
/// Entry of slots with a null.
pub(super) const NULL: &[u8] = &[1];
const VALUE: u8 = 2;

/// An entry, and which 65,536 slots.
type Key = (Arc<[u8]>, u16);

/// All indexed fields of a shard; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct FieldIndexes {
    fields: BTreeMap<FieldPath, FieldIndex>,
}

/// One indexed field.
#[derive(Clone)]
pub(super) struct FieldIndex {
    /// How it is indexed.
    pub(super) of: FieldType,
    /// Slots by entry, in chunks of 65,536 slots, so that a change copies at most 8 KiB.
    slots: imbl::OrdMap<Key, Slots>,
}

impl FieldIndexes {
    /// Reads the entries of `fields` from the store.
    pub(super) fn load(
        view: &View,
        keyspace: &Keyspace,
        fields: &BTreeMap<FieldPath, FieldType>,
    ) -> Result<Self, MachineError> {
        let mut indexes = FieldIndexes::default();
        for (path, of) in fields {
            let prefix = points::field_prefix(path);
            let mut chunks: BTreeMap<Key, Vec<Slot>> = BTreeMap::new();
            for item in view.prefix(keyspace, &prefix) {
                let (key, _) = item?;
                let rest = &key[prefix.len()..];
                let (entry, slot) = rest
                    .split_last_chunk::<4>()
                    .ok_or_else(|| points::damaged("field entry", format!("{key:02x?}")))?;
                let slot = Slot::from_be_bytes(*slot);
                chunks.entry((entry.into(), chunk_of(slot))).or_default().push(slot);
            }
            let slots = chunks.into_iter().map(|(key, slots)| (key, Slots::ascending(&slots))).collect();
            indexes.fields.insert(path.clone(), FieldIndex { of: *of, slots });
        }
        Ok(indexes)
    }

    /// Begins the index of a field, empty.
    pub(super) fn create(&mut self, path: FieldPath, of: FieldType) {
        self.fields.insert(path, FieldIndex { of, slots: imbl::OrdMap::new() });
    }

    /// Forgets a field.
    pub(super) fn drop_field(&mut self, path: &FieldPath) {
        self.fields.remove(path);
    }

    /// The index of a field.
    pub(super) fn get(&self, path: &FieldPath) -> Option<&FieldIndex> {
        self.fields.get(path)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&FieldPath, &FieldIndex)> {
        self.fields.iter()
    }

    /// Every (field, entry) of a payload.
    pub(super) fn entries(&self, payload: &Payload) -> BTreeSet<(FieldPath, Vec<u8>)> {
        let of_field = |(path, index): (&FieldPath, &FieldIndex)| {
            let path = path.clone();
            entries(&path.values(payload), index.of).into_iter().map(move |entry| (path.clone(), entry))
        };
        self.fields.iter().flat_map(of_field).collect()
    }

    /// Adds a slot to an entry.
    pub(super) fn insert(&mut self, path: &FieldPath, entry: &[u8], slot: Slot) {
        if let Some(index) = self.fields.get_mut(path) {
            let key = (Arc::from(entry), chunk_of(slot));
            let of = index.slots.entry(key).or_default();
            *of = std::mem::take(of).with(slot);
        }
    }

    /// Takes a slot out of an entry.
    pub(super) fn remove(&mut self, path: &FieldPath, entry: &[u8], slot: Slot) {
        let Some(index) = self.fields.get_mut(path) else { return };
        let key = (Arc::from(entry), chunk_of(slot));
        let Some(of) = index.slots.get_mut(&key) else { return };
        match std::mem::take(of).without(slot) {
            Some(left) => *of = left,
            None => _ = index.slots.remove(&key),
        }
    }
}

impl FieldIndex {
    /// Slots of one entry.
    pub(super) fn with(&self, entry: &[u8]) -> RoaringBitmap {
        let entry: Arc<[u8]> = entry.into();
        self.union((Bound::Included((entry.clone(), 0)), Bound::Included((entry, u16::MAX))))
    }

    /// How many slots have a value.
    pub(super) fn present(&self) -> u64 {
        self.with(PRESENT).len()
    }

    /// How many entries there are, of all slots together.
    pub(super) fn rows(&self) -> u64 {
        self.slots.values().map(|slots| slots.len()).sum()
    }

    /// Slots of all values whose bytes lie within bounds.
    pub(super) fn between(&self, from: Bound<Vec<u8>>, to: Bound<Vec<u8>>) -> RoaringBitmap {
        let from = match from {
            Bound::Included(v) => Bound::Included((Arc::from(v), 0)),
            Bound::Excluded(v) => Bound::Excluded((Arc::from(v), u16::MAX)),
            Bound::Unbounded => Bound::Included((Arc::from([VALUE]), 0)),
        };
        let to = match to {
            Bound::Included(v) => Bound::Included((Arc::from(v), u16::MAX)),
            Bound::Excluded(v) => Bound::Excluded((Arc::from(v), 0)),
            Bound::Unbounded => Bound::Excluded((Arc::from([VALUE + 1]), 0)),
        };
        self.union((from, to))
    }

    /// Slots that have a value other than these entries.
    pub(super) fn other_than(&self, entries: &BTreeSet<Vec<u8>>) -> RoaringBitmap {
        let values = self.slots.range((Arc::<[u8]>::from([VALUE]), 0)..);
        united(
            values
                .filter(|((entry, _), _)| !entries.contains(&**entry))
                .map(|((_, chunk), slots)| (*chunk, slots)),
        )
    }

    fn union(&self, (from, to): (Bound<Key>, Bound<Key>)) -> RoaringBitmap {
        // A range that ends before it begins is empty here, and a panic to the map.
        let ends = |bound: &Bound<Key>| match bound {
            Bound::Included(key) | Bound::Excluded(key) => Some(key.clone()),
            Bound::Unbounded => None,
        };
        let one_key = matches!((&from, &to), (Bound::Included(from), Bound::Included(to)) if from == to);
        if !one_key && ends(&from).zip(ends(&to)).is_some_and(|(from, to)| from >= to) {
            return RoaringBitmap::new();
        }
        united(self.slots.range((from, to)).map(|((_, chunk), slots)| (*chunk, slots)))
    }
}

/// The entries of the values at a path.
pub(super) fn entries(values: &[&Value], of: FieldType) -> BTreeSet<Vec<u8>> {
    let mut entries = BTreeSet::new();
    if !filter::is_empty(values) {
        entries.insert(PRESENT.to_vec());
    }
    if filter::is_null(values) {
        entries.insert(NULL.to_vec());
    }
    for value in filter::scalars(values) {
        match (of, value) {
            (FieldType::Keyword, Value::String(s)) => _ = entries.insert(keyword(s)),
            (FieldType::Text, Value::String(s)) => entries.extend(filter::words(s).map(|w| keyword(&w))),
            (FieldType::Bool, Value::Bool(b)) => _ = entries.insert(boolean(*b)),
            (FieldType::Integer | FieldType::Float, Value::Number(n)) => {
                if let Some(float) = n.as_f64() {
                    let mut entry = float_key(float);
                    entry.extend(n.as_i64().into_iter().flat_map(ordered_i64));
                    entries.insert(entry);
                }
            }
            (FieldType::Uuid, Value::String(s)) => entries.extend(uuid(s)),
            (FieldType::Datetime, Value::String(s)) => entries.extend(parse_micros(s).map(instant)),
            _ => {}
        }
    }
    entries
}

/// Entry of a string; a long one is known by its beginning and a hash, for a key must stay short.
pub(super) fn keyword(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    if text.len() <= 255 {
        return [&[VALUE], text].concat();
    }
    [&[VALUE], &text[..240], &xxhash_rust::xxh3::xxh3_128(text).to_be_bytes()].concat()
}

/// Entry of true or false.
pub(super) fn boolean(value: bool) -> Vec<u8> {
    vec![VALUE, u8::from(value)]
}

/// Entry of an integer.
pub(super) fn integer(value: i64) -> Vec<u8> {
    let mut entry = float_key(value as f64);
    entry.extend(ordered_i64(value));
    entry
}

/// What the entry of a number begins with: keeps the order of numbers.
pub(super) fn float_key(value: f64) -> Vec<u8> {
    // -0.0 equals 0.0.
    let bits = (value + 0.0).to_bits();
    let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    [&[VALUE][..], &ordered.to_be_bytes()].concat()
}

/// What comes after every entry that begins with `prefix`.
pub(super) fn after(mut prefix: Vec<u8>) -> Vec<u8> {
    // Nothing that follows a number's first nine bytes is longer than eight.
    prefix.extend([0xff; 9]);
    prefix
}

/// Entry of a UUID, if the text is one.
pub(super) fn uuid(text: &str) -> Option<Vec<u8>> {
    let uuid = uuid::Uuid::try_parse(text).ok()?;
    Some([&[VALUE][..], uuid.as_bytes()].concat())
}

/// Entry of an instant.
pub(super) fn instant(micros: i64) -> Vec<u8> {
    [&[VALUE][..], &ordered_i64(micros)].concat()
}

fn ordered_i64(value: i64) -> [u8; 8] {
    (value as u64 ^ 1 << 63).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #[test]
        fn entries_keep_the_order_of_numbers(a in any::<i64>(), b in any::<i64>(), x in any::<f64>(), y in any::<f64>()) {
            prop_assert_eq!(integer(a).cmp(&integer(b)), a.cmp(&b));
            prop_assert_eq!(instant(a).cmp(&instant(b)), a.cmp(&b));
            if let Some(order) = x.partial_cmp(&y) {
                prop_assert_eq!(float_key(x).cmp(&float_key(y)), order);
            }
            prop_assert!(float_key(a as f64) <= integer(a) && integer(a) < after(float_key(a as f64)));
        }
    }

    #[test]
    fn a_slot_comes_and_goes() {
        let path: FieldPath = "a".parse().unwrap();
        let mut indexes = FieldIndexes::default();
        indexes.create(path.clone(), FieldType::Integer);
        let payload = json!({"a": [1, 2.5, null, "x"]});
        let entries = indexes.entries(payload.as_object().unwrap());
        assert_eq!(entries.len(), 4);
        for (path, entry) in &entries {
            indexes.insert(path, entry, 70_000);
        }
        let index = indexes.get(&path).unwrap();
        assert_eq!(index.present(), 1);
        assert!(index.with(&integer(1)).contains(70_000));
        let above_two = index.between(Bound::Excluded(after(float_key(2.0))), Bound::Unbounded);
        assert!(above_two.contains(70_000));
        let above_three = index.between(Bound::Excluded(after(float_key(3.0))), Bound::Unbounded);
        assert!(above_three.is_empty());
        for (path, entry) in &entries {
            indexes.remove(path, entry, 70_000);
        }
        assert_eq!(indexes.get(&path).unwrap().slots.len(), 0);
    }
}
