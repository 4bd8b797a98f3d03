//! What a session has written or seen: opaque to users, passed on in `Annal-Token`.
//!
//! Bytes (then URL-safe base64 without padding): version u8 = 2 | crc32 u32, little-endian, of what follows |
//! collection | generation | runs of shards: shards left out before the run, shards in it, the position of each.
//! Every number but the crc is a varint (LEB128), so that 16 shards near position 2^40 take 140 characters.
//! Invariant: a token has one form; whatever else decodes is refused.

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

const VERSION: u8 = 2;
const HEAD_BYTES: usize = 1 + 4;

impl Token {
    /// Takes in what another token of the same collection names; of two positions the higher one stays.
    pub fn join(&mut self, other: &Token) {
        if (self.collection, self.generation) == (other.collection, other.generation) {
            for (shard, position) in &other.shards {
                let known = self.shards.entry(*shard).or_default();
                *known = (*known).max(*position);
            }
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(8 + 7 * self.shards.len());
        put_varint(&mut body, self.collection.0);
        put_varint(&mut body, self.generation.0);
        let mut next = 0;
        let mut shards = self.shards.iter().peekable();
        while let Some((first, position)) = shards.next() {
            let mut run = vec![*position];
            while let Some((_, position)) =
                shards.next_if(|(shard, _)| u64::from(shard.0) == u64::from(first.0) + run.len() as u64)
            {
                run.push(*position);
            }
            put_varint(&mut body, u64::from(first.0) - next);
            put_varint(&mut body, run.len() as u64);
            next = u64::from(first.0) + run.len() as u64;
            run.into_iter().for_each(|position| put_varint(&mut body, position.0));
        }
        body
    }

    fn of_body(mut body: &[u8]) -> Option<Token> {
        let body = &mut body;
        let mut token = Token {
            collection: CollectionId(varint(body)?),
            generation: Generation(varint(body)?),
            shards: BTreeMap::new(),
        };
        let mut next = 0u64;
        while !body.is_empty() {
            next = next.checked_add(varint(body)?)?;
            for _ in 0..varint(body)? {
                let shard = ShardNumber(u32::try_from(next).ok()?);
                token.shards.insert(shard, Position(varint(body)?));
                next += 1;
            }
        }
        Some(token)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
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
        Token::of_body(body).filter(|token| token.body() == body).ok_or(WRONG)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(shards: impl IntoIterator<Item = (u32, u64)>) -> Token {
        Token {
            collection: CollectionId(7),
            generation: Generation(1),
            shards: shards.into_iter().map(|(s, p)| (ShardNumber(s), Position(p))).collect(),
        }
    }

    /// As `docs/FORMATS.md` shows it.
    const GOLDEN: (&str, [(u32, u64); 3]) = ("AsmBhVcHAQACKqwCAQEB", [(0, 42), (1, 300), (3, 1)]);

    #[test]
    fn a_token_survives_the_way_out_and_back_and_nothing_else_passes() {
        for token in [token([]), token([(0, 42), (3, u64::MAX)]), token([(u32::MAX, 1)]), token(GOLDEN.1)] {
            let text = token.to_string();
            assert_eq!(text.parse(), Ok(token));
            for at in 0..text.len() {
                let mut flipped = text.clone().into_bytes();
                flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
                let flipped = String::from_utf8(flipped).expect("ASCII");
                assert!(flipped == text || flipped.parse::<Token>().is_err(), "{flipped} passed");
                assert!(text[..at].parse::<Token>().is_err(), "{} passed", &text[..at]);
            }
        }
    }

    #[test]
    fn a_token_has_the_bytes_that_are_written_down() {
        assert_eq!(token(GOLDEN.1).to_string(), GOLDEN.0);
    }

    #[test]
    fn bodies_that_no_token_has_are_refused() {
        // An empty run, two runs that are one, a number longer than it need be, a shard beyond the last.
        let bodies: [&[u8]; 4] = [
            &[7, 1, 0, 0],
            &[7, 1, 0, 1, 9, 0, 1, 9],
            &[0x87, 0, 1],
            &[7, 1, 0xff, 0xff, 0xff, 0xff, 0x1f, 1, 1],
        ];
        for body in bodies {
            let bytes = [&[VERSION][..], &crc32fast::hash(body).to_le_bytes(), body].concat();
            assert!(URL_SAFE_NO_PAD.encode(bytes).parse::<Token>().is_err(), "{body:?} passed");
        }
    }

    #[test]
    fn sixteen_shards_near_two_to_the_forty_fit_in_160_bytes() {
        let dense = token((0..16).map(|shard| (shard, (1 << 40) - 1 - u64::from(shard))));
        let late = Token { collection: CollectionId(1 << 40), generation: Generation(9), ..dense.clone() };
        let lengths = [&dense, &late].map(|token| token.to_string().len());
        assert_eq!(lengths, [140, 147]);
    }

    #[test]
    fn of_two_tokens_the_higher_positions_stay() {
        let mut seen = token([(0, 5), (1, 9)]);
        seen.join(&token([(0, 7), (1, 3), (4, 1)]));
        assert_eq!(seen, token([(0, 7), (1, 9), (4, 1)]));
        seen.join(&Token { collection: CollectionId(8), ..token([(0, 99)]) });
        assert_eq!(seen, token([(0, 7), (1, 9), (4, 1)]));
    }
}
