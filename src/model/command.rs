//! The commands a shard's log carries, and their bytes.
//!
//! Entries are kept for ever: a command is `format u8 | kind u16 | length u32 | body`, little-endian, and its
//! body a protobuf message whose fields are only ever added (`docs/FORMATS.md`; golden files pin the bytes).
//! An unknown format or kind is an error, never skipped. Floats travel as their bits; ids, defaults and
//! normalised vectors are resolved before the append, so that apply needs no clock and no randomness.

use super::{
    CollectionId, Epoch, Filter, PointId, Position, RequestId, Schema, SparseVector, Vector, Vectors,
};
use bytes::{Buf, Bytes};
use prost::Message;

/// One command as it stands in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The collection it is meant for; a shard of another one rejects it.
    pub collection: CollectionId,
    /// The schema it was checked against.
    pub schema_version: u64,
    /// The placement it was routed by.
    pub epoch: Epoch,
    /// The intent it carries out, if the caller named one.
    pub request: Option<RequestId>,
    /// The position its router had applied when the intent was first seen.
    pub born: Position,
    /// What to do.
    pub body: Body,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Gives the shard a schema; applied only if it is newer than the shard's own.
    Configure(Schema),
    /// Writes whole points; of two with the same id, the later wins.
    Upsert(Vec<PointWrite>),
    /// Deletes points by id; those that are not there are passed over.
    Delete(Vec<PointId>),
    /// Deletes every point that passes the filter at this position.
    DeleteMatching(Filter),
    /// Writes or deletes one point if it has the version the caller saw; else rejected `version_mismatch`.
    Cas {
        /// Which point.
        id: PointId,
        /// The version it must have: the position that last wrote it. `None`: there must be no such point.
        if_version: Option<Position>,
        /// What it becomes; its id is `id` (the bytes hold it once). `None`: it is deleted.
        point: Option<PointWrite>,
    },
    /// The collection is dropped: every later command is rejected `retired`. The state stays as it is.
    Retire,
}

/// A point as it enters the log: vectors checked and normalised, payload as JSON text.
#[derive(Clone, Debug, PartialEq)]
pub struct PointWrite {
    /// Which point.
    pub id: PointId,
    /// Its vectors.
    pub vectors: Vectors,
    /// Its payload as the text of a JSON object; empty if it has none.
    pub payload: Bytes,
}

/// Bytes that are not a command.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer Annal.
    #[error("unknown command format {format} kind {kind}: written by a newer version")]
    Unknown {
        /// The format byte.
        format: u8,
        /// The kind.
        kind: u16,
    },
    /// Too short, too long, or not what the kind says.
    #[error("damaged command: {0}")]
    Damaged(String),
}

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 7;
const CONFIGURE: u16 = 1;
const UPSERT: u16 = 2;
const DELETE: u16 = 3;
const DELETE_MATCHING: u16 = 4;
const CAS: u16 = 5;
const RETIRE: u16 = 6;
/// What the field of the head begins with: tag 1, a length follows.
const HEAD_FIELD: u8 = 1 << 3 | 2;

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Bytes {
        let head = Some(wire::Head::of(self));
        match &self.body {
            Body::Configure(schema) => envelope(CONFIGURE, &wire::Configure { head, schema: json(schema) }),
            Body::Upsert(points) => {
                let points = points.iter().map(wire::Point::of).collect();
                envelope(UPSERT, &wire::Upsert { head, points })
            }
            Body::Delete(ids) => {
                let ids = ids.iter().map(|id| wire::Id::of(*id)).collect();
                envelope(DELETE, &wire::Delete { head, ids })
            }
            Body::DeleteMatching(filter) => {
                envelope(DELETE_MATCHING, &wire::DeleteMatching { head, filter: json(filter) })
            }
            Body::Cas { id, if_version, point } => {
                let point = point.as_ref().map(|point| wire::Point { id: None, ..wire::Point::of(point) });
                let if_version = if_version.map(|version| version.0);
                envelope(CAS, &wire::Cas { head, id: Some(wire::Id::of(*id)), if_version, point })
            }
            Body::Retire => envelope(RETIRE, &wire::Retire { head }),
        }
    }

    /// Reads bytes written by [`Command::encode`].
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let (kind, body) = open(bytes)?;
        let (head, body) = match kind {
            CONFIGURE => {
                let m = wire::Configure::decode(body)?;
                (m.head, Body::Configure(unjson(&m.schema)?))
            }
            UPSERT => {
                let m = wire::Upsert::decode(body)?;
                (
                    m.head,
                    Body::Upsert(
                        m.points.into_iter().map(wire::Point::into_model).collect::<Result<_, _>>()?,
                    ),
                )
            }
            DELETE => {
                let m = wire::Delete::decode(body)?;
                (m.head, Body::Delete(m.ids.into_iter().map(wire::Id::into_model).collect::<Result<_, _>>()?))
            }
            DELETE_MATCHING => {
                let m = wire::DeleteMatching::decode(body)?;
                (m.head, Body::DeleteMatching(unjson(&m.filter)?))
            }
            CAS => {
                let m = wire::Cas::decode(body)?;
                let id = m.id.ok_or_else(|| DecodeError::Damaged("a point without an id".into()))?;
                let point = m.point.map(|point| wire::Point { id: Some(id.clone()), ..point }.into_model());
                let if_version = m.if_version.map(Position);
                (m.head, Body::Cas { id: id.into_model()?, if_version, point: point.transpose()? })
            }
            RETIRE => (wire::Retire::decode(body)?.head, Body::Retire),
            kind => return Err(DecodeError::Unknown { format: FORMAT, kind }),
        };
        let head = head.ok_or_else(|| DecodeError::Damaged("no head".into()))?;
        Ok(Command {
            collection: CollectionId(head.collection),
            schema_version: head.schema_version,
            epoch: Epoch(head.epoch),
            request: head.client.map(|client| RequestId { client, seq: head.seq }),
            born: Position(head.born),
            body,
        })
    }
}

