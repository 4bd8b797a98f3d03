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
mod build_turn;
mod dedup;
mod effects;
mod entry_slots;
mod indexer;
mod open_index;
mod payload_index;
mod plan;
mod points;
#[doc(hidden)]
pub mod rot;
mod scrub;
mod search;
mod seed;
mod slots;
mod snapshot;
mod vector_index;

pub use build_turn::BuildTurn;
pub use dedup::WINDOW as DEDUP_WINDOW;
pub use effects::Change;
pub use search::ReadView;
pub use seed::SeedCursor;

use crate::{
    machine::{Bookmark, Counter, MachineError, Outcome, StateMachine, Waymark},
    model::{
        CollectionId, Command, Counted, Counting, FieldPath, PointId, Position, Schema, Vector, Vectors,
        command::{self, DecodeError, body_hash},
    },
    mutant::{self, Mutant},
    store::{Keyspace, KeyspaceKind, Store, StoreError, View},
};
use apply::Fold;
use arc_swap::ArcSwap;
use bytes::Bytes;
use dedup::Clients;
use indexer::Indexer;
use open_index::{Files, Rows};
use payload_index::FieldIndexes;
use points::{CountingRecord, SlotRecord, StateRecord, damaged, decode};
use slots::{LiveSet, SlotTable};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Bound,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use vector_index::{Merge, SealedSegment, VectorIndex, VectorIndexes, manifest::Manifest};

/// Sealed deltas of one vector from which graphs are late.
const LATE_DELTAS: usize = 8;

/// How a shard is kept.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// How many positions an intent is remembered: the same on every replica, for ever. Only tests make it
    /// other than [`DEDUP_WINDOW`].
    pub dedup_window: u64,
    /// Bytes of vectors that are scanned before they are sealed and built into a graph.
    pub seal_bytes: usize,
    /// Bytes of vectors of a graph that is made from smaller ones, at most.
    pub segment_bytes_max: usize,
    /// Sealed bytes that wait for a graph before writers are slowed; at four times as many they wait.
    pub waiting_bytes: usize,
    /// Whose turn it is to build a graph; the shards of a node share it.
    pub build_turn: BuildTurn,
}

impl Default for ShardOptions {
    fn default() -> Self {
        ShardOptions {
            dedup_window: DEDUP_WINDOW,
            seal_bytes: 8 << 20,
            segment_bytes_max: 2 << 30,
            waiting_bytes: 256 << 20,
            build_turn: BuildTurn::default(),
        }
    }
}

/// One shard of a collection, on one node.
pub struct Shard {
    name: String,
    store: Store,
    collection: CollectionId,
    options: ShardOptions,
    indexer: Arc<Indexer>,
    writer: Mutex<Writer>,
    /// Where the log's history begins; what is kept beside older commands may go.
    history_starts: AtomicU64,
    /// Snapshots installed since it was opened.
    installs: AtomicU64,
    /// Notified when a graph was published, or the shard closed.
    absorbed: Condvar,
    published: ArcSwap<ReadView>,
}

/// What only the one who applies may touch.
struct Writer {
    /// Number of the keyspace that is the shard's now.
    generation: u64,
    /// Incarnations that ended since the index thread was last told.
    died: usize,
    /// Bytes of commands since the last bookmark was recorded, as far as this process applied them.
    unmarked_bytes: usize,
    clients: Clients,
    poisoned: Option<String>,
    /// From then on the store may be taken away.
    closed: bool,
}

