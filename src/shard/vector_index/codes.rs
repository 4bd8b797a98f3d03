//! Vectors as one byte, or half a byte, a number: steps of one size around the mean of each dimension.
//!
//! A number `x` of dimension `j` becomes the byte `u` with `(x - centre[j]) / step ≈ u - 127.5`, and in half a byte
//! the nearest of every 17th. One step for all dimensions, so that sums need no weights; the centre costs nothing,
//! since differences do not feel it, and inner products only by a constant of the query.
//!
//! Invariants: codes choose candidates and never answer: what [`CodedQuery::doubt`] leaves undecided is compared
//! anew by the vectors themselves. Smaller keys are nearer, for every distance.
//! Source: scalar quantisation of one range as in faiss (SQ8, SQ4); rows unsigned and the query signed, as the
//! product of bytes wants them, so that no row needs a sum of its own.

use super::{
    code_kernel::{self, BLOCK, Scan, UNIT},
    graph::Scorer,
    kernel::{Metric, prefetch},
};
use crate::{model::Distance, world};

/// Numbers that are looked at to choose a grid, but of no fewer rows than the second.
const SAMPLE_NUMBERS: usize = 1 << 17;
const SAMPLE_ROWS_MIN: usize = 256;
/// What half a byte counts in steps.
const HALF_STEP: f32 = 17.0;
/// Dimensions from which half a byte a number is thought of.
const HALF_DIM_MIN: usize = 128;
/// Half-bytes serve while they shift inner products by less than this, in lengths of the vectors. On 384 dimensions of
/// MiniLM they are below, and cost no recall.
const HALF_NOISE_MAX: f64 = 0.008;
/// Codes of any kind serve while they are off by less than this, in lengths of the vectors.
const ERROR_MAX: f64 = 0.2;
/// Half-bytes cut off one number in a hundred; they serve while that leaves no single row off by more than this, in
/// lengths of the usual vector: it might be the very one that is looked for.
const HALF_WORST_MAX: f64 = 0.4;
/// By how many deviations of their error two keys must differ to be taken at their word.
const DEVIATIONS: f32 = 3.0;
/// Rows that are looked for to see whether codes tell them apart from others, how many of their nearest each, and the share
/// of these that must be found.
const PROBES: usize = 16;
const NEAREST: usize = 10;
const FOUND_MIN: f64 = 0.98;
/// Candidates that a search can be expected to keep where codes leave many in doubt, also if building keeps fewer.
const KEPT_MIN: usize = 128;

/// Vectors by row, wherever they lie.
pub(crate) trait Vectors<'a>: ExactSizeIterator<Item = &'a [f32]> + Clone {}

impl<'a, T: ExactSizeIterator<Item = &'a [f32]> + Clone> Vectors<'a> for T {}

/// How numbers are coded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grid {
    /// The mean, by dimension.
    pub(crate) centre: Vec<f32>,
    /// By how much a number grows from one byte to the next.
    pub(crate) step: f32,
    /// Half a byte a number.
    pub(crate) half: bool,
}

/// A query as its distance compares it with codes.
pub(crate) struct CodedQuery {
    bytes: Vec<u8>,
    base: u32,
    stride: usize,
    scan: Scan,
    /// Variance of the difference of two keys: so much, and so much by the key.
    variance: (f32, f32),
}

/// How far codes are off.
struct Error {
    /// Of each row in its own (centred) length, no more than 1.
    mean: f64,
    /// Of one row, in the length of the usual one.
    worst: f64,
}

/// Rows of codes and a query.
#[derive(Clone, Copy)]
pub(crate) struct Coded<'a> {
    /// `[rows, stride]`.
    pub(crate) codes: &'a [u8],
    /// What they are compared with.
    pub(crate) query: &'a CodedQuery,
}

