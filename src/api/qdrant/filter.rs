//! Filters as users write them.
//!
//! A condition is read as one flat object of every field any condition may have; which fields are given tells
//! which condition it is. So an unknown field is named with its path, and nothing is guessed.

use super::{Unbuilt, refuse_unbuilt};
use crate::{
    api::error::{ApiError, Result},
    model::{
        self, Condition, FieldPath, FieldTest, PointId,
        datetime::parse_micros,
        filter::{FILTER_DEPTH_MAX, MinShould, Range, Scalar},
    },
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeSet, fmt, marker::PhantomData};

/// A filter: clauses that must all hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterBody {
    must: Option<OneOrMany<ConditionBody>>,
    should: Option<OneOrMany<ConditionBody>>,
    must_not: Option<OneOrMany<ConditionBody>>,
    min_should: Option<MinShouldBody>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MinShouldBody {
    conditions: Vec<ConditionBody>,
    min_count: usize,
}

/// Every field a condition may have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionBody {
    // A condition on a field.
    key: Option<String>,
    r#match: Option<MatchBody>,
    range: Option<RangeBody<Bound>>,
    values_count: Option<RangeBody<u64>>,
    geo_bounding_box: Unbuilt,
    geo_radius: Unbuilt,
    geo_polygon: Unbuilt,
    // Both a condition on a field (`{key, is_empty: true}`) and one of its own (`{is_empty: {key}}`).
    is_empty: Option<FlagOrField>,
    is_null: Option<FlagOrField>,
    // Conditions of their own.
    has_id: Option<BTreeSet<PointId>>,
    has_vector: Option<String>,
    nested: Option<NestedBody>,
    slice: Unbuilt,
    // A filter as condition.
    must: Option<OneOrMany<ConditionBody>>,
    should: Option<OneOrMany<ConditionBody>>,
    must_not: Option<OneOrMany<ConditionBody>>,
    min_should: Option<MinShouldBody>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchBody {
    value: Option<ScalarBody>,
    any: Option<Vec<ScalarBody>>,
    except: Option<Vec<ScalarBody>>,
    text: Option<String>,
    text_any: Unbuilt,
    phrase: Unbuilt,
    prefix: Unbuilt,
    substring: Unbuilt,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeBody<T> {
    lt: Option<T>,
    gt: Option<T>,
    lte: Option<T>,
    gte: Option<T>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NestedBody {
    key: String,
    filter: FilterBody,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldBody {
    key: String,
}

impl FilterBody {
    /// The filter. Errors: name the condition, relative to the filter.
    pub(super) fn into_model(self) -> Result<model::Filter> {
        let filter = self.of_any_depth()?;
        match filter.depth() {
            0..=FILTER_DEPTH_MAX => Ok(filter),
            depth => {
                let why =
                    format!("holds {depth} filters within each other, at most {FILTER_DEPTH_MAX} may be");
                Err(ApiError::invalid("", why))
            }
        }
    }

    fn of_any_depth(self) -> Result<model::Filter> {
        Ok(model::Filter {
            must: clause("must", self.must)?,
            should: clause("should", self.should)?,
            must_not: clause("must_not", self.must_not)?,
            min_should: self.min_should.map(MinShouldBody::into_model).transpose()?,
        })
    }
}

/// The filter in a request's `filter` field, if it is given.
pub(super) fn filter_field(filter: Option<FilterBody>) -> Result<Option<model::Filter>> {
    filter.map(FilterBody::into_model).transpose().map_err(|e| e.within("filter"))
}

fn clause(name: &str, conditions: Option<OneOrMany<ConditionBody>>) -> Result<Vec<Condition>> {
    list(name, conditions.map_or_else(Vec::new, |OneOrMany(conditions)| conditions))
}

fn list(name: &str, conditions: Vec<ConditionBody>) -> Result<Vec<Condition>> {
    let numbered = conditions.into_iter().enumerate();
    numbered.map(|(i, c)| c.into_model().map_err(|e| e.within(format!("{name}[{i}]")))).collect()
}

impl MinShouldBody {
    fn into_model(self) -> Result<MinShould> {
        let conditions = list("conditions", self.conditions).map_err(|e| e.within("min_should"))?;
        Ok(MinShould { conditions, min_count: self.min_count })
    }
}

impl ConditionBody {
    fn into_model(self) -> Result<Condition> {
        refuse_unbuilt([
            ("geo_bounding_box", self.geo_bounding_box),
            ("geo_radius", self.geo_radius),
            ("geo_polygon", self.geo_polygon),
            ("slice", self.slice),
        ])?;
        let is_filter = self.must.is_some()
            || self.should.is_some()
            || self.must_not.is_some()
            || self.min_should.is_some();
        let filter = is_filter.then_some(FilterBody {
            must: self.must,
            should: self.should,
            must_not: self.must_not,
            min_should: self.min_should,
        });
        let key = self.key.as_deref();
        let mut found = [
            self.r#match.map(|body| on_field(key, body.into_model().map_err(|e| e.within("match"))?)),
            self.range.map(|body| on_field(key, body.into_test().map_err(|e| e.within("range"))?)),
            self.values_count.map(|body| on_field(key, FieldTest::ValuesCount(body.into_model()))),
            self.is_empty.map(|body| body.into_model("is_empty", key, Condition::IsEmpty)),
            self.is_null.map(|body| body.into_model("is_null", key, Condition::IsNull)),
            self.has_id.map(|ids| alone(key, Condition::HasId(ids))),
            self.has_vector.map(|name| alone(key, Condition::HasVector(name))),
            self.nested.map(|body| alone(key, body.into_model().map_err(|e| e.within("nested"))?)),
            filter.map(|body| alone(key, Condition::Filter(Box::new(body.of_any_depth()?)))),
        ]
        .into_iter()
        .flatten();
        match (found.next(), found.next()) {
            (Some(condition), None) => condition,
            (None, _) => Err(ApiError::invalid("", "is no condition: it tests nothing")),
            (Some(_), Some(_)) => Err(ApiError::invalid("", "holds more than one condition")),
        }
    }
}

fn on_field(key: Option<&str>, test: FieldTest) -> Result<Condition> {
    let key = key.ok_or_else(|| ApiError::invalid("key", "is missing"))?;
    Ok(Condition::Field { path: field_path("key", key)?, test })
}

fn alone(key: Option<&str>, condition: Condition) -> Result<Condition> {
    match key {
        None => Ok(condition),
        Some(_) => Err(misplaced_key()),
    }
}

fn misplaced_key() -> ApiError {
    ApiError::invalid("key", "does not belong to this condition")
}

/// Checks a path into the payload.
pub(super) fn field_path(field: &str, text: &str) -> Result<FieldPath> {
    text.parse().map_err(|why: &str| ApiError::invalid(field, format!("\"{text}\": {why}")))
}

impl MatchBody {
    fn into_model(self) -> Result<FieldTest> {
        refuse_unbuilt([
            ("text_any", self.text_any),
            ("phrase", self.phrase),
            ("prefix", self.prefix),
            ("substring", self.substring),
        ])?;
        let set = |values: Vec<ScalarBody>| values.into_iter().map(|ScalarBody(value)| value).collect();
        let mut found = [
            self.value.map(|ScalarBody(value)| FieldTest::Match(value)),
            self.any.map(|values| FieldTest::MatchAny(set(values))),
            self.except.map(|values| FieldTest::MatchExcept(set(values))),
            self.text.map(FieldTest::Text),
        ]
        .into_iter()
        .flatten();
        match (found.next(), found.next()) {
            (Some(test), None) => Ok(test),
            _ => Err(ApiError::invalid("", "wants one of value, any, except, text")),
        }
    }
}

impl<T: Copy> RangeBody<T> {
    /// The range of what `of` makes of each bound; `None` if it makes nothing of one.
    fn map<U>(&self, of: impl Fn(T) -> Option<U>) -> Option<Range<U>> {
        let bound = |bound: Option<T>| bound.map_or(Some(None), |bound| of(bound).map(Some));
        Some(Range { lt: bound(self.lt)?, gt: bound(self.gt)?, lte: bound(self.lte)?, gte: bound(self.gte)? })
    }
}

impl RangeBody<u64> {
    fn into_model(self) -> Range<u64> {
        Range { lt: self.lt, gt: self.gt, lte: self.lte, gte: self.gte }
    }
}

impl RangeBody<Bound> {
    fn into_test(self) -> Result<FieldTest> {
        let numbers = self.map(Bound::number).map(FieldTest::Range);
        let instants = || self.map(Bound::micros).map(FieldTest::DatetimeRange);
        numbers.or_else(instants).ok_or_else(|| ApiError::invalid("", "mixes numbers and instants"))
    }
}

/// A bound of a range.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Number(f64),
    /// Microseconds since 1970 UTC.
    Instant(i64),
}

impl Bound {
    fn number(self) -> Option<f64> {
        match self {
            Bound::Number(number) => Some(number),
            Bound::Instant(_) => None,
        }
    }

    fn micros(self) -> Option<i64> {
        match self {
            Bound::Number(_) => None,
            Bound::Instant(micros) => Some(micros),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct BoundVisitor;

        impl Visitor<'_> for BoundVisitor {
            type Value = Bound;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or an RFC 3339 instant")
            }

            fn visit_f64<E: Error>(self, number: f64) -> std::result::Result<Bound, E> {
                Ok(Bound::Number(number))
            }

            fn visit_u64<E: Error>(self, number: u64) -> std::result::Result<Bound, E> {
                Ok(Bound::Number(number as f64))
            }

            fn visit_i64<E: Error>(self, number: i64) -> std::result::Result<Bound, E> {
                Ok(Bound::Number(number as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> std::result::Result<Bound, E> {
                let micros = parse_micros(text)
                    .ok_or_else(|| E::custom(format!("\"{text}\" is not an RFC 3339 instant")))?;
                Ok(Bound::Instant(micros))
            }
        }

        d.deserialize_any(BoundVisitor)
    }
}

/// A value that can be matched exactly.
#[derive(Debug)]
struct ScalarBody(Scalar);

impl<'de> Deserialize<'de> for ScalarBody {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = ScalarBody;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a signed 64-bit integer, true or false")
            }

            fn visit_str<E: Error>(self, text: &str) -> std::result::Result<ScalarBody, E> {
                Ok(ScalarBody(Scalar::Keyword(text.to_owned())))
            }

            fn visit_i64<E: Error>(self, number: i64) -> std::result::Result<ScalarBody, E> {
                Ok(ScalarBody(Scalar::Integer(number)))
            }

            fn visit_u64<E: Error>(self, number: u64) -> std::result::Result<ScalarBody, E> {
                let signed = number.try_into();
                signed
                    .map(|n| ScalarBody(Scalar::Integer(n)))
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
            }

            fn visit_bool<E: Error>(self, flag: bool) -> std::result::Result<ScalarBody, E> {
                Ok(ScalarBody(Scalar::Bool(flag)))
            }
        }

        d.deserialize_any(ScalarVisitor)
    }
}

/// `true` or `false` beside a key, or an object with the key.
#[derive(Debug)]
enum FlagOrField {
    Flag(bool),
    Field(String),
}

impl FlagOrField {
    fn into_model(
        self,
        name: &str,
        key: Option<&str>,
        condition: impl Fn(FieldPath) -> Condition,
    ) -> Result<Condition> {
        match (self, key) {
            (FlagOrField::Field(inner), None) => Ok(condition(field_path(&format!("{name}.key"), &inner)?)),
            (FlagOrField::Flag(true), Some(key)) => Ok(condition(field_path("key", key)?)),
            (FlagOrField::Flag(false), Some(key)) => {
                let must_not = vec![condition(field_path("key", key)?)];
                Ok(Condition::Filter(Box::new(model::Filter { must_not, ..Default::default() })))
            }
            (FlagOrField::Flag(_), None) => Err(ApiError::invalid("key", "is missing")),
            (FlagOrField::Field(_), Some(_)) => Err(misplaced_key()),
        }
    }
}

impl<'de> Deserialize<'de> for FlagOrField {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct FlagVisitor;

        impl<'de> Visitor<'de> for FlagVisitor {
            type Value = FlagOrField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or an object with a key")
            }

            fn visit_bool<E: Error>(self, flag: bool) -> std::result::Result<FlagOrField, E> {
                Ok(FlagOrField::Flag(flag))
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<FlagOrField, A::Error> {
                let body = FieldBody::deserialize(MapAccessDeserializer::new(object))?;
                Ok(FlagOrField::Field(body.key))
            }
        }

        d.deserialize_any(FlagVisitor)
    }
}

