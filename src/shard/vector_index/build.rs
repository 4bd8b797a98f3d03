//! Builds a graph over rows of vectors, and sees to it that each row is reached: the only file that names usearch.
//!
//! Where a graph can grow over codes (`grow`), only the audit is of use here.
//!
//! usearch inserts (with one adder thread: concurrent inserts can leave rows that no search reaches, usearch
//! issue 735; measured 42 of 20,000 with two threads, none with one), its lowest level is exported as flat
//! adjacency, and every row is then made reachable from the entries. Distances while building are ours, so that
//! the graph is built by the same numbers it is searched by.
//! Source: HNSW (Malkov and Yashunin, 2018).

use super::{
    graph::{Exact, Graph, Hit, NONE, Scratch},
    kernel::Metric,
};
use crate::{model::HnswParams, world};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// The flat form of a graph's lowest level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Built {
    /// Neighbours a row has room for.
    pub(crate) degree: u32,
    /// `[rows, degree]`: row numbers, nearest kept by usearch's own pruning, then [`NONE`].
    pub(crate) adjacency: Vec<u32>,
    /// Rows where every search starts.
    pub(crate) entries: Vec<u32>,
}

/// Why there is no graph.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// The node stops.
    #[error("stopped")]
    Stopped,
    /// usearch refused.
    #[error("usearch: {0}")]
    Usearch(String),
}

/// Entries at most, before rows that would be unreachable are added.
const ENTRIES_MAX: usize = 64;
/// Rows between two looks at `stop`.
const STOP_EVERY: usize = 64;
/// How many near rows are asked for a free place when a row is unreachable.
pub(crate) const HOSTS_ASKED: usize = 64;

/// Builds a graph over `vectors [rows, dim]`, row-major; gives up when `stop` becomes true.
///
/// Cost: about `rows · ef_construct · degree` distances on the calling thread, and twice the vectors' memory.
pub(crate) fn build(
    metric: Metric,
    dim: usize,
    vectors: &[f32],
    params: HnswParams,
    stop: &AtomicBool,
) -> Result<Built, BuildError> {
    let index = insert(metric, dim, vectors, params, stop)?;
    let mut built = flatten(&index, vectors.len() / dim, params);
    drop(index);
    let mut scratch = Scratch::default();
    built.make_reachable(|graph, row| {
        let query = &vectors[row as usize * dim..][..dim];
        graph.nearest(&Exact { metric, vectors, query }, HOSTS_ASKED, &mut scratch).to_vec()
    });
    Ok(built)
}

/// The lowest level of a graph whose keys are the numbers of its rows.
pub(crate) fn flatten(index: &Index, rows: usize, params: HnswParams) -> Built {
    let degree = 2 * params.m.max(2);
    let mut adjacency = vec![NONE; rows * degree as usize];
    let mut keys = vec![0u64; 4 * degree as usize];
    let mut levels = Vec::with_capacity(rows);
    for (row, links) in adjacency.chunks_exact_mut(degree as usize).enumerate() {
        let count = index.neighbors(row as u64, 0).drain_into(&mut keys);
        for (link, key) in links.iter_mut().zip(&keys[..count]) {
            *link = *key as u32;
        }
        levels.push(index.level_of_key(row as u64));
    }
    Built { degree, adjacency, entries: entries(&levels) }
}

/// A graph of usearch's over `vectors [rows, dim]`.
pub(crate) fn insert(
    metric: Metric,
    dim: usize,
    vectors: &[f32],
    params: HnswParams,
    stop: &AtomicBool,
) -> Result<Index, BuildError> {
    let options = IndexOptions {
        dimensions: dim,
        metric: MetricKind::IP,
        quantization: ScalarKind::F32,
        connectivity: params.m.max(2) as usize,
        expansion_add: params.ef_construct as usize,
        expansion_search: params.ef_construct as usize,
        multi: false,
    };
    let mut index = Index::new(&options).map_err(refused)?;
    index.change_metric::<f32>(Box::new(move |a, b| {
        #[expect(unsafe_code, reason = "usearch hands over two vectors of the index's dimension")]
        // SAFETY: both point to `dim` numbers that live through the call.
        let (a, b) = unsafe { (std::slice::from_raw_parts(a, dim), std::slice::from_raw_parts(b, dim)) };
        metric.distance(a, b)
    }));
    index.reserve_capacity_and_threads(vectors.len() / dim, 1).map_err(refused)?;
    for (row, vector) in vectors.chunks_exact(dim).enumerate() {
        world::breathe();
        if row % STOP_EVERY == 0 && stop.load(Ordering::Relaxed) {
            return Err(BuildError::Stopped);
        }
        index.add(row as u64, vector).map_err(refused)?;
    }
    Ok(index)
}

fn refused(e: impl std::fmt::Display) -> BuildError {
    BuildError::Usearch(e.to_string())
}

/// Rows of the higher levels, evenly chosen; the first row if there are none.
fn entries(levels: &[usize]) -> Vec<u32> {
    let at_least = |level: usize| -> Vec<u32> {
        (0u32..).zip(levels).filter(|(_, l)| **l >= level).map(|(row, _)| row).collect()
    };
    let high = [2, 1].map(at_least).into_iter().find(|rows| !rows.is_empty());
    let rows = high.unwrap_or_else(|| levels.first().map(|_| 0).into_iter().collect());
    let step = rows.len().div_ceil(ENTRIES_MAX).max(1);
    rows.into_iter().step_by(step).collect()
}

impl Built {
    /// Rows that no path from the entries leads to, ascending.
    #[cfg(test)]
    pub(crate) fn unreachable(&self) -> Vec<u32> {
        (0u32..).zip(self.reached()).filter(|(_, reached)| !reached).map(|(row, _)| row).collect()
    }