impl Grid {
    /// A grid for vectors of `dim` numbers; `None` if there are none, or codes would say too little about them.
    pub(crate) fn of<'a>(dim: usize, vectors: impl Vectors<'a>) -> Option<Self> {
        Self::with(dim, vectors, dim >= HALF_DIM_MIN)
    }

    /// The same, with a byte a number.
    pub(crate) fn of_bytes<'a>(dim: usize, vectors: impl Vectors<'a>) -> Option<Self> {
        Self::with(dim, vectors, false)
    }

    fn with<'a>(dim: usize, vectors: impl Vectors<'a>, may_be_half: bool) -> Option<Self> {
        let rows = vectors.len();
        if rows == 0 {
            return None;
        }
        let centre = means(dim, vectors.clone());
        let sample_rows = (SAMPLE_NUMBERS / dim).max(SAMPLE_ROWS_MIN);
        let sample = || vectors.clone().step_by(rows.div_ceil(sample_rows));
        let apart = |row: &[f32]| row.iter().zip(&centre).map(|(x, c)| (x - c).abs()).collect::<Vec<_>>();
        let grid = |reach: f32, half| {
            let step = if reach > 0.0 { reach / 127.5 } else { 1.0 };
            Grid { centre: centre.clone(), step, half }
        };
        if may_be_half {
            let mut reaches: Vec<f32> = sample().flat_map(apart).collect();
            let hundredth = reaches.len() / 100;
            let reach = *reaches.select_nth_unstable_by(hundredth, |a, b| b.total_cmp(a)).1;
            let halves = grid(reach, true);
            let error = halves.error(sample());
            if halves.step.is_normal()
                && error.mean / (dim as f64).sqrt() < HALF_NOISE_MAX
                && halves.error(vectors.clone()).worst < HALF_WORST_MAX
            {
                return Some(halves);
            }
        }
        let largest = |most: f32, row: &[f32]| {
            row.iter().zip(&centre).fold(most, |most, (x, c)| most.max((x - c).abs()))
        };
        let whole = grid(vectors.clone().fold(0.0, largest), false);
        (whole.step.is_normal() && whole.error(sample()).mean < ERROR_MAX).then_some(whole)
    }

    /// Whether what is nearest to a row is among the `kept` nearest by their codes ([`KEPT_MIN`] at the least), of all rows: where many lie close to each
    /// other and far from the rest, they share their codes, however little these are off.
    ///
    /// `codes [rows, stride]`: of `vectors`. Cost: [`PROBES`] comparisons of all codes.
    pub(crate) fn tells_apart(
        &self,
        distance: Distance,
        codes: &[u8],
        vectors: &[&[f32]],
        kept: usize,
    ) -> bool {
        let (metric, kept) = (Metric::of(distance), kept.max(KEPT_MIN));
        let (mut found, mut wanted) = (0, 0);
        for probe in vectors.iter().step_by(vectors.len().div_ceil(PROBES).max(1)) {
            // Without codes it is compared by its numbers.
            let Some(query) = self.query(distance, probe) else { continue };
            let coded = Coded { codes, query: &query };
            let rows = (0..vectors.len() as u32).inspect(|_| world::breathe());
            // One more: the row itself.
            let (rows, _) = coded.shortlist(rows, |_| true, NEAREST + 1);
            wanted += NEAREST;
            if rows.len() <= kept {
                found += NEAREST;
                continue;
            }
            let mut keys = vec![0; rows.len()];
            coded.score(&rows, &mut keys);
            let mut near: Vec<(u32, f32)> = keys
                .into_iter()
                .zip(rows.iter().map(|row| metric.distance(probe, vectors[*row as usize])))
                .collect();
            let edge = *near.clone().select_nth_unstable_by(NEAREST, |a, b| a.1.total_cmp(&b.1)).1;
            // Of equal codes, a walk may have kept those that are farthest.
            near.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
            found += near[..kept].iter().filter(|(_, away)| *away <= edge.1).count().min(NEAREST);
        }
        found as f64 >= FOUND_MIN * wanted as f64
    }

    /// How far the codes of some rows are off.
    fn error<'a>(&self, rows: impl Iterator<Item = &'a [f32]>) -> Error {
        let (mut count, mut shares, mut lengths, mut worst) = (0f64, 0f64, 0f64, 0f64);
        let per_step = 1.0 / self.step;
        for row in rows {
            let (mut off, mut length) = (0f32, 0f32);
            for (x, centre) in row.iter().zip(&self.centre) {
                let x = (x - centre) * per_step;
                let coded = if self.half { f32::from(half_byte(x)) * HALF_STEP } else { f32::from(byte(x)) };
                off += (x - (coded - 127.5)).powi(2);
                length += x * x;
            }
            count += 1.0;
            shares += if length > 0.0 { f64::from(off / length).min(1.0) } else { 0.0 };
            lengths += f64::from(length);
            worst = worst.max(f64::from(off));
        }
        Error { mean: (shares / count).sqrt(), worst: (worst * count / lengths).sqrt() }
    }

    /// Bits of a number.
    pub(crate) fn bits(&self) -> u32 {
        if self.half { 4 } else { 8 }
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        stride(self.centre.len(), self.half)
    }

    /// The vectors' codes, `[rows, stride]`.
    pub(crate) fn encode<'a>(&self, vectors: impl Vectors<'a>) -> Vec<u8> {
        let per_step = 1.0 / self.step;
        let mut codes = vec![0; vectors.len() * self.stride()];
        for (row, codes) in vectors.zip(codes.chunks_exact_mut(self.stride())) {
            if self.half {
                let halves = row.chunks(BLOCK).zip(self.centre.chunks(BLOCK));
                for (number, (row, centre)) in halves.enumerate() {
                    let codes = &mut codes[number / 2 * BLOCK..][..BLOCK];
                    let shift = number % 2 * 4;
                    for ((code, x), centre) in codes.iter_mut().zip(row).zip(centre) {
                        *code |= half_byte((x - centre) * per_step) << shift;
                    }
                }
            } else {
                self.bytes(row, codes);
            }
        }
        codes
    }

    /// The bytes of a vector `[dim]`, where those are its codes.
    pub(crate) fn bytes(&self, row: &[f32], out: &mut [u8]) {
        let per_step = 1.0 / self.step;
        for ((code, x), centre) in out.iter_mut().zip(row).zip(&self.centre) {
            *code = byte((x - centre) * per_step);
        }
    }

    /// A query `[dim]`; `None` if it lies so far off, or is so short, that its code would say too little.
    pub(crate) fn query(&self, distance: Distance, query: &[f32]) -> Option<CodedQuery> {
        let stride = self.stride();
        let mut bytes = vec![0; if self.half { 2 * stride } else { stride }];
        let scan = code_kernel::best(distance, self.half);
        // A rounded number is off by a twelfth of a square step; the query's own rounding comes to the row's. There are two
        // keys.
        let unit = if self.half { HALF_STEP } else { 1.0 };
        let rounding = (unit * unit + 1.0) / 12.0;
        if distance.larger_is_nearer() {
            let largest = query.iter().fold(0f32, |most, x| most.max(x.abs()));
            let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            if !scale.is_finite() {
                return None;
            }
            let (mut sum, mut squares) = (0i32, 0f32);
            for (code, x) in bytes.iter_mut().zip(query) {
                // Rounded by a cast that the compiler can do to many at once.
                let whole = i32::from((x * scale + 128.5) as u8) - 128;
                sum += whole;
                squares += (whole * whole) as f32;
                *code = whole as i8 as u8;
            }
            // What the rows' 127.5 adds, and half of all numbers, so that no key is negative.
            let base = (1u32 << 31).wrapping_add((i64::from(sum) * 255 / 2) as u32);
            return Some(CodedQuery { bytes, base, stride, scan, variance: (2.0 * rounding * squares, 0.0) });
        }
        self.bytes(query, &mut bytes);
        let (mut cut, mut length) = (0f32, 0f32);
        for (x, centre) in query.iter().zip(&self.centre) {
            let x = (x - centre) / self.step;
            cut += (x.abs() - 128.0).max(0.0).powi(2);
            length += x * x;
        }
        // What is cut off is the same for all rows in a sum of differences, not in a sum of squares.
        if distance == Distance::Euclid && !(length.is_finite() && cut <= length / 100.0) {
            return None;
        }
        let dim = query.len() as f32;
        let variance = if distance == Distance::Euclid {
            // Of the square of what a number is off, which counts where rows are hardly farther than that.
            let squared = (unit.powi(4) + 1.0) / 80.0 + unit * unit / 24.0 - rounding * rounding;
            (2.0 * dim * squared, 2.0 * 4.0 * rounding)
        } else {
            (2.0 * dim * rounding, 0.0)
        };
        Some(CodedQuery { bytes, base: 0, stride, scan, variance })
    }
}

