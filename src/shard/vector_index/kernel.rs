//! Distances between rows of f32, with the best instructions this processor has.
//!
//! Invariants: inside the index smaller is always nearer; every variant equals the scalar one within rounding
//! (property-tested). The variant is chosen once a metric is made, not once a call.
//! Deliberately absent: codes (`code_kernel`).

use crate::model::Distance;

type Kernel = fn(&[f32], &[f32]) -> f32;

/// How two vectors of one collection are compared.
#[derive(Clone, Copy)]
pub(crate) struct Metric {
    distance: Distance,
    kernel: Kernel,
}

impl Metric {
    /// The metric of a distance, on this processor.
    pub(crate) fn of(distance: Distance) -> Self {
        Metric { distance, kernel: best(distance) }
    }

    /// How far apart two vectors are; smaller is nearer.
    ///
    /// Shapes: `a [dim]`, `b [dim]`. Units: the negated inner product for Cosine and Dot, the squared length of
    /// the difference for Euclid, the sum of absolute differences for Manhattan.
    #[inline]
    pub(crate) fn distance(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "two vectors of one dimension");
        (self.kernel)(a, b)
    }

    /// The score a user sees for a distance of [`Metric::distance`].
    pub(crate) fn score(&self, distance: f32) -> f32 {
        match self.distance {
            // Not `-0.0`: it would be printed.
            Distance::Cosine | Distance::Dot => 0.0 - distance,
            Distance::Euclid => distance.max(0.0).sqrt(),
            Distance::Manhattan => distance,
        }
    }
}

fn best(distance: Distance) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return match distance {
                Distance::Cosine | Distance::Dot => |a, b| -x86::dot_avx512(a, b),
                Distance::Euclid => x86::l2_avx512,
                Distance::Manhattan => x86::l1_avx512,
            };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return match distance {
                Distance::Cosine | Distance::Dot => |a, b| -x86::dot_avx2(a, b),
                Distance::Euclid => x86::l2_avx2,
                Distance::Manhattan => x86::l1_avx2,
            };
        }
    }
    scalar(distance)
}

/// The variant every other one is tested against; the compiler vectorises it for the target's baseline
/// (NEON on aarch64).
fn scalar(distance: Distance) -> Kernel {
    match distance {
        Distance::Cosine | Distance::Dot => |a, b| -lanes(a, b, |sum, x, y| sum + x * y),
        Distance::Euclid => |a, b| lanes(a, b, |sum, x, y| sum + (x - y) * (x - y)),
        Distance::Manhattan => |a, b| lanes(a, b, |sum, x, y| sum + (x - y).abs()),
    }
}

/// Sums over pairs in 16 independent lanes, so that the additions can run side by side.
#[inline]
fn lanes(a: &[f32], b: &[f32], step: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0f32; 16];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..16 {
            sums[lane] = step(sums[lane], a[lane], b[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).fold(0f32, |sum, (x, y)| step(sum, *x, *y));
    sums.iter().sum::<f32>() + rest
}

/// Asks the processor to fetch a row that will soon be compared; no more than a hint.
#[inline]
pub(crate) fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    x86::prefetch(row);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// AVX2 and AVX-512 variants: only called once the processor was asked.
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "vector instructions; lengths are checked by `Metric::distance`, features by `best`"
)]
mod x86 {
    use std::arch::x86_64::*;

    #[inline]
    pub(super) fn prefetch<T>(row: &[T]) {
        const LINE: usize = 64;
        let first: *const i8 = row.as_ptr().cast();
        for at in (0..size_of_val(row)).step_by(LINE) {
            // SAFETY: a hint about memory that is borrowed.
            unsafe { _mm_prefetch(first.wrapping_add(at), _MM_HINT_T0) };
        }
    }

