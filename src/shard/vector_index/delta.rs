//! The scan over vectors the graphs have not yet absorbed.
//!
//! A delta is a short list of immutable blocks. A row joins as a block of its own; two last blocks of like size
//! become one, as in a binary counter, so n rows lie in about log2 n blocks (and full ones), each row has been
//! copied about log2 n times, and every version ever published stays whole without a lock. A block that has grown
//! large is coded, so that a scan reads a quarter or an eighth of it, and compares anew what that leaves in doubt.
//!
//! Invariants: rows ascend by slot; graph ∪ delta covers every live vector at or below the view's position.
//! Not here: filters (see `search`), persistence (the delta is rebuilt from the store).
//! Source: FreshDiskANN (Singh et al., 2021), the in-memory temporary index; Bentley and Saxe (1980).

use super::{
    codes::{Coded, Grid},
    segment_search::Tally,
};
use crate::{model::Distance, shard::points::Slot};
use roaring::RoaringBitmap;
use std::sync::Arc;

/// Rows of a block that grows no more.
const BLOCK_ROWS_MAX: usize = 8192;
/// Rows from which a block is coded.
const CODED_ROWS_MIN: usize = 1024;

/// Vectors by slot, in the order they came; cheap to clone.
#[derive(Clone, Default)]
pub(in crate::shard) struct Delta {
    blocks: Vec<Arc<Block>>,
    rows: usize,
}

struct Block {
    slots: Vec<Slot>,
    /// `[rows, dim]`.
    values: Vec<f32>,
    coded: Option<(Grid, Vec<u8>)>,
}

