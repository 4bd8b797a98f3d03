//! What a token says: which home its positions count in, and the position of each shard.
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

    #[test]
    fn other_texts_are_not() {
        for text in ["", "AsmB", "A!mBhVcHAQACKqwCAQEB", "AsmBhVcHAQACKqwCAQ", "8cmBhVcHAQACKqwCAQEB"] {
            assert_eq!(Seen::of(text), None, "{text}");
        }
    }
}
