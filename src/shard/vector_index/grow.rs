//! Grows a flat graph row by row, so that a row is linked once and not again with every merge.
//!
//! A new row is looked for as a query would be; of what is found it links to those that no nearer one stands before,
//! and they link back, each dropping what it no longer needs when it has no place left. Once all are there, each new row
//! is linked anew among those that its links lead to: so an eighth fewer rows are scored by a search, for a fifth to
//! two fifths more building. All distances are of codes: a graph says where to look, and small errors of its links cost
//! nothing (measured in `docs/BENCHMARKS.md`).
//!
//! Invariants: a row that joins is led to from one that was reached before; a list has no row twice, and not its own.
//! A row may be lost again when lists are thinned: the audit (`build`) sees to those.
//! Deliberately absent: higher levels (entries do their work), inner products of vectors of unlike length, for which
//! a near row is not what nearness of codes means.
//! Sources: HNSW's insertion and neighbour selection (Malkov and Yashunin, 2018, algorithms 1 and 4); candidates among
//! neighbours of neighbours: NN-descent (Dong et al., 2011).

use super::{
    build::{BuildError, Built},
    codes::{Coded, CodedQuery, Grid},
    graph::{NONE, Scorer, Scratch},
};
use crate::{
    model::{Distance, HnswParams},
    world,
};
use std::{
    mem,
    sync::atomic::{AtomicBool, Ordering},
};

/// Rows between two looks at `stop`.
const STOP_EVERY: usize = 64;

/// Whether a graph over such vectors can grow.
pub(crate) fn can_grow(distance: Distance) -> bool {
    distance != Distance::Dot
}

/// A graph over rows of codes, from one over some of them; gives up when `stop` becomes true.
///
/// `codes [rows, stride]` are of `grid`. Cost: for each row that is not in `old` one search with `ef_construct`
/// candidates, and about `2 · degree²` comparisons of codes.
pub(crate) fn grow(
    distance: Distance,
    (grid, codes): (&Grid, &[u8]),
    old: Vec<Old>,
    params: HnswParams,
    stop: &AtomicBool,
) -> Result<Built, BuildError> {
    let m = params.m.max(2) as usize;
    let mut rows = Rows::new(distance, grid, codes);
    let count = codes.len() / grid.stride();
    let mut built = Built { degree: 2 * m as u32, adjacency: vec![NONE; count * 2 * m], entries: Vec::new() };
    let (mut found, mut kept) = (Candidates::default(), Candidates::default());
    let mut linked: Vec<u32> = Vec::with_capacity(count);
    let mut waiting = vec![true; count];
    for Old { row, links } in old {
        world::breathe();
        kept.set(&mut rows, row, &links);
        if links.len() > 2 * m {
            kept.thin(&mut rows, 2 * m);
        } else {
            kept.take_all();
        }
        write_links(built.links_mut(row), &kept.chosen);
        linked.push(row);
        waiting[row as usize] = false;
    }
    let joined_from = linked.len();
    let mut scratch = Scratch::default();
    let mut entries_of = 0;
    for row in (0..count as u32).filter(|row| waiting[*row as usize]) {
        world::breathe();
        if linked.len().is_multiple_of(STOP_EVERY) && stop.load(Ordering::Relaxed) {
            return Err(BuildError::Stopped);
        }
        if linked.len() >= 2 * entries_of {
            entries_of = linked.len();
            built.entries = evenly(&linked);
        }
        let near = built.graph().nearest(&rows.from(row), params.ef_construct as usize, &mut scratch);
        found.rest.clear();
        found.rest.extend(near.iter().map(|hit| (hit.key(), hit.row())));
        found.thin(&mut rows, m);
        write_links(built.links_mut(row), &found.chosen);
        linked.push(row);
        let Some((nearest_key, nearest)) = found.chosen.first().copied() else { continue };
        let mut led_to = false;
        if nearest_key > 0 {
            for (key, near) in &found.chosen {
                led_to |= link_back(built.links_mut(*near), *near, (*key, row), &mut rows, &mut kept);
            }
        }
        if !led_to {
            splice(&mut built, nearest, row);
        }
    }
    for (number, row) in linked[joined_from..].iter().enumerate() {
        world::breathe();
        if number.is_multiple_of(STOP_EVERY) && stop.load(Ordering::Relaxed) {
            return Err(BuildError::Stopped);
        }
        let candidates = (params.ef_construct as usize / 2).max(2 * m);
        link_anew(&mut built, *row, candidates, &mut rows, (&mut found, &mut kept));
    }
    built.entries = evenly(&linked);
    Ok(built)
}