/// Figures of a shard.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ShardStats {
    /// Points in it.
    pub points: u64,
    /// Live dense vectors.
    pub vectors: u64,
    /// The same, by name.
    pub vectors_by_name: BTreeMap<String, u64>,
    /// Dense vectors that are found fast: in a graph, or in the open delta.
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
    /// `name`: prefix of its keyspaces. `index_dir`: folder of its index files, which may vanish whenever the
    /// shard is closed. Errors: the store or its bytes are damaged, or it holds another collection.
    pub fn open(
        store: Store,
        name: &str,
        index_dir: &Path,
        collection: CollectionId,
        options: ShardOptions,
    ) -> Result<Arc<Shard>, MachineError> {
        let generation = current_generation(&store, name)?;
        drop_other_generations(&store, name, generation)?;
        let keyspace = store.keyspace(&keyspace_name(name, generation), KeyspaceKind::LargeValues)?;
        let mut manifest = Manifest::read(index_dir);
        let mut names = manifest.clone();
        let mut new_file = || names.next_file();
        let files = Files { folder: index_dir, manifest: &manifest, new_file: &mut new_file };
        let view = load(&store, keyspace, collection, &options, files)?;
        if names.next != manifest.next {
            // What was built meanwhile is garbage until a manifest names it.
            manifest = Manifest { next: names.next, ..Manifest::of(view.position(), &view.vectors) };
            let failed = |source| MachineError::Io { what: index_dir.display().to_string(), source };
            manifest.write(index_dir).map_err(failed)?;
        }
        let shard = Arc::new(Shard {
            name: name.to_owned(),
            store,
            collection,
            options,
            indexer: Arc::new(Indexer::new(index_dir.to_owned(), manifest)),
            writer: Mutex::new(Writer {
                generation,
                died: 0,
                unmarked_bytes: 0,
                clients: Clients::default(),
                poisoned: None,
                closed: false,
            }),
            history_starts: AtomicU64::new(0),
            installs: AtomicU64::new(0),
            absorbed: Condvar::new(),
            published: ArcSwap::from_pointee(view),
        });
        let thread = |source| MachineError::Io { what: "index thread".to_owned(), source };
        Indexer::start(&shard).map_err(thread)?;
        Ok(shard)
    }

    /// How many snapshots were installed since it was opened: after each, all it stores has come from elsewhere.
    pub fn installs(&self) -> u64 {
        self.installs.load(Ordering::Relaxed)
    }

    /// Says that there is a search, which a graph that is being built is not to be in the way of.
    pub fn note_search(&self) {
        self.options.build_turn.search();
    }

    /// The shard as it stands now.
    pub fn view(&self) -> Arc<ReadView> {
        self.published.load_full()
    }

    /// The hash of the shard's whole state, and the position it belongs to.
    pub fn state_hash(&self) -> Result<(Position, u128), MachineError> {
        let view = self.view();
        Ok((view.position(), apply::state_hash(&view.state, view.state.sums()?)))
    }

    /// The state hash at a position, if it was recorded: at every multiple of 4,096.
    pub fn state_hash_at(&self, position: Position) -> Result<Option<u128>, MachineError> {
        let view = self.view();
        let bytes = view.store.get(&view.keyspace, points::position_key(points::HASH, position))?;
        bytes.map(|bytes| points::sum_of(&bytes)).transpose()
    }

    /// Every state hash that was recorded at or above a position, ascending.
    pub fn hash_marks(&self, from: Position) -> Result<Vec<(Position, u128)>, MachineError> {
        let view = self.view();
        let from = Bound::Included(points::position_key(points::HASH, from));
        let rows = view.store.range(&view.keyspace, (from, Bound::Excluded(vec![points::HASH + 1])));
        rows.map(|row| {
            let (key, sum) = row?;
            Ok((points::position_of_key(&key)?, points::sum_of(&sum)?))
        })
        .collect()
    }

    /// Figures for people and for balancing.
    pub fn stats(&self) -> ShardStats {
        let view = self.view();
        let vectors: u64 = view.state.vectors.values().sum();
        let waiting: usize = view.vectors.values().map(VectorIndex::waiting_rows).sum();
        let parts = |index: &VectorIndex| index.segments.len() + index.sealed.len() + 1;
        ShardStats {
            points: view.live.count(),
            vectors,
            vectors_by_name: view.state.vectors.clone(),
            indexed_vectors: vectors.saturating_sub(waiting as u64),
            segments: view.vectors.values().map(parts).sum::<usize>() as u64,
            building: waiting > 0,
            field_points: view.fields.iter().map(|(path, field)| (path.clone(), field.present())).collect(),
            store_bytes: view.keyspace.disk_bytes(),
            index_bytes: self.indexer.bytes(),
        }
    }

    /// Stops what runs in the background and waits for it; the shard takes no more commands. Views stay
    /// readable.
    pub fn close(&self) {
        let mut writer = self.writer();
        writer.closed = true;
        writer.poisoned.get_or_insert_with(|| "closed".to_owned());
        drop(writer);
        self.absorbed.notify_all();
        self.indexer.stop();
        self.indexer.join();
    }

    /// Deletes a closed shard's keyspaces and index files.
    pub fn drop_files(store: &Store, name: &str, index_dir: &Path) -> Result<(), MachineError> {
        drop_other_generations(store, name, 0)?;
        store.drop_keyspace(name)?;
        match std::fs::remove_dir_all(index_dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(MachineError::Io { what: index_dir.display().to_string(), source })
            }
            _ => Ok(()),
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of vectors that wait for a graph.
    fn waiting_bytes(&self) -> usize {
        self.view().vectors.values().map(VectorIndex::waiting_bytes).sum()
    }

    /// Whether so much waits for graphs that every search pays for it, or soon every write.
    fn builds_are_late(&self) -> bool {
        self.view().vectors.values().any(|index| index.sealed.len() >= LATE_DELTAS)
            || self.waiting_bytes() > self.options.waiting_bytes
    }

    /// The writer, once it may write: slowed, then stopped, while too many vectors wait for a graph.
    fn writer_in_turn(&self) -> Result<MutexGuard<'_, Writer>, MachineError> {
        let mut writer = self.writer();
        if self.waiting_bytes() > self.options.waiting_bytes {
            let pause = Duration::from_millis(10);
            let wait =
                |writer| self.absorbed.wait_timeout(writer, pause).unwrap_or_else(PoisonError::into_inner);
            writer = wait(writer).0;
            while self.waiting_bytes() > 4 * self.options.waiting_bytes
                && writer.poisoned.is_none()
                && self.indexer.absorbs()
            {
                writer = wait(writer).0;
            }
        }
        match &writer.poisoned {
            Some(why) => Err(MachineError::Poisoned(why.clone())),
            None => Ok(writer),
        }
    }

    /// Folds, commits and publishes one batch.
    fn apply_batch(
        &self,
        writer: &mut Writer,
        commands: &[Bytes],
        bookmark: &Bookmark,
    ) -> Result<Vec<Outcome>, MachineError> {
        let base = self.view();
        let unreadable = |source| MachineError::Command { after: base.position(), source };
        let bytes: usize = commands.iter().map(Bytes::len).sum();
        let commands: Vec<_> =
            commands.iter().map(read_command).collect::<Result<_, _>>().map_err(unreadable)?;
        writer.clients.trim();
        let mut fold = Fold::new(&base, self.options.dedup_window, &mut writer.clients)?;
        let mut outcomes = Vec::with_capacity(commands.len());
        for (command, body_hash) in commands {
            outcomes.push(fold.command(command, body_hash)?);
        }
        fold.forget_effects(self.history())?;
        let marked = fold.finish(bookmark, writer.unmarked_bytes + bytes)?;
        let mut batch = self.store.batch();
        if mutant::is(Mutant::ApplyIndexNonatomic) {
            let state = fold.writes.get(points::STATE).cloned().flatten().unwrap_or_default();
            batch.put(&base.keyspace, points::STATE, state);
            batch.commit()?;
            batch = self.store.batch();
        }
        for (key, write) in &fold.writes {
            match write {
                Some(value) => batch.put(&base.keyspace, key, value),
                None => batch.delete(&base.keyspace, key),
            }
        }
        batch.commit()?;
        writer.unmarked_bytes = if marked { 0 } else { writer.unmarked_bytes + bytes };
        let vectors = next_vectors(&base.vectors, &fold.schema, &fold.born, self.options.seal_bytes);
        writer.died += fold.died;
        let waits = |index: &VectorIndex| !index.sealed.is_empty() || index.held_elsewhere().is_some();
        let worth_a_look = vectors.values().any(waits) || writer.died as u64 * 10 > fold.live.count();
        self.published.store(Arc::new(ReadView {
            state: fold.state,
            schema: fold.schema,
            keyspace: base.keyspace.clone(),
            store: self.store.view(),
            live: fold.live,
            slots: fold.slots,
            fields: fold.fields,
            vectors,
            plans: Arc::default(),
        }));
        // After the view is there: the index thread looks at it, and then sleeps until it is told again.
        if worth_a_look {
            writer.died = 0;
            self.indexer.notify();
        }
        Ok(outcomes)
    }

    /// Seals open deltas that are worth a graph, if the shard still stands at a position; its index thread is told.
    fn seal_at_rest(&self, position: Position) {
        let _writer = self.writer();
        let view = self.view();
        let mut vectors = view.vectors.clone();
        let sealed = vectors.values_mut().filter_map(|index| index.seal_at_rest().then_some(())).count();
        if sealed > 0 && view.position() == position {
            self.published.store(Arc::new(view.with_vectors(vectors, self.store.view())));
            self.indexer.notify();
        }
    }

    /// Publishes a merged segment in the place of its parts; nothing, if they are not the shard's any more.
    fn replace_parts(&self, name: &str, merge: &Merge, new: Option<Arc<SealedSegment>>) {
        let _writer = self.writer();
        let view = self.view();
        let mut vectors = view.vectors.clone();
        if vectors.get_mut(name).is_some_and(|index| index.replace(merge, new)) {
            self.published.store(Arc::new(view.with_vectors(vectors, self.store.view())));
            self.absorbed.notify_all();
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.indexer.stop();
    }
}

