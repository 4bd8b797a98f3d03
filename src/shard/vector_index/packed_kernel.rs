//! Distances between a query and 64 rows of codes that lie together, and which of them are within an edge.
//!
//! Four numbers of one row, then of the next: so a register holds as many rows as it has numbers of 32 bits, each sums for
//! itself, and nothing is added across. The rows that lie together are all scored; for rows that are picked out see
//! `code_kernel`.
//! Invariants: all is whole-number arithmetic, so every variant gives exactly what the scalar one gives
//! (property-tested); no sum overflows up to 65,536 dimensions. The variant is chosen once for the rows.
//! Deliberately absent: what the codes mean (see `codes`). On aarch64 the compiler makes NEON of the scalar form.
//! Source: the layout of `VPDPBUSD`'s operands (Intel's Software Developer's Manual, volume 2).

use crate::model::Distance;

/// Rows that lie together.
pub(super) const TOGETHER: usize = 64;
/// Numbers of a row that lie together.
pub(super) const GROUP: usize = 4;

/// Scores 64 rows, `codes [groups, 64, 4]`, against `query [groups, 4]` into `keys`; a bit is set for each that is at most
/// `edge`.
///
/// Keys are those of [`super::code_kernel::Scan`].
pub(super) type Score = fn(
    query: &[[u8; GROUP]],
    base: u32,
    codes: &[[u8; GROUP * TOGETHER]],
    edge: u32,
    keys: &mut [u32; TOGETHER],
) -> u64;

/// The best variant for a distance on this processor.
pub(super) fn best(distance: Distance) -> Score {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_vnni() {
            return x86::vnni(distance);
        }
        if is_x86_feature_detected!("avx2") {
            return x86::avx2(distance);
        }
    }
    scalar(distance)
}

/// The variant every other one is tested against.
fn scalar(distance: Distance) -> Score {
    match distance {
        Distance::Cosine | Distance::Dot => |query, base, codes, edge, keys| {
            let product = |row: u8, query: u8| (i32::from(row) * i32::from(query as i8)) as u32;
            each(query, codes, edge, keys, |sum| base.wrapping_sub(sum), product)
        },
        Distance::Euclid => |query, _, codes, edge, keys| {
            each(query, codes, edge, keys, |sum| sum, |row, query| u32::from(row.abs_diff(query)).pow(2))
        },
        Distance::Manhattan => |query, _, codes, edge, keys| {
            each(query, codes, edge, keys, |sum| sum, |row, query| u32::from(row.abs_diff(query)))
        },
    }
}

fn each(
    query: &[[u8; GROUP]],
    codes: &[[u8; GROUP * TOGETHER]],
    edge: u32,
    keys: &mut [u32; TOGETHER],
    key: impl Fn(u32) -> u32,
    term: impl Fn(u8, u8) -> u32,
) -> u64 {
    let mut sums = [0u32; TOGETHER];
    for (codes, query) in codes.iter().zip(query) {
        for (sum, row) in sums.iter_mut().zip(codes.as_chunks::<GROUP>().0) {
            for (row, query) in row.iter().zip(query) {
                *sum = sum.wrapping_add(term(*row, *query));
            }
        }
    }
    *keys = sums.map(key);
    keys.iter().rev().fold(0, |near, key| near << 1 | u64::from(*key <= edge))
}

/// AVX2 and AVX-512 variants: only called once the processor was asked.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions, over arrays whose lengths are known")]
mod x86 {
    use super::{GROUP, Score, TOGETHER};
    use crate::model::Distance;
    use std::arch::x86_64::*;

    /// Which term of a row and a query is summed.
    const PRODUCT: u8 = 0;
    const SQUARE: u8 = 1;
    const APART: u8 = 2;

