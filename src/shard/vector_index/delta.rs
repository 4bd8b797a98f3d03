//! The scan over vectors the graphs have not yet absorbed.
//!
//! A delta is a short list of immutable blocks. A row joins as a block of its own; two last blocks of like size
//! become one, as in a binary counter, so n rows lie in about log2 n blocks (and full ones), each row has been
//! copied about log2 n times, and every version ever published stays whole without a lock. A block that has grown
//! large is coded, so that a scan reads a quarter to a thirtieth of it, and compares anew what that leaves in doubt.
//!
//! Invariants: rows ascend by slot; graph ∪ delta covers every live vector at or below the view's position.
//! Not here: filters (see `search`), persistence (the delta is rebuilt from the store).
//! Source: FreshDiskANN (Singh et al., 2021), the in-memory temporary index; Bentley and Saxe (1980).

use super::{
    kernel::prefetch,
    packed::Packed,
    rows_of,
    segment_search::Tally,
    sketch::{Centre, LastQuery, Sketch},
};
use crate::{model::Distance, shard::points::Slot};
use roaring::RoaringBitmap;
use std::sync::Arc;

/// Rows and bytes of vectors of a block that grows no more: each asks for a shortlist of its own, and all that follows
/// waits while one is made. Every block may grow large enough to be coded.
const BLOCK_ROWS_MAX: usize = 8192;
const BLOCK_BYTES_MAX: usize = 3 << 20;
/// Rows from which a block is coded: a sketch looks at less of them than bytes to know whether it serves.
const PACKED_ROWS_MIN: usize = 1024;
const SKETCH_ROWS_MIN: usize = 256;
/// Rows that a filter lets pass are looked up and compared, if all are at least so many times as many.
const FEW_SHARE: usize = 16;
/// How many rows ahead of the one that is compared memory is asked for what codes have left in doubt.
const AHEAD: usize = 3;

/// Vectors by slot, in the order they came; cheap to clone.
#[derive(Clone, Default)]
pub(in crate::shard) struct Delta {
    blocks: Vec<Arc<Block>>,
    rows: usize,
    /// Of the last sketches, these or those of the delta before.
    centre: Option<Arc<Centre>>,
}

struct Block {
    slots: Vec<Slot>,
    /// `[rows, dim]`.
    values: Vec<f32>,
    coded: Option<Codes>,
}

impl Block {
    /// The rows of slots that are allowed, ascending, if these are few.
    fn few(&self, allowed: &RoaringBitmap) -> Option<Vec<u32>> {
        let slots = *self.slots.first()?..=*self.slots.last()?;
        let few = allowed.range_cardinality(slots.clone()) as usize * FEW_SHARE <= self.slots.len();
        few.then(|| rows_of(&self.slots, |slot| *slot, allowed.range(slots)))
    }
}

/// What of a block is read instead of its vectors.
enum Codes {
    Packed(Packed),
    Sketch(Sketch),
}

impl Codes {
    /// Of `values [rows, dim]`; `None` if these are few, or codes would say too little about them.
    fn of((distance, dim): (Distance, usize), values: &[f32], centre: Option<&Arc<Centre>>) -> Option<Self> {
        let vectors = values.chunks_exact(dim);
        let rows = vectors.len();
        let sketch = || Sketch::of((distance, dim), vectors.clone(), centre);
        let sketch = (rows >= SKETCH_ROWS_MIN).then(sketch).flatten();
        let packed = || (rows >= PACKED_ROWS_MIN).then(|| Packed::of(distance, dim, vectors)).flatten();
        sketch.map(Codes::Sketch).or_else(|| packed().map(Codes::Packed))
    }

    /// Bits of a number, bytes of a row.
    fn coding(&self) -> (u32, usize) {
        match self {
            Codes::Packed(packed) => (packed.bits(), packed.stride()),
            Codes::Sketch(sketch) => (1, sketch.stride()),
        }
    }
}

impl Delta {
    /// Takes all rows; what joins from then on is kept as they were.
    pub(super) fn take(&mut self) -> Delta {
        let next = Delta { centre: self.centre.clone(), ..Delta::default() };
        std::mem::replace(self, next)
    }