/// A hash of what an encoded command does (not of who asks or when): tells a retry from another intent.
///
/// Errors: it is no command. Cost: reads the bytes once.
pub fn body_hash(command: &Bytes) -> Result<u64, DecodeError> {
    let (kind, mut body) = open(command)?;
    // The head is written first, for a message is written in the order of its tags.
    if body.first() == Some(&HEAD_FIELD) {
        body.advance(1);
        let head = prost::encoding::decode_varint(&mut body)?;
        let within = usize::try_from(head).ok().filter(|head| *head <= body.len());
        body.advance(within.ok_or_else(|| DecodeError::Damaged("a head longer than its command".into()))?);
    }
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&kind.to_le_bytes());
    hasher.update(&body);
    Ok(hasher.digest())
}

/// Wraps a message in the header every log command has.
pub fn envelope(kind: u16, message: &impl Message) -> Bytes {
    let bytes = message.encoded_len();
    let mut out = Vec::with_capacity(HEADER_BYTES + bytes);
    out.push(FORMAT);
    out.extend(kind.to_le_bytes());
    out.extend(u32::try_from(bytes).expect("a command is far below 4 GiB").to_le_bytes());
    message.encode(&mut out).expect("a Vec grows as needed");
    out.into()
}

/// Splits a command into its kind and its body.
pub fn open(bytes: &Bytes) -> Result<(u16, Bytes), DecodeError> {
    if bytes.len() < HEADER_BYTES {
        return Err(DecodeError::Damaged(format!("{} bytes, a header has {HEADER_BYTES}", bytes.len())));
    }
    let kind = u16::from_le_bytes([bytes[1], bytes[2]]);
    if bytes[0] != FORMAT {
        return Err(DecodeError::Unknown { format: bytes[0], kind });
    }
    let length = u32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]) as usize;
    let body = bytes.slice(HEADER_BYTES..);
    if body.len() != length {
        return Err(DecodeError::Damaged(format!("body of {} bytes, header says {length}", body.len())));
    }
    Ok((kind, body))
}

impl From<prost::DecodeError> for DecodeError {
    fn from(e: prost::DecodeError) -> Self {
        DecodeError::Damaged(e.to_string())
    }
}

/// Canonical JSON of a model type: maps are ordered, floats round-trip.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("model types have string keys and finite numbers")
}

fn unjson<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(bytes).map_err(|e| DecodeError::Damaged(e.to_string()))
}