impl StateMachine for Shard {
    fn history_starts_at(&self, position: Position) {
        self.history_starts.fetch_max(position.0, Ordering::Relaxed);
    }

    fn bookmark(&self) -> Option<Bookmark> {
        self.view().state.bookmark.clone().map(Bookmark)
    }

    fn position(&self) -> Position {
        self.view().position()
    }

    fn apply(&self, commands: Vec<Bytes>, bookmark: Bookmark) -> Result<Vec<Outcome>, MachineError> {
        let mut writer = self.writer_in_turn()?;
        let applied = self.apply_batch(&mut writer, &commands, &bookmark);
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
        mark_at(&self.view(), position)
    }

    fn waymark(&self, position: Position) -> Result<Waymark, MachineError> {
        let view = self.view();
        let Some((position, bookmark)) = mark_at(&view, position)? else {
            return Ok(Waymark { bookmark: None, counter: Box::new(Counting::default()) });
        };
        // Of the same view, since a later batch may have left another mark at the position.
        let record = view.store.get(&view.keyspace, points::position_key(points::COUNTING, position))?;
        let record = record.map(|bytes| decode::<CountingRecord>("counting", bytes)).transpose()?;
        let counting = CountingRecord::at(record.as_ref(), position)?;
        Ok(Waymark { bookmark: Some(bookmark), counter: Box::new(counting) })
    }

