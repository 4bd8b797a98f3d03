//! Reads a shard's whole store again and holds every row against what it must be.
//!
//! Points are hashed anew and summed; what follows from them (slots, vectors, field entries) must be there, row
//! by row, and nothing else; all other rows must add up to the sums that were kept while applying.
//!
//! Invariant: a row that was changed, dropped, added or doubled is found, whichever it is, as long as the
//! shard's counters were not forged to fit.
//! Not here: comparing replicas (their state hashes tell), mending (a damaged replica is seeded anew).

use super::{
    Shard, apply,
    payload_index::FieldIndexes,
    points::{self, PointRecord, Slot, SlotRecord, StateRecord, damaged, decode},
    search::{ReadView, parse},
};
use crate::{
    machine::MachineError,
    model::{PointId, Position, Vector, Vectors},
    store::View,
};
use bytes::Bytes;
use prost::Message;
use std::{collections::BTreeMap, iter::Peekable, ops::Bound, ops::ControlFlow, sync::Arc};

/// Rows between two looks at whether to go on.
const ROWS_AT_ONCE: u64 = 256;

impl Shard {
    /// Computes the state hash anew from every row in the store, and checks the index files in use.
    ///
    /// Errors: `Damaged` names what has rotted; `Poisoned` if the shard is closed.
    pub fn scrub(&self) -> Result<(Position, u128), MachineError> {
        let hash = self.scrub_gently(|_| ControlFlow::Continue(()))?;
        hash.ok_or_else(|| MachineError::Poisoned("closed".to_owned()))
    }

    /// [`Shard::scrub`] at the caller's pace: `between` is called after every 256 rows with how many were read;
    /// it may sleep, or stop the scrub, which then gives `None`; so does that of a shard that is closed.
    ///
    /// Readers and the writer go on meanwhile; the store keeps what they replace until the scrub has ended.
    pub fn scrub_gently(
        &self,
        between: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<(Position, u128)>, MachineError> {
        // Under the lock no batch is half in the store, and the published view is of the last one.
        let (view, store) = {
            let writer = self.writer();
            if writer.closed {
                return Ok(None);
            }
            (self.view(), self.store.view())
        };
        let mut scrub = Scrub { view, store, rows: 0, between };
        match scrub.run() {
            Ok(()) => {
                let state = &scrub.view.state;
                Ok(Some((scrub.view.position(), apply::state_hash(state, state.sums()?))))
            }
            Err(Stop::Asked) => Ok(None),
            Err(Stop::Rot(e)) => Err(e),
        }
    }
}

struct Scrub<F> {
    view: Arc<ReadView>,
    /// The store as it stands now, which the view need not have seen: rot comes uncalled.
    store: View,
    rows: u64,
    between: F,
}

enum Stop {
    Asked,
    Rot(MachineError),
}

impl<E: Into<MachineError>> From<E> for Stop {
    fn from(e: E) -> Self {
        Stop::Rot(e.into())
    }
}

fn rot(what: &str, why: impl Into<String>) -> Stop {
    Stop::Rot(damaged(what, why))
}

/// What the points say must be in the other tables.
#[derive(Default)]
struct Wanted {
    points: u64,
    points_sum: u128,
    entries: u64,
    entries_sum: u128,
    vectors: BTreeMap<String, u64>,
}

impl<F: FnMut(u64) -> ControlFlow<()>> Scrub<F> {
    fn run(&mut self) -> Result<(), Stop> {
        self.meta()?;
        let wanted = self.points()?;
        let state = &self.view.state;
        let sums = state.sums()?;
        if (wanted.points, wanted.points_sum) != (state.points, sums.points) {
            return Err(rot("points", "they do not add up to the rolling state hash"));
        }
        let counted = state.vectors.iter().filter(|(_, count)| **count > 0);
        if !counted.eq(&wanted.vectors) {
            let why = format!("{:?} instead of {:?}", wanted.vectors, state.vectors);
            return Err(rot("count of vectors", why));
        }
        self.field_entries(&wanted)?;
        if self.sum(&[points::DEDUP, points::FLOOR])? != sums.intents {
            return Err(rot("intents", "they do not add up to the rolling state hash"));
        }
        let local = [points::EVICTION, points::EFFECT, points::MARK, points::COUNTING, points::HASH];
        if self.sum(&local)? != sums.local {
            let why = "effects, bookmarks, state hashes and eviction lists do not add up";
            return Err(rot("records", why));
        }
        self.gaps()?;
        self.index_files()
    }

