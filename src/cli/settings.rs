//! What a collection's points look like: as much of its settings as travels with its points.
//!
//! Not here: shards, copies and how vectors are indexed, which are the matter of the cluster that a collection is on.

use super::{
    row::{Content, Row},
    server::Failure,
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// Vectors, and the fields of the payload that are indexed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Dense vectors by name; the unnamed one has the name `""`.
    pub(super) vectors: BTreeMap<String, Dense>,
    #[serde(default)]
    pub(super) sparse_vectors: Vec<String>,
    /// Type by field.
    #[serde(default)]
    pub(super) payload_indexes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dense {
    pub(super) size: usize,
    pub(super) distance: Distance,
}

/// How near two vectors are, as Qdrant's REST names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Distance {
    Cosine,
    Dot,
    Euclid,
    Manhattan,
}

/// Types of payload indexes that Annal builds.
const INDEXED: [&str; 7] = ["keyword", "integer", "float", "bool", "uuid", "datetime", "text"];

impl Settings {
    /// One dense vector.
    pub(super) fn of_vector(name: &str, size: usize, distance: Distance) -> Self {
        Settings { vectors: [(name.to_owned(), Dense { size, distance })].into(), ..Settings::default() }
    }

    /// What a point shows of them; numbers without a name belong to the vector `name`.
    pub(super) fn of_row(row: &Row, name: &str, distance: Distance) -> Result<Self, Failure> {
        let written: Value = match &row.vector {
            Content::Dense(numbers) => return Ok(Settings::of_vector(name, numbers.len(), distance)),
            Content::Written(text) => serde_json::from_str(text.get())?,
            Content::Elsewhere => return Err("the first point was not fetched".into()),
        };
        let mut settings = Settings::default();
        match written {
            Value::Array(numbers) => return Ok(Settings::of_vector(name, numbers.len(), distance)),
            Value::Object(vectors) => {
                for (name, vector) in vectors {
                    match vector {
                        Value::Array(numbers) => {
                            settings.vectors.insert(name, Dense { size: numbers.len(), distance });
                        }
                        _ => settings.sparse_vectors.push(name),
                    }
                }
            }
            _ => {}
        }
        Ok(settings)
    }

    /// Read from what a server says of a collection; also what of it cannot be had here.
    ///
    /// Errors: a vector that Annal cannot hold, or an answer that is not Qdrant's.
    pub(super) fn of_collection(result: &Value) -> Result<(Self, Vec<String>), Failure> {
        let params = &result["config"]["params"];
        let mut settings = Settings::default();
        let vectors = match &params["vectors"] {
            Value::Object(one) if one.get("size").is_some_and(Value::is_number) => {
                Map::from_iter([(String::new(), Value::Object(one.clone()))])
            }
            Value::Object(named) => named.clone(),
            _ => Map::new(),
        };
        for (name, mut vector) in vectors {
            if !vector["multivector_config"].is_null() {
                return Err(format!("vector \"{name}\" is a multivector: that is not implemented yet").into());
            }
            let read = |value: Value| serde_json::from_value::<Dense>(value);
            let dense = read(json!({"size": vector["size"].take(), "distance": vector["distance"].take()}));
            let dense = dense.map_err(|e| format!("vector \"{name}\" of the collection: {e}"))?;
            settings.vectors.insert(name, dense);
        }
        settings.sparse_vectors = keys(&params["sparse_vectors"]);
        let mut lacking = Vec::new();
        for field in keys(&result["payload_schema"]) {
            match result["payload_schema"][&field]["data_type"].as_str() {
                Some(kind) if INDEXED.contains(&kind) => {
                    settings.payload_indexes.insert(field, kind.to_owned());
                }
                kind => lacking.push(format!("no index of type {} on {field}", kind.unwrap_or("unknown"))),
            }
        }
        Ok((settings, lacking))
    }