    /// Whether a path from the entries leads to a row, by row.
    fn reached(&self) -> Vec<bool> {
        let mut seen = vec![false; self.adjacency.len() / self.degree as usize];
        self.spread(&mut seen, self.entries.iter().copied());
        seen
    }

    /// Marks some rows, and what they lead to but for what was marked before.
    fn spread(&self, seen: &mut [bool], from: impl Iterator<Item = u32>) {
        let mut queue: VecDeque<u32> = from.collect();
        for row in &queue {
            seen[*row as usize] = true;
        }
        while let Some(row) = queue.pop_front() {
            world::breathe();
            for next in self.links(row) {
                if !std::mem::replace(&mut seen[next as usize], true) {
                    queue.push_back(next);
                }
            }
        }
    }

    fn links(&self, row: u32) -> impl Iterator<Item = u32> + '_ {
        let degree = self.degree as usize;
        self.adjacency[row as usize * degree..][..degree].iter().copied().take_while(|link| *link != NONE)
    }

    /// The audit: gives each unreachable row a link from a near row that has a place free, or makes it an entry.
    ///
    /// `near`: the rows nearest to a row, as a walk over the graph finds them, nearest first.
    pub(crate) fn make_reachable(&mut self, mut near: impl FnMut(Graph<'_>, u32) -> Vec<Hit>) {
        let mut reached = self.reached();
        for row in 0..reached.len() as u32 {
            if reached[row as usize] {
                continue;
            }
            world::breathe();
            let near = near(self.graph(), row);
            let degree = self.degree as usize;
            let free = near.iter().map(|hit| hit.row()).filter(|host| *host != row).find_map(|host| {
                let links = host as usize * degree..(host as usize + 1) * degree;
                self.adjacency[links.clone()].iter().position(|l| *l == NONE).map(|at| links.start + at)
            });
            match free {
                Some(place) => self.adjacency[place] = row,
                None => self.entries.push(row),
            }
            // What this row leads to is reached now too.
            self.spread(&mut reached, std::iter::once(row));
        }
    }

    /// The row's places for links.
    pub(crate) fn links_mut(&mut self, row: u32) -> &mut [u32] {
        let degree = self.degree as usize;
        &mut self.adjacency[row as usize * degree..][..degree]
    }

    /// The graph.
    pub(crate) fn graph(&self) -> Graph<'_> {
        Graph { degree: self.degree as usize, adjacency: &self.adjacency, entries: &self.entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Distance;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    static GO: AtomicBool = AtomicBool::new(false);

    fn synthetic(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..rows * dim).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn every_row_is_reachable_and_is_its_own_nearest() {
        for distance in [Distance::Dot, Distance::Euclid, Distance::Manhattan] {
            let (rows, dim) = (1_500, 12);
            let mut vectors = synthetic(rows, dim, 1);
            if distance == Distance::Dot {
                vectors.chunks_exact_mut(dim).for_each(crate::model::schema::normalise);
            }
            let metric = Metric::of(distance);
            let built = build(metric, dim, &vectors, HnswParams::default(), &GO).expect("built");
            assert!(built.unreachable().is_empty(), "{distance:?}");
            let mut scratch = Scratch::default();
            let own = (0u32..)
                .zip(vectors.chunks_exact(dim))
                .filter(|(row, query)| {
                    let exact = Exact { metric, vectors: &vectors, query };
                    built.graph().nearest(&exact, 64, &mut scratch)[0].row() == *row
                })
                .count();
            assert!(own * 1000 >= rows * 995, "{distance:?}: {own} of {rows} rows find themselves");
        }
    }

    #[test]
    fn an_unreachable_row_is_linked_in_or_becomes_an_entry() {
        let (rows, dim) = (300, 4);
        let vectors = synthetic(rows, dim, 2);
        let metric = Metric::of(Distance::Euclid);
        let mut built =
            build(metric, dim, &vectors, HnswParams { m: 2, ef_construct: 16 }, &GO).expect("built");
        let degree = built.degree as usize;
        for row in [7u32, 8, 200] {
            built.entries.retain(|e| *e != row);
            // Drops every link to the row, and closes the gap.
            for links in built.adjacency.chunks_exact_mut(degree) {
                let kept: Vec<u32> = links.iter().copied().filter(|l| *l != row && *l != NONE).collect();
                links.fill(NONE);
                links[..kept.len()].copy_from_slice(&kept);
            }
        }
        assert!(built.unreachable().len() >= 3);
        let mut scratch = Scratch::default();
        built.make_reachable(|graph, row| {
            let exact = Exact { metric, vectors: &vectors, query: &vectors[row as usize * dim..][..dim] };
            graph.nearest(&exact, HOSTS_ASKED, &mut scratch).to_vec()
        });
        assert!(built.unreachable().is_empty());
    }

    #[test]
    fn few_rows_and_equal_rows_make_graphs_too() {
        let metric = Metric::of(Distance::Euclid);
        for rows in [1, 2, 3, 40] {
            let vectors = vec![0.5; rows * 3];
            let built = build(metric, 3, &vectors, HnswParams::default(), &GO).expect("built");
            assert!(built.unreachable().is_empty(), "{rows} equal rows");
            let exact = Exact { metric, vectors: &vectors, query: &[0.5; 3] };
            assert_eq!(built.graph().nearest(&exact, rows, &mut Scratch::default()).len(), rows);
        }
    }

    #[test]
    fn a_build_stops_when_told() {
        let metric = Metric::of(Distance::Euclid);
        let stopped = build(metric, 3, &[0.0; 300], HnswParams::default(), &AtomicBool::new(true));
        assert!(matches!(stopped, Err(BuildError::Stopped)));
    }
}
