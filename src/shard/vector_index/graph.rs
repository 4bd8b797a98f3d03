//! Best-first search over a flat graph.
//!
//! A walk keeps the `ef` nearest rows it has seen in one sorted array and expands the nearest that is not yet
//! expanded; it ends when all of them are. A walk that must accept rows goes through every row and collects the
//! accepted ones, until the nearest row still to be expanded is farther than the `ef`-th of those.
//!
//! Invariants: a row is scored at most once a search (an entry perhaps twice); results ascend by key, then row.
//! What a walk costs is memory: rows are asked for before the first of a batch is scored, and whether a row is new,
//! or near enough, is counted rather than branched on.
//! Deliberately absent: what rows are and how they compare ([`Scorer`]), which rows are visible, and when to scan
//! instead of walking (see the callers).
//! Source: HNSW's lowest level (Malkov and Yashunin, 2018, algorithm 2); one sorted array as in DiskANN
//! (Subramanya et al., 2019, algorithm 1).

use super::kernel::{Metric, prefetch};
use std::{cmp::Reverse, collections::BinaryHeap, mem};

/// In an adjacency list: no more neighbours.
pub(crate) const NONE: u32 = u32::MAX;
/// Rows of a graph at most: a hit has 31 bits for one.
pub(crate) const ROWS_MAX: usize = 1 << 31;

/// The nearest entries, from which a walk begins.
const ENTRIES_KEPT: usize = 4;

/// Scores rows against one query.
pub(crate) trait Scorer {
    /// How many rows there are.
    fn rows(&self) -> usize;
    /// The key of each row of a batch; smaller is nearer.
    fn score(&self, rows: &[u32], keys: &mut [u32]);
    /// Asks for a row's memory.
    fn prefetch(&self, row: u32);
}

/// Adjacency over numbered rows, all of it borrowed flat memory.
#[derive(Clone, Copy)]
pub(crate) struct Graph<'a> {
    /// Neighbours a row has room for.
    pub(crate) degree: usize,
    /// `[rows, degree]`, each list ended by [`NONE`] unless full.
    pub(crate) adjacency: &'a [u32],
    /// Where every search starts.
    pub(crate) entries: &'a [u32],
}

/// Rows of f32 and a query.
#[derive(Clone, Copy)]
pub(crate) struct Exact<'a> {
    /// How rows are compared.
    pub(crate) metric: Metric,
    /// `[rows, dim]`.
    pub(crate) vectors: &'a [f32],
    /// `[dim]`.
    pub(crate) query: &'a [f32],
}

/// A scored row, as one number that orders by key, then row; its lowest bit is set once it is expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hit(u64);

/// What a search needs beside the graph; kept from one search to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    /// A bit for each row that was scored, and one, always set, for [`NONE`].
    seen: Vec<u64>,
    rows: u32,
    /// The nearest, ascending.
    beam: Vec<Hit>,
    frontier: BinaryHeap<Reverse<Hit>>,
    fresh: Vec<u32>,
    keys: Vec<u32>,
    scored: u64,
    expanded: u64,
}

impl Hit {
    const EXPANDED: u64 = 1;

    #[inline]
    fn new(key: u32, row: u32) -> Self {
        Hit(u64::from(key) << 32 | u64::from(row) << 1)
    }

    /// The row.
    #[inline]
    pub(crate) fn row(self) -> u32 {
        self.0 as u32 >> 1
    }

