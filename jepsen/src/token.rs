//! What tokens say: which home their positions count in, and the position of each shard.
//!
//! To users a token is opaque. The harness reads it, since nothing else in an answer tells of which home it is; how it is
//! laid out stands in `docs/FORMATS.md` ("Tokens").
//!
//! Not here: whether a token is one that a node gave out (its checksum is not looked at).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an answer has written or seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The home its positions count in.
    pub generation: u64,
    /// Positions by shard.
    pub shards: BTreeMap<u64, u64>,
}

const VERSION: u8 = 2;
const FEED_VERSION: u8 = 0xF2;
const HEAD_BYTES: usize = 1 + 4;

impl Seen {
    /// Reads the text of `Annal-Token`; none if it has another form.
    pub fn of(token: &str) -> Option<Seen> {
        let bytes = from_base64(token)?;
        let (head, mut body) = bytes.split_at_checked(HEAD_BYTES)?;
        let mut number = || varint(&mut body);
        if head[0] != VERSION {
            return None;
        }
        let _collection = number()?;
        let generation = number()?;
        let mut shards = BTreeMap::new();
        let mut shard = 0u64;
        while let Some(left_out) = number() {
            shard = shard.checked_add(left_out)?;
            for _ in 0..number()? {
                shards.insert(shard, number()?);
                shard += 1;
            }
        }
        body.is_empty().then_some(Seen { generation, shards })
    }
}

/// How far a consumer of the change feed has come in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fed {
    /// The home that gave the position.
    pub generation: u64,
    /// The last position of which something came.
    pub position: u64,
}

/// Reads the token of a line of the change feed, by shard; none if it has another form.
pub fn fed(token: &str) -> Option<BTreeMap<u64, Fed>> {
    let bytes = from_base64(token)?;
    let (head, mut body) = bytes.split_at_checked(HEAD_BYTES)?;
    let mut number = || varint(&mut body);
    if head[0] != FEED_VERSION {
        return None;
    }
    let _collection = number()?;
    let mut shards = BTreeMap::new();
    let (mut shard, mut generation) = (0u64, 1);
    while let Some(run) = number() {
        if run & 1 == 1 {
            shard = shard.checked_add(number()?)?;
        }
        if run & 2 == 2 {
            generation = number()?;
        }
        for _ in 0..run >> 2 {
            let next = number()?;
            let inside = next & 1 == 1 && number()? > 0;
            let position = (next >> 1).saturating_sub(u64::from(!inside));
            shards.insert(shard, Fed { generation, position });
            shard += 1;
        }
    }
    body.is_empty().then_some(shards)
}

/// LEB128; none at the end, or within a number that does not end.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// URL-safe, without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut held, mut bits) = (0u32, 0);
    for letter in text.bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of `docs/FORMATS.md`.
    #[test]
    fn the_token_that_is_written_down_is_read() {
        let seen = Seen::of("AsmBhVcHAQACKqwCAQEB").unwrap();
        assert_eq!(seen, Seen { generation: 1, shards: [(0, 42), (1, 300), (3, 1)].into() });
    }

    /// The golden file of the feed's tokens holds in each line what the token says.
    #[test]
    fn tokens_of_the_feed_are_read() {
        let golden = include_str!("../../tests/golden/resume-tokens.txt");
        let read: Vec<_> = golden.lines().map(|line| fed(line.split(' ').next()?)).collect();
        let seen = |shards: &[(u64, u64, u64)]| {
            let fed = |(shard, generation, position): &_| {
                (*shard, Fed { generation: *generation, position: *position })
            };
            Some(shards.iter().map(fed).collect())
        };
        let known = [
            &[(0, 1, 0)][..],
            &[(0, 1, 299), (1, 1, 1 << 40), (2, 1, 4)],
            &[(3, 1, 8), (5, 1, 8)],
            &[(0, 2, 299), (1, 2, 5), (2, 1, 6), (4, 3, 8)],
        ];
        assert_eq!(read, known.map(seen));
        assert_eq!(fed("AsmBhVcHAQACKqwCAQEB"), None, "a token of a session");
    }

    #[test]
    fn other_texts_are_not() {
        for text in ["", "AsmB", "A!mBhVcHAQACKqwCAQEB", "AsmBhVcHAQACKqwCAQ", "8cmBhVcHAQACKqwCAQEB"] {
            assert_eq!(Seen::of(text), None, "{text}");
        }
    }
}
