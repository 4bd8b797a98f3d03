//! Vectors as users write them, read into `f32` without a detour over JSON values: plain lists at once (`numbers`), all else
//! number by number.
//!
//! Invariants: every number is finite as `f32`; a name stands once; lists of lists (multi-dense vectors) and
//! objects to be embedded (documents, images) are told apart from vectors, and refused as not built.

use super::numbers::list_or;
use crate::{
    api::error::{ApiError, Result},
    model::{PointId, SparseVector, Vector, Vectors},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt};

/// One vector.
#[derive(Debug, PartialEq)]
pub(super) enum OneVector {
    Dense(Vec<f32>),
    Sparse(SparseVector),
    /// A list of lists.
    Multi,
    /// An object to be embedded.
    Inference,
}

/// The vectors of one point.
#[derive(Debug, PartialEq)]
pub(super) enum PointVectors {
    Unnamed(OneVector),
    Named(BTreeMap<String, OneVector>),
}

/// The vectors of many points, column by column.
#[derive(Debug, PartialEq)]
pub(super) enum BatchVectors {
    Unnamed(Vec<OneVector>),
    Named(BTreeMap<String, Vec<OneVector>>),
}

/// What a query is near to.
#[derive(Debug, PartialEq)]
pub(super) enum Example {
    Vector(OneVector),
    Id(PointId),
}

impl OneVector {
    /// The vector, if its kind is built.
    pub(super) fn into_model(self) -> Result<Vector> {
        match self {
            OneVector::Dense(values) => Ok(Vector::Dense(values)),
            OneVector::Sparse(sparse) => Ok(Vector::Sparse(sparse)),
            OneVector::Multi => Err(ApiError::unbuilt("", "a multi-dense vector (a list of lists)")),
            OneVector::Inference => Err(ApiError::unbuilt("", "a vector to be inferred from an object")),
        }
    }
}

impl PointVectors {
    /// The vectors by name.
    ///
    /// Errors: name the vector, relative to the point's `vector`.
    pub(super) fn into_model(self) -> Result<Vectors> {
        match self {
            PointVectors::Unnamed(vector) => Ok([(String::new(), vector.into_model()?)].into()),
            PointVectors::Named(vectors) => vectors
                .into_iter()
                .map(|(name, vector)| match vector.into_model() {
                    Ok(vector) => Ok((name, vector)),
                    Err(e) => Err(e.within(name)),
                })
                .collect(),
        }
    }
}

/// What a vector's list holds.
enum Element {
    Number(f32),
    List,
}

/// A number that fits `f32`.
struct Float(f32);

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E: Error>(self, number: f64) -> std::result::Result<Element, E> {
        let rounded = number as f32;
        if rounded.is_finite() {
            Ok(Element::Number(rounded))
        } else {
            Err(E::custom(format!("number {number:e} does not fit a 32-bit float")))
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> std::result::Result<Element, E> {
        Ok(Element::Number(number as f32))
    }

    fn visit_i64<E: Error>(self, number: i64) -> std::result::Result<Element, E> {
        Ok(Element::Number(number as f32))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Element, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element::List)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        d.deserialize_any(ElementVisitor)
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        match d.deserialize_any(ElementVisitor)? {
            Element::Number(number) => Ok(Float(number)),
            Element::List => Err(D::Error::custom("a list stands among numbers")),
        }
    }
}

/// Reads a list of numbers; a list of lists is read to its end and told.
pub(super) fn numbers<'de, A: SeqAccess<'de>>(mut list: A) -> std::result::Result<OneVector, A::Error> {
    let mut values = Vec::new();
    match list.next_element()? {
        None => return Ok(OneVector::Dense(values)),
        Some(Element::Number(first)) => values.push(first),
        Some(Element::List) => {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(OneVector::Multi);
        }
    }
    while let Some(Float(number)) = list.next_element()? {
        values.push(number);
    }
    Ok(OneVector::Dense(values))
}

