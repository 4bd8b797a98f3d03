//! Rows as one bit a number, with how far from a query each may be at the least.
//!
//! A row is its difference from a mean (of its block, or of one before): the side of the mean on which each number lies,
//! and two lengths. From them the inner product with a query follows as an estimate whose deviation is known, so that most
//! rows are seen to be too far by a few of their bytes, and only the others are compared.
//!
//! ```text
//! row - centre = r     r·q ≈ scale · Σ sign(r)·q     scale = |r|² / Σ|r|     off by spread · |q|, at the usual angle
//! ```
//!
//! Invariants: sketches rule out and never answer; they are used only where they were seen to rule out most rows, and
//! hardly one that is near ([`Sketch::of`]). Nothing is off where query and row point the same way, but for rounding: a
//! row is not ruled out for a query that is the row itself, unless as many lie just as near.
//! Deliberately absent: sums of absolute differences (Manhattan), which an inner product does not give; files.
//! Source: RaBitQ (Gao and Long, 2024), without the rotation: where dimensions are not spread well enough, the measurement
//! says so.

use super::{
    bit_kernel::{self, Asked, Bounds, Floors, TOGETHER, Table},
    codes::{Vectors, means},
    kernel::Metric,
};
use crate::model::Distance;
use std::sync::Arc;

/// Dimensions from which a bit a number tells enough: the deviation falls with their root.
const DIM_MIN: usize = 256;
/// By how many deviations a row must be too far before it is ruled out.
const DEVIATIONS: f32 = 3.0;
/// The largest whole number that a query's numbers are rounded to. It falls with the dimensions; below the second, they
/// would say too little.
const QUERY_MAX: usize = 31;
const QUERY_MAX_MIN: usize = 4;
/// Rows that are looked for to see whether sketches serve, how many of their nearest each, and among how many.
const PROBES: usize = 8;
const NEAREST: usize = 10;
const SAMPLE_ROWS: usize = 1024;
/// They serve if this share of those is not ruled out,
const FOUND_MIN: f64 = 0.97;
/// and of all others at most one in so many is left: that many in a sample, far fewer in more rows.
const LEFT_SHARE: usize = 3;

/// What signs are taken from. Sketches that share one share what a query is made into.
pub(crate) struct Centre {
    /// By dimension.
    mean: Vec<f32>,
    /// Of so many rows.
    rows: usize,
}

/// Rows that are kept as sketches, in their order.
pub(crate) struct Sketch {
    centre: Arc<Centre>,
    /// `[rows / 32, groups, 16]`, as [`Floors`] wants them: on which side of the mean.
    signs: Vec<u8>,
    /// `[rows / 32]`.
    bounds: Vec<Bounds>,
    rows: usize,
    distance: Distance,
    floors: Floors,
}

/// A query as sketches are compared with it.
pub(crate) struct SketchQuery {
    tables: Vec<Table>,
    /// What is added to a sum sees to it that no entry of a table is negative, and leaves in doubt what rounding does.
    asked: Asked,
}

/// The last that a query was made into, and for which centre.
#[derive(Default)]
pub(crate) struct LastQuery<'a>(Option<(&'a Arc<Centre>, Option<SketchQuery>)>);

impl<'a> LastQuery<'a> {
    /// As [`Sketch::query`], made anew only for another centre than the last; `query` is the same each time.
    pub(crate) fn of(&mut self, sketch: &'a Sketch, query: &[f32]) -> Option<&SketchQuery> {
        let same = self.0.as_ref().is_some_and(|(centre, _)| Arc::ptr_eq(centre, &sketch.centre));
        if !same {
            self.0 = Some((&sketch.centre, sketch.query(query)));
        }
        self.0.as_ref()?.1.as_ref()
    }
}

/// What there is where there are no rows.
const NO_ROWS: Bounds =
    Bounds { bases: [f32::NAN; TOGETHER], scales: [0.0; TOGETHER], spreads: [0.0; TOGETHER] };

