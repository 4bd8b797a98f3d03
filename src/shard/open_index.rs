//! Opens the vector indexes of a shard: from the files that are whole, and from the store what no file holds.
//!
//! Invariants: every live vector is in one part of its index; memory is bounded, however many have no file: what waits for a
//! graph beyond that is built at once.
//! Not here: what is built later, and when files go (`indexer`).

use super::{
    ShardOptions, indexer,
    points::{self, Slot, damaged},
    slots::{LiveSet, SlotTable},
    vector_index::{
        IndexError, SealedSegment, VectorIndex, VectorIndexes,
        manifest::{Entry, Manifest},
        segment::Segment,
    },
};
use crate::{
    machine::MachineError,
    model::{Schema, VectorParams},
    store::{Keyspace, View},
};
use roaring::RoaringBitmap;
use std::{
    collections::BTreeMap,
    fs, mem,
    ops::Bound,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

/// The files of an index that is opened.
pub(super) struct Files<'a> {
    pub(super) folder: &'a Path,
    pub(super) manifest: &'a Manifest,
    /// Names that no file of the folder has.
    pub(super) new_file: &'a mut dyn FnMut() -> String,
}

/// The rows that an index is of.
pub(super) struct Rows<'a> {
    pub(super) live: &'a LiveSet,
    pub(super) slots: &'a SlotTable,
    /// The first that has not been given out.
    pub(super) next_slot: Slot,
    /// Where their vectors are.
    pub(super) view: &'a View,
    pub(super) keyspace: &'a Keyspace,
}

/// Opens the index of every vector of a schema.
///
/// A file that is damaged, of another schema, or that knows slots the store does not, is left out; its live rows come
/// from the store and are built again, here and now as far as more than `waiting_bytes` of a vector would wait.
pub(super) fn open<'r>(
    schema: &Schema,
    files: Files<'_>,
    rows: &'r Rows<'r>,
    options: &'r ShardOptions,
) -> Result<VectorIndexes, MachineError> {
    let mut opening = Opening { files, rows, options, fails: false };
    let all = rows.live.to_bitmap();
    let mut indexes = VectorIndexes::new();
    let mut missing: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
    for (name, params) in &schema.vectors {
        let mut covered = RoaringBitmap::new();
        let mut segments = Vec::new();
        for entry in opening.files.manifest.segments.get(name).into_iter().flatten() {
            match open_segment(opening.files.folder, entry, params, rows, &covered) {
                Ok((segment, held)) => {
                    covered |= held;
                    segments.push(Arc::new(segment));
                }
                Err(why) => {
                    tracing::warn!(file = entry.file, why, "index file left out; it is built again");
                }
            }
        }
        missing.insert(name, &all - covered);
        indexes.insert(name.clone(), VectorIndex::new(*params, segments));
    }
    for (name, missing) in missing {
        let index = indexes.get_mut(name).ok_or_else(|| damaged("schema", "a vector without an index"))?;
        opening.read(index, name, &missing)?;
    }
    Ok(indexes)
}

/// Opens one file and gives the live slots it holds.
fn open_segment(
    folder: &Path,
    entry: &Entry,
    params: &VectorParams,
    of: &Rows<'_>,
    covered: &RoaringBitmap,
) -> Result<(SealedSegment, RoaringBitmap), String> {
    let segment = Segment::open(&folder.join(&entry.file), params.residence).map_err(|e| e.to_string())?;
    if Entry::of(&entry.file, &segment) != *entry {
        return Err("it is not the file the manifest names".to_owned());
    }
    if !segment.fits(params.distance, params.dim as usize) {
        return Err("it is of another schema".to_owned());
    }
    if !segment.rows().is_sorted_by(|a, b| a.slot < b.slot) {
        return Err("its rows do not ascend".to_owned());
    }
    if segment.rows().last().is_some_and(|row| row.slot >= of.next_slot) {
        return Err("it is ahead of the store".to_owned());
    }
    let mut rows = RoaringBitmap::new();
    for row in segment.rows() {
        match of.slots.born(row.slot) {
            None => {}
            Some(born) if born == row.version => _ = rows.insert(row.slot),
            Some(born) => {
                return Err(format!("slot {} is of position {born}, not {}", row.slot, row.version));
            }
        }
    }
    if !rows.is_disjoint(covered) {
        return Err("another file has some of its rows".to_owned());
    }
    Ok((SealedSegment { file: entry.file.clone(), segment }, rows))
}

/// Rows that are read and appended at a time, and bytes of their vectors.
const ROWS_AT_ONCE: usize = 1024;
const BYTES_AT_ONCE: usize = 2 << 20;

struct Opening<'f, 'r> {
    files: Files<'f>,
    rows: &'r Rows<'r>,
    options: &'r ShardOptions,
    /// Whether a build has failed: then what waits stays in memory.
    fails: bool,
}

impl Opening<'_, '_> {
    /// Appends the vectors of `slots` that the store has.
    fn read(
        &mut self,
        index: &mut VectorIndex,
        name: &str,
        slots: &RoaringBitmap,
    ) -> Result<(), MachineError> {
        let (mut read, mut values) = (Vec::new(), Vec::new());
        let mut runs = slots.iter();
        while let Some(run) = runs.next_range() {
            let from = Bound::Included(points::vector_key(*run.start(), ""));
            let to = match run.end().checked_add(1) {
                Some(end) => Bound::Excluded(points::vector_key(end, "")),
                None => Bound::Excluded(vec![points::VECTOR + 1]),
            };
            for item in self.rows.view.range(self.rows.keyspace, (from, to)) {
                let (key, bytes) = item?;
                if key[5..] != *name.as_bytes() {
                    continue;
                }
                let (row, dim) = (points::floats_of_bytes(&bytes)?, index.params.dim as usize);
                if row.len() != dim {
                    return Err(damaged("vector", format!("{} numbers in one of {dim}", row.len())));
                }
                read.push(points::slot_of_key(&key)?);
                values.extend(row);
                if read.len() >= ROWS_AT_ONCE || size_of_val(&values[..]) >= BYTES_AT_ONCE {
                    self.append(index, mem::take(&mut read), mem::take(&mut values));
                }
            }
        }
        self.append(index, read, values);
        Ok(())
    }

    fn append(&mut self, index: &mut VectorIndex, slots: Vec<Slot>, values: Vec<f32>) {
        index.append(slots, values, self.options.seal_bytes);
        if index.waiting_bytes() <= self.options.waiting_bytes || self.fails {
            return;
        }
        if let Err(error) = self.build_waiting(index) {
            tracing::error!(%error, "building a graph failed; vectors wait for it in memory");
            self.fails = true;
        }
    }

    fn build_waiting(&mut self, index: &mut VectorIndex) -> Result<(), IndexError> {
        let (files, rows) = (&mut self.files, self.rows);
        let Some(merge) = index.next_merge(rows.live, self.options.segment_bytes_max) else { return Ok(()) };
        fs::create_dir_all(files.folder)?;
        let (file, never) = ((files.new_file)(), AtomicBool::new(false));
        let new = indexer::build(files.folder, &file, (rows.live, rows.slots), &merge, &never)?;
        index.replace(&merge, new.map(Arc::new));
        Ok(())
    }
}