/// A row that is linked already: its links, and in the place of those that are gone what they led to.
pub(crate) struct Old {
    pub(crate) row: u32,
    pub(crate) links: Vec<u32>,
}

/// Entries of a graph at most: with 256, which usearch's upper levels would give, their scores cost more than they
/// saved.
const ENTRIES_MAX: usize = 64;

fn evenly(rows: &[u32]) -> Vec<u32> {
    rows.iter().copied().step_by(rows.len().div_ceil(ENTRIES_MAX).max(1)).collect()
}

fn write_links(links: &mut [u32], chosen: &[(u32, u32)]) {
    links.fill(NONE);
    for (link, (_, row)) in links.iter_mut().zip(chosen) {
        *link = *row;
    }
}

/// Leads to `row` from the nearest, and from `row` to where the link led whose place it takes: so equals form a
/// chain, each of which is reached, however many there are.
fn splice(built: &mut Built, nearest: u32, row: u32) {
    let links = built.links_mut(nearest);
    let Some(place) = links.iter_mut().find(|link| **link == NONE) else {
        let last = links.len() - 1;
        let moved = mem::replace(&mut links[last], row);
        let own = built.links_mut(row);
        if !own.contains(&moved) {
            let place = own.iter().position(|link| *link == NONE).unwrap_or(own.len() - 1);
            own[place] = moved;
        }
        return;
    };
    *place = row;
}

/// Gives a row one more link; if there is no place for it, links that a nearer one stands before go. Whether the
/// new one stays.
fn link_back(
    links: &mut [u32],
    row: u32,
    new: (u32, u32),
    rows: &mut Rows<'_>,
    kept: &mut Candidates,
) -> bool {
    if let Some(free) = links.iter_mut().find(|link| **link == NONE) {
        *free = new.1;
        return true;
    }
    kept.set(rows, row, links);
    let at = kept.rest.partition_point(|other| *other < new);
    kept.rest.insert(at, new);
    kept.thin(rows, links.len());
    write_links(links, &kept.chosen);
    kept.chosen.contains(&new)
}

/// Links a row to the best of its neighbours and theirs, of which the nearest `candidates` are looked at: fewer than when
/// it joined, since fewer links are followed sooner. A row that has equals, or is near some, keeps the links it has: they
/// may be all that leads to one of those.
fn link_anew(
    built: &mut Built,
    row: u32,
    candidates: usize,
    rows: &mut Rows<'_>,
    (found, kept): (&mut Candidates, &mut Candidates),
) {
    let graph = built.graph();
    let mut around: Vec<u32> = graph.linked(row).collect();
    around.extend(graph.linked(row).flat_map(|near| graph.linked(near)));
    around.sort_unstable();
    around.dedup();
    around.retain(|other| *other != row);
    found.set(rows, row, &around);
    found.rest.truncate(candidates);
    let has_equals = found.rest.first().is_none_or(|(nearest_key, _)| *nearest_key == 0);
    let equal = |two: &[(u32, u32)]| two[0].0 == two[1].0 && rows.are_equal(two[0].1, two[1].1);
    if has_equals || found.rest.windows(2).any(equal) {
        return;
    }
    found.thin(rows, built.degree as usize);
    write_links(built.links_mut(row), &found.chosen);
    for (key, near) in &found.chosen {
        if !built.links_mut(*near).contains(&row) {
            link_back(built.links_mut(*near), *near, (*key, row), rows, kept);
        }
    }
}

/// Rows of codes, compared with each other.
pub(crate) struct Rows<'a> {
    codes: &'a [u8],
    query: CodedQuery,
}