    /// Counts rows, and asks whether to go on.
    fn count(&mut self, rows: u64) -> Result<(), Stop> {
        let before = self.rows / ROWS_AT_ONCE;
        self.rows += rows;
        if self.rows / ROWS_AT_ONCE != before && (self.between)(self.rows).is_break() {
            return Err(Stop::Asked);
        }
        Ok(())
    }

    fn table(
        &self,
        table: u8,
    ) -> impl Iterator<Item = Result<(Bytes, Bytes), crate::store::StoreError>> + use<F> {
        self.store.prefix(&self.view.keyspace, &[table])
    }

    /// State and schema are those that were published.
    fn meta(&mut self) -> Result<(), Stop> {
        let mut expected = 0;
        if let Some(value) = self.store.get(&self.view.keyspace, points::STATE)? {
            expected += 1;
            if StateRecord::of_value(value)? != self.view.state {
                return Err(rot("shard state", "it is not the one that was written last"));
            }
        } else if self.view.state.position > 0 || self.view.state.bookmark.is_some() {
            return Err(rot("shard state", "it is gone"));
        }
        let schema = super::load_schema(&self.store, &self.view.keyspace, &self.view.state)?;
        if schema != **self.view.schema() {
            return Err(rot("schema", "it is not the one in use"));
        }
        expected += usize::from(!self.view.state.schema_hash.is_empty());
        let rows = self.store.keys(&self.view.keyspace, &[points::META]).count();
        if rows != expected { Err(rot("shard state", format!("{rows} rows"))) } else { Ok(()) }
    }

    /// Every slot with its point and its vectors, every point with its slot.
    fn points(&mut self) -> Result<Wanted, Stop> {
        let mut wanted = Wanted::default();
        let mut vectors = self.table(points::VECTOR).peekable();
        for item in self.table(points::SLOT) {
            let (key, value) = item?;
            let slot = points::slot_of_key(&key)?;
            let record: SlotRecord = decode("slot", value.clone())?;
            let id = PointId::from_key(&record.id).ok_or_else(|| damaged("slot", "no point id"))?;
            let fits = key[..] == points::slot_key(slot)[..] && record.encode_to_vec() == value;
            let published = self.view.slots.point(slot) == Some((id, Position(record.version())))
                && self.view.live.contains(slot)
                && self.view.slots.born(slot) == Some(Position(record.born));
            if !fits || !published {
                return Err(rot("slot", format!("{slot} of point {id}")));
            }
            let Some(bytes) = self.store.get(&self.view.keyspace, points::point_key(id))? else {
                return Err(rot("slot", format!("{slot} has no point {id}")));
            };
            let point: PointRecord = decode("point", bytes.clone())?;
            if point.slot != slot || SlotRecord::of(id, &point) != record || point.encode_to_vec() != bytes {
                return Err(rot("point", format!("{id} does not fit its slot {slot}")));
            }
            let count = self.vectors_of(id, &point, &mut vectors)?;
            for name in &point.dense {
                *wanted.vectors.entry(name.clone()).or_default() += 1;
            }
            for (path, entry) in self.view.fields.entries(&parse(&point.payload)?) {
                let key = points::field_key(&path, &entry, slot);
                wanted.entries_sum = wanted.entries_sum.wrapping_add(points::row_hash(&key, &[]));
                wanted.entries += 1;
            }
            wanted.points += 1;
            wanted.points_sum = wanted.points_sum.wrapping_add(point.hash(id));
            self.count(2 + count)?;
        }
        if let Some(left) = vectors.next() {
            return Err(rot("vector", format!("{:02x?} is of no slot", &left?.0[..])));
        }
        // Each slot has a point of its own, so there are as many points, or some without a slot.
        let mut rows = 0;
        for key in self.store.keys(&self.view.keyspace, &[points::POINT]) {
            key?;
            rows += 1;
            self.count(1)?;
        }
        if rows != wanted.points || self.view.live.count() != wanted.points {
            return Err(rot("points", format!("{rows} of them have {} slots", wanted.points)));
        }
        Ok(wanted)
    }

