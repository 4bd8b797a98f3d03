//! Folds commands into a shard: one batch of writes, and the next version of everything kept in memory.
//!
//! A [`Fold`] begins at a view, takes commands one by one and reads through what it has not committed yet. A key
//! goes into the batch once, with its last value, since the store numbers a batch's writes alike.
//!
//! Invariants: total and deterministic: no clock, no randomness, ordered iteration; a command that does not fit
//! gives the same rejection everywhere, and counts as a position.
//! Not here: committing and publishing (`mod`), what a retry is told (`dedup`).

use super::{
    dedup,
    payload_index::FieldIndexes,
    plan::Ground,
    points::{self, DedupRecord, PointRecord, SlotRecord, StateRecord},
    points::{Slot, damaged, decode},
    search::{ReadView, parse},
    slots::{LiveSet, SlotTable},
};
use crate::{
    machine::{Bookmark, MachineError, Outcome, Rejection, Verdict},
    model::{
        Body, CollectionId, Command, FieldPath, Filter, PointId, Position, Schema, Vector, VectorParams,
        Vectors, command::PointWrite,
    },
};
use bytes::Bytes;
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

/// How often a state hash is recorded, in positions: at each multiple of it.
pub(super) const HASH_EVERY: u64 = 4096;
/// A bookmark is recorded when the last one lies so far back; half of what is promised, since a batch of
/// commands comes on top.
const MARK_EVERY: u64 = 2048;
/// Longest path of an indexed field and name of a vector, in bytes: they are parts of keys.
const NAME_BYTES_MAX: usize = 1024;

/// A shard's next state, while commands are folded into it.
pub(super) struct Fold<'a> {
    base: &'a ReadView,
    window: u64,
    pub(super) state: StateRecord,
    pub(super) schema: Arc<Schema>,
    pub(super) fields: FieldIndexes,
    pub(super) live: LiveSet,
    pub(super) slots: SlotTable,
    /// Dense vectors of slots given out by this fold and still live.
    pub(super) born: BTreeMap<Slot, Vectors>,
    /// Last value of every key written; `None` deletes it.
    pub(super) writes: BTreeMap<Vec<u8>, Option<Bytes>>,
    /// How many slots died.
    pub(super) died: usize,
}

impl<'a> Fold<'a> {
    /// Begins at a view.
    pub(super) fn new(base: &'a ReadView, window: u64) -> Self {
        Fold {
            base,
            window,
            state: base.state.clone(),
            schema: base.schema.clone(),
            fields: base.fields.clone(),
            live: base.live.clone(),
            slots: base.slots.clone(),
            born: BTreeMap::new(),
            writes: BTreeMap::new(),
            died: 0,
        }
    }

    /// Folds one command in.
    pub(super) fn command(&mut self, command: Command) -> Result<Outcome, MachineError> {
        self.state.position += 1;
        let position = Position(self.state.position);
        self.evict(position)?;
        let verdict = self.judge_and_carry_out(command, position)?;
        if position.0.is_multiple_of(HASH_EVERY) {
            let hash = state_hash(&self.state, &self.schema)?;
            self.put(points::position_key(points::HASH, position), hash.to_le_bytes().to_vec());
        }
        Ok(Outcome { position, verdict })
    }

    /// Ends the fold: its counters and the bookmark join the writes.
    pub(super) fn finish(&mut self, bookmark: &Bookmark) {
        self.state.bookmark = Some(bookmark.0.clone());
        if self.state.position >= self.state.marked + MARK_EVERY {
            self.state.marked = self.state.position;
            let key = points::position_key(points::MARK, Position(self.state.position));
            self.put(key, bookmark.0.clone());
        }
        self.put(points::STATE.to_vec(), self.state.encode_to_vec());
    }

