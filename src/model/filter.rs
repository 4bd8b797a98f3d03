//! Conditions on points, and what they mean on a payload.

use super::PointId;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, str::FromStr};

/// A path into a payload: `a.b[].c` (`[]` steps into every element of an array; `"a.b"` quotes a key).
///
/// Kept as the text it was written in, and checked when made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FieldPath(String);

impl FieldPath {
    /// The path as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FieldPath {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.is_empty() || s.split('.').any(|part| part.is_empty()) {
            return Err("a path is keys joined by dots, such as a.b[].c");
        }
        Ok(FieldPath(s.to_owned()))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All of `must`, at least one of `should` (if there are any), none of `must_not`, and `min_should`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Every one holds.
    pub must: Vec<Condition>,
    /// At least one holds, unless there are none.
    pub should: Vec<Condition>,
    /// None holds.
    pub must_not: Vec<Condition>,
    /// At least so many of these hold.
    pub min_should: Option<MinShould>,
}

/// At least `min_count` of `conditions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MinShould {
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// How many must hold.
    pub min_count: usize,
}

/// One condition on a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Condition {
    /// Some value at the path passes the test.
    Field {
        /// Where.
        path: FieldPath,
        /// What.
        test: FieldTest,
    },
    /// The point's id is one of these.
    HasId(BTreeSet<PointId>),
    /// The point has a vector of this name.
    HasVector(String),
    /// Nothing at the path, or null, or an empty array.
    IsEmpty(FieldPath),
    /// A null at the path.
    IsNull(FieldPath),
    /// A filter of its own.
    Filter(Box<Filter>),
    /// One element of the array of objects at the path passes the whole filter.
    Nested {
        /// The array.
        path: FieldPath,
        /// Its paths start at the element.
        filter: Box<Filter>,
    },
}

/// A value that can be matched exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scalar {
    /// A string.
    Keyword(String),
    /// A number.
    Integer(i64),
    /// True or false.
    Bool(bool),
}

/// A test on one value of a payload; an array passes if one of its elements does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FieldTest {
    /// Equals.
    Match(Scalar),
    /// Equals one of these.
    MatchAny(BTreeSet<Scalar>),
    /// Equals none of these (there is a value, and it is another).
    MatchExcept(BTreeSet<Scalar>),
    /// Text search: with a text index on the field, holds every word; without one, contains the text.
    Text(String),
    /// A number within bounds.
    Range(Range<f64>),
    /// An instant within bounds, in microseconds since 1970 UTC.
    DatetimeRange(Range<i64>),
    /// The count of values within bounds.
    ValuesCount(Range<u64>),
}

/// Bounds, each optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Range<T> {
    /// Less than.
    pub lt: Option<T>,
    /// Greater than.
    pub gt: Option<T>,
    /// Less than or equal.
    pub lte: Option<T>,
    /// Greater than or equal.
    pub gte: Option<T>,
}

impl<T: PartialOrd> Range<T> {
    /// Whether a value lies within all bounds.
    pub fn contains(&self, value: &T) -> bool {
        self.lt.as_ref().is_none_or(|b| value < b)
            && self.gt.as_ref().is_none_or(|b| value > b)
            && self.lte.as_ref().is_none_or(|b| value <= b)
            && self.gte.as_ref().is_none_or(|b| value >= b)
    }
}
