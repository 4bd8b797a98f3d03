//! The memory of intents: a retry gets the first outcome, and a copy that is too old is refused.
//!
//! ```text
//!            | evicted: only each client's highest seq (its floor)  | remembered         | now
//!   positions ------------------------------------------------------+--------------------+-->
//!            | floors of clients quiet for 16 windows are forgotten | a window, or a bit more
//! ```
//!
//! Replicated state: every replica keeps the same entries and evicts the same ones at the same position, block
//! by block of [`block_of`] positions, so that one list a batch says what is to go and no entry is looked at
//! for it. A command says which position its router had applied when the intent was first seen (`born`); one
//! born more than a window ago is refused. That is the router's word: the floor holds without it. A command
//! without an entry, at or below its client's floor, is refused whatever it says of its birth.
//!
//! Invariants: an intent whose entry was evicted is not carried out while its client's floor is kept, which is
//! at least [`FLOOR_WINDOWS`] windows after the client's last eviction. A client's seqs should rise: one that
//! comes more than a window late is refused though it was never carried out (effect: none).
//! Not here: the bytes of keys and records (`points`), intents of other shards (each command has its own).
//! Source: the client sessions of Raft (Ongaro 2014, section 6.3), with positions in place of sessions.

use super::{
    apply::Fold,
    points::{self, ClientSeqs, DedupRecord, EvictionRecord, FloorRecord, decode},
};
use crate::{
    machine::{MachineError, Outcome, Rejection, Verdict},
    model::{Command, Position, RequestId},
};
use prost::Message;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

/// How many positions an intent is remembered.
pub const WINDOW: u64 = 1_000_000;
/// How many windows a client's floor is kept after its last eviction.
const FLOOR_WINDOWS: u64 = 16;
/// Floors looked at when a block is evicted, for each of its positions: more than a block can add.
const FLOORS_FOR_EACH: u64 = 4;
/// Clients whose floor is kept in memory.
const CLIENTS_MAX: usize = 4096;

/// Positions that are evicted together.
fn block_of(window: u64) -> u64 {
    (window / 1024).max(1)
}

/// What a retry is told: the outcome of the first copy, or that it was another command. `None`: no such entry.
fn judge_known(request: &RequestId, known: &DedupRecord, body_hash: u64) -> Verdict {
    if known.body_hash != body_hash {
        let message = format!("request {request} did something else at position {}", known.position);
        return Verdict::Rejected(Rejection::new("other_body", message));
    }
    let verdict = known.rejection().map_or(Verdict::Applied, Verdict::Rejected);
    Verdict::Duplicate { first: Box::new(Outcome { position: Position(known.position), verdict }) }
}

/// What the writer knows of clients without a look at the store: a cache of what the store says.
#[derive(Default)]
pub(super) struct Clients(HashMap<String, Client>);

#[derive(Clone, Copy, Default)]
struct Client {
    /// No entry of the client has a higher seq.
    highest: Option<u64>,
    floor: Option<u64>,
}

impl Clients {
    /// Forgets all if there are too many; only between two folds.
    pub(super) fn trim(&mut self) {
        if self.0.len() > CLIENTS_MAX {
            self.0.clear();
        }
    }
}

/// Intents of a fold that are not in an eviction list yet; all of one block.
#[derive(Default)]
pub(super) struct Fresh {
    /// Position of the first.
    first: u64,
    sum: u128,
    clients: BTreeMap<String, Vec<u64>>,
}