/// The mean of each dimension of some vectors.
pub(crate) fn means<'a>(dim: usize, vectors: impl Vectors<'a>) -> Vec<f32> {
    let rows = vectors.len() as f64;
    let mut sums = vec![0f64; dim];
    for row in vectors {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    sums.into_iter().map(|sum| (sum / rows) as f32).collect()
}

/// Bytes of a row of codes: whole cache lines, or a power of two that shares one.
pub(crate) fn stride(dim: usize, half: bool) -> usize {
    match dim {
        _ if half => dim.next_multiple_of(2 * BLOCK) / 2,
        0..=16 => UNIT,
        17..=32 => 2 * UNIT,
        _ => dim.next_multiple_of(BLOCK),
    }
}

/// The byte of a number in steps from the centre. Bounds first: so the compiler does many at once.
fn byte(x: f32) -> u8 {
    (x + 128.0).clamp(0.0, 255.0) as i32 as u8
}

fn half_byte(x: f32) -> u8 {
    (x * (1.0 / HALF_STEP) + 8.0).clamp(0.0, 15.0) as i32 as u8
}

impl CodedQuery {
    /// Compares rows with each other by their codes: by what lies between them, not by inner products.
    pub(crate) fn between_rows(grid: &Grid, distance: Distance) -> Self {
        assert!(!distance.larger_is_nearer(), "codes of rows are centred");
        let stride = grid.stride();
        let bytes = vec![0; if grid.half { 2 * stride } else { stride }];
        let scan = code_kernel::best(distance, grid.half);
        CodedQuery { bytes, base: 0, stride, scan, variance: (0.0, 0.0) }
    }

    /// Compares by the number of bits that differ.
    pub(crate) fn of_bits(bytes: Vec<u8>, scan: Scan) -> Self {
        // In place of doubt stands the number of candidates.
        CodedQuery { base: 0, stride: bytes.len(), bytes, scan, variance: (0.0, 0.0) }
    }

    /// A row of `codes [rows, stride]`.
    #[inline]
    pub(crate) fn row<'a>(&self, codes: &'a [u8], row: u32) -> &'a [u8] {
        &codes[row as usize * self.stride..][..self.stride]
    }

    /// Takes a row of `codes [rows, stride]` for the query.
    pub(crate) fn set_row(&mut self, codes: &[u8], row: u32) {
        let codes = self.row(codes, row);
        if self.bytes.len() == self.stride {
            return self.bytes.copy_from_slice(codes);
        }
        let blocks = codes.as_chunks::<BLOCK>().0.iter().zip(self.bytes.as_chunks_mut::<{ 2 * BLOCK }>().0);
        for (codes, bytes) in blocks {
            let (low, high) = bytes.split_at_mut(BLOCK);
            for ((low, high), both) in low.iter_mut().zip(high).zip(codes) {
                (*low, *high) = ((both & 15) * HALF_STEP as u8, (both >> 4) * HALF_STEP as u8);
            }
        }
    }

    /// What rows of bytes are scored against: `[dim]`, then zeros.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is added to a key.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    /// By how much a key must exceed this one before it is surely the farther.
    pub(crate) fn doubt(&self, key: u32) -> u32 {
        let (same, by_key) = self.variance;
        (DEVIATIONS * (same + by_key * key as f32).sqrt()).ceil() as u32
    }

    /// Drops of rows with their keys what is surely not among the nearest `count`; the edge behind which that is.
    pub(crate) fn shorten<R: Ord>(&self, list: &mut Vec<(u32, R)>, count: usize, edge: u32) -> u32 {
        if count == 0 || list.len() <= count {
            return edge;
        }
        let (_, (key, _), _) = list.select_nth_unstable(count - 1);
        let edge = key.saturating_add(self.doubt(*key));
        list.retain(|(key, _)| *key <= edge);
        edge
    }
}

