//! A copy of a shard for a region that follows it, step by step, and how such a copy is taken in.
//!
//! ```text
//!   Begin (schema) ─ Points (ids up to a) ─ Points (a to b) ─ … ─ Intents ─ … ─ End (position, counters, hash)
//! ```
//!
//! A step says all there is within its range of keys, so that a copy that was cut off is begun again over what the
//! first attempt left, and what was deleted meanwhile goes. The copy is one of one view; the shard that takes it in is
//! not read before it is whole (`Counting::seeding`).
//!
//! Invariants: after the last step points, intents and schema are those of the home's shard at its position, whatever
//! slots they have; what lies before it (effects, bookmarks, hashes) is not there.
//! Not here: how steps get from region to region (`region/`), replicas of one group (`snapshot`).

use super::{
    apply::Fold,
    dedup::Clients,
    points::{self, PointRecord, decode},
    search::{ReadView, parse},
};
use crate::{
    machine::MachineError,
    model::{
        Position, Vector,
        command::PointWrite,
        region::{KeyRange, Seed, SeedEnd},
    },
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, ops::Bound};

/// Where the next step of a copy begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeedCursor {
    /// With the schema.
    #[default]
    Begin,
    /// With the points after this id (as a key).
    Points(Option<Vec<u8>>),
    /// With the intents after this key.
    Intents(Option<Vec<u8>>),
    /// With the end.
    End,
}

impl ReadView {
    /// A step of a copy of this view, of about so many bytes, and where the next one begins (none: it was the last).
    ///
    /// Errors: `Damaged`. Cost: reads the rows it gives.
    pub fn seed(
        &self,
        cursor: &SeedCursor,
        bytes_max: usize,
    ) -> Result<(Seed, Option<SeedCursor>), MachineError> {
        match cursor {
            SeedCursor::Begin => {
                let schema = self.schema.as_ref().clone();
                Ok((Seed::Begin { schema }, Some(SeedCursor::Points(None))))
            }
            SeedCursor::Points(after) => self.seed_points(after.clone(), bytes_max),
            SeedCursor::Intents(after) => self.seed_intents(after.clone(), bytes_max),
            SeedCursor::End => {
                let end = SeedEnd {
                    position: self.position(),
                    dedup_oldest: Position(self.state.dedup_oldest),
                    floor_cursor: self.state.floor_cursor.clone(),
                    hash: super::apply::state_hash(&self.state, self.state.sums()?),
                };
                Ok((Seed::End(end), None))
            }
        }
    }