impl NestedBody {
    fn into_model(self) -> Result<Condition> {
        // `a` and `a[]` both mean the elements of the array at `a`.
        let path = field_path("key", self.key.strip_suffix("[]").unwrap_or(&self.key))?;
        let filter = self.filter.of_any_depth().map_err(|e| e.within("filter"))?;
        Ok(Condition::Nested { path, filter: Box::new(filter) })
    }
}

/// A list, or one thing that stands for a list of one.
#[derive(Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object or a list of them")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<OneOrMany<T>, A::Error> {
                let mut many = Vec::new();
                while let Some(one) = list.next_element()? {
                    many.push(one);
                }
                Ok(OneOrMany(many))
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<OneOrMany<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(object)).map(|one| OneOrMany(vec![one]))
            }
        }

        d.deserialize_any(ListVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    fn read(condition: &str) -> Result<Condition> {
        let filter = read_filter(&format!(r#"{{"must":{condition}}}"#))?;
        let [condition] = filter.must.try_into().unwrap();
        Ok(condition)
    }

    fn read_filter(text: &str) -> Result<model::Filter> {
        parse::<FilterBody>(text.as_bytes())?.into_model()
    }

    fn path(text: &str) -> FieldPath {
        text.parse().unwrap()
    }

    fn on(key: &str, test: FieldTest) -> Condition {
        Condition::Field { path: path(key), test }
    }

    fn keyword(text: &str) -> Scalar {
        Scalar::Keyword(text.to_owned())
    }

    #[test]
    fn filters_lie_within_each_other_as_deep_as_a_log_is_read() {
        // The most levels of JSON a filter: `min_should`, and an array of objects.
        let within = |filter: String, number: usize| match number % 2 {
            0 => format!(r#"{{"min_should":{{"min_count":1,"conditions":[{filter}]}}}}"#),
            _ => format!(r#"{{"must":{{"nested":{{"key":"a","filter":{filter}}}}}}}"#),
        };
        let deep = |depth: usize| (1..depth).fold(r#"{"must":{"is_null":{"key":"a"}}}"#.to_owned(), within);
        let deepest = read_filter(&deep(FILTER_DEPTH_MAX)).expect("as deep as may be");
        assert_eq!(deepest.depth(), FILTER_DEPTH_MAX);
        let command = model::Command {
            collection: model::CollectionId(1),
            schema_version: 1,
            epoch: model::Epoch(1),
            request: None,
            born: model::Position(0),
            body: model::Body::DeleteMatching(deepest),
        };
        assert_eq!(model::Command::decode(&command.encode()).expect("its own bytes"), command);
        let why = "holds 25 filters within each other, at most 24 may be";
        assert_refused(read_filter(&deep(FILTER_DEPTH_MAX + 1)), 400, why, "one deeper");
    }

    #[test]
    fn every_condition() {
        let none = Range::default();
        let not_empty = model::Filter { must_not: vec![Condition::IsEmpty(path("a"))], ..Default::default() };
        let only_a = model::Filter { must: vec![Condition::IsNull(path("a"))], ..Default::default() };
        for (text, condition) in [
            (r#"{"key":"a","match":{"value":"x"}}"#, on("a", FieldTest::Match(keyword("x")))),
            (r#"{"key":"a","match":{"value":-7}}"#, on("a", FieldTest::Match(Scalar::Integer(-7)))),
            (r#"{"key":"a","match":{"value":true}}"#, on("a", FieldTest::Match(Scalar::Bool(true)))),
            (
                r#"{"key":"a.b[].c","match":{"any":["x","y","x"]}}"#,
                on("a.b[].c", FieldTest::MatchAny([keyword("x"), keyword("y")].into())),
            ),
            (r#"{"key":"a","match":{"any":[]}}"#, on("a", FieldTest::MatchAny([].into()))),
            (
                r#"{"key":"a","match":{"except":[1]}}"#,
                on("a", FieldTest::MatchExcept([Scalar::Integer(1)].into())),
            ),
            (r#"{"key":"a","match":{"text":"two words"}}"#, on("a", FieldTest::Text("two words".into()))),
            (
                r#"{"key":"a","range":{"gt":1,"lte":2.5,"lt":null}}"#,
                on("a", FieldTest::Range(Range { gt: Some(1.0), lte: Some(2.5), ..Default::default() })),
            ),
            (
                r#"{"key":"a","range":{"gte":"1970-01-01T00:00:01Z"}}"#,
                on("a", FieldTest::DatetimeRange(Range { gte: Some(1_000_000), ..Default::default() })),
            ),
            (r#"{"key":"a","range":{}}"#, on("a", FieldTest::Range(none))),
            (
                r#"{"key":"a","values_count":{"gte":2}}"#,
                on("a", FieldTest::ValuesCount(Range { gte: Some(2), ..Default::default() })),
            ),
            (r#"{"is_empty":{"key":"a"}}"#, Condition::IsEmpty(path("a"))),
            (r#"{"key":"a","is_empty":true}"#, Condition::IsEmpty(path("a"))),
            (r#"{"key":"a","is_empty":false}"#, Condition::Filter(Box::new(not_empty))),
            (r#"{"is_null":{"key":"a"}}"#, Condition::IsNull(path("a"))),
            (
                r#"{"has_id":[2,1,"550e8400e29b41d4a716446655440000"]}"#,
                Condition::HasId(
                    [PointId::Num(1), PointId::Num(2), PointId::Uuid(0x550e8400_e29b_41d4_a716_446655440000)]
                        .into(),
                ),
            ),
            (r#"{"has_vector":"v"}"#, Condition::HasVector("v".into())),
            (
                r#"{"nested":{"key":"list[]","filter":{"must":{"is_null":{"key":"a"}}}}}"#,
                Condition::Nested { path: path("list"), filter: Box::new(only_a.clone()) },
            ),
            (r#"{"must":[{"is_null":{"key":"a"}}]}"#, Condition::Filter(Box::new(only_a))),
        ] {
            assert_eq!(read(text).unwrap(), condition, "{text}");
            assert_eq!(read(&format!("[{text}]")).unwrap(), condition, "{text}");
        }
    }

    #[test]
    fn every_clause() {
        let a = Condition::HasVector("a".into());
        let text = r#"{"must":[{"has_vector":"a"}],"should":{"has_vector":"a"},"must_not":null,
            "min_should":{"conditions":[{"has_vector":"a"}],"min_count":1}}"#;
        let filter = model::Filter {
            must: vec![a.clone()],
            should: vec![a.clone()],
            must_not: vec![],
            min_should: Some(MinShould { conditions: vec![a], min_count: 1 }),
        };
        assert_eq!(read_filter(text).unwrap(), filter);
        assert_eq!(read_filter("{}").unwrap(), model::Filter::default());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (text, status, message) in [
            (
                r#"{"must":[{"key":"a","match":{"value":1.5}}]}"#,
                400,
                "must[0].match.value: invalid type: floating point",
            ),
            (
                r#"{"must":[{"key":"a","match":{"value":18446744073709551615}}]}"#,
                400,
                "must[0].match.value: invalid value",
            ),
            (r#"{"must":[{"key":"a","match":{"value":1,"text":"x"}}]}"#, 400, "must[0].match: wants one of"),
            (
                r#"{"must":[{"key":"a","match":{"valeu":1}}]}"#,
                400,
                "must[0].match.valeu: unknown field `valeu`",
            ),
            (r#"{"must":[{"match":{"value":1}}]}"#, 400, "must[0].key: is missing"),
            (r#"{"must":[{"key":"","match":{"value":1}}]}"#, 400, "must[0].key: \"\": a path is"),
            (r#"{"must":[{"key":"a..b","range":{}}]}"#, 400, "must[0].key: \"a..b\": a path is"),
            (r#"{"must":[{"key":"a"}]}"#, 400, "must[0]: is no condition"),
            (r#"{"must":[{}]}"#, 400, "must[0]: is no condition"),
            (
                r#"{"must":[{"key":"a","match":{"value":1},"range":{"gt":1}}]}"#,
                400,
                "must[0]: holds more than one",
            ),
            (r#"{"must":[{"key":"a","has_id":[1]}]}"#, 400, "must[0].key: does not belong"),
            (r#"{"must":[{"key":"a","is_null":{"key":"b"}}]}"#, 400, "must[0].key: does not belong"),
            (r#"{"must":[{"is_null":true}]}"#, 400, "must[0].key: is missing"),
            (
                r#"{"must":[{"key":"a","range":{"gt":"soon"}}]}"#,
                400,
                "must[0].range.gt: \"soon\" is not an RFC 3339",
            ),
            (
                r#"{"must":[{"key":"a","range":{"gt":1,"lt":"2024-01-01"}}]}"#,
                400,
                "must[0].range: mixes numbers",
            ),
            (
                r#"{"must":[{"key":"a","values_count":{"gt":-1}}]}"#,
                400,
                "must[0].values_count.gt: invalid value",
            ),
            (r#"{"must":[{"has_id":[-1]}]}"#, 400, "must[0].has_id[0]: invalid type"),
            (r#"{"must":[{"has_id":["x"]}]}"#, 400, "must[0].has_id[0]: value x is not a valid point ID"),
            (r#"{"musts":[]}"#, 400, "musts: unknown field `musts`"),
            (
                r#"{"should":[{"has_vector":"a"},{"must_not":[{"colour":1}]}]}"#,
                400,
                "should[1].must_not[0].colour: unknown field",
            ),
            (
                r#"{"min_should":{"conditions":[{}],"min_count":1}}"#,
                400,
                "min_should.conditions[0]: is no condition",
            ),
            (
                r#"{"must":[{"nested":{"key":"a","filter":{"must":[{}]}}}]}"#,
                400,
                "must[0].nested.filter.must[0]: is no",
            ),
            (
                r#"{"must":[{"key":"a","match":{"phrase":"x"}}]}"#,
                501,
                "must[0].match.phrase: is not implemented yet",
            ),
            (r#"{"must":[{"key":"a","match":{"text_any":"x"}}]}"#, 501, "must[0].match.text_any: is not"),
            (
                r#"{"must":[{"key":"a","geo_radius":{"center":{},"radius":1}}]}"#,
                501,
                "must[0].geo_radius: is not",
            ),
            (r#"{"must":[{"slice":{}}]}"#, 501, "must[0].slice: is not"),
        ] {
            assert_refused(read_filter(text), status, message, text);
        }
    }
}
