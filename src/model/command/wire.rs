//! The messages, field by field as in `docs/FORMATS.md`.

use super::{
    DecodeError, Generation, Home, Homes, KeyRange, PointId, PointWrite, Position, SeedEnd, SparseVector,
    Vector, Vectors, json, unjson,
};
use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Head {
    #[prost(uint64, tag = "1")]
    pub(super) collection: u64,
    #[prost(uint64, tag = "2")]
    pub(super) schema_version: u64,
    #[prost(uint64, tag = "3")]
    pub(super) epoch: u64,
    #[prost(string, optional, tag = "4")]
    pub(super) client: Option<String>,
    #[prost(uint64, tag = "5")]
    pub(super) seq: u64,
    #[prost(uint64, tag = "6")]
    pub(super) born: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Configure {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) schema: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Upsert {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(message, repeated, tag = "2")]
    pub(super) points: Vec<Point>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Delete {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(message, repeated, tag = "2")]
    pub(super) ids: Vec<Id>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteMatching {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) filter: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Cas {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(message, optional, tag = "2")]
    pub(super) id: Option<Id>,
    #[prost(uint64, optional, tag = "3")]
    pub(super) if_version: Option<u64>,
    /// Without its id.
    #[prost(message, optional, tag = "4")]
    pub(super) point: Option<Point>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Retire {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Mirror {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(uint64, tag = "2")]
    pub(super) generation: u64,
    #[prost(uint64, tag = "3")]
    pub(super) prev: u64,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub(super) commands: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Turn {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    /// 1 follow, 2 seal, 3 unseal, 4 promote.
    #[prost(uint32, tag = "2")]
    pub(super) kind: u32,
    /// Of all but follow.
    #[prost(uint64, tag = "3")]
    pub(super) generation: u64,
    /// Of follow.
    #[prost(message, repeated, tag = "4")]
    pub(super) homes: Vec<HomeOf>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HomeOf {
    #[prost(uint64, tag = "1")]
    pub(super) generation: u64,
    #[prost(uint64, tag = "2")]
    pub(super) first: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Seed {
    #[prost(message, optional, tag = "1")]
    pub(super) head: Option<Head>,
    #[prost(fixed64, tag = "2")]
    pub(super) attempt: u64,
    #[prost(oneof = "Step", tags = "3, 4, 5, 6")]
    pub(super) step: Option<Step>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Step {
    /// The schema.
    #[prost(bytes, tag = "3")]
    Begin(Vec<u8>),
    #[prost(message, tag = "4")]
    Points(SeedPoints),
    #[prost(message, tag = "5")]
    Intents(SeedIntents),
    #[prost(message, tag = "6")]
    End(SeedLast),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SeedPoints {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(super) after: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) upto: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "3")]
    pub(super) points: Vec<Point>,
    /// Of each point.
    #[prost(uint64, repeated, tag = "4")]
    pub(super) versions: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SeedIntents {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(super) after: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) upto: Option<Vec<u8>>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) keys: Vec<Bytes>,
    /// Of each key.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub(super) values: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SeedLast {
    #[prost(uint64, tag = "1")]
    pub(super) position: u64,
    #[prost(uint64, tag = "2")]
    pub(super) dedup_oldest: u64,
    #[prost(string, tag = "3")]
    pub(super) floor_cursor: String,
    /// 16 bytes, little-endian.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) hash: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Id {
    #[prost(oneof = "IdValue", tags = "1, 2")]
    pub(super) value: Option<IdValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum IdValue {
    #[prost(fixed64, tag = "1")]
    Num(u64),
    #[prost(bytes, tag = "2")]
    Uuid(Vec<u8>),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Point {
    #[prost(message, optional, tag = "1")]
    pub(super) id: Option<Id>,
    #[prost(message, repeated, tag = "2")]
    pub(super) vectors: Vec<NamedVector>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NamedVector {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// f32 bits, little-endian.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) values: Bytes,
    /// u32, little-endian; present (also when empty) iff the vector is sparse.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) indices: Option<Bytes>,
}

impl Head {
    pub(super) fn of(c: &super::Command) -> Self {
        Head {
            collection: c.collection.0,
            schema_version: c.schema_version,
            epoch: c.epoch.0,
            client: c.request.as_ref().map(|r| r.client.clone()),
            seq: c.request.as_ref().map_or(0, |r| r.seq),
            born: c.born.0,
        }
    }
}

impl Turn {
    pub(super) fn of(turn: &super::Turn) -> Self {
        let of = |kind, generation: &Generation| Turn { kind, generation: generation.0, ..Turn::default() };
        match turn {
            super::Turn::Follow(homes) => {
                let home = |h: &Home| HomeOf { generation: h.generation.0, first: h.first.0 };
                Turn { kind: 1, homes: homes.0.iter().map(home).collect(), ..Turn::default() }
            }
            super::Turn::Seal(generation) => of(2, generation),
            super::Turn::Unseal(generation) => of(3, generation),
            super::Turn::Promote(generation) => of(4, generation),
        }
    }

    pub(super) fn into_model(self) -> Result<super::Turn, DecodeError> {
        let generation = Generation(self.generation);
        match self.kind {
            1 => {
                let home =
                    |h: HomeOf| Home { generation: Generation(h.generation), first: Position(h.first) };
                Ok(super::Turn::Follow(Homes(self.homes.into_iter().map(home).collect())))
            }
            2 => Ok(super::Turn::Seal(generation)),
            3 => Ok(super::Turn::Unseal(generation)),
            4 => Ok(super::Turn::Promote(generation)),
            kind => Err(DecodeError::Damaged(format!("a turn of kind {kind}"))),
        }
    }
}

impl Step {
    pub(super) fn of(step: &super::Seed) -> Self {
        match step {
            super::Seed::Begin { schema } => Step::Begin(json(schema)),
            super::Seed::Points { range, points } => Step::Points(SeedPoints {
                after: range.after.clone(),
                upto: range.upto.clone(),
                points: points.iter().map(|(point, _)| Point::of(point)).collect(),
                versions: points.iter().map(|(_, version)| version.0).collect(),
            }),
            super::Seed::Intents { range, rows } => {
                let (keys, values) = rows.iter().cloned().unzip();
                let KeyRange { after, upto } = range.clone();
                Step::Intents(SeedIntents { after, upto, keys, values })
            }
            super::Seed::End(end) => Step::End(SeedLast {
                position: end.position.0,
                dedup_oldest: end.dedup_oldest.0,
                floor_cursor: end.floor_cursor.clone(),
                hash: end.hash.to_le_bytes().to_vec(),
            }),
        }
    }

    pub(super) fn into_model(self) -> Result<super::Seed, DecodeError> {
        let two_lengths = || DecodeError::Damaged("a step of two lengths".into());
        Ok(match self {
            Step::Begin(schema) => super::Seed::Begin { schema: unjson(&schema)? },
            Step::Points(SeedPoints { after, upto, points, versions }) => {
                if points.len() != versions.len() {
                    return Err(two_lengths());
                }
                let points = points.into_iter().zip(versions);
                let points = points.map(|(point, version)| Ok((point.into_model()?, Position(version))));
                let points = points.collect::<Result<_, DecodeError>>()?;
                super::Seed::Points { range: KeyRange { after, upto }, points }
            }
            Step::Intents(SeedIntents { after, upto, keys, values }) => {
                if keys.len() != values.len() {
                    return Err(two_lengths());
                }
                let rows = keys.into_iter().zip(values).collect();
                super::Seed::Intents { range: KeyRange { after, upto }, rows }
            }
            Step::End(SeedLast { position, dedup_oldest, floor_cursor, hash }) => {
                let hash = hash.try_into().map_err(|_| DecodeError::Damaged("a hash".into()))?;
                super::Seed::End(SeedEnd {
                    position: Position(position),
                    dedup_oldest: Position(dedup_oldest),
                    floor_cursor,
                    hash: u128::from_le_bytes(hash),
                })
            }
        })
    }
}

impl Id {
    pub(super) fn of(id: PointId) -> Self {
        let value = match id {
            PointId::Num(n) => IdValue::Num(n),
            PointId::Uuid(u) => IdValue::Uuid(u.to_be_bytes().to_vec()),
        };
        Id { value: Some(value) }
    }

    pub(super) fn into_model(self) -> Result<PointId, DecodeError> {
        match self.value {
            Some(IdValue::Num(n)) => Ok(PointId::Num(n)),
            Some(IdValue::Uuid(bytes)) => match bytes.try_into() {
                Ok(bytes) => Ok(PointId::Uuid(u128::from_be_bytes(bytes))),
                Err(bytes) => Err(DecodeError::Damaged(format!("a UUID of {} bytes", bytes.len()))),
            },
            None => Err(DecodeError::Damaged("a point without an id".into())),
        }
    }
}

impl Point {
    pub(super) fn of(p: &PointWrite) -> Self {
        Point {
            id: Some(Id::of(p.id)),
            vectors: p.vectors.iter().map(|(name, v)| NamedVector::of(name, v)).collect(),
            payload: p.payload.clone(),
        }
    }

    pub(super) fn into_model(self) -> Result<PointWrite, DecodeError> {
        let id = self.id.ok_or_else(|| DecodeError::Damaged("a point without an id".into()))?;
        let vectors =
            self.vectors.into_iter().map(NamedVector::into_model).collect::<Result<Vectors, _>>()?;
        Ok(PointWrite { id: id.into_model()?, vectors, payload: self.payload })
    }
}

impl NamedVector {
    fn of(name: &str, vector: &Vector) -> Self {
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
        let (values, indices) = match vector {
            Vector::Dense(values) => (floats(values), None),
            Vector::Sparse(s) => {
                let indices: Vec<u8> = s.indices.iter().flat_map(|i| i.to_le_bytes()).collect();
                (floats(&s.values), Some(indices.into()))
            }
        };
        NamedVector { name: name.to_owned(), values, indices }
    }

    fn into_model(self) -> Result<(String, Vector), DecodeError> {
        let values = words(&self.values)?.map(f32::from_le_bytes).collect();
        let vector = match self.indices {
            None => Vector::Dense(values),
            Some(indices) => {
                let indices: Vec<u32> = words(&indices)?.map(u32::from_le_bytes).collect();
                if indices.len() != values.len() {
                    return Err(DecodeError::Damaged("a sparse vector of two lengths".into()));
                }
                Vector::Sparse(SparseVector { indices, values })
            }
        };
        Ok((self.name, vector))
    }
}

fn words(bytes: &[u8]) -> Result<impl Iterator<Item = [u8; 4]> + '_, DecodeError> {
    let (words, rest) = bytes.as_chunks::<4>();
    if rest.is_empty() {
        Ok(words.iter().copied())
    } else {
        Err(DecodeError::Damaged(format!("{} bytes are no whole number of words", bytes.len())))
    }
}