    fn seed_points(
        &self,
        after: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<(Seed, Option<SeedCursor>), MachineError> {
        let (mut points, mut bytes) = (Vec::new(), 0);
        for row in self.store.range(&self.keyspace, bounds(points::POINT, after.as_deref(), None)) {
            let (key, value) = row?;
            let record: PointRecord = decode("point", value)?;
            let mut write = PointWrite {
                id: points::point_of_key(&key)?,
                vectors: Default::default(),
                payload: record.payload.clone(),
            };
            for name in &record.dense {
                let row = self.store.get(&self.keyspace, points::vector_key(record.slot, name))?;
                let row = row.ok_or_else(|| points::damaged("vector", format!("none of {}", write.id)))?;
                bytes += row.len();
                write.vectors.insert(name.clone(), Vector::Dense(points::floats_of_bytes(&row)?));
            }
            for sparse in &record.sparse {
                bytes += sparse.indices.len() * 8;
                write.vectors.insert(sparse.name.clone(), sparse.vector());
            }
            bytes += record.payload.len() + key.len();
            points.push((write, Position(record.version)));
            if bytes >= bytes_max {
                let upto = Some(key[1..].to_vec());
                let range = KeyRange { after, upto: upto.clone() };
                return Ok((Seed::Points { range, points }, Some(SeedCursor::Points(upto))));
            }
        }
        let range = KeyRange { after, upto: None };
        Ok((Seed::Points { range, points }, Some(SeedCursor::Intents(None))))
    }

    fn seed_intents(
        &self,
        after: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> Result<(Seed, Option<SeedCursor>), MachineError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for table in points::INTENTS {
            let within = KeyRange { after: after.clone(), upto: None };
            let Some(bounds) = within_table(table, &within) else { continue };
            for row in self.store.range(&self.keyspace, bounds) {
                let (key, value) = row?;
                bytes += key.len() + value.len();
                rows.push((key.clone(), value));
                if bytes >= bytes_max {
                    let upto = Some(key.to_vec());
                    let range = KeyRange { after, upto: upto.clone() };
                    return Ok((Seed::Intents { range, rows }, Some(SeedCursor::Intents(upto))));
                }
            }
        }
        let range = KeyRange { after, upto: None };
        Ok((Seed::Intents { range, rows }, Some(SeedCursor::End)))
    }
}

/// A first and a last key.
type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The keys of a table whose rest lies within a range.
fn bounds(table: u8, after: Option<&[u8]>, upto: Option<&[u8]>) -> Bounds {
    let key = |rest: &[u8]| [&[table], rest].concat();
    let from = after.map_or(Bound::Included(vec![table]), |after| Bound::Excluded(key(after)));
    let to = upto.map_or(Bound::Excluded(vec![table + 1]), |upto| Bound::Included(key(upto)));
    (from, to)
}

/// The keys of a table within a range of whole keys; none if there are none.
fn within_table(table: u8, range: &KeyRange) -> Option<Bounds> {
    let (first, end) = (vec![table], vec![table + 1]);
    let from = match &range.after {
        Some(after) if *after >= end => return None,
        Some(after) if *after >= first => Bound::Excluded(after.clone()),
        _ => Bound::Included(first.clone()),
    };
    let to = match &range.upto {
        Some(upto) if *upto < first => return None,
        Some(upto) if *upto < end => Bound::Included(upto.clone()),
        _ => Bound::Excluded(end),
    };
    Some((from, to))
}

/// The first key within a bound, and the first beyond it.
fn half_open((from, to): Bounds) -> (Vec<u8>, Vec<u8>) {
    let behind = |key: Vec<u8>| [&key[..], &[0]].concat();
    let from = match from {
        Bound::Included(key) => key,
        Bound::Excluded(key) => behind(key),
        Bound::Unbounded => Vec::new(),
    };
    let to = match to {
        Bound::Included(key) => behind(key),
        Bound::Excluded(key) => key,
        Bound::Unbounded => vec![u8::MAX],
    };
    (from, to)
}

impl Fold<'_> {
    /// Takes in a step of a copy.
    pub(super) fn seed(&mut self, step: Seed) -> Result<(), MachineError> {
        match step {
            Seed::Begin { schema } => {
                if let Err(rejection) = self.configure(schema)? {
                    return Err(points::damaged("copy", rejection.message));
                }
            }
            Seed::Points { range, points } => {
                let ids: BTreeSet<_> = points.iter().map(|(point, _)| point.id).collect();
                let (from, to) =
                    half_open(bounds(points::POINT, range.after.as_deref(), range.upto.as_deref()));
                for (key, _) in self.rows(from, to, usize::MAX)? {
                    let id = points::point_of_key(&key)?;
                    if !ids.contains(&id) {
                        self.delete_point(id)?;
                    }
                }
                for (point, version) in points {
                    let payload = parse(&point.payload)?;
                    self.upsert(point, &payload, version)?;
                }
            }
            Seed::Intents { range, rows } => {
                *self.clients = Clients::default();
                for table in points::INTENTS {
                    let Some(bounds) = within_table(table, &range) else { continue };
                    let (from, to) = half_open(bounds);
                    for (key, value) in self.rows(from, to, usize::MAX)? {
                        self.forget_intent_row(key, &value);
                    }
                }
                for (key, value) in rows {
                    self.take_intent_row(key.to_vec(), value);
                }
            }
            Seed::End(end) => {
                self.state.position = end.position.0;
                self.state.dedup_oldest = end.dedup_oldest.0;
                self.state.floor_cursor = end.floor_cursor;
                self.state.effects_oldest = end.position.next().0;
            }
        }
        Ok(())
    }

    /// A row of the memory of intents goes, from the sum it is part of too.
    fn forget_intent_row(&mut self, key: Vec<u8>, value: &[u8]) {
        if key.first() == Some(&points::EVICTION) {
            return self.delete_local(key, value);
        }
        self.sums.intents = self.sums.intents.wrapping_sub(points::row_hash(&key, value));
        self.delete(key);
    }

    fn take_intent_row(&mut self, key: Vec<u8>, value: Bytes) {
        if key.first() == Some(&points::EVICTION) {
            return self.put_local(key, value.to_vec());
        }
        self.sums.intents = self.sums.intents.wrapping_add(points::row_hash(&key, &value));
        self.put(key, value);
    }
}