    /// Takes the next rows of vectors, which must be those of this point; gives how many they were.
    fn vectors_of(
        &self,
        id: PointId,
        point: &PointRecord,
        rows: &mut Peekable<impl Iterator<Item = Result<(Bytes, Bytes), crate::store::StoreError>>>,
    ) -> Result<u64, Stop> {
        let slot_of = |key: &[u8]| points::slot_of_key(key).unwrap_or(Slot::MAX);
        let mut vectors = Vectors::new();
        while let Some(row) =
            rows.next_if(|row| row.as_ref().is_ok_and(|(key, _)| slot_of(key) <= point.slot))
        {
            let (key, value) = row?;
            let name = std::str::from_utf8(&key[5..]).unwrap_or("\0").to_owned();
            if slot_of(&key) != point.slot {
                return Err(rot("vector", format!("\"{name}\" of slot {} is of no point", slot_of(&key))));
            }
            vectors.insert(name, Vector::Dense(points::floats_of_bytes(&value)?));
        }
        let count = vectors.len() as u64;
        let named = vectors.keys().eq(&point.dense);
        vectors.extend(point.sparse.iter().map(|sparse| (sparse.name.clone(), sparse.vector())));
        if !named || points::hash_of_vectors(&vectors) != point.vectors_hash {
            return Err(rot("point", format!("{id} does not fit its vectors")));
        }
        Ok(count)
    }

    /// The field entries are those the payloads have, in the store and in memory.
    fn field_entries(&mut self, wanted: &Wanted) -> Result<(), Stop> {
        let (mut count, mut sum) = (0, 0u128);
        for item in self.table(points::FIELD) {
            let (key, value) = item?;
            sum = sum.wrapping_add(points::row_hash(&key, &value));
            count += 1;
            self.count(1)?;
        }
        let memory = self.view.fields.rows();
        if (count, sum) != (wanted.entries, wanted.entries_sum) || memory != count {
            let why = format!("{count}, in memory {memory}, of the points {}", wanted.entries);
            return Err(rot("field entries", why));
        }
        Ok(())
    }

    fn sum(&mut self, tables: &[u8]) -> Result<u128, Stop> {
        let mut sum = 0u128;
        for table in tables {
            for item in self.table(*table) {
                let (key, value) = item?;
                sum = sum.wrapping_add(points::row_hash(&key, &value));
                self.count(1)?;
            }
        }
        Ok(sum)
    }

    /// Nothing lies between the tables.
    fn gaps(&self) -> Result<(), Stop> {
        let mut from = Bound::Unbounded;
        for table in points::TABLES.map(Some).into_iter().chain([None]) {
            let to = table.map_or(Bound::Unbounded, |table| Bound::Excluded(vec![table]));
            if let Some(item) = self.store.range(&self.view.keyspace, (from, to)).next() {
                return Err(rot("key", format!("{:02x?} is of no table", &item?.0[..])));
            }
            from = table.map_or(Bound::Unbounded, |table| Bound::Included(vec![table + 1]));
        }
        Ok(())
    }

    /// The files in use hold the bytes they had when they were opened.
    fn index_files(&mut self) -> Result<(), Stop> {
        let view = self.view.clone();
        for sealed in view.vectors.values().flat_map(|index| &index.segments) {
            sealed.segment.verify().map_err(|e| damaged("index file", format!("{}: {e}", sealed.file)))?;
            self.count(sealed.segment.rows().len() as u64)?;
        }
        Ok(())
    }
}

impl FieldIndexes {
    /// How many rows the store has of them.
    fn rows(&self) -> u64 {
        self.iter().map(|(_, field)| field.rows()).sum()
    }
}
