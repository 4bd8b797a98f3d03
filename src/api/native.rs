//! Annal's own routes, under `/annal/v1`. Their answers are plain JSON, without Qdrant's envelope.

use super::{
    Api,
    body::At,
    error::{ApiError, Result},
    refusing,
};
use crate::cluster::{Cluster, NodeInfo, ReadOptions, ShardHash};
use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    routing::get,
};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// Routes that are built.
pub(super) fn built() -> Router<Api> {
    Router::new().route("/annal/v1/info", get(info)).route("/annal/v1/cluster", get(topology))
}

/// Routes with parameters of their own, for people who check the database.
pub(super) fn audits() -> Router<Api> {
    Router::new().route("/annal/v1/collections/{collection}/state-hash", get(state_hash))
}

/// The rest of the contract.
pub(super) fn unbuilt() -> Router<Api> {
    refusing(&[
        "GET /annal/v1/collections/{collection}/changes",
        "POST /annal/v1/collections/{collection}/points/cas",
        "POST /annal/v1/collections/{collection}/shards/{shard}/move",
        "POST /annal/v1/collections/{collection}/shards/{shard}/split",
        "POST /annal/v1/collections/{collection}/shards/{shard}/lead",
        "DELETE /annal/v1/cluster/nodes/{node}",
        "POST /annal/v1/cluster/nodes/{node}/drain",
        "GET /annal/v1/regions",
        "POST DELETE /annal/v1/regions/follow",
        "POST /annal/v1/regions/handover",
        "POST /annal/v1/regions/takeover",
        "GET /annal/v1/regions/loss",
        "GET /dashboard",
        "GET /dashboard/",
        "GET /dashboard/{*page}",
        "GET /openapi.json",
    ])
}

async fn info(State(cluster): State<Cluster>) -> Json<NodeInfo> {
    Json(cluster.info())
}

async fn topology(State(cluster): State<Cluster>) -> Json<serde_json::Value> {
    Json(cluster.topology().await)
}

/// How long a shard may take to hash itself: a scrub reads every record.
const AUDIT_WITHIN: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateHashParameters {
    #[serde(default)]
    scrub: bool,
    at: Option<String>,
}

/// `GET /annal/v1/collections/{collection}/state-hash`
async fn state_hash(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    parameters: std::result::Result<Query<StateHashParameters>, QueryRejection>,
) -> Result<Json<Vec<ShardHash>>> {
    let Query(parameters) = parameters.map_err(|e| ApiError::invalid("query parameters", e.body_text()))?;
    if parameters.at.is_some() {
        return Err(ApiError::unbuilt("at", "the hash at an earlier position"));
    }
    let options = ReadOptions::linearizable(Instant::now() + AUDIT_WITHIN);
    Ok(Json(cluster.state_hash(&collection, None, parameters.scrub, &options).await?))
}
