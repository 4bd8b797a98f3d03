//! The commands a shard's log carries, and their bytes.
//!
//! Entries are kept for ever: a command is `format u8 | kind u16 | length u32 | body`, little-endian, and its
//! body a protobuf message whose fields are only ever added (`docs/FORMATS.md`; golden files pin the bytes).
//! An unknown format or kind is an error, never skipped. Floats travel as their bits; ids, defaults and
//! normalised vectors are resolved before the append, so that apply needs no clock and no randomness.

mod wire;

use super::{
    CollectionId, Epoch, Filter, Generation, Home, Homes, PointId, Position, RequestId, Schema, SparseVector,
    Turn, Vector, Vectors,
    region::{KeyRange, Seed, SeedEnd},
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
    /// Commands of the collection's home, taken over: applied if `generation` is the home that is followed and
    /// `prev` the last position here; else rejected, without a position.
    Mirror {
        /// The home they come from.
        generation: Generation,
        /// The position before the first.
        prev: Position,
        /// In order, each as it stands in the home's log.
        commands: Vec<Bytes>,
    },
    /// The shard's duty changes. Takes no position.
    Turn(Turn),
    /// A step of a copy of the home's shard, of the attempt of this number. Takes no position; the last one sets it.
    Seed {
        /// The attempt.
        attempt: u64,
        /// The step.
        step: Seed,
    },
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
const MIRROR: u16 = 7;
const TURN: u16 = 8;
const SEED: u16 = 9;
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
            Body::Mirror { generation, prev, commands } => {
                let (generation, prev, commands) = (generation.0, prev.0, commands.clone());
                envelope(MIRROR, &wire::Mirror { head, generation, prev, commands })
            }
            Body::Turn(turn) => envelope(TURN, &wire::Turn { head, ..wire::Turn::of(turn) }),
            Body::Seed { attempt, step } => {
                envelope(SEED, &wire::Seed { head, attempt: *attempt, step: Some(wire::Step::of(step)) })
            }
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
            MIRROR => {
                let m = wire::Mirror::decode(body)?;
                let (generation, prev) = (Generation(m.generation), Position(m.prev));
                (m.head, Body::Mirror { generation, prev, commands: m.commands })
            }
            TURN => {
                let m = wire::Turn::decode(body)?;
                (m.head.clone(), Body::Turn(m.into_model()?))
            }
            SEED => {
                let m = wire::Seed::decode(body)?;
                let step = m.step.ok_or_else(|| DecodeError::Damaged("a copy without a step".into()))?;
                (m.head, Body::Seed { attempt: m.attempt, step: step.into_model()? })
            }
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

/// Whether an encoded command is of a kind that comes from region to region, or turns a shard.
///
/// Errors: it is no command.
pub fn is_of_regions(command: &Bytes) -> Result<bool, DecodeError> {
    let (kind, _) = open(command)?;
    Ok(matches!(kind, MIRROR | TURN | SEED))
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
        let bare_7 = PointWrite { id: PointId::Num(7), ..bare.clone() };
        let mirror = Body::Mirror {
            generation: Generation(2),
            prev: Position(300),
            commands: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")],
        };
        let home = Home { generation: Generation(2), first: Position(301) };
        let range = KeyRange { after: None, upto: Some(b"k".to_vec()) };
        let row = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let end = SeedEnd {
            position: Position(300),
            dedup_oldest: Position(200),
            floor_cursor: "loader".to_owned(),
            hash: 7 << 100,
        };
        let seed = |step| command(None, Body::Seed { attempt: 9, step });
        vec![
            ("cas", cas(Some(Position(300)), Some(&whole))),
            ("cas, must not exist", cas(None, Some(&PointWrite { id: PointId::Num(7), ..bare.clone() }))),
            ("cas, delete", cas(Some(Position(0)), None)),
            ("retire", command(Some(client.clone()), Body::Retire)),
            ("configure", command(None, Body::Configure(schema))),
            ("upsert", command(Some(client), Body::Upsert(vec![whole, bare]))),
            ("delete", command(None, Body::Delete(vec![PointId::Num(0), PointId::Uuid(u128::MAX)]))),
            ("delete matching", command(None, Body::DeleteMatching(filter))),
            ("configure, with bits for codes", command(None, Body::Configure(coded.clone()))),
            ("mirror", command(None, mirror)),
            ("follow", command(None, Body::Turn(Turn::Follow(Homes(vec![home]))))),
            ("seal", command(None, Body::Turn(Turn::Seal(Generation(3))))),
            ("unseal", command(None, Body::Turn(Turn::Unseal(Generation(3))))),
            ("promote", command(None, Body::Turn(Turn::Promote(Generation(3))))),
            ("seed, begin", seed(Seed::Begin { schema: coded })),
            (
                "seed, points",
                seed(Seed::Points { range: range.clone(), points: vec![(bare_7, Position(300))] }),
            ),
            ("seed, intents", seed(Seed::Intents { range, rows: vec![row] })),
            ("seed, end", seed(Seed::End(end))),
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
