//! Distances between a query and rows of codes, many rows a call, with the best instructions this processor has.
//!
//! A row is bytes, or half-bytes: then block after block of 64 bytes, each with the codes of 128 dimensions, the
//! first 64 in the low halves. A half-byte `n` stands for the byte `17·n`.
//! Invariants: all is whole-number arithmetic, so every variant gives exactly what the scalar one gives
//! (property-tested); no sum overflows up to 65,536 dimensions. The variant is chosen once a query, and a call
//! scores a batch of rows, four at a time.
//! Deliberately absent: what the codes mean (see `codes`). On aarch64 the compiler makes NEON of the scalar form.

use crate::model::Distance;

/// Scores the `wanted` rows of `codes [rows, stride]` against `query [stride]` (half-bytes: `[2·stride]`) into `keys`.
///
/// The sum of a row is Σ row·query (rows unsigned, the query signed), Σ (row - query)² or Σ |row - query| (both
/// unsigned); its key is `base` less the sum in the first case and the sum in the others: smaller is nearer.
pub(super) type Scan = fn(query: &[u8], base: u32, codes: &[u8], wanted: &[u32], keys: &mut [u32]);

/// Bytes of a row are a multiple of this; of a row of half-bytes, of [`BLOCK`].
pub(super) const UNIT: usize = 16;
/// Bytes that hold the half-bytes of twice as many dimensions.
pub(super) const BLOCK: usize = 64;

/// The best variant for a distance on this processor, over bytes or half-bytes.
pub(super) fn best(distance: Distance, half: bool) -> Scan {
    #[cfg(target_arch = "x86_64")]
    {
        let vnni = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        if vnni {
            return x86::vnni(distance, half);
        }
        if is_x86_feature_detected!("avx2") {
            return x86::avx2(distance, half);
        }
    }
    scalar(distance, half)
}

/// The variant every other one is tested against.
fn scalar(distance: Distance, half: bool) -> Scan {
    fn product(row: u8, query: u8) -> u32 {
        (i32::from(row) * i32::from(query as i8)) as u32
    }
    fn square(row: u8, query: u8) -> u32 {
        u32::from(row.abs_diff(query)).pow(2)
    }
    fn apart(row: u8, query: u8) -> u32 {
        u32::from(row.abs_diff(query))
    }
    match (distance, half) {
        (Distance::Cosine | Distance::Dot, false) => |q, base, codes, wanted, keys| {
            each_byte(q, codes, wanted, keys, |sum| base.wrapping_sub(sum), product);
        },
        (Distance::Cosine | Distance::Dot, true) => |q, base, codes, wanted, keys| {
            each_half(q, codes, wanted, keys, |sum| base.wrapping_sub(sum), product);
        },
        (Distance::Euclid, false) => |q, _, codes, wanted, keys| {
            each_byte(q, codes, wanted, keys, |sum| sum, square);
        },
        (Distance::Euclid, true) => |q, _, codes, wanted, keys| {
            each_half(q, codes, wanted, keys, |sum| sum, square);
        },
        (Distance::Manhattan, false) => |q, _, codes, wanted, keys| {
            each_byte(q, codes, wanted, keys, |sum| sum, apart);
        },
        (Distance::Manhattan, true) => |q, _, codes, wanted, keys| {
            each_half(q, codes, wanted, keys, |sum| sum, apart);
        },
    }
}

fn each_byte(
    query: &[u8],
    codes: &[u8],
    wanted: &[u32],
    keys: &mut [u32],
    key: impl Fn(u32) -> u32,
    term: impl Fn(u8, u8) -> u32,
) {
    for (number, out) in wanted.iter().zip(keys) {
        let row = &codes[*number as usize * query.len()..][..query.len()];
        *out = key(row.iter().zip(query).fold(0, |sum, (r, q)| term(*r, *q).wrapping_add(sum)));
    }
}

