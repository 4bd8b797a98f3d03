//! Settings of a collection that are kept and returned as they came, every field known and typed.
//!
//! They speak of memory, threads and thresholds; none of them can change an answer. Those that Annal heeds are the shape
//! of graphs, the quantization, a hint that chooses the shape of the codes that candidates are found by
//! ([`Quantization::codes`]; these are always scored again with the vectors as they were written), and what is to be
//! read from the disk ([`residence`]); the rest it chooses itself. Fields whose type alone matters are checked and kept
//! as JSON; what would change an answer is refused (here, or in `collections`).

use super::within;
use crate::{
    api::error::{ApiError, Result},
    model::{self, Distance, HnswParams, Residence, VectorParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Links of a graph's node: fewer cannot hold a graph together, more were never useful.
const M_LIMITS: (u32, u32) = (2, 256);
/// Candidates kept while a graph's node is inserted.
const EF_CONSTRUCT_LIMITS: (u32, u32) = (4, 10_000);

/// A struct of optional settings; those not given are left out when written.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(#[serde(skip_serializing_if = "Option::is_none")] pub(super) $field: Option<$kind>,)*
        }
    };
}

settings! {
    /// The shape of graphs.
    Hnsw {
        m: u32,
        ef_construct: u32,
        full_scan_threshold: u64,
        max_indexing_threads: u64,
        on_disk: bool,
        memory: Memory,
        payload_m: u64,
        inline_storage: bool,
    }
}

settings! {
    /// When and how segments are rebuilt.
    Optimizers {
        deleted_threshold: f64,
        vacuum_min_vector_number: u64,
        default_segment_number: u64,
        max_segment_size: u64,
        memmap_threshold: u64,
        indexing_threshold: u64,
        flush_interval_sec: u64,
        max_optimization_threads: Threads,
        prevent_unoptimized: bool,
    }
}

settings! {
    /// The write-ahead log.
    Wal { wal_capacity_mb: u64, wal_segments_ahead: u64, wal_retain_closed: u64 }
}

settings! {
    /// Where a part of the collection is held.
    Placement { memory: Memory }
}

settings! {
    /// A dense vector.
    Dense {
        size: u32,
        distance: Distance,
        hnsw_config: Hnsw,
        quantization_config: Quantization,
        on_disk: bool,
        memory: Memory,
        datatype: Datatype,
        multivector_config: Value,
    }
}

settings! {
    /// What of a dense vector can be changed.
    DenseChange { hnsw_config: Hnsw, quantization_config: Quantization, on_disk: bool, memory: Memory }
}

settings! {
    /// A sparse vector.
    Sparse { index: SparseIndex, modifier: Modifier }
}

settings! {
    /// The index of a sparse vector.
    SparseIndex { full_scan_threshold: u64, on_disk: bool, memory: Memory, datatype: Datatype }
}

/// How near to the processor something is held.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Memory {
    Cold,
    Cached,
    Pinned,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Datatype {
    Float32,
    Float16,
    Uint8,
    Turbo4,
    Turbo8,
    Turbo16,
}

/// What a sparse vector's values are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Modifier {
    None,
    Idf,
}

/// A count of threads, or `"auto"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Threads {
    Count(u64),
    Word(Auto),
}

/// `"auto"`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Auto {
    Auto,
}

/// A way to compress vectors: one of four kinds with its own settings, or `"Disabled"` in a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Quantization {
    Scalar(Scalar),
    Product(Product),
    Binary(Binary),
    Turbo(Map<String, Value>),
    #[serde(rename = "Disabled")]
    Disabled,
}

settings! {
    /// 8-bit numbers.
    Scalar { r#type: Int8, quantile: f64, always_ram: bool, memory: Memory }
}

settings! {
    /// Product quantization.
    Product { compression: Compression, always_ram: bool, memory: Memory }
}

settings! {
    /// Single bits.
    Binary { always_ram: bool, encoding: String, query_encoding: String, memory: Memory }
}

/// `"int8"`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Int8 {
    Int8,
}

/// How much smaller a product-quantized vector is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compression {
    X4,
    X8,
    X16,
    X32,
    X64,
}

impl Hnsw {
    /// The shape of a graph: these settings over the usual ones.
    pub(super) fn over(&self, usual: HnswParams) -> Result<HnswParams> {
        if self.m == Some(0) {
            return Err(ApiError::unbuilt("hnsw_config.m", "0 (no graph)"));
        }
        let m = within("hnsw_config.m", self.m.unwrap_or(usual.m), M_LIMITS.0, M_LIMITS.1)?;
        let ef_construct = self.ef_construct.unwrap_or(usual.ef_construct);
        let (min, max) = EF_CONSTRUCT_LIMITS;
        let ef_construct = within("hnsw_config.ef_construct", ef_construct, min, max)?;
        Ok(HnswParams { m, ef_construct })
    }
}

