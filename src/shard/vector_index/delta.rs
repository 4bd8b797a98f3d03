//! The exact scan over vectors the graphs have not yet absorbed.
//!
//! A delta is a short list of immutable blocks. A row joins as a block of its own; two last blocks of like size
//! become one, as in a binary counter, so n rows lie in about log2 n blocks (and full ones), each row has been
//! copied about log2 n times, and every version ever published stays whole without a lock.
//!
//! Invariants: rows ascend by slot; graph ∪ delta covers every live vector at or below the view's position.
//! Not here: filters (see `search`), persistence (the delta is rebuilt from the store).
//! Source: FreshDiskANN (Singh et al., 2021), the in-memory temporary index; Bentley and Saxe (1980).

use crate::shard::points::Slot;
use std::sync::Arc;

/// Rows of a block that grows no more.
const BLOCK_ROWS_MAX: usize = 4096;

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
}

impl Delta {
    /// Adds rows: `values [slots.len(), dim]`, slots ascending and above all before.
    pub(super) fn append(&mut self, slots: Vec<Slot>, values: Vec<f32>) {
        if slots.is_empty() {
            return;
        }
        self.rows += slots.len();
        let mut last = Block { slots, values };
        while let Some(before) = self.blocks.last() {
            let rows = before.slots.len() + last.slots.len();
            if before.slots.len() > 2 * last.slots.len() || rows > BLOCK_ROWS_MAX {
                break;
            }
            let joined = Block {
                slots: [&before.slots[..], &last.slots].concat(),
                values: [&before.values[..], &last.values].concat(),
            };
            self.blocks.pop();
            last = joined;
        }
        self.blocks.push(Arc::new(last));
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Every row with its slot.
    pub(super) fn iter(&self, dim: usize) -> impl Iterator<Item = (Slot, &[f32])> {
        self.blocks.iter().flat_map(move |b| b.slots.iter().copied().zip(b.values.chunks_exact(dim)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_in_order_in_few_blocks_and_old_versions_stand_still() {
        let mut delta = Delta::default();
        let mut versions = Vec::new();
        for slot in 0..10_000u32 {
            delta.append(vec![slot], vec![slot as f32, 1.0]);
            if slot % 997 == 0 {
                versions.push((slot, delta.clone()));
            }
        }
        versions.push((9_999, delta.clone()));
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
}