/// Every field an object in a vector's place may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VectorObject {
    indices: Option<Vec<u32>>,
    values: Option<Vec<Float>>,
    text: Option<IgnoredAny>,
    image: Option<IgnoredAny>,
    object: Option<IgnoredAny>,
    #[serde(rename = "model")]
    _model: Option<IgnoredAny>,
    #[serde(rename = "options")]
    _options: Option<IgnoredAny>,
}

impl VectorObject {
    fn into_vector<E: Error>(self) -> std::result::Result<OneVector, E> {
        if self.text.is_some() || self.image.is_some() || self.object.is_some() {
            return Ok(OneVector::Inference);
        }
        let indices = self.indices.ok_or_else(|| E::missing_field("indices"))?;
        let values = self.values.ok_or_else(|| E::missing_field("values"))?;
        if indices.len() != values.len() {
            return Err(E::custom(format!("{} values for {} indices", values.len(), indices.len())));
        }
        let values = values.into_iter().map(|Float(value)| value).collect();
        Ok(OneVector::Sparse(SparseVector { indices, values }))
    }
}

impl<'de> Deserialize<'de> for OneVector {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct OneVisitor;

        impl<'de> Visitor<'de> for OneVisitor {
            type Value = OneVector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers or {indices, values}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<OneVector, A::Error> {
                numbers(list)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<OneVector, A::Error> {
                VectorObject::deserialize(MapAccessDeserializer::new(object))?.into_vector()
            }
        }

        list_or(d, OneVector::Dense, OneVisitor)
    }
}

/// Reads an object name by name, each once.
fn named<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    mut object: A,
) -> std::result::Result<BTreeMap<String, T>, A::Error> {
    let mut vectors = BTreeMap::new();
    while let Some(name) = object.next_key::<String>()? {
        if vectors.contains_key(&name) {
            return Err(A::Error::custom(format!("vector name `{name}` stands twice")));
        }
        let vector = object.next_value()?;
        vectors.insert(name, vector);
    }
    Ok(vectors)
}

impl<'de> Deserialize<'de> for PointVectors {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct PointVisitor;

        impl<'de> Visitor<'de> for PointVisitor {
            type Value = PointVectors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers or an object of named vectors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<PointVectors, A::Error> {
                numbers(list).map(PointVectors::Unnamed)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<PointVectors, A::Error> {
                named(object).map(PointVectors::Named)
            }
        }

        list_or(d, |values| PointVectors::Unnamed(OneVector::Dense(values)), PointVisitor)
    }
}

impl<'de> Deserialize<'de> for BatchVectors {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct BatchVisitor;

        impl<'de> Visitor<'de> for BatchVisitor {
            type Value = BatchVectors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of vectors or an object of named lists of vectors")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<BatchVectors, A::Error> {
                let mut rows = Vec::new();
                while let Some(row) = list.next_element()? {
                    rows.push(row);
                }
                Ok(BatchVectors::Unnamed(rows))
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<BatchVectors, A::Error> {
                named(object).map(BatchVectors::Named)
            }
        }

        d.deserialize_any(BatchVisitor)
    }
}

/// Reads what a query is near to.
pub(super) struct ExampleVisitor;

impl<'de> Visitor<'de> for ExampleVisitor {
    type Value = Example;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vector or a point id")
    }

    fn visit_u64<E: Error>(self, id: u64) -> std::result::Result<Example, E> {
        Ok(Example::Id(PointId::Num(id)))
    }

    fn visit_str<E: Error>(self, id: &str) -> std::result::Result<Example, E> {
        PointId::deserialize(serde::de::value::StrDeserializer::new(id)).map(Example::Id)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<Example, A::Error> {
        numbers(list).map(Example::Vector)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<Example, A::Error> {
        let object = VectorObject::deserialize(MapAccessDeserializer::new(object))?;
        object.into_vector().map(Example::Vector)
    }
}

impl<'de> Deserialize<'de> for Example {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        list_or(d, Example::list, ExampleVisitor)
    }
}