impl Sketch {
    /// Sketches of vectors of `dim` numbers; `None` if these would say too little.
    ///
    /// `centre`: of rows before them, which is taken if it serves and is of as many rows or more.
    /// Cost: a few passes over the rows, and [`PROBES`] comparisons of [`SAMPLE_ROWS`] of them.
    pub(crate) fn of<'a>(
        (distance, dim): (Distance, usize),
        vectors: impl Vectors<'a>,
        centre: Option<&Arc<Centre>>,
    ) -> Option<Self> {
        if dim < DIM_MIN || distance == Distance::Manhattan {
            return None;
        }
        let of_before = centre.filter(|centre| centre.rows >= vectors.len());
        let own = || Arc::new(Centre { mean: means(dim, vectors.clone()), rows: vectors.len() });
        of_before
            .and_then(|centre| Self::around(centre.clone(), distance, vectors.clone()))
            .or_else(|| Self::around(own(), distance, vectors.clone()))
    }

    fn around<'a>(centre: Arc<Centre>, distance: Distance, vectors: impl Vectors<'a>) -> Option<Self> {
        let dim = centre.mean.len();
        let together = vectors.len().div_ceil(TOGETHER);
        let mut sketch = Sketch {
            centre,
            signs: vec![0; together * groups(dim) * size_of::<Table>()],
            bounds: vec![NO_ROWS; together],
            rows: 0,
            distance,
            floors: bit_kernel::best_floors(),
        };
        let finite = vectors.clone().all(|row| sketch.push(row));
        (finite && sketch.serves(vectors)).then_some(sketch)
    }

    /// Adds a row; `false` if its numbers are too large to say anything.
    fn push(&mut self, row: &[f32]) -> bool {
        let (mut sum, mut squares, mut with_centre) = (0f32, 0f32, 0f32);
        let (block, number) = (self.rows / TOGETHER, self.rows % TOGETHER);
        let together = groups(row.len()) * size_of::<Table>();
        let signs = &mut self.signs[block * together..][..together];
        for (group, (row, centre)) in row.chunks(4).zip(self.centre.mean.chunks(4)).enumerate() {
            let mut bits = 0;
            for (at, (x, centre)) in row.iter().zip(centre).enumerate() {
                let apart = x - centre;
                bits |= u8::from(apart > 0.0) << at;
                sum += apart.abs();
                squares += apart * apart;
                with_centre += apart * centre;
            }
            signs[group * size_of::<Table>() + number % 16] |= bits << (number / 16 * 4);
        }
        let euclid = self.distance == Distance::Euclid;
        let scale = if sum > 0.0 { squares / sum } else { 0.0 } * if euclid { 2.0 } else { 1.0 };
        // The square of the cosine between the row and its signs.
        let kept = if squares > 0.0 { sum / squares * (sum / row.len() as f32) } else { 1.0 };
        let base = if euclid { squares } else { -with_centre };
        let spread = scale * (1.0 - kept).max(0.0).sqrt();
        let bounds = &mut self.bounds[block];
        (bounds.bases[number], bounds.scales[number], bounds.spreads[number]) = (base, scale, spread);
        self.rows += 1;
        [base, scale, spread].into_iter().all(f32::is_finite)
    }

    /// Whether few rows are left of those that are far, and nearly all that are near.
    fn serves<'a>(&self, vectors: impl Vectors<'a>) -> bool {
        let (rows, metric) = (vectors.len(), Metric::of(self.distance));
        let every = rows.div_ceil(SAMPLE_ROWS);
        let sample: Vec<&[f32]> = vectors.step_by(every).collect();
        if sample.len() <= 2 * NEAREST {
            return false;
        }
        let (mut found, mut left, mut probes) = (0, 0, 0);
        for query in sample.iter().step_by(sample.len().div_ceil(PROBES)) {
            let Some(sketched) = self.query(query) else { return false };
            let distances: Vec<f32> = sample.iter().map(|row| metric.distance(query, row)).collect();
            // One more: the row itself.
            let edge = *distances.clone().select_nth_unstable_by(NEAREST, f32::total_cmp).1;
            let not_out = self.left(&sketched, edge).into_iter().map(|(_, row)| row);
            for row in not_out.filter(|row| row.is_multiple_of(every)) {
                left += 1;
                found += usize::from(distances[row / every] <= edge);
            }
            probes += 1;
        }
        found as f64 >= FOUND_MIN * (probes * (NEAREST + 1)) as f64
            && left * LEFT_SHARE <= probes * sample.len()
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        groups(self.centre.mean.len()) / 2 + 3 * size_of::<f32>()
    }

    /// What signs are taken from; whoever has the same takes the same queries.
    pub(crate) fn centre(&self) -> &Arc<Centre> {
        &self.centre
    }

    /// A query `[dim]`; `None` if its numbers are too large or too small to say anything, or too many.
    pub(crate) fn query(&self, query: &[f32]) -> Option<SketchQuery> {
        let (mut largest, mut squares, mut product) = (0f32, 0f32, 0f32);
        let apart = || query.iter().zip(&self.centre.mean).map(|(x, centre)| x - centre);
        for (apart, (x, centre)) in apart().zip(query.iter().zip(&self.centre.mean)) {
            largest = largest.max(apart.abs());
            squares += apart * apart;
            product += x * centre;
        }
        // Whole numbers, small enough that the tables of all groups add up to 16 bits.
        let groups = groups(query.len());
        let most = (usize::from(u16::MAX) / (8 * groups)).min(QUERY_MAX);
        if most < QUERY_MAX_MIN {
            return None;
        }
        let most = most as i32;
        let (step, per_step) =
            if largest > 0.0 { (largest / most as f32, most as f32 / largest) } else { (0.0, 0.0) };
        if !per_step.is_finite() {
            return None;
        }
        let mut rounded_off = 0f32;
        let mut numbers = apart().map(|apart| {
            let whole = (apart * per_step + most as f32 + 0.5) as i32 - most;
            rounded_off += (apart - whole as f32 * step).powi(2);
            whole
        });
        let mut tables = vec![[0; 16]; groups];
        for table in &mut tables {
            let four: [i32; 4] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
            table[0] = (4 * most - four.iter().sum::<i32>()) as u8;
            for (at, number) in four.iter().enumerate() {
                // Each choice of the signs before it, with this one as well.
                for signs in 0..1 << at {
                    table[1 << at | signs] = (i32::from(table[signs]) + 2 * number) as u8;
                }
            }
        }
        let euclid = self.distance == Distance::Euclid;
        let asked = Asked {
            base: if euclid { squares } else { -product },
            unit: step,
            shift: DEVIATIONS * rounded_off.sqrt() - step * (4 * most * groups as i32) as f32,
            reach: DEVIATIONS * squares.sqrt(),
        };
        let finite = [asked.base, asked.unit, asked.shift, asked.reach].into_iter().all(f32::is_finite);
        finite.then_some(SketchQuery { tables, asked })
    }

    /// The rows that are not ruled out at a distance, and how far each is at the least, as [`Metric::distance`] has it.
    pub(crate) fn left(&self, query: &SketchQuery, distance: f32) -> Vec<(f32, usize)> {
        let (mut left, mut floors) = (Vec::new(), [0.0; TOGETHER]);
        let signs = self.signs.chunks_exact(size_of_val(&query.tables[..]));
        for (first, (signs, bounds)) in (0..).step_by(TOGETHER).zip(signs.zip(&self.bounds)) {
            let mut rows = (self.floors)(&query.tables, signs, bounds, &query.asked, distance, &mut floors);
            while rows != 0 {
                let at = rows.trailing_zeros() as usize;
                left.push((floors[at], first + at));
                rows &= rows - 1;
            }
        }
        left
    }
}