impl Coded<'_> {
    /// The rows that may be among the nearest `count` of those given that pass, and how many were given; `passes` is
    /// asked only of those that are near.
    pub(crate) fn shortlist(
        &self,
        mut rows: impl Iterator<Item = u32>,
        passes: impl Fn(u32) -> bool,
        count: usize,
    ) -> (Vec<u32>, u64) {
        const AT_ONCE: usize = 64;
        let (mut batch, mut keys) = ([0; AT_ONCE], [0; AT_ONCE]);
        let (mut list, mut edge, mut scored) = (Vec::new(), u32::MAX, 0);
        loop {
            let mut taken = 0;
            for (place, row) in batch.iter_mut().zip(rows.by_ref().take(AT_ONCE)) {
                *place = row;
                taken += 1;
            }
            self.score(&batch[..taken], &mut keys[..taken]);
            scored += taken as u64;
            // Mostly none of them is near, and the least is found without a branch a row.
            if keys[..taken].iter().min().is_some_and(|least| *least <= edge) {
                let near = keys.iter().zip(&batch).take(taken).filter(|(key, _)| **key <= edge);
                list.extend(near.filter(|(_, row)| passes(**row)).map(|(key, row)| (*key, *row)));
            }
            let last = taken < AT_ONCE;
            if last || list.len() > 2 * count + AT_ONCE {
                edge = self.query.shorten(&mut list, count, edge);
            }
            if last {
                return (list.into_iter().map(|(_, row)| row).collect(), scored);
            }
        }
    }
}