impl Delta {
    /// Adds rows: `values [slots.len(), dim]`, slots ascending and above all before.
    pub(super) fn append(&mut self, dim: usize, slots: Vec<Slot>, values: Vec<f32>) {
        if slots.is_empty() {
            return;
        }
        self.rows += slots.len();
        let mut last = Block { slots, values, coded: None };
        while let Some(before) = self.blocks.last() {
            let rows = before.slots.len() + last.slots.len();
            if before.slots.len() > 2 * last.slots.len() || rows > BLOCK_ROWS_MAX {
                break;
            }
            last = Block {
                slots: [&before.slots[..], &last.slots].concat(),
                values: [&before.values[..], &last.values].concat(),
                coded: None,
            };
            self.blocks.pop();
        }
        if last.slots.len() >= CODED_ROWS_MIN {
            let vectors = last.values.chunks_exact(dim);
            last.coded = Grid::of(dim, vectors.clone()).map(|grid| {
                let codes = grid.encode(vectors);
                (grid, codes)
            });
        }
        self.blocks.push(Arc::new(last));
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bits of a code, and bytes of a row of codes, where there are any.
    pub(super) fn coding(&self) -> Option<(u32, usize)> {
        let coded = self.blocks.iter().find_map(|block| block.coded.as_ref());
        coded.map(|(grid, _)| (grid.bits(), grid.stride()))
    }

    /// Every row with its slot.
    pub(super) fn iter(&self, dim: usize) -> impl Iterator<Item = (Slot, &[f32])> {
        self.blocks.iter().flat_map(move |b| b.slots.iter().copied().zip(b.values.chunks_exact(dim)))
    }

    /// The live rows among those allowed that may be among the nearest `count`, as their codes have it; `tally` grows by
    /// what is looked at. Most are live: it is asked of those that are near.
    pub(super) fn near(
        &self,
        distance: Distance,
        query: &[f32],
        count: usize,
        allowed: Option<&RoaringBitmap>,
        live: impl Fn(Slot) -> bool,
        tally: &mut Tally,
    ) -> impl Iterator<Item = (Slot, &[f32])> {
        let count = count.min(self.rows);
        self.blocks.iter().flat_map(move |block| {
            let slot = |row: u32| block.slots[row as usize];
            let (rows, live) = (0..block.slots.len() as u32, |row| live(slot(row)));
            let passes = |allowed: &RoaringBitmap, row: &u32| allowed.contains(slot(*row));
            let (rows, scored) = match &block.coded {
                Some((grid, codes)) if let Some(query) = grid.query(distance, query) => {
                    let coded = Coded { codes, query: &query };
                    match allowed {
                        Some(allowed) => {
                            coded.shortlist(rows.filter(|row| passes(allowed, row)), live, count)
                        }
                        None => coded.shortlist(rows, live, count),
                    }
                }
                _ => {
                    let allowed = |row: &u32| allowed.is_none_or(|allowed| passes(allowed, row));
                    (rows.filter(|row| allowed(row) && live(*row)).collect(), 0)
                }
            };
            tally.codes += scored;
            tally.vectors += rows.len() as u64;
            let dim = query.len();
            rows.into_iter()
                .map(move |row| (block.slots[row as usize], &block.values[row as usize * dim..][..dim]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::vector_index::kernel::Metric;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn rows_stay_in_order_in_few_blocks_and_old_versions_stand_still() {
        let mut delta = Delta::default();
        let mut versions = Vec::new();
        for slot in 0..20_000u32 {
            delta.append(2, vec![slot], vec![slot as f32, 1.0]);
            if slot % 1997 == 0 {
                versions.push((slot, delta.clone()));
            }
        }
        versions.push((19_999, delta.clone()));
        for (last, version) in versions {
            assert_eq!(version.rows(), last as usize + 1);
            assert!(
                version.iter(2).eq((0..=last)
                    .map(|slot| (slot, [slot as f32, 1.0]))
                    .collect::<Vec<_>>()
                    .iter()
                    .map(|(slot, row)| (*slot, &row[..])))
            );
        }
        assert!(delta.blocks.len() <= 20, "{} blocks", delta.blocks.len());
    }

    #[test]
    fn the_scan_by_codes_leaves_out_no_row_that_is_near() {
        let mut rng = StdRng::seed_from_u64(9);
        for distance in [Distance::Cosine, Distance::Dot, Distance::Euclid, Distance::Manhattan] {
            for dim in [20, 200] {
                const ROWS: u32 = 3000;
                let mut delta = Delta::default();
                for slot in 0..ROWS {
                    let mut row: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.5)).collect();
                    if distance == Distance::Cosine {
                        crate::model::schema::normalise(&mut row);
                    }
                    delta.append(dim, vec![slot], row);
                }
                let coded = delta.blocks.iter().filter(|block| block.coded.is_some());
                let plain = ROWS as usize - coded.map(|block| block.slots.len()).sum::<usize>();
                assert!(plain < ROWS as usize / 2, "{plain} rows are not coded");
                let metric = Metric::of(distance);
                let allowed: RoaringBitmap = (0..ROWS).filter(|slot| slot % 3 > 0).collect();
                let (mut found, mut compared) = (0, 0);
                for _ in 0..50 {
                    let query: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.5)).collect();
                    let mut right: Vec<(f32, Slot)> = delta
                        .iter(dim)
                        .filter(|(slot, _)| slot % 3 > 0 && slot % 7 > 0)
                        .map(|(slot, row)| (metric.distance(&query, row), slot))
                        .collect();
                    right.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
                    let mut tally = Tally::default();
                    let near: Vec<Slot> = delta
                        .near(distance, &query, 10, Some(&allowed), |slot| slot % 7 > 0, &mut tally)
                        .map(|(slot, _)| slot)
                        .collect();
                    assert!(near.iter().all(|slot| slot % 3 > 0 && slot % 7 > 0), "only what is accepted");
                    found += right[..10].iter().filter(|(_, slot)| near.contains(slot)).count();
                    compared += near.len();
                    assert_eq!(tally.vectors, near.len() as u64);
                    assert!(tally.codes > 0 && tally.codes < u64::from(ROWS), "{tally:?}");
                }
                assert!(found >= 499, "{distance:?} {dim}: {found} of 500");
                let most = plain + ROWS as usize / 10;
                assert!(compared < 50 * most, "{distance:?} {dim}: {compared} of {}", 50 * most);
            }
        }
    }
}
