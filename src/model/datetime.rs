//! Instants in payloads and filters: RFC 3339 text to microseconds since 1970 UTC.
//!
//! Read as Qdrant reads them: `2024-02-29T12:30:00.25+01:00`, with `T`, `t` or a space between, seconds, fraction
//! and offset optional (no offset means UTC), or a date alone (its midnight).
//! Not here: time zones by name, leap seconds (`:60` is refused), years beyond four digits.
//! Source: RFC 3339; days from the civil date by the era arithmetic of the proleptic Gregorian calendar.

/// Microseconds since 1970-01-01T00:00:00Z; `None` if the text is no instant.
///
/// Digits of the fraction beyond the sixth are dropped.
pub fn parse_micros(text: &str) -> Option<i64> {
    let mut rest = Cursor(text.trim().as_bytes());
    let year = rest.digits(4)?;
    rest.literal(b"-")?;
    let month = rest.digits(2)?;
    rest.literal(b"-")?;
    let day = rest.digits(2)?;
    if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
        return None;
    }
    let mut micros = days_since_1970(year, month, day) * 86_400_000_000;
    if rest.0.is_empty() {
        return Some(micros);
    }
    rest.literal(b"Tt ")?;
    let hour = rest.digits(2)?;
    rest.literal(b":")?;
    let minute = rest.digits(2)?;
    let mut second = 0;
    let mut fraction = 0;
    if rest.literal(b":").is_some() {
        second = rest.digits(2)?;
        if rest.literal(b".,").is_some() {
            fraction = rest.fraction()?;
        }
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    micros += (hour * 3_600 + minute * 60 + second) * 1_000_000 + fraction;
    let offset_minutes = rest.offset_minutes()?;
    rest.0.is_empty().then_some(micros - offset_minutes * 60_000_000)
}

/// The instant as RFC 3339 text in UTC, to the microsecond; what [`parse_micros`] reads back.
pub fn format_micros(micros: i64) -> String {
    let (days, rest) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    let (year, month, day) = date_of(days);
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z")
}

/// The inverse of [`days_since_1970`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the date. Years are counted from March, so that a leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The text not read yet.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    /// Exactly `count` digits.
    fn digits(&mut self, count: usize) -> Option<i64> {
        let (head, tail) = self.0.split_at_checked(count)?;
        if !head.iter().all(u8::is_ascii_digit) {
            return None;
        }
        self.0 = tail;
        Some(head.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    }

    /// One byte out of `any_of`.
    fn literal(&mut self, any_of: &[u8]) -> Option<u8> {
        let (first, tail) = self.0.split_first()?;
        if !any_of.contains(first) {
            return None;
        }
        self.0 = tail;
        Some(*first)
    }

    /// At least one digit of a second's fraction, in microseconds.
    fn fraction(&mut self) -> Option<i64> {
        let count = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        let micros = (0..6).fold(0, |n, i| n * 10 + if i < count { i64::from(self.0[i] - b'0') } else { 0 });
        self.0 = &self.0[count..];
        (count > 0).then_some(micros)
    }

    /// `Z`, `±hh:mm`, `±hhmm`, `±hh`, or nothing (UTC).
    fn offset_minutes(&mut self) -> Option<i64> {
        if self.0.is_empty() {
            return Some(0);
        }
        let sign = match self.literal(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return Some(0),
        };
        let hours = self.digits(2)?;
        self.literal(b":");
        let minutes = if self.0.is_empty() { 0 } else { self.digits(2)? };
        (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_instants() {
        const SECOND: i64 = 1_000_000;
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01", 0),
            ("1970-01-01 00:01", 60 * SECOND),
            ("1969-12-31T23:59:59.5z", -SECOND / 2),
            ("2000-03-01T00:00:00Z", 951_868_800 * SECOND),
            ("2024-02-29T12:30:00.25+01:00", 1_709_206_200 * SECOND + 250_000),
            ("2024-02-29T12:30:00.123456789-0530", 1_709_229_600 * SECOND + 123_456),
            ("0001-01-01T00:00:00Z", -62_135_596_800 * SECOND),
            ("9999-12-31T23:59:59Z", 253_402_300_799 * SECOND),
        ] {
            assert_eq!(parse_micros(text), Some(micros), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_instant() {
        for text in [
            "",
            "1970",
            "1970-13-01",
            "2023-02-29",
            "1900-02-29",
            "1970-01-00",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:60:00Z",
            "1970-01-01T00:00:60Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00+1",
            "1970-01-01T00:00:00Zz",
            "1970-1-1",
            "yesterday",
            "١٩٧٠-01-01",
        ] {
            assert_eq!(parse_micros(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut expected = days_since_1970(1600, 1, 1);
        for year in 1600..2400 {
            for month in 1..=12 {
                for day in 1..=days_in(year, month) {
                    assert_eq!(days_since_1970(year, month, day), expected, "{year}-{month}-{day}");
                    expected += 1;
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(format_micros(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(format_micros(1_709_210_096_250_000), "2024-02-29T12:34:56.250000Z");
        for day in (-150_000..2_900_000).step_by(97) {
            let micros = day * 86_400_000_000 + 86_399_999_999;
            assert_eq!(parse_micros(&format_micros(micros)), Some(micros));
        }
    }
}
