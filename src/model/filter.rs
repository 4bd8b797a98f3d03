//! Conditions on points, and what they mean on a payload.
//!
//! [`Filter::matches`] is the slow, obvious truth; a field index may only be faster. Two kinds of index change
//! what a condition means (as in Qdrant), so the truth asks which fields are indexed: a text index makes a
//! text match compare words, a UUID index makes strings compare as UUIDs.
//! Source: Qdrant's documentation of filtering, and its condition checker.

use super::{FieldType, Payload, PointId, datetime::parse_micros};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

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
        let wrong = "a path is keys joined by dots, such as a.b[].c";
        let mut rest = s;
        loop {
            let (step, after) = Step::first(rest).ok_or(wrong)?;
            let Step::Key(_) = step else { return Err(wrong) };
            rest = after;
            while rest.starts_with('[') {
                rest = Step::first(rest).ok_or(wrong)?.1;
            }
            match rest.strip_prefix('.') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok(FieldPath(s.to_owned())),
                None => return Err(wrong),
            }
        }
    }
}

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Into an object.
    Key(&'a str),
    /// Into every element of an array.
    Every,
    /// Into one element of an array.
    At(usize),
}

impl<'a> Step<'a> {
    /// The step a path's text begins with, and the text after it.
    fn first(text: &'a str) -> Option<(Step<'a>, &'a str)> {
        if let Some(inner) = text.strip_prefix('[') {
            let (place, rest) = inner.split_once(']')?;
            let step = if place.is_empty() { Step::Every } else { Step::At(place.parse().ok()?) };
            return Some((step, rest));
        }
        let (key, rest) = match text.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => text.split_at(text.find(['.', '[', ']', '"']).unwrap_or(text.len())),
        };
        (!key.is_empty()).then_some((Step::Key(key), rest))
    }
}

impl FieldPath {
    /// The steps of the path, outermost first.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let mut rest = self.0.as_str();
        std::iter::from_fn(move || {
            let (step, after) = Step::first(rest.strip_prefix('.').unwrap_or(rest))?;
            rest = after;
            Some(step)
        })
    }

    /// Every value the path leads to; an array at its end is one value.
    pub fn values<'a>(&self, payload: &'a Payload) -> Vec<&'a Value> {
        let mut steps = self.steps();
        let Some(Step::Key(key)) = steps.next() else { return Vec::new() };
        let mut values: Vec<&Value> = payload.get(key).into_iter().collect();
        for step in steps {
            values = match step {
                Step::Key(key) => values.into_iter().filter_map(|v| v.get(key)).collect(),
                Step::At(place) => values.into_iter().filter_map(|v| v.get(place)).collect(),
                Step::Every => values.into_iter().filter_map(Value::as_array).flatten().collect(),
            };
        }
        values
    }

    /// The path of the elements of the array here: `a` and `a[]` become `a[]`.
    fn elements(&self) -> FieldPath {
        if self.0.ends_with("[]") { self.clone() } else { FieldPath(format!("{}[]", self.0)) }
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many filters may lie within each other: in a log a filter is JSON, of up to four levels for each, and JSON is read down
/// to 127.
pub const FILTER_DEPTH_MAX: usize = 24;

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

/// What a filter is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The point's id; `None` inside a nested condition, where there is no point to ask.
    pub id: Option<PointId>,
    /// Its payload.
    pub payload: &'a Payload,
    /// Names of the vectors it has.
    pub vectors: &'a [String],
    /// Which fields are indexed, and how.
    pub fields: &'a BTreeMap<FieldPath, FieldType>,
}

impl Filter {
    /// How many filters lie within each other, this one among them.
    pub fn depth(&self) -> usize {
        let least = self.min_should.iter().flat_map(|least| &least.conditions);
        let within = self.must.iter().chain(&self.should).chain(&self.must_not).chain(least);
        let depths = within.filter_map(|condition| match condition {
            Condition::Filter(filter) | Condition::Nested { filter, .. } => Some(filter.depth()),
            _ => None,
        });
        1 + depths.max().unwrap_or(0)
    }

    /// Whether a point passes; a filter without conditions lets every point pass.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        self.passes(&|condition| condition.holds(subject, None))
    }

    fn passes(&self, holds: &impl Fn(&Condition) -> bool) -> bool {
        self.must.iter().all(holds)
            && (self.should.is_empty() || self.should.iter().any(holds))
            && !self.must_not.iter().any(holds)
            && self.min_should.as_ref().is_none_or(|m| {
                m.conditions.iter().filter(|c| holds(c)).take(m.min_count).count() == m.min_count
            })
    }
}

