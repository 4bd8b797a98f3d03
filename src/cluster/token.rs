//! What a session has written or seen: opaque to users, passed on in `Annal-Token`.
//!
//! Bytes (then URL-safe base64 without padding): version u8 = 1 | crc32 u32 of what follows | collection u64 |
//! generation u64 | for each shard: shard u32, position u64; little-endian.

use crate::model::{CollectionId, Generation, Position, ShardNumber};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Positions of some shards of one collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// The collection.
    pub collection: CollectionId,
    /// The home its positions count in.
    pub generation: Generation,
    /// Positions by shard.
    pub shards: BTreeMap<ShardNumber, Position>,
}

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 4;
const SHARD_BYTES: usize = 12;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = Vec::with_capacity(16 + SHARD_BYTES * self.shards.len());
        body.extend(self.collection.0.to_le_bytes());
        body.extend(self.generation.0.to_le_bytes());
        for (shard, position) in &self.shards {
            body.extend(shard.0.to_le_bytes());
            body.extend(position.0.to_le_bytes());
        }
        let crc = crc32fast::hash(&body);
        f.write_str(&URL_SAFE_NO_PAD.encode([&[VERSION][..], &crc.to_le_bytes(), &body].concat()))
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "is not a token that Annal gave out";
        let bytes = URL_SAFE_NO_PAD.decode(s).map_err(|_| WRONG)?;
        let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or(WRONG)?;
        if head[0] != VERSION || head[1..] != crc32fast::hash(body).to_le_bytes() {
            return Err(WRONG);
        }
        let (collection, body) = body.split_first_chunk().ok_or(WRONG)?;
        let (generation, body) = body.split_first_chunk().ok_or(WRONG)?;
        let (shards, rest) = body.as_chunks::<SHARD_BYTES>();
        if !rest.is_empty() {
            return Err(WRONG);
        }
        let shard = |b: &[u8; SHARD_BYTES]| {
            let (shard, position) = b.split_first_chunk::<4>()?;
            let position = position.first_chunk::<8>()?;
            Some((ShardNumber(u32::from_le_bytes(*shard)), Position(u64::from_le_bytes(*position))))
        };
        Ok(Token {
            collection: CollectionId(u64::from_le_bytes(*collection)),
            generation: Generation(u64::from_le_bytes(*generation)),
            shards: shards.iter().filter_map(shard).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_way_out_and_back_and_nothing_else_passes() {
        let token = Token {
            collection: CollectionId(7),
            generation: Generation(1),
            shards: [(ShardNumber(0), Position(42)), (ShardNumber(3), Position(u64::MAX))].into(),
        };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token));
        for at in 0..text.len() {
            let mut flipped = text.clone().into_bytes();
            flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
            let flipped = String::from_utf8(flipped).expect("ASCII");
            assert!(flipped.parse::<Token>().is_err(), "{flipped} passed");
        }
        assert!("".parse::<Token>().is_err());
    }
}
