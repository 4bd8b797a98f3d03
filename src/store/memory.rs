//! The store's twin for simulations: the same promises in memory, and the losses of a power cut.
//!
//! ```text
//!   batches of one keyspace  | durable: up to the last persist | since: a power cut keeps some of the first |
//! ```
//!
//! Invariants: a batch is seen whole or not at all; a power cut takes nothing that was persisted, and of what came
//! later it keeps a prefix, keyspace by keyspace; a process that ends loses nothing; a handle of an earlier life
//! fails. Keyspaces are made and dropped durably.
//! Not here: damage, a full disk.

use super::StoreError;
use bytes::Bytes;
use imbl::OrdMap;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Rows = OrdMap<Bytes, Bytes>;
type Row = (Bytes, Bytes);
/// What one batch did to one keyspace: a value, or none.
type Change = Vec<(Bytes, Option<Bytes>)>;
type Result<T> = std::result::Result<T, StoreError>;

/// The disk under a store in memory; clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    life: u64,
    next: u64,
    names: BTreeMap<String, u64>,
    now: OrdMap<u64, Rows>,
    kept: BTreeMap<u64, Kept>,
    /// Persists until one fails.
    failing_in: Option<u64>,
    /// Steps until the power fails.
    cut_in: Option<u64>,
    /// The power has failed.
    dead: bool,
}

#[derive(Default)]
struct Kept {
    durable: Rows,
    since: Vec<Change>,
}

impl MemoryStore {
    /// An empty disk.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power fails and returns. `keep` says of how many batches that were not persisted a keyspace has so many of the
    /// first; it is asked once a keyspace.
    pub fn crash(&self, mut keep: impl FnMut(usize) -> usize) {
        let mut state = self.state();
        state.begin_life();
        let State { now, kept, .. } = &mut *state;
        for (id, Kept { durable, since }) in kept {
            since.truncate(keep(since.len()));
            since.drain(..).for_each(|change| apply(durable, change));
            now.insert(*id, durable.clone());
        }
    }

    /// The process ends and starts again, the machine does not.
    pub fn restart_process(&self) {
        self.state().begin_life();
    }

    /// Everything is gone: an empty disk.
    pub fn wipe(&self) {
        let mut state = self.state();
        *state = State { life: state.life + 1, next: state.next, ..State::default() };
    }

    /// Lets the persist after the next `after` ones fail.
    pub fn fail_persist(&self, after: u64) {
        self.state().failing_in = Some(after);
    }

    /// Lets the power fail after so many steps: between two batches, say, of one install. What is then on the disk,
    /// `crash` says.
    pub fn cut_power_after(&self, steps: u64) {
        self.state().cut_in = Some(steps);
    }

    /// Whether the power failed by itself.
    pub fn has_lost_power(&self) -> bool {
        self.state().dead
    }

    pub(super) fn open(&self) -> Open {
        Open { life: self.state().life, disk: self.clone() }
    }
}

impl State {
    /// Handles of the life before are dead, and so is what was to go wrong in it.
    fn begin_life(&mut self) {
        self.life += 1;
        self.failing_in = None;
        self.cut_in = None;
        self.dead = false;
    }
}