impl Quantization {
    /// The codes it asks for. Of the kinds that Annal does not have, the usual ones are as good a hint.
    pub(super) fn codes(&self) -> model::Quantization {
        match self {
            Quantization::Binary(_) => model::Quantization::Binary,
            Quantization::Disabled => model::Quantization::None,
            Quantization::Scalar(_) | Quantization::Product(_) | Quantization::Turbo(_) => {
                model::Quantization::Scalar
            }
        }
    }
}

/// Where the graph and the codes of a vector are held, by a collection's settings and the vector's own.
///
/// What is `on_disk`, be it the vector or its graph, has its links read from the file. Codes are read from there too
/// only where a quantization says so (`always_ram: false`): without them in memory, a search waits for the disk at every
/// step.
pub(super) fn residence(settings: &Map<String, Value>, vector: &str) -> Residence {
    let own = settings.get("vectors").and_then(|vectors| vectors.get(vector));
    let on_disk = |settings: &Value| match (settings.get("on_disk"), settings.get("memory")) {
        (Some(on_disk), _) => on_disk.as_bool(),
        (None, memory) => memory.map(|memory| *memory == json!(Memory::Cold)),
    };
    let of = |name: &str| own.and_then(|own| own.get(name)).or_else(|| settings.get(name));
    let graph = of("hnsw_config").and_then(on_disk).unwrap_or_default();
    if !graph && !own.and_then(on_disk).unwrap_or_default() {
        return Residence::Memory;
    }
    let kinds = of("quantization_config").and_then(Value::as_object);
    let always_ram =
        kinds.and_then(|kinds| kinds.values().find_map(|kind| kind.get("always_ram")?.as_bool()));
    if always_ram == Some(false) { Residence::Disk } else { Residence::Codes }
}

impl Dense {
    /// The vector's parameters, in memory; `usual` is the shape of graphs, and of codes, of a vector that says nothing.
    pub(super) fn params(&self, usual: (HnswParams, model::Quantization)) -> Result<VectorParams> {
        if self.multivector_config.is_some() {
            return Err(ApiError::unbuilt("multivector_config", ""));
        }
        check_datatype("datatype", self.datatype)?;
        let missing = |field| ApiError::invalid(field, "is missing");
        Ok(VectorParams {
            dim: within("size", self.size.ok_or_else(|| missing("size"))?, 1, VectorParams::DIM_MAX)?,
            distance: self.distance.ok_or_else(|| missing("distance"))?,
            hnsw: self.hnsw_config.clone().unwrap_or_default().over(usual.0)?,
            quantization: self.quantization_config.as_ref().map_or(usual.1, Quantization::codes),
            residence: Residence::Memory,
        })
    }
}

impl Sparse {
    pub(super) fn check(&self) -> Result<()> {
        if self.modifier == Some(Modifier::Idf) {
            return Err(ApiError::unbuilt("modifier", "idf"));
        }
        check_datatype("index.datatype", self.index.as_ref().and_then(|index| index.datatype))
    }
}

fn check_datatype(field: &str, datatype: Option<Datatype>) -> Result<()> {
    match datatype {
        None | Some(Datatype::Float32) => Ok(()),
        Some(other) => Err(ApiError::unbuilt(field, json!(other).as_str().unwrap_or_default())),
    }
}

/// Levels of lists and objects in a setting: the catalog keeps it some levels deeper, and JSON is read down to 127.
pub(super) const NESTING_MAX: usize = 64;

/// Checks settings that are kept as they came. Errors: name the one that is nested deeper.
pub(super) fn check_nesting(settings: &Map<String, Value>) -> Result<()> {
    fn nesting(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(nesting).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(nesting).max().unwrap_or(0),
            _ => 0,
        }
    }
    for (name, value) in settings {
        let levels = nesting(value);
        if levels > NESTING_MAX {
            let why = format!("is nested {levels} levels deep, at most {NESTING_MAX} are kept");
            return Err(ApiError::invalid(name, why));
        }
    }
    Ok(())
}

/// Lays `newer` over `older`, object by object; a null takes the older value away.
pub(super) fn lay_over(older: &mut Map<String, Value>, newer: Map<String, Value>) {
    for (key, value) in newer {
        match (older.get_mut(&key), value) {
            (_, Value::Null) => drop(older.remove(&key)),
            (Some(Value::Object(older)), Value::Object(newer)) => lay_over(older, newer),
            (_, value) => drop(older.insert(key, value)),
        }
    }
}
