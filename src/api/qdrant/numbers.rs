//! Lists of numbers, read from their text at once.
//!
//! serde_json hands over number by number, at 60 ns each; here they are read eight digits at a time
//! (`docs/BENCHMARKS.md`). What is no plain list of numbers that fit is left to the visitors, who name what is wrong.
//!
//! Invariants: what is read is, to the bit, what serde_json and a cast would give; what is read here is JSON.
//! Sources: Clinger (1990): a whole number below 2^53 times or over a power of ten up to 10^22 is rounded once;
//! Lemire (2021), number parsing at a gigabyte per second: eight digits in one word.

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
/// A whole number that is rounded to an `f64`, and then its product with a power of ten: that many last places away
/// from the product rounded once, or fewer.
const ROUNDED_TWICE: u64 = 3;

/// Numbers that room is made for at once, at most.
const RESERVED_MAX: usize = 4_096;

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
        Some((values, _)) => Ok(list(values)),
        None => serde_json::Deserializer::from_str(text).deserialize_any(visitor).map_err(D::Error::custom),
    }
}

/// Takes a list of numbers out of the text of an object: the list that is its member `name`, and the text with an empty
/// list in that place. So serde_json need not look for the end of what is most of the text.
///
/// `None` says nothing of the text: it may be anything.
pub(super) fn lifted(text: &[u8], name: &str) -> Option<(Vec<f32>, Vec<u8>)> {
    let mut rest = blanks(text).strip_prefix(b"{")?;
    loop {
        let (key, behind) = string(blanks(rest))?;
        rest = blanks(blanks(behind).strip_prefix(b":")?);
        if key == name.as_bytes() && rest.starts_with(b"[") {
            let (values, behind) = read(rest)?;
            let others = [&text[..text.len() - rest.len()], b"[]", behind].concat();
            return Some((values, others));
        }
        rest = skipped(rest)?.strip_prefix(b",")?;
    }
}

/// A string without escapes at the beginning of some text, and what follows it.
fn string(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    (text[end] == b'"').then(|| (&text[..end], &text[end + 1..]))
}

