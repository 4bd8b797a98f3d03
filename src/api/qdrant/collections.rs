//! Creating, changing, describing and dropping collections.
//!
//! [`CollectionSpec::passthrough`] holds Qdrant's settings under the names a creator uses (`optimizers_config`,
//! …), those of single vectors under `vectors` and `sparse_vectors` by name.

use super::{
    Unbuilt,
    aliases::resolved,
    index::type_name,
    refuse_unbuilt,
    settings::{
        Dense, DenseChange, Hnsw, Optimizers, Placement, Quantization, Sparse, Wal, check_nesting, lay_over,
        residence,
    },
    within,
};
use crate::{
    api::{
        body::{At, Json, parse_value},
        envelope::Reply,
        error::{ApiError, Result},
        wishes::Wishes,
    },
    cluster::{Cluster, CollectionChange, CollectionInfo, CollectionSpec},
    model::{HnswParams, Kind, Residence, SparseParams, VectorParams},
};
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Longest name of a collection or a vector, in characters.
const NAME_CHARS_MAX: usize = 255;
const SHARDS_MAX: u32 = 64;
const COPIES_MAX: u32 = 16;
const COPIES_DEFAULT: u32 = 3;

/// `GET /collections`
pub(super) async fn list(State(cluster): State<Cluster>, wishes: Wishes) -> Result<Reply> {
    let names = cluster.collections(&wishes.read()).await?;
    let collections: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
    Ok(Reply::new(&json!({"collections": collections})))
}

/// `GET /collections/{collection}/exists`
pub(super) async fn exists(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
) -> Result<Reply> {
    let exists = match resolved(&cluster, collection, &wishes.read()).await {
        Err(error) if error.kind != Kind::NotFound => return Err(error),
        found => found.is_ok(),
    };
    Ok(Reply::new(&json!({"exists": exists})))
}

/// `GET /collections/{collection}`
pub(super) async fn info(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
) -> Result<Reply> {
    let seen = cluster.collection(&collection, &wishes.read()).await?;
    Ok(Reply::new(&described(&seen.value)).seen(seen))
}

/// `PUT /collections/{collection}`
pub(super) async fn create(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<CreateBody>,
) -> Result<Reply> {
    check_name("collection name", &collection)?;
    let written = cluster.create_collection(&collection, body.into_model()?, &wishes.write()).await?;
    Ok(Reply::new(&true).wrote(written))
}

/// `PATCH /collections/{collection}`
pub(super) async fn update(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<UpdateBody>,
) -> Result<Reply> {
    let how = |now: &CollectionSpec| body.clone().into_model(now);
    Ok(Reply::new(&true).wrote(cluster.update_collection(&collection, how, &wishes.write()).await?))
}

/// `DELETE /collections/{collection}`
pub(super) async fn delete(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
) -> Result<Reply> {
    Ok(Reply::new(&cluster.delete_collection(&collection, &wishes.write()).await?))
}

/// Checks a name that becomes part of paths.
pub(super) fn check_name(field: &str, name: &str) -> Result<()> {
    let chars = name.chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&chars) {
        return Err(ApiError::invalid(field, format!("has {chars} characters, not 1 to {NAME_CHARS_MAX}")));
    }
    match name.chars().find(|c| c.is_control() || r#"/\:*?"<>|"#.contains(*c)) {
        Some(c) => Err(ApiError::invalid(field, format!("holds {c:?}"))),
        None if matches!(name, "." | "..") => Err(ApiError::invalid(field, format!("\"{name}\" is a path"))),
        None => Ok(()),
    }
}

// --- creating ---

/// What a creator says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    /// The unnamed vector's parameters, or those of named ones: told apart in [`vectors_by_name`].
    vectors: Option<Map<String, Value>>,
    sparse_vectors: Option<BTreeMap<String, Sparse>>,
    shard_number: Option<u32>,
    sharding_method: Option<ShardingMethod>,
    replication_factor: Option<u32>,
    write_consistency_factor: Option<u32>,
    on_disk_payload: Option<bool>,
    payload: Option<Placement>,
    id_tracker: Option<Placement>,
    hnsw_config: Option<Hnsw>,
    wal_config: Option<Wal>,
    optimizers_config: Option<Optimizers>,
    quantization_config: Option<Quantization>,
    metadata: Option<Map<String, Value>>,
    strict_mode_config: Unbuilt,
    init_from: Unbuilt,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShardingMethod {
    Auto,
    Custom,
}