    macro_rules! kernels {
        ($name512:ident, $name2:ident, |$sum:ident, $x:ident, $y:ident| $step512:expr, $step2:expr) => {
            pub(super) fn $name512(a: &[f32], b: &[f32]) -> f32 {
                #[target_feature(enable = "avx512f")]
                fn run(a: &[f32], b: &[f32]) -> f32 {
                    let count = a.len().min(b.len());
                    let (mut even, mut odd) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                    let mut at = 0;
                    while at + 32 <= count {
                        // SAFETY: 32 numbers lie ahead of `at` in both.
                        let (x0, y0, x1, y1) = unsafe {
                            (
                                _mm512_loadu_ps(a.as_ptr().add(at)),
                                _mm512_loadu_ps(b.as_ptr().add(at)),
                                _mm512_loadu_ps(a.as_ptr().add(at + 16)),
                                _mm512_loadu_ps(b.as_ptr().add(at + 16)),
                            )
                        };
                        even = {
                            let ($sum, $x, $y) = (even, x0, y0);
                            $step512
                        };
                        odd = {
                            let ($sum, $x, $y) = (odd, x1, y1);
                            $step512
                        };
                        at += 32;
                    }
                    while at < count {
                        let left = (count - at).min(16);
                        let mask = (0xffff_u32 >> (16 - left)) as u16;
                        // SAFETY: the mask leaves out what lies behind the end.
                        let (x0, y0) = unsafe {
                            (
                                _mm512_maskz_loadu_ps(mask, a.as_ptr().add(at)),
                                _mm512_maskz_loadu_ps(mask, b.as_ptr().add(at)),
                            )
                        };
                        even = {
                            let ($sum, $x, $y) = (even, x0, y0);
                            $step512
                        };
                        at += 16;
                    }
                    _mm512_reduce_add_ps(_mm512_add_ps(even, odd))
                }
                // SAFETY: `best` hands this out only where the processor has AVX-512F.
                unsafe { run(a, b) }
            }

            pub(super) fn $name2(a: &[f32], b: &[f32]) -> f32 {
                #[target_feature(enable = "avx2,fma")]
                fn run(a: &[f32], b: &[f32]) -> f32 {
                    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
                    let mut sums = [_mm256_setzero_ps(); 2];
                    for (at, (x, y)) in a_blocks.iter().zip(b_blocks).enumerate() {
                        // SAFETY: both are blocks of 8 numbers.
                        let (x0, y0) = unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(y.as_ptr())) };
                        sums[at & 1] = {
                            let ($sum, $x, $y) = (sums[at & 1], x0, y0);
                            $step2
                        };
                    }
                    let (mut last_x, mut last_y) = ([0f32; 8], [0f32; 8]);
                    last_x[..a_rest.len()].copy_from_slice(a_rest);
                    last_y[..b_rest.len()].copy_from_slice(b_rest);
                    // SAFETY: both are blocks of 8 numbers.
                    let (x0, y0) =
                        unsafe { (_mm256_loadu_ps(last_x.as_ptr()), _mm256_loadu_ps(last_y.as_ptr())) };
                    sums[0] = {
                        let ($sum, $x, $y) = (sums[0], x0, y0);
                        $step2
                    };
                    let mut lanes = [0f32; 8];
                    // SAFETY: room for 8 numbers.
                    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[0], sums[1])) };
                    lanes.iter().sum()
                }
                // SAFETY: `best` hands this out only where the processor has AVX2 and FMA.
                unsafe { run(a, b) }
            }
        };
    }

    kernels!(dot_avx512, dot_avx2, |sum, x, y| _mm512_fmadd_ps(x, y, sum), _mm256_fmadd_ps(x, y, sum));
    kernels!(
        l2_avx512,
        l2_avx2,
        |sum, x, y| {
            let d = _mm512_sub_ps(x, y);
            _mm512_fmadd_ps(d, d, sum)
        },
        {
            let d = _mm256_sub_ps(x, y);
            _mm256_fmadd_ps(d, d, sum)
        }
    );
    kernels!(
        l1_avx512,
        l1_avx2,
        |sum, x, y| _mm512_add_ps(sum, _mm512_abs_ps(_mm512_sub_ps(x, y))),
        _mm256_add_ps(sum, _mm256_andnot_ps(_mm256_set1_ps(-0.0), _mm256_sub_ps(x, y)))
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Distance; 4] = [Distance::Cosine, Distance::Dot, Distance::Euclid, Distance::Manhattan];

    /// Every variant this processor can run.
    fn variants(distance: Distance) -> Vec<Kernel> {
        let mut all = vec![best(distance)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(match distance {
                Distance::Cosine | Distance::Dot => |a, b| -x86::dot_avx2(a, b),
                Distance::Euclid => x86::l2_avx2,
                Distance::Manhattan => x86::l1_avx2,
            });
        }
        all.push(scalar(distance));
        all
    }

    /// In double precision, term by term.
    fn obvious(distance: Distance, a: &[f32], b: &[f32]) -> f64 {
        let pairs = a.iter().zip(b).map(|(x, y)| (f64::from(*x), f64::from(*y)));
        match distance {
            Distance::Cosine | Distance::Dot => -pairs.map(|(x, y)| x * y).sum::<f64>(),
            Distance::Euclid => pairs.map(|(x, y)| (x - y) * (x - y)).sum(),
            Distance::Manhattan => pairs.map(|(x, y)| (x - y).abs()).sum(),
        }
    }

    proptest! {
        #[test]
        fn every_variant_gives_the_same(
            pairs in proptest::collection::vec((-4f32..4.0, -4f32..4.0), 0..200),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            for distance in ALL {
                let wanted = obvious(distance, &a, &b);
                for variant in variants(distance) {
                    let got = f64::from(variant(&a, &b));
                    prop_assert!((got - wanted).abs() <= 1e-3, "{distance:?}: {got} instead of {wanted}");
                }
            }
        }
    }

    #[test]
    fn scores_are_what_users_know() {
        let (a, b) = ([3.0, 0.0], [0.0, 4.0]);
        let score = |d| {
            let metric = Metric::of(d);
            metric.score(metric.distance(&a, &b))
        };
        assert_eq!(ALL.map(score), [0.0, 0.0, 5.0, 7.0]);
    }
}