impl Example {
    /// A vector of these numbers.
    pub(super) fn list(values: Vec<f32>) -> Self {
        Example::Vector(OneVector::Dense(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    fn read(text: &str) -> Result<Vectors> {
        parse::<PointVectors>(text.as_bytes())?.into_model()
    }

    fn dense(values: &[f32]) -> Vector {
        Vector::Dense(values.to_vec())
    }

    #[test]
    fn vectors_of_a_point() {
        let sparse = Vector::Sparse(SparseVector { indices: vec![7, 3], values: vec![0.5, 1.0] });
        for (text, vectors) in [
            ("[1, -2.5, 0.1, 3e-45, 16777217]", vec![("", dense(&[1.0, -2.5, 0.1, 3e-45, 16_777_216.0]))]),
            ("[]", vec![("", dense(&[]))]),
            (r#"{"a":[1],"b":[2,3]}"#, vec![("a", dense(&[1.0])), ("b", dense(&[2.0, 3.0]))]),
            (
                r#"{"a":[1],"s":{"indices":[7,3],"values":[0.5,1]}}"#,
                vec![("a", dense(&[1.0])), ("s", sparse)],
            ),
            (r#"{"text":[1]}"#, vec![("text", dense(&[1.0]))]),
            ("{}", vec![]),
        ] {
            let vectors = vectors.into_iter().map(|(name, v)| (name.to_owned(), v)).collect();
            assert_eq!(read(text).unwrap(), vectors, "{text}");
        }
    }

    #[test]
    fn what_is_no_vector_is_named() {
        for (text, status, message) in [
            ("[1, \"x\"]", 400, "[1]: invalid type: string \"x\", expected a number"),
            ("[1, null]", 400, "[1]: invalid type: null, expected a number"),
            ("[1e39]", 400, "[0]: number 1e39 does not fit a 32-bit float"),
            ("[1e400]", 400, "[0]: number out of range"),
            ("[NaN]", 400, "[0]: expected value"),
            ("[Infinity]", 400, "[0]: expected value"),
            ("[1, [2]]", 400, "[1]: a list stands among numbers"),
            ("7", 400, "Format error in JSON body: invalid type: integer `7`, expected a list of numbers"),
            (r#"{"a":[1],"a":[2]}"#, 400, "Format error in JSON body: vector name `a` stands twice"),
            (r#"{"a":"x"}"#, 400, "a: invalid type: string"),
            (r#"{"s":{"indices":[1],"values":[1,2]}}"#, 400, "s: 2 values for 1 indices"),
            (r#"{"s":{"indices":[1]}}"#, 400, "s: missing field `values`"),
            (r#"{"s":{"indices":[-1],"values":[1]}}"#, 400, "s.indices[0]: invalid value"),
            (r#"{"s":{"indexes":[1]}}"#, 400, "s.indexes: unknown field `indexes`"),
            ("[[1,2],[3,4]]", 501, "a multi-dense vector (a list of lists) is not implemented yet"),
            (r#"{"a":[[1,2],[3,4]]}"#, 501, "a: a multi-dense vector"),
            (r#"{"a":{"text":"hello","model":"m"}}"#, 501, "a: a vector to be inferred"),
        ] {
            assert_refused(read(text), status, message, text);
        }
    }

    #[test]
    fn columns() {
        let read = |text: &str| parse::<BatchVectors>(text.as_bytes());
        let row = |v: f32| OneVector::Dense(vec![v]);
        assert_eq!(read("[[1],[2]]").unwrap(), BatchVectors::Unnamed(vec![row(1.0), row(2.0)]));
        let named = BatchVectors::Named([("a".to_owned(), vec![row(1.0), row(2.0)])].into());
        assert_eq!(read(r#"{"a":[[1],[2]]}"#).unwrap(), named);
        let error = read(r#"{"a":[[1],["x"]]}"#).unwrap_err();
        assert!(error.to_string().starts_with("a[1][0]: invalid type"), "{error}");
    }

    #[test]
    fn every_float_survives_the_way_in_and_out() {
        for bits in (0..=u32::MAX).step_by(104_729) {
            let value = f32::from_bits(bits);
            if value.is_finite() {
                let text = serde_json::to_string(&[value]).unwrap();
                assert_eq!(read(&text).unwrap()[""], dense(&[value]), "{text}");
            }
        }
    }
}
