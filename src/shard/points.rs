//! What a shard keeps in the store: keys, and the bytes of their records.
//!
//! All of a shard lies in **one** keyspace, a first byte telling the tables apart, because a crash leaves a
//! prefix of one keyspace's batches (see `store`): points, vectors, indexes, dedup and bookmark can never
//! disagree. Records are protobuf messages whose fields are only ever added. Tables: `docs/FORMATS.md`.
//!
//! Not here: what the bytes mean to each other (`apply`), the index files (`vector_index`).

use crate::{
    machine::{MachineError, Rejection},
    model::{
        CollectionId, Counting, Duty, FieldPath, Generation, Home, Homes, PointId, Position, SparseVector,
        Vector, Vectors,
    },
};
use bytes::Bytes;
use prost::Message;

/// The shard's counters.
pub(super) const STATE: &[u8] = b"m/state";
/// The shard's schema, as JSON.
pub(super) const SCHEMA: &[u8] = b"m/schema";
/// First byte of the keys of points, slots, vectors and field entries,
pub(super) const POINT: u8 = b'p';
pub(super) const SLOT: u8 = b's';
pub(super) const VECTOR: u8 = b'v';
pub(super) const FIELD: u8 = b'f';
/// of dedup entries, the lists by which they are evicted, and floors,
pub(super) const DEDUP: u8 = b'd';
pub(super) const EVICTION: u8 = b'e';
pub(super) const FLOOR: u8 = b'k';
/// of effects, bookmarks and state hashes,
pub(super) const EFFECT: u8 = b'x';
pub(super) const MARK: u8 = b'b';
pub(super) const HASH: u8 = b'h';
/// of how commands are counted from a bookmark on, where that is not as in every shard's beginning,
pub(super) const COUNTING: u8 = b'g';
/// and of the state and the schema.
pub(super) const META: u8 = b'm';
/// All of them, ascending.
pub(super) const TABLES: [u8; 12] =
    [MARK, DEDUP, EVICTION, FIELD, COUNTING, HASH, FLOOR, META, POINT, SLOT, VECTOR, EFFECT];
/// The memory of intents, ascending.
pub(super) const INTENTS: [u8; 3] = [DEDUP, EVICTION, FLOOR];

/// Whether a key belongs to the memory of intents.
pub(super) fn is_of_intents(key: &[u8]) -> bool {
    key.first().is_some_and(|table| INTENTS.contains(table))
}

// Vectors are stored, hashed and mapped as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Numbers the incarnations of a shard's points: a point gets a new one whenever its vectors change.
pub(super) type Slot = u32;

pub(super) fn point_key(id: PointId) -> Vec<u8> {
    [&[POINT][..], &id.to_key()].concat()
}

pub(super) fn point_of_key(key: &[u8]) -> Result<PointId, MachineError> {
    key.get(1..).and_then(PointId::from_key).ok_or_else(|| damaged("point key", format!("{key:02x?}")))
}

pub(super) fn slot_key(slot: Slot) -> Vec<u8> {
    [&[SLOT][..], &slot.to_be_bytes()].concat()
}

pub(super) fn slot_of_key(key: &[u8]) -> Result<Slot, MachineError> {
    let four = key.get(1..5).and_then(|four| four.try_into().ok());
    four.map(u32::from_be_bytes).ok_or_else(|| damaged("slot key", format!("{key:02x?}")))
}

pub(super) fn vector_key(slot: Slot, name: &str) -> Vec<u8> {
    [&[VECTOR][..], &slot.to_be_bytes(), name.as_bytes()].concat()
}

/// What the entries of one indexed field begin with.
pub(super) fn field_prefix(path: &FieldPath) -> Vec<u8> {
    let path = path.as_str().as_bytes();
    let length = u16::try_from(path.len()).unwrap_or(u16::MAX);
    [&[FIELD][..], &length.to_be_bytes(), path].concat()
}

pub(super) fn field_key(path: &FieldPath, entry: &[u8], slot: Slot) -> Vec<u8> {
    [&field_prefix(path)[..], entry, &slot.to_be_bytes()].concat()
}

pub(super) fn dedup_key(client: &str, seq: u64) -> Vec<u8> {
    [&[DEDUP][..], client.as_bytes(), b"/", &seq.to_be_bytes()].concat()
}

pub(super) fn floor_key(client: &str) -> Vec<u8> {
    [&[FLOOR][..], client.as_bytes()].concat()
}

pub(super) fn position_key(table: u8, position: Position) -> Vec<u8> {
    [&[table][..], &position.0.to_be_bytes()].concat()
}

