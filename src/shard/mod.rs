//! A shard: points folded from a log, found by id, by filter and by vector.
//!
//! One apply is one batch in the store, then the structures in memory, then **one** atomic publication of the
//! next [`ReadView`]. Readers never wait for a writer and never see half of a batch; a view keeps all it needs.
//!
//! Invariants: the store holds exactly the effects of the first `position` commands, with the bookmark of the
//! last batch; everything in memory can be thrown away and is read again from the store; an index may suggest,
//! the store decides.
//!
//! Not here: Raft, fsync of commands (the log has them), other shards.

mod apply;
mod dedup;
mod payload_index;
mod plan;
mod points;
mod search;
mod slots;
mod vector_index;

pub use dedup::WINDOW as DEDUP_WINDOW;
pub use search::ReadView;

use crate::{
    machine::{Bookmark, MachineError, Outcome, StateMachine},
    model::{CollectionId, Command, FieldPath, Position, Schema, Vector},
    store::{Keyspace, KeyspaceKind, Store, StoreError, View},
};
use apply::Fold;
use arc_swap::ArcSwap;
use bytes::Bytes;
use payload_index::FieldIndexes;
use points::{PointRecord, SlotRecord, StateRecord, damaged, decode};
use slots::{LiveSet, SlotTable};
use std::{
    collections::BTreeMap,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};
use vector_index::{VectorIndex, VectorIndexes};

/// How a shard is kept.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// How many positions an intent is remembered: the same on every replica, for ever. Only tests make it
    /// other than [`DEDUP_WINDOW`].
    pub dedup_window: u64,
}

impl Default for ShardOptions {
    fn default() -> Self {
        ShardOptions { dedup_window: DEDUP_WINDOW }
    }
}

/// One shard of a collection, on one node.
pub struct Shard {
    name: String,
    store: Store,
    index_dir: PathBuf,
    options: ShardOptions,
    writer: Mutex<Writer>,
    published: ArcSwap<ReadView>,
}

/// What only the one who applies may touch.
struct Writer {
    state: StateRecord,
    /// Number of the keyspace that is the shard's now.
    generation: u64,
    poisoned: Option<String>,
}

/// Figures of a shard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardStats {
    /// Points in it.
    pub points: u64,
    /// Live dense vectors.
    pub vectors: u64,
    /// The same, by name.
    pub vectors_by_name: BTreeMap<String, u64>,
    /// Live dense vectors that are found fast: in a graph, or in the open delta.
    pub indexed_vectors: u64,
    /// Graphs and deltas.
    pub segments: u64,
    /// Whether vectors wait to be built into a graph.
    pub building: bool,
    /// Points that have a value in the field, by indexed field.
    pub field_points: BTreeMap<FieldPath, u64>,
    /// Bytes of the shard in the store, without the journal.
    pub store_bytes: u64,
    /// Bytes of its index files.
    pub index_bytes: u64,
}

impl Shard {
    /// Opens a shard, or makes an empty one.
    ///
    /// `name`: prefix of its keyspaces. `index_dir`: folder of its index files, which may vanish at any time
    /// the shard is closed. Errors: the store or its bytes are damaged, or it holds another collection.
    pub fn open(
        store: Store,
        name: &str,
        index_dir: &Path,
        collection: CollectionId,
        options: ShardOptions,
    ) -> Result<Arc<Shard>, MachineError> {
        let generation = current_generation(&store, name)?;
        drop_other_generations(&store, name, generation)?;
        let (state, view) = load(&store, name, generation, collection)?;
        Ok(Arc::new(Shard {
            name: name.to_owned(),
            store,
            index_dir: index_dir.to_owned(),
            options,
            writer: Mutex::new(Writer { state, generation, poisoned: None }),
            published: ArcSwap::from_pointee(view),
        }))
    }

    /// The shard as it stands now.
    pub fn view(&self) -> Arc<ReadView> {
        self.published.load_full()
    }

    /// The hash of the shard's whole state, and the position it belongs to.
    pub fn state_hash(&self) -> Result<(Position, u128), MachineError> {
        let writer = self.writer();
        let hash = apply::state_hash(&writer.state, &self.view().schema)?;
        Ok((Position(writer.state.position), hash))
    }

    /// Figures for people and for balancing.
    pub fn stats(&self) -> ShardStats {
        let view = self.view();
        ShardStats {
            points: view.live.count(),
            field_points: view.fields.iter().map(|(path, field)| (path.clone(), field.present())).collect(),
            store_bytes: view.keyspace.disk_bytes(),
            ..ShardStats::default()
        }
    }