fn each_half(
    query: &[u8],
    codes: &[u8],
    wanted: &[u32],
    keys: &mut [u32],
    key: impl Fn(u32) -> u32,
    term: impl Fn(u8, u8) -> u32,
) {
    let stride = query.len() / 2;
    for (number, out) in wanted.iter().zip(keys) {
        let row = &codes[*number as usize * stride..][..stride];
        let mut sum = 0u32;
        for (row, query) in row.as_chunks::<BLOCK>().0.iter().zip(query.chunks_exact(2 * BLOCK)) {
            for (at, both) in row.iter().enumerate() {
                sum = sum.wrapping_add(term((both & 15) * 17, query[at]));
                sum = sum.wrapping_add(term((both >> 4) * 17, query[BLOCK + at]));
            }
        }
        *out = key(sum);
    }
}

/// AVX2 and AVX-512 variants: only called once the processor was asked.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions; rows are sliced before they are read")]
mod x86 {
    use super::{BLOCK, Scan, UNIT};
    use crate::model::Distance;
    use std::arch::x86_64::*;

    /// Bytes that AVX2 takes at a time.
    const WIDE: usize = 32;

    pub(super) fn vnni(distance: Distance, half: bool) -> Scan {
        match (distance, half) {
            (Distance::Cosine | Distance::Dot, false) => dot_vnni::<false>,
            (Distance::Cosine | Distance::Dot, true) => dot_vnni::<true>,
            (Distance::Euclid, false) => l2_vnni::<false>,
            (Distance::Euclid, true) => l2_vnni::<true>,
            (Distance::Manhattan, false) => l1_vnni::<false>,
            (Distance::Manhattan, true) => l1_vnni::<true>,
        }
    }

    pub(super) fn avx2(distance: Distance, half: bool) -> Scan {
        match (distance, half) {
            (Distance::Cosine | Distance::Dot, false) => dot_avx2::<false>,
            (Distance::Cosine | Distance::Dot, true) => dot_avx2::<true>,
            (Distance::Euclid, false) => l2_avx2::<false>,
            (Distance::Euclid, true) => l2_avx2::<true>,
            (Distance::Manhattan, false) => l1_avx2::<false>,
            (Distance::Manhattan, true) => l1_avx2::<true>,
        }
    }

    #[inline(always)]
    fn row(codes: &[u8], stride: usize, number: u32) -> &[u8] {
        &codes[number as usize * stride..][..stride]
    }

    /// Bytes of a row, once lengths are seen to fit.
    #[inline(always)]
    fn stride<const HALF: bool>(query: &[u8], wanted: &[u32], keys: &[u32]) -> usize {
        assert_eq!(wanted.len(), keys.len(), "a key for each row");
        let stride = if HALF { query.len() / 2 } else { query.len() };
        assert!(stride.is_multiple_of(if HALF { BLOCK } else { UNIT }), "rows of whole blocks");
        stride
    }

    /// The body of a variant: its keys from the sums of four rows at a time, as the `four` where it stands gives them. No
    /// closures: they would not be compiled for the features of the function they stand in.
    macro_rules! run {
        ($query:ident, $codes:ident, $wanted:ident, $keys:ident, |$folded:ident| $key:expr) => {{
            let stride = stride::<HALF>($query, $wanted, $keys);
            for (batch, keys) in $wanted.chunks(4).zip($keys.chunks_mut(4)) {
                let last = batch.len() - 1;
                let rows = [
                    row($codes, stride, batch[0]),
                    row($codes, stride, batch[last.min(1)]),
                    row($codes, stride, batch[last.min(2)]),
                    row($codes, stride, batch[last]),
                ];
                let $folded = four::<HALF>($query, rows);
                let mut all = [0; 4];
                // SAFETY: room for four numbers.
                unsafe { _mm_storeu_si128(all.as_mut_ptr().cast(), $key) };
                // Four at once: a copy of a length that is not known is a call.
                match keys.first_chunk_mut() {
                    Some(keys) => *keys = all,
                    None => keys.copy_from_slice(&all[..batch.len()]),
                }
            }
        }};
    }

