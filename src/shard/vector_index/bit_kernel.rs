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

/// What each of 32 rows has to do with how far it is from a query, beside its signs.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Bounds {
    /// What no query changes; NaN where there is no row.
    pub(super) bases: [f32; TOGETHER],
    /// What an inner product of signs comes to.
    pub(super) scales: [f32; TOGETHER],
    /// How far that is off, by the length of the query.
    pub(super) spreads: [f32; TOGETHER],
}

/// What a query has to do with how far rows are, beside its tables.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Asked {
    /// What no row changes.
    pub(super) base: f32,
    /// What a sum of the tables counts, and what is added to it.
    pub(super) unit: f32,
    pub(super) shift: f32,
    /// The length of the query from the centre, in deviations.
    pub(super) reach: f32,
}

/// How far 32 rows are at the least, and which of them that leaves at a distance, a bit each: `tables [groups]`,
/// `signs [groups, 16]`.
///
/// ```text
/// floor = base of the row + base of the query − scale · (unit · sum + shift) − spread · reach
/// ```
///
/// The sum is of what the tables say of the row's signs. A group is four dimensions; of each byte the lower half has the
/// signs of one of the first 16 rows, the upper those of one of the others. Groups are even in number, and no sum is
/// above `u16::MAX`.
pub(super) type Floors = fn(
    tables: &[Table],
    signs: &[u8],
    bounds: &Bounds,
    asked: &Asked,
    distance: f32,
    floors: &mut [f32; TOGETHER],
) -> u32;

/// The best variant on this processor.
pub(super) fn best_floors() -> Floors {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        return x86::floors;
    }
    floors
}

