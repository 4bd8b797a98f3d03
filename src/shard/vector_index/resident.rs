//! Bytes that a walk jumps about in: copied into memory of their own, in large pages where the system has them.
//!
//! A walk touches pages at random, and over a mapped file each is 4 KiB: on 398,000 rows of GloVe, looking up
//! addresses took two fifths of a search (`docs/BENCHMARKS.md`). The file stays what is checked and what is read anew.
//! Deliberately absent: who may read, and when; the bytes never change.

use crate::world;
use memmap2::{MmapMut, MmapOptions};
use std::io;

/// A large page of x86-64, and of aarch64 over pages of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;

/// A copy in memory.
pub(super) struct Resident {
    memory: MmapMut,
    start: usize,
    len: usize,
}

impl Resident {
    /// Copies bytes.
    pub(super) fn copy(bytes: &[u8]) -> io::Result<Self> {
        // A mapping may not be empty; one as large as a large page begins where such a page can.
        let spare = if bytes.len() < LARGE_PAGE { 1 } else { LARGE_PAGE };
        let mut memory = MmapOptions::new().len(bytes.len() + spare).map_anon()?;
        let start = if bytes.len() < LARGE_PAGE { 0 } else { memory.as_ptr().align_offset(LARGE_PAGE) };
        #[cfg(target_os = "linux")]
        if bytes.len() >= LARGE_PAGE {
            // No more than a wish: a kernel without large pages refuses it.
            _ = memory.advise(memmap2::Advice::HugePage);
        }
        let mut to = &mut memory[start..start + bytes.len()];
        for piece in world::breathing(bytes) {
            let (copied, rest) = to.split_at_mut(piece.len());
            copied.copy_from_slice(piece);
            to = rest;
        }
        Ok(Resident { memory, start, len: bytes.len() })
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_it_was_made_of() {
        for len in [0, 1, 4096, LARGE_PAGE - 1, LARGE_PAGE, LARGE_PAGE + 77] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let copy = Resident::copy(&bytes).expect("memory");
            assert!(copy.bytes() == bytes, "{len} bytes");
            assert!(copy.bytes().as_ptr().cast::<u64>().is_aligned());
        }
    }
}
