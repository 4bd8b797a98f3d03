//! Best-first search over a flat graph.
//!
//! The walk goes through every row; only accepted rows are collected. It ends when the nearest row still to be
//! expanded is farther than the `ef`-th accepted one.
//! Invariants: a row is scored at most once a search; results ascend by distance, then row.
//! Deliberately absent: which rows are visible, and when to scan instead of walking (see the callers).
//! Source: HNSW's lowest level (Malkov and Yashunin, 2018, algorithm 2).

use super::kernel::{Metric, prefetch};
use std::{cmp::Reverse, collections::BinaryHeap};

/// In an adjacency list: no more neighbours.
pub(crate) const NONE: u32 = u32::MAX;

/// A graph over rows of vectors, all of it borrowed flat memory.
#[derive(Clone, Copy)]
pub(crate) struct Graph<'a> {
    /// How rows are compared.
    pub(crate) metric: Metric,
    /// Numbers of a row.
    pub(crate) dim: usize,
    /// `[rows, dim]`.
    pub(crate) vectors: &'a [f32],
    /// Neighbours a row has room for.
    pub(crate) degree: usize,
    /// `[rows, degree]`, each list ended by [`NONE`] unless full.
    pub(crate) adjacency: &'a [u32],
    /// Where every search starts.
    pub(crate) entries: &'a [u32],
}

/// What a search needs beside the graph; kept from one search to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `epoch` of the search that scored the row last.
    seen: Vec<u16>,
    epoch: u16,
    frontier: BinaryHeap<Reverse<Hit>>,
    best: BinaryHeap<Hit>,
    fresh: Vec<u32>,
}

/// A scored row; ordered by distance, then row.
#[derive(Clone, Copy, PartialEq)]
struct Hit {
    distance: f32,
    row: u32,
}

impl Eq for Hit {}

impl Ord for Hit {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.distance.total_cmp(&other.distance).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Scratch {
    /// Forgets the last search, in constant time but once in 65,535 searches.
    fn begin(&mut self, rows: usize) {
        self.frontier.clear();
        self.best.clear();
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.seen.fill(0);
            self.epoch = 1;
        }
        if self.seen.len() < rows {
            self.seen.resize(rows, 0);
        }
    }

    /// Whether the row was not scored yet; it counts as scored from now on.
    fn first_time(&mut self, row: u32) -> bool {
        std::mem::replace(&mut self.seen[row as usize], self.epoch) != self.epoch
    }
}

impl Graph<'_> {
    /// The accepted rows nearest to the query, at most `ef` of them, with their distances, ascending.
    ///
    /// Shapes: `query [dim]`. Cost: about `ef · degree` distances; more when few rows are accepted.
    pub(crate) fn search(
        &self,
        query: &[f32],
        ef: usize,
        scratch: &mut Scratch,
        accept: impl Fn(u32) -> bool,
    ) -> Vec<(f32, u32)> {
        scratch.begin(self.vectors.len() / self.dim);
        scratch.fresh.extend(self.entries);
        self.score_fresh(query, ef, scratch, &accept);
        while let Some(Reverse(nearest)) = scratch.frontier.pop() {
            let full = scratch.best.len() >= ef;
            if full && scratch.best.peek().is_some_and(|worst| nearest.distance > worst.distance) {
                break;
            }
            let links = &self.adjacency[nearest.row as usize * self.degree..][..self.degree];
            scratch.fresh.extend(links.iter().take_while(|link| **link != NONE));
            self.score_fresh(query, ef, scratch, &accept);
        }
        let mut hits = std::mem::take(&mut scratch.best).into_vec();
        hits.sort_unstable();
        hits.into_iter().map(|hit| (hit.distance, hit.row)).collect()
    }

    /// Scores the rows in `scratch.fresh` that were not scored before and empties it.
    fn score_fresh(&self, query: &[f32], ef: usize, scratch: &mut Scratch, accept: &impl Fn(u32) -> bool) {
        let mut fresh = std::mem::take(&mut scratch.fresh);
        fresh.retain(|row| {
            let new = scratch.first_time(*row);
            if new {
                prefetch(self.vector(*row));
            }
            new
        });
        for row in fresh.drain(..) {
            let distance = self.metric.distance(query, self.vector(row));
            let hit = Hit { distance, row };
            let full = scratch.best.len() >= ef;
            if full && scratch.best.peek().is_some_and(|worst| hit >= *worst) {
                continue;
            }
            scratch.frontier.push(Reverse(hit));
            if accept(row) {
                scratch.best.push(hit);
                if full {
                    scratch.best.pop();
                }
            }
        }
        scratch.fresh = fresh;
    }

    fn vector(&self, row: u32) -> &[f32] {
        &self.vectors[row as usize * self.dim..][..self.dim]
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

    #[test]
    fn finds_the_nearest_accepted_rows_through_rows_that_are_not() {
        let (vectors, adjacency) = line();
        let graph = Graph {
            metric: Metric::of(Distance::Euclid),
            dim: 1,
            vectors: &vectors,
            degree: 2,
            adjacency: &adjacency,
            entries: &[0],
        };
        let mut scratch = Scratch::default();
        let rows = |hits: Vec<(f32, u32)>| hits.into_iter().map(|h| h.1).collect::<Vec<_>>();
        assert_eq!(rows(graph.search(&[50.2], 3, &mut scratch, |_| true)), [50, 51, 49]);
        assert_eq!(rows(graph.search(&[50.2], 3, &mut scratch, |row| row % 10 == 0)), [50, 60, 40]);
        assert_eq!(rows(graph.search(&[-5.0], 2, &mut scratch, |_| true)), [0, 1]);
        assert_eq!(rows(graph.search(&[50.2], 200, &mut scratch, |_| true)).len(), 100);
        assert!(graph.search(&[50.2], 3, &mut scratch, |_| false).is_empty());
    }

    #[test]
    fn scratch_serves_more_searches_than_its_epochs() {
        let (vectors, adjacency) = line();
        let graph = Graph {
            metric: Metric::of(Distance::Euclid),
            dim: 1,
            vectors: &vectors,
            degree: 2,
            adjacency: &adjacency,
            entries: &[98],
        };
        let mut scratch = Scratch::default();
        for _ in 0..=u32::from(u16::MAX) {
            assert_eq!(graph.search(&[99.0], 1, &mut scratch, |_| true), [(0.0, 99)]);
        }
    }
}