fn apply(rows: &mut Rows, change: Change) {
    for (key, value) in change {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

fn failed(what: &str) -> StoreError {
    StoreError { what: what.to_owned(), damaged: false }
}

/// A store in memory, as one life of the node sees it.
#[derive(Clone)]
pub(super) struct Open {
    disk: MemoryStore,
    life: u64,
}

impl Open {
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life && !state.dead { Ok(state) } else { Err(failed("the power failed")) }
    }

    /// A step that changes the disk, if the power lasts.
    fn step(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state()?;
        if let Some(left) = &mut state.cut_in {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => {
                    state.dead = true;
                    return Err(failed("the power failed"));
                }
            }
        }
        Ok(state)
    }

    pub(super) fn keyspace(&self, name: &str) -> Result<u64> {
        let mut state = self.state()?;
        if let Some(id) = state.names.get(name) {
            return Ok(*id);
        }
        drop(state);
        state = self.step()?;
        state.next += 1;
        let id = state.next;
        state.names.insert(name.to_owned(), id);
        state.now.insert(id, Rows::new());
        state.kept.insert(id, Kept::default());
        Ok(id)
    }

    pub(super) fn keyspaces(&self) -> Vec<String> {
        self.disk.state().names.keys().cloned().collect()
    }

    pub(super) fn drop_keyspace(&self, name: &str) -> Result<bool> {
        if !self.state()?.names.contains_key(name) {
            return Ok(false);
        }
        let mut state = self.step()?;
        let Some(id) = state.names.remove(name) else { return Ok(false) };
        state.now.remove(&id);
        state.kept.remove(&id);
        Ok(true)
    }

    pub(super) fn view(&self) -> Seen {
        Seen(self.disk.state().now.clone())
    }

    pub(super) fn persist(&self) -> Result<()> {
        let mut state = self.step()?;
        if let Some(left) = &mut state.failing_in {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => return Err(failed("injected fsync error")),
            }
        }
        let State { now, kept, .. } = &mut *state;
        for (id, kept) in kept {
            kept.durable = now.get(id).cloned().unwrap_or_default();
            kept.since.clear();
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        let state = self.disk.state();
        state.now.values().map(|rows| rows.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum::<u64>()).sum()
    }
}

/// Writes that take effect together.
pub(super) struct Writes {
    store: Open,
    changes: BTreeMap<u64, Change>,
}

impl Writes {
    pub(super) fn on(store: &Open) -> Writes {
        Writes { store: store.clone(), changes: BTreeMap::new() }
    }

    pub(super) fn set(&mut self, keyspace: u64, key: &[u8], value: Option<&[u8]>) {
        let change = (Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice));
        self.changes.entry(keyspace).or_default().push(change);
    }

    pub(super) fn commit(self) -> Result<()> {
        let mut state = self.store.step()?;
        if self.changes.keys().any(|id| !state.kept.contains_key(id)) {
            return Err(failed("the keyspace was dropped"));
        }
        let State { now, kept, .. } = &mut *state;
        for (id, change) in self.changes {
            if let (Some(rows), Some(kept)) = (now.get_mut(&id), kept.get_mut(&id)) {
                apply(rows, change.clone());
                kept.since.push(change);
            }
        }
        Ok(())
    }
}

/// All keyspaces as they stood at one moment.
pub(super) struct Seen(OrdMap<u64, Rows>);

impl Seen {
    pub(super) fn get(&self, keyspace: u64, key: &[u8]) -> Option<Bytes> {
        self.0.get(&keyspace)?.get(key).cloned()
    }

    pub(super) fn rows(&self, keyspace: u64, bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Walk {
        let rows = self.0.get(&keyspace).cloned().unwrap_or_default();
        Walk { rows, from: bounds.0, to: bounds.1 }
    }

    pub(super) fn prefix(&self, keyspace: u64, prefix: &[u8]) -> Walk {
        let mut end = prefix.to_vec();
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        let to = match end.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(end)
            }
            None => Bound::Unbounded,
        };
        self.rows(keyspace, (Bound::Included(prefix.to_vec()), to))
    }
}

/// Rows within bounds, ascending.
pub(super) struct Walk {
    rows: Rows,
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
}

impl Walk {
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.from.as_ref().map(Vec::as_slice), self.to.as_ref().map(Vec::as_slice))
    }

    /// Nothing lies between bounds that cross.
    fn is_empty(&self) -> bool {
        use Bound::{Excluded, Included};
        match self.bounds() {
            (Included(from), Included(to)) => from > to,
            (Included(from) | Excluded(from), Excluded(to)) => from >= to,
            (Excluded(from), Included(to)) => from >= to,
            _ => false,
        }
    }

    pub(super) fn last(self) -> Option<Row> {
        if self.is_empty() {
            return None;
        }
        self.rows.range::<_, [u8]>(self.bounds()).next_back().map(|(key, value)| (key.clone(), value.clone()))
    }
}

impl Iterator for Walk {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        if self.is_empty() {
            return None;
        }
        let next = self.rows.range::<_, [u8]>(self.bounds()).next();
        let (key, value) = next.map(|(key, value)| (key.clone(), value.clone()))?;
        self.from = Bound::Excluded(key.to_vec());
        Some((key, value))
    }
}
