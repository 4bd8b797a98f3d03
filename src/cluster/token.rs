//! What a session has written or seen: opaque to users, passed on in `Annal-Token`.

use super::{CollectionId, Generation, Position, ShardNumber};
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

impl fmt::Display for Token {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl FromStr for Token {
    type Err = &'static str;
    fn from_str(_s: &str) -> Result<Self, Self::Err> {
        todo!()
    }
}