    fn judge_and_carry_out(&mut self, command: Command, position: Position) -> Result<Verdict, MachineError> {
        if command.collection.0 != self.state.collection {
            let own = CollectionId(self.state.collection);
            let message = format!("a command for collection {} reached one of {own}", command.collection);
            return Ok(rejected("wrong_collection", message));
        }
        let key = command.request.as_ref().map(points::dedup_key);
        let known: Option<DedupRecord> = match &key {
            Some(key) => self.read(key)?.map(|bytes| decode("dedup entry", bytes)).transpose()?,
            None => None,
        };
        if let Some(verdict) = dedup::judge(&command, known.as_ref(), position, self.window) {
            return Ok(verdict);
        }
        let entry = key.is_some().then(|| DedupRecord {
            position: position.0,
            body_hash: command.body_hash(),
            ..DedupRecord::default()
        });
        let verdict = self.carry_out(command.body, position)?;
        if let (Some(key), Some(mut entry)) = (key, entry) {
            if let Verdict::Rejected(rejection) = &verdict {
                entry.code = Some(rejection.code.clone());
                entry.message = rejection.message.clone();
            }
            self.add_dedup(|sum| sum.wrapping_add(entry.hash_at(&key)))?;
            self.put(points::position_key(points::DEDUP_AT, position), key.clone());
            self.put(key, entry.encode_to_vec());
        }
        Ok(verdict)
    }

    fn carry_out(&mut self, body: Body, position: Position) -> Result<Verdict, MachineError> {
        match body {
            Body::Configure(schema) => return self.configure(schema),
            Body::Upsert(writes) => {
                if self.state.next_slot as usize + writes.len() > Slot::MAX as usize {
                    let message = format!("the shard has given out {} slots", self.state.next_slot);
                    return Ok(rejected("slots_exhausted", message));
                }
                let mut payloads = Vec::with_capacity(writes.len());
                for write in &writes {
                    match self.admits(write) {
                        Ok(payload) => payloads.push(payload),
                        Err(rejection) => return Ok(Verdict::Rejected(rejection)),
                    }
                }
                for (write, payload) in writes.into_iter().zip(payloads) {
                    self.upsert(write, &payload, position)?;
                }
            }
            Body::Delete(ids) => {
                for id in ids {
                    self.delete(id)?;
                }
            }
            Body::DeleteMatching(filter) => {
                for id in self.matching(&filter)? {
                    self.delete(id)?;
                }
            }
        }
        Ok(Verdict::Applied)
    }

    /// Checks a point against the schema as it is now; gives its payload.
    fn admits(&self, write: &PointWrite) -> Result<crate::model::Payload, Rejection> {
        for (name, vector) in &write.vectors {
            let fits = match vector {
                Vector::Dense(values) => {
                    let dim = self.schema.vectors.get(name).map(|params| params.dim as usize);
                    dim == Some(values.len()) && values.iter().all(|v| v.is_finite())
                }
                Vector::Sparse(_) => self.schema.sparse.contains_key(name),
            };
            if !fits {
                let version = self.schema.version;
                let message = format!("point {}: vector \"{name}\" does not fit schema {version}", write.id);
                return Err(Rejection { code: "stale_schema".into(), message });
            }
        }
        parse(&write.payload).map_err(|e| Rejection {
            code: "bad_payload".into(),
            message: format!("point {}: {e}", write.id),
        })
    }

    fn upsert(
        &mut self,
        write: PointWrite,
        payload: &crate::model::Payload,
        position: Position,
    ) -> Result<(), MachineError> {
        let id = write.id;
        let mut record = PointRecord::of(&write.vectors, write.payload);
        record.version = position.0;
        let mut entries_before = BTreeSet::new();
        let before = self.point(id)?;
        if let Some(before) = &before {
            self.state.points -= 1;
            self.add_points(|sum| sum.wrapping_sub(before.hash(id)))?;
            entries_before = self.fields.entries(&parse(&before.payload)?);
        }
        match before {
            Some(before) if before.vectors_hash == record.vectors_hash => {
                (record.slot, record.born) = (before.slot, before.born);
            }
            before => {
                if let Some(before) = before {
                    self.retire(&before, std::mem::take(&mut entries_before));
                }
                (record.slot, record.born) = (self.state.next_slot, position.0);
                self.state.next_slot += 1;
                self.bear(id, &record, write.vectors);
            }
        }
        let entries = self.fields.entries(payload);
        for (path, entry) in entries_before.difference(&entries) {
            self.unindex(path, entry, record.slot);
        }
        for (path, entry) in entries.difference(&entries_before) {
            self.index(path, entry, record.slot);
        }
        self.state.points += 1;
        self.add_points(|sum| sum.wrapping_add(record.hash(id)))?;
        self.put(points::point_key(id), record.encode_to_vec());
        Ok(())
    }

