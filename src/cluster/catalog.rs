//! Group 0: which collections there are, and which groups hold their shards.
//!
//! A state machine like a shard, folded from its own log. Invariants: collection ids, group ids and replica ids
//! are never reused; every change of a collection's schema raises `schema.version`; a command that no longer
//! fits is rejected and changes nothing.
//! Deliberately absent: nodes, aliases, moves (the cluster adds them); opening shards (see `shards`).

use super::{CollectionChange, CollectionSpec};
use crate::{
    machine::{Bookmark, MachineError, Outcome, Rejection, StateMachine, Verdict},
    model::{
        CollectionId, Epoch, FieldPath, FieldType, Generation, Position, ReplicaId, Schema, VectorParams,
        command::{self, DecodeError},
    },
    store::{Keyspace, KeyspaceKind, Store, StoreError},
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// The catalog as it stands at one position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct CatalogState {
    /// Collections by name.
    pub collections: BTreeMap<String, Arc<CollectionRecord>>,
    counters: Counters,
}

/// What is given out next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Counters {
    collection: u64,
    group: u32,
    replica: u64,
}

impl Default for Counters {
    fn default() -> Self {
        // Group 0 and replica 1 are the catalog's own.
        Counters { collection: 1, group: 1, replica: 2 }
    }
}

/// A collection, as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct CollectionRecord {
    /// Its id.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// What its creator said, with later changes.
    pub spec: CollectionSpec,
    /// What every shard is told.
    pub schema: Schema,
    /// Version of the placement below.
    pub epoch: Epoch,
    /// The home its positions count in.
    pub generation: Generation,
    /// Its shards, by number.
    pub shards: Vec<ShardRecord>,
}

/// A shard, as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    /// The group of its log.
    pub group: u32,
    /// Its replicas.
    pub replicas: Vec<ReplicaId>,
}

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum CatalogCommand {
    /// Creates a collection.
    Create {
        /// Its name.
        name: String,
        /// What its creator said.
        spec: CollectionSpec,
    },
    /// Changes a collection.
    Update {
        /// Its name.
        name: String,
        /// What changes.
        change: CollectionChange,
    },
    /// Drops a collection.
    Drop {
        /// Its name.
        name: String,
    },
    /// Indexes a payload field.
    CreateField {
        /// The collection's name.
        name: String,
        /// The field.
        path: FieldPath,
        /// How.
        of: FieldType,
    },
    /// Drops the index of a payload field.
    DropField {
        /// The collection's name.
        name: String,
        /// The field.
        path: FieldPath,
    },
}

/// Rejection: the name is taken.
pub(super) const EXISTS: &str = "exists";
/// Rejection: no collection of that name.
pub(super) const MISSING: &str = "missing";
/// Rejection: the field is indexed as another type.
pub(super) const OTHER_TYPE: &str = "other_type";

const KIND: u16 = 100;

/// The body of every catalog command: `docs/FORMATS.md`.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(bytes = "vec", tag = "1")]
    json: Vec<u8>,
}

impl CatalogCommand {
    /// The command's bytes.
    pub(super) fn encode(&self) -> Bytes {
        let json = serde_json::to_vec(self).expect("string keys, finite numbers");
        command::envelope(KIND, &Wire { json })
    }

    /// Reads bytes written by [`CatalogCommand::encode`].
    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let (kind, body) = command::open(bytes)?;
        if kind != KIND {
            return Err(DecodeError::Unknown { format: bytes[0], kind });
        }
        serde_json::from_slice(&Wire::decode(body)?.json).map_err(|e| DecodeError::Damaged(e.to_string()))
    }
}

fn rejection(code: &str, message: String) -> Rejection {
    Rejection::new(code, message)
}

impl CatalogState {
    /// Applies one change, or says why it does not fit; pure.
    pub(super) fn apply(&mut self, command: CatalogCommand) -> Result<(), Rejection> {
        match command {
            CatalogCommand::Create { name, spec } => self.create(name, spec),
            CatalogCommand::Drop { name } => match self.collections.remove(&name) {
                Some(_) => Ok(()),
                None => Err(missing(&name)),
            },
            CatalogCommand::Update { name, change } => self.change(&name, |c| {
                c.spec.change(change);
                let schema = c.spec.schema(c.schema.version, &c.schema.fields);
                Ok(replace(&mut c.schema, schema))
            }),
            CatalogCommand::CreateField { name, path, of } => {
                self.change(&name, |c| match c.schema.fields.get(&path) {
                    Some(old) if *old == of => Ok(false),
                    Some(old) => {
                        Err(rejection(OTHER_TYPE, format!("field {path} is indexed as {old:?} already")))
                    }
                    None => Ok(c.schema.fields.insert(path, of).is_none()),
                })
            }
            CatalogCommand::DropField { name, path } => {
                self.change(&name, |c| Ok(c.schema.fields.remove(&path).is_some()))
            }
        }
    }

