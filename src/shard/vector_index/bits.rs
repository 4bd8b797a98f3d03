//! Vectors as one bit a number: on which side of the mean of its dimension it lies.
//!
//! Two rows are compared by how many of their bits differ. That says little about a single pair, so a search by bits
//! keeps [`OVERSAMPLED`] candidates for each row that is wanted, and compares them by their vectors.
//!
//! Invariants: bits choose candidates and never answer; they are used only where that many candidates were seen to hold
//! what is nearest ([`Signs::of`]).
//! Deliberately absent: graphs that grow over bits: links are chosen by finer codes, which then need not be kept.
//! Source: sign random projections (Charikar, 2002), without the projections: dimensions of embeddings are spread well
//! enough, and where they are not the measurement says so.

use super::{
    bit_kernel::{self, UNIT},
    codes::{Coded, CodedQuery, Vectors},
    graph::Scorer,
    kernel::Metric,
};
use crate::model::Distance;
use std::iter;

/// Candidates that are kept for each row that is wanted.
pub(crate) const OVERSAMPLED: usize = 16;
/// Rows that are looked for to see whether bits serve, and how many of their nearest each.
const PROBES: usize = 24;
const NEAREST: usize = 10;
/// Bits serve if this share of those is among the candidates.
const FOUND_MIN: f64 = 0.97;
/// Fewer rows are not worth it: they are scanned as fast.
const ROWS_MIN: usize = 1024;

/// How vectors become bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Signs {
    /// The mean, by dimension.
    pub(crate) centre: Vec<f32>,
}

impl Signs {
    /// Signs for vectors of `dim` numbers, and their codes; `None` if these would say too little.
    ///
    /// Cost: [`PROBES`] comparisons of each row.
    pub(crate) fn of<'a>(
        distance: Distance,
        dim: usize,
        vectors: impl Vectors<'a>,
    ) -> Option<(Self, Vec<u8>)> {
        if vectors.len() < ROWS_MIN {
            return None;
        }
        let signs = Signs { centre: super::codes::means(dim, vectors.clone()) };
        let codes = signs.encode(vectors.clone());
        (signs.found(distance, vectors, &codes) >= FOUND_MIN).then_some((signs, codes))
    }

    /// The share of the rows nearest to some others that are among the candidates.
    fn found<'a>(&self, distance: Distance, vectors: impl Vectors<'a>, codes: &[u8]) -> f64 {
        let (rows, metric) = (vectors.len(), Metric::of(distance));
        let all: Vec<u32> = (0..rows as u32).collect();
        let (mut keys, mut distances) = (vec![0u32; rows], vec![0f32; rows]);
        let (mut found, mut of) = (0, 0);
        for (probe, vector) in vectors.clone().enumerate().step_by(rows.div_ceil(PROBES)) {
            let query = self.query(vector);
            Coded { codes, query: &query }.score(&all, &mut keys);
            for (out, row) in distances.iter_mut().zip(vectors.clone()) {
                *out = metric.distance(vector, row);
            }
            // All but the row itself.
            let mut order = all.clone();
            order.retain(|row| *row as usize != probe);
            let nearest = |a: &u32, b: &u32| distances[*a as usize].total_cmp(&distances[*b as usize]);
            let (near, _, _) = order.select_nth_unstable_by(NEAREST, nearest);
            let mut sorted = keys.clone();
            // One more: the row itself is the first.
            let (_, edge, _) = sorted.select_nth_unstable(OVERSAMPLED * NEAREST);
            found += near.iter().filter(|row| keys[**row as usize] < *edge).count();
            of += near.len();
        }
        found as f64 / of as f64
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        stride(self.centre.len())
    }

    /// The vectors' codes, `[rows, stride]`.
    pub(crate) fn encode<'a>(&self, vectors: impl Vectors<'a>) -> Vec<u8> {
        let mut codes = vec![0; vectors.len() * self.stride()];
        for (row, codes) in vectors.zip(codes.chunks_exact_mut(self.stride())) {
            for (at, (x, centre)) in row.iter().zip(&self.centre).enumerate() {
                codes[at / 8] |= u8::from(x > centre) << (at % 8);
            }
        }
        codes
    }

    /// A query `[dim]`.
    pub(crate) fn query(&self, query: &[f32]) -> CodedQuery {
        CodedQuery::of_bits(self.encode(iter::once(query)), bit_kernel::best())
    }
}

/// Bytes of a row of bits.
pub(crate) fn stride(dim: usize) -> usize {
    dim.div_ceil(8).next_multiple_of(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn a_bit_is_the_side_of_the_mean() {
        let signs = Signs { centre: vec![0.5; 10] };
        let row = [0.6, 0.5, 0.4, 9.0, f32::MIN, 0.0, 0.0, 1.0, 1.0, 0.0];
        let codes = signs.encode(iter::once(&row[..]));
        assert_eq!((codes.len(), codes[0], codes[1]), (UNIT, 0b1000_1001, 1));
        assert!(codes[2..].iter().all(|byte| *byte == 0));
        let mut key = [9];
        Coded { codes: &codes, query: &signs.query(&[1.0; 10]) }.score(&[0], &mut key);
        assert_eq!(key, [6]);
    }

    #[test]
    fn they_serve_where_they_tell_near_from_far_and_nowhere_else() {
        let mut rng = StdRng::seed_from_u64(6);
        // Without any structure there is nothing that a bit could tell.
        let noise: Vec<f32> = (0..3000 * 64).map(|_| rng.random_range(-1.0..1.0)).collect();
        assert_eq!(Signs::of(Distance::Euclid, 64, noise.chunks_exact(64)), None);
        // In heaps of 30, far from each other.
        let heaps: Vec<f32> = (0..100 * 256).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut number = |n: usize| heaps[n / 256 % 100 * 256 + n % 256] + rng.random_range(-0.3..0.3);
        let grouped: Vec<f32> = (0..3000 * 256).map(&mut number).collect();
        assert!(Signs::of(Distance::Euclid, 256, grouped.chunks_exact(256)).is_some());
        assert_eq!(
            Signs::of(Distance::Euclid, 256, grouped[..256 * 1000].chunks_exact(256)),
            None,
            "so few are scanned"
        );
        assert_eq!(Signs::of(Distance::Euclid, 256, [].into_iter()), None);
    }
}