impl CreateBody {
    fn into_model(self) -> Result<CollectionSpec> {
        refuse_unbuilt([("strict_mode_config", self.strict_mode_config), ("init_from", self.init_from)])?;
        if let Some(ShardingMethod::Custom) = self.sharding_method {
            return Err(ApiError::unbuilt("sharding_method", "custom"));
        }
        let hnsw = self.hnsw_config.clone().unwrap_or_default().over(HnswParams::default())?;
        let quantization = self.quantization_config.as_ref().map(Quantization::codes).unwrap_or_default();
        let mut vectors = BTreeMap::new();
        let mut vector_settings = Map::new();
        for (name, at, value) in vectors_by_name(self.vectors.unwrap_or_default())? {
            let (dense, params) = parse_value::<Dense>(value)
                .and_then(|dense| dense.params((hnsw, quantization)).map(|params| (dense, params)))
                .map_err(|e| e.within(&at))?;
            vector_settings.insert(name.clone(), kept(&dense));
            vectors.insert(name, params);
        }
        let sparse = self.sparse_vectors.unwrap_or_default();
        for (name, settings) in &sparse {
            let at = format!("sparse_vectors.{name}");
            check_name("name", name).and_then(|()| settings.check()).map_err(|e| e.within(&at))?;
            if vectors.contains_key(name) {
                return Err(ApiError::invalid(at, "is the name of a dense vector too"));
            }
        }
        let write_consistency_factor = self
            .write_consistency_factor
            .map(|n| within("write_consistency_factor", n, 1, COPIES_MAX))
            .transpose()?;
        let passthrough = kept_map([
            ("vectors", Some(Value::Object(vector_settings))),
            ("sparse_vectors", Some(kept(&sparse))),
            ("write_consistency_factor", write_consistency_factor.map(Value::from)),
            ("on_disk_payload", self.on_disk_payload.map(Value::from)),
            ("payload", self.payload.as_ref().map(kept)),
            ("id_tracker", self.id_tracker.as_ref().map(kept)),
            ("hnsw_config", self.hnsw_config.as_ref().map(kept)),
            ("wal_config", self.wal_config.as_ref().map(kept)),
            ("optimizers_config", self.optimizers_config.as_ref().map(kept)),
            ("quantization_config", self.quantization_config.as_ref().map(kept)),
            ("metadata", self.metadata.map(Value::Object)),
        ]);
        check_nesting(&passthrough)?;
        for (name, params) in &mut vectors {
            params.residence = residence(&passthrough, name);
        }
        Ok(CollectionSpec {
            vectors,
            sparse: sparse.into_keys().map(|name| (name, SparseParams {})).collect(),
            shard_number: within("shard_number", self.shard_number.unwrap_or(1), 1, SHARDS_MAX)?,
            replication_factor: within(
                "replication_factor",
                self.replication_factor.unwrap_or(COPIES_DEFAULT),
                1,
                COPIES_MAX,
            )?,
            hnsw,
            passthrough,
        })
    }
}

/// Each vector's name, where its parameters stand in the request, and the parameters. The unnamed vector may also
/// come under the name `""`.
fn vectors_by_name(vectors: Map<String, Value>) -> Result<Vec<(String, String, Value)>> {
    // A vector named `size` is an object; the size of the unnamed vector is a number.
    if vectors.get("size").is_some_and(|size| !size.is_object())
        || vectors.get("distance").is_some_and(Value::is_string)
    {
        return Ok(vec![(String::new(), "vectors".into(), Value::Object(vectors))]);
    }
    let named = vectors.into_iter().map(|(name, value)| {
        let at = format!("vectors.{name}");
        if !name.is_empty() {
            check_name("name", &name).map_err(|e| e.within(&at))?;
        }
        Ok((name, at, value))
    });
    named.collect()
}

/// Settings as they are kept.
fn kept(settings: &impl Serialize) -> Value {
    serde_json::to_value(settings).expect("settings have string keys")
}

