//! Searches of a sealed segment, and what the graph of another takes over of it.
//!
//! Codes choose, vectors decide: a walk or a scan goes by codes, and what they leave in doubt is compared by f32.
//! Invariants: a distance that is returned is that of the vectors.
//! Deliberately absent: the file (`segment`), whether to walk or to scan (`walk_or_scan`).

use super::{
    codes::Coded,
    graph::{Exact, Hit, NONE, Scorer, Scratch},
    grow::Old,
    segment::{Row, Segment},
    walk_or_scan::Walk,
};
use crate::model::HnswParams;
use std::ops::AddAssign;

/// A row and how far it is.
pub(crate) type Near = (f32, u32);

/// What a search of a segment found, and what that took.
#[derive(Default)]
pub(crate) struct Searched {
    pub(crate) near: Vec<Near>,
    pub(crate) tally: Tally,
}

/// Rows that were looked at, by what of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Their codes.
    pub(crate) codes: u64,
    /// Their vectors.
    pub(crate) vectors: u64,
    /// Their links.
    pub(crate) links: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.codes += more.codes;
        self.vectors += more.vectors;
        self.links += more.links;
    }
}

impl Segment {
    /// The accepted rows nearest to the query, as a walk that keeps `ef` of them finds them: at least `count` of
    /// what it found, and as many more as codes leave in doubt.
    ///
    /// Shapes: `query [dim]`. Cost: about `ef · degree / 2` comparisons of codes, and of vectors a few more than
    /// `count`; times about one over the share of rows that are accepted, if those are not most.
    pub(crate) fn nearest(
        &self,
        query: &[f32],
        walk: Walk,
        scratch: &mut Scratch,
        accept: impl Fn(u32) -> bool,
    ) -> Searched {
        let exact = self.exact(query);
        let coded = self.code(query);
        let walk = Walk { count: self.candidates_min(walk.count), ..walk };
        let rows = match &coded {
            Some(query) => {
                let coded = Coded { codes: self.codes(), query };
                self.walk(&coded, walk, scratch, accept, |key| query.doubt(key))
            }
            None => self.walk(&exact, walk, scratch, accept, |_| 0),
        };
        let (scored, links) = scratch.take_counts();
        let (codes, vectors) = if coded.is_some() { (scored, 0) } else { (0, scored) };
        self.distances(&exact, rows, Tally { codes, vectors, links })
    }

    /// The rows that [`Segment::nearest`] compares by their vectors.
    fn walk(
        &self,
        scorer: &impl Scorer,
        Walk { count, ef, most, expanded_max }: Walk,
        scratch: &mut Scratch,
        accept: impl Fn(u32) -> bool,
        doubt: impl Fn(u32) -> u32,
    ) -> Vec<u32> {
        let choose = |hits: &[Hit]| {
            let (mut rows, mut refused) = (Vec::with_capacity(2 * count.min(ef)), 0);
            let mut edge = u32::MAX;
            for hit in hits {
                if hit.key() > edge {
                    break;
                }
                if !accept(hit.row()) {
                    refused += 1;
                    continue;
                }
                rows.push(hit.row());
                if rows.len() == count {
                    edge = hit.key().saturating_add(doubt(hit.key()));
                }
            }
            (rows, refused)
        };
        if most {
            let (rows, refused) = choose(self.graph().nearest(scorer, ef, scratch));
            if refused * REFUSED_SHARE <= rows.len() {
                return rows;
            }
        }
        choose(self.graph().nearest_accepted(scorer, (ef, expanded_max), scratch, &accept)).0
    }

    /// The nearest `count` of some rows, as a scan of their codes finds them, and as many more as it leaves in doubt.
    pub(crate) fn scan(&self, query: &[f32], count: usize, rows: impl Iterator<Item = u32>) -> Searched {
        let exact = self.exact(query);
        let coded = self.code(query);
        let (rows, codes) = match &coded {
            Some(query) => {
                Coded { codes: self.codes(), query }.shortlist(rows, |_| true, self.candidates_min(count))
            }
            None => (rows.collect(), 0),
        };
        self.distances(&exact, rows, Tally { codes, ..Tally::default() })
    }

    fn distances(&self, exact: &Exact<'_>, rows: Vec<u32>, mut tally: Tally) -> Searched {
        self.prefetch(&rows);
        tally.vectors += rows.len() as u64;
        Searched { near: rows.into_iter().map(|row| (exact.distance(row), row)).collect(), tally }
    }