pub(super) fn position_of_key(key: &[u8]) -> Result<Position, MachineError> {
    let eight = key.get(1..9).and_then(|eight| eight.try_into().ok());
    eight
        .map(|b| Position(u64::from_be_bytes(b)))
        .ok_or_else(|| damaged("position key", format!("{key:02x?}")))
}

/// The counters of a shard, written with every batch.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StateRecord {
    #[prost(uint64, tag = "1")]
    pub(super) collection: u64,
    #[prost(uint64, tag = "2")]
    pub(super) position: u64,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) bookmark: Option<Bytes>,
    /// The slot the next incarnation gets.
    #[prost(uint32, tag = "4")]
    pub(super) next_slot: u32,
    /// Live points.
    #[prost(uint64, tag = "5")]
    pub(super) points: u64,
    /// Wrapping sum of the live points' hashes, 16 bytes little-endian.
    #[prost(bytes = "vec", tag = "6")]
    pub(super) points_sum: Vec<u8>,
    /// Wrapping sum of the hashes of dedup entries and floors, 16 bytes little-endian.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) intents_sum: Vec<u8>,
    /// Dedup entries below this position are evicted.
    #[prost(uint64, tag = "8")]
    pub(super) dedup_oldest: u64,
    /// Position of the newest recorded bookmark.
    #[prost(uint64, tag = "9")]
    pub(super) marked: u64,
    /// Live dense vectors by name.
    #[prost(btree_map = "string, uint64", tag = "10")]
    pub(super) vectors: std::collections::BTreeMap<String, u64>,
    /// Whether the collection is dropped.
    #[prost(bool, tag = "11")]
    pub(super) retired: bool,
    /// Hash of the schema's JSON, 16 bytes little-endian; empty before the first schema.
    #[prost(bytes = "vec", tag = "12")]
    pub(super) schema_hash: Vec<u8>,
    /// The client whose floor was looked at last; empty: begin anew.
    #[prost(string, tag = "13")]
    pub(super) floor_cursor: String,
    /// Effects below this position are forgotten.
    #[prost(uint64, tag = "14")]
    pub(super) effects_oldest: u64,
    /// Wrapping sum of the hashes of the rows that are this replica's own affair (eviction lists, effects,
    /// bookmarks, state hashes), 16 bytes little-endian.
    #[prost(bytes = "vec", tag = "15")]
    pub(super) local_sum: Vec<u8>,
    /// How commands are counted; none: as in every shard's beginning.
    #[prost(message, optional, tag = "16")]
    pub(super) counting: Option<CountingRecord>,
}

/// How commands are counted.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CountingRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) homes: Vec<HomeRecord>,
    /// 0 home, 1 sealed, 2 following.
    #[prost(uint32, tag = "2")]
    pub(super) duty: u32,
    /// The home it is sealed for.
    #[prost(uint64, tag = "3")]
    pub(super) sealed_for: u64,
    /// The attempt that makes a copy of the home.
    #[prost(fixed64, tag = "4")]
    pub(super) seeding: u64,
}

/// A home after the first.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HomeRecord {
    #[prost(uint64, tag = "1")]
    pub(super) generation: u64,
    #[prost(uint64, tag = "2")]
    pub(super) first: u64,
}

impl CountingRecord {
    /// None if it is as in every shard's beginning.
    pub(super) fn of(counting: &Counting) -> Option<Self> {
        let home = |h: &Home| HomeRecord { generation: h.generation.0, first: h.first.0 };
        let (duty, sealed_for) = match counting.duty {
            Duty::Home => (0, 0),
            Duty::Sealed(generation) => (1, generation.0),
            Duty::Following => (2, 0),
        };
        let homes = counting.homes.0.iter().map(home).collect();
        (!counting.is_first()).then_some(CountingRecord {
            homes,
            duty,
            sealed_for,
            seeding: counting.seeding,
        })
    }

    /// At a position.
    pub(super) fn at(record: Option<&Self>, position: Position) -> Result<Counting, MachineError> {
        let Some(record) = record else { return Ok(Counting { position, ..Counting::default() }) };
        let home = |h: &HomeRecord| Home { generation: Generation(h.generation), first: Position(h.first) };
        let duty = match record.duty {
            0 => Duty::Home,
            1 => Duty::Sealed(Generation(record.sealed_for)),
            2 => Duty::Following,
            other => return Err(damaged("counting", format!("a duty {other}"))),
        };
        let homes = Homes(record.homes.iter().map(home).collect());
        Ok(Counting { position, homes, duty, seeding: record.seeding })
    }
}

/// The sums of a shard's state; each wraps at 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) points: u128,
    pub(super) intents: u128,
    pub(super) local: u128,
}