    /// Reads what an export wrote.
    ///
    /// Errors: names the file, and the field.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()).into())
    }

    /// As text to be read again.
    pub(super) fn written(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("keys are strings");
        text + "\n"
    }

    /// The body of `PUT /collections/…`.
    pub(super) fn creation(&self) -> Value {
        let sparse: Map<_, _> = self.sparse_vectors.iter().map(|name| (name.clone(), json!({}))).collect();
        let mut body = match self.vectors.get("") {
            Some(unnamed) if self.vectors.len() == 1 => json!({ "vectors": unnamed }),
            _ => json!({ "vectors": self.vectors }),
        };
        if !sparse.is_empty() {
            body["sparse_vectors"] = Value::Object(sparse);
        }
        body
    }
}

fn keys(of: &Value) -> Vec<String> {
    of.as_object().map_or_else(Vec::new, |object| object.keys().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    fn settings(text: &str) -> Settings {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_servers_say_of_a_collection() {
        // As Qdrant 1.x answers; what Annal says has fewer fields.
        let named = json!({"status": "green", "config": {"params": {
            "vectors": {"a": {"size": 4, "distance": "Dot", "on_disk": true, "datatype": "float16"},
                        "b": {"size": 2, "distance": "Manhattan", "multivector_config": null}},
            "sparse_vectors": {"s": {"index": {"on_disk": false}, "modifier": "idf"}}, "shard_number": 6}},
            "payload_schema": {"pos": {"data_type": "keyword", "points": 9}, "at": {"data_type": "geo", "points": 0}}});
        let (found, lacking) = Settings::of_collection(&named).unwrap();
        let wanted = settings(
            r#"{"vectors": {"a": {"size": 4, "distance": "Dot"}, "b": {"size": 2, "distance": "Manhattan"}},
                "sparse_vectors": ["s"], "payload_indexes": {"pos": "keyword"}}"#,
        );
        assert_eq!(found, wanted);
        assert_eq!(lacking, ["no index of type geo on at"]);
        assert_eq!(
            found.creation(),
            json!({"vectors": {"a": {"size": 4, "distance": "Dot"}, "b": {"size": 2, "distance": "Manhattan"}},
                   "sparse_vectors": {"s": {}}})
        );
        assert_eq!(settings(&found.written()), found);

        let unnamed = json!({"config": {"params": {"vectors": {"size": 3, "distance": "Cosine"}}}});
        let (found, _) = Settings::of_collection(&unnamed).unwrap();
        assert_eq!(found, Settings::of_vector("", 3, Distance::Cosine));
        assert_eq!(found.creation(), json!({"vectors": {"size": 3, "distance": "Cosine"}}));

        let bad = |vectors: Value| {
            let result = json!({"config": {"params": {"vectors": vectors}}});
            Settings::of_collection(&result).unwrap_err().to_string()
        };
        let several =
            json!({"m": {"size": 3, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}});
        assert!(bad(several).contains("\"m\" is a multivector"));
        assert!(bad(json!({"size": 3, "distance": "Hamming"})).contains("Hamming"));
    }

    #[test]
    fn what_a_point_shows() {
        let of = |vector: Content| {
            let row = Row { place: 1, id: "1".into(), vector, payload: None };
            Settings::of_row(&row, "x", Distance::Dot).unwrap()
        };
        let written = |text: &str| of(Content::Written(RawValue::from_string(text.to_owned()).unwrap()));
        assert_eq!(of(Content::Dense(vec![1.0; 5])), Settings::of_vector("x", 5, Distance::Dot));
        assert_eq!(written("[1,2]"), Settings::of_vector("x", 2, Distance::Dot));
        assert_eq!(
            written(r#"{"a":[1],"s":{"indices":[1],"values":[2]}}"#),
            settings(r#"{"vectors": {"a": {"size": 1, "distance": "Dot"}}, "sparse_vectors": ["s"]}"#)
        );
    }
}