    /// Stops what runs in the background; the shard takes no more commands.
    pub fn close(&self) {
        self.writer().poisoned.get_or_insert_with(|| "closed".to_owned());
    }

    /// Deletes a closed shard's keyspaces and index files.
    pub fn drop_files(store: &Store, name: &str, index_dir: &Path) -> Result<(), MachineError> {
        drop_other_generations(store, name, 0)?;
        store.drop_keyspace(name)?;
        match std::fs::remove_dir_all(index_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(MachineError::Io { what: index_dir.display().to_string(), source: e })
            }
            _ => Ok(()),
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Folds, commits and publishes one batch.
    fn apply_batch(
        &self,
        writer: &mut Writer,
        commands: Vec<Bytes>,
        bookmark: &Bookmark,
    ) -> Result<Vec<Outcome>, MachineError> {
        let after = Position(writer.state.position);
        let commands: Vec<Command> = commands
            .iter()
            .map(Command::decode)
            .collect::<Result<_, _>>()
            .map_err(|source| MachineError::Command { after, source })?;
        let base = self.view();
        let mut fold = Fold::new(&base, writer.state.clone(), self.options.dedup_window);
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            outcomes.push(fold.command(command)?);
        }
        fold.finish(bookmark);
        let mut batch = self.store.batch();
        for (key, write) in &fold.writes {
            match write {
                Some(value) => batch.put(&base.keyspace, key, value),
                None => batch.delete(&base.keyspace, key),
            }
        }
        batch.commit()?;
        let vectors = next_vectors(&base.vectors, &fold);
        let view = ReadView {
            position: Position(fold.state.position),
            schema: fold.schema,
            keyspace: base.keyspace.clone(),
            store: self.store.view(),
            live: fold.live,
            slots: fold.slots,
            fields: fold.fields,
            vectors,
        };
        writer.state = fold.state;
        self.published.store(Arc::new(view));
        Ok(outcomes)
    }
}

impl StateMachine for Shard {
    fn bookmark(&self) -> Option<Bookmark> {
        self.writer().state.bookmark.clone().map(Bookmark)
    }

    fn position(&self) -> Position {
        Position(self.writer().state.position)
    }

    fn apply(&self, commands: Vec<Bytes>, bookmark: Bookmark) -> Result<Vec<Outcome>, MachineError> {
        let mut writer = self.writer();
        if let Some(why) = &writer.poisoned {
            return Err(MachineError::Poisoned(why.clone()));
        }
        let applied = self.apply_batch(&mut writer, commands, &bookmark);
        if let Err(e) = &applied {
            writer.poisoned = Some(e.to_string());
        }
        applied
    }

    fn persist(&self) -> Result<Option<Bookmark>, MachineError> {
        let bookmark = self.bookmark();
        self.store.persist()?;
        Ok(bookmark)
    }

    fn bookmark_at(&self, position: Position) -> Result<Option<(Position, Bookmark)>, MachineError> {
        let view = self.view();
        let from = Bound::Included(points::position_key(points::MARK, Position(0)));
        let to = Bound::Included(points::position_key(points::MARK, position));
        match view.store.last(&view.keyspace, (from, to))? {
            Some((key, bookmark)) => Ok(Some((points::position_of_key(&key)?, Bookmark(bookmark)))),
            None => Ok(None),
        }
    }

    fn write_snapshot(&self, _out: &mut dyn std::io::Write) -> Result<(), MachineError> {
        Err(MachineError::Poisoned("snapshots: next commit".into()))
    }

    fn install_snapshot(&self, _input: &mut dyn std::io::Read) -> Result<(), MachineError> {
        Err(MachineError::Poisoned("snapshots: next commit".into()))
    }
}

/// The vector indexes after a fold: those of the schema, with the rows it brought.
fn next_vectors(base: &VectorIndexes, fold: &Fold<'_>) -> VectorIndexes {
    let mut next = VectorIndexes::new();
    for (name, params) in &fold.schema.vectors {
        let mut index = match base.get(name) {
            Some(index) => index.clone(),
            None => VectorIndex::new(*params),
        };
        let (mut slots, mut values) = (Vec::new(), Vec::new());
        for (slot, vectors) in &fold.born {
            if let Some(Vector::Dense(row)) = vectors.get(name) {
                slots.push(*slot);
                values.extend_from_slice(row);
            }
        }
        index.append(slots, values);
        next.insert(name.clone(), index);
    }
    next
}