impl StateRecord {
    /// How commands are counted.
    pub(super) fn counting(&self) -> Result<Counting, MachineError> {
        CountingRecord::at(self.counting.as_ref(), Position(self.position))
    }

    /// The rows by which a reader of commands begins to count here.
    pub(super) fn waymark(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let position = Position(self.position);
        let counting = self.counting.as_ref().map(Message::encode_to_vec);
        let bookmark = self.bookmark.as_ref().map(|bookmark| bookmark.to_vec());
        vec![(position_key(MARK, position), bookmark), (position_key(COUNTING, position), counting)]
    }

    /// Its sums.
    pub(super) fn sums(&self) -> Result<Sums, MachineError> {
        let [points, intents, local] =
            [&self.points_sum, &self.intents_sum, &self.local_sum].map(|sum| sum_of(sum));
        Ok(Sums { points: points?, intents: intents?, local: local? })
    }

    /// Replaces its sums.
    pub(super) fn set_sums(&mut self, sums: Sums) {
        self.points_sum = sums.points.to_le_bytes().to_vec();
        self.intents_sum = sums.intents.to_le_bytes().to_vec();
        self.local_sum = sums.local.to_le_bytes().to_vec();
    }

    /// The value of its key: a checksum, then the record.
    pub(super) fn to_value(&self) -> Vec<u8> {
        let mut value = vec![0; 8];
        self.encode(&mut value).expect("a Vec grows as needed");
        let checksum = xxhash_rust::xxh3::xxh3_64(&value[8..]);
        value[..8].copy_from_slice(&checksum.to_le_bytes());
        value
    }

    /// Reads what [`StateRecord::to_value`] wrote.
    pub(super) fn of_value(mut value: Bytes) -> Result<Self, MachineError> {
        if value.len() < 8 {
            return Err(damaged("shard state", "it has no checksum"));
        }
        let record = value.split_off(8);
        if value != xxhash_rust::xxh3::xxh3_64(&record).to_le_bytes()[..] {
            return Err(damaged("shard state", "checksum"));
        }
        decode("shard state", record)
    }
}

/// A point without its dense vectors.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PointRecord {
    /// The position that last wrote it.
    #[prost(uint64, tag = "1")]
    pub(super) version: u64,
    /// The position that last changed its vectors.
    #[prost(uint64, tag = "2")]
    pub(super) born: u64,
    #[prost(fixed32, tag = "3")]
    pub(super) slot: Slot,
    /// Hash of all its vectors, 16 bytes little-endian.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) vectors_hash: Vec<u8>,
    /// Names of its dense vectors, ascending.
    #[prost(string, repeated, tag = "5")]
    pub(super) dense: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(super) sparse: Vec<SparseRecord>,
    /// JSON text of an object; empty if there is none.
    #[prost(bytes = "bytes", tag = "7")]
    pub(super) payload: Bytes,
}

/// A sparse vector of a point.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SparseRecord {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(fixed32, repeated, tag = "2")]
    pub(super) indices: Vec<u32>,
    /// f32 bits.
    #[prost(fixed32, repeated, tag = "3")]
    pub(super) values: Vec<u32>,
}

/// Whose incarnation a slot is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SlotRecord {
    /// The point's id, as in its key.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    /// The position that gave the slot.
    #[prost(uint64, tag = "2")]
    pub(super) born: u64,
    /// The position that last wrote the point; 0: the one that gave the slot.
    #[prost(uint64, tag = "3")]
    rewritten: u64,
}

impl SlotRecord {
    /// The slot of a point.
    pub(super) fn of(id: PointId, point: &PointRecord) -> Self {
        let rewritten = if point.version == point.born { 0 } else { point.version };
        SlotRecord { id: id.to_key(), born: point.born, rewritten }
    }

    /// The position that last wrote the point.
    pub(super) fn version(&self) -> u64 {
        if self.rewritten == 0 { self.born } else { self.rewritten }
    }
}

/// What became of an intent.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DedupRecord {
    #[prost(uint64, tag = "1")]
    pub(super) position: u64,
    /// Hash of what the command does.
    #[prost(fixed64, tag = "2")]
    pub(super) body_hash: u64,
    /// Code and message of its rejection, if it was rejected.
    #[prost(string, optional, tag = "3")]
    pub(super) code: Option<String>,
    #[prost(string, tag = "4")]
    pub(super) message: String,
    /// The version its rejection tells.
    #[prost(uint64, optional, tag = "5")]
    pub(super) version: Option<u64>,
}

/// Which intents one batch brought, within one block of positions.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EvictionRecord {
    /// Wrapping sum of their entries' hashes, 16 bytes little-endian.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) sum: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub(super) clients: Vec<ClientSeqs>,
}

