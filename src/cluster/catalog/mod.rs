//! Group 0: which nodes and collections there are, and which groups and replicas hold their shards.
//!
//! A state machine like a shard, folded from its own log; each applied batch is one batch in the store, and is
//! published to whoever watches. What the commands do is in `state`, pure.
//! Deliberately absent: doing what the catalog says (see `shards`, `transfer`, `steward`).

mod command;
mod intents;
mod record;
mod region;
mod state;

pub(super) use command::CatalogCommand;
pub(super) use intents::Intent;
pub(super) use record::{CollectionRecord, GroupRecord, NodeRecord, NodeState, Phase, ReplicaRecord};
pub(super) use region::{Follow, newest};
pub use region::{HomeRecord, Loss, Part, RegionChange, RegionRecord, ShardLoss, homes_of};
pub(super) use state::{CatalogState, EXISTS, MISSING, STALE};

use super::NodeName;
use crate::{
    machine::{Bookmark, MachineError, Outcome, StateMachine},
    model::{CollectionId, Position},
    store::{Keyspace, KeyspaceKind, Store, StoreError},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// The catalog in the store: folds group 0's log.
pub(super) struct Catalog {
    store: Store,
    keyspace: Keyspace,
    state: watch::Sender<Arc<CatalogState>>,
    applied: Mutex<Applied>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Applied {
    position: Position,
    bookmark: Option<Vec<u8>>,
}

/// All of the catalog but its collections, which have a record each.
#[derive(Default, Serialize, Deserialize)]
struct Rest {
    nodes: BTreeMap<NodeName, NodeRecord>,
    catalog: GroupRecord,
    aliases: BTreeMap<String, String>,
    counters: state::Counters,
    #[serde(default)]
    intents: intents::Intents,
}

const APPLIED: &[u8] = b"applied";
const REST: &[u8] = b"rest";
const COLLECTION: &[u8] = b"collection/";
const DROPPING: &[u8] = b"dropping/";
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
        let rest = match view.get(&keyspace, REST)? {
            Some(bytes) => parse("rest", &bytes)?,
            None => Rest::default(),
        };
        let mut state = CatalogState::from(rest);
        for pair in view.prefix(&keyspace, COLLECTION) {
            let record: CollectionRecord = parse("collection", &pair?.1)?;
            state.collections.insert(record.name.clone(), Arc::new(record));
        }
        for pair in view.prefix(&keyspace, DROPPING) {
            let (key, json) = pair?;
            let record: CollectionRecord = parse("dropped collection", &json)?;
            let number = key[DROPPING.len()..].try_into().map(u64::from_be_bytes);
            state.dropping.insert(CollectionId(number.unwrap_or(record.id.0)), Arc::new(record));
        }
        let state = watch::Sender::new(Arc::new(state));
        Ok(Catalog { store, keyspace, state, applied: Mutex::new(applied) })
    }

    /// The catalog now.
    pub(super) fn state(&self) -> Arc<CatalogState> {
        self.state.borrow().clone()
    }

    /// The catalog, and every change of it.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<CatalogState>> {
        self.state.subscribe()
    }

    fn applied(&self) -> std::sync::MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the difference between two states and where they stand, atomically, and publishes the new one.
    fn publish(&self, old: &CatalogState, new: CatalogState, applied: Applied) -> Result<(), StoreError> {
        let mut batch = self.store.batch();
        let (before, after) = (records(old), records(&new));
        for gone in before.keys().filter(|key| !after.contains_key(*key)) {
            batch.delete(&self.keyspace, gone);
        }
        for (key, record) in after {
            if before.get(&key) != Some(&record) {
                batch.put(&self.keyspace, key, to_json(&**record));
            }
        }
        batch.put(&self.keyspace, REST, to_json(&Rest::from(&new)));
        batch.put(&self.keyspace, APPLIED, to_json(&applied));
        if let Some(bookmark) = &applied.bookmark
            && applied.position.0 / MARK_EVERY > self.applied().position.0 / MARK_EVERY
        {
            batch.put(&self.keyspace, [MARK, &applied.position.0.to_be_bytes()].concat(), bookmark);
        }
        batch.commit()?;
        // Whoever holds where it stands finds the state of it.
        let mut standing = self.applied();
        *standing = applied;
        self.state.send_replace(Arc::new(new));
        Ok(())
    }
}

/// The records of all collections by their keys in the store.
fn records(state: &CatalogState) -> BTreeMap<Vec<u8>, &Arc<CollectionRecord>> {
    let key = |prefix: &[u8], id: CollectionId| [prefix, &id.0.to_be_bytes()].concat();
    let collections = state.collections.values().map(|c| (key(COLLECTION, c.id), c));
    collections.chain(state.dropping.iter().map(|(id, c)| (key(DROPPING, *id), c))).collect()
}

impl From<&CatalogState> for Rest {
    fn from(state: &CatalogState) -> Self {
        Rest {
            nodes: state.nodes.clone(),
            catalog: state.catalog.clone(),
            aliases: state.aliases.clone(),
            counters: state.counters,
            intents: state.intents.clone(),
        }
    }
}

impl From<Rest> for CatalogState {
    fn from(rest: Rest) -> Self {
        let Rest { nodes, catalog, aliases, counters, intents } = rest;
        CatalogState { nodes, catalog, aliases, counters, intents, ..CatalogState::default() }
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
            let (command, intent) = CatalogCommand::decode(&bytes)
                .map_err(|source| MachineError::Command { after: position, source })?;
            position = position.next();
            outcomes.push(Outcome { position, verdict: new.make(command, intent, position) });
        }
        let applied = Applied { position, bookmark: Some(bookmark.0.into()) };
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
        let (applied, state) = {
            let standing = self.applied();
            (standing.clone(), self.state())
        };
        let body = to_json(&(applied, &*state));
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
    use crate::store::MemoryStore;

    /// A replica that installs a snapshot passes over what lies at or below its bookmark: that must be in its state.
    #[test]
    fn a_snapshot_holds_what_its_bookmark_says() {
        const CHANGES: u64 = 20_000;
        let catalog = Catalog::open(Store::open_in_memory(&MemoryStore::default()));
        let catalog = catalog.expect("an empty store holds nothing damaged");
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for n in 1..=CHANGES {
                    let old = catalog.state();
                    let mut new = CatalogState::clone(&old);
                    new.aliases.insert("n".to_owned(), n.to_string());
                    let applied = Applied { position: Position(n), bookmark: None };
                    catalog.publish(&old, new, applied).expect("memory does not fail");
                }
            });
            while !writing.is_finished() {
                let mut bytes = Vec::new();
                catalog.write_snapshot(&mut bytes).expect("memory does not fail");
                let (applied, state): (Applied, CatalogState) =
                    parse("snapshot", &bytes[4..]).expect("written just now");
                let told = state.aliases.get("n").map_or(0, |n| n.parse().expect("a number was put there"));
                assert_eq!(applied.position, Position(told));
            }
        });
        assert_eq!(catalog.position(), Position(CHANGES));
    }
}