    pub(super) fn has_vnni() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
    }

    pub(super) fn vnni(distance: Distance) -> Score {
        match distance {
            Distance::Cosine | Distance::Dot => with_vnni::<PRODUCT>,
            Distance::Euclid => with_vnni::<SQUARE>,
            Distance::Manhattan => with_vnni::<APART>,
        }
    }

    pub(super) fn avx2(distance: Distance) -> Score {
        match distance {
            Distance::Cosine | Distance::Dot => with_avx2::<PRODUCT>,
            Distance::Euclid => with_avx2::<SQUARE>,
            Distance::Manhattan => with_avx2::<APART>,
        }
    }

    fn with_vnni<const TERM: u8>(
        query: &[[u8; GROUP]],
        base: u32,
        codes: &[[u8; GROUP * TOGETHER]],
        edge: u32,
        keys: &mut [u32; TOGETHER],
    ) -> u64 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn step<const TERM: u8>(sum: __m512i, rows: __m512i, query: __m512i) -> __m512i {
            if TERM == PRODUCT {
                return _mm512_dpbusd_epi32(sum, rows, query);
            }
            let apart = _mm512_sub_epi8(_mm512_max_epu8(rows, query), _mm512_min_epu8(rows, query));
            if TERM == APART {
                return _mm512_dpbusd_epi32(sum, apart, _mm512_set1_epi8(1));
            }
            let (even, odd) = (_mm512_and_si512(apart, _mm512_set1_epi16(255)), _mm512_srli_epi16(apart, 8));
            _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(sum, even, even), odd, odd)
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn run<const TERM: u8>(
            query: &[[u8; GROUP]],
            base: u32,
            codes: &[[u8; GROUP * TOGETHER]],
            edge: u32,
            keys: &mut [u32; TOGETHER],
        ) -> u64 {
            let mut sums = [_mm512_setzero_si512(); TOGETHER / 16];
            for (codes, query) in codes.iter().zip(query) {
                let query = _mm512_set1_epi32(i32::from_le_bytes(*query));
                for (sum, rows) in sums.iter_mut().zip(codes.as_chunks::<64>().0) {
                    // SAFETY: 64 bytes.
                    let rows = unsafe { _mm512_loadu_si512(rows.as_ptr().cast()) };
                    *sum = step::<TERM>(*sum, rows, query);
                }
            }
            let mut near = 0;
            for (at, (sum, keys)) in sums.into_iter().zip(keys.as_chunks_mut::<16>().0).enumerate() {
                let base = _mm512_set1_epi32(base as i32);
                let key = if TERM == PRODUCT { _mm512_sub_epi32(base, sum) } else { sum };
                // SAFETY: room for 16 numbers.
                unsafe { _mm512_storeu_si512(keys.as_mut_ptr().cast(), key) };
                let within = _mm512_cmple_epu32_mask(key, _mm512_set1_epi32(edge as i32));
                near |= u64::from(within) << (16 * at);
            }
            near
        }
        // SAFETY: `best` hands this out only where the processor has these features.
        unsafe { run::<TERM>(query, base, codes, edge, keys) }
    }

    fn with_avx2<const TERM: u8>(
        query: &[[u8; GROUP]],
        base: u32,
        codes: &[[u8; GROUP * TOGETHER]],
        edge: u32,
        keys: &mut [u32; TOGETHER],
    ) -> u64 {
        /// The numbers at even places and those at odd ones, of 16 bits each.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn apart(bytes: __m256i) -> (__m256i, __m256i) {
            (_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16(bytes, 8))
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn step<const TERM: u8>(sum: __m256i, rows: __m256i, query: __m256i) -> __m256i {
            let (even, odd) = if TERM == PRODUCT {
                let (even, odd) = apart(rows);
                let even_query = _mm256_srai_epi16(_mm256_slli_epi16(query, 8), 8);
                let odd_query = _mm256_srai_epi16(query, 8);
                (_mm256_madd_epi16(even, even_query), _mm256_madd_epi16(odd, odd_query))
            } else {
                let between = _mm256_sub_epi8(_mm256_max_epu8(rows, query), _mm256_min_epu8(rows, query));
                if TERM == APART {
                    let pairs = _mm256_maddubs_epi16(between, _mm256_set1_epi8(1));
                    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                }
                let (even, odd) = apart(between);
                (_mm256_madd_epi16(even, even), _mm256_madd_epi16(odd, odd))
            };
            _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
        }

        #[target_feature(enable = "avx2")]
        fn run<const TERM: u8>(
            query: &[[u8; GROUP]],
            base: u32,
            codes: &[[u8; GROUP * TOGETHER]],
            edge: u32,
            keys: &mut [u32; TOGETHER],
        ) -> u64 {
            let mut sums = [_mm256_setzero_si256(); TOGETHER / 8];
            for (codes, query) in codes.iter().zip(query) {
                let query = _mm256_set1_epi32(i32::from_le_bytes(*query));
                for (sum, rows) in sums.iter_mut().zip(codes.as_chunks::<32>().0) {
                    // SAFETY: 32 bytes.
                    let rows = unsafe { _mm256_loadu_si256(rows.as_ptr().cast()) };
                    *sum = step::<TERM>(*sum, rows, query);
                }
            }
            let (base, edge) = (_mm256_set1_epi32(base as i32), _mm256_set1_epi32(edge as i32));
            let mut near = 0;
            for (at, (sum, keys)) in sums.into_iter().zip(keys.as_chunks_mut::<8>().0).enumerate() {
                let key = if TERM == PRODUCT { _mm256_sub_epi32(base, sum) } else { sum };
                // SAFETY: room for eight numbers.
                unsafe { _mm256_storeu_si256(keys.as_mut_ptr().cast(), key) };
                let within = _mm256_cmpeq_epi32(_mm256_min_epu32(key, edge), key);
                let within = _mm256_movemask_ps(_mm256_castsi256_ps(within)) as u8;
                near |= u64::from(within) << (8 * at);
            }
            near
        }
        // SAFETY: `best` hands this out only where the processor has AVX2.
        unsafe { run::<TERM>(query, base, codes, edge, keys) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISTANCES: [Distance; 3] = [Distance::Dot, Distance::Euclid, Distance::Manhattan];

    /// Every variant this processor can run, and the scalar one.
    fn variants(distance: Distance) -> Vec<Score> {
        let mut all: Vec<Score> = vec![scalar(distance), best(distance)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                all.push(x86::avx2(distance));
            }
            if x86::has_vnni() {
                all.push(x86::vnni(distance));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn every_variant_scores_every_row(
            groups in 1usize..20,
            codes in proptest::collection::vec(any::<[u8; GROUP * TOGETHER]>(), 19),
            query in proptest::collection::vec(any::<[u8; GROUP]>(), 19),
            (base, share) in (any::<u32>(), 0usize..=TOGETHER),
        ) {
            let (codes, query) = (&codes[..groups], &query[..groups]);
            for distance in DISTANCES {
                let key = |row: usize| {
                    let numbers = (0..groups).flat_map(|group| {
                        (0..GROUP).map(move |at| (codes[group][row * GROUP + at], query[group][at]))
                    });
                    let sum: i64 = numbers.map(|(row, query)| match distance {
                        Distance::Cosine | Distance::Dot => i64::from(row) * i64::from(query as i8),
                        Distance::Euclid => (i64::from(row) - i64::from(query)).pow(2),
                        Distance::Manhattan => (i64::from(row) - i64::from(query)).abs(),
                    }).sum();
                    if distance == Distance::Dot { base.wrapping_sub(sum as u32) } else { sum as u32 }
                };
                let right: [u32; TOGETHER] = std::array::from_fn(key);
                let mut sorted = right;
                sorted.sort_unstable();
                let edge = sorted.get(share).copied().unwrap_or(u32::MAX);
                let near = (0..TOGETHER).filter(|row| right[*row] <= edge).fold(0, |near, row| near | 1u64 << row);
                for variant in variants(distance) {
                    let mut keys = [7; TOGETHER];
                    prop_assert_eq!(variant(query, base, codes, edge, &mut keys), near, "{:?}", distance);
                    prop_assert_eq!(keys, right);
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        const GROUPS: usize = 65_536 / GROUP;
        let codes = vec![[255; GROUP * TOGETHER]; GROUPS];
        for (distance, number, sum) in [
            (Distance::Dot, 127u8, 65_536u32 * 255 * 127),
            (Distance::Euclid, 0, 65_536u32.wrapping_mul(255 * 255)),
            (Distance::Manhattan, 0, 65_536 * 255),
        ] {
            for variant in variants(distance) {
                let mut keys = [0; TOGETHER];
                variant(&vec![[number; GROUP]; GROUPS], 0, &codes, 0, &mut keys);
                let key = if distance == Distance::Dot { 0u32.wrapping_sub(sum) } else { sum };
                assert_eq!(keys, [key; TOGETHER], "{distance:?}");
            }
        }
    }
}