impl Scorer for Coded<'_> {
    #[inline]
    fn rows(&self) -> usize {
        self.codes.len() / self.query.stride
    }

    #[inline]
    fn score(&self, rows: &[u32], keys: &mut [u32]) {
        (self.query.scan)(&self.query.bytes, self.query.base, self.codes, rows, keys);
    }

    #[inline]
    fn prefetch(&self, row: u32) {
        prefetch(self.query.row(self.codes, row));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn numbers(count: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(11);
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn half_a_byte_serves_many_dimensions_unless_a_row_would_be_cut_off() {
        let mut vectors = numbers(1000 * 256);
        assert!(Grid::of(256, vectors.chunks_exact(256)).expect("codes serve").half);
        assert!(!Grid::of(32, vectors.chunks_exact(32)).expect("codes serve").half);
        // Three times as long as the others: no inner product with it may be taken for a smaller one.
        vectors[256 * 77..256 * 78].iter_mut().for_each(|x| *x *= 3.0);
        let whole = Grid::of(256, vectors.chunks_exact(256)).expect("codes serve");
        assert!(!whole.half);
        let cut =
            whole.encode(vectors.chunks_exact(256)).iter().filter(|code| matches!(code, 0 | 255)).count();
        assert!(cut <= 2, "{cut} numbers at the ends");
        // So long that the others would be nothing beside it.
        vectors[256 * 77..256 * 78].iter_mut().for_each(|x| *x *= 1e6);
        assert_eq!(Grid::of(256, vectors.chunks_exact(256)), None);
    }

    #[test]
    fn rows_that_say_nothing_and_no_rows() {
        assert_eq!(Grid::of(3, [].into_iter()), None);
        let equal = Grid::of(3, [0.5; 30].chunks_exact(3)).expect("one code is enough");
        assert_eq!(equal.encode([0.5; 3].chunks_exact(3))[..4], [128, 128, 128, 0]);
        assert_eq!(
            Grid::of(1, [f32::MAX, f32::MAX, f32::MIN].chunks_exact(1)),
            None,
            "a difference that no number holds"
        );
        let tiny: Vec<f32> = [0.0; 2047].into_iter().chain([1e-44]).collect();
        assert_eq!(Grid::of(1, tiny.chunks_exact(1)), None, "a step that no number divides by");
    }

    #[test]
    fn codes_are_not_given_up_because_building_keeps_few_candidates() {
        let vectors = numbers(8 * 600);
        for rows in [0, 1, 8, 11, 600] {
            let vectors: Vec<&[f32]> = vectors.chunks_exact(8).take(rows).collect();
            let Some(grid) = Grid::of(8, vectors.iter().copied()) else { continue };
            let codes = grid.encode(vectors.iter().copied());
            for kept in [1, 4, 128] {
                assert!(
                    grid.tells_apart(Distance::Euclid, &codes, &vectors, kept),
                    "{rows} rows, {kept} kept"
                );
            }
        }
    }

    #[test]
    fn a_query_far_from_all_rows_is_compared_by_its_numbers() {
        let grid = Grid::of(8, numbers(800).chunks_exact(8)).expect("codes serve");
        assert!(grid.query(Distance::Euclid, &[100.0; 8]).is_none());
        assert!(grid.query(Distance::Euclid, &[0.9; 8]).is_some());
        assert!(grid.query(Distance::Dot, &[100.0; 8]).is_some());
        assert!(grid.query(Distance::Euclid, &[f32::MAX; 8]).is_none(), "squares that no number holds");
        assert!(grid.query(Distance::Dot, &[1e-38; 8]).is_none(), "a scale that no number holds");
        assert!(grid.query(Distance::Dot, &[0.0; 8]).is_some());
    }
}