/// Intents of one client.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClientSeqs {
    #[prost(string, tag = "1")]
    pub(super) client: String,
    #[prost(uint64, repeated, tag = "2")]
    pub(super) seqs: Vec<u64>,
}

/// What is left of a client's evicted intents.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FloorRecord {
    /// The highest seq that was evicted.
    #[prost(uint64, tag = "1")]
    pub(super) seq: u64,
    /// Position at which the last one was evicted.
    #[prost(uint64, tag = "2")]
    pub(super) evicted_at: u64,
}

/// What a command did, where the command itself does not say it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EffectRecord {
    /// Points it deleted, as in their keys, in this order; it did nothing else.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(super) deleted: Vec<Vec<u8>>,
}

impl PointRecord {
    /// The record of a point, without version and slot, from its vectors and payload.
    pub(super) fn of(vectors: &Vectors, payload: Bytes) -> Self {
        let mut record =
            PointRecord { vectors_hash: hash_of_vectors(vectors), payload, ..Default::default() };
        for (name, vector) in vectors {
            match vector {
                Vector::Dense(_) => record.dense.push(name.clone()),
                Vector::Sparse(s) => record.sparse.push(SparseRecord {
                    name: name.clone(),
                    indices: s.indices.clone(),
                    values: s.values.iter().map(|v| v.to_bits()).collect(),
                }),
            }
        }
        record
    }

    /// The point's part in the sum that is the state hash.
    pub(super) fn hash(&self, id: PointId) -> u128 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(&id.to_key());
        hasher.update(&self.version.to_le_bytes());
        hasher.update(&self.vectors_hash);
        hasher.update(&self.payload);
        hasher.digest128()
    }

    /// Names of all its vectors.
    pub(super) fn vector_names(&self) -> Vec<String> {
        self.dense.iter().chain(self.sparse.iter().map(|s| &s.name)).cloned().collect()
    }
}

impl SparseRecord {
    /// The vector.
    pub(super) fn vector(&self) -> Vector {
        let values = self.values.iter().map(|bits| f32::from_bits(*bits)).collect();
        Vector::Sparse(SparseVector { indices: self.indices.clone(), values })
    }
}

impl DedupRecord {
    /// Why the intent was rejected, if it was.
    pub(super) fn rejection(&self) -> Option<Rejection> {
        let code = self.code.clone()?;
        Some(Rejection { code, message: self.message.clone(), version: self.version.map(Position) })
    }
}

/// A row's part in a sum.
pub(super) fn row_hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}

/// Hash of a point's vectors: equal bits under equal names, and nothing else, give the same.
pub(super) fn hash_of_vectors(vectors: &Vectors) -> Vec<u8> {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for (name, vector) in vectors {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        let (kind, indices, values): (u8, &[u32], &[f32]) = match vector {
            Vector::Dense(values) => (0, &[], values),
            Vector::Sparse(s) => (1, &s.indices, &s.values),
        };
        hasher.update(&[kind]);
        hasher.update(&(values.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(indices));
        hasher.update(bytemuck::cast_slice(values));
    }
    hasher.digest128().to_le_bytes().to_vec()
}

/// A sum as it is stored.
pub(super) fn sum_of(bytes: &[u8]) -> Result<u128, MachineError> {
    let sixteen = bytes.try_into().map_err(|_| damaged("sum", format!("{} bytes", bytes.len())))?;
    Ok(u128::from_le_bytes(sixteen))
}

/// f32 bits, little-endian.
pub(super) fn floats_to_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Reads what [`floats_to_bytes`] wrote.
pub(super) fn floats_of_bytes(bytes: &[u8]) -> Result<Vec<f32>, MachineError> {
    match bytes.as_chunks::<4>() {
        (words, []) => Ok(words.iter().map(|w| f32::from_le_bytes(*w)).collect()),
        _ => Err(damaged("vector", format!("{} bytes are no whole number of words", bytes.len()))),
    }
}

/// Reads a record of the store.
pub(super) fn decode<M: Message + Default>(what: &str, bytes: Bytes) -> Result<M, MachineError> {
    M::decode(bytes).map_err(|e| damaged(what, e.to_string()))
}

/// An error about stored bytes.
pub(super) fn damaged(what: &str, why: impl Into<String>) -> MachineError {
    MachineError::Damaged { what: what.to_owned(), why: why.into() }
}

/// The state of a shard before its first command.
pub(super) fn first_state(collection: CollectionId) -> StateRecord {
    let mut state = StateRecord { collection: collection.0, ..StateRecord::default() };
    state.set_sums(Sums::default());
    state
}