impl<'a> Rows<'a> {
    /// `codes [rows, stride]` are of `grid`.
    pub(crate) fn new(distance: Distance, grid: &Grid, codes: &'a [u8]) -> Self {
        // Vectors of one length are as far apart as their angle is wide.
        let distance = if distance == Distance::Cosine { Distance::Euclid } else { distance };
        Rows { codes, query: CodedQuery::between_rows(grid, distance) }
    }

    fn are_equal(&self, a: u32, b: u32) -> bool {
        self.query.row(self.codes, a) == self.query.row(self.codes, b)
    }

    /// Compares with this row.
    pub(crate) fn from(&mut self, row: u32) -> Coded<'_> {
        self.query.set_row(self.codes, row);
        Coded { codes: self.codes, query: &self.query }
    }
}

/// Rows that one row may be linked to, with how far they are from it.
#[derive(Default)]
struct Candidates {
    /// Ascending.
    rest: Vec<(u32, u32)>,
    chosen: Vec<(u32, u32)>,
    /// The rows of `rest`, and how far they are from the one last chosen.
    numbers: Vec<u32>,
    keys: Vec<u32>,
}

impl Candidates {
    /// Takes some rows, as they lie to `row`.
    fn set(&mut self, rows: &mut Rows<'_>, row: u32, others: &[u32]) {
        let coded = rows.from(row);
        for other in others {
            coded.prefetch(*other);
        }
        self.keys.resize(others.len(), 0);
        coded.score(others, &mut self.keys);
        self.rest.clear();
        self.rest.extend(self.keys.iter().copied().zip(others.iter().copied()));
        self.rest.sort_unstable();
    }

    /// Chooses all.
    fn take_all(&mut self) {
        self.chosen.clear();
        self.chosen.append(&mut self.rest);
    }

