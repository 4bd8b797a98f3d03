//! The LSM store under every state machine of a node: fjall, named in this file only.
//!
//! One database a node, one keyspace a state machine. A keyspace has **one writer**; a [`View`] taken by that
//! writer between two of its commits sees all of the keyspace's batches or none of each.
//!
//! Invariants: a [`Batch`] is atomic. No commit waits for the disk: the log is the truth, and whatever a power
//! cut takes from here is replayed from it. [`Store::persist`] makes everything committed so far durable.
//! Within one keyspace a crash keeps a *prefix* of the batches, because fjall seals a memtable only between
//! two batches; across keyspaces it promises less, so a state machine keeps all it must find whole in one.
//!
//! The same in memory, for simulations, is [`MemoryStore`]; `store/tests.rs` runs one script over both.
//!
//! Not here: `clear` (it pins journals; a keyspace is dropped instead), transactions, reverse iteration.
//! Source: fjall 3.1 (`docs.rs/fjall`); LSM trees with values apart, WiscKey (Lu et al., FAST 2016).

mod memory;
#[cfg(test)]
mod tests;

pub use memory::MemoryStore;

use crate::world;
use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable};
use std::{fs, io, ops::Bound, path::Path, sync::Arc};
use tokio::sync::watch;

/// The store failed: an I/O error or damage below it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StoreError {
    what: String,
    damaged: bool,
}

impl StoreError {
    /// Whether stored bytes are not those that were written, rather than the disk refusing.
    pub fn is_damage(&self) -> bool {
        self.damaged
    }
}

impl From<fjall::Error> for StoreError {
    fn from(e: fjall::Error) -> Self {
        use fjall::Error as E;
        use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        // What is missing or ends early inside of the store was cut off or deleted.
        let damaged = match &e {
            E::Io(io) | E::Storage(fjall::LsmError::Io(io)) => {
                matches!(io.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
            }
            E::InvalidVersion(Some(_)) | E::Storage(fjall::LsmError::InvalidVersion(_)) => false,
            E::Locked | E::Poisoned | E::KeyspaceDeleted => false,
            _ => true,
        };
        StoreError { what: e.to_string(), damaged }
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// How much the store may take.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Blocks kept in memory, in bytes.
    pub cache_bytes: u64,
    /// A keyspace's newest writes that are held in memory before they are flushed, in bytes.
    pub memtable_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { cache_bytes: 256 << 20, memtable_bytes: 16 << 20 }
    }
}

/// Journals kept for recovery, in bytes: bounds the time to reopen.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
/// Threads that flush and compact.
const THREADS: usize = 2;
/// How much they give way to searches and to what waits for an acknowledgement.
const FLUSH_NICE: i32 = 10;

/// What a keyspace mostly holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyspaceKind {
    /// Small records.
    Plain,
    /// Records beside large values (from 512 bytes on), which are kept apart and not rewritten by compaction.
    LargeValues,
}

/// The node's store; cheap to clone. It closes when the last clone, keyspace and view are gone.
#[derive(Clone)]
pub struct Store(Kind, Failure);

#[derive(Clone)]
enum Kind {
    /// With the bytes of a memtable.
    Disk(Database, u64),
    Memory(memory::Open),
}

/// A set of keys with one writer; cheap to clone.
#[derive(Clone)]
pub struct Keyspace(KeyspaceOf);

#[derive(Clone)]
enum KeyspaceOf {
    Disk(fjall::Keyspace),
    Memory(u64),
}

/// Where the first write that failed is told of.
#[derive(Clone)]
struct Failure(Arc<watch::Sender<Option<Arc<str>>>>);

impl Default for Failure {
    fn default() -> Self {
        Failure(Arc::new(watch::Sender::new(None)))
    }
}

impl Failure {
    fn note<T>(&self, done: Result<T>) -> Result<T> {
        if let Err(error) = &done {
            self.0.send_if_modified(|why| why.is_none() && why.replace(error.to_string().into()).is_none());
        }
        done
    }
}

/// Writes that take effect together.
pub struct Batch(BatchOf, Failure);

enum BatchOf {
    Disk(fjall::OwnedWriteBatch),
    Memory(memory::Writes),
}

/// All keyspaces as they stood at one moment; holds back compaction while it lives.
pub struct View(ViewOf);

enum ViewOf {
    Disk(fjall::Snapshot),
    Memory(memory::Seen),
}

/// What only a program that mixes two stores can do.
const MIXED: &str = "a keyspace belongs to the store it was opened in";