impl Fold<'_> {
    /// What the memory says of a command; `None` if it is to be carried out.
    pub(super) fn judge(
        &mut self,
        command: &Command,
        body_hash: u64,
        position: Position,
    ) -> Result<Option<Verdict>, MachineError> {
        let Some(request) = &command.request else { return Ok(None) };
        let client = self.client(&request.client)?;
        if client.highest >= Some(request.seq)
            && let Some(known) = self.read(&points::dedup_key(&request.client, request.seq))?
        {
            return Ok(Some(judge_known(request, &decode("dedup entry", known)?, body_hash)));
        }
        let (born, window) = (command.born, self.window);
        let why = if position.0.saturating_sub(born.0) > window {
            format!("request {request} was first seen at position {born}, {window} and more ago")
        } else if client.floor >= Some(request.seq) {
            format!("request {request} is not above what client {} asked for {window} ago", request.client)
        } else {
            return Ok(None);
        };
        Ok(Some(Verdict::Rejected(Rejection::new("expired", why))))
    }

    /// Remembers what became of an intent.
    pub(super) fn remember(&mut self, request: RequestId, body_hash: u64, outcome: &Outcome) {
        let mut entry = DedupRecord { position: outcome.position.0, body_hash, ..DedupRecord::default() };
        if let Verdict::Rejected(rejection) = &outcome.verdict {
            entry.code = Some(rejection.code.clone());
            entry.message = rejection.message.clone();
            entry.version = rejection.version.map(|version| version.0);
        }
        let (key, value) = (points::dedup_key(&request.client, request.seq), entry.encode_to_vec());
        let hash = points::row_hash(&key, &value);
        self.sums.intents = self.sums.intents.wrapping_add(hash);
        self.put(key, value);
        if self.fresh.clients.is_empty() {
            self.fresh.first = outcome.position.0;
        }
        self.fresh.sum = self.fresh.sum.wrapping_add(hash);
        if let Some(client) = self.clients.0.get_mut(&request.client) {
            client.highest = client.highest.max(Some(request.seq));
        }
        self.fresh.clients.entry(request.client).or_default().push(request.seq);
    }

    /// Writes the list of the intents that were remembered since the last one.
    pub(super) fn list_fresh(&mut self) {
        if self.fresh.clients.is_empty() {
            return;
        }
        let Fresh { first, sum, clients } = std::mem::take(&mut self.fresh);
        let clients = clients.into_iter().map(|(client, seqs)| ClientSeqs { client, seqs }).collect();
        let list = EvictionRecord { sum: sum.to_le_bytes().to_vec(), clients };
        self.put_local(points::position_key(points::EVICTION, Position(first)), list.encode_to_vec());
    }

    /// Forgets the blocks of intents that lie more than a window back, and raises the floors of their clients.
    pub(super) fn evict(&mut self, position: Position) -> Result<(), MachineError> {
        let block = block_of(self.window);
        if position.0.is_multiple_of(block) {
            self.list_fresh();
        }
        let oldest = position.0.saturating_sub(self.window) / block * block;
        if oldest <= self.state.dedup_oldest {
            return Ok(());
        }
        // From where the last eviction ended: what it deleted need not be skipped again.
        let [from, until] = [std::mem::replace(&mut self.state.dedup_oldest, oldest), oldest]
            .map(|position| points::position_key(points::EVICTION, Position(position)));
        let mut floors: BTreeMap<String, u64> = BTreeMap::new();
        for (key, value) in self.rows(from, until, usize::MAX)? {
            let list: EvictionRecord = decode("eviction list", value.clone())?;
            self.sums.intents = self.sums.intents.wrapping_sub(points::sum_of(&list.sum)?);
            for ClientSeqs { client, seqs } in list.clients {
                for seq in &seqs {
                    self.delete(points::dedup_key(&client, *seq));
                }
                let highest = seqs.into_iter().max().unwrap_or_default();
                let floor = floors.entry(client).or_insert(highest);
                *floor = highest.max(*floor);
            }
            self.delete_local(key, &value);
        }
        for (client, seq) in floors {
            self.raise_floor(client, seq, position)?;
        }
        self.forget_floors(position, (FLOORS_FOR_EACH * block) as usize)
    }

    fn raise_floor(&mut self, client: String, seq: u64, position: Position) -> Result<(), MachineError> {
        let key = points::floor_key(&client);
        let before: Option<FloorRecord> = match self.read(&key)? {
            Some(value) => {
                self.sums.intents = self.sums.intents.wrapping_sub(points::row_hash(&key, &value));
                Some(decode("floor", value)?)
            }
            None => None,
        };
        let seq = before.map_or(seq, |floor| floor.seq.max(seq));
        let value = FloorRecord { seq, evicted_at: position.0 }.encode_to_vec();
        self.sums.intents = self.sums.intents.wrapping_add(points::row_hash(&key, &value));
        self.put(key, value);
        if let Some(client) = self.clients.0.get_mut(&client) {
            client.floor = Some(seq);
        }
        Ok(())
    }

    /// Looks at the next few floors, and forgets those of clients that had no eviction for so long.
    fn forget_floors(&mut self, position: Position, count: usize) -> Result<(), MachineError> {
        // Behind the last client looked at; no name holds a zero byte.
        let from = [&points::floor_key(&self.state.floor_cursor)[..], &[0]].concat();
        let rows = self.rows(from, vec![points::FLOOR + 1], count)?;
        let last = rows.last().filter(|_| rows.len() == count);
        let name = |key: &[u8]| String::from_utf8_lossy(&key[1..]).into_owned();
        self.state.floor_cursor = last.map(|(key, _)| name(key)).unwrap_or_default();
        for (key, value) in rows {
            let floor: FloorRecord = decode("floor", value.clone())?;
            if position.0.saturating_sub(floor.evicted_at) > FLOOR_WINDOWS.saturating_mul(self.window) {
                self.sums.intents = self.sums.intents.wrapping_sub(points::row_hash(&key, &value));
                if let Some(client) = self.clients.0.get_mut(&name(&key)) {
                    client.floor = None;
                }
                self.delete(key);
            }
        }
        Ok(())
    }

    /// What is known of a client: from memory, or from its floor and its last entry in the store.
    fn client(&mut self, name: &str) -> Result<Client, MachineError> {
        if let Some(client) = self.clients.0.get(name) {
            return Ok(*client);
        }
        let floor: Option<FloorRecord> =
            self.read(&points::floor_key(name))?.map(|value| decode("floor", value)).transpose()?;
        let bounds = [0, u64::MAX].map(|seq| Bound::Included(points::dedup_key(name, seq)));
        let stored = self.base.store.last(&self.base.keyspace, bounds.clone().into())?.map(|(key, _)| key);
        // A copy brings rows that this fold has not committed yet. Too high a number costs a read, too low a one an intent.
        let (from, to) = bounds.clone().into();
        let brought = self.writes.range::<Vec<u8>, _>((from, to)).rev().find(|(_, value)| value.is_some());
        let seq = |key: &[u8]| {
            // A key of another length is of a client with a `/` in its name: nothing is told by it.
            let own =
                key.last_chunk().filter(|_| Bound::Included(key.len()) == bounds[0].as_ref().map(Vec::len));
            own.map_or(u64::MAX, |seq| u64::from_be_bytes(*seq))
        };
        let highest = stored.as_deref().map(seq).max(brought.map(|(key, _)| seq(key)));
        let client = Client { highest, floor: floor.map(|floor| floor.seq) };
        self.clients.0.insert(name.to_owned(), client);
        Ok(client)
    }
}