    fn delete(&mut self, id: PointId) -> Result<(), MachineError> {
        let Some(record) = self.point(id)? else { return Ok(()) };
        self.state.points -= 1;
        self.add_points(|sum| sum.wrapping_sub(record.hash(id)))?;
        let entries = self.fields.entries(&parse(&record.payload)?);
        self.retire(&record, entries);
        self.writes.insert(points::point_key(id), None);
        Ok(())
    }

    /// Gives an incarnation its slot.
    fn bear(&mut self, id: PointId, record: &PointRecord, vectors: Vectors) {
        let slot = SlotRecord { id: id.to_key(), born: record.born };
        self.put(points::slot_key(record.slot), slot.encode_to_vec());
        for (name, vector) in &vectors {
            if let Vector::Dense(values) = vector {
                self.put(points::vector_key(record.slot, name), points::floats_to_bytes(values));
                *self.state.vectors.entry(name.clone()).or_default() += 1;
            }
        }
        self.live.insert(record.slot);
        self.slots.insert(record.slot, id, Position(record.born));
        self.born.insert(record.slot, vectors);
    }

    /// Ends an incarnation.
    fn retire(&mut self, record: &PointRecord, entries: BTreeSet<(FieldPath, Vec<u8>)>) {
        self.writes.insert(points::slot_key(record.slot), None);
        for name in &record.dense {
            self.writes.insert(points::vector_key(record.slot, name), None);
            if let Some(count) = self.state.vectors.get_mut(name) {
                *count -= 1;
            }
        }
        for (path, entry) in entries {
            self.unindex(&path, &entry, record.slot);
        }
        self.live.remove(record.slot);
        self.slots.remove(record.slot);
        self.born.remove(&record.slot);
        self.died += 1;
    }

    fn index(&mut self, path: &FieldPath, entry: &[u8], slot: Slot) {
        self.put(points::field_key(path, entry, slot), Bytes::new());
        self.fields.insert(path, entry, slot);
    }

    fn unindex(&mut self, path: &FieldPath, entry: &[u8], slot: Slot) {
        self.writes.insert(points::field_key(path, entry, slot), None);
        self.fields.remove(path, entry, slot);
    }

    /// Takes a schema if it is newer; one that is not changes nothing, so that proposing it twice is harmless.
    fn configure(&mut self, schema: Schema) -> Result<Verdict, MachineError> {
        if schema.version <= self.schema.version {
            return Ok(Verdict::Applied);
        }
        for (name, params) in &self.schema.vectors {
            let same = |p: &VectorParams| (p.dim, p.distance) == (params.dim, params.distance);
            if !schema.vectors.get(name).is_some_and(same) {
                let message = format!("vector \"{name}\" cannot go, nor change its dimension or distance");
                return Ok(rejected("invalid_schema", message));
            }
        }
        let dims = 1..=VectorParams::DIM_MAX;
        if let Some((name, params)) = schema.vectors.iter().find(|(_, params)| !dims.contains(&params.dim)) {
            let message = format!("vector \"{name}\" has {} dimensions", params.dim);
            return Ok(rejected("invalid_schema", message));
        }
        let names =
            schema.vectors.keys().map(String::as_str).chain(schema.fields.keys().map(FieldPath::as_str));
        if let Some(name) = names.into_iter().find(|name| name.len() > NAME_BYTES_MAX) {
            let message = format!("a name of {} bytes, at most {NAME_BYTES_MAX} are kept", name.len());
            return Ok(rejected("invalid_schema", message));
        }
        let before = std::mem::replace(&mut self.schema, Arc::new(schema));
        let after = self.schema.clone();
        for (path, of) in &before.fields {
            if after.fields.get(path) != Some(of) {
                self.drop_field(path)?;
            }
        }
        for (path, of) in &after.fields {
            if before.fields.get(path) != Some(of) {
                self.create_field(path, *of)?;
            }
        }
        let json = serde_json::to_vec(&*after).map_err(|e| damaged("schema", e.to_string()))?;
        self.put(points::SCHEMA.to_vec(), json);
        Ok(Verdict::Applied)
    }

