//! Finds the nearest vectors: by graph in sealed segments, by scan in the deltas that no graph holds yet.
//!
//! ```text
//!   slots, as they were given out ->
//!   | segment (graph) | segment | sealed delta | sealed delta | open delta |
//!                                 waiting to be built            grows with every apply
//! ```
//!
//! Invariants: the parts of one version hold every live vector once, each row of each part ascending by slot; a
//! part leaves only in the version in which another holds its live rows. Which rows are live is never kept
//! here: every search asks the view's live set, so an index may be behind but never wrong.
//!
//! Not here: the thread that builds (`indexer`), the list of files (`manifest`), filters (`plan`).
//! Source: FreshDiskANN (Singh et al., 2021); the logarithmic method (Bentley and Saxe, 1980).

mod bit_kernel;
mod bits;
pub(super) mod build;
mod code_kernel;
mod codes;
mod delta;
mod graph;
mod grow;
mod kernel;
pub(super) mod manifest;
mod packed;
mod packed_kernel;
mod resident;
pub(super) mod segment;
mod segment_search;
mod sketch;
mod walk_or_scan;

use super::{
    points::Slot,
    slots::{LiveSet, SlotTable},
};
use crate::{
    model::{
        Explanation, HnswParams, PartExplanation, PartKind, PointId, Position, Quantization, Residence,
        SearchCost, SearchPlan, VectorParams,
    },
    world,
};
use bits::Signs;
use codes::Grid;
use delta::Delta;
use graph::Scratch;
use grow::Old;
use kernel::Metric;
use roaring::RoaringBitmap;
use segment::{Coder, Content, Row, Segment};
use segment_search::{Searched, Tally};
use std::{
    cell::RefCell,
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use walk_or_scan::Walk;

/// The index of each vector of a schema.
pub(super) type VectorIndexes = BTreeMap<String, VectorIndex>;

/// The index of one vector of the schema, as one view sees it; cheap to clone.
#[derive(Clone)]
pub(super) struct VectorIndex {
    pub(super) params: VectorParams,
    pub(super) segments: Vec<Arc<SealedSegment>>,
    pub(super) sealed: Vec<Arc<Delta>>,
    open: Delta,
}

/// A segment and the name of its file.
pub(super) struct SealedSegment {
    pub(super) file: String,
    pub(super) segment: Segment,
}

/// Parts that are to become one segment.
pub(super) struct Merge {
    pub(super) params: VectorParams,
    pub(super) segments: Vec<Arc<SealedSegment>>,
    pub(super) sealed: Vec<Arc<Delta>>,
}

/// The live rows of a merge, ascending by slot; their vectors stay where they are.
pub(super) struct Gathered<'a> {
    pub(super) rows: Vec<Row>,
    vectors: Vec<&'a [f32]>,
    /// Those that are linked already.
    old: Vec<Old>,
}

/// Rows of a delta at most: every search scans them.
const DELTA_ROWS_MAX: usize = 1 << 16;
/// Rows from which a delta is worth a graph while nothing is written; fewer are scanned as fast.
const GRAPH_ROWS_MIN: usize = 2048;
/// Candidates of all walks of a search that is quick, and the numbers in them: 0.1 to 0.3 ms;
const QUICK_CANDIDATES_MAX: usize = 256;
const QUICK_WALKED_MAX: usize = 1 << 17;
/// and bytes of rows that it scans: 0.2 ms.
const QUICK_SCANNED_MAX: usize = 1 << 21;
/// A part is joined to another that is at most so many times as large.
const JOIN_SHARE: usize = 16;
/// A segment is built anew once one in so many of its rows is dead.
const DEAD_SHARE: usize = 5;

fn joins(rows: usize, larger: usize) -> bool {
    rows * JOIN_SHARE >= larger
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    /// `[dim]`, checked and normalised.
    pub(super) query: &'a [f32],
    /// How many.
    pub(super) count: usize,
    /// Candidates kept while a graph is walked; `None`: as many as while it was built.
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

/// A point that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    /// As the metric has it; smaller is nearer.
    pub(super) distance: f32,
    pub(super) id: PointId,
    /// The position that last wrote the point.
    pub(super) version: Position,
    pub(super) slot: Slot,
}

impl VectorIndex {
    /// An index over segments.
    pub(super) fn new(params: VectorParams, segments: Vec<Arc<SealedSegment>>) -> Self {
        VectorIndex { params, segments, sealed: Vec::new(), open: Delta::default() }
    }

