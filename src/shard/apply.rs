//! Folds commands into a shard: one batch of writes, and the next version of everything kept in memory.
//!
//! A [`Fold`] begins at a view, takes commands one by one and reads through what it has not committed yet. A key
//! goes into the batch once, with its last value, since the store numbers a batch's writes alike.
//!
//! Invariants: total and deterministic: no clock, no randomness, ordered iteration; a command that does not fit
//! gives the same rejection everywhere, and counts as a position.
//! Not here: committing and publishing (`mod`), what a retry is told (`dedup`), what a feed is told (`effects`).

use super::{
    dedup::{Clients, Fresh},
    effects::{self, Effect},
    payload_index::FieldIndexes,
    plan::{Ground, Plans},
    points::{self, CountingRecord, PointRecord, SlotRecord, StateRecord, Sums},
    points::{Slot, damaged, decode},
    search::{ReadView, parse},
    slots::{LiveSet, SlotTable},
};
use crate::{
    machine::{Bookmark, MachineError, Outcome, Rejection, Verdict},
    model::{
        Body, CollectionId, Command, Counted, Counting, FieldPath, Filter, NAME_BYTES_MAX, PointId, Position,
        Schema, Vector, VectorParams, Vectors, command::PointWrite,
    },
    mutant::{self, Mutant},
    world,
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
/// And when commands of so many bytes came since: the log is kept by bytes, and a reader begins at a bookmark.
const MARK_BYTES: usize = 1 << 20;

/// A shard's next state, while commands are folded into it.
pub(super) struct Fold<'a> {
    pub(super) base: &'a ReadView,
    pub(super) window: u64,
    pub(super) clients: &'a mut Clients,
    pub(super) fresh: Fresh,
    /// All but its sums.
    pub(super) state: StateRecord,
    /// How commands count, and up to where they have.
    pub(super) counting: Counting,
    pub(super) sums: Sums,
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
    pub(super) fn new(
        base: &'a ReadView,
        window: u64,
        clients: &'a mut Clients,
    ) -> Result<Self, MachineError> {
        Ok(Fold {
            base,
            window,
            clients,
            fresh: Fresh::default(),
            state: base.state.clone(),
            counting: base.state.counting()?,
            sums: base.state.sums()?,
            schema: base.schema.clone(),
            fields: base.fields.clone(),
            live: base.live.clone(),
            slots: base.slots.clone(),
            born: BTreeMap::new(),
            writes: BTreeMap::new(),
            died: 0,
        })
    }

    /// Folds one command of the log in.
    ///
    /// `body_hash`: of the command's body, if it names an intent.
    pub(super) fn command(&mut self, command: Command, body_hash: u64) -> Result<Outcome, MachineError> {
        let outcome = match self.counting.take(&command.body) {
            Counted::Once => self.counted(command, body_hash)?,
            Counted::Each(commands) => {
                // Cheap: each is a reference to the bytes.
                let commands = commands.to_vec();
                self.mirrored(commands)?
            }
            Counted::Not => {
                match command.body {
                    Body::Seed { step, .. } => self.seed(step)?,
                    Body::Retire => self.state.retired = true,
                    _ => {}
                }
                Outcome { position: Position(self.state.position), verdict: Verdict::Applied }
            }
            Counted::Refused { code, why } => {
                let verdict = Verdict::Rejected(Rejection::new(code, why));
                Outcome { position: Position(self.state.position), verdict }
            }
        };
        assert_eq!(
            self.counting.position.0, self.state.position,
            "what counts has a position, nothing else has"
        );
        Ok(outcome)
    }

    /// Folds commands of the home in; the last one's position.
    fn mirrored(&mut self, commands: Vec<Bytes>) -> Result<Outcome, MachineError> {
        for bytes in commands {
            let after = Position(self.state.position);
            let (command, body_hash) =
                super::read_command(&bytes).map_err(|source| MachineError::Command { after, source })?;
            if mutant::is(Mutant::FollowerRegionSkip) && after.next().0.is_multiple_of(32) {
                self.state.position += 1;
                continue;
            }
            self.counted(command, body_hash)?;
        }
        Ok(Outcome { position: Position(self.state.position), verdict: Verdict::Applied })
    }

    /// Folds in a command that has the next position.
    fn counted(&mut self, command: Command, body_hash: u64) -> Result<Outcome, MachineError> {
        self.state.position += 1;
        let position = Position(self.state.position);
        self.evict(position)?;
        let may_change = effects::may_change_points(&command.body);
        let (outcome, effect) = self.judge_and_carry_out(command, body_hash, position)?;
        if may_change {
            self.put_effect(position, effect);
        }
        if position.0.is_multiple_of(HASH_EVERY) {
            let hash = state_hash(&self.state, self.sums);
            self.put_local(points::position_key(points::HASH, position), hash.to_le_bytes().to_vec());
        }
        Ok(outcome)
    }

    /// Ends the fold: its counters and the bookmark join the writes. Says whether the bookmark was recorded for readers.
    ///
    /// `unmarked_bytes`: of commands since that was done last.
    pub(super) fn finish(
        &mut self,
        bookmark: &Bookmark,
        unmarked_bytes: usize,
    ) -> Result<bool, MachineError> {
        self.list_fresh();
        self.state.bookmark = Some(bookmark.0.clone());
        self.state.counting = CountingRecord::of(&self.counting);
        // A reader that counts from an older mark meets what has turned the shard; one that comes to a copy cannot.
        let turned = self.state.counting != self.base.state.counting;
        let far = self.state.position >= self.state.marked + MARK_EVERY || unmarked_bytes >= MARK_BYTES;
        if turned || far {
            self.state.marked = self.state.position;
            for (key, value) in self.state.waymark() {
                if let Some(before) = self.read(&key)? {
                    self.delete_local(key.clone(), &before);
                }
                if let Some(value) = value {
                    self.put_local(key, value);
                }
            }
        }
        self.state.set_sums(self.sums);
        self.put(points::STATE.to_vec(), self.state.to_value());
        Ok(turned || far)
    }

    fn judge_and_carry_out(
        &mut self,
        mut command: Command,
        body_hash: u64,
        position: Position,
    ) -> Result<(Outcome, Effect), MachineError> {
        let nothing = || Effect::Deleted(Vec::new());
        if command.collection.0 != self.state.collection {
            let own = CollectionId(self.state.collection);
            let message = format!("a command for collection {} reached one of {own}", command.collection);
            let verdict = Verdict::Rejected(Rejection::new("wrong_collection", message));
            return Ok((Outcome { position, verdict }, nothing()));
        }
        if let Some(verdict) = self.judge(&command, body_hash, position)? {
            return Ok((Outcome { position, verdict }, nothing()));
        }
        let (outcome, effect) = match self.carry_out(command.body, position)? {
            Ok(effect) => (Outcome { position, verdict: Verdict::Applied }, effect),
            Err(rejection) => (Outcome { position, verdict: Verdict::Rejected(rejection) }, nothing()),
        };
        if let Some(request) = command.request.take() {
            self.remember(request, body_hash, &outcome);
        }
        Ok((outcome, effect))
    }

    fn carry_out(&mut self, body: Body, position: Position) -> Result<Carried, MachineError> {
        if self.state.retired && body != Body::Retire {
            let message = format!("collection {} is dropped", self.state.collection);
            return Ok(Err(Rejection::new("retired", message)));
        }
        match body {
            Body::Configure(schema) => return self.configure(schema),
            Body::Upsert(writes) => return self.upsert_all(writes, position),
            Body::Delete(ids) => {
                let count = ids.len();
                let gone = self.delete_all(ids)?;
                return Ok(Ok(if gone.len() == count { Effect::Own } else { Effect::Deleted(gone) }));
            }
            Body::DeleteMatching(filter) => {
                let ids = self.matching(&filter)?;
                return Ok(Ok(Effect::Deleted(self.delete_all(ids)?)));
            }
            Body::Cas { id, if_version, point } => {
                let version = self.point(id)?.map(|record| Position(record.version));
                if version != if_version {
                    return Ok(Err(version_mismatch(id, if_version, version)));
                }
                match point {
                    Some(point) => return self.upsert_all(vec![point], position),
                    None => _ = self.delete_point(id)?,
                }
            }
            Body::Retire => self.state.retired = true,
            // Within a home's command there is none of its kind, and elsewhere none of them has a position.
            Body::Mirror { .. } | Body::Turn(_) | Body::Seed { .. } => {
                let message = "a command of this kind has no position".to_owned();
                return Ok(Err(Rejection::new("no_position", message)));
            }
        }
        Ok(Ok(Effect::Own))
    }

    /// Writes all points, or none if one of them does not fit.
    fn upsert_all(&mut self, writes: Vec<PointWrite>, position: Position) -> Result<Carried, MachineError> {
        if self.state.next_slot as usize + writes.len() > Slot::MAX as usize {
            let message = format!("the shard has given out {} slots", self.state.next_slot);
            return Ok(Err(Rejection::new("slots_exhausted", message)));
        }
        let mut payloads = Vec::with_capacity(writes.len());
        for write in &writes {
            match self.admits(write) {
                Ok(payload) => payloads.push(payload),
                Err(rejection) => return Ok(Err(rejection)),
            }
        }
        let partly = mutant::is(Mutant::PartialBatch) && writes.len() > 1 && position.0.is_multiple_of(3);
        let count = writes.len() - usize::from(partly);
        for (write, payload) in writes.into_iter().zip(payloads).take(count) {
            if mutant::is(Mutant::NondetApply) && world::chance().is_multiple_of(64) {
                continue;
            }
            self.upsert(write, &payload, position)?;
        }
        Ok(Ok(Effect::Own))
    }

    /// Deletes points; gives those that were there, in order, each once.
    fn delete_all(&mut self, ids: Vec<PointId>) -> Result<Vec<PointId>, MachineError> {
        let mut gone = Vec::new();
        for id in ids {
            if self.delete_point(id)? {
                gone.push(id);
            }
        }
        Ok(gone)
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
                return Err(Rejection::new("stale_schema", message));
            }
        }
        parse(&write.payload).map_err(|e| Rejection::new("bad_payload", format!("point {}: {e}", write.id)))
    }

    pub(super) fn upsert(
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
            self.sums.points = self.sums.points.wrapping_sub(before.hash(id));
            entries_before = self.fields.entries(&parse(&before.payload)?);
        }
        match before {
            Some(before) if before.vectors_hash == record.vectors_hash => {
                (record.slot, record.born) = (before.slot, before.born);
                self.occupy(id, &record);
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
        self.sums.points = self.sums.points.wrapping_add(record.hash(id));
        self.put(points::point_key(id), record.encode_to_vec());
        Ok(())
    }

    /// Deletes a point, if it is there.
    pub(super) fn delete_point(&mut self, id: PointId) -> Result<bool, MachineError> {
        let Some(record) = self.point(id)? else { return Ok(false) };
        self.state.points -= 1;
        self.sums.points = self.sums.points.wrapping_sub(record.hash(id));
        let entries = self.fields.entries(&parse(&record.payload)?);
        self.retire(&record, entries);
        self.delete(points::point_key(id));
        Ok(true)
    }

    /// Gives an incarnation its slot.
    fn bear(&mut self, id: PointId, record: &PointRecord, vectors: Vectors) {
        self.occupy(id, record);
        for (name, vector) in &vectors {
            if let Vector::Dense(values) = vector {
                self.put(points::vector_key(record.slot, name), points::floats_to_bytes(values));
                *self.state.vectors.entry(name.clone()).or_default() += 1;
            }
        }
        self.live.insert(record.slot);
        self.born.insert(record.slot, vectors);
    }

    /// Notes whose a slot is, and who wrote the point last.
    fn occupy(&mut self, id: PointId, record: &PointRecord) {
        self.put(points::slot_key(record.slot), SlotRecord::of(id, record).encode_to_vec());
        self.slots.insert(record.slot, id, Position(record.born), Position(record.version));
    }

    /// Ends an incarnation.
    fn retire(&mut self, record: &PointRecord, entries: BTreeSet<(FieldPath, Vec<u8>)>) {
        self.delete(points::slot_key(record.slot));
        for name in &record.dense {
            self.delete(points::vector_key(record.slot, name));
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
        self.delete(points::field_key(path, entry, slot));
        self.fields.remove(path, entry, slot);
    }

    /// Takes a schema if it is newer; one that is not changes nothing, so that proposing it twice is harmless.
    pub(super) fn configure(&mut self, schema: Schema) -> Result<Carried, MachineError> {
        if schema.version <= self.schema.version {
            return Ok(Ok(Effect::Own));
        }
        for (name, params) in &self.schema.vectors {
            let same = |p: &VectorParams| (p.dim, p.distance) == (params.dim, params.distance);
            if !schema.vectors.get(name).is_some_and(same) {
                let message = format!("vector \"{name}\" cannot go, nor change its dimension or distance");
                return Ok(Err(Rejection::new("invalid_schema", message)));
            }
        }
        let dims = 1..=VectorParams::DIM_MAX;
        if let Some((name, params)) = schema.vectors.iter().find(|(_, params)| !dims.contains(&params.dim)) {
            let message = format!("vector \"{name}\" has {} dimensions", params.dim);
            return Ok(Err(Rejection::new("invalid_schema", message)));
        }
        let names =
            schema.vectors.keys().map(String::as_str).chain(schema.fields.keys().map(FieldPath::as_str));
        if let Some(name) = names.into_iter().find(|name| name.len() > NAME_BYTES_MAX) {
            let message = format!("a name of {} bytes, at most {NAME_BYTES_MAX} are kept", name.len());
            return Ok(Err(Rejection::new("invalid_schema", message)));
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
        self.state.schema_hash = xxhash_rust::xxh3::xxh3_128(&json).to_le_bytes().to_vec();
        self.put(points::SCHEMA.to_vec(), json);
        Ok(Ok(Effect::Own))
    }

    fn drop_field(&mut self, path: &FieldPath) -> Result<(), MachineError> {
        let prefix = points::field_prefix(path);
        for item in self.base.store.prefix(&self.base.keyspace, &prefix) {
            self.delete(item?.0.to_vec());
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
            plans: &Plans::default(),
            read: &read,
        };
        Ok(ground.matching(filter)?.iter().filter_map(|slot| self.slots.id(slot)).collect())
    }

    /// Sets a key.
    pub(super) fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Some(value.into()));
    }

    /// Removes a key.
    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// Sets a key, not set before, of what is the replica's own affair.
    pub(super) fn put_local(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.sums.local = self.sums.local.wrapping_add(points::row_hash(&key, &value));
        self.put(key, value);
    }

    /// Removes what [`Fold::put_local`] set.
    pub(super) fn delete_local(&mut self, key: Vec<u8>, value: &[u8]) {
        self.sums.local = self.sums.local.wrapping_sub(points::row_hash(&key, value));
        self.delete(key);
    }

    /// The first `count` rows from a key to before another, as they are now.
    pub(super) fn rows(
        &self,
        from: Vec<u8>,
        to: Vec<u8>,
        count: usize,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, MachineError> {
        let bounds = (Bound::Included(from.clone()), Bound::Excluded(to.clone()));
        let mut stored = self.base.store.range(&self.base.keyspace, bounds);
        let mut written = self.writes.range(from..to).peekable();
        let mut next = stored.next().transpose()?;
        let mut rows = Vec::new();
        while rows.len() < count && (next.is_some() || written.peek().is_some()) {
            let stored_first = |(key, _): &mut (Bytes, Bytes)| {
                written.peek().is_none_or(|(written, _)| key[..] < written[..])
            };
            if let Some((key, value)) = next.take_if(stored_first) {
                rows.push((key.to_vec(), value));
                next = stored.next().transpose()?;
            } else if let Some((key, write)) = written.next() {
                rows.extend(write.as_ref().map(|value| (key.clone(), value.clone())));
                if next.as_ref().is_some_and(|(stored, _)| stored[..] == key[..]) {
                    next = stored.next().transpose()?;
                }
            }
        }
        Ok(rows)
    }

    /// A key's value as it is now.
    pub(super) fn read(&self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        match self.writes.get(key) {
            Some(write) => Ok(write.clone()),
            None => Ok(self.base.store.get(&self.base.keyspace, key)?),
        }
    }

    fn point(&self, id: PointId) -> Result<Option<PointRecord>, MachineError> {
        self.read(&points::point_key(id))?.map(|bytes| decode("point", bytes)).transpose()
    }
}

/// What became of a command that was carried out.
type Carried = Result<Effect, Rejection>;

/// The hash of a shard's whole state: its points, intents, schema and position.
pub(super) fn state_hash(state: &StateRecord, sums: Sums) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&state.collection.to_le_bytes());
    hasher.update(&state.position.to_le_bytes());
    hasher.update(&sums.points.to_le_bytes());
    hasher.update(&sums.intents.to_le_bytes());
    hasher.update(&state.schema_hash);
    hasher.update(&[u8::from(state.retired)]);
    hasher.digest128()
}

fn version_mismatch(id: PointId, wanted: Option<Position>, found: Option<Position>) -> Rejection {
    let say = |version: Option<Position>| match version {
        Some(version) => format!("version {version}"),
        None => "no such point".to_owned(),
    };
    let message = format!("point {id}: expected {}, found {}", say(wanted), say(found));
    Rejection { version: found, ..Rejection::new("version_mismatch", message) }
}
