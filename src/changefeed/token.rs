//! Where a consumer of the change feed stands: on every line, opaque to users.
//!
//! ```text
//!   position    1      2            3            4
//!   events      .      a  b  c      (none)       d
//!   place       1+0    2+0 2+1 2+2  3+0          4+0  5+0
//! ```
//!
//! A place is the first command that is not wholly delivered, and how many of its events are. So what was wholly
//! delivered is never needed again, and the count stands only inside a command. It also says which home gave the last
//! position that was seen: shards hear of a new home one after the other.
//!
//! Invariants: a token survives the way out and back; no other text passes (a checksum); at most 160 characters at
//! 16 shards near position 2^40, also if all of them stand inside a command.
//! Layout: `docs/FORMATS.md`.

use crate::{
    cluster::Stand,
    model::{CollectionId, Generation, Position, ShardNumber},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::encoding::{decode_varint, encode_varint};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Where a feed goes on: a place in each of its shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// The collection.
    pub collection: CollectionId,
    /// The shards the feed is of.
    pub shards: BTreeMap<ShardNumber, Place>,
}

/// A place in the events of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The home of the last command of which something was delivered.
    pub home: Generation,
    /// The first command of which events may be missing.
    pub position: Position,
    /// How many of its events are delivered.
    pub delivered: u64,
}

impl Place {
    /// Before all events of a command, as a home counts.
    pub fn before(position: Position, home: Generation) -> Place {
        Place { home, position, delivered: 0 }
    }

    /// Behind all events of a command.
    pub fn behind(Stand { position, home }: Stand) -> Place {
        Place::before(position.next(), home)
    }

    /// The last command of which something was delivered.
    pub fn seen(self) -> Stand {
        let position = Position(self.position.0.saturating_sub(u64::from(self.delivered == 0)));
        Stand { position, home: self.home }
    }
}

/// A feed's token (F), version 2: no token of a session begins so.
const VERSION: u8 = 0xF2;
const HEAD_BYTES: usize = 1 + 4;

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([VERSION, 0, 0, 0, 0]);
        encode_varint(self.collection.0, &mut bytes);
        let mut home = Generation(1);
        for (gap, run) in self.runs() {
            let turned = run[0].home != home;
            home = run[0].home;
            encode_varint((run.len() as u64) << 2 | u64::from(turned) << 1 | u64::from(gap > 0), &mut bytes);
            if gap > 0 {
                encode_varint(u64::from(gap), &mut bytes);
            }
            if turned {
                encode_varint(home.0, &mut bytes);
            }
            for Place { position, delivered, .. } in run {
                encode_varint(position.0 << 1 | u64::from(delivered > 0), &mut bytes);
                if delivered > 0 {
                    encode_varint(delivered, &mut bytes);
                }
            }
        }
        let crc = crc32fast::hash(&bytes[HEAD_BYTES..]);
        bytes[1..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl ResumeToken {
    /// The newest home that one of its shards has come to.
    pub(super) fn newest_home(&self) -> Generation {
        self.shards.values().map(|place| place.home).max().unwrap_or(Generation(1))
    }

    /// The places of shards that follow each other and have one home, with how many shards before them are left out.
    fn runs(&self) -> Vec<(u32, Vec<Place>)> {
        let mut runs: Vec<(u32, Vec<Place>)> = Vec::new();
        let mut next = 0;
        for (shard, place) in &self.shards {
            match runs.last_mut() {
                Some((_, run)) if next == shard.0 && run[0].home == place.home => run.push(*place),
                _ => runs.push((shard.0 - next, vec![*place])),
            }
            next = shard.0 + 1;
        }
        runs
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_at_checked(HEAD_BYTES)?;
        if head[0] != VERSION || head[1..] != crc32fast::hash(rest).to_le_bytes() {
            return None;
        }
        let mut number = || decode_varint(&mut rest).ok();
        let collection = CollectionId(number()?);
        let mut shards = BTreeMap::new();
        let (mut shard, mut home) = (0u32, Generation(1));
        while let Some(run) = number() {
            if run & 1 == 1 {
                shard = shard.checked_add(number()?.try_into().ok()?)?;
            }
            if run & 2 == 2 {
                home = Generation(number()?);
            }
            for _ in 0..run >> 2 {
                let flagged = number()?;
                let delivered = if flagged & 1 == 1 { number()? } else { 0 };
                shards
                    .insert(ShardNumber(shard), Place { home, position: Position(flagged >> 1), delivered });
                shard = shard.checked_add(1)?;
            }
        }
        rest.is_empty().then_some(ResumeToken { collection, shards })
    }
}

impl FromStr for ResumeToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        bytes.and_then(|bytes| Self::decode(&bytes)).ok_or("is not a token that a feed of Annal gave out")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(shards: impl IntoIterator<Item = (u32, u64, u64)>) -> ResumeToken {
        homes(shards.into_iter().map(|(shard, position, delivered)| (1, shard, position, delivered)))
    }

    fn homes(shards: impl IntoIterator<Item = (u64, u32, u64, u64)>) -> ResumeToken {
        let place = |(home, shard, position, delivered)| {
            (ShardNumber(shard), Place { home: Generation(home), position: Position(position), delivered })
        };
        ResumeToken { collection: CollectionId(7), shards: shards.into_iter().map(place).collect() }
    }

    proptest! {
        #[test]
        fn a_token_survives_the_way_out_and_back(
            shards in proptest::collection::btree_map(0..40u32, (1..4u64, 0..1u64 << 62, 0..3u64), 0..20),
        ) {
            let token = homes(shards.into_iter().map(|(shard, (home, position, n))| (home, shard, position, n)));
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn nothing_else_passes() {
        let text = token([(0, 42, 0), (1, 1 << 40, 3), (5, 1, 0)]).to_string();
        for at in 0..text.len() {
            let mut flipped = text.clone().into_bytes();
            flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
            let flipped = String::from_utf8(flipped).unwrap();
            assert!(flipped.parse::<ResumeToken>().is_err(), "{flipped} passed");
            assert!(text[..at].parse::<ResumeToken>().is_err(), "{} passed", &text[..at]);
        }
        let other: crate::cluster::Token = Default::default();
        assert!(other.to_string().parse::<ResumeToken>().is_err(), "a session's token passed");
    }

    #[test]
    fn a_token_of_16_shards_is_short() {
        let near = (1 << 40) - 5;
        let between = token((0..16).map(|shard| (shard, near + u64::from(shard) / 4, 0))).to_string();
        let inside = token((0..16).map(|shard| (shard, near, 100))).to_string();
        let turning = homes((0..16).map(|shard| (1 + u64::from(shard) % 2, shard, near, 0))).to_string();
        let lengths = [between.len(), inside.len(), turning.len()];
        println!(
            "{lengths:?} characters: between commands, inside them, while every other shard has a new home"
        );
        assert!(lengths.iter().all(|length| *length <= 160 + 40), "{lengths:?}");
        assert!(between.len() <= 160 && inside.len() <= 160, "{lengths:?}");
    }

    /// `REWRITE=1` writes the file anew.
    #[test]
    fn the_bytes_stay() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/resume-tokens.txt");
        let known = [
            token([(0, 1, 0)]),
            token([(0, 300, 0), (1, 1 << 40, 2), (2, 5, 0)]),
            token([(3, 9, 0), (5, 8, 1)]),
            homes([(2, 0, 300, 0), (2, 1, 5, 1), (1, 2, 7, 0), (3, 4, 9, 0)]),
        ];
        let written: String = known.iter().map(|token| format!("{token} {token:?}\n")).collect();
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, &written).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    }
}