    /// Adds rows: `values [slots.len(), dim]`, slots ascending and above all before. A delta that has grown to
    /// `seal_bytes`, or to rows that would take long to scan, is sealed.
    pub(super) fn append(&mut self, slots: Vec<Slot>, values: Vec<f32>, seal_bytes: usize) {
        self.open.append((self.params.distance, self.params.dim as usize), slots, values);
        if self.bytes(self.open.rows()) >= seal_bytes || self.open.rows() >= DELTA_ROWS_MAX {
            self.sealed.push(Arc::new(self.open.take()));
        }
    }

    /// Bytes of vectors that wait to be built into a graph.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes(self.waiting_rows())
    }

    /// Rows that wait to be built into a graph.
    pub(super) fn waiting_rows(&self) -> usize {
        self.sealed.iter().map(|delta| delta.rows()).sum()
    }

    fn bytes(&self, rows: usize) -> usize {
        rows * self.params.dim as usize * size_of::<f32>()
    }

    /// What a user sees for a distance of [`Found`].
    pub(super) fn score(&self, distance: f32) -> f32 {
        Metric::of(self.params.distance).score(distance)
    }

    /// The nearest of what is wanted, nearest first, ties by id; `explanation` is told of each part.
    ///
    /// Cost: each graph about `ef · degree / 2` comparisons of codes, or fewer if few slots are allowed; each delta
    /// one a row.
    pub(super) fn nearest(
        &self,
        wanted: &Wanted<'_>,
        mut explanation: Option<&mut Explanation>,
    ) -> Vec<Found> {
        let mut nearest = Nearest { wanted, farthest_first: BinaryHeap::new() };
        // One more than wanted: a point may be excluded.
        let count = wanted.count.saturating_add(1);
        for (number, sealed) in self.segments.iter().enumerate() {
            let part = self.search_segment(&sealed.segment, count, &mut nearest);
            if let Some(explanation) = &mut explanation {
                explanation.note(number, part.told(&self.params, PartKind::Segment, sealed.segment.coding()));
            }
        }
        for (number, delta) in self.sealed.iter().map(|delta| &**delta).chain([&self.open]).enumerate() {
            let part = self.search_delta(delta, count, &mut nearest);
            if let Some(explanation) = &mut explanation {
                let sealed = number < self.sealed.len();
                let kind = if sealed { PartKind::SealedDelta } else { PartKind::OpenDelta };
                explanation.note(self.segments.len() + number, part.told(&self.params, kind, delta.coding()));
            }
        }
        nearest.farthest_first.into_sorted_vec()
    }

    /// Whether [`Self::nearest`] takes hardly longer than changing threads twice: few candidates in graphs in memory, and
    /// few rows that are in none. The vectors of candidates are read from mapped files, which the system holds in memory unless
    /// it has better use for it.
    ///
    /// `count`: the points wanted. `ef`: as the caller asks.
    pub(super) fn is_quick(&self, count: usize, ef: Option<usize>) -> bool {
        let in_memory = |s: &Arc<SealedSegment>| s.segment.residence() == Residence::Memory;
        let (dim, HnswParams { m, ef_construct }) = (self.params.dim as usize, self.params.hnsw);
        let asked = ef.unwrap_or(ef_construct as usize);
        let kept = |s: &Arc<SealedSegment>| asked.max(s.segment.candidates_min(count.saturating_add(1)));
        let candidates = self.segments.iter().map(kept).fold(0, usize::saturating_add);
        let walked = candidates.saturating_mul(dim * m as usize) / HnswParams::default().m as usize;
        let deltas = self.sealed.iter().map(|delta| &**delta).chain([&self.open]);
        self.segments.iter().all(in_memory)
            && candidates <= QUICK_CANDIDATES_MAX
            && walked <= QUICK_WALKED_MAX
            && deltas.map(Delta::scanned_bytes).sum::<usize>() <= QUICK_SCANNED_MAX
    }

    fn search_delta(&self, delta: &Delta, count: usize, nearest: &mut Nearest<'_>) -> PartSearch {
        let (wanted, metric) = (nearest.wanted, Metric::of(self.params.distance));
        let mut part = PartSearch { rows: delta.rows(), ..PartSearch::default() };
        if wanted.exact {
            part.plan = SearchPlan::Exact;
            for (slot, row) in delta.iter(wanted.query.len()).filter(|(slot, _)| wanted.accepts(*slot)) {
                part.tally.vectors += 1;
                nearest.offer(metric.distance(wanted.query, row), slot);
            }
            return part;
        }
        let (distance, tally) = (self.params.distance, &mut part.tally);
        let live = |slot| wanted.live.contains(slot);
        let (query, edge) = ((distance, wanted.query), nearest.edge());
        delta.offer_near(query, count, (wanted.allowed, live), tally, edge, |slot, row| {
            nearest.offer(metric.distance(wanted.query, row), slot);
            nearest.edge()
        });
        part
    }

    fn search_segment(&self, segment: &Segment, count: usize, nearest: &mut Nearest<'_>) -> PartSearch {
        let wanted = nearest.wanted;
        let rows = segment.rows();
        let mut part =
            PartSearch { rows: rows.len(), degree: segment.graph().degree, ..PartSearch::default() };
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return part };
        let count = count.min(rows.len());
        let allowed =
            wanted.allowed.map(|allowed| allowed.range_cardinality(first.slot..=last.slot) as usize);
        part.allowed = allowed;
        let accept = |row: u32| wanted.accepts(rows[row as usize].slot);
        let mut offer = |part: &mut PartSearch, searched: Searched| {
            part.tally += searched.tally;
            for (distance, row) in searched.near {
                nearest.offer(distance, rows[row as usize].slot);
            }
        };
        let least = segment.candidates_min(count);
        let walk = Walk::plan(self.params.hnsw, rows.len(), allowed, least, wanted.ef)
            .map(|walk| Walk { count, ..walk });
        if let Some(walk) = walk.filter(|_| !wanted.exact) {
            let searched =
                SCRATCH.with_borrow_mut(|scratch| segment.nearest(wanted.query, walk, scratch, accept));
            part.ef = Some(walk.ef);
            if searched.near.len() >= count {
                part.plan = SearchPlan::Walk;
                offer(&mut part, searched);
                return part;
            }
            // Too few of the rows around the query are allowed, or live.
            part.tally += searched.tally;
        }
        let candidates: Vec<u32> = match wanted.allowed {
            Some(allowed) => {
                let slots = allowed.range(first.slot..=last.slot).filter(|slot| wanted.live.contains(*slot));
                rows_of(rows, |row| row.slot, slots)
            }
            None => (0..rows.len() as u32).filter(|row| accept(*row)).collect(),
        };
        part.accepted = Some(candidates.len());
        if !wanted.exact {
            offer(&mut part, segment.scan(wanted.query, count, candidates.into_iter()));
            return part;
        }
        part.plan = SearchPlan::Exact;
        let metric = Metric::of(self.params.distance);
        let distance = |row| (metric.distance(wanted.query, segment.vector(row)), row);
        let tally = Tally { vectors: candidates.len() as u64, ..Tally::default() };
        offer(&mut part, Searched { near: candidates.into_iter().map(distance).collect(), tally });
        part
    }

    /// What is worth building now, if anything: every waiting delta with the segments it is not small beside; else
    /// a segment with a fifth of its rows dead; else segments enough to make it worth while to have one.
    ///
    /// A graph grows by what joins its largest part, so that a row is linked once, and again only when what it lies
    /// in joins a part several times as large; what is written anew is all of it.
    ///
    /// Parts that would come to more than `bytes_max` of vectors stay apart.
    pub(super) fn next_merge(&self, live: &LiveSet, bytes_max: usize) -> Option<Merge> {
        let mut by_size = self.segments.clone();
        by_size.sort_by_key(|s| s.segment.rows().len());
        let rows = |s: &Arc<SealedSegment>| s.segment.rows().len();
        let merge = |segments: Vec<_>, sealed| Merge { params: self.params, segments, sealed };
        if !self.sealed.is_empty() {
            let mut gathered = 0;
            let waiting = self.sealed.iter().take_while(|delta| {
                let first = gathered == 0;
                gathered += delta.rows();
                first || self.bytes(gathered) <= bytes_max
            });
            let waiting: Vec<_> = waiting.cloned().collect();
            gathered = waiting.iter().map(|delta| delta.rows()).sum();
            let worth_while = by_size.into_iter().take_while(|s| {
                let fits = joins(gathered, rows(s)) && self.bytes(gathered + rows(s)) <= bytes_max;
                gathered += if fits { rows(s) } else { 0 };
                fits
            });
            return Some(merge(worth_while.collect(), waiting));
        }
        let dead =
            |s: &Arc<SealedSegment>| s.segment.rows().iter().filter(|r| !live.contains(r.slot)).count();
        if let Some(rotten) = by_size.iter().find(|s| dead(s) * DEAD_SHARE > rows(s)) {
            return Some(merge(vec![rotten.clone()], Vec::new()));
        }
        let mut gathered = 0;
        let small = by_size.into_iter().take_while(|s| {
            gathered += rows(s);
            self.bytes(gathered) <= bytes_max
        });
        let mut small: Vec<_> = small.collect();
        let largest = small.pop()?;
        let others: usize = small.iter().map(rows).sum();
        if joins(others, rows(&largest)) {
            small.push(largest);
        }
        (small.len() > 1).then(|| merge(small, Vec::new()))
    }

    /// A segment that is not held where it is to be, if there is one.
    pub(super) fn held_elsewhere(&self) -> Option<&Arc<SealedSegment>> {
        self.segments.iter().find(|s| s.segment.residence() != self.params.residence)
    }

    /// Seals the open delta if it is worth a graph, or a place in one, while nothing is written; whether it did.
    pub(super) fn seal_at_rest(&mut self) -> bool {
        let largest = self.segments.iter().map(|s| s.segment.rows().len()).max().unwrap_or_default();
        let worth_while = self.open.rows() >= GRAPH_ROWS_MIN && joins(self.open.rows(), largest);
        if worth_while {
            self.sealed.push(Arc::new(self.open.take()));
        }
        worth_while
    }

    /// Puts a new segment (or none, if no row was live) in the place of what it was merged from; `false`, and
    /// nothing is changed, if some of that is not here any more.
    pub(super) fn replace(&mut self, merge: &Merge, new: Option<Arc<SealedSegment>>) -> bool {
        let (segments, sealed) = (self.segments.len(), self.sealed.len());
        let mut next = self.clone();
        next.segments.retain(|s| !merge.segments.iter().any(|old| Arc::ptr_eq(s, old)));
        next.sealed.retain(|s| !merge.sealed.iter().any(|old| Arc::ptr_eq(s, old)));
        let gone = (segments - next.segments.len(), sealed - next.sealed.len());
        if gone != (merge.segments.len(), merge.sealed.len()) {
            return false;
        }
        next.segments.extend(new);
        *self = next;
        true
    }
}