    fn drop_field(&mut self, path: &FieldPath) -> Result<(), MachineError> {
        let prefix = points::field_prefix(path);
        for item in self.base.store.prefix(&self.base.keyspace, &prefix) {
            self.writes.insert(item?.0.to_vec(), None);
        }
        for (_, write) in
            self.writes.range_mut(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix))
        {
            *write = None;
        }
        self.fields.drop_field(path);
        Ok(())
    }

    fn create_field(&mut self, path: &FieldPath, of: crate::model::FieldType) -> Result<(), MachineError> {
        self.fields.create(path.clone(), of);
        for (slot, id) in self.slots.clone().iter() {
            let record =
                self.point(id)?.ok_or_else(|| damaged("slot", format!("{slot} has no point {id}")))?;
            let payload = parse(&record.payload)?;
            for entry in super::payload_index::entries(&path.values(&payload), of) {
                self.index(path, &entry, slot);
            }
        }
        Ok(())
    }

    fn matching(&self, filter: &Filter) -> Result<Vec<PointId>, MachineError> {
        let read = |id| self.point(id);
        let ground = Ground {
            schema: &self.schema,
            fields: &self.fields,
            live: &self.live,
            slots: &self.slots,
            read: &read,
        };
        Ok(ground.matching(filter)?.iter().filter_map(|slot| self.slots.id(slot)).collect())
    }

    /// Forgets the intents that lie more than a window back.
    fn evict(&mut self, position: Position) -> Result<(), MachineError> {
        let oldest = position.0.saturating_sub(self.window);
        if oldest <= self.state.dedup_oldest {
            return Ok(());
        }
        let from = points::position_key(points::DEDUP_AT, Position(self.state.dedup_oldest));
        let to = points::position_key(points::DEDUP_AT, Position(oldest));
        let bounds = (Bound::Included(from.clone()), Bound::Excluded(to.clone()));
        let mut gone: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
        for item in self.base.store.range(&self.base.keyspace, bounds) {
            let (at, key) = item?;
            gone.insert(at.to_vec(), key);
        }
        for (at, key) in self.writes.range(from..to) {
            match key {
                Some(key) => gone.insert(at.clone(), key.clone()),
                None => gone.remove(at),
            };
        }
        for (at, key) in gone {
            if let Some(entry) = self.read(&key)? {
                let entry: DedupRecord = decode("dedup entry", entry)?;
                let hash = entry.hash_at(&key);
                self.add_dedup(|sum| sum.wrapping_sub(hash))?;
            }
            self.writes.insert(at, None);
            self.writes.insert(key.to_vec(), None);
        }
        self.state.dedup_oldest = oldest;
        Ok(())
    }

    fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Some(value.into()));
    }

    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        match self.writes.get(key) {
            Some(write) => Ok(write.clone()),
            None => Ok(self.base.store.get(&self.base.keyspace, key)?),
        }
    }

    fn point(&self, id: PointId) -> Result<Option<PointRecord>, MachineError> {
        self.read(&points::point_key(id))?.map(|bytes| decode("point", bytes)).transpose()
    }

    fn add_points(&mut self, change: impl Fn(u128) -> u128) -> Result<(), MachineError> {
        self.state.points_sum = change(points::sum_of(&self.state.points_sum)?).to_le_bytes().to_vec();
        Ok(())
    }

    fn add_dedup(&mut self, change: impl Fn(u128) -> u128) -> Result<(), MachineError> {
        self.state.dedup_sum = change(points::sum_of(&self.state.dedup_sum)?).to_le_bytes().to_vec();
        Ok(())
    }
}

/// The hash of a shard's whole state: its points, intents, schema and position.
pub(super) fn state_hash(state: &StateRecord, schema: &Schema) -> Result<u128, MachineError> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&state.collection.to_le_bytes());
    hasher.update(&state.position.to_le_bytes());
    hasher.update(&state.points_sum);
    hasher.update(&state.dedup_sum);
    hasher.update(&serde_json::to_vec(schema).map_err(|e| damaged("schema", e.to_string()))?);
    Ok(hasher.digest128())
}

fn rejected(code: &str, message: String) -> Verdict {
    Verdict::Rejected(Rejection { code: code.into(), message })
}
