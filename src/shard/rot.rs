//! Damages one row of a shard, for tests of what finds it: the scrub, the state hash, a cluster that compares.
//!
//! Not for use: it breaks every promise the store makes, which is the point of it.

use super::{current_generation, keyspace_name, points};
use crate::{
    machine::MachineError,
    store::{KeyspaceKind, Store},
};

/// What can be done to a row of a table.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// One bit of its value is flipped.
    Flip,
    /// It is gone.
    Drop,
    /// Its value stands under another key of its table as well.
    Double,
}

use Damage::{Double, Drop, Flip};

/// Every table with what can happen to it.
const DAMAGES: [(u8, &str, Damage); 27] = [
    (points::POINT, "point", Flip),
    (points::VECTOR, "vector", Flip),
    (points::DEDUP, "dedup entry", Drop),
    (points::SLOT, "slot", Drop),
    (points::FIELD, "field entry", Drop),
    (points::POINT, "point", Drop),
    (points::EFFECT, "effect", Drop),
    (points::POINT, "point", Double),
    (points::FIELD, "field entry", Double),
    (points::DEDUP, "dedup entry", Flip),
    (points::VECTOR, "vector", Drop),
    (points::SLOT, "slot", Flip),
    (points::EFFECT, "effect", Flip),
    (points::FLOOR, "floor", Drop),
    (points::FLOOR, "floor", Flip),
    (points::META, "state or schema", Flip),
    (points::SLOT, "slot", Double),
    (points::VECTOR, "vector", Double),
    (points::DEDUP, "dedup entry", Double),
    (points::EFFECT, "effect", Double),
    (points::EVICTION, "eviction list", Drop),
    (points::EVICTION, "eviction list", Flip),
    (points::MARK, "bookmark", Flip),
    (points::MARK, "bookmark", Drop),
    (points::HASH, "state hash", Flip),
    (points::HASH, "state hash", Drop),
    (points::META, "state or schema", Drop),
];

/// How many kinds of damage there are: as many seeds in a row try each once.
#[doc(hidden)]
pub const KINDS: u64 = DAMAGES.len() as u64;

/// Rows of a table that are looked at to choose one.
const ROWS_MAX: usize = 100_000;

/// Damages one row of the shard whose keyspaces begin with `name`, chosen by `seed`; says what was done.
///
/// The kind of damage is `seed` modulo [`KINDS`]; if the shard has no row of that kind, the next kind is taken.
/// `None`: there is no such shard, or it is empty. A shard that is open goes on with what it has in memory.
#[doc(hidden)]
pub fn inject(store: &Store, name: &str, seed: u64) -> Result<Option<String>, MachineError> {
    if !store.keyspaces().iter().any(|keyspace| keyspace == name) {
        return Ok(None);
    }
    let current = keyspace_name(name, current_generation(store, name)?);
    let keyspace = store.keyspace(&current, KeyspaceKind::LargeValues)?;
    let view = store.view();
    let mut random = seed;
    for kind in 0..KINDS {
        let (table, what, damage) = DAMAGES[((seed + kind) % KINDS) as usize];
        let keys = view.keys(&keyspace, &[table]).take(ROWS_MAX).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            continue;
        }
        let key = &keys[(next(&mut random) % keys.len() as u64) as usize];
        let Some(value) = view.get(&keyspace, key)? else { continue };
        let mut batch = store.batch();
        let done = match damage {
            Flip if value.is_empty() => continue,
            Flip => {
                let mut value = value.to_vec();
                let at = (next(&mut random) % value.len() as u64) as usize;
                let bit = next(&mut random) % 8;
                value[at] ^= 1 << bit;
                batch.put(&keyspace, key, value);
                format!("bit {bit} of byte {at} flipped")
            }
            Drop => {
                batch.delete(&keyspace, key);
                "dropped".to_owned()
            }
            Double => {
                // A key of the same form, which no row has: the last bytes of each table's keys are a number
                // (of points: of those with such ids).
                let mut other = key.to_vec();
                while view.get(&keyspace, &other)?.is_some() {
                    let at = other.len() - 1 - (next(&mut random) % 4).min(other.len() as u64 - 2) as usize;
                    other[at] = next(&mut random) as u8;
                }
                batch.put(&keyspace, &other, &value);
                format!("doubled as {other:02x?}")
            }
        };
        batch.commit()?;
        return Ok(Some(format!("{what} {:02x?} {done}", &key[..])));
    }
    Ok(None)
}

/// The next number of a sequence that a seed gives.
///
/// Source: SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