impl Condition {
    /// `outer`: the path of the array this condition looks into an element of, if it does.
    fn holds(&self, subject: &Subject<'_>, outer: Option<&FieldPath>) -> bool {
        match self {
            Condition::Field { path, test } => {
                let indexed = match outer {
                    None => subject.fields.get(path),
                    Some(outer) => subject.fields.get(&FieldPath(format!("{outer}.{path}"))),
                };
                test.holds(&path.values(subject.payload), indexed.copied())
            }
            Condition::HasId(ids) => subject.id.is_some_and(|id| ids.contains(&id)),
            Condition::HasVector(name) => subject.vectors.contains(name),
            Condition::IsEmpty(path) => is_empty(&path.values(subject.payload)),
            Condition::IsNull(path) => is_null(&path.values(subject.payload)),
            Condition::Filter(filter) => filter.passes(&|condition| condition.holds(subject, outer)),
            Condition::Nested { path, filter } => {
                let path = path.elements();
                let from_root = outer.map(|outer| FieldPath(format!("{outer}.{path}")));
                path.values(subject.payload).into_iter().filter_map(Value::as_object).any(|element| {
                    let inner = Subject { id: None, payload: element, vectors: &[], ..*subject };
                    filter.passes(&|c| c.holds(&inner, Some(from_root.as_ref().unwrap_or(&path))))
                })
            }
        }
    }
}

/// Whether the values at a path count as nothing: none, nulls and empty arrays.
pub fn is_empty(values: &[&Value]) -> bool {
    values.iter().all(|v| v.is_null() || v.as_array().is_some_and(Vec::is_empty))
}

/// Whether there is a null among the values at a path.
pub fn is_null(values: &[&Value]) -> bool {
    scalars(values).any(Value::is_null)
}

/// The values at a path, arrays taken apart (once: an array in an array stays).
pub fn scalars<'a>(values: &[&'a Value]) -> impl Iterator<Item = &'a Value> {
    values.iter().flat_map(|v| match v {
        Value::Array(elements) => elements.as_slice(),
        other => std::slice::from_ref(*other),
    })
}

/// The words of a text: lower-cased, split at all that is neither letter nor digit.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

impl Scalar {
    /// Whether a value is this one. With a UUID index, strings that are UUIDs compare as such.
    fn equals(&self, value: &Value, indexed: Option<FieldType>) -> bool {
        match (self, value) {
            (Scalar::Keyword(want), Value::String(got)) => {
                want == got
                    || indexed == Some(FieldType::Uuid)
                        && uuid::Uuid::try_parse(want).is_ok_and(|w| Ok(w) == uuid::Uuid::try_parse(got))
            }
            (Scalar::Integer(want), Value::Number(got)) => got.as_i64() == Some(*want),
            (Scalar::Bool(want), Value::Bool(got)) => want == got,
            _ => false,
        }
    }
}

