//! Finds the nearest vectors: exactly in the delta, by graph in the sealed segments.

mod delta;

mod kernel;

pub(super) use delta::Delta;

use super::{
    points::Slot,
    slots::{LiveSet, SlotTable},
};
use crate::model::{PointId, VectorParams};
use kernel::Metric;
use roaring::RoaringBitmap;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
};

/// The index of one vector of the schema, as one view sees it; cheap to clone.
#[derive(Clone)]
pub(super) struct VectorIndex {
    params: VectorParams,
    open: Delta,
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    /// `[dim]`, checked and normalised.
    pub(super) query: &'a [f32],
    /// How many.
    pub(super) count: usize,
    /// Candidates kept while a graph is walked; `None`: as the graph was built.
    pub(super) ef: Option<usize>,
    /// Compare with every vector.
    pub(super) exact: bool,
    /// Among which slots; `None`: among all live ones.
    pub(super) allowed: Option<&'a RoaringBitmap>,
    /// This point is left out.
    pub(super) exclude: Option<PointId>,
    /// Which slots are live.
    pub(super) live: &'a LiveSet,
    /// Whose they are.
    pub(super) slots: &'a SlotTable,
}

impl Wanted<'_> {
    fn accepts(&self, slot: Slot) -> bool {
        self.live.contains(slot) && self.allowed.is_none_or(|allowed| allowed.contains(slot))
    }
}

impl VectorIndex {
    pub(super) fn new(params: VectorParams) -> Self {
        VectorIndex { params, open: Delta::default() }
    }

    /// What a user sees for a distance of [`Found`].
    pub(super) fn score(&self, distance: f32) -> f32 {
        Metric::of(self.params.distance).score(distance)
    }

    /// Adds rows: `values [slots.len(), dim]`, slots ascending and above all before.
    pub(super) fn append(&mut self, slots: Vec<Slot>, values: Vec<f32>) {
        self.open.append(slots, values);
    }

    /// The nearest of what is wanted, nearest first, ties by id: (distance as the metric has it, point, slot).
    pub(super) fn nearest(&self, wanted: &Wanted<'_>) -> Vec<Found> {
        let metric = Metric::of(self.params.distance);
        let mut nearest = Nearest::new(wanted);
        for (slot, row) in self.open.iter(self.params.dim as usize) {
            if wanted.accepts(slot) {
                nearest.offer(metric.distance(wanted.query, row), slot);
            }
        }
        nearest.into_sorted()
    }
}

/// A point that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    /// As the metric has it; smaller is nearer.
    pub(super) distance: f32,
    pub(super) id: PointId,
    pub(super) slot: Slot,
}

impl Eq for Found {}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The nearest so far, at most as many as are wanted.
struct Nearest<'a> {
    wanted: &'a Wanted<'a>,
    farthest_first: BinaryHeap<Found>,
}

impl<'a> Nearest<'a> {
    fn new(wanted: &'a Wanted<'a>) -> Self {
        Nearest { wanted, farthest_first: BinaryHeap::new() }
    }

    fn offer(&mut self, distance: f32, slot: Slot) {
        let full = self.farthest_first.len() >= self.wanted.count;
        if full && self.farthest_first.peek().is_none_or(|worst| distance > worst.distance) {
            return;
        }
        let Some(id) = self.wanted.slots.id(slot) else { return };
        if self.wanted.exclude == Some(id) {
            return;
        }
        self.farthest_first.push(Found { distance, id, slot });
        if full {
            self.farthest_first.pop();
        }
    }

    fn into_sorted(self) -> Vec<Found> {
        self.farthest_first.into_sorted_vec()
    }
}

/// The index of each vector of a schema.
pub(super) type VectorIndexes = BTreeMap<String, VectorIndex>;