    /// Adds rows: `values [slots.len(), dim]`, slots ascending and above all before.
    pub(super) fn append(&mut self, (distance, dim): (Distance, usize), slots: Vec<Slot>, values: Vec<f32>) {
        if slots.is_empty() {
            return;
        }
        self.rows += slots.len();
        let rows_max = (BLOCK_BYTES_MAX / (dim * size_of::<f32>())).clamp(PACKED_ROWS_MIN, BLOCK_ROWS_MAX);
        let (mut rows, mut joined) = (slots.len(), self.blocks.len());
        while let Some(before) = self.blocks[..joined].last().map(|block| block.slots.len())
            && before <= 2 * rows
            && before + rows <= rows_max
        {
            rows += before;
            joined -= 1;
        }
        let mut last =
            Block { slots: Vec::with_capacity(rows), values: Vec::with_capacity(rows * dim), coded: None };
        for block in self.blocks.drain(joined..) {
            last.slots.extend_from_slice(&block.slots);
            last.values.extend_from_slice(&block.values);
        }
        last.slots.extend(slots);
        last.values.extend(values);
        last.coded = Codes::of((distance, dim), &last.values, self.centre.as_ref());
        if let Some(Codes::Sketch(sketch)) = &last.coded {
            self.centre = Some(sketch.centre().clone());
        }
        self.blocks.push(Arc::new(last));
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bits of a number, and bytes of a row of codes, where there are any.
    pub(super) fn coding(&self) -> Option<(u32, usize)> {
        self.blocks.iter().find_map(|block| block.coded.as_ref()).map(Codes::coding)
    }

    /// Bytes that a scan reads, without what codes leave in doubt.
    pub(super) fn scanned_bytes(&self) -> usize {
        let of = |block: &Arc<Block>| match &block.coded {
            Some(coded) => block.slots.len() * coded.coding().1,
            None => size_of_val(&block.values[..]),
        };
        self.blocks.iter().map(of).sum()
    }

    /// Every row with its slot.
    pub(super) fn iter(&self, dim: usize) -> impl Iterator<Item = (Slot, &[f32])> {
        self.blocks.iter().flat_map(move |b| b.slots.iter().copied().zip(b.values.chunks_exact(dim)))
    }

    /// Offers the live rows among those allowed that may be among the nearest `count`, as their codes have it; `tally`
    /// grows by what is looked at. Most are live: it is asked of those that are near.
    ///
    /// `edge`: a distance that what is wanted does not exceed. An offer gives the next one.
    pub(super) fn offer_near(
        &self,
        (distance, query): (Distance, &[f32]),
        count: usize,
        (allowed, live): (Option<&RoaringBitmap>, impl Fn(Slot) -> bool),
        tally: &mut Tally,
        mut edge: f32,
        mut offer: impl FnMut(Slot, &[f32]) -> f32,
    ) {
        let count = count.min(self.rows);
        let mut sketched = LastQuery::default();
        for block in &self.blocks {
            let slot = |row: usize| block.slots[row];
            let vector = |row: usize| &block.values[row * query.len()..][..query.len()];
            let passes = |row: usize| allowed.is_none_or(|allowed| allowed.contains(slot(row)));
            let mut near = |row: usize| {
                tally.vectors += 1;
                offer(slot(row), vector(row))
            };
            if let Some(few) = allowed.and_then(|allowed| block.few(allowed)) {
                for row in few.into_iter().map(|row| row as usize).filter(|row| live(slot(*row))) {
                    edge = near(row);
                }
                continue;
            }
            match &block.coded {
                Some(Codes::Packed(packed)) if let Some(query) = packed.query(distance, query) => {
                    let passes = |row| passes(row) && live(slot(row));
                    for (_, row) in packed.shortlist(&query, passes, count) {
                        edge = near(row);
                    }
                    tally.codes += block.slots.len() as u64;
                }
                Some(Codes::Sketch(sketch)) if let Some(query) = sketched.of(sketch, query) => {
                    let mut left = sketch.left(query, edge);
                    left.retain(|(_, row)| passes(*row) && live(slot(*row)));
                    if left.len() > count {
                        // They draw the edge in for the others.
                        left.select_nth_unstable_by(count, |a, b| a.0.total_cmp(&b.0));
                    }
                    for (at, (floor, row)) in left.iter().enumerate() {
                        if let Some((floor, next)) = left.get(at + AHEAD)
                            && *floor <= edge
                        {
                            prefetch(vector(*next));
                        }
                        if *floor <= edge {
                            edge = near(*row);
                        }
                    }
                    tally.codes += block.slots.len() as u64;
                }
                _ => {
                    for row in (0..block.slots.len()).filter(|row| passes(*row) && live(slot(*row))) {
                        edge = near(row);
                    }
                }
            }
        }
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
            delta.append((Distance::Euclid, 2), vec![slot], vec![slot as f32, 1.0]);
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
    fn of_rows_that_few_are_allowed_these_are_looked_up() {
        const ROWS: u32 = 20_000;
        let dim = 8;
        let mut rng = StdRng::seed_from_u64(3);
        let mut delta = Delta::default();
        // Every third slot is another's.
        let slots = || (0..ROWS).filter(|slot| slot % 3 > 0);
        for slot in slots() {
            let row = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
            delta.append((Distance::Euclid, dim), vec![slot], row);
        }
        assert!(delta.coding().is_some());
        let query: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        // Where they stand side by side a block has many of them, and is scanned.
        for (allowed, by_codes) in [
            ((0..ROWS + 500).filter(|slot| slot.is_multiple_of(97)).collect::<RoaringBitmap>(), false),
            ((7_000..7_800).chain([3, ROWS - 1]).collect(), true),
            (RoaringBitmap::new(), false),
        ] {
            let (mut near, mut tally) = (Vec::new(), Tally::default());
            let offer = |slot, _: &[f32]| {
                near.push(slot);
                f32::INFINITY
            };
            let which = (Some(&allowed), |slot: Slot| !slot.is_multiple_of(5));
            delta.offer_near((Distance::Euclid, &query), 2_000, which, &mut tally, f32::INFINITY, offer);
            near.sort_unstable();
            let right: Vec<Slot> = slots().filter(|s| allowed.contains(*s) && s % 5 > 0).collect();
            assert_eq!(near, right);
            assert_eq!((tally.codes > 0, tally.vectors), (by_codes, near.len() as u64), "{tally:?}");
            assert!(tally.codes < u64::from(ROWS) / 2, "{tally:?}");
        }
    }

    #[test]
    fn the_scan_by_codes_leaves_out_no_row_that_is_near() {
        let mut rng = StdRng::seed_from_u64(9);
        for distance in [Distance::Cosine, Distance::Dot, Distance::Euclid, Distance::Manhattan] {
            for dim in [20, 200, 300] {
                const ROWS: u32 = 3000;
                let mut delta = Delta::default();
                let heaps: Vec<f32> = (0..100 * dim).map(|_| rng.random_range(-1.0..1.5)).collect();
                let number = |rng: &mut StdRng, n: usize| heaps[n] + rng.random_range(-0.6..0.6);
                for slot in 0..ROWS {
                    let heap = slot as usize % 100 * dim;
                    let mut row: Vec<f32> = (heap..heap + dim).map(|n| number(&mut rng, n)).collect();
                    if distance == Distance::Cosine {
                        crate::model::schema::normalise(&mut row);
                    }
                    delta.append((distance, dim), vec![slot], row);
                }
                let coded = delta.blocks.iter().filter(|block| block.coded.is_some());
                let plain = ROWS as usize - coded.map(|block| block.slots.len()).sum::<usize>();
                assert!(plain < ROWS as usize / 2, "{plain} rows are not coded");
                let bits = delta.coding().map(|(bits, _)| bits);
                assert_eq!(bits == Some(1), dim == 300 && distance != Distance::Manhattan, "{bits:?}");
                let metric = Metric::of(distance);
                let allowed: RoaringBitmap = (0..ROWS).filter(|slot| slot % 3 > 0).collect();
                let (mut found, mut compared) = (0, 0);
                for _ in 0..50 {
                    let heap = rng.random_range(0..100) * dim;
                    let query: Vec<f32> = (heap..heap + dim).map(|n| number(&mut rng, n)).collect();
                    let mut right: Vec<(f32, Slot)> = delta
                        .iter(dim)
                        .filter(|(slot, _)| slot % 3 > 0 && slot % 7 > 0)
                        .map(|(slot, row)| (metric.distance(&query, row), slot))
                        .collect();
                    right.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
                    let mut tally = Tally::default();
                    let (mut near, mut nearest) = (Vec::new(), Vec::new());
                    let offer = |slot, row: &[f32]| {
                        near.push(slot);
                        nearest.push(metric.distance(&query, row));
                        nearest.sort_unstable_by(f32::total_cmp);
                        nearest.get(9).copied().unwrap_or(f32::INFINITY)
                    };
                    let which = (Some(&allowed), |slot| slot % 7 > 0);
                    delta.offer_near((distance, &query), 10, which, &mut tally, f32::INFINITY, offer);
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