    /// What the graph of other rows takes over of this one's links: those of rows that both have, ascending by slot
    /// in `rows`. Nothing, if its shape is to be another.
    pub(crate) fn old_links(&self, rows: &[Row], params: HnswParams) -> Vec<Old> {
        if self.graph().degree != 2 * params.m.max(2) as usize {
            return Vec::new();
        }
        let (mut numbers, mut from) = (vec![NONE; self.rows().len()], 0);
        for (number, own) in numbers.iter_mut().zip(self.rows()) {
            from += rows[from..].partition_point(|row| row.slot < own.slot);
            if rows.get(from).is_some_and(|row| row.slot == own.slot) {
                *number = from as u32;
            }
        }
        let graph = self.graph();
        let mut old = Vec::with_capacity(self.rows().len());
        for (number, row) in (0u32..).zip(&numbers).filter(|(_, row)| **row != NONE) {
            let mut links = Vec::with_capacity(graph.degree);
            let mut add = |link: u32| {
                if link != *row && !links.contains(&link) {
                    links.push(link);
                }
            };
            for link in graph.linked(number) {
                match numbers[link as usize] {
                    // In the place of one that is dead, those that it led to.
                    NONE => graph.linked(link).for_each(|further| {
                        if numbers[further as usize] != NONE {
                            add(numbers[further as usize]);
                        }
                    }),
                    link => add(link),
                }
            }
            old.push(Old { row: *row, links });
        }
        old
    }
}

/// Of what a walk found, at most one row in so many may be refused before it is walked again for accepted rows alone.
const REFUSED_SHARE: usize = 10;

#[cfg(test)]
mod tests {
    use super::{
        super::{
            bits::Signs,
            codes::Grid,
            kernel::Metric,
            segment::{Coder, Content},
        },
        *,
    };
    use crate::model::{Distance, HnswParams, Position, Residence};
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::sync::atomic::AtomicBool;

    fn walk(count: usize, ef: usize, most: bool) -> Walk {
        Walk { count, ef, most, expanded_max: usize::MAX }
    }

