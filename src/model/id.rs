//! Ids and positions: a type for each, so that two of them never get mixed up.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// A point's id: an unsigned number or a UUID. Numbers order before UUIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PointId {
    /// An unsigned 64-bit number.
    Num(u64),
    /// A UUID, as its 128 bits.
    Uuid(u128),
}

impl PointId {
    /// The id as store key: a tag byte (0 number, 1 UUID), then the value big-endian; keeps the order.
    pub fn to_key(self) -> Vec<u8> {
        match self {
            PointId::Num(n) => [&[0u8][..], &n.to_be_bytes()].concat(),
            PointId::Uuid(u) => [&[1u8][..], &u.to_be_bytes()].concat(),
        }
    }

    /// Reads a key written by [`PointId::to_key`]; `None` if it is not one.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        match key.split_first()? {
            (0, n) => Some(PointId::Num(u64::from_be_bytes(n.try_into().ok()?))),
            (1, u) => Some(PointId::Uuid(u128::from_be_bytes(u.try_into().ok()?))),
            _ => None,
        }
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PointId::Num(n) => n.fmt(f),
            PointId::Uuid(u) => uuid::Uuid::from_u128(*u).fmt(f),
        }
    }
}

impl FromStr for PointId {
    type Err = &'static str;

    /// A decimal number, or a UUID with or without dashes.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Ok(n) = s.parse() {
            return Ok(PointId::Num(n));
        }
        uuid::Uuid::try_parse(s)
            .map(|u| PointId::Uuid(u.as_u128()))
            .map_err(|_| "an id is an unsigned 64-bit number or a UUID")
    }
}

impl Serialize for PointId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            PointId::Num(n) => s.serialize_u64(*n),
            PointId::Uuid(_) => s.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for PointId {
    /// A number, or a string that holds a UUID (a string of digits is not an id, as in Qdrant).
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = PointId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a point id: an unsigned 64-bit number or a UUID")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<PointId, E> {
                Ok(PointId::Num(n))
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<PointId, E> {
                uuid::Uuid::try_parse(s).map(|u| PointId::Uuid(u.as_u128())).map_err(|_| {
                    E::custom(format!(
                        "value {s} is not a valid point ID, valid values are either an unsigned integer or a UUID"
                    ))
                })
            }
        }
        d.deserialize_any(Visitor)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Counts a shard's commands in apply order, from 1; 0 is before the first. The same in every region.
    Position(u64)
}
number! {
    /// A collection's number; never reused.
    CollectionId(u64)
}
number! {
    /// A shard's number within its collection, from 0.
    ShardNumber(u32)
}
number! {
    /// A replica's Raft id, allocated by the catalog; never reused.
    ReplicaId(u64)
}
number! {
    /// Version of a collection's placement.
    Epoch(u64)
}
number! {
    /// Counts the homes (primary regions) a collection has had, from 1.
    Generation(u64)
}

impl Position {
    /// The position after this one.
    pub fn next(self) -> Self {
        Position(self.0 + 1)
    }
}

/// Names one intent of one client, so that a retry is applied once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Who asks; 1 to 64 visible ASCII characters without `/`.
    pub client: String,
    /// The client's own count of its intents.
    pub seq: u64,
}

impl RequestId {
    /// Longest client name, in bytes.
    pub const CLIENT_BYTES_MAX: usize = 64;
}

impl FromStr for RequestId {
    type Err = String;

    /// `CLIENT/SEQ`, the form of the `Idempotency-Key` header.
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "wants CLIENT/SEQ, with 1 to {} visible ASCII characters and an unsigned number",
                Self::CLIENT_BYTES_MAX
            )
        };
        let (client, seq) = s.rsplit_once('/').ok_or_else(wrong)?;
        let fits = (1..=Self::CLIENT_BYTES_MAX).contains(&client.len())
            && client.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        match seq.parse() {
            Ok(seq) if fits => Ok(RequestId { client: client.to_owned(), seq }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.client, self.seq)
    }
}
