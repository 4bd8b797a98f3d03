//! How many bits differ between a query and rows, or what the signs of rows make of a query's numbers: many rows a call,
//! with the best instructions this processor has.
//!
//! Invariants: every variant gives exactly what the scalar one gives (property-tested). The variant is chosen once a
//! query, or once a block of rows.
//! Deliberately absent: what a bit means (see `bits` and `sketch`).
//! Source: Mula, Kurz and Lemire, Faster population counts using AVX2 instructions (2018); tables that a register holds as
//! in Quick ADC (Andre, Kermarrec and Le Scouarnec, 2017).

use super::code_kernel::Scan;

/// Bytes of a row are a multiple of this.
pub(super) const UNIT: usize = 16;

/// The best variant on this processor.
pub(super) fn best() -> Scan {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() {
            return x86::avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
            return x86::avx2;
        }
    }
    scalar
}

/// Rows whose signs lie together.
pub(super) const TOGETHER: usize = 32;
/// What a query says of four dimensions: a number for each choice of their signs.
pub(super) type Table = [u8; 16];

/// The sums of what tables say, for rows of signs: `tables [groups]`, `signs [rows / 32, groups, 16]`, `sums [rows]`.
///
/// A group is four dimensions; of each byte the lower half has the signs of one of the first 16 rows of 32, the upper
/// those of one of the others. Groups are even in number, and no sum is above `u16::MAX`.
pub(super) type SumSigns = fn(tables: &[Table], signs: &[u8], sums: &mut [u16]);

/// The best variant on this processor.
pub(super) fn best_sums() -> SumSigns {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return x86::sum_signs;
    }
    sum_signs
}

/// The variant every other one is tested against.
fn sum_signs(tables: &[Table], signs: &[u8], sums: &mut [u16]) {
    let of_rows = signs.chunks_exact(size_of_val(tables));
    for (signs, sums) in of_rows.zip(sums.as_chunks_mut::<TOGETHER>().0) {
        *sums = [0; TOGETHER];
        for (signs, table) in signs.as_chunks::<16>().0.iter().zip(tables) {
            for (at, both) in signs.iter().enumerate() {
                sums[at] += u16::from(table[usize::from(both & 15)]);
                sums[16 + at] += u16::from(table[usize::from(both >> 4)]);
            }
        }
    }
}

/// The variant every other one is tested against.
fn scalar(query: &[u8], _: u32, codes: &[u8], wanted: &[u32], keys: &mut [u32]) {
    for (number, key) in wanted.iter().zip(keys) {
        let row = &codes[*number as usize * query.len()..][..query.len()];
        let words = row.as_chunks::<8>().0.iter().zip(query.as_chunks::<8>().0);
        *key = words.map(|(a, b)| (u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)).count_ones()).sum();
    }
}

/// AVX2 and AVX-512 variants: only called once the processor was asked.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions; rows are sliced before they are read")]
mod x86 {
    use super::{TOGETHER, Table, UNIT};
    use std::arch::x86_64::*;

    const BLOCK: usize = 64;