/// Clears away what a creation left that was cut off, which fjall takes for somebody else's: its journal is made first,
/// then its marker, and only then the folder of its first keyspace.
///
/// Errors: I/O; damage: a keyspace, and no marker.
fn clear_unborn(path: &Path) -> Result<()> {
    let io = |error: io::Error| StoreError::from(fjall::Error::Io(error));
    if path.join("version").try_exists().map_err(io)? {
        return Ok(());
    }
    let in_use = match fs::read_dir(path.join("keyspaces")) {
        Ok(mut keyspaces) => keyspaces.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io(error)),
    };
    if in_use {
        return Err(StoreError { what: "the store has lost its version marker".to_owned(), damaged: true });
    }
    match fs::remove_file(path.join("0.jnl")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
        _ => Ok(()),
    }
}

impl Store {
    /// Opens the store in a folder, or makes one.
    ///
    /// Errors: I/O, damage, or a folder that another process has open.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Store> {
        clear_unborn(path)?;
        let open = || {
            world::give_way(FLUSH_NICE);
            Database::builder(path)
                .cache_size(options.cache_bytes)
                .max_journaling_size(JOURNAL_BYTES_MAX)
                .manual_journal_persist(true)
                .worker_threads(THREADS)
                .open()
        };
        // On Linux threads inherit what the one that starts them has.
        let database = world::apart(open, || {}).map_err(fjall::Error::Io)??;
        Ok(Store(Kind::Disk(database, options.memtable_bytes), Failure::default()))
    }

    /// Opens the store on a disk in memory.
    pub fn open_in_memory(disk: &MemoryStore) -> Store {
        Store(Kind::Memory(disk.open()), Failure::default())
    }

    /// Opens a keyspace, or makes an empty one.
    ///
    /// `name`: 1 to 255 bytes. `kind` counts only when it is made.
    pub fn keyspace(&self, name: &str, kind: KeyspaceKind) -> Result<Keyspace> {
        let options = |memtable_bytes| {
            // Vectors do not compress; the journal is flushed by the batch that wrote it.
            let apart = KvSeparationOptions::default()
                .separation_threshold(512)
                .compression(fjall::CompressionType::None);
            KeyspaceCreateOptions::default()
                .max_memtable_size(memtable_bytes)
                .manual_journal_persist(true)
                .with_kv_separation((kind == KeyspaceKind::LargeValues).then_some(apart))
        };
        Ok(Keyspace(match &self.0 {
            Kind::Disk(database, memtable_bytes) => {
                KeyspaceOf::Disk(database.keyspace(name, || options(*memtable_bytes))?)
            }
            Kind::Memory(store) => KeyspaceOf::Memory(store.keyspace(name)?),
        }))
    }

    /// Names of all keyspaces, ascending.
    pub fn keyspaces(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.0 {
            Kind::Disk(database, _) => {
                database.list_keyspace_names().iter().map(|name| name.to_string()).collect()
            }
            Kind::Memory(store) => store.keyspaces(),
        };
        names.sort();
        names
    }

    /// Drops a keyspace with all it holds, if there is one; views of it stay readable. Returns whether there
    /// was one.
    pub fn drop_keyspace(&self, name: &str) -> Result<bool> {
        let database = match &self.0 {
            Kind::Disk(database, _) => database,
            Kind::Memory(store) => return store.drop_keyspace(name),
        };
        if !database.keyspace_exists(name) {
            return Ok(false);
        }
        let keyspace = database.keyspace(name, KeyspaceCreateOptions::default)?;
        database.delete_keyspace(keyspace)?;
        Ok(true)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        // The journal's buffer goes to the operating system with each batch: a killed process loses nothing,
        // and a table never knows more than the journal.
        Batch(
            match &self.0 {
                Kind::Disk(database, _) => {
                    BatchOf::Disk(database.batch().durability(Some(PersistMode::Buffer)))
                }
                Kind::Memory(store) => BatchOf::Memory(memory::Writes::on(store)),
            },
            self.1.clone(),
        )
    }

    /// Everything as it stands now.
    pub fn view(&self) -> View {
        View(match &self.0 {
            Kind::Disk(database, _) => ViewOf::Disk(database.snapshot()),
            Kind::Memory(store) => ViewOf::Memory(store.view()),
        })
    }

    /// Makes every committed batch durable.
    pub fn persist(&self) -> Result<()> {
        self.1.note(match &self.0 {
            Kind::Disk(database, _) => database.persist(PersistMode::SyncAll).map_err(StoreError::from),
            Kind::Memory(store) => store.persist(),
        })
    }

    /// Why the store takes no more writes, once it does not: it must be opened anew.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.1.0.subscribe()
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> Result<u64> {
        match &self.0 {
            Kind::Disk(database, _) => Ok(database.disk_space()?),
            Kind::Memory(store) => Ok(store.bytes()),
        }
    }
}