impl Merge {
    /// The rows that are live.
    pub(super) fn gather(&self, live: &LiveSet, slots: &SlotTable) -> Gathered<'_> {
        let dim = self.params.dim as usize;
        let mut rows: Vec<(Slot, &[f32])> = Vec::new();
        for sealed in &self.segments {
            let numbered = (0u32..).zip(sealed.segment.rows());
            rows.extend(numbered.map(|(number, row)| (row.slot, sealed.segment.vector(number))));
        }
        for delta in &self.sealed {
            rows.extend(delta.iter(dim));
        }
        rows.retain(|(slot, _)| live.contains(*slot));
        rows.sort_unstable_by_key(|(slot, _)| *slot);
        let mut gathered = Gathered {
            rows: Vec::with_capacity(rows.len()),
            vectors: Vec::with_capacity(rows.len()),
            old: Vec::new(),
        };
        for (slot, vector) in rows {
            world::breathe();
            if let Some(version) = slots.born(slot) {
                gathered.rows.push(Row { slot, version });
                gathered.vectors.push(vector);
            }
        }
        if let Some(largest) = self.segments.iter().max_by_key(|s| s.segment.rows().len()) {
            gathered.old = largest.segment.old_links(&gathered.rows, self.params.hnsw);
            // With half of its rows gone and mended, a graph of 2,000 had recall 0.944 where one grown anew has 0.95.
            if 4 * gathered.old.len() < 3 * largest.segment.rows().len() {
                gathered.old.clear();
            }
        }
        gathered
    }
}