/// Key, in the keyspace named as the shard, of the number of the keyspace that holds it.
const CURRENT: &[u8] = b"current";

fn keyspace_name(name: &str, generation: u64) -> String {
    format!("{name}.{generation}")
}

fn current_generation(store: &Store, name: &str) -> Result<u64, MachineError> {
    let root = store.keyspace(name, KeyspaceKind::Plain)?;
    match store.view().get(&root, CURRENT)? {
        None => Ok(1),
        Some(bytes) => {
            let number = bytes.as_ref().try_into().map(u64::from_be_bytes);
            number.map_err(|_| damaged("keyspace number", format!("{bytes:02x?}")))
        }
    }
}

/// Drops the keyspaces that an interrupted install left, or (0 is none's number) all of a shard's.
fn drop_other_generations(store: &Store, name: &str, current: u64) -> Result<(), StoreError> {
    let own = |keyspace: &str| {
        let number = keyspace.strip_prefix(name)?.strip_prefix('.')?;
        number.parse::<u64>().ok()
    };
    for keyspace in store.keyspaces() {
        if own(&keyspace).is_some_and(|generation| generation != current) {
            store.drop_keyspace(&keyspace)?;
        }
    }
    Ok(())
}

/// Reads a shard from its keyspace.
fn load(
    store: &Store,
    name: &str,
    generation: u64,
    collection: CollectionId,
) -> Result<(StateRecord, ReadView), MachineError> {
    let keyspace = store.keyspace(&keyspace_name(name, generation), KeyspaceKind::LargeValues)?;
    let view = store.view();
    let state = match view.get(&keyspace, points::STATE)? {
        Some(bytes) => decode::<StateRecord>("shard state", bytes)?,
        None => points::first_state(collection),
    };
    if state.collection != collection.0 {
        let why = format!("it holds collection {}, not {collection}", state.collection);
        return Err(damaged(&format!("shard {name}"), why));
    }
    let schema: Schema = match view.get(&keyspace, points::SCHEMA)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| damaged("schema", e.to_string()))?,
        None => Schema::default(),
    };
    let (live, slots) = load_slots(&view, &keyspace)?;
    let fields = FieldIndexes::load(&view, &keyspace, &schema.fields)?;
    let mut vectors: VectorIndexes =
        schema.vectors.iter().map(|(name, params)| (name.clone(), VectorIndex::new(*params))).collect();
    load_deltas(&view, &keyspace, &mut vectors)?;
    let view = ReadView {
        position: Position(state.position),
        schema: Arc::new(schema),
        keyspace,
        store: view,
        live,
        slots,
        fields,
        vectors,
    };
    Ok((state, view))
}

fn load_slots(view: &View, keyspace: &Keyspace) -> Result<(LiveSet, SlotTable), MachineError> {
    let (mut live, mut slots) = (LiveSet::default(), SlotTable::default());
    for item in view.prefix(keyspace, &[points::SLOT]) {
        let (key, bytes) = item?;
        let slot = points::slot_of_key(&key)?;
        let record: SlotRecord = decode("slot", bytes)?;
        let id = crate::model::PointId::from_key(&record.id).ok_or_else(|| damaged("slot", "no point id"))?;
        live.insert(slot);
        slots.insert(slot, id, Position(record.born));
    }
    Ok((live, slots))
}

fn load_deltas(view: &View, keyspace: &Keyspace, vectors: &mut VectorIndexes) -> Result<(), MachineError> {
    for item in view.prefix(keyspace, &[points::VECTOR]) {
        let (key, bytes) = item?;
        let slot = points::slot_of_key(&key)?;
        let name = std::str::from_utf8(&key[5..]).map_err(|e| damaged("vector key", e.to_string()))?;
        if let Some(index) = vectors.get_mut(name) {
            index.append(vec![slot], points::floats_of_bytes(&bytes)?);
        }
    }
    Ok(())
}

/// Recomputes what the counters should be from the points in the store.
#[allow(dead_code)]
fn scrubbed(view: &ReadView) -> Result<u128, MachineError> {
    let mut sum = 0u128;
    for item in view.store.prefix(&view.keyspace, &[points::POINT]) {
        let (key, bytes) = item?;
        let record: PointRecord = decode("point", bytes)?;
        sum = sum.wrapping_add(record.hash(points::point_of_key(&key)?));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