/// The variant every other one is tested against.
fn floors(
    tables: &[Table],
    signs: &[u8],
    bounds: &Bounds,
    asked: &Asked,
    distance: f32,
    floors: &mut [f32; TOGETHER],
) -> u32 {
    let mut sums = [0u16; TOGETHER];
    for (signs, table) in signs.as_chunks::<16>().0.iter().zip(tables) {
        for (at, both) in signs.iter().enumerate() {
            sums[at] += u16::from(table[usize::from(both & 15)]);
            sums[16 + at] += u16::from(table[usize::from(both >> 4)]);
        }
    }
    let mut left = 0;
    for (at, floor) in floors.iter_mut().enumerate() {
        let nearest = bounds.scales[at] * (asked.unit * f32::from(sums[at]) + asked.shift)
            + bounds.spreads[at] * asked.reach;
        *floor = bounds.bases[at] + asked.base - nearest;
        left |= u32::from(*floor <= distance) << at;
    }
    left
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
    use super::{Asked, Bounds, TOGETHER, Table, UNIT};
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

    pub(super) fn floors(
        tables: &[Table],
        signs: &[u8],
        bounds: &Bounds,
        asked: &Asked,
        distance: f32,
        floors: &mut [f32; TOGETHER],
    ) -> u32 {
        /// Sums of 16 bits by rows, of which the upper bytes were summed for themselves, as well as in the lower.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn fold(lower: __m256i, upper: __m256i) -> [__m128i; 2] {
            let both = |sums| _mm_add_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            let (even, odd) = (both(_mm256_sub_epi16(lower, _mm256_slli_epi16(upper, 8))), both(upper));
            [_mm_unpacklo_epi16(even, odd), _mm_unpackhi_epi16(even, odd)]
        }

        #[target_feature(enable = "avx2")]
        fn run(
            tables: &[Table],
            signs: &[u8],
            bounds: &Bounds,
            asked: &Asked,
            distance: f32,
            floors: &mut [f32; TOGETHER],
        ) -> u32 {
            let half = _mm256_set1_epi8(15);
            let mut of_rows = [_mm256_setzero_si256(); 4];
            let pairs = signs.as_chunks::<32>().0.iter().zip(tables.as_chunks::<2>().0);
            for (signs, tables) in pairs {
                // SAFETY: 32 bytes each.
                let (both, tables) = unsafe {
                    (_mm256_loadu_si256(signs.as_ptr().cast()), _mm256_loadu_si256(tables.as_ptr().cast()))
                };
                let first = _mm256_shuffle_epi8(tables, _mm256_and_si256(both, half));
                let second = _mm256_shuffle_epi8(tables, _mm256_and_si256(_mm256_srli_epi16(both, 4), half));
                of_rows[0] = _mm256_add_epi16(of_rows[0], first);
                of_rows[1] = _mm256_add_epi16(of_rows[1], _mm256_srli_epi16(first, 8));
                of_rows[2] = _mm256_add_epi16(of_rows[2], second);
                of_rows[3] = _mm256_add_epi16(of_rows[3], _mm256_srli_epi16(second, 8));
            }
            let sums = [fold(of_rows[0], of_rows[1]), fold(of_rows[2], of_rows[3])];
            let all = _mm256_set1_ps;
            let mut left = 0;
            for (number, sums) in sums.as_flattened().iter().enumerate() {
                let at = 8 * number;
                let of = |numbers: &[f32; TOGETHER]| {
                    let eight = &numbers[at..at + 8];
                    // SAFETY: eight numbers.
                    unsafe { _mm256_loadu_ps(eight.as_ptr()) }
                };
                let sums = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(*sums));
                let product = _mm256_add_ps(_mm256_mul_ps(all(asked.unit), sums), all(asked.shift));
                let nearest = _mm256_add_ps(
                    _mm256_mul_ps(of(&bounds.scales), product),
                    _mm256_mul_ps(of(&bounds.spreads), all(asked.reach)),
                );
                let eight = _mm256_sub_ps(_mm256_add_ps(of(&bounds.bases), all(asked.base)), nearest);
                left |= _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(eight, all(distance))) << at;
                let floors = &mut floors[at..at + 8];
                // SAFETY: room for eight numbers.
                unsafe { _mm256_storeu_ps(floors.as_mut_ptr(), eight) };
            }
            left as u32
        }
        assert!(tables.len().is_multiple_of(2) && signs.len() == size_of_val(tables), "groups in pairs");
        // SAFETY: `best_floors` hands this out only where the processor has this feature.
        unsafe { run(tables, signs, bounds, asked, distance, floors) }
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
        fn every_variant_finds_the_floors_of_32_rows(
            pairs in 1usize..33,
            tables in proptest::collection::vec(any::<Table>(), 64),
            signs in proptest::collection::vec(any::<u8>(), 64 * 16),
            numbers in proptest::collection::vec(-2f32..2.0, 3 * TOGETHER),
            rows in 0..=TOGETHER,
            (unit, shift, reach, base) in (0f32..0.1, -9f32..9.0, 0f32..2.0, -1f32..1.0),
            distance in -9f32..9.0,
        ) {
            let tables = &tables[..2 * pairs];
            let signs = &signs[..16 * tables.len()];
            let asked = Asked { base, unit, shift, reach };
            let mut bounds = Bounds {
                bases: std::array::from_fn(|row| numbers[row]),
                scales: std::array::from_fn(|row| numbers[TOGETHER + row]),
                spreads: std::array::from_fn(|row| numbers[2 * TOGETHER + row]),
            };
            bounds.bases[rows..].fill(f32::NAN);
            let sum = |row: usize| -> u16 {
                let of = |group: usize| {
                    let both = signs[group * 16 + row % 16];
                    tables[group][usize::from(both >> (row / 16 * 4) & 15)]
                };
                (0..tables.len()).map(|group| u16::from(of(group))).sum()
            };
            let floor = |row: usize| {
                bounds.bases[row] + base
                    - (bounds.scales[row] * (unit * f32::from(sum(row)) + shift) + bounds.spreads[row] * reach)
            };
            let right: Vec<f32> = (0..rows).map(floor).collect();
            let left = right.iter().enumerate().filter(|(_, floor)| **floor <= distance);
            let left = left.fold(0u32, |left, (row, _)| left | 1 << row);
            for variant in [floors, best_floors()] {
                let mut floors = [7.0; TOGETHER];
                prop_assert_eq!(variant(tables, signs, &bounds, &asked, distance, &mut floors), left);
                prop_assert_eq!(&floors[..rows], &right[..]);
                prop_assert!(floors[rows..].iter().all(|floor| floor.is_nan()));
            }
        }
    }

    #[test]
    fn the_largest_sum_fits() {
        let bounds = Bounds { bases: [0.0; TOGETHER], scales: [-1.0; TOGETHER], spreads: [0.0; TOGETHER] };
        let asked = Asked { base: 0.0, unit: 1.0, shift: 0.0, reach: 0.0 };
        for variant in [floors, best_floors()] {
            let mut floors = [0.0; TOGETHER];
            let left = variant(&[[255; 16]; 256], &[0x3f; 256 * 16], &bounds, &asked, 65_279.0, &mut floors);
            assert_eq!((left, floors), (0, [65_280.0; TOGETHER]));
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