    /// Chooses the nearest, drops those that are nearer to it than to the row that chooses, and so on.
    fn thin(&mut self, rows: &mut Rows<'_>, most: usize) {
        self.chosen.clear();
        while let Some(nearest) = self.rest.first().copied() {
            self.chosen.push(nearest);
            if self.chosen.len() == most {
                break;
            }
            self.numbers.clear();
            self.numbers.extend(self.rest.iter().map(|(_, row)| *row));
            self.keys.resize(self.numbers.len(), 0);
            rows.from(nearest.1).score(&self.numbers, &mut self.keys);
            let mut between = self.keys.iter();
            self.rest.retain(|(key, row)| between.next().is_some_and(|b| b >= key) && *row != nearest.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::graph::Exact, super::kernel::Metric, *};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    static GO: AtomicBool = AtomicBool::new(false);

    fn grown(distance: Distance, dim: usize, vectors: &[f32], old: Vec<Old>) -> Built {
        let grid = Grid::of(dim, vectors.chunks_exact(dim)).expect("codes serve");
        let codes = grid.encode(vectors.chunks_exact(dim));
        grow(distance, (&grid, &codes), old, HnswParams::default(), &GO).expect("grown")
    }

    /// How many of the true ten nearest of 50 queries a walk finds.
    fn found(built: &Built, distance: Distance, dim: usize, vectors: &[f32], rng: &mut StdRng) -> usize {
        let metric = Metric::of(distance);
        let mut scratch = Scratch::default();
        let mut found = 0;
        for _ in 0..50 {
            let query: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            let exact = Exact { metric, vectors, query: &query };
            let mut right: Vec<u32> = (0..(vectors.len() / dim) as u32).collect();
            right.sort_by(|a, b| exact.distance(*a).total_cmp(&exact.distance(*b)));
            let hits = built.graph().nearest(&exact, 64, &mut scratch);
            found += right[..10].iter().filter(|row| hits.iter().any(|hit| hit.row() == **row)).count();
        }
        found
    }

    fn lists_are_sound(built: &Built) {
        let count = built.adjacency.len() / built.degree as usize;
        for row in 0..count as u32 {
            let mut links: Vec<u32> = built.graph().linked(row).collect();
            assert!(
                links.iter().all(|link| *link != row && (*link as usize) < count),
                "row {row}: {links:?}"
            );
            links.sort_unstable();
            assert!(links.is_sorted_by(|a, b| a < b), "row {row}: {links:?}");
        }
    }

    #[test]
    fn a_graph_that_grew_finds_what_is_near_whether_at_once_or_in_parts() {
        let mut rng = StdRng::seed_from_u64(3);
        for distance in [Distance::Cosine, Distance::Euclid, Distance::Manhattan] {
            const DIM: usize = 12;
            let mut vectors: Vec<f32> = (0..2000 * DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
            if distance == Distance::Cosine {
                vectors.chunks_exact_mut(DIM).for_each(crate::model::schema::normalise);
            }
            let whole = grown(distance, DIM, &vectors, Vec::new());
            lists_are_sound(&whole);
            assert!(whole.unreachable().len() <= 2, "{distance:?}: {:?}", whole.unreachable());
            assert!(found(&whole, distance, DIM, &vectors, &mut rng) >= 490, "{distance:?}");
            // Every third row of a graph over the even ones is gone; the others are there, and the odd ones join.
            let even: Vec<f32> = vectors.chunks_exact(2 * DIM).flat_map(|two| two[..DIM].to_vec()).collect();
            let part = grown(distance, DIM, &even, Vec::new());
            let gone = |row: u32| row.is_multiple_of(6);
            let old = (0..1000u32).filter(|row| !gone(2 * row)).map(|row| {
                let further = |link: u32| match gone(2 * link) {
                    true => part.graph().linked(link).filter(|f| !gone(2 * f) && *f != row).collect(),
                    false => vec![link],
                };
                let mut links: Vec<u32> = part.graph().linked(row).flat_map(further).map(|l| 2 * l).collect();
                links.sort_unstable();
                links.dedup();
                Old { row: 2 * row, links }
            });
            let joined = grown(distance, DIM, &vectors, old.collect());
            lists_are_sound(&joined);
            assert!(joined.unreachable().len() <= 10, "{distance:?}: {:?}", joined.unreachable());
            assert!(found(&joined, distance, DIM, &vectors, &mut rng) >= 490, "{distance:?}");
        }
    }

    #[test]
    fn thousands_of_equal_rows_are_all_reached() {
        let mut rng = StdRng::seed_from_u64(4);
        let mut vectors: Vec<f32> = (0..1000 * 3).map(|_| rng.random_range(-1.0..1.0)).collect();
        vectors.extend([0.5; 3 * 3000]);
        vectors.extend((0..1000 * 3).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>());
        let built = grown(Distance::Euclid, 3, &vectors, Vec::new());
        lists_are_sound(&built);
        assert!(built.unreachable().len() <= 10, "{} rows", built.unreachable().len());
        assert!(found(&built, Distance::Euclid, 3, &vectors, &mut rng) >= 480);
    }

    #[test]
    fn heaps_of_equals_amid_other_rows_are_all_reached() {
        const DIM: usize = 8;
        const ROWS: usize = 8000;
        let mut rng = StdRng::seed_from_u64(6);
        let heaps: Vec<f32> = (0..40 * DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut vectors = Vec::new();
        for n in 0..ROWS {
            let heap = &heaps[n % 40 * DIM..][..DIM];
            let aside = if n / 40 % 4 == 0 { 0.2 } else { 0.0 };
            vectors.extend(heap.iter().map(|x| x + aside * rng.random_range(-1.0..1.0f32)));
        }
        let built = grown(Distance::Euclid, DIM, &vectors, Vec::new());
        lists_are_sound(&built);
        assert!(built.unreachable().len() <= 10, "{} rows", built.unreachable().len());
    }

    #[test]
    fn few_rows_make_a_graph_and_a_build_stops_when_told() {
        for rows in [1, 2, 3, 40] {
            let built = grown(Distance::Euclid, 2, &vec![0.25; rows * 2], Vec::new());
            assert!(built.unreachable().is_empty(), "{rows} equal rows");
        }
        let grid = Grid { centre: vec![0.0; 2], step: 1.0, half: false };
        let codes = grid.encode([0.0; 20].chunks_exact(2));
        let stopped = grow(
            Distance::Euclid,
            (&grid, &codes),
            Vec::new(),
            HnswParams::default(),
            &AtomicBool::new(true),
        );
        assert!(matches!(stopped, Err(BuildError::Stopped)));
    }
}