impl Gathered<'_> {
    /// The rows' codes, if a walk that keeps as many candidates as building does finds what is near by them: as few bits a
    /// number as suffice.
    fn code(&self, params: &VectorParams) -> Option<(Grid, Vec<u8>)> {
        let (dim, kept) = (params.dim as usize, params.hnsw.ef_construct as usize);
        let vectors = self.vectors.iter().copied().inspect(|_| world::breathe());
        let encode = |grid: Grid| {
            let codes = grid.encode(vectors.clone());
            let serve = grid.tells_apart(params.distance, &codes, &self.vectors, kept);
            serve.then_some((grid, codes))
        };
        let fewest = Grid::of(dim, vectors.clone())?;
        let half = fewest.half;
        encode(fewest).or_else(|| encode(Grid::of_bytes(dim, vectors.clone()).filter(|_| half)?))
    }

    /// Builds the graph and writes the segment's file.
    pub(super) fn build(
        self,
        params: &VectorParams,
        path: &Path,
        stop: &AtomicBool,
    ) -> Result<Segment, IndexError> {
        let dim = params.dim as usize;
        let vectors = self.vectors.iter().copied().inspect(|_| world::breathe());
        let go_on = || match stop.load(Relaxed) {
            true => Err(build::BuildError::Stopped),
            false => Ok(()),
        };
        let usual = self.code(params);
        go_on()?;
        let built = match &usual {
            Some((grid, codes)) if grow::can_grow(params.distance) => {
                let mut built = grow::grow(params.distance, (grid, codes), self.old, params.hnsw, stop)?;
                let (mut rows, mut scratch) =
                    (grow::Rows::new(params.distance, grid, codes), Scratch::default());
                built.make_reachable(|graph, row| {
                    graph.nearest(&rows.from(row), build::HOSTS_ASKED, &mut scratch).to_vec()
                });
                built
            }
            _ => {
                let vectors = self.vectors.concat();
                build::build(Metric::of(params.distance), dim, &vectors, params.hnsw, stop)?
            }
        };
        // Links are chosen by the finest codes there are, whichever are kept for the searches.
        let usual = usual.map(|(grid, codes)| (Coder::Numbers(grid), codes));
        let coded = match params.quantization {
            Quantization::None => None,
            Quantization::Scalar => usual,
            Quantization::Binary => match Signs::of(params.distance, dim, vectors.clone()) {
                Some((signs, codes)) => Some((Coder::Signs(signs), codes)),
                None => usual,
            },
        };
        go_on()?;
        let content = Content {
            distance: params.distance,
            dim,
            rows: &self.rows,
            built: &built,
            coded: coded.as_ref().map(|(coder, codes)| (coder, &codes[..])),
        };
        Segment::write(path, &content, vectors)?;
        Ok(Segment::open(path, params.residence)?)
    }
}