    fn write_snapshot(&self, out: &mut dyn io::Write) -> Result<(), MachineError> {
        snapshot::write(&self.view(), out)
    }

    fn install_snapshot(&self, input: &mut dyn io::Read) -> Result<(), MachineError> {
        let mut writer = self.writer();
        let old = keyspace_name(&self.name, writer.generation);
        let generation = writer.generation + 1;
        let new = keyspace_name(&self.name, generation);
        let view = match self.prepare(input, &new) {
            Ok(view) => view,
            Err(e) => {
                self.store.drop_keyspace(&new)?;
                return Err(e);
            }
        };
        // From here on a failure leaves it open which of the two is found after a restart; both are whole.
        if let Err(e) = self.switch_to(generation) {
            writer.poisoned = Some(e.to_string());
            return Err(e);
        }
        writer.generation = generation;
        self.installs.fetch_add(1, Ordering::Relaxed);
        writer.clients = Clients::default();
        self.indexer.adopt(self, || self.published.store(Arc::new(view)));
        drop(writer);
        self.indexer.notify();
        self.store.drop_keyspace(&old)?;
        Ok(())
    }
}

impl Counter for Counting {
    fn position(&self) -> Position {
        self.position
    }

    fn take(&mut self, bytes: Bytes, out: &mut VecDeque<(Position, Bytes)>) -> Result<(), MachineError> {
        let after = self.position;
        let unreadable = |source| MachineError::Command { after, source };
        if !command::is_of_regions(&bytes).map_err(unreadable)? {
            if self.duty == crate::model::Duty::Home {
                self.position = after.next();
                out.push_back((self.position, bytes));
            }
            return Ok(());
        }
        let command = Command::decode(&bytes).map_err(unreadable)?;
        if let Counted::Each(commands) = Counting::take(self, &command.body) {
            let positions = (after.0 + 1..).map(Position);
            out.extend(positions.zip(commands.iter().cloned()));
        }
        Ok(())
    }
}

