//! Vectors as users write them, read number by number into `f32` without a detour over JSON values.
//!
//! Invariants: every number is finite as `f32`; a name stands once; lists of lists (multi-dense vectors) and
//! objects to be embedded (documents, images) are told apart from vectors, and refused as not built.

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
            OneVector::Multi => Err(ApiError::unbuilt("a multi-dense vector (a list of lists)")),
            OneVector::Inference => Err(ApiError::unbuilt("a vector to be inferred from an object")),
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

/// A number that fits `f32`.
struct Float(f32);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        match Element::deserialize(d)? {
            Element::Number(number) => Ok(Float(number)),
            Element::List => Err(D::Error::custom("a list stands among numbers")),
        }
    }
}

/// What a vector's list holds.
enum Element {
    Number(f32),
    List,
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
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

        d.deserialize_any(ElementVisitor)
    }
}

/// Reads a list of numbers; a list of lists is read to its end and told.
fn numbers<'de, A: SeqAccess<'de>>(mut list: A) -> std::result::Result<OneVector, A::Error> {
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

        d.deserialize_any(OneVisitor)
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

        d.deserialize_any(PointVisitor)
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

impl<'de> Deserialize<'de> for Example {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct ExampleVisitor;

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

        d.deserialize_any(ExampleVisitor)
    }
}