/// The messages, field by field as in `docs/FORMATS.md`.
mod wire {
    use super::{DecodeError, PointId, PointWrite, SparseVector, Vector, Vectors};
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
            let floats =
                |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Condition, Distance, FieldType, HnswParams, Quantization, VectorParams};
    use std::{fmt::Write, fs, path::Path};

    fn command(request: Option<RequestId>, body: Body) -> Command {
        Command {
            collection: CollectionId(3),
            schema_version: 2,
            epoch: Epoch(1),
            request,
            born: Position(40),
            body,
        }
    }

    /// One of each kind, with one of each thing in it.
    fn one_of_each() -> Vec<(&'static str, Command)> {
        let vectors = VectorParams::new(2, Distance::Cosine, HnswParams::default());
        let schema = Schema {
            version: 2,
            vectors: [(String::new(), vectors)].into(),
            sparse: [("words".to_owned(), Default::default())].into(),
            fields: [("a.b[].c".parse().expect("a path"), FieldType::Keyword)].into(),
        };
        let bits = VectorParams { quantization: Quantization::Binary, ..vectors };
        let coded = Schema { vectors: [(String::new(), bits)].into(), ..schema.clone() };
        let sparse = SparseVector { indices: vec![1, 70_000], values: vec![0.5, -2.0] };
        let whole = PointWrite {
            id: PointId::Num(7),
            vectors: [
                (String::new(), Vector::Dense(vec![0.6, -0.8])),
                ("words".to_owned(), Vector::Sparse(sparse)),
            ]
            .into(),
            payload: Bytes::from_static(br#"{"pos":"n"}"#),
        };
        let bare = PointWrite {
            id: PointId::Uuid(0x1234 << 96 | 5),
            vectors: Vectors::new(),
            payload: Bytes::new(),
        };
        let client = RequestId { client: "loader".to_owned(), seq: 9 };
        let filter = Filter { must: vec![Condition::HasId([PointId::Num(1)].into())], ..Filter::default() };
        let cas = |if_version, point: Option<&PointWrite>| {
            command(None, Body::Cas { id: PointId::Num(7), if_version, point: point.cloned() })
        };
        vec![
            ("cas", cas(Some(Position(300)), Some(&whole))),
            ("cas, must not exist", cas(None, Some(&PointWrite { id: PointId::Num(7), ..bare.clone() }))),
            ("cas, delete", cas(Some(Position(0)), None)),
            ("retire", command(Some(client.clone()), Body::Retire)),
            ("configure", command(None, Body::Configure(schema))),
            ("upsert", command(Some(client), Body::Upsert(vec![whole, bare]))),
            ("delete", command(None, Body::Delete(vec![PointId::Num(0), PointId::Uuid(u128::MAX)]))),
            ("delete matching", command(None, Body::DeleteMatching(filter))),
            ("configure, with bits for codes", command(None, Body::Configure(coded))),
        ]
    }

    #[test]
    fn the_bytes_are_golden_and_read_back() {
        let mut text = String::new();
        for (name, command) in one_of_each() {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes).expect("its own bytes"), command);
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            writeln!(text, "{name}: {hex}").expect("a String grows");
        }
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/commands.txt");
        if std::env::var_os("REWRITE").is_some() {
            fs::write(&golden, &text).expect("rewritten");
        }
        assert_eq!(fs::read_to_string(&golden).expect("the golden file"), text);
    }

    #[test]
    fn what_is_not_a_command_is_refused() {
        let good = one_of_each()[5].1.encode();
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            Command::decode(&bytes.into())
        };
        assert!(matches!(changed(0, 2), Err(DecodeError::Unknown { format: 2, .. })));
        assert!(matches!(changed(1, 99), Err(DecodeError::Unknown { kind: 99, .. })));
        assert!(matches!(changed(3, 1), Err(DecodeError::Damaged(_))));
        for length in 0..good.len() {
            assert!(Command::decode(&good.slice(..length)).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_retry_has_the_hash_of_the_first_try_and_another_intent_has_not() {
        let mut hashes = std::collections::BTreeSet::new();
        for (name, first) in one_of_each() {
            let hash = body_hash(&first.encode()).expect("a command");
            let request = Some(RequestId { client: "x".repeat(200), seq: u64::MAX });
            let retry = Command { born: Position(99), epoch: Epoch(2), request, ..first.clone() };
            assert_eq!(body_hash(&retry.encode()).expect("a command"), hash, "{name}");
            assert!(hashes.insert(hash), "{name} is like another");
        }
        assert!(body_hash(&Bytes::from_static(&[1, 6, 0, 2, 0, 0, 0, HEAD_FIELD, 9])).is_err());
    }
}
