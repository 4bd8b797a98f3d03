//! Tier 1 of Qdrant's REST: JSON to model words, and back. One file an area.
//!
//! Source: Qdrant's public specification, 1.19 and 1.20.

mod aliases;
mod answer;
mod cluster;
mod collections;
mod filter;
mod index;
mod numbers;
mod points;
mod query;
mod service;
mod settings;
mod vector;

pub(super) use points::{PointContent, acknowledged};
pub(super) use service::{probes, vital_signs};

use super::{
    Api,
    error::{ApiError, Result},
    refusing,
};
use axum::{
    Router,
    routing::{get, post, put},
};
use serde::de::IgnoredAny;

/// Routes that are built.
pub(super) fn built() -> Router<Api> {
    let collection = get(collections::info)
        .put(collections::create)
        .patch(collections::update)
        .delete(collections::delete);
    Router::new()
        .route("/cluster", get(cluster::info))
        .route("/aliases", get(aliases::list))
        .route("/collections", get(collections::list))
        .route("/collections/aliases", post(aliases::change))
        .route("/collections/{collection}", collection)
        .route("/collections/{collection}/exists", get(collections::exists))
        .route("/collections/{collection}/aliases", get(aliases::of_collection))
        .route("/collections/{collection}/cluster", get(cluster::of_collection).post(cluster::change))
        .route("/collections/{collection}/index", put(index::create))
        .route("/collections/{collection}/index/{field}", axum::routing::delete(index::delete))
        .route("/collections/{collection}/points", put(points::upsert).post(points::retrieve))
        .route("/collections/{collection}/points/{id}", get(points::get))
        .route("/collections/{collection}/points/delete", post(points::delete))
        .route("/collections/{collection}/points/scroll", post(points::scroll))
        .route("/collections/{collection}/points/count", post(points::count))
        .route("/collections/{collection}/points/query", post(query::query))
        .route("/collections/{collection}/points/query/batch", post(query::query_batch))
        .route("/collections/{collection}/points/search", post(query::search))
        .route("/collections/{collection}/points/search/batch", post(query::search_batch))
}

/// The rest of Qdrant's routes.
pub(super) fn unbuilt() -> Router<Api> {
    refusing(&[
        "GET /telemetry",
        "GET DELETE /issues",
        "GET PUT /quotas",
        "PUT DELETE /collections/{collection}/vectors/{vector}",
        "GET /collections/{collection}/optimizations",
        "POST /collections/{collection}/facet",
        "POST /collections/{collection}/points/batch",
        "POST PUT /collections/{collection}/points/payload",
        "POST /collections/{collection}/points/payload/delete",
        "POST /collections/{collection}/points/payload/clear",
        "PUT /collections/{collection}/points/vectors",
        "POST /collections/{collection}/points/vectors/delete",
        "POST /collections/{collection}/points/query/groups",
        "POST /collections/{collection}/points/search/groups",
        "POST /collections/{collection}/points/search/matrix/pairs",
        "POST /collections/{collection}/points/search/matrix/offsets",
        "POST /collections/{collection}/points/recommend",
        "POST /collections/{collection}/points/recommend/batch",
        "POST /collections/{collection}/points/recommend/groups",
        "POST /collections/{collection}/points/discover",
        "POST /collections/{collection}/points/discover/batch",
        "GET /cluster/telemetry",
        "POST /cluster/recover",
        "DELETE /cluster/peer/{peer}",
        "GET PUT /collections/{collection}/shards",
        "POST /collections/{collection}/shards/delete",
        "GET POST /snapshots",
        "GET DELETE /snapshots/{snapshot}",
        "GET POST /collections/{collection}/snapshots",
        "PUT /collections/{collection}/snapshots/recover",
        "POST /collections/{collection}/snapshots/upload",
        "GET DELETE /collections/{collection}/snapshots/{snapshot}",
        "GET POST /collections/{collection}/shards/{shard}/snapshots",
        "PUT /collections/{collection}/shards/{shard}/snapshots/recover",
        "POST /collections/{collection}/shards/{shard}/snapshots/upload",
        "GET DELETE /collections/{collection}/shards/{shard}/snapshots/{snapshot}",
        "GET /collections/{collection}/shards/{shard}/snapshot",
    ])
}

/// A known field that is not built: anything but null is refused.
type Unbuilt = Option<IgnoredAny>;

/// Refuses the first of the fields that is given.
fn refuse_unbuilt<const N: usize>(fields: [(&str, Unbuilt); N]) -> Result<()> {
    match fields.into_iter().find(|(_, given)| given.is_some()) {
        None => Ok(()),
        Some((name, _)) => Err(ApiError::unbuilt(name, "")),
    }
}

/// Checks that a number is within its limits.
fn within<N: PartialOrd + std::fmt::Display>(field: &str, value: N, min: N, max: N) -> Result<N> {
    if min <= value && value <= max {
        return Ok(value);
    }
    Err(ApiError::invalid(field, format!("{value} is not within {min} to {max}")))
}