/// Why a segment was not built.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// No graph.
    #[error(transparent)]
    Build(#[from] build::BuildError),
    /// No file.
    #[error(transparent)]
    Segment(#[from] segment::SegmentError),
}

impl From<std::io::Error> for IndexError {
    fn from(error: std::io::Error) -> Self {
        IndexError::Segment(error.into())
    }
}

/// The rows of those slots that have one; both ascend.
fn rows_of<T>(rows: &[T], slot_of: impl Fn(&T) -> Slot, slots: impl Iterator<Item = Slot>) -> Vec<u32> {
    let (Some(first), Some(last)) = (rows.first().map(&slot_of), rows.last().map(&slot_of)) else {
        return Vec::new();
    };
    if (last - first) as usize == rows.len() - 1 {
        // Each slot between them has a row.
        let between = slots.filter(|slot| (first..=last).contains(slot));
        return between.map(|slot| slot - first).collect();
    }
    let mut found = Vec::new();
    let mut from = 0;
    for slot in slots {
        // The next is seldom far: steps that double, then halves between the last two.
        let mut step = 1;
        while rows.get(from + step).is_some_and(|row| slot_of(row) <= slot) {
            from += step;
            step *= 2;
        }
        let end = rows.len().min(from + step);
        from += rows[from..end].partition_point(|row| slot_of(row) < slot);
        if rows.get(from).is_some_and(|row| slot_of(row) == slot) {
            found.push(from as u32);
        }
    }
    found
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Wanted<'_> {
    fn accepts(&self, slot: Slot) -> bool {
        self.live.contains(slot) && self.allowed.is_none_or(|allowed| allowed.contains(slot))
    }
}

/// How a part was searched.
#[derive(Default)]
struct PartSearch {
    rows: usize,
    /// Links a row of a graph has room for.
    degree: usize,
    allowed: Option<usize>,
    accepted: Option<usize>,
    plan: SearchPlan,
    ef: Option<usize>,
    tally: Tally,
}

impl PartSearch {
    /// In the words of an explanation; `coding`: bits of a code, bytes of a row of codes.
    fn told(self, params: &VectorParams, part: PartKind, coding: Option<(u32, usize)>) -> PartExplanation {
        let Tally { codes, vectors, links } = self.tally;
        let (bits, stride) = coding.unzip();
        let bytes_of_row = [stride.unwrap_or_default(), params.dim as usize * 4, self.degree * 4];
        let bytes_read = [codes, vectors, links].iter().zip(bytes_of_row).map(|(n, of)| n * of as u64).sum();
        PartExplanation {
            part,
            rows: self.rows as u64,
            allowed_estimated: self.allowed.map(|rows| rows as u64),
            allowed_actual: self.accepted.map(|rows| rows as u64),
            plan: self.plan,
            ef: self.ef.map(|ef| ef as u64),
            code_bits: bits.filter(|_| codes > 0),
            cost: SearchCost { distances_codes: codes, distances_f32: vectors, bytes_read },
        }
    }
}

/// The nearest so far, at most as many as are wanted.
struct Nearest<'a> {
    wanted: &'a Wanted<'a>,
    farthest_first: BinaryHeap<Found>,
}