impl Shard {
    /// Reads a snapshot into a keyspace of its own, durably, and opens a view on it.
    fn prepare(&self, input: &mut dyn io::Read, name: &str) -> Result<ReadView, MachineError> {
        self.store.drop_keyspace(name)?;
        let keyspace = self.store.keyspace(name, KeyspaceKind::LargeValues)?;
        snapshot::read_rows(input, &self.store, &keyspace)?;
        if mutant::is(Mutant::ResurrectDeleteOnSnapshot) {
            self.bring_back(&keyspace)?;
        }
        self.mark_beginning(&keyspace)?;
        let (folder, manifest) = (self.indexer.incoming(), self.indexer.receive(input));
        let mut new_file = || self.indexer.next_file();
        let files = Files { folder: &folder, manifest: &manifest, new_file: &mut new_file };
        let view = load(&self.store, keyspace, self.collection, &self.options, files)?;
        self.store.persist()?;
        Ok(view)
    }

    /// A planted bug: points that a received state lacks and the old one has are there again.
    fn bring_back(&self, keyspace: &Keyspace) -> Result<(), MachineError> {
        let (view, old) = (self.store.view(), self.view());
        let mut batch = self.store.batch();
        for row in old.store.prefix(&old.keyspace, &[points::POINT]) {
            let (key, value) = row?;
            if view.get(keyspace, &key)?.is_none() {
                batch.put(keyspace, key, value);
            }
        }
        Ok(batch.commit()?)
    }

    /// Marks where a state that was received begins: the log here has nothing before it, so a reader of commands
    /// can count from nowhere else.
    fn mark_beginning(&self, keyspace: &Keyspace) -> Result<(), MachineError> {
        let view = self.store.view();
        let Some(value) = view.get(keyspace, points::STATE)? else { return Ok(()) };
        let mut state = StateRecord::of_value(value)?;
        if state.bookmark.is_none() {
            return Ok(());
        }
        let mut sums = state.sums()?;
        let mut batch = self.store.batch();
        for (key, value) in state.waymark() {
            if let Some(before) = view.get(keyspace, &key)? {
                // Of the same position, but an earlier entry: there may have been some without commands since.
                sums.local = sums.local.wrapping_sub(points::row_hash(&key, &before));
                batch.delete(keyspace, &key);
            }
            if let Some(value) = value {
                sums.local = sums.local.wrapping_add(points::row_hash(&key, &value));
                batch.put(keyspace, key, value);
            }
        }
        state.set_sums(sums);
        state.marked = state.position;
        batch.put(keyspace, points::STATE, state.to_value());
        Ok(batch.commit()?)
    }

    /// Makes a keyspace the shard's, durably. The index files belong to the old one and go first.
    fn switch_to(&self, generation: u64) -> Result<(), MachineError> {
        self.indexer.forget()?;
        let root = self.store.keyspace(&self.name, KeyspaceKind::Plain)?;
        let mut batch = self.store.batch();
        batch.put(&root, CURRENT, generation.to_be_bytes());
        batch.commit()?;
        Ok(self.store.persist()?)
    }
}

/// The newest bookmark that a view has recorded at or below a position.
fn mark_at(view: &ReadView, position: Position) -> Result<Option<(Position, Bookmark)>, MachineError> {
    let [from, to] =
        [Position(0), position].map(|at| Bound::Included(points::position_key(points::MARK, at)));
    let last = view.store.last(&view.keyspace, (from, to))?;
    last.map(|(key, bookmark)| Ok((points::position_of_key(&key)?, Bookmark(bookmark)))).transpose()
}