fn kept_map<const N: usize>(settings: [(&str, Option<Value>); N]) -> Map<String, Value> {
    settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

// --- changing ---

/// What is to change.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    vectors: Option<BTreeMap<String, DenseChange>>,
    params: Option<ParamsChange>,
    hnsw_config: Option<Hnsw>,
    optimizers_config: Option<Optimizers>,
    quantization_config: Option<Quantization>,
    metadata: Option<Map<String, Value>>,
    sparse_vectors: Unbuilt,
    strict_mode_config: Unbuilt,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParamsChange {
    replication_factor: Unbuilt,
    write_consistency_factor: Option<u32>,
    on_disk_payload: Option<bool>,
    payload: Option<Placement>,
    id_tracker: Option<Placement>,
    read_fan_out_factor: Unbuilt,
    read_fan_out_delay_ms: Unbuilt,
}

impl UpdateBody {
    /// The change, seen from the collection as it stands.
    fn into_model(self, now: &CollectionSpec) -> Result<CollectionChange> {
        refuse_unbuilt([
            ("sparse_vectors", self.sparse_vectors),
            ("strict_mode_config", self.strict_mode_config),
        ])?;
        let vectors = self.vectors.unwrap_or_default();
        if let Some(name) = vectors.keys().find(|name| !now.vectors.contains_key(*name)) {
            return Err(ApiError::invalid(format!("vectors.{name}"), "there is no such vector"));
        }
        let params = self.params.map(ParamsChange::into_kept).transpose()?.unwrap_or_default();
        let mut changed = kept_map([
            ("vectors", (!vectors.is_empty()).then(|| kept(&vectors))),
            ("hnsw_config", self.hnsw_config.as_ref().map(kept)),
            ("optimizers_config", self.optimizers_config.as_ref().map(kept)),
            ("quantization_config", self.quantization_config.as_ref().map(kept)),
            ("metadata", self.metadata.map(Value::Object)),
        ]);
        changed.extend(params);
        check_nesting(&changed)?;
        let mut settings = now.passthrough.clone();
        replace_quantization(&mut settings, &changed);
        lay_over(&mut settings, changed.clone());
        let hnsw = self.hnsw_config.unwrap_or_default().over(now.hnsw)?;
        let hnsw_by_vector = shapes(now, &settings, hnsw)?;
        let quantization_by_vector = codes(now, &settings)?;
        let residence_by_vector = residences(now, &settings);
        // Each changed key goes on whole, as it is after the change.
        let passthrough = settings.into_iter().filter(|(key, _)| changed.contains_key(key)).collect();
        let hnsw = (hnsw != now.hnsw).then_some(hnsw);
        Ok(CollectionChange {
            hnsw_by_vector,
            hnsw,
            quantization_by_vector,
            residence_by_vector,
            passthrough,
        })
    }
}

/// Takes older quantizations away where a newer one is given: of another kind, it cannot lie over them.
fn replace_quantization(settings: &mut Map<String, Value>, changed: &Map<String, Value>) {
    const NAME: &str = "quantization_config";
    if changed.contains_key(NAME) {
        settings.remove(NAME);
    }
    let Some(Value::Object(vectors)) = settings.get_mut("vectors") else { return };
    for (name, settings) in vectors {
        let newer = changed.get("vectors").and_then(|vectors| vectors.get(name)?.get(NAME));
        if let (Some(_), Value::Object(settings)) = (newer, settings) {
            settings.remove(NAME);
        }
    }
}

/// The vectors whose codes get another shape, by their own settings or else the collection's.
fn codes(
    now: &CollectionSpec,
    settings: &Map<String, Value>,
) -> Result<BTreeMap<String, crate::model::Quantization>> {
    let mut changed = BTreeMap::new();
    for (name, params) in &now.vectors {
        let own = settings.get("vectors").and_then(|vectors| vectors.get(name)?.get("quantization_config"));
        let said = own.or_else(|| settings.get("quantization_config")).cloned();
        let said: Option<Quantization> = said.map(parse_value).transpose()?;
        let codes = said.as_ref().map(Quantization::codes).unwrap_or_default();
        if codes != params.quantization {
            changed.insert(name.clone(), codes);
        }
    }
    Ok(changed)
}

/// The vectors whose graphs and codes are held elsewhere from now on.
fn residences(now: &CollectionSpec, settings: &Map<String, Value>) -> BTreeMap<String, Residence> {
    let said = now.vectors.iter().map(|(name, params)| (name, params, residence(settings, name)));
    let changed = said.filter(|(_, params, said)| params.residence != *said);
    changed.map(|(name, _, said)| (name.clone(), said)).collect()
}

/// The vectors whose graphs get another shape, by their own settings over the collection's new shape.
fn shapes(
    now: &CollectionSpec,
    settings: &Map<String, Value>,
    usual: HnswParams,
) -> Result<BTreeMap<String, HnswParams>> {
    let mut changed = BTreeMap::new();
    for (name, params) in &now.vectors {
        let own = settings.get("vectors").and_then(|vectors| vectors.get(name)?.get("hnsw_config"));
        let own: Hnsw = own.cloned().map(parse_value).transpose()?.unwrap_or_default();
        let hnsw = own.over(usual).map_err(|e| e.within(format!("vectors.{name}")))?;
        if hnsw != params.hnsw {
            changed.insert(name.clone(), hnsw);
        }
    }
    Ok(changed)
}

impl ParamsChange {
    fn into_kept(self) -> Result<Map<String, Value>> {
        refuse_unbuilt([
            ("params.replication_factor", self.replication_factor),
            ("params.read_fan_out_factor", self.read_fan_out_factor),
            ("params.read_fan_out_delay_ms", self.read_fan_out_delay_ms),
        ])?;
        let copies = self.write_consistency_factor;
        let copies =
            copies.map(|n| within("params.write_consistency_factor", n, 1, COPIES_MAX)).transpose()?;
        Ok(kept_map([
            ("write_consistency_factor", copies.map(Value::from)),
            ("on_disk_payload", self.on_disk_payload.map(Value::from)),
            ("payload", self.payload.as_ref().map(kept)),
            ("id_tracker", self.id_tracker.as_ref().map(kept)),
        ]))
    }
}

// --- describing ---

/// A collection in the shape of Qdrant's `CollectionInfo`.
fn described(info: &CollectionInfo) -> Value {
    let spec = &info.spec;
    let setting =
        |name: &str| spec.passthrough.get(name).cloned().filter(|value| *value != json!("Disabled"));
    let payload_schema: Map<_, _> = info
        .schema
        .fields
        .iter()
        .map(|(path, of)| {
            let points = info.field_points.get(path).copied().unwrap_or(0);
            (path.to_string(), json!({"data_type": type_name(*of), "points": points}))
        })
        .collect();
    let params = kept_map([
        ("vectors", Some(described_vectors(spec))),
        ("sparse_vectors", (!spec.sparse.is_empty()).then(|| described_sparse(spec))),
        ("shard_number", Some(spec.shard_number.into())),
        ("replication_factor", Some(spec.replication_factor.into())),
        ("write_consistency_factor", Some(setting("write_consistency_factor").unwrap_or(json!(1)))),
        ("on_disk_payload", Some(setting("on_disk_payload").unwrap_or(json!(true)))),
        ("payload", setting("payload")),
        ("id_tracker", setting("id_tracker")),
    ]);
    // Fields Qdrant's clients require, where the creator said nothing.
    let hnsw =
        json!({"m": spec.hnsw.m, "ef_construct": spec.hnsw.ef_construct, "full_scan_threshold": 10_000});
    let optimizers = json!({"default_segment_number": 0, "flush_interval_sec": 5});
    let wal = json!({"wal_capacity_mb": 32, "wal_segments_ahead": 0});
    let config = kept_map([
        ("params", Some(Value::Object(params))),
        ("hnsw_config", Some(with_defaults(hnsw, setting("hnsw_config")))),
        ("optimizer_config", Some(with_defaults(optimizers, setting("optimizers_config")))),
        ("wal_config", Some(with_defaults(wal, setting("wal_config")))),
        ("quantization_config", setting("quantization_config")),
        ("metadata", setting("metadata")),
    ]);
    json!({
        "status": if info.building { "yellow" } else { "green" },
        "optimizer_status": "ok",
        "points_count": info.points,
        "indexed_vectors_count": info.indexed_vectors,
        "segments_count": info.segments,
        "config": config,
        "payload_schema": payload_schema,
    })
}

fn with_defaults(mut defaults: Value, said: Option<Value>) -> Value {
    if let (Value::Object(defaults), Some(Value::Object(said))) = (&mut defaults, said) {
        lay_over(defaults, said);
    }
    defaults
}

/// The unnamed vector's parameters, or those of each vector by name.
fn described_vectors(spec: &CollectionSpec) -> Value {
    let described = |name: &str, params: &VectorParams| {
        let mut vector = json!({"size": params.dim, "distance": params.distance});
        if let Some(said) = spec.passthrough.get("vectors").and_then(|vectors| vectors.get(name)) {
            vector = with_defaults(vector, Some(said.clone()));
        }
        if vector["quantization_config"] == json!("Disabled") {
            vector["quantization_config"].take();
        }
        vector
    };
    match spec.vectors.get("") {
        Some(params) if spec.vectors.len() == 1 => described("", params),
        _ => spec.vectors.iter().map(|(name, params)| (name.clone(), described(name, params))).collect(),
    }
}

fn described_sparse(spec: &CollectionSpec) -> Value {
    let said = spec.passthrough.get("sparse_vectors");
    let described = |name: &String| said.and_then(|said| said.get(name)).cloned().unwrap_or(json!({}));
    spec.sparse.keys().map(|name| (name.clone(), described(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::tests::assert_refused;
    use crate::model::{CollectionId, Distance, FieldType, Quantization as Codes, Schema};
    use std::sync::Arc;

    fn create(body: Value) -> Result<CollectionSpec> {
        parse_value::<CreateBody>(body)?.into_model()
    }

    fn info_of(spec: CollectionSpec) -> CollectionInfo {
        CollectionInfo {
            id: CollectionId(1),
            spec,
            schema: Arc::new(Schema::default()),
            points: 3,
            field_points: BTreeMap::new(),
            vectors: 3,
            indexed_vectors: 2,
            segments: 1,
            building: false,
        }
    }

    #[test]
    fn settings_are_nested_no_deeper_than_a_catalog_is_read() {
        use super::super::settings::NESTING_MAX;
        let nested = |levels: usize| (1..levels).fold(json!({"a": 1}), |value, _| json!({"a": value}));
        let vectors = json!({"size": 4, "distance": "Dot"});
        let with = |levels| create(json!({"vectors": vectors, "metadata": nested(levels)}));
        let why = "metadata: is nested 65 levels deep, at most 64 are kept";
        assert_refused(with(NESTING_MAX + 1), 400, why, "a new collection");
        let spec = with(NESTING_MAX).expect("as deep as may be");
        let change = |body: Value| parse_value::<UpdateBody>(body)?.into_model(&spec);
        assert_refused(change(json!({"metadata": nested(NESTING_MAX + 1)})), 400, why, "a change");
        change(json!({"metadata": nested(NESTING_MAX)})).expect("as deep as may be");
    }

    #[test]
    fn an_unnamed_vector() {
        let spec = create(json!({"vectors": {"size": 4, "distance": "Cosine"}})).unwrap();
        let hnsw = HnswParams::default();
        assert_eq!(spec.vectors, [(String::new(), VectorParams::new(4, Distance::Cosine, hnsw))].into());
        assert_eq!((spec.shard_number, spec.replication_factor), (1, 3));
        assert_eq!(
            described(&info_of(spec))["config"]["params"]["vectors"],
            json!({"size": 4, "distance": "Cosine"})
        );
    }

    #[test]
    fn the_unnamed_vector_may_be_written_as_one_of_several() {
        let unnamed = json!({"size": 4, "distance": "Cosine"});
        assert_eq!(
            create(json!({"vectors": {"": unnamed}})).unwrap(),
            create(json!({"vectors": unnamed})).unwrap()
        );
        let both = create(json!({"vectors": {"": unnamed, "a": unnamed}})).unwrap();
        assert_eq!(
            described(&info_of(both))["config"]["params"]["vectors"],
            json!({"": unnamed, "a": unnamed})
        );
    }

    #[test]
    fn named_vectors_also_by_odd_names() {
        let spec = create(json!({
            "vectors": {"size": {"size": 4, "distance": "Dot"}, "b": {"size": 65536, "distance": "Manhattan"}},
            "sparse_vectors": {"s": {}, "t": {"index": {"on_disk": true}}},
        }))
        .unwrap();
        assert_eq!(spec.vectors.keys().collect::<Vec<_>>(), ["b", "size"]);
        assert_eq!(spec.sparse.keys().collect::<Vec<_>>(), ["s", "t"]);
        let params = &described(&info_of(spec))["config"]["params"];
        assert_eq!(params["vectors"]["b"], json!({"size": 65536, "distance": "Manhattan"}));
        assert_eq!(params["sparse_vectors"], json!({"s": {}, "t": {"index": {"on_disk": true}}}));
    }

    #[test]
    fn what_is_said_is_kept_and_returned() {
        let spec = create(json!({
            "vectors": {"size": 4, "distance": "Euclid", "on_disk": true, "datatype": "float32",
                "hnsw_config": {"m": 8}, "quantization_config": {"scalar": {"type": "int8", "always_ram": true}}},
            "shard_number": 2, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": false,
            "sharding_method": "auto",
            "hnsw_config": {"m": 32, "ef_construct": 200, "on_disk": true},
            "optimizers_config": {"indexing_threshold": 10000, "max_optimization_threads": "auto"},
            "wal_config": {"wal_capacity_mb": 64},
            "quantization_config": {"binary": {"always_ram": true}},
            "metadata": {"made_by": "me"},
        }))
        .unwrap();
        assert_eq!(spec.hnsw, HnswParams { m: 32, ef_construct: 200 });
        assert_eq!(spec.vectors[""].hnsw, HnswParams { m: 8, ef_construct: 200 });
        assert_eq!(spec.vectors[""].quantization, Codes::Scalar, "its own before the collection's");
        let config = &described(&info_of(spec))["config"];
        assert_eq!(
            config["params"],
            json!({
                "vectors": {"size": 4, "distance": "Euclid", "on_disk": true, "datatype": "float32",
                    "hnsw_config": {"m": 8}, "quantization_config": {"scalar": {"type": "int8", "always_ram": true}}},
                "shard_number": 2, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": false,
            })
        );
        assert_eq!(
            config["hnsw_config"],
            json!({
                "m": 32, "ef_construct": 200, "full_scan_threshold": 10_000, "on_disk": true,
            })
        );
        assert_eq!(
            config["optimizer_config"],
            json!({
                "default_segment_number": 0, "flush_interval_sec": 5, "indexing_threshold": 10_000,
                "max_optimization_threads": "auto",
            })
        );
        assert_eq!(config["wal_config"], json!({"wal_capacity_mb": 64, "wal_segments_ahead": 0}));
        assert_eq!(config["quantization_config"], json!({"binary": {"always_ram": true}}));
        assert_eq!(config["metadata"], json!({"made_by": "me"}));
    }

    #[test]
    fn a_quantization_is_the_shape_of_the_codes() {
        let vector = |own: Value| json!({"size": 4, "distance": "Dot", "quantization_config": own});
        let bare = || json!({"size": 4, "distance": "Dot"});
        let (binary, turbo) = (json!({"binary": {}}), json!({"turbo": {}}));
        let product = json!({"product": {"compression": "x16"}});
        for (body, codes) in [
            (json!({"vectors": bare()}), Codes::Scalar),
            (json!({"vectors": vector(json!({"scalar": {"type": "int8"}}))}), Codes::Scalar),
            (json!({"vectors": vector(binary.clone())}), Codes::Binary),
            (json!({"vectors": vector(json!("Disabled"))}), Codes::None),
            (json!({"vectors": vector(product)}), Codes::Scalar),
            (json!({"vectors": vector(turbo)}), Codes::Scalar),
            (json!({"vectors": bare(), "quantization_config": binary}), Codes::Binary),
            (json!({"vectors": vector(json!("Disabled")), "quantization_config": binary}), Codes::None),
            (json!({"vectors": vector(Value::Null), "quantization_config": binary}), Codes::Binary),
        ] {
            let text = body.to_string();
            assert_eq!(create(body).unwrap().vectors[""].quantization, codes, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let vector = |field: &str, value: Value| {
            let mut vector = json!({"size": 4, "distance": "Dot"});
            vector[field] = value;
            json!({"vectors": vector})
        };
        for (body, status, message) in [
            (vector("size", json!(0)), 400, "vectors.size: 0 is not within 1 to 65536"),
            (vector("size", json!(65_537)), 400, "vectors.size: 65537 is not within 1 to 65536"),
            (vector("size", json!(-1)), 400, "vectors.size: invalid value: integer `-1`"),
            (vector("distance", json!("Hamming")), 400, "vectors.distance: unknown variant `Hamming`"),
            (vector("colour", json!(1)), 400, "vectors.colour: unknown field `colour`"),
            (vector("hnsw_config", json!({"m": 1})), 400, "vectors.hnsw_config.m: 1 is not within 2 to 256"),
            (vector("hnsw_config", json!({"m": 0})), 501, "vectors.hnsw_config.m: 0 (no graph) is not"),
            (vector("datatype", json!("float16")), 501, "vectors.datatype: float16 is not implemented yet"),
            (vector("multivector_config", json!({})), 501, "vectors.multivector_config: is not"),
            (json!({"vectors": {"size": 4}}), 400, "vectors.distance: is missing"),
            (
                json!({"vectors": {"a": {"size": 0, "distance": "Dot"}}}),
                400,
                "vectors.a.size: 0 is not within",
            ),
            (json!({"vectors": {"a": {"distance": "Dot"}}}), 400, "vectors.a.size: is missing"),
            (json!({"vectors": {"a/b": {}}}), 400, "vectors.a/b.name: holds '/'"),
            (json!({"vectors": 7}), 400, "vectors: invalid type"),
            (
                json!({"sparse_vectors": {"s": {"modifier": "idf"}}}),
                501,
                "sparse_vectors.s.modifier: idf is not",
            ),
            (json!({"sparse_vectors": {"s": {"size": 1}}}), 400, "sparse_vectors.s.size: unknown field"),
            (json!({"shard_number": 0}), 400, "shard_number: 0 is not within 1 to 64"),
            (json!({"shard_number": 65}), 400, "shard_number: 65 is not within 1 to 64"),
            (json!({"replication_factor": 0}), 400, "replication_factor: 0 is not within"),
            (json!({"sharding_method": "custom"}), 501, "sharding_method: custom is not"),
            (json!({"strict_mode_config": {}}), 501, "strict_mode_config: is not"),
            (
                json!({"quantization_config": {"scalar": {"type": "int4"}}}),
                400,
                "quantization_config.scalar.type: unknown",
            ),
            (json!({"optimizers_config": {"speed": 1}}), 400, "optimizers_config.speed: unknown field"),
            (json!({"vector": {}}), 400, "vector: unknown field `vector`"),
        ] {
            let text = body.to_string();
            assert_refused(create(body), status, message, text);
        }
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for good in ["a", "héllo wörld", "a.b-c_d", &"x".repeat(255)] {
            check_name("name", good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\0", "a\n", "a:b", "a*", &"x".repeat(256)] {
            check_name("name", bad).unwrap_err();
        }
    }

    #[test]
    fn what_is_on_disk_is_read_from_there() {
        let vectors = |more: Value| {
            let mut body = json!({"vectors": {"a": {"size": 4, "distance": "Dot"}, "b": {"size": 4, "distance": "Dot"}}});
            merge(&mut body, more);
            create(body).unwrap()
        };
        fn merge(body: &mut Value, more: Value) {
            match (body, more) {
                (Value::Object(body), Value::Object(more)) => more
                    .into_iter()
                    .for_each(|(key, value)| merge(body.entry(key).or_insert(Value::Null), value)),
                (body, more) => *body = more,
            }
        }
        for (more, a, b) in [
            (json!({}), Residence::Memory, Residence::Memory),
            (json!({"vectors": {"a": {"on_disk": true}}}), Residence::Codes, Residence::Memory),
            (json!({"vectors": {"b": {"memory": "cold"}}}), Residence::Memory, Residence::Codes),
            (json!({"hnsw_config": {"on_disk": true}}), Residence::Codes, Residence::Codes),
            (
                json!({"hnsw_config": {"on_disk": true}, "vectors": {"a": {"hnsw_config": {"on_disk": false}}}}),
                Residence::Memory,
                Residence::Codes,
            ),
            (
                json!({"vectors": {"a": {"on_disk": true}}, "quantization_config": {"scalar": {"type": "int8", "always_ram": false}}}),
                Residence::Disk,
                Residence::Memory,
            ),
        ] {
            let spec = vectors(more.clone());
            assert_eq!((spec.vectors["a"].residence, spec.vectors["b"].residence), (a, b), "{more}");
        }
        let now = vectors(json!({"vectors": {"a": {"on_disk": true}}}));
        let update = |body: Value| parse_value::<UpdateBody>(body).unwrap().into_model(&now).unwrap();
        let change = update(json!({"vectors": {"a": {"on_disk": false}, "b": {"on_disk": true}}}));
        let changed =
            [("a", Residence::Memory), ("b", Residence::Codes)].map(|(name, to)| (name.to_owned(), to));
        assert_eq!(change.residence_by_vector, changed.into());
        assert_eq!(update(json!({"metadata": {}})).residence_by_vector, BTreeMap::new());
    }

    #[test]
    fn changes_are_laid_over_what_was_said() {
        let now = create(json!({
            "vectors": {"a": {"size": 4, "distance": "Dot", "hnsw_config": {"m": 8}}, "b": {"size": 4, "distance": "Dot"}},
            "optimizers_config": {"indexing_threshold": 1, "flush_interval_sec": 7},
            "quantization_config": {"binary": {}},
            "metadata": {"x": 1, "y": 2},
        }))
        .unwrap();
        let update = |body: Value| parse_value::<UpdateBody>(body)?.into_model(&now);
        assert_eq!(update(json!({})).unwrap(), CollectionChange::default());

        let change = update(json!({
            "optimizers_config": {"indexing_threshold": 2}, "metadata": {"x": null, "z": 3},
            "params": {"on_disk_payload": true}, "quantization_config": "Disabled",
        }))
        .unwrap();
        assert_eq!((change.hnsw, &change.hnsw_by_vector), (None, &BTreeMap::new()));
        assert_eq!(
            Value::Object(change.passthrough.clone()),
            json!({
                "optimizers_config": {"indexing_threshold": 2, "flush_interval_sec": 7}, "metadata": {"y": 2, "z": 3},
                "on_disk_payload": true, "quantization_config": "Disabled",
            })
        );
        let none = [("a", Codes::None), ("b", Codes::None)].map(|(name, of)| (name.to_owned(), of));
        assert_eq!(change.quantization_by_vector, none.into());
        let mut spec = now.clone();
        spec.passthrough.extend(change.passthrough);
        assert_eq!(described(&info_of(spec))["config"].get("quantization_config"), None);

        // Of another kind: it does not lie over the older one, it takes its place.
        let int8 = json!({"scalar": {"type": "int8"}});
        let change = update(json!({"quantization_config": int8, "vectors": {"b": {"quantization_config":
            {"binary": {"always_ram": true}}}}}))
        .unwrap();
        assert_eq!(change.passthrough["quantization_config"], int8);
        assert_eq!(change.quantization_by_vector, [("a".to_owned(), Codes::Scalar)].into());

        let change = update(
            json!({"hnsw_config": {"m": 32}, "vectors": {"a": {"hnsw_config": {"ef_construct": 50}}}}),
        )
        .unwrap();
        assert_eq!(change.hnsw, Some(HnswParams { m: 32, ef_construct: 128 }));
        assert_eq!(change.hnsw_by_vector["a"], HnswParams { m: 8, ef_construct: 50 });
        assert_eq!(change.hnsw_by_vector["b"], HnswParams { m: 32, ef_construct: 128 });

        for (body, status, message) in [
            (json!({"vectors": {"c": {}}}), 400, "vectors.c: there is no such vector"),
            (json!({"params": {"replication_factor": 2}}), 501, "params.replication_factor: is not"),
            (json!({"sparse_vectors": {}}), 501, "sparse_vectors: is not"),
            (json!({"shard_number": 2}), 400, "shard_number: unknown field"),
        ] {
            assert_refused(update(body), status, message, message);
        }
    }

    #[test]
    fn figures_and_indexed_fields() {
        let mut info = info_of(create(json!({"vectors": {"size": 4, "distance": "Dot"}})).unwrap());
        let path: crate::model::FieldPath = "a.b".parse().unwrap();
        info.schema =
            Arc::new(Schema { fields: [(path.clone(), FieldType::Keyword)].into(), ..Default::default() });
        info.field_points = [(path, 2)].into();
        let answer = described(&info);
        assert_eq!(answer["payload_schema"], json!({"a.b": {"data_type": "keyword", "points": 2}}));
        assert_eq!(answer["status"], "green");
        assert_eq!(
            (&answer["points_count"], &answer["indexed_vectors_count"], &answer["segments_count"]),
            (&json!(3), &json!(2), &json!(1))
        );
        info.building = true;
        assert_eq!(described(&info)["status"], "yellow");
    }
}