impl Keyspace {
    /// Bytes on disk, without the journal.
    pub fn disk_bytes(&self) -> u64 {
        match &self.0 {
            KeyspaceOf::Disk(keyspace) => keyspace.disk_space(),
            KeyspaceOf::Memory(_) => 0,
        }
    }
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        match (&mut self.0, &keyspace.0) {
            (BatchOf::Disk(batch), KeyspaceOf::Disk(keyspace)) => {
                batch.insert(keyspace, key.as_ref(), value.as_ref());
            }
            (BatchOf::Memory(writes), KeyspaceOf::Memory(id)) => {
                writes.set(*id, key.as_ref(), Some(value.as_ref()));
            }
            _ => unreachable!("{MIXED}"),
        }
    }

    /// Removes a key.
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) {
        match (&mut self.0, &keyspace.0) {
            (BatchOf::Disk(batch), KeyspaceOf::Disk(keyspace)) => batch.remove(keyspace, key.as_ref()),
            (BatchOf::Memory(writes), KeyspaceOf::Memory(id)) => writes.set(*id, key.as_ref(), None),
            _ => unreachable!("{MIXED}"),
        }
    }

    /// Makes the batch take effect; may wait while flushing falls behind.
    ///
    /// Errors: the batch may or may not be there after a restart; the store takes no more writes.
    pub fn commit(self) -> Result<()> {
        self.1.note(match self.0 {
            BatchOf::Disk(batch) => batch.commit().map_err(StoreError::from),
            BatchOf::Memory(writes) => writes.commit(),
        })
    }
}

impl View {
    /// A key's value.
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        match (&self.0, &keyspace.0) {
            (ViewOf::Disk(view), KeyspaceOf::Disk(keyspace)) => {
                Ok(view.get(keyspace, key)?.map(Bytes::from_owner))
            }
            (ViewOf::Memory(view), KeyspaceOf::Memory(id)) => Ok(view.get(*id, key.as_ref())),
            _ => unreachable!("{MIXED}"),
        }
    }

    /// Keys that begin with `prefix`, ascending, with their values.
    pub fn prefix(
        &self,
        keyspace: &Keyspace,
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<(Bytes, Bytes)>> + use<> {
        match (&self.0, &keyspace.0) {
            (ViewOf::Disk(view), KeyspaceOf::Disk(keyspace)) => Rows::Disk(view.prefix(keyspace, prefix)),
            (ViewOf::Memory(view), KeyspaceOf::Memory(id)) => Rows::Memory(view.prefix(*id, prefix)),
            _ => unreachable!("{MIXED}"),
        }
    }

    /// Keys that begin with `prefix`, ascending; their values are not read.
    pub fn keys(&self, keyspace: &Keyspace, prefix: &[u8]) -> impl Iterator<Item = Result<Bytes>> + use<> {
        Keys(match (&self.0, &keyspace.0) {
            (ViewOf::Disk(view), KeyspaceOf::Disk(keyspace)) => Rows::Disk(view.prefix(keyspace, prefix)),
            (ViewOf::Memory(view), KeyspaceOf::Memory(id)) => Rows::Memory(view.prefix(*id, prefix)),
            _ => unreachable!("{MIXED}"),
        })
    }

    /// Keys within bounds, ascending, with their values.
    pub fn range(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> impl Iterator<Item = Result<(Bytes, Bytes)>> + use<> {
        match (&self.0, &keyspace.0) {
            (ViewOf::Disk(view), KeyspaceOf::Disk(keyspace)) => Rows::Disk(view.range(keyspace, bounds)),
            (ViewOf::Memory(view), KeyspaceOf::Memory(id)) => Rows::Memory(view.rows(*id, bounds)),
            _ => unreachable!("{MIXED}"),
        }
    }

    /// The last key within bounds, with its value.
    pub fn last(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> Result<Option<(Bytes, Bytes)>> {
        match (&self.0, &keyspace.0) {
            (ViewOf::Disk(view), KeyspaceOf::Disk(keyspace)) => {
                view.range(keyspace, bounds).next_back().map(pair).transpose()
            }
            (ViewOf::Memory(view), KeyspaceOf::Memory(id)) => Ok(view.rows(*id, bounds).last()),
            _ => unreachable!("{MIXED}"),
        }
    }
}

/// Rows of either store.
enum Rows {
    Disk(fjall::Iter),
    Memory(memory::Walk),
}

impl Iterator for Rows {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Rows::Disk(rows) => rows.next().map(pair),
            Rows::Memory(rows) => rows.next().map(Ok),
        }
    }
}

/// Their keys; the values of those on disk are not read.
struct Keys(Rows);

impl Iterator for Keys {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Rows::Disk(rows) => rows.next().map(|guard| Ok(Bytes::from_owner(guard.key()?))),
            Rows::Memory(rows) => rows.next().map(|(key, _)| Ok(key)),
        }
    }
}

fn pair(guard: fjall::Guard) -> Result<(Bytes, Bytes)> {
    let (key, value) = guard.into_inner()?;
    Ok((Bytes::from_owner(key), Bytes::from_owner(value)))
}