/// A command, and the hash of its body if it names an intent.
fn read_command(bytes: &Bytes) -> Result<(Command, u64), DecodeError> {
    let command = Command::decode(bytes)?;
    let body_hash = command.request.as_ref().map(|_| body_hash(bytes)).transpose()?;
    Ok((command, body_hash.unwrap_or_default()))
}

/// The vector indexes after a fold: those of the schema, with the rows of the slots it gave out.
fn next_vectors(
    base: &VectorIndexes,
    schema: &Schema,
    born: &BTreeMap<points::Slot, Vectors>,
    seal_bytes: usize,
) -> VectorIndexes {
    let mut next = VectorIndexes::new();
    for (name, params) in &schema.vectors {
        let mut index = base.get(name).cloned().unwrap_or_else(|| VectorIndex::new(*params, Vec::new()));
        // A new shape counts for the graphs that are built from now on, a new residence for all.
        index.params = *params;
        let (mut slots, mut values) = (Vec::new(), Vec::new());
        for (slot, vectors) in born {
            if let Some(Vector::Dense(row)) = vectors.get(name) {
                slots.push(*slot);
                values.extend_from_slice(row);
            }
        }
        index.append(slots, values, seal_bytes);
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

/// Reads a shard from its keyspace and its index files.
fn load(
    store: &Store,
    keyspace: Keyspace,
    collection: CollectionId,
    options: &ShardOptions,
    files: Files<'_>,
) -> Result<ReadView, MachineError> {
    let view = store.view();
    let state = match view.get(&keyspace, points::STATE)? {
        Some(bytes) => StateRecord::of_value(bytes)?,
        None if view.keys(&keyspace, &[]).next().is_none() => points::first_state(collection),
        None => return Err(damaged("shard state", "it is gone")),
    };
    if state.collection != collection.0 {
        let why = format!("it holds collection {}, not {collection}", state.collection);
        return Err(damaged("shard", why));
    }
    let schema = load_schema(&view, &keyspace, &state)?;
    let (live, slots) = load_slots(&view, &keyspace)?;
    if live.count() != state.points {
        return Err(damaged("shard", format!("{} slots for {} points", live.count(), state.points)));
    }
    let fields = FieldIndexes::load(&view, &keyspace, &schema.fields)?;
    let rows =
        Rows { live: &live, slots: &slots, next_slot: state.next_slot, view: &view, keyspace: &keyspace };
    let vectors = open_index::open(&schema, files, &rows, options)?;
    Ok(ReadView {
        state,
        schema: Arc::new(schema),
        keyspace,
        store: view,
        live,
        slots,
        fields,
        vectors,
        plans: Arc::default(),
    })
}

fn load_schema(view: &View, keyspace: &Keyspace, state: &StateRecord) -> Result<Schema, MachineError> {
    let json = view.get(keyspace, points::SCHEMA)?;
    let hash = json.as_ref().map(|json| xxhash_rust::xxh3::xxh3_128(json).to_le_bytes());
    if hash.as_ref().map_or(&[][..], |hash| hash) != state.schema_hash {
        return Err(damaged("schema", "it is not the one that was written"));
    }
    json.map_or(Ok(Schema::default()), |json| {
        serde_json::from_slice(&json).map_err(|e| damaged("schema", e.to_string()))
    })
}

fn load_slots(view: &View, keyspace: &Keyspace) -> Result<(LiveSet, SlotTable), MachineError> {
    let (mut live, mut slots) = (LiveSet::default(), SlotTable::default());
    for item in view.prefix(keyspace, &[points::SLOT]) {
        let (key, bytes) = item?;
        let slot = points::slot_of_key(&key)?;
        let record: SlotRecord = decode("slot", bytes)?;
        let id = PointId::from_key(&record.id).ok_or_else(|| damaged("slot", "no point id"))?;
        live.insert(slot);
        slots.insert(slot, id, Position(record.born), Position(record.version()));
    }
    Ok((live, slots))
}

#[cfg(test)]
mod tests;