/// Fours of dimensions, in pairs.
fn groups(dim: usize) -> usize {
    dim.div_ceil(8) * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Rows in heaps around a mean that is not zero.
    fn heaps(rng: &mut StdRng, dim: usize, rows: usize) -> Vec<f32> {
        let heaps: Vec<f32> = (0..50 * dim).map(|_| rng.random_range(-1.0..1.5)).collect();
        (0..rows * dim).map(|n| heaps[n / dim % 50 * dim + n % dim] + rng.random_range(-0.7..0.7)).collect()
    }

    #[test]
    fn a_row_is_hardly_ever_nearer_than_its_floor_and_most_floors_are_far() {
        let mut rng = StdRng::seed_from_u64(21);
        for distance in [Distance::Cosine, Distance::Dot, Distance::Euclid] {
            for dim in [256, 300, 784] {
                let mut vectors = heaps(&mut rng, dim, 2000);
                if distance == Distance::Cosine {
                    vectors.chunks_exact_mut(dim).for_each(crate::model::schema::normalise);
                }
                let queries = vectors.split_off(1900 * dim);
                let rows = vectors.chunks_exact(dim);
                let sketch = Sketch::of((distance, dim), rows.clone(), None).expect("sketches serve");
                let (metric, mut nearer, mut left) = (Metric::of(distance), 0, 0);
                for query in queries.chunks_exact(dim) {
                    let sketched = sketch.query(query).expect("a query");
                    let floors = sketch.left(&sketched, f32::INFINITY);
                    assert!(floors.iter().map(|(_, row)| *row).eq(0..1900));
                    let distances: Vec<f32> = rows.clone().map(|row| metric.distance(query, row)).collect();
                    nearer +=
                        distances.iter().zip(&floors).filter(|(right, floor)| **right < floor.0).count();
                    let mut sorted = distances.clone();
                    sorted.sort_unstable_by(f32::total_cmp);
                    let some = sketch.left(&sketched, sorted[9]);
                    assert!(some.iter().eq(floors.iter().filter(|floor| floor.0 <= sorted[9])));
                    left += some.len();
                }
                let all = 1900 * queries.len() / dim;
                assert!(
                    nearer * 200 < all,
                    "{distance:?} {dim}: {nearer} of {all} are nearer than their floor"
                );
                assert!(left * 10 < all, "{distance:?} {dim}: {left} of {all} are left");
                // Of itself a row knows how far it is, but for the rounding of a query.
                let row = &vectors[dim * 70..][..dim];
                let itself = sketch.left(&sketch.query(row).expect("a query"), metric.distance(row, row));
                assert!(itself.iter().any(|(_, row)| *row == 70), "{distance:?} {dim}");
            }
        }
    }

    #[test]
    fn a_centre_is_shared_by_rows_it_serves_if_it_is_of_as_many() {
        let mut rng = StdRng::seed_from_u64(23);
        let vectors = heaps(&mut rng, 256, 900);
        let sketch = |rows: &[f32], centre: Option<&Arc<Centre>>| {
            Sketch::of((Distance::Euclid, 256), rows.chunks_exact(256), centre).expect("sketches serve")
        };
        let first = sketch(&vectors[..256 * 500], None);
        let next = sketch(&vectors[256 * 500..], Some(first.centre()));
        assert!(Arc::ptr_eq(first.centre(), next.centre()));
        assert!(!Arc::ptr_eq(first.centre(), sketch(&vectors, Some(first.centre())).centre()), "of fewer");
        // All on one side of it.
        let far: Vec<f32> = vectors[256 * 500..].iter().map(|x| x + 50.0).collect();
        assert!(!Arc::ptr_eq(first.centre(), sketch(&far, Some(first.centre())).centre()));
    }

    #[test]
    fn where_they_say_too_little_there_are_none() {
        let mut rng = StdRng::seed_from_u64(22);
        let vectors = heaps(&mut rng, 256, 600);
        let of = |distance, dim, vectors: &[f32]| {
            Sketch::of((distance, dim), vectors.chunks_exact(dim), None).is_some()
        };
        assert!(of(Distance::Euclid, 256, &vectors));
        assert!(!of(Distance::Manhattan, 256, &vectors));
        assert!(!of(Distance::Euclid, 128, &vectors), "too few dimensions");
        assert!(!of(Distance::Euclid, 256, &vectors[..256 * 5]), "too few rows");
        // All that matters is in one dimension, which has one bit.
        let mut one = vectors.clone();
        one.iter_mut().step_by(256).for_each(|x| *x *= 1e4);
        assert!(!of(Distance::Euclid, 256, &one));
        for (dim, fits) in [(8_184, true), (8_188, false)] {
            let centre = Arc::new(Centre { mean: vec![0.0; dim], rows: 0 });
            let (signs, bounds, floors) = (Vec::new(), Vec::new(), bit_kernel::best_floors());
            let sketch = Sketch { centre, signs, bounds, rows: 0, distance: Distance::Dot, floors };
            assert_eq!(sketch.query(&vec![1.0; dim]).is_some(), fits, "a sum has room for 8,184 dimensions");
            assert!(sketch.query(&vec![1e-38; dim]).is_none(), "a scale that no number holds");
        }
        let mut huge = vectors.clone();
        huge[0] = 1e30;
        assert!(!of(Distance::Euclid, 256, &huge), "a square that no number holds");
        let sketch =
            Sketch::of((Distance::Dot, 256), vectors.chunks_exact(256), None).expect("sketches serve");
        assert!(sketch.query(&[1e30; 256]).is_none());
        assert!(sketch.query(&[0.0; 256]).is_some());
    }
}