    /// Its key.
    #[inline]
    pub(crate) fn key(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Scratch {
    /// Forgets the last search; makes room to score `batch` rows at a time.
    fn begin(&mut self, rows: usize, batch: usize) {
        assert!(rows < ROWS_MAX, "rows of a graph have numbers of 31 bits");
        self.beam.clear();
        self.frontier.clear();
        self.seen.clear();
        self.seen.resize(rows / 64 + 1, 0);
        self.seen[rows / 64] |= 1 << (rows % 64);
        self.rows = rows as u32;
        self.fresh.resize(batch, 0);
        self.keys.resize(batch, 0);
    }

    /// Rows that were scored, and rows that were expanded, since this was last asked.
    pub(crate) fn take_counts(&mut self) -> (u64, u64) {
        (mem::take(&mut self.scored), mem::take(&mut self.expanded))
    }

    /// Whether the row was not scored yet; it counts as scored from now on.
    #[inline]
    fn first_time(&mut self, row: u32) -> bool {
        let row = row.min(self.rows);
        let word = &mut self.seen[row as usize / 64];
        let bit = 1 << (row % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Puts a hit in its place among the nearest `ef`; where that is.
    #[inline]
    fn keep(&mut self, hit: Hit, ef: usize) -> Option<usize> {
        if self.beam.len() >= ef {
            if self.beam.last().is_none_or(|worst| hit >= *worst) {
                return None;
            }
            self.beam.pop();
        }
        let at = self.beam.partition_point(|other| *other < hit);
        self.beam.insert(at, hit);
        Some(at)
    }

    /// The first place at or behind `from` that is not expanded.
    #[inline]
    fn unexpanded(&self, from: usize) -> usize {
        let rest = self.beam.iter().skip(from);
        from + rest.take_while(|hit| hit.0 & Hit::EXPANDED != 0).count()
    }

    /// The key that a row must be below to be kept.
    #[inline]
    fn edge(&self, ef: usize) -> u32 {
        if self.beam.len() < ef { u32::MAX } else { self.beam.last().map_or(0, |worst| worst.key()) }
    }
}

impl Graph<'_> {
    /// The rows nearest to the query, at most `ef` of them, ascending.
    ///
    /// Cost: about `ef · degree / 2` scores.
    pub(crate) fn nearest<'s>(&self, scorer: &impl Scorer, ef: usize, scratch: &'s mut Scratch) -> &'s [Hit] {
        scratch.begin(scorer.rows(), self.batch());
        self.score_entries(scorer, scratch);
        for at in 0..self.entries.len() {
            scratch.keep(Hit::new(scratch.keys[at], self.entries[at]), ef.min(ENTRIES_KEPT));
        }
        for at in 0..scratch.beam.len() {
            scratch.first_time(scratch.beam[at].row());
        }
        let mut next = 0;
        while let Some(nearest) = scratch.beam.get_mut(next) {
            nearest.0 |= Hit::EXPANDED;
            let row = nearest.row();
            next = scratch.unexpanded(next + 1);
            let soon = scratch.beam.get(next).map(|hit| hit.row());
            let near = self.expand(row, soon, scorer, scratch, scratch.edge(ef));
            for at in 0..near {
                let (row, key) = (scratch.fresh[at], scratch.keys[at]);
                if let Some(place) = scratch.keep(Hit::new(key, row), ef)
                    && place <= next
                {
                    next = place;
                    prefetch(self.links(row));
                }
            }
        }
        &scratch.beam
    }

    /// The accepted rows nearest to the query, at most `ef` of them, ascending; none, if more than `expanded_max` rows
    /// would have to be expanded.
    ///
    /// Cost: as of [`Graph::nearest`], times about one over the share of rows that are accepted.
    pub(crate) fn nearest_accepted<'s>(
        &self,
        scorer: &impl Scorer,
        (ef, expanded_max): (usize, usize),
        scratch: &'s mut Scratch,
        accept: impl Fn(u32) -> bool,
    ) -> &'s [Hit] {
        scratch.begin(scorer.rows(), self.batch());
        self.score_entries(scorer, scratch);
        for at in 0..self.entries.len() {
            scratch.first_time(self.entries[at]);
            scratch.meet(Hit::new(scratch.keys[at], self.entries[at]), ef, &accept);
        }
        let mut expanded = 0;
        while let Some(Reverse(nearest)) = scratch.frontier.pop() {
            let edge = scratch.edge(ef);
            if nearest.key() > edge {
                break;
            }
            if expanded == expanded_max {
                scratch.beam.clear();
                break;
            }
            expanded += 1;
            let soon = scratch.frontier.peek().map(|hit| hit.0.row());
            let near = self.expand(nearest.row(), soon, scorer, scratch, edge);
            for at in 0..near {
                scratch.meet(Hit::new(scratch.keys[at], scratch.fresh[at]), ef, &accept);
            }
        }
        &scratch.beam
    }

    /// Scores the row's neighbours that were not scored before; how many of them lie below the edge: they stand
    /// first in `scratch.fresh` and `scratch.keys`. `soon`: a row that may be expanded next.
    #[inline]
    fn expand(
        &self,
        row: u32,
        soon: Option<u32>,
        scorer: &impl Scorer,
        scratch: &mut Scratch,
        edge: u32,
    ) -> usize {
        let mut fresh = mem::take(&mut scratch.fresh);
        let mut count = 0;
        for link in self.links(row) {
            fresh[count] = *link;
            count += usize::from(scratch.first_time(*link));
        }
        for row in &fresh[..count] {
            scorer.prefetch(*row);
        }
        if let Some(row) = soon {
            prefetch(self.links(row));
        }
        scratch.expanded += 1;
        scratch.scored += count as u64;
        let keys = &mut scratch.keys[..count];
        scorer.score(&fresh[..count], keys);
        let mut near = 0;
        for at in 0..count {
            (fresh[near], keys[near]) = (fresh[at], keys[at]);
            near += usize::from(keys[at] < edge);
        }
        scratch.fresh = fresh;
        near
    }

    fn score_entries(&self, scorer: &impl Scorer, scratch: &mut Scratch) {
        for row in self.entries {
            scorer.prefetch(*row);
        }
        scratch.scored += self.entries.len() as u64;
        scorer.score(self.entries, &mut scratch.keys[..self.entries.len()]);
    }

    /// Rows that are scored at a time, at most; one more, since a place is written before it counts.
    fn batch(&self) -> usize {
        self.entries.len().max(self.degree) + 1
    }

    /// The neighbours of a row.
    pub(crate) fn linked(&self, row: u32) -> impl Iterator<Item = u32> {
        self.links(row).iter().copied().take_while(|link| *link != NONE)
    }

    #[inline]
    fn links(&self, row: u32) -> &[u32] {
        &self.adjacency[row as usize * self.degree..][..self.degree]
    }
}