/// What follows the value at the beginning of some text.
fn skipped(mut text: &[u8]) -> Option<&[u8]> {
    let mut depth = 0;
    loop {
        let (byte, behind) = text.split_first()?;
        match byte {
            b'"' => {
                text = string(text)?.1;
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' | b',' if depth == 0 => return Some(text),
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        text = behind;
    }
}

/// The numbers of the list at the beginning of some text, and what follows it; `None` if that is no list, or holds
/// something else, or a number too large for an `f32`.
fn read(text: &[u8]) -> Option<(Vec<f32>, &[u8])> {
    let mut rest = blanks(text.strip_prefix(b"[")?);
    // What follows the list may be much longer than it.
    let mut values = Vec::with_capacity((text.len() / 8).min(RESERVED_MAX));
    if let Some(behind) = rest.strip_prefix(b"]") {
        return Some((values, behind));
    }
    loop {
        let (value, behind) = match long_fraction(rest) {
            Some(read) => read,
            None => number(rest)?,
        };
        values.push(value);
        rest = blanks(behind);
        match rest.split_first()? {
            (b',', behind) => rest = blanks(behind),
            (b']', behind) => return Some((values, behind)),
            _ => return None,
        }
    }
}

#[inline]
fn blanks(mut text: &[u8]) -> &[u8] {
    while let Some((b' ' | b'\n' | b'\t' | b'\r', behind)) = text.split_first() {
        text = behind;
    }
    text
}

/// What most clients make of a number of a vector: below 1, with 16 to 19 digits behind the point. As [`number`] reads
/// it, with hardly a branch that could be guessed wrong.
#[inline]
fn long_fraction(text: &[u8]) -> Option<(f32, &[u8])> {
    /// `0.`, sixteen digits, up to three more and what ends them.
    const LONGEST: usize = 2 + 3 * 8;
    const TENS: [u64; 4] = [1, 10, 100, 1_000];
    let negative = text.starts_with(b"-");
    let unsigned = &text[usize::from(negative)..];
    let (whole, digits) = unsigned.first_chunk::<LONGEST>()?.split_first_chunk::<2>()?;
    let (eights, _) = digits.as_chunks::<8>();
    let &[first, second, third] = eights else { return None };
    let [(first, others), (second, more), (third, end)] = [first, second, third].map(eight_digits);
    let count = end.trailing_zeros() as usize / 8;
    if whole != b"0." || others | more != 0 || count > 3 || matches!(digits[16 + count], b'e' | b'E') {
        return None;
    }
    // The digits that count, behind noughts.
    let third = (third << (8 * (7 - count))) << 8;
    let mantissa = (worth(first) * 100_000_000 + worth(second)) * TENS[count] + worth(third);
    let size = rounded(mantissa, -(16 + count as i32))?;
    Some((signed(size, negative), &unsigned[2 + 16 + count..]))
}

/// The number at the beginning of some text, and what follows it.
#[inline]
fn number(text: &[u8]) -> Option<(f32, &[u8])> {
    let negative = text.starts_with(b"-");
    let unsigned = &text[usize::from(negative)..];
    let (whole, mut rest) = digits(0, unsigned);
    let places = unsigned.len() - rest.len();
    if places == 0 || places > 1 && unsigned.starts_with(b"0") {
        return None;
    }
    let mut significant = if whole == 0 && places == 1 { 0 } else { places };
    let (mut mantissa, mut exponent, mut is_whole) = (whole, 0i32, true);
    if let Some(fraction) = rest.strip_prefix(b".") {
        (mantissa, rest) = many_digits(whole, fraction);
        let places = fraction.len() - rest.len();
        significant += places;
        if significant == places && places > DIGITS_MAX {
            significant -= fraction.iter().take_while(|byte| **byte == b'0').count();
        }
        exponent = -i32::try_from(places).ok().filter(|places| *places > 0)?;
        is_whole = false;
    }
    if let Some((b'e' | b'E', power)) = rest.split_first() {
        let unsigned = power.strip_prefix(b"-").or_else(|| power.strip_prefix(b"+")).unwrap_or(power);
        let (size, behind) = digits(0, unsigned);
        let places = unsigned.len() - behind.len();
        // Ten digits are more than any exponent needs, and do not overflow.
        let size = if places < 10 { size as i32 } else { i32::MAX / 2 };
        exponent = exponent.saturating_add(if power.starts_with(b"-") { -size } else { size });
        (rest, is_whole) = (behind, false);
        if places == 0 {
            return None;
        }
    }
    let known = match significant <= DIGITS_MAX {
        // Below this serde_json has no whole number.
        true if is_whole && !(negative && mantissa > 1 << 63) => Some(mantissa as f32),
        true => rounded(mantissa, exponent),
        false => None,
    };
    let size = match known {
        Some(size) => size,
        None => {
            let written = str::from_utf8(&unsigned[..unsigned.len() - rest.len()]).ok()?;
            match written.parse::<u64>() {
                Ok(whole) if !negative => whole as f32,
                _ => written.parse::<f64>().ok()? as f32,
            }
        }
    };
    size.is_finite().then_some((signed(size, negative), rest))
}

/// A size with its sign; without a branch, since half of all numbers are negative.
#[inline]
fn signed(size: f32, negative: bool) -> f32 {
    f32::from_bits(size.to_bits() | u32::from(negative) << 31)
}

/// A whole number times a power of ten, rounded to an `f64`, and that to an `f32`; `None` if that takes more care.
#[inline]
fn rounded(mantissa: u64, exponent: i32) -> Option<f32> {
    let (size, power) = (mantissa as f64, POWERS.get(exponent.unsigned_abs() as usize)?);
    let near = if exponent < 0 { size / power } else { size * power };
    // Which side of 2^53 a number of 16 digits lies on cannot be guessed, so that both are computed.
    let moved = |bits: u64| f64::from_bits(bits) as f32;
    let below = moved(near.to_bits().wrapping_sub(ROUNDED_TWICE));
    let above = moved(near.to_bits().wrapping_add(ROUNDED_TWICE));
    (below == above || mantissa < EXACT_BELOW).then_some(near as f32)
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

/// As [`digits`], for digits of which there are many.
#[inline]
fn many_digits(mut number: u64, mut text: &[u8]) -> (u64, &[u8]) {
    while let Some((eight, behind)) = text.split_first_chunk() {
        let (eight, others) = eight_digits(*eight);
        if others != 0 {
            break;
        }
        number = number.wrapping_mul(100_000_000).wrapping_add(worth(eight));
        text = behind;
    }
    digits(number, text)
}

/// What eight characters are worth as digits, the first in the lowest byte; and the highest bit of each that is none, the
/// first of which is right.
#[inline]
fn eight_digits(text: [u8; 8]) -> (u64, u64) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let digits = u64::from_le_bytes(text) ^ (b'0' as u64 * EACH);
    // A byte above 9 has its highest bit, or gets it; what is carried out of it goes to those behind.
    (digits, (digits | digits.wrapping_add(0x76 * EACH)) & (0x80 * EACH))
}

/// The number that eight digits make, the first of which is the lowest byte.
#[inline]
fn worth(digits: u64) -> u64 {
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (fours * 10_000 + (fours >> 32)) & 0xffff_ffff
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
        read(text.as_bytes()).map(|(values, _)| values.iter().map(|v| v.to_bits()).collect())
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

        /// What clients make of an `f32`: up to 17 digits, more than an `f64` holds as a whole number. Also where an `f32`
        /// ends, and just beside.
        #[test]
        fn doubles_near_the_edge_of_a_float_are_rounded_as_by_the_book(
            x in prop_oneof![-2f32..2.0, any::<f32>().prop_filter("finite", |x| x.is_finite())],
            halfway in any::<bool>(),
            aside in -4i64..=4,
        ) {
            let end = if halfway { (f64::from(x) + f64::from(x.next_up())) / 2.0 } else { f64::from(x) };
            let near = f64::from_bits(end.to_bits().wrapping_add_signed(aside));
            prop_assume!(near.is_finite());
            // With room behind it, and without.
            for room in ["", "                          "] {
                for number in [format!("{near}"), format!("{near:e}"), format!("{near:.16}"), format!("{near:.18}"), format!("{near:.19}")] {
                    let text = format!("[{number}{room}]");
                    prop_assert_eq!(bits(&text), obvious(&text), "{}", text);
                }
            }
        }

        /// With any byte changed, a list is read only where serde_json reads it.
        #[test]
        fn what_is_read_is_json(
            text in prop::sample::select(&[
                "[0.5,-1e+5, 12.25, 0,7 ]",
                "[-0.12345678901234567,0.1234567890123456,  0.1234567890123456789, 12.5, 0.25]",
            ][..]),
            at in any::<prop::sample::Index>(),
            byte in prop_oneof![prop::sample::select(&b"0.-+e, ]\x0c"[..]), any::<u8>()],
        ) {
            let mut text = text.as_bytes().to_vec();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(text) = str::from_utf8(&text) {
                let whole = read(text.as_bytes()).filter(|(_, rest)| rest.is_empty());
                prop_assert_eq!(whole.is_some(), obvious(text).is_some(), "{}", text);
            }
        }
    }

    #[test]
    fn a_list_is_lifted_out_of_whatever_stands_around_it() {
        let text = br#"{"limit":3, "params":{"hnsw_ef":[4],"s":"]"}, "query" : [1,2.5] ,"filter":{}}"#;
        let (values, others) = lifted(text, "query").expect("a list");
        assert_eq!(values, [1.0, 2.5]);
        assert_eq!(others, br#"{"limit":3, "params":{"hnsw_ef":[4],"s":"]"}, "query" : [] ,"filter":{}}"#);
        for text in
            [r#"{"query":7}"#, r#"{"other":[1]}"#, r#"{"o":{"query":[1]}}"#, r#"[1]"#, "{", r#"{"query":[1"#]
        {
            assert_eq!(lifted(text.as_bytes(), "query"), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_numbers_is_left_to_others() {
        for text in [
            "7",
            "{}",
            "\"x\"",
            "null",
            "[null]",
            "[1,\"x\"]",
            "[[1]]",
            "[1,[2]]",
            "[1e39]",
            "[true]",
            "[01]",
            "[1.]",
            "[.5]",
            "[-]",
            "[1e]",
            "[+1]",
            "[1e+]",
            "[1,]",
            "[1",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(bits("[-0]"), Some(vec![(-0f32).to_bits()]));
        assert_eq!(bits("[1e-99999999999]"), Some(vec![0]));
        // Where it counts that serde_json has these as whole numbers, or has not: the two ways round them apart.
        for text in [
            "[9223372586610589697]",
            "[-9223372586610589697]",
            "[13835058604843401217]",
            "[18446744073709551615, 18446744073709551616, -18446744073709551616]",
        ] {
            assert_eq!(bits(text), obvious(text), "{text}");
        }
        assert_ne!(
            bits("[-9223372586610589697]"),
            bits("[9223372586610589697]").map(|bits| vec![bits[0] | 1 << 31])
        );
    }
}
