//! Lists of numbers, read from their text at once.
//!
//! serde_json hands over number by number, at 60 ns each; a list of 384 is read here in a third of that, after serde_json
//! has found its end (`docs/BENCHMARKS.md`). What is no plain list of numbers that fit is left to the visitors, who name
//! what is wrong.
//!
//! Invariants: what is read is, to the bit, what serde_json and a cast would give.
//! Source: Clinger (1990): a whole number below 2^53 times or over a power of ten up to 10^22 is rounded once.

use crate::api::body;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use serde_json::value::RawValue;

/// Powers of ten that an `f64` holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];
/// Whole numbers below this are exact in an `f64`.
const EXACT_BELOW: u64 = 1 << 53;
/// Digits that fit a `u64`, whatever they are.
const DIGITS_MAX: usize = 19;

/// Reads a value that stands in JSON text: a plain list of numbers by itself, everything else by its visitor.
pub(super) fn list_or<'de, D: Deserializer<'de>, T>(
    d: D,
    list: fn(Vec<f32>) -> T,
    visitor: impl Visitor<'de, Value = T>,
) -> Result<T, D::Error> {
    if body::names_errors() {
        return d.deserialize_any(visitor);
    }
    let text = <&RawValue>::deserialize(d)?.get();
    match read(text.as_bytes()) {
        Some(values) => Ok(list(values)),
        None => serde_json::Deserializer::from_str(text).deserialize_any(visitor).map_err(D::Error::custom),
    }
}

/// The numbers of a list; `None` if the text, which is valid JSON, is no list, or holds something else, or a number too
/// large for an `f32`.
fn read(text: &[u8]) -> Option<Vec<f32>> {
    let mut rest = blanks(text.strip_prefix(b"[")?);
    let mut values = Vec::with_capacity(text.len() / 8);
    if rest == b"]" {
        return Some(values);
    }
    loop {
        let (value, behind) = number(rest)?;
        values.push(value);
        rest = blanks(behind);
        match rest.split_first()? {
            (b',', behind) => rest = blanks(behind),
            (b']', _) => return Some(values),
            _ => return None,
        }
    }
}

fn blanks(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

/// The number at the beginning of some text, and what follows it.
#[inline]
fn number(text: &[u8]) -> Option<(f32, &[u8])> {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let negative = unsigned.len() < text.len();
    let (whole, mut rest) = digits(0, unsigned);
    let mut count = unsigned.len() - rest.len();
    let (mut mantissa, mut exponent, mut is_whole) = (whole, 0i32, true);
    if count == 0 {
        return None;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        (mantissa, rest) = digits(mantissa, fraction);
        let places = fraction.len() - rest.len();
        count += places;
        exponent = -i32::try_from(places).ok()?;
        is_whole = false;
    }
    if let Some((b'e' | b'E', power)) = rest.split_first() {
        let unsigned = power.strip_prefix(b"-").or_else(|| power.strip_prefix(b"+")).unwrap_or(power);
        let (size, behind) = digits(0, unsigned);
        // Ten digits are more than any exponent needs, and do not overflow.
        let size = if unsigned.len() - behind.len() < 10 { size as i32 } else { i32::MAX / 2 };
        exponent = exponent.saturating_add(if power.first() == Some(&b'-') { -size } else { size });
        rest = behind;
        is_whole = false;
    }
    let short = count <= DIGITS_MAX;
    let size = if is_whole && short {
        mantissa as f32
    } else if let Some(power) = POWERS.get(exponent.unsigned_abs() as usize)
        && short
        && mantissa < EXACT_BELOW
    {
        (if exponent < 0 { mantissa as f64 / power } else { mantissa as f64 * power }) as f32
    } else {
        let written = str::from_utf8(&unsigned[..unsigned.len() - rest.len()]).ok()?;
        match written.parse::<u64>() {
            Ok(whole) => whole as f32,
            Err(_) => written.parse::<f64>().ok()? as f32,
        }
    };
    size.is_finite().then_some((if negative { -size } else { size }, rest))
}

/// Appends the digits at the beginning of some text to a number, wrapping; what follows them.
#[inline]
fn digits(mut number: u64, mut text: &[u8]) -> (u64, &[u8]) {
    while let Some((digit @ b'0'..=b'9', behind)) = text.split_first() {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        text = behind;
    }
    (number, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As serde_json reads it and a cast rounds it.
    fn obvious(text: &str) -> Option<Vec<u32>> {
        let numbers: Vec<serde_json::Number> = serde_json::from_str(text).ok()?;
        let value = |n: &serde_json::Number| match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => n as f32,
            (_, Some(n)) => n as f32,
            _ => n.as_f64().unwrap_or(f64::NAN) as f32,
        };
        let values: Vec<f32> = numbers.iter().map(value).collect();
        values.iter().all(|v| v.is_finite()).then(|| values.iter().map(|v| v.to_bits()).collect())
    }

    fn bits(text: &str) -> Option<Vec<u32>> {
        read(text.as_bytes()).map(|values| values.iter().map(|v| v.to_bits()).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn numbers_are_what_serde_json_and_a_cast_give(
            texts in prop::collection::vec(prop_oneof![
                "-?(0|[1-9][0-9]{0,21})(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?",
                any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:?}")),
                any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:?}")),
                any::<u64>().prop_map(|x| x.to_string()),
                any::<i64>().prop_map(|x| x.to_string()),
            ], 0..4),
            blank in "[ \\n\\t\\r]{0,2}",
        ) {
            let text = format!("[{blank}{}{blank}]", texts.join(&format!("{blank},{blank}")));
            prop_assert_eq!(bits(&text), obvious(&text), "{}", text);
        }
    }

    #[test]
    fn what_is_no_list_of_numbers_is_left_to_others() {
        for text in
            ["7", "{}", "\"x\"", "null", "[null]", "[1,\"x\"]", "[[1]]", "[1,[2]]", "[1e39]", "[true]"]
        {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(bits("[-0]"), Some(vec![(-0f32).to_bits()]));
        assert_eq!(bits("[1e-99999999999]"), Some(vec![0]));
        assert_eq!(bits("[18446744073709551615, 18446744073709551616]").map(|bits| bits.len()), Some(2));
    }
}
