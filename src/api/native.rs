//! Annal's own routes, under `/annal/v1`. Their answers are plain JSON, without Qdrant's envelope.

use super::{Api, refusing};
use crate::cluster::{Cluster, NodeInfo};
use axum::{Json, Router, extract::State, routing::get};

/// Routes that are built.
pub(super) fn built() -> Router<Api> {
    Router::new().route("/annal/v1/info", get(info)).route("/annal/v1/cluster", get(topology))
}

/// The rest of the contract.
pub(super) fn unbuilt() -> Router<Api> {
    refusing(&[
        "GET /annal/v1/collections/{collection}/changes",
        "GET /annal/v1/collections/{collection}/state-hash",
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
    Json(cluster.topology())
}