    #[test]
    fn what_is_found_by_codes_is_what_is_nearest() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        let mut rng = StdRng::seed_from_u64(5);
        for (distance, dim) in [
            (Distance::Cosine, 160),
            (Distance::Dot, 24),
            (Distance::Euclid, 8),
            (Distance::Euclid, 160),
            (Distance::Manhattan, 24),
            (Distance::Manhattan, 160),
        ] {
            const ROWS: usize = 600;
            // In 40 heaps, around a mean that is not zero; without an angle, one dimension far from it.
            let far = if distance.larger_is_nearer() { 0.0 } else { 40.0 };
            let heaps: Vec<f32> = (0..40 * dim).map(|_| rng.random_range(0.0..1.0)).collect();
            let mut number = |n: usize| {
                let heap = heaps[n / dim % 40 * dim + n % dim];
                heap + rng.random_range(-0.3..0.3) + if n % dim == 3 { far } else { 0.0 }
            };
            let mut vectors: Vec<f32> = (0..(ROWS + 20) * dim).map(&mut number).collect();
            if distance == Distance::Cosine {
                vectors.chunks_exact_mut(dim).for_each(crate::model::schema::normalise);
            }
            let queries = vectors.split_off(ROWS * dim);
            let metric = Metric::of(distance);
            let stop = AtomicBool::new(false);
            let built = super::super::build::build(metric, dim, &vectors, HnswParams::default(), &stop)
                .expect("built");
            let rows: Vec<Row> = (0..ROWS as u32).map(|slot| Row { slot, version: Position(1) }).collect();
            let grid = Grid::of(dim, vectors.chunks_exact(dim)).expect("codes serve");
            assert_eq!(grid.half, dim >= 128, "{distance:?}");
            let codes = grid.encode(vectors.chunks_exact(dim));
            let coder = Coder::Numbers(grid);
            for coded in [Some((&coder, &codes[..])), None] {
                let content = Content { distance, dim, rows: &rows, built: &built, coded };
                Segment::write(&path, &content, vectors.chunks_exact(dim)).expect("written");
                let segment = Segment::open(&path, Residence::Memory).expect("whole");
                let (mut walked, mut scanned) = (0, 0);
                for query in queries.chunks_exact(dim) {
                    let odd = |row: u32| row % 2 == 1;
                    let mut right: Vec<Near> = (0..ROWS as u32)
                        .filter(|row| odd(*row))
                        .map(|row| (metric.distance(query, segment.vector(row)), row))
                        .collect();
                    right.sort_by(|a, b| a.0.total_cmp(&b.0));
                    right.truncate(10);
                    let found = segment.nearest(query, walk(10, 256, false), &mut Default::default(), odd);
                    let near = found.near;
                    walked += right.iter().filter(|hit| near.contains(hit)).count();
                    let scanned_rows = segment.scan(query, 10, (0..ROWS as u32).filter(|row| odd(*row)));
                    let (scan, tally) = (scanned_rows.near, scanned_rows.tally);
                    let codes = if coded.is_some() { ROWS as u64 / 2 } else { 0 };
                    assert_eq!((tally.codes, tally.vectors, tally.links), (codes, scan.len() as u64, 0));
                    scanned += right.iter().filter(|near| scan.contains(near)).count();
                    assert!(coded.is_none() || scan.len() < ROWS / 3, "{distance:?} {dim}: {}", scan.len());
                }
                assert!(walked >= 196, "{distance:?} {dim}: {walked} of 200 by walking");
                assert!(scanned >= 199, "{distance:?} {dim}: {scanned} of 200 by scanning");
            }
        }
    }

    /// The exact neighbours of real vectors, found among bits by walking and by scanning.
    #[test]
    fn bits_find_the_neighbours_of_real_vectors() {
        let floats = |name: &str| -> Vec<f32> {
            let path = format!("{}/tests/data/wordnet-2k/{name}", env!("CARGO_MANIFEST_DIR"));
            let file = npyz::NpyFile::new(std::fs::File::open(path).expect("the data")).expect("npy");
            match name.contains("f16") {
                true => file.into_vec::<half::f16>().expect("f16").into_iter().map(f32::from).collect(),
                false => file.into_vec::<f32>().expect("f32"),
            }
        };
        const DIM: usize = 384;
        let (mut vectors, queries) = (floats("vectors.f16.npy"), floats("queries.f32.npy"));
        vectors.chunks_exact_mut(DIM).for_each(crate::model::schema::normalise);
        let rows = vectors.len() / DIM;
        let stop = AtomicBool::new(false);
        let (grid, params) =
            (Grid::of(DIM, vectors.chunks_exact(DIM)).expect("codes serve"), HnswParams::default());
        let codes = grid.encode(vectors.chunks_exact(DIM));
        let built = super::super::grow::grow(Distance::Cosine, (&grid, &codes), Vec::new(), params, &stop)
            .expect("grown");
        let (signs, codes) = Signs::of(Distance::Cosine, DIM, vectors.chunks_exact(DIM)).expect("bits serve");
        assert_eq!(codes.len(), rows * DIM / 8);
        let numbers: Vec<Row> = (0..rows as u32).map(|slot| Row { slot, version: Position(1) }).collect();
        let coder = Coder::Signs(signs);
        let content = Content {
            distance: Distance::Cosine,
            dim: DIM,
            rows: &numbers,
            built: &built,
            coded: Some((&coder, &codes)),
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.seg");
        Segment::write(&path, &content, vectors.chunks_exact(DIM)).expect("written");
        let segment = Segment::open(&path, Residence::Memory).expect("whole");
        let (metric, ef) = (Metric::of(Distance::Cosine), segment.candidates_min(10));
        let (mut walked, mut scanned, mut of, mut compared) = (0, 0, 0, 0);
        for query in queries.chunks_exact(DIM) {
            let mut right: Vec<f32> =
                (0..rows as u32).map(|row| metric.distance(query, segment.vector(row))).collect();
            right.sort_by(f32::total_cmp);
            let right = |near: &[Near]| near.iter().filter(|near| near.0 <= right[9]).count().min(10);
            let walk = segment.nearest(query, walk(10, ef, true), &mut Default::default(), |_| true);
            let scan = segment.scan(query, 10, 0..rows as u32);
            assert_eq!(scan.tally.codes, rows as u64);
            walked += right(&walk.near);
            scanned += right(&scan.near);
            compared += scan.near.len();
            of += 10;
        }
        assert!(walked * 100 >= of * 97, "{walked} of {of} by walking");
        assert!(scanned * 100 >= of * 98, "{scanned} of {of} by scanning");
        assert!(compared * 5 < rows * of / 10, "a scan compares {compared} by their vectors");
    }
}
