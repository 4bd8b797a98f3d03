//! `node.json`: who the owner of a data folder is, and where it last knew its peers.
//!
//! Invariants: the file is written whole or not at all; an incarnation stands for one filling of a data folder
//! and never comes back, so that a node that forgot what it promised is not taken for the one that promised.

use crate::{durable, model::ReplicaId, world};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Version of the file's form.
const FORMAT: u32 = 2;

/// One filling of a data folder: new for each empty one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(String);

impl Incarnation {
    /// One that never was before.
    pub fn fresh() -> Incarnation {
        Incarnation(world::unique().to_string())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    format: u32,
    /// The cluster this node belongs to.
    pub cluster_id: String,
    /// The name it has there.
    pub node: String,
    /// Which filling of the folder this is.
    pub incarnation: Incarnation,
    /// Its replica of group 0. None: it lost what it had and has to be taken in again.
    pub catalog_replica: Option<ReplicaId>,
    /// It founded the cluster, and group 0 may not have been founded yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub founding: bool,
    /// Addresses of the other nodes, last known.
    pub peers: Vec<String>,
}

impl Identity {
    /// Of a node that founds a cluster.
    pub fn founder(cluster_id: String, node: String, incarnation: Incarnation) -> Identity {
        let (catalog_replica, founding, peers) = (Some(ReplicaId(1)), true, Vec::new());
        Identity { format: FORMAT, cluster_id, node, incarnation, catalog_replica, founding, peers }
    }

    /// Of a node that was taken in.
    pub fn member(
        cluster_id: String,
        node: String,
        incarnation: Incarnation,
        catalog_replica: ReplicaId,
        peers: Vec<String>,
    ) -> Identity {
        let (catalog_replica, founding) = (Some(catalog_replica), false);
        Identity { format: FORMAT, cluster_id, node, incarnation, catalog_replica, founding, peers }
    }
}

/// The file, and what it says; cheap to clone. Its methods wait for the disk.
#[derive(Clone)]
pub struct IdentityFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    identity: Mutex<Identity>,
}

impl IdentityFile {
    /// Reads the file; None if there is none.
    ///
    /// Errors: I/O, or a file of another form.
    pub fn read(path: &Path) -> io::Result<Option<IdentityFile>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let known: serde_json::Value = serde_json::from_slice(&bytes)?;
        if known["format"] != FORMAT {
            let why = format!("format {}, this version reads {FORMAT}", known["format"]);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Some(IdentityFile::over(path, serde_json::from_value(known)?)))
    }

    /// Writes the file for the first time, or over another identity.
    pub fn create(path: &Path, identity: Identity) -> io::Result<IdentityFile> {
        write(path, &identity)?;
        Ok(IdentityFile::over(path, identity))
    }

    fn over(path: &Path, identity: Identity) -> IdentityFile {
        IdentityFile { inner: Arc::new(Inner { path: path.to_owned(), identity: Mutex::new(identity) }) }
    }

    /// What it says now.
    pub fn get(&self) -> Identity {
        self.inner.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes where the other nodes are now.
    pub fn set_peers(&self, mut peers: Vec<String>) -> io::Result<()> {
        peers.sort();
        peers.dedup();
        self.change(|identity| identity.peers = peers)
    }

    /// Notes that group 0 has its founder: it is never founded again from this folder.
    pub fn set_founded(&self) -> io::Result<()> {
        self.change(|identity| identity.founding = false)
    }

    /// Notes that what this folder held is lost: a new incarnation, that has to be taken in again.
    pub fn set_lost(&self) -> io::Result<()> {
        self.change(|identity| {
            identity.incarnation = Incarnation::fresh();
            identity.catalog_replica = None;
            identity.founding = false;
        })
    }

    /// Notes that it was taken in again.
    pub fn set_taken_in(&self, catalog_replica: ReplicaId, peers: Vec<String>) -> io::Result<()> {
        self.change(|identity| {
            identity.catalog_replica = Some(catalog_replica);
            identity.peers = peers;
        })
    }

    /// Writes only if something is different.
    fn change(&self, with: impl FnOnce(&mut Identity)) -> io::Result<()> {
        let mut current = self.inner.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = current.clone();
        with(&mut changed);
        if changed != *current {
            write(&self.inner.path, &changed)?;
            *current = changed;
        }
        Ok(())
    }
}

/// Writes the file whole or not at all.
fn write(path: &Path, identity: &Identity) -> io::Result<()> {
    durable::write(path, &serde_json::to_vec_pretty(identity)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        assert!(IdentityFile::read(&path).unwrap().is_none());
        let founder = Identity::founder("c".into(), "n".into(), Incarnation::fresh());
        let file = IdentityFile::create(&path, founder.clone()).unwrap();
        let read = || IdentityFile::read(&path).unwrap().unwrap().get();
        assert_eq!(read(), founder);
        file.set_founded().unwrap();
        file.set_peers(vec!["b:1".into(), "a:1".into(), "b:1".into()]).unwrap();
        let now = read();
        assert_eq!((now.founding, now.peers), (false, vec!["a:1".into(), "b:1".into()]));
        // Nothing is written when nothing changed.
        fs::remove_file(&path).unwrap();
        file.set_peers(vec!["b:1".into(), "a:1".into()]).unwrap();
        assert!(!path.exists());
        file.set_lost().unwrap();
        let lost = read();
        assert_ne!(lost.incarnation, founder.incarnation);
        assert_eq!((lost.catalog_replica, lost.node.as_str(), lost.peers.len()), (None, "n", 2));
        file.set_taken_in(ReplicaId(7), vec!["b:1".into()]).unwrap();
        assert_eq!(read().catalog_replica, Some(ReplicaId(7)));
    }

    #[test]
    fn another_form_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        fs::write(&path, r#"{"format":1,"cluster_id":"c","node":"n"}"#).unwrap();
        assert!(IdentityFile::read(&path).err().unwrap().to_string().contains("format 1"));
        fs::write(&path, "{").unwrap();
        assert!(IdentityFile::read(&path).is_err());
    }
}
