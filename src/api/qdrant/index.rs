//! Indexes over payload fields.
//!
//! What an index parameter says about memory or speed is accepted; what would change an answer and is not
//! built (another tokenizer, stop words, …) is refused.

use super::{Unbuilt, filter::field_path, points::acknowledged, refuse_unbuilt};
use crate::{
    api::{
        body::{At, Json},
        envelope::Reply,
        error::{ApiError, Result},
        wishes::Wishes,
    },
    cluster::Cluster,
    model::{FieldType, NAME_BYTES_MAX},
};
use axum::extract::State;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::fmt;

/// `PUT /collections/{collection}/index`
pub(super) async fn create(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<IndexBody>,
) -> Result<Reply> {
    let path = field_path("field_name", &body.field_name)?;
    let bytes = path.as_str().len();
    if bytes > NAME_BYTES_MAX {
        return Err(ApiError::invalid("field_name", format!("has {bytes} bytes, at most {NAME_BYTES_MAX}")));
    }
    let of = body.field_schema.into_model().map_err(|e| e.within("field_schema"))?;
    Ok(acknowledged(cluster.create_field_index(&collection, path, of, &wishes.write()).await?))
}

/// `DELETE /collections/{collection}/index/{field}`
pub(super) async fn delete(
    State(cluster): State<Cluster>,
    At((collection, field)): At<(String, String)>,
    wishes: Wishes,
) -> Result<Reply> {
    let path = field_path("field_name", &field)?;
    Ok(acknowledged(cluster.delete_field_index(&collection, path, &wishes.write()).await?))
}

/// Which field to index, and how.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IndexBody {
    field_name: String,
    field_schema: FieldSchema,
}

/// A type by its name alone, or with parameters.
struct FieldSchema(Parameters);

/// Every parameter an index of any type may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    r#type: IndexType,
    // About memory and speed alone: every test works on every index.
    #[serde(rename = "is_tenant")]
    _is_tenant: Option<bool>,
    #[serde(rename = "is_principal")]
    _is_principal: Option<bool>,
    #[serde(rename = "on_disk")]
    _on_disk: Option<bool>,
    #[serde(rename = "memory")]
    _memory: Option<IgnoredAny>,
    #[serde(rename = "enable_hnsw")]
    _enable_hnsw: Option<bool>,
    #[serde(rename = "lookup")]
    _lookup: Option<bool>,
    #[serde(rename = "range")]
    _range: Option<bool>,
    // About what matches. The values that mean what is done anyway are accepted.
    tokenizer: Option<String>,
    lowercase: Option<bool>,
    ascii_folding: Option<bool>,
    phrase_matching: Option<bool>,
    prefix: Option<bool>,
    min_token_len: Unbuilt,
    max_token_len: Unbuilt,
    stopwords: Unbuilt,
    stemmer: Unbuilt,
    scoring: Unbuilt,
    nested: Unbuilt,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum IndexType {
    Keyword,
    Integer,
    Float,
    Bool,
    Uuid,
    Datetime,
    Text,
    Geo,
}

impl FieldSchema {
    fn into_model(self) -> Result<FieldType> {
        let Parameters { r#type, tokenizer, lowercase, ascii_folding, phrase_matching, prefix, .. } = self.0;
        let unless = |usual: bool| (!usual).then_some(IgnoredAny);
        refuse_unbuilt([
            ("tokenizer", unless(tokenizer.is_none_or(|name| name == "word"))),
            ("lowercase", unless(lowercase != Some(false))),
            ("ascii_folding", unless(ascii_folding != Some(true))),
            ("phrase_matching", unless(phrase_matching != Some(true))),
            ("prefix", unless(prefix != Some(true))),
            ("min_token_len", self.0.min_token_len),
            ("max_token_len", self.0.max_token_len),
            ("stopwords", self.0.stopwords),
            ("stemmer", self.0.stemmer),
            ("scoring", self.0.scoring),
            ("nested", self.0.nested),
        ])?;
        match r#type {
            IndexType::Keyword => Ok(FieldType::Keyword),
            IndexType::Integer => Ok(FieldType::Integer),
            IndexType::Float => Ok(FieldType::Float),
            IndexType::Bool => Ok(FieldType::Bool),
            IndexType::Uuid => Ok(FieldType::Uuid),
            IndexType::Datetime => Ok(FieldType::Datetime),
            IndexType::Text => Ok(FieldType::Text),
            IndexType::Geo => Err(ApiError::unbuilt("type", "geo")),
        }
    }
}

/// The type's name in answers.
pub(super) fn type_name(of: FieldType) -> &'static str {
    match of {
        FieldType::Keyword => "keyword",
        FieldType::Integer => "integer",
        FieldType::Float => "float",
        FieldType::Bool => "bool",
        FieldType::Uuid => "uuid",
        FieldType::Datetime => "datetime",
        FieldType::Text => "text",
    }
}

impl<'de> Deserialize<'de> for FieldSchema {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct SchemaVisitor;

        impl<'de> Visitor<'de> for SchemaVisitor {
            type Value = FieldSchema;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an index type or an object with one")
            }

            fn visit_str<E: Error>(self, name: &str) -> std::result::Result<FieldSchema, E> {
                let only_type = [("type", name)].into_iter();
                let object = serde::de::value::MapDeserializer::new(only_type);
                Parameters::deserialize(object.into_deserializer()).map(FieldSchema)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<FieldSchema, A::Error> {
                Parameters::deserialize(MapAccessDeserializer::new(object)).map(FieldSchema)
            }
        }

        d.deserialize_any(SchemaVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    fn read(schema: &str) -> Result<FieldType> {
        let text = format!(r#"{{"field_name":"a","field_schema":{schema}}}"#);
        parse::<IndexBody>(text.as_bytes())?.field_schema.into_model()
    }

    #[test]
    fn types_by_name_and_with_parameters() {
        for (schema, of) in [
            (r#""keyword""#, FieldType::Keyword),
            (r#""integer""#, FieldType::Integer),
            (r#""float""#, FieldType::Float),
            (r#""bool""#, FieldType::Bool),
            (r#""uuid""#, FieldType::Uuid),
            (r#""datetime""#, FieldType::Datetime),
            (r#""text""#, FieldType::Text),
            (r#"{"type":"keyword","is_tenant":true,"on_disk":null,"memory":"cold"}"#, FieldType::Keyword),
            (r#"{"type":"integer","lookup":true,"range":false}"#, FieldType::Integer),
            (r#"{"type":"text","tokenizer":"word","lowercase":true,"ascii_folding":false}"#, FieldType::Text),
        ] {
            assert_eq!(read(schema).unwrap(), of, "{schema}");
        }
    }

    #[test]
    fn what_would_match_otherwise_is_refused() {
        for (schema, status, message) in [
            (r#""geo""#, 501, "type: geo is not implemented yet"),
            (r#"{"type":"text","tokenizer":"multilingual"}"#, 501, "tokenizer: is not"),
            (r#"{"type":"text","lowercase":false}"#, 501, "lowercase: is not"),
            (r#"{"type":"text","min_token_len":2}"#, 501, "min_token_len: is not"),
            (r#"{"type":"keyword","prefix":true}"#, 501, "prefix: is not"),
            (r#""colour""#, 400, "field_schema: unknown variant `colour`"),
            (r#"{"type":"text","colour":1}"#, 400, "field_schema.colour: unknown field `colour`"),
            (r#"7"#, 400, "field_schema: invalid type: integer `7`"),
            (r#"{}"#, 400, "field_schema: missing field `type`"),
        ] {
            assert_refused(read(schema), status, message, schema);
        }
    }
}