    pub(super) fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vpopcntdq")
    }

    /// A row, once lengths are seen to fit.
    #[inline(always)]
    fn row<'a>(query: &[u8], codes: &'a [u8], number: u32) -> &'a [u8] {
        &codes[number as usize * query.len()..][..query.len()]
    }

    fn fit(query: &[u8], wanted: &[u32], keys: &[u32]) {
        assert_eq!(wanted.len(), keys.len(), "a key for each row");
        assert!(query.len().is_multiple_of(UNIT), "rows of whole units");
    }

    pub(super) fn sum_signs(tables: &[Table], signs: &[u8], sums: &mut [u16]) {
        /// Numbers of 16 bits, of which the upper bytes were summed for themselves, as well as in the lower.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn fold(lower: __m256i, upper: __m256i) -> [__m128i; 2] {
            let both = |sums| _mm_add_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            let (even, odd) = (both(_mm256_sub_epi16(lower, _mm256_slli_epi16(upper, 8))), both(upper));
            [_mm_unpacklo_epi16(even, odd), _mm_unpackhi_epi16(even, odd)]
        }

        #[target_feature(enable = "avx2")]
        fn run(tables: &[Table], signs: &[u8], sums: &mut [u16]) {
            let (stride, half) = (size_of_val(tables), _mm256_set1_epi8(15));
            for (number, sums) in sums.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
                let signs = &signs[number * stride..][..stride];
                let mut of_rows = [_mm256_setzero_si256(); 4];
                let mut at = 0;
                while at < stride {
                    // SAFETY: groups are even in number, so that 32 bytes lie ahead of `at` in both.
                    let (both, tables) = unsafe {
                        (
                            _mm256_loadu_si256(signs.as_ptr().add(at).cast()),
                            _mm256_loadu_si256(tables.as_ptr().cast::<u8>().add(at).cast()),
                        )
                    };
                    let first = _mm256_shuffle_epi8(tables, _mm256_and_si256(both, half));
                    let second =
                        _mm256_shuffle_epi8(tables, _mm256_and_si256(_mm256_srli_epi16(both, 4), half));
                    of_rows[0] = _mm256_add_epi16(of_rows[0], first);
                    of_rows[1] = _mm256_add_epi16(of_rows[1], _mm256_srli_epi16(first, 8));
                    of_rows[2] = _mm256_add_epi16(of_rows[2], second);
                    of_rows[3] = _mm256_add_epi16(of_rows[3], _mm256_srli_epi16(second, 8));
                    at += 32;
                }
                let folded = [fold(of_rows[0], of_rows[1]), fold(of_rows[2], of_rows[3])];
                for (eight, sums) in folded.as_flattened().iter().zip(sums.as_chunks_mut::<8>().0) {
                    // SAFETY: room for eight numbers.
                    unsafe { _mm_storeu_si128(sums.as_mut_ptr().cast(), *eight) };
                }
            }
        }
        assert!(tables.len().is_multiple_of(2), "groups in pairs");
        // SAFETY: `best_sums` hands this out only where the processor has this feature.
        unsafe { run(tables, signs, sums) }
    }

    pub(super) fn avx512(query: &[u8], _: u32, codes: &[u8], wanted: &[u32], keys: &mut [u32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq")]
        fn run(query: &[u8], codes: &[u8], wanted: &[u32], keys: &mut [u32]) {
            for (number, key) in wanted.iter().zip(keys) {
                let row = row(query, codes, *number);
                let mut sum = _mm512_setzero_si512();
                let mut at = 0;
                while at < row.len() {
                    let mask = u64::MAX >> (BLOCK - (row.len() - at).min(BLOCK));
                    // SAFETY: the mask leaves out what lies behind the end of the row, and of the query, as long as it.
                    let (a, b) = unsafe {
                        (
                            _mm512_maskz_loadu_epi8(mask, row.as_ptr().add(at).cast()),
                            _mm512_maskz_loadu_epi8(mask, query.as_ptr().add(at).cast()),
                        )
                    };
                    sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(a, b)));
                    at += BLOCK;
                }
                *key = _mm512_reduce_add_epi64(sum) as u32;
            }
        }
        fit(query, wanted, keys);
        // SAFETY: `best` hands this out only where the processor has these features.
        unsafe { run(query, codes, wanted, keys) }
    }

    pub(super) fn avx2(query: &[u8], _: u32, codes: &[u8], wanted: &[u32], keys: &mut [u32]) {
        /// The bits of each byte, by halves that are looked up.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn ones(bytes: __m256i) -> __m256i {
            let of_half = _mm256_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3,
                4,
            );
            let half = _mm256_set1_epi8(15);
            let low = _mm256_shuffle_epi8(of_half, _mm256_and_si256(bytes, half));
            let high = _mm256_shuffle_epi8(of_half, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), half));
            _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256())
        }

        #[target_feature(enable = "avx2,popcnt")]
        fn run(query: &[u8], codes: &[u8], wanted: &[u32], keys: &mut [u32]) {
            for (number, key) in wanted.iter().zip(keys) {
                let row = row(query, codes, *number);
                let (blocks, rest) = row.as_chunks::<32>();
                let (query_blocks, query_rest) = query.as_chunks::<32>();
                let mut sum = _mm256_setzero_si256();
                for (a, b) in blocks.iter().zip(query_blocks) {
                    // SAFETY: 32 bytes each.
                    let (a, b) = unsafe {
                        (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast()))
                    };
                    sum = _mm256_add_epi64(sum, ones(_mm256_xor_si256(a, b)));
                }
                let half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
                let mut count = (_mm_extract_epi64(half, 0) + _mm_extract_epi64(half, 1)) as u32;
                let words = rest.as_chunks::<8>().0.iter().zip(query_rest.as_chunks::<8>().0);
                for (a, b) in words {
                    count += (u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b)).count_ones();
                }
                *key = count;
            }
        }
        fit(query, wanted, keys);
        // SAFETY: `best` hands this out only where the processor has these features.
        unsafe { run(query, codes, wanted, keys) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every variant this processor can run.
    fn variants() -> Vec<Scan> {
        let mut all: Vec<Scan> = vec![scalar, best()];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
                all.push(x86::avx2);
            }
            if x86::has_avx512() {
                all.push(x86::avx512);
            }
        }
        all
    }

    proptest! {
        #[test]
        fn every_variant_counts_the_bits_that_differ(
            units in 1usize..14,
            codes in proptest::collection::vec(any::<u8>(), 13 * UNIT * 9),
            query in proptest::collection::vec(any::<u8>(), 13 * UNIT),
            wanted in proptest::collection::vec(0u32..9, 0..23),
        ) {
            let query = &query[..units * UNIT];
            let differ = |row: &u32| {
                let row = &codes[*row as usize * query.len()..][..query.len()];
                let bits = row.iter().zip(query).flat_map(|(a, b)| (0..8).map(move |bit| (a >> bit ^ b >> bit) & 1));
                bits.map(u32::from).sum::<u32>()
            };
            let right: Vec<u32> = wanted.iter().map(differ).collect();
            for variant in variants() {
                let mut keys = vec![0; wanted.len()];
                variant(query, 7, &codes, &wanted, &mut keys);
                prop_assert_eq!(&keys, &right);
            }
        }
    }

    proptest! {
        #[test]
        fn every_variant_sums_what_the_tables_say(
            pairs in 1usize..33,
            tables in proptest::collection::vec(any::<Table>(), 64),
            signs in proptest::collection::vec(any::<u8>(), 3 * 64 * 16),
        ) {
            let tables = &tables[..2 * pairs];
            let signs = &signs[..3 * 16 * tables.len()];
            let sum = |row: usize| -> u16 {
                let of = |group: usize| {
                    let both = signs[(row / TOGETHER * tables.len() + group) * 16 + row % 16];
                    tables[group][usize::from(both >> (row % TOGETHER / 16 * 4) & 15)]
                };
                (0..tables.len()).map(|group| u16::from(of(group))).sum()
            };
            let right: Vec<u16> = (0..3 * TOGETHER).map(sum).collect();
            for variant in [sum_signs, best_sums()] {
                let mut sums = vec![7; 3 * TOGETHER];
                variant(tables, signs, &mut sums);
                prop_assert_eq!(&sums, &right);
            }
        }
    }

    #[test]
    fn the_largest_sum_fits() {
        for variant in [sum_signs, best_sums()] {
            let mut sums = [0; TOGETHER];
            variant(&[[255; 16]; 256], &[0x3f; 256 * 16], &mut sums);
            assert_eq!(sums, [65_280; TOGETHER]);
        }
    }

    #[test]
    fn the_largest_count_fits() {
        for variant in variants() {
            let mut keys = [0];
            variant(&[0; 8192], 0, &[0xff; 8192], &[0], &mut keys);
            assert_eq!(keys, [65_536]);
        }
    }
}