    fn create(&mut self, name: String, spec: CollectionSpec) -> Result<(), Rejection> {
        if self.collections.contains_key(&name) {
            return Err(rejection(EXISTS, format!("collection {name} exists already")));
        }
        let id = CollectionId(self.counters.collection);
        self.counters.collection += 1;
        let shards = (0..spec.shard_number).map(|_| self.next_shard()).collect();
        let schema = spec.schema(1, &BTreeMap::new());
        let record = CollectionRecord {
            id,
            name: name.clone(),
            spec,
            schema,
            epoch: Epoch(1),
            generation: Generation(1),
            shards,
        };
        self.collections.insert(name, Arc::new(record));
        Ok(())
    }

    fn next_shard(&mut self) -> ShardRecord {
        let record =
            ShardRecord { group: self.counters.group, replicas: vec![ReplicaId(self.counters.replica)] };
        self.counters.group += 1;
        self.counters.replica += 1;
        record
    }

    /// Changes one collection; `how` tells whether the schema is another one now.
    fn change(
        &mut self,
        name: &str,
        how: impl FnOnce(&mut CollectionRecord) -> Result<bool, Rejection>,
    ) -> Result<(), Rejection> {
        let record = self.collections.get_mut(name).ok_or_else(|| missing(name))?;
        let mut changed = CollectionRecord::clone(record);
        if how(&mut changed)? {
            changed.schema.version += 1;
        }
        *record = Arc::new(changed);
        Ok(())
    }
}

fn missing(name: &str) -> Rejection {
    rejection(MISSING, format!("there is no collection {name}"))
}

/// Puts `new` in the place of `old`; whether they differ.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differ = *old != new;
    *old = new;
    differ
}

impl CollectionSpec {
    /// The schema that follows from the spec, with these indexed fields.
    fn schema(&self, version: u64, fields: &BTreeMap<FieldPath, FieldType>) -> Schema {
        Schema { version, vectors: self.vectors.clone(), sparse: self.sparse.clone(), fields: fields.clone() }
    }

    fn change(&mut self, change: CollectionChange) {
        if let Some(hnsw) = change.hnsw {
            // Vectors that follow the collection's default follow its change too.
            for params in self.vectors.values_mut().filter(|p| p.hnsw == self.hnsw) {
                params.hnsw = hnsw;
            }
            self.hnsw = hnsw;
        }
        for (name, hnsw) in change.hnsw_by_vector {
            if let Some(params) = self.vectors.get_mut(&name) {
                *params = VectorParams { hnsw, ..*params };
            }
        }
        self.passthrough.extend(change.passthrough);
    }
}

/// The catalog in the store: folds group 0's log.
pub(super) struct Catalog {
    store: Store,
    keyspace: Keyspace,
    state: ArcSwap<CatalogState>,
    applied: Mutex<Applied>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Applied {
    position: Position,
    bookmark: Option<Vec<u8>>,
    counters: Counters,
}

const APPLIED: &[u8] = b"applied";
const COLLECTION: &[u8] = b"collection/";
const MARK: &[u8] = b"mark/";
const MARK_EVERY: u64 = 4_096;

impl Catalog {
    /// Opens the catalog as the store has it.
    pub(super) fn open(store: Store) -> Result<Self, MachineError> {
        let keyspace = store.keyspace("catalog", KeyspaceKind::Plain)?;
        let view = store.view();
        let applied: Applied = match view.get(&keyspace, APPLIED)? {
            Some(bytes) => parse("applied", &bytes)?,
            None => Applied::default(),
        };
        let mut state = CatalogState { counters: applied.counters, ..CatalogState::default() };
        for pair in view.prefix(&keyspace, COLLECTION) {
            let record: CollectionRecord = parse("collection", &pair?.1)?;
            state.collections.insert(record.name.clone(), Arc::new(record));
        }
        Ok(Catalog { store, keyspace, state: ArcSwap::from_pointee(state), applied: Mutex::new(applied) })
    }

    /// The catalog now.
    pub(super) fn state(&self) -> Arc<CatalogState> {
        self.state.load_full()
    }