    macro_rules! vnni {
        ($name:ident, |$sum:ident, $row:ident, $query:ident| $step:expr, |$base:ident, $folded:ident| $key:expr) => {
            fn $name<const HALF: bool>(
                query: &[u8],
                $base: u32,
                codes: &[u8],
                wanted: &[u32],
                keys: &mut [u32],
            ) {
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
                fn step($sum: __m512i, $row: __m512i, $query: __m512i) -> __m512i {
                    $step
                }

                /// Sums of four rows at once.
                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
                fn four<const HALF: bool>(query: &[u8], rows: [&[u8]; 4]) -> __m128i {
                    let mut sums = [_mm512_setzero_si512(); 4];
                    let mut at = 0;
                    while at + BLOCK <= rows[0].len() {
                        let from = if HALF { 2 * at } else { at };
                        // SAFETY: 64 bytes lie ahead of `at` in each row, 64 (half-bytes: 128) of `from` in the query.
                        let low = unsafe { _mm512_loadu_si512(query.as_ptr().add(from).cast()) };
                        let high = if HALF {
                            // SAFETY: as above.
                            unsafe { _mm512_loadu_si512(query.as_ptr().add(from + BLOCK).cast()) }
                        } else {
                            low
                        };
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            // SAFETY: as above.
                            let row = unsafe { _mm512_loadu_si512(row.as_ptr().add(at).cast()) };
                            if HALF {
                                let half = _mm512_set1_epi8(15);
                                let lower = _mm512_and_si512(row, half);
                                let upper = _mm512_andnot_si512(half, row);
                                let lower = _mm512_or_si512(lower, _mm512_slli_epi16(lower, 4));
                                let upper = _mm512_or_si512(upper, _mm512_srli_epi16(upper, 4));
                                *sum = step(step(*sum, lower, low), upper, high);
                            } else {
                                *sum = step(*sum, row, low);
                            }
                        }
                        at += BLOCK;
                    }
                    if !HALF && at < query.len() {
                        let mask = u64::MAX >> (BLOCK - (query.len() - at));
                        // SAFETY: the mask leaves out what lies behind the end, here and below.
                        let query = unsafe { _mm512_maskz_loadu_epi8(mask, query.as_ptr().add(at).cast()) };
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            // SAFETY: as above.
                            let row = unsafe { _mm512_maskz_loadu_epi8(mask, row.as_ptr().add(at).cast()) };
                            *sum = step(*sum, row, query);
                        }
                    }
                    let mut halves = [_mm256_setzero_si256(); 4];
                    for (half, sum) in halves.iter_mut().zip(sums) {
                        *half =
                            _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
                    }
                    let pairs = _mm256_hadd_epi32(
                        _mm256_hadd_epi32(halves[0], halves[1]),
                        _mm256_hadd_epi32(halves[2], halves[3]),
                    );
                    _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1))
                }

                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
                fn run<const HALF: bool>(
                    query: &[u8],
                    $base: u32,
                    codes: &[u8],
                    wanted: &[u32],
                    keys: &mut [u32],
                ) {
                    run!(query, codes, wanted, keys, |$folded| $key)
                }
                // SAFETY: `best` hands this out only where the processor has these features.
                unsafe { run::<HALF>(query, $base, codes, wanted, keys) }
            }
        };
    }

    vnni!(dot_vnni, |sum, row, query| _mm512_dpbusd_epi32(sum, row, query), |base, folded| _mm_sub_epi32(
        _mm_set1_epi32(base as i32),
        folded
    ));
    vnni!(
        l2_vnni,
        |sum, row, query| {
            let apart = _mm512_sub_epi8(_mm512_max_epu8(row, query), _mm512_min_epu8(row, query));
            let low = _mm512_unpacklo_epi8(apart, _mm512_setzero_si512());
            let high = _mm512_unpackhi_epi8(apart, _mm512_setzero_si512());
            _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(sum, low, low), high, high)
        },
        |_base, folded| folded
    );
    vnni!(
        l1_vnni,
        // The sums of eight bytes stand in 64 bits each, the upper half zero.
        |sum, row, query| _mm512_add_epi32(sum, _mm512_sad_epu8(row, query)),
        |_base, folded| folded
    );

    macro_rules! avx2 {
        (
            $name:ident,
            |$sum:ident, $row:ident, $query:ident| $step:expr,
            |$sums:ident, $lower:ident, $upper:ident, $low:ident, $high:ident| $halves:expr,
            |$base:ident, $folded:ident| $key:expr
        ) => {
            fn $name<const HALF: bool>(
                query: &[u8],
                $base: u32,
                codes: &[u8],
                wanted: &[u32],
                keys: &mut [u32],
            ) {
                #[inline]
                #[target_feature(enable = "avx2")]
                fn step($sum: __m256i, $row: __m256i, $query: __m256i) -> __m256i {
                    $step
                }

                /// The same for half-bytes, as they are, each in a byte.
                #[inline]
                #[target_feature(enable = "avx2")]
                fn step_halves($sums: __m256i, rows: [__m256i; 2], queries: [__m256i; 2]) -> __m256i {
                    let ([$lower, $upper], [$low, $high]) = (rows, queries);
                    $halves
                }

                #[inline]
                #[target_feature(enable = "avx2")]
                fn four<const HALF: bool>(query: &[u8], rows: [&[u8]; 4]) -> __m128i {
                    let mut sums = [_mm256_setzero_si256(); 4];
                    let mut at = 0;
                    while at + WIDE <= rows[0].len() {
                        let from = if HALF { at / BLOCK * BLOCK + at } else { at };
                        // SAFETY: 32 bytes lie ahead of `at` in each row, as many of `from` in the query, and of a block more
                        // where there are half-bytes.
                        let low = unsafe { _mm256_loadu_si256(query.as_ptr().add(from).cast()) };
                        let high = if HALF {
                            // SAFETY: as above.
                            unsafe { _mm256_loadu_si256(query.as_ptr().add(from + BLOCK).cast()) }
                        } else {
                            low
                        };
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            // SAFETY: as above.
                            let row = unsafe { _mm256_loadu_si256(row.as_ptr().add(at).cast()) };
                            *sum = if HALF {
                                let half = _mm256_set1_epi8(15);
                                let lower = _mm256_and_si256(row, half);
                                let upper = _mm256_and_si256(_mm256_srli_epi16(row, 4), half);
                                step_halves(*sum, [lower, upper], [low, high])
                            } else {
                                step(*sum, row, low)
                            };
                        }
                        at += WIDE;
                    }
                    if !HALF && at < rows[0].len() {
                        // SAFETY: 16 bytes lie ahead, of the query and of each row; what is not read is zero in both.
                        let query = unsafe { _mm_loadu_si128(query.as_ptr().add(at).cast()) };
                        let query = _mm256_zextsi128_si256(query);
                        for (sum, row) in sums.iter_mut().zip(rows) {
                            // SAFETY: as above.
                            let row = unsafe { _mm_loadu_si128(row.as_ptr().add(at).cast()) };
                            *sum = step(*sum, _mm256_zextsi128_si256(row), query);
                        }
                    }
                    let pairs = _mm256_hadd_epi32(
                        _mm256_hadd_epi32(sums[0], sums[1]),
                        _mm256_hadd_epi32(sums[2], sums[3]),
                    );
                    _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1))
                }

                #[target_feature(enable = "avx2")]
                fn run<const HALF: bool>(
                    query: &[u8],
                    $base: u32,
                    codes: &[u8],
                    wanted: &[u32],
                    keys: &mut [u32],
                ) {
                    run!(query, codes, wanted, keys, |$folded| $key)
                }
                // SAFETY: `best` hands this out only where the processor has AVX2.
                unsafe { run::<HALF>(query, $base, codes, wanted, keys) }
            }
        };
    }

    avx2!(
        dot_avx2,
        |sum, row, query| {
            // A byte times a byte, twice, does not fit into 16 bits; half a byte does.
            let half = _mm256_set1_epi8(15);
            let lower = _mm256_maddubs_epi16(_mm256_and_si256(row, half), query);
            let upper = _mm256_and_si256(_mm256_srli_epi16(row, 4), half);
            let upper = _mm256_maddubs_epi16(upper, query);
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(lower, _mm256_set1_epi16(1)));
            _mm256_add_epi32(sum, _mm256_madd_epi16(upper, _mm256_set1_epi16(16)))
        },
        |sum, lower, upper, low, high| {
            let both = _mm256_add_epi16(_mm256_maddubs_epi16(lower, low), _mm256_maddubs_epi16(upper, high));
            _mm256_add_epi32(sum, _mm256_madd_epi16(both, _mm256_set1_epi16(17)))
        },
        |base, folded| _mm_sub_epi32(_mm_set1_epi32(base as i32), folded)
    );
    avx2!(
        l2_avx2,
        |sum, row, query| {
            let apart = _mm256_sub_epi8(_mm256_max_epu8(row, query), _mm256_min_epu8(row, query));
            let low = _mm256_unpacklo_epi8(apart, _mm256_setzero_si256());
            let high = _mm256_unpackhi_epi8(apart, _mm256_setzero_si256());
            let squares = _mm256_add_epi32(_mm256_madd_epi16(low, low), _mm256_madd_epi16(high, high));
            _mm256_add_epi32(sum, squares)
        },
        |sum, lower, upper, low, high| step(step(sum, byte_of_half(lower), low), byte_of_half(upper), high),
        |_base, folded| folded
    );
    avx2!(
        l1_avx2,
        // The sums of eight bytes stand in 64 bits each, the upper half zero.
        |sum, row, query| _mm256_add_epi32(sum, _mm256_sad_epu8(row, query)),
        |sum, lower, upper, low, high| step(step(sum, byte_of_half(lower), low), byte_of_half(upper), high),
        |_base, folded| folded
    );

    /// Seventeen times each half-byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn byte_of_half(halves: __m256i) -> __m256i {
        _mm256_or_si256(halves, _mm256_slli_epi16(halves, 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Distance; 4] = [Distance::Cosine, Distance::Dot, Distance::Euclid, Distance::Manhattan];

    /// Every variant this processor can run.
    fn variants(distance: Distance, half: bool) -> Vec<Scan> {
        let mut all = vec![scalar(distance, half), best(distance, half)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            all.push(x86::avx2(distance, half));
        }
        all
    }

    /// The bytes a row stands for.
    fn bytes(row: &[u8], half: bool) -> Vec<u8> {
        if !half {
            return row.to_vec();
        }
        let blocks = row.chunks(BLOCK);
        blocks.flat_map(|b| b.iter().map(|x| x % 16 * 17).chain(b.iter().map(|x| x / 16 * 17))).collect()
    }

    /// Term by term, in numbers that hold every sum.
    fn obvious(distance: Distance, query: &[u8], base: u32, row: &[u8]) -> u32 {
        let pairs = row.iter().zip(query).map(|(r, q)| (i64::from(*r), *q));
        let key: i64 = match distance {
            Distance::Cosine | Distance::Dot => {
                i64::from(base) - pairs.map(|(r, q)| r * i64::from(q as i8)).sum::<i64>()
            }
            Distance::Euclid => pairs.map(|(r, q)| (r - i64::from(q)).pow(2)).sum(),
            Distance::Manhattan => pairs.map(|(r, q)| (r - i64::from(q)).abs()).sum(),
        };
        key as u32
    }

    proptest! {
        #[test]
        fn every_variant_gives_exactly_what_the_terms_give(
            units in 1usize..14,
            half: bool,
            codes in proptest::collection::vec(any::<u8>(), 13 * UNIT * 9..13 * UNIT * 12),
            query in proptest::collection::vec(any::<u8>(), 13 * UNIT * 2),
            wanted in proptest::collection::vec(0u32..9, 0..23),
            base: u32,
        ) {
            let stride = if half { units.div_ceil(5) * BLOCK } else { units * UNIT };
            let query = &query[..if half { 2 * stride } else { stride }];
            for distance in ALL {
                let right: Vec<u32> = wanted
                    .iter()
                    .map(|row| bytes(&codes[*row as usize * stride..][..stride], half))
                    .map(|row| obvious(distance, query, base, &row))
                    .collect();
                for variant in variants(distance, half) {
                    let mut keys = vec![0; wanted.len()];
                    variant(query, base, &codes, &wanted, &mut keys);
                    prop_assert_eq!(&keys, &right, "{:?}", distance);
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        const DIM: usize = 65_536;
        for (half, distance) in [false, true].into_iter().flat_map(|half| ALL.map(|d| (half, d))) {
            let rows = [0u8, 255].map(|x| vec![x; if half { DIM / 2 } else { DIM }]);
            for (query, row) in [0u8, 127, 128, 255].into_iter().flat_map(|q| rows.each_ref().map(|r| (q, r)))
            {
                let query = vec![query; DIM];
                for variant in variants(distance, half) {
                    let mut keys = [0];
                    variant(&query, 1 << 31, row, &[0], &mut keys);
                    assert_eq!(keys, [obvious(distance, &query, 1 << 31, &bytes(row, half))], "{distance:?}");
                }
            }
        }
    }
}