impl FieldTest {
    /// Whether the values at a path pass.
    fn holds(&self, values: &[&Value], indexed: Option<FieldType>) -> bool {
        match self {
            FieldTest::Match(want) => scalars(values).any(|v| want.equals(v, indexed)),
            FieldTest::MatchAny(any) => {
                scalars(values).any(|v| any.iter().any(|want| want.equals(v, indexed)))
            }
            FieldTest::MatchExcept(except) => scalars(values)
                .any(|v| !v.is_null() && !except.iter().any(|unwanted| unwanted.equals(v, indexed))),
            FieldTest::Text(text) if indexed == Some(FieldType::Text) => {
                let mut wanted: BTreeSet<String> = words(text).collect();
                let some = !wanted.is_empty();
                for held in scalars(values).filter_map(Value::as_str).flat_map(words) {
                    wanted.remove(&held);
                }
                some && wanted.is_empty()
            }
            FieldTest::Text(text) => {
                scalars(values).filter_map(Value::as_str).any(|held| held.contains(text.as_str()))
            }
            FieldTest::Range(range) => {
                scalars(values).filter_map(Value::as_f64).any(|number| range.contains(&number))
            }
            FieldTest::DatetimeRange(range) => scalars(values)
                .filter_map(|v| parse_micros(v.as_str()?))
                .any(|instant| range.contains(&instant)),
            FieldTest::ValuesCount(range) if values.is_empty() => range.contains(&0),
            FieldTest::ValuesCount(range) => values.iter().any(|v| {
                range.contains(&match v {
                    Value::Null => 0,
                    Value::Array(elements) => elements.len() as u64,
                    _ => 1,
                })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn path(text: &str) -> FieldPath {
        text.parse().unwrap()
    }

    fn field(at: &str, test: FieldTest) -> Condition {
        Condition::Field { path: path(at), test }
    }

    fn passes(payload: &Value, fields: &[(&str, FieldType)], condition: Condition) -> bool {
        let fields = fields.iter().map(|(p, t)| (path(p), *t)).collect();
        let subject = Subject {
            id: Some(PointId::Num(7)),
            payload: payload.as_object().unwrap(),
            vectors: &["image".to_owned()],
            fields: &fields,
        };
        Filter { must: vec![condition], ..Filter::default() }.matches(&subject)
    }

    #[test]
    fn paths() {
        let payload = json!({"a": {"b": [{"c": 1}, {"c": [2, 3]}]}, "x.y": 4, "s": [5, 6]});
        let at = |text: &str| {
            let values = path(text).values(payload.as_object().unwrap());
            values.into_iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(at("a.b[].c"), [json!(1), json!([2, 3])]);
        assert_eq!(at("a.b[1].c[]"), [json!(2), json!(3)]);
        assert_eq!(at("\"x.y\""), [json!(4)]);
        assert_eq!(at("s"), [json!([5, 6])]);
        assert!(at("a.b.c").is_empty());
        for wrong in ["", ".", "a.", "a..b", "a[", "a[x]", "[]", "a[]b", "\"a"] {
            assert!(FieldPath::from_str(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn empty_and_null() {
        let p = json!({"price": 1, "none": null, "parts": [], "nulls": [null]});
        let empty = |at| passes(&p, &[], Condition::IsEmpty(path(at)));
        assert_eq!(
            ["price", "none", "parts", "nulls", "absent"].map(empty),
            [false, true, true, false, true]
        );
        let null = |at| passes(&p, &[], Condition::IsNull(path(at)));
        assert_eq!(
            ["price", "none", "parts", "nulls", "absent"].map(null),
            [false, true, false, true, false]
        );
    }

    #[test]
    fn tests_on_values() {
        let p = json!({"n": [1, 2.5], "s": "Red wine", "t": "2024-01-01T00:00:00Z", "ok": true,
            "u": "550e8400-e29b-41d4-a716-446655440000", "objects": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]});
        let holds = |at, test| passes(&p, &[], field(at, test));
        let keyword = |s: &str| Scalar::Keyword(s.into());
        assert!(holds("n", FieldTest::Match(Scalar::Integer(1))));
        assert!(!holds("n", FieldTest::Match(Scalar::Integer(2))));
        assert!(holds("n", FieldTest::Range(Range { gt: Some(2.0), ..Range::default() })));
        assert!(holds("n", FieldTest::MatchExcept([Scalar::Integer(1)].into())));
        assert!(!holds("ok", FieldTest::MatchExcept([Scalar::Bool(true)].into())));
        assert!(!holds("absent", FieldTest::MatchExcept([Scalar::Bool(true)].into())));
        assert!(holds("n", FieldTest::ValuesCount(Range { gte: Some(2), ..Range::default() })));
        assert!(holds("absent", FieldTest::ValuesCount(Range { lt: Some(1), ..Range::default() })));
        assert!(holds("t", FieldTest::DatetimeRange(Range { gte: Some(0), ..Range::default() })));
        assert!(holds("s", FieldTest::Text("d wi".into())));
        let worded =
            |text: &str| passes(&p, &[("s", FieldType::Text)], field("s", FieldTest::Text(text.into())));
        assert!(worded("WINE red") && !worded("d wi") && !worded("!"));
        let undashed = FieldTest::Match(keyword("550e8400e29b41d4a716446655440000"));
        assert!(!holds("u", undashed.clone()));
        assert!(passes(&p, &[("u", FieldType::Uuid)], field("u", undashed)));
        let both = |a, b| Condition::Nested {
            path: path("objects"),
            filter: Box::new(Filter {
                must: vec![
                    field("a", FieldTest::Match(Scalar::Integer(a))),
                    field("b", FieldTest::Match(Scalar::Integer(b))),
                ],
                ..Filter::default()
            }),
        };
        assert!(passes(&p, &[], both(1, 2)));
        assert!(!passes(&p, &[], both(1, 4)));
        assert!(passes(&p, &[], Condition::HasVector("image".into())));
        assert!(passes(&p, &[], Condition::HasId([PointId::Num(7)].into())));
    }

    #[test]
    fn clauses() {
        let yes = || Condition::HasId([PointId::Num(7)].into());
        let no = || Condition::HasId([PointId::Num(8)].into());
        let p = json!({});
        let all = |filter: Filter| passes(&p, &[], Condition::Filter(Box::new(filter)));
        assert!(all(Filter::default()));
        assert!(all(Filter { should: vec![no(), yes()], ..Filter::default() }));
        assert!(!all(Filter { should: vec![no()], ..Filter::default() }));
        assert!(!all(Filter { must_not: vec![yes()], ..Filter::default() }));
        let of = |min_count| Filter {
            min_should: Some(MinShould { conditions: vec![yes(), no(), yes()], min_count }),
            ..Filter::default()
        };
        assert!(all(of(2)) && !all(of(3)) && all(of(0)));
    }
}
