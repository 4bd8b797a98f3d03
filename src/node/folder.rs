//! The data folder: opened whole, or what is damaged in it set aside so that the peers can make it whole.
//!
//! ```text
//! wal/ opens                            -> go on
//! wal/ damaged or gone, peers are known -> new incarnation; wal/ store/ index/ to damaged/; taken in again
//! wal/ damaged or gone, no peers        -> refuse, and say what is damaged
//! store/ damaged                        -> store/ index/ to damaged/; folded again from the log
//! ... and the log does not reach back   -> of a shard: only that replica is lost; of the catalog: as if wal/ were damaged
//! ```
//!
//! Invariants: nothing is set aside because of a lock, an I/O error or a newer format; a folder whose log was
//! set aside never again speaks under its old incarnation, whenever it is interrupted; nothing is deleted but
//! what an earlier damage left in `damaged/`.
//! Not here: damage found while the node runs, and entries lost in a log that opens (see [`Opened::lost`]).

use super::{
    NodeError,
    machine::{LogTasks, Machine},
};
use crate::{
    cluster::check_catalog,
    durable,
    identity::IdentityFile,
    model::{Kind, ReplicaId},
    store::{Store, StoreOptions},
};
use annal_wal::{ErrorKind, Log, Recovery};
use std::{
    collections::BTreeSet,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A node's data folder.
#[derive(Clone)]
pub(super) struct Folder {
    dir: PathBuf,
    /// Where log and store lie instead, in a simulation.
    machine: Option<Machine>,
}

/// A folder that is open.
pub(super) struct Opened {
    /// What `node.json` says, if there is one.
    pub(super) known: Option<IdentityFile>,
    pub(super) log: Log,
    pub(super) store: Store,
    /// Replicas of which live entries are lost in a log that opens: they must not vote.
    pub(super) lost: BTreeSet<ReplicaId>,
}

/// What is left of a node that lived in a folder.
enum Left {
    /// It goes on as who it was.
    Whole { log: Log, store: Store, lost: BTreeSet<ReplicaId> },
    /// It cannot, and why.
    Lost(String),
}

impl Folder {
    /// Makes the folder if there is none.
    pub(super) fn new(dir: &Path, machine: Option<Machine>) -> Result<Folder, NodeError> {
        let folder = Folder { dir: dir.to_owned(), machine };
        folder.tried(dir, durable::create_folder(dir))?;
        Ok(folder)
    }

    /// `node.json`.
    pub(super) fn identity(&self) -> PathBuf {
        self.dir.join("node.json")
    }

    /// Opens log and store and reads `node.json`; `own` is the address that peers dial, and no peer.
    pub(super) fn open(
        &self,
        options: annal_wal::Options,
        store_options: StoreOptions,
        own: &str,
    ) -> Result<Opened, NodeError> {
        let path = self.identity();
        let known = self.tried(&path, IdentityFile::read(&path))?;
        let Some(file) = known else {
            let (log, recovery) = self.open_wal(options)?;
            if !log.groups().is_empty() {
                return Err(NodeError::Ownerless(path));
            }
            return Ok(Opened {
                known: None,
                log,
                store: self.open_store(store_options)?,
                lost: lost(&recovery),
            });
        };
        let identity = file.get();
        let why = match identity.catalog_replica {
            // It was set aside before, maybe not to the end.
            None => None,
            Some(catalog) => {
                match self.open_left(options.clone(), store_options, catalog, identity.founding)? {
                    Left::Whole { log, store, lost } => {
                        return Ok(Opened { known: Some(file), log, store, lost });
                    }
                    Left::Lost(why) => Some(why),
                }
            }
        };
        if let Some(why) = why {
            if identity.peers.iter().all(|peer| peer == own) {
                return Err(NodeError::Damaged(why));
            }
            let peers = identity.peers.join(",");
            tracing::error!(why, peers, "the log is lost: set aside, and taken in anew through the peers");
            // First the new incarnation: whatever happens next, this folder is not taken for what it was.
            self.tried(&path, file.set_lost())?;
        }
        self.set_aside(&["wal", "store", "index"])?;
        let (log, _) = self.open_wal(options)?;
        Ok(Opened { known: Some(file), log, store: self.open_store(store_options)?, lost: BTreeSet::new() })
    }

    /// Opens what a node that lived here has left.
    fn open_left(
        &self,
        options: annal_wal::Options,
        store_options: StoreOptions,
        catalog: ReplicaId,
        founding: bool,
    ) -> Result<Left, NodeError> {
        let wal = self.dir.join("wal");
        let gone = self.machine.as_ref().map_or_else(|| !wal.exists(), |machine| machine.log.is_empty());
        if gone && !founding {
            return Ok(Left::Lost(format!("{} is gone", wal.display())));
        }
        let (log, recovery) = match self.open_wal(options) {
            Ok(opened) => opened,
            Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(Left::Lost(e.to_string())),
            Err(e) => return Err(e.into()),
        };
        let lost = lost(&recovery);
        // Without its catalog it cannot even learn what else it should hold.
        if lost.contains(&catalog) {
            return Ok(Left::Lost("entries of the catalog are damaged".to_owned()));
        }
        let store = self.open_store(store_options)?;
        match check_catalog(&log, &store, catalog) {
            Ok(()) => Ok(Left::Whole { log, store, lost }),
            Err(e) if e.kind() == Kind::Corrupt => Ok(Left::Lost(format!("of the catalog: {e}"))),
            Err(e) => Err(e.into()),
        }
    }

    fn open_wal(&self, options: annal_wal::Options) -> Result<(Log, Recovery), annal_wal::Error> {
        match &self.machine {
            None => Log::open(&self.dir.join("wal"), options),
            Some(machine) => Log::open_simulated(&machine.log, options, Arc::new(LogTasks)),
        }
    }

    /// Opens the store; one that is damaged is set aside, and an empty one opened.
    fn open_store(&self, store_options: StoreOptions) -> Result<Store, NodeError> {
        if let Some(machine) = &self.machine {
            return Ok(Store::open_in_memory(&machine.store));
        }
        let dir = self.dir.join("store");
        let open = || catch_unwind(AssertUnwindSafe(|| Store::open(&dir, store_options)));
        let why = match open() {
            Ok(Ok(store)) => return Ok(store),
            Ok(Err(error)) if error.is_damage() => error.to_string(),
            Ok(Err(error)) => return Err(error.into()),
            // It reads its files without distrust.
            Err(_) => "opening it panicked".to_owned(),
        };
        tracing::error!(why, "the store is damaged: set aside, and folded again from the log");
        self.set_aside(&["store", "index"])?;
        Ok(Store::open(&dir, store_options)?)
    }

    /// Moves parts of the folder to `damaged/`, in the place of older ones.
    fn set_aside(&self, parts: &[&str]) -> Result<(), NodeError> {
        let damaged = self.dir.join("damaged");
        if let Some(machine) = &self.machine {
            machine.log.wipe();
            machine.store.wipe();
        }
        for part in parts {
            let (from, to) = (self.dir.join(part), damaged.join(part));
            if !from.exists() {
                continue;
            }
            self.tried(&damaged, fs::create_dir_all(&damaged))?;
            if to.exists() {
                self.tried(&to, fs::remove_dir_all(&to))?;
            }
            self.tried(&from, fs::rename(&from, &to))?;
        }
        self.tried(&self.dir, fs::File::open(&self.dir).and_then(|dir| dir.sync_all()))
    }

    fn tried<T>(&self, path: &Path, outcome: io::Result<T>) -> Result<T, NodeError> {
        outcome.map_err(|source| NodeError::File { path: path.to_owned(), source })
    }
}

/// Replicas that lost live entries; says which and why. Damaged history below what is live is no loss.
fn lost(recovery: &Recovery) -> BTreeSet<ReplicaId> {
    let live = recovery.damage.iter().filter(|damage| damage.index.is_some());
    let groups = live.filter_map(|damage| {
        let group = damage.group?;
        tracing::error!(?damage, "a replica lost entries of its log");
        Some(ReplicaId(group.0.into()))
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Identity, Incarnation},
        store::KeyspaceKind,
    };
    use annal_wal::{Entry, GroupId, LogId, LogIndex, Term};
    use tempfile::TempDir;

    const STORE: StoreOptions = StoreOptions { cache_bytes: 1 << 20, memtable_bytes: 1 << 20 };
    const OWN: &str = "127.0.0.1:1";

    fn options() -> annal_wal::Options {
        annal_wal::Options { segment_bytes: 1 << 20, free_bytes_min: 0, ..annal_wal::Options::default() }
    }

    /// A folder with a log of a few entries, a store and an index, of a node that knows `peers`.
    async fn lived_in(peers: &[&str]) -> (TempDir, Folder, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), None).unwrap();
        let log = folder.open(options(), STORE, OWN).unwrap().log;
        let group = log.create_group(GroupId(3)).await.unwrap();
        for index in 1..=50 {
            let id = LogId { term: Term(1), leader: 1, index: LogIndex(index) };
            let (done, flushed) = tokio::sync::oneshot::channel();
            let entry = Entry { id, payload: vec![7; 500].into() };
            group.append(vec![entry], |outcome| done.send(outcome).unwrap()).await.unwrap();
            flushed.await.unwrap().unwrap();
        }
        // As a crash leaves it: a log that was closed in order is sealed, and not read when it is opened.
        copy(&dir.path().join("wal"), &dir.path().join("crashed"));
        log.shutdown().await.unwrap();
        drop((log, group));
        fs::remove_dir_all(dir.path().join("wal")).unwrap();
        fs::rename(dir.path().join("crashed"), dir.path().join("wal")).unwrap();
        let store = folder.open_store(STORE).unwrap();
        let keyspace = store.keyspace("x", KeyspaceKind::Plain).unwrap();
        let mut batch = store.batch();
        batch.put(&keyspace, b"k", b"v");
        batch.commit().unwrap();
        store.persist().unwrap();
        fs::create_dir_all(dir.path().join("index/3")).unwrap();
        let peers = peers.iter().map(|p| p.to_string()).collect();
        let member = Identity::member("c".into(), "n".into(), Incarnation::fresh(), ReplicaId(3), peers);
        IdentityFile::create(&folder.identity(), member.clone()).unwrap();
        (dir, folder, member)
    }

    /// Flips a byte in the middle of the first segment's data.
    fn flip(dir: &Path) {
        let mut segments: Vec<PathBuf> =
            walk(&dir.join("wal")).into_iter().filter(|p| is_segment(p)).collect();
        segments.sort();
        let path = &segments[0];
        let mut bytes = fs::read(path).unwrap();
        bytes[9_000] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    fn is_segment(path: &Path) -> bool {
        fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"okw"))
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            if from.is_dir() { copy(&from, &to) } else { _ = fs::copy(from, to).unwrap() }
        }
    }

    fn walk(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
    }

    #[tokio::test]
    async fn a_good_folder_is_opened_as_it_is() {
        let (_dir, folder, member) = lived_in(&["127.0.0.1:2"]).await;
        let opened = folder.open(options(), STORE, OWN).unwrap();
        assert_eq!(opened.known.unwrap().get(), member);
        assert_eq!(opened.log.groups(), [GroupId(3)]);
        assert!(opened.lost.is_empty());
        opened.log.shutdown().await.unwrap();
        assert!(opened.store.keyspaces().contains(&"x".to_owned()));
        assert!(!folder.dir.join("damaged").exists());
    }

    #[tokio::test]
    async fn a_damaged_log_is_set_aside_only_if_peers_are_known() {
        let (dir, folder, member) = lived_in(&[OWN]).await;
        flip(dir.path());
        match folder.open(options(), STORE, OWN) {
            Err(NodeError::Damaged(why)) => assert!(why.contains("is damaged at offset"), "{why}"),
            other => panic!("{:?}", other.map(|o| o.lost)),
        }
        assert!(!dir.path().join("damaged").exists());

        let file = IdentityFile::read(&folder.identity()).unwrap().unwrap();
        file.set_peers(vec![OWN.into(), "127.0.0.1:2".into()]).unwrap();
        let opened = folder.open(options(), STORE, OWN).unwrap();
        let now = opened.known.unwrap().get();
        assert_ne!(now.incarnation, member.incarnation);
        assert_eq!((now.cluster_id.as_str(), now.node.as_str(), now.catalog_replica), ("c", "n", None));
        assert!(opened.log.groups().is_empty());
        opened.log.shutdown().await.unwrap();
        for part in ["wal", "store", "index"] {
            assert!(dir.path().join("damaged").join(part).exists(), "{part}");
        }
        assert!(opened.store.keyspaces().is_empty());
        drop(opened.store);
        // Interrupted before it was taken in again: what there is by now is set aside too, the older one goes.
        fs::write(dir.path().join("store/later"), b"x").unwrap();
        let again = folder.open(options(), STORE, OWN).unwrap();
        assert_eq!(again.known.unwrap().get(), now);
        again.log.shutdown().await.unwrap();
        assert!(dir.path().join("damaged/store/later").exists());
    }

    #[tokio::test]
    async fn a_log_that_is_gone_is_no_new_beginning() {
        let (dir, folder, _) = lived_in(&["127.0.0.1:2"]).await;
        fs::remove_dir_all(dir.path().join("wal")).unwrap();
        let opened = folder.open(options(), STORE, OWN).unwrap();
        assert_eq!(opened.known.unwrap().get().catalog_replica, None);
        opened.log.shutdown().await.unwrap();

        let (dir, folder, _) = lived_in(&[]).await;
        fs::remove_dir_all(dir.path().join("wal")).unwrap();
        assert!(matches!(folder.open(options(), STORE, OWN), Err(NodeError::Damaged(_))));
    }

    #[tokio::test]
    async fn a_log_without_an_owner_and_a_locked_one_are_left_alone() {
        let (dir, folder, _) = lived_in(&["127.0.0.1:2"]).await;
        let Opened { log: held, store, .. } = folder.open(options(), STORE, OWN).unwrap();
        drop(store);
        assert!(matches!(folder.open(options(), STORE, OWN), Err(NodeError::Log(_))));
        held.shutdown().await.unwrap();
        fs::remove_file(folder.identity()).unwrap();
        assert!(matches!(folder.open(options(), STORE, OWN), Err(NodeError::Ownerless(_))));
        assert!(!dir.path().join("damaged").exists());
    }

    #[tokio::test]
    async fn a_damaged_store_is_set_aside_and_the_log_kept() {
        for (name, harm) in [("truncate", truncate as fn(&Path)), ("scramble", scramble)] {
            let (dir, folder, member) = lived_in(&[]).await;
            let mut files = walk(&dir.path().join("store"));
            files.retain(|p| !p.ends_with("lock") && fs::metadata(p).unwrap().len() > 0);
            files.iter().for_each(|file| harm(file));
            let store = folder.open_store(STORE).unwrap();
            assert!(store.keyspaces().is_empty());
            assert!(dir.path().join("damaged/store").exists(), "{name}");
            assert!(!dir.path().join("damaged/wal").exists());
            drop(store);
            let opened = folder.open(options(), STORE, OWN).unwrap();
            assert_eq!(opened.known.unwrap().get(), member);
            opened.log.shutdown().await.unwrap();
        }
    }

    /// The store is gone and the catalog's history with it: it cannot be folded again.
    #[tokio::test]
    async fn a_catalog_that_the_log_does_not_reach_back_to_is_fetched_from_the_peers() {
        for (peers, taken_in_again) in [(&["127.0.0.1:2"][..], true), (&[], false)] {
            let (dir, folder, member) = lived_in(peers).await;
            let opened = folder.open(options(), STORE, OWN).unwrap();
            // As a snapshot leaves it.
            let group = opened.log.group(GroupId(3)).unwrap();
            group.purge(LogId { term: Term(1), leader: 1, index: LogIndex(60) }).await.unwrap();
            opened.log.shutdown().await.unwrap();
            drop((opened, group));
            match folder.open(options(), STORE, OWN) {
                Ok(opened) => {
                    let now = opened.known.unwrap().get();
                    assert!(taken_in_again && now.incarnation != member.incarnation);
                    assert!(now.catalog_replica.is_none() && opened.log.groups().is_empty());
                    assert!(opened.store.keyspaces().is_empty() && dir.path().join("damaged/wal").exists());
                }
                Err(NodeError::Damaged(why)) => {
                    assert!(!taken_in_again && why.contains("catalog"), "{why}");
                    assert!(!dir.path().join("damaged").exists());
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    fn truncate(path: &Path) {
        fs::File::options().write(true).open(path).unwrap().set_len(1).unwrap();
    }

    fn scramble(path: &Path) {
        let bytes = fs::read(path).unwrap().iter().map(|b| b ^ 0x55).collect::<Vec<_>>();
        fs::write(path, bytes).unwrap();
    }
}