impl Nearest<'_> {
    /// A distance that what is wanted does not exceed.
    fn edge(&self) -> f32 {
        let full = self.farthest_first.len() >= self.wanted.count;
        if full {
            self.farthest_first.peek().map_or(f32::NEG_INFINITY, |worst| worst.distance)
        } else {
            f32::INFINITY
        }
    }

    fn offer(&mut self, distance: f32, slot: Slot) {
        if distance > self.edge() {
            return;
        }
        let Some((id, version)) = self.wanted.slots.point(slot) else { return };
        if self.wanted.exclude == Some(id) {
            return;
        }
        self.farthest_first.push(Found { distance, id, version, slot });
        if self.farthest_first.len() > self.wanted.count {
            self.farthest_first.pop();
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Distance;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// However near rows lie to each other beside how far they are spread.
    #[test]
    fn a_walk_finds_what_is_near_among_rows_that_lie_close() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut evenly =
            |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
        // (dimensions, heaps, how far a heap is spread, rows): more rows in a heap than a walk keeps.
        for (dim, heaps, width, rows) in [(1, 2, 0.005, 3_000), (2, 2, 0.005, 3_000), (256, 12, 1e-4, 3_000)]
        {
            let centres = evenly(heaps * dim);
            let vectors: Vec<f32> = evenly(rows * dim)
                .iter()
                .enumerate()
                .map(|(at, x)| centres[at / dim % heaps * dim + at % dim] + width * x)
                .collect();
            let gathered = Gathered {
                rows: (0..rows as u32).map(|slot| Row { slot, version: Position(1) }).collect(),
                vectors: vectors.chunks_exact(dim).collect(),
                old: Vec::new(),
            };
            let folder = tempfile::tempdir().expect("a folder");
            let params = VectorParams::new(dim as u32, Distance::Euclid, HnswParams::default());
            let segment = gathered
                .build(&params, &folder.path().join("a.seg"), &AtomicBool::new(false))
                .expect("built");
            let metric = Metric::of(Distance::Euclid);
            let (mut found, mut wanted) = (0, 0);
            for query in vectors.chunks_exact(dim).step_by(rows / 40) {
                let mut right: Vec<f32> =
                    vectors.chunks_exact(dim).map(|row| metric.distance(query, row)).collect();
                let edge = *right.select_nth_unstable_by(9, f32::total_cmp).1;
                let walk = Walk { count: 10, ef: 128, most: true, expanded_max: usize::MAX };
                let near = segment.nearest(query, walk, &mut Scratch::default(), |_| true).near;
                found += near.iter().filter(|(distance, _)| *distance <= edge).count().min(10);
                wanted += 10;
            }
            assert!(found * 100 >= wanted * 97, "{dim} dimensions, {heaps} heaps: {found} of {wanted}");
        }
    }

    #[test]
    fn rows_are_found_by_their_slots() {
        let row = |slot| Row { slot, version: Position(1) };
        let some: Vec<Row> = (0..1000).filter(|slot| slot % 7 > 1).map(row).collect();
        let all: Vec<Row> = (30..1000).map(row).collect();
        for (rows, every) in [&some, &all].into_iter().flat_map(|rows| [1, 3, 50, 999].map(|n| (rows, n))) {
            let slots: Vec<Slot> = (0..1100).step_by(every).collect();
            let right: Vec<u32> =
                (0..).zip(rows).filter(|(_, row)| slots.contains(&row.slot)).map(|(row, _)| row).collect();
            assert_eq!(rows_of(rows, |row: &Row| row.slot, slots.into_iter()), right, "every {every}");
        }
        assert!(rows_of(&[], |row: &Row| row.slot, [1, 2].into_iter()).is_empty());
    }
}
