//! Codes of rows that are only ever scanned, in the layout in which that is fastest.
//!
//! Invariants: as of [`super::codes`], whose keys these are: they choose candidates and never answer.
//! Not here: the scoring itself (`packed_kernel`), rows that a graph leads to (`codes`), files.

use super::{
    codes::{CodedQuery, Grid, Vectors},
    packed_kernel::{self, GROUP, Score, TOGETHER},
};
use crate::model::Distance;

/// Rows of codes, in their order.
pub(crate) struct Packed {
    grid: Grid,
    /// `[rows / 64, groups]`, each the codes of four dimensions of 64 rows.
    codes: Vec<[u8; GROUP * TOGETHER]>,
    rows: usize,
    score: Score,
}

impl Packed {
    /// Codes of vectors of `dim` numbers; `None` if there are none, or codes would say too little about them.
    pub(crate) fn of<'a>(distance: Distance, dim: usize, vectors: impl Vectors<'a>) -> Option<Self> {
        let grid = Grid::of_bytes(dim, vectors.clone())?;
        let (rows, groups) = (vectors.len(), dim.div_ceil(GROUP));
        let mut codes = vec![[0; GROUP * TOGETHER]; rows.div_ceil(TOGETHER) * groups];
        let mut bytes = vec![0; groups * GROUP];
        for (row, vector) in vectors.enumerate() {
            grid.bytes(vector, &mut bytes);
            let together = &mut codes[row / TOGETHER * groups..][..groups];
            for (codes, four) in together.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
                codes[row % TOGETHER * GROUP..][..GROUP].copy_from_slice(four);
            }
        }
        Some(Packed { grid, codes, rows, score: packed_kernel::best(distance) })
    }

    /// Bits of a number.
    pub(crate) fn bits(&self) -> u32 {
        self.grid.bits()
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        self.grid.centre.len().next_multiple_of(GROUP)
    }

    /// A query `[dim]`; `None` if it lies so far off that its code would say too little.
    pub(crate) fn query(&self, distance: Distance, query: &[f32]) -> Option<CodedQuery> {
        self.grid.query(distance, query)
    }

    /// The rows that may be among the nearest `count` of those that pass, each behind its key; `passes` is asked only of those that are near.
    pub(crate) fn shortlist(
        &self,
        query: &CodedQuery,
        passes: impl Fn(usize) -> bool,
        count: usize,
    ) -> Vec<(u32, usize)> {
        let groups = self.grid.centre.len().div_ceil(GROUP);
        let numbers = &query.bytes().as_chunks::<GROUP>().0[..groups];
        let (mut list, mut edge, mut keys) = (Vec::new(), u32::MAX, [0; TOGETHER]);
        for (first, codes) in (0..).step_by(TOGETHER).zip(self.codes.chunks_exact(groups)) {
            let mut near = (self.score)(numbers, query.base(), codes, edge, &mut keys);
            // The last may be fewer.
            near &= u64::MAX >> (TOGETHER - (self.rows - first).min(TOGETHER));
            while near != 0 {
                let at = near.trailing_zeros() as usize;
                if passes(first + at) {
                    list.push((keys[at], first + at));
                }
                near &= near - 1;
            }
            if list.len() > 2 * count + TOGETHER {
                edge = query.shorten(&mut list, count, edge);
            }
        }
        query.shorten(&mut list, count, edge);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::vector_index::kernel::Metric;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn the_nearest_that_pass_are_on_the_list_and_few_others() {
        let mut rng = StdRng::seed_from_u64(31);
        for distance in [Distance::Cosine, Distance::Dot, Distance::Euclid, Distance::Manhattan] {
            for (dim, rows) in [(3, 700), (50, 2000), (128, 1003), (200, 64)] {
                let mut vectors: Vec<f32> =
                    (0..dim * (rows + 30)).map(|_| rng.random_range(-1.0..1.0)).collect();
                if distance == Distance::Cosine {
                    vectors.chunks_exact_mut(dim).for_each(crate::model::schema::normalise);
                }
                let queries = vectors.split_off(dim * rows);
                let packed = Packed::of(distance, dim, vectors.chunks_exact(dim)).expect("codes serve");
                let metric = Metric::of(distance);
                let (mut listed, mut found, mut wanted) = (0, 0, 0);
                for query in queries.chunks_exact(dim) {
                    let coded = packed.query(distance, query).expect("a query");
                    let list = packed.shortlist(&coded, |row| row % 5 > 0, 10);
                    assert!(list.iter().all(|(_, row)| row % 5 > 0 && *row < rows));
                    let mut right: Vec<_> = (0..rows).filter(|row| row % 5 > 0).collect();
                    right.sort_by(|a, b| {
                        let of = |row: &usize| metric.distance(query, &vectors[row * dim..][..dim]);
                        of(a).total_cmp(&of(b))
                    });
                    listed += list.len();
                    found += right[..10].iter().filter(|row| list.iter().any(|(_, r)| r == *row)).count();
                    wanted += 10;
                }
                assert!(found * 1000 >= wanted * 995, "{distance:?} {dim}: {found} of {wanted}");
                assert!(listed < 6 * wanted, "{distance:?} {dim}: {listed} for {wanted}");
            }
        }
    }

    #[test]
    fn what_falls_into_one_step_is_all_in_doubt() {
        // The step is 7.8: the row that is nearest to 0.1 has another code than two that are farther.
        let rows: Vec<f32> =
            [1000.0; 512].into_iter().chain([-1000.0; 512]).chain([7.0, 7.0, -0.1]).collect();
        let packed = Packed::of(Distance::Euclid, 1, rows.chunks_exact(1)).expect("codes serve");
        let query = packed.query(Distance::Euclid, &[0.1]).expect("a query");
        let list = packed.shortlist(&query, |_| true, 2);
        assert!(list.iter().any(|(_, row)| *row == 1026), "{list:?}");
    }

    #[test]
    fn few_rows_and_none() {
        assert!(Packed::of(Distance::Dot, 5, [].into_iter()).is_none());
        let rows = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let packed = Packed::of(Distance::Euclid, 3, rows.chunks_exact(3)).expect("codes serve");
        let query = packed.query(Distance::Euclid, &[1.0, 0.1, 0.0]).expect("a query");
        let list = |count| -> Vec<usize> {
            packed.shortlist(&query, |_| true, count).into_iter().map(|(_, row)| row).collect()
        };
        assert_eq!((list(0), list(1), list(9)), (vec![0, 1], vec![0], vec![0, 1]));
        assert!(packed.shortlist(&query, |_| false, 1).is_empty());
    }
}