    fn applied(&self) -> std::sync::MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the difference between two states and where they stand, atomically, and publishes the new one.
    fn publish(&self, old: &CatalogState, new: CatalogState, applied: Applied) -> Result<(), StoreError> {
        let key = |record: &CollectionRecord| [COLLECTION, &record.id.0.to_be_bytes()].concat();
        let mut batch = self.store.batch();
        let ids: BTreeSet<_> = new.collections.values().map(|c| c.id).collect();
        for gone in old.collections.values().filter(|c| !ids.contains(&c.id)) {
            batch.delete(&self.keyspace, key(gone));
        }
        for (name, record) in &new.collections {
            if old.collections.get(name) != Some(record) {
                batch.put(&self.keyspace, key(record), to_json(&**record));
            }
        }
        batch.put(&self.keyspace, APPLIED, to_json(&applied));
        if let Some(bookmark) = &applied.bookmark
            && applied.position.0 / MARK_EVERY > self.applied().position.0 / MARK_EVERY
        {
            batch.put(&self.keyspace, [MARK, &applied.position.0.to_be_bytes()].concat(), bookmark);
        }
        batch.commit()?;
        *self.applied() = applied;
        self.state.store(Arc::new(new));
        Ok(())
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("string keys, finite numbers")
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, MachineError> {
    serde_json::from_slice(bytes)
        .map_err(|e| MachineError::Damaged { what: format!("catalog record {what}"), why: e.to_string() })
}

impl StateMachine for Catalog {
    fn bookmark(&self) -> Option<Bookmark> {
        self.applied().bookmark.clone().map(|b| Bookmark(b.into()))
    }

    fn position(&self) -> Position {
        self.applied().position
    }

    fn apply(&self, commands: Vec<Bytes>, bookmark: Bookmark) -> Result<Vec<Outcome>, MachineError> {
        let old = self.state();
        let mut new = CatalogState::clone(&old);
        let mut position = self.position();
        let mut outcomes = Vec::with_capacity(commands.len());
        for bytes in commands {
            let command = CatalogCommand::decode(&bytes)
                .map_err(|source| MachineError::Command { after: position, source })?;
            position = position.next();
            let verdict = match new.apply(command) {
                Ok(()) => Verdict::Applied,
                Err(rejection) => Verdict::Rejected(rejection),
            };
            outcomes.push(Outcome { position, verdict });
        }
        let applied = Applied { position, bookmark: Some(bookmark.0.into()), counters: new.counters };
        self.publish(&old, new, applied)?;
        Ok(outcomes)
    }

    fn persist(&self) -> Result<Option<Bookmark>, MachineError> {
        let bookmark = self.bookmark();
        self.store.persist()?;
        Ok(bookmark)
    }

    fn bookmark_at(&self, position: Position) -> Result<Option<(Position, Bookmark)>, MachineError> {
        let mut found = None;
        for pair in self.store.view().prefix(&self.keyspace, MARK) {
            let (key, bookmark) = pair?;
            let at = key.get(MARK.len()..).and_then(|k| k.try_into().ok()).map(u64::from_be_bytes);
            let at = Position(at.ok_or_else(|| MachineError::Damaged {
                what: "catalog mark".to_owned(),
                why: format!("a key of {} bytes", key.len()),
            })?);
            if at > position {
                break;
            }
            found = Some((at, Bookmark(bookmark)));
        }
        Ok(found)
    }

    fn write_snapshot(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        let body = to_json(&(self.applied().clone(), &*self.state()));
        let crc = crc32fast::hash(&body);
        out.write_all(&crc.to_le_bytes()).and_then(|()| out.write_all(&body)).map_err(snapshot_io)
    }

    fn install_snapshot(&self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes).map_err(snapshot_io)?;
        let damaged =
            || MachineError::Damaged { what: "catalog snapshot".to_owned(), why: "checksum".to_owned() };
        let (crc, body) = bytes.split_first_chunk().ok_or_else(damaged)?;
        if u32::from_le_bytes(*crc) != crc32fast::hash(body) {
            return Err(damaged());
        }
        let (applied, state): (Applied, CatalogState) = parse("snapshot", body)?;
        self.publish(&self.state(), state, applied)?;
        Ok(self.store.persist()?)
    }
}

fn snapshot_io(source: io::Error) -> MachineError {
    MachineError::Io { what: "catalog snapshot".to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(shards: u32) -> CollectionSpec {
        CollectionSpec { shard_number: shards, replication_factor: 1, ..CollectionSpec::default() }
    }

    #[test]
    fn ids_are_never_reused() {
        let mut state = CatalogState::default();
        let create = |shards| CatalogCommand::Create { name: "a".into(), spec: spec(shards) };
        state.apply(create(2)).expect("fits");
        let first = state.collections["a"].clone();
        assert_eq!(state.apply(create(1)).expect_err("taken").code, EXISTS);
        state.apply(CatalogCommand::Drop { name: "a".into() }).expect("fits");
        assert_eq!(state.apply(CatalogCommand::Drop { name: "a".into() }).expect_err("gone").code, MISSING);
        state.apply(create(1)).expect("fits");
        let second = &state.collections["a"];
        assert!(second.id > first.id);
        assert!(first.shards.iter().all(|s| s.group < second.shards[0].group));
        assert!(first.shards.iter().all(|s| s.replicas < second.shards[0].replicas));
    }

    #[test]
    fn the_schema_version_rises_only_when_the_schema_changes() {
        let mut state = CatalogState::default();
        state.apply(CatalogCommand::Create { name: "a".into(), spec: spec(1) }).expect("fits");
        let path: FieldPath = "pos".parse().expect("a path");
        let field = |of| CatalogCommand::CreateField { name: "a".into(), path: path.clone(), of };
        state.apply(field(FieldType::Keyword)).expect("fits");
        state.apply(field(FieldType::Keyword)).expect("again is fine");
        assert_eq!(state.collections["a"].schema.version, 2);
        assert_eq!(state.apply(field(FieldType::Integer)).expect_err("another type").code, OTHER_TYPE);
        state.apply(CatalogCommand::DropField { name: "a".into(), path: path.clone() }).expect("fits");
        state.apply(CatalogCommand::DropField { name: "a".into(), path }).expect("again is fine");
        assert_eq!(state.collections["a"].schema.version, 3);
    }
}