impl Scratch {
    /// Takes up a row: to be expanded, and among the nearest if it is accepted.
    fn meet(&mut self, hit: Hit, ef: usize, accept: &impl Fn(u32) -> bool) {
        if hit.key() < self.edge(ef) || self.beam.len() < ef {
            self.frontier.push(Reverse(hit));
            if accept(hit.row()) {
                self.keep(hit, ef);
            }
        }
    }
}

impl Exact<'_> {
    fn vector(&self, row: u32) -> &[f32] {
        &self.vectors[row as usize * self.query.len()..][..self.query.len()]
    }

    /// How far a row is.
    pub(crate) fn distance(&self, row: u32) -> f32 {
        self.metric.distance(self.query, self.vector(row))
    }
}

impl Scorer for Exact<'_> {
    fn rows(&self) -> usize {
        self.vectors.len() / self.query.len()
    }

    fn score(&self, rows: &[u32], keys: &mut [u32]) {
        for (row, key) in rows.iter().zip(keys) {
            // The bits, so that they order as `f32::total_cmp` does.
            let bits = self.distance(*row).to_bits();
            *key = if bits >> 31 == 1 { !bits } else { bits ^ 1 << 31 };
        }
    }

    fn prefetch(&self, row: u32) {
        prefetch(self.vector(row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Distance;

    /// A line of 100 points, each linked to its neighbours.
    fn line() -> (Vec<f32>, Vec<u32>) {
        let vectors = (0..100).map(|x| x as f32).collect();
        let adjacency = (0..100u32)
            .flat_map(|x| match x {
                0 => [1, NONE],
                99 => [98, NONE],
                _ => [x - 1, x + 1],
            })
            .collect();
        (vectors, adjacency)
    }

    fn rows(hits: &[Hit]) -> Vec<u32> {
        hits.iter().map(|hit| hit.row()).collect()
    }

    #[test]
    fn finds_the_nearest_accepted_rows_through_rows_that_are_not() {
        let (vectors, adjacency) = line();
        let graph = Graph { degree: 2, adjacency: &adjacency, entries: &[0, 99] };
        let to = |query| Exact { metric: Metric::of(Distance::Euclid), vectors: &vectors, query };
        let s = &mut Scratch::default();
        assert_eq!(rows(graph.nearest(&to(&[50.2]), 3, s)), [50, 51, 49]);
        assert_eq!(rows(graph.nearest(&to(&[-5.0]), 2, s)), [0, 1]);
        assert_eq!(rows(graph.nearest(&to(&[50.2]), 200, s)).len(), 100);
        assert_eq!(rows(graph.nearest_accepted(&to(&[50.2]), (3, 1000), s, |_| true)), [50, 51, 49]);
        assert_eq!(
            rows(graph.nearest_accepted(&to(&[50.2]), (3, 1000), s, |row| row % 10 == 0)),
            [50, 60, 40]
        );
        assert_eq!(rows(graph.nearest_accepted(&to(&[50.2]), (200, 1000), s, |row| row != 7)).len(), 99);
        assert!(graph.nearest_accepted(&to(&[50.2]), (3, 1000), s, |_| false).is_empty());
        assert!(graph.nearest_accepted(&to(&[50.2]), (3, 20), s, |row| row % 10 == 0).is_empty());
    }

    #[test]
    fn keys_of_distances_order_as_they_do() {
        let numbers = [-3.5f32, -1.0, -0.0, 0.0, 1e-30, 2.0, f32::INFINITY];
        let metric = Metric::of(Distance::Manhattan);
        for pair in numbers.windows(2) {
            let vectors: Vec<f32> = pair.iter().map(|x| x + 10.0).collect();
            let mut keys = [0; 2];
            Exact { metric, vectors: &vectors, query: &[0.0] }.score(&[0, 1], &mut keys);
            assert!(keys[0] <= keys[1], "{pair:?}");
        }
        let dot = Exact { metric: Metric::of(Distance::Dot), vectors: &[2.0, 1.0, 0.0, -1.0], query: &[1.0] };
        let mut keys = [0; 4];
        dot.score(&[0, 1, 2, 3], &mut keys);
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    }
}
