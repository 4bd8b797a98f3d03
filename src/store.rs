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
//! Not here: `clear` (it pins journals; a keyspace is dropped instead), transactions, reverse iteration.
//! Source: fjall 3.1 (`docs.rs/fjall`); LSM trees with values apart, WiscKey (Lu et al., FAST 2016).

use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable};
use std::{ops::Bound, path::Path};

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
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { cache_bytes: 256 << 20 }
    }
}

/// Journals kept for recovery, in bytes: bounds the time to reopen.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
/// A keyspace's newest writes that are held in memory before they are flushed, in bytes.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Threads that flush and compact.
const THREADS: usize = 2;

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
pub struct Store(Database);

/// A set of keys with one writer; cheap to clone.
#[derive(Clone)]
pub struct Keyspace(fjall::Keyspace);

/// Writes that take effect together.
pub struct Batch(fjall::OwnedWriteBatch);

/// All keyspaces as they stood at one moment; holds back compaction while it lives.
pub struct View(fjall::Snapshot);

impl Store {
    /// Opens the store in a folder, or makes one.
    ///
    /// Errors: I/O, damage, or a folder that another process has open.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Store> {
        let database = Database::builder(path)
            .cache_size(options.cache_bytes)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .manual_journal_persist(true)
            .worker_threads(THREADS)
            .open()?;
        Ok(Store(database))
    }

    /// Opens a keyspace, or makes an empty one.
    ///
    /// `name`: 1 to 255 bytes. `kind` counts only when it is made.
    pub fn keyspace(&self, name: &str, kind: KeyspaceKind) -> Result<Keyspace> {
        let options = || {
            // Vectors do not compress; the journal is flushed by the batch that wrote it.
            let apart = KvSeparationOptions::default()
                .separation_threshold(512)
                .compression(fjall::CompressionType::None);
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                .manual_journal_persist(true)
                .with_kv_separation((kind == KeyspaceKind::LargeValues).then_some(apart))
        };
        Ok(Keyspace(self.0.keyspace(name, options)?))
    }

    /// Names of all keyspaces, ascending.
    pub fn keyspaces(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.0.list_keyspace_names().iter().map(|name| name.to_string()).collect();
        names.sort();
        names
    }

    /// Drops a keyspace with all it holds, if there is one; views of it stay readable. Returns whether there
    /// was one.
    pub fn drop_keyspace(&self, name: &str) -> Result<bool> {
        if !self.0.keyspace_exists(name) {
            return Ok(false);
        }
        let keyspace = self.0.keyspace(name, KeyspaceCreateOptions::default)?;
        self.0.delete_keyspace(keyspace)?;
        Ok(true)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        // The journal's buffer goes to the operating system with each batch: a killed process loses nothing,
        // and a table never knows more than the journal.
        Batch(self.0.batch().durability(Some(PersistMode::Buffer)))
    }

    /// Everything as it stands now.
    pub fn view(&self) -> View {
        View(self.0.snapshot())
    }

    /// Makes every committed batch durable.
    pub fn persist(&self) -> Result<()> {
        Ok(self.0.persist(PersistMode::SyncAll)?)
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(self.0.disk_space()?)
    }
}

impl Keyspace {
    /// Bytes on disk, without the journal.
    pub fn disk_bytes(&self) -> u64 {
        self.0.disk_space()
    }
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.0.insert(&keyspace.0, key.as_ref(), value.as_ref());
    }

    /// Removes a key.
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) {
        self.0.remove(&keyspace.0, key.as_ref());
    }

    /// Makes the batch take effect; may wait while flushing falls behind.
    ///
    /// Errors: the batch may or may not be there after a restart; the store takes no more writes.
    pub fn commit(self) -> Result<()> {
        Ok(self.0.commit()?)
    }
}

impl View {
    /// A key's value.
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        Ok(self.0.get(&keyspace.0, key)?.map(Bytes::from_owner))
    }

    /// Keys that begin with `prefix`, ascending, with their values.
    pub fn prefix(
        &self,
        keyspace: &Keyspace,
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<(Bytes, Bytes)>> + use<> {
        self.0.prefix(&keyspace.0, prefix).map(pair)
    }

    /// Keys that begin with `prefix`, ascending; their values are not read.
    pub fn keys(&self, keyspace: &Keyspace, prefix: &[u8]) -> impl Iterator<Item = Result<Bytes>> + use<> {
        self.0.prefix(&keyspace.0, prefix).map(|guard| Ok(Bytes::from_owner(guard.key()?)))
    }

    /// Keys within bounds, ascending, with their values.
    pub fn range(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> impl Iterator<Item = Result<(Bytes, Bytes)>> + use<> {
        self.0.range(&keyspace.0, bounds).map(pair)
    }

    /// The last key within bounds, with its value.
    pub fn last(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> Result<Option<(Bytes, Bytes)>> {
        self.0.range(&keyspace.0, bounds).next_back().map(pair).transpose()
    }
}

fn pair(guard: fjall::Guard) -> Result<(Bytes, Bytes)> {
    let (key, value) = guard.into_inner()?;
    Ok((Bytes::from_owner(key), Bytes::from_owner(value)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_batch_is_seen_whole_and_a_view_stands_still() {
        let folder = tempfile::tempdir().unwrap();
        let big = vec![7u8; 4096];
        {
            let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
            let a = store.keyspace("a", KeyspaceKind::Plain).unwrap();
            let b = store.keyspace("b", KeyspaceKind::LargeValues).unwrap();
            let before = store.view();
            let mut batch = store.batch();
            batch.put(&a, b"k1", b"v1");
            batch.put(&a, b"k2", b"v2");
            batch.put(&b, b"big", &big);
            batch.commit().unwrap();
            assert_eq!(before.get(&a, b"k1").unwrap(), None);
            let after = store.view();
            let mut batch = store.batch();
            batch.delete(&a, b"k1");
            batch.commit().unwrap();
            assert_eq!(after.get(&a, b"k1").unwrap().as_deref(), Some(&b"v1"[..]));
            let keys: Vec<_> = after.prefix(&a, b"k").map(|e| e.unwrap().0).collect();
            assert_eq!(keys, [&b"k1"[..], b"k2"]);
            assert_eq!(after.keys(&a, b"k").map(Result::unwrap).collect::<Vec<_>>(), keys);
            let above = (Bound::Excluded(b"k1".to_vec()), Bound::Unbounded);
            assert_eq!(store.view().range(&a, above.clone()).count(), 1);
            assert_eq!(after.last(&a, above).unwrap().unwrap().0, &b"k2"[..]);
            store.persist().unwrap();
        }
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let b = store.keyspace("b", KeyspaceKind::LargeValues).unwrap();
        assert_eq!(store.view().get(&b, b"big").unwrap().unwrap(), big);
        assert_eq!(store.keyspaces(), ["a", "b"]);
        assert!(store.drop_keyspace("a").unwrap());
        assert!(!store.drop_keyspace("a").unwrap());
        assert_eq!(store.keyspaces(), ["b"]);
    }
}
