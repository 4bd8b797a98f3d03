//! Annal's own routes, under `/annal/v1`. Their answers are plain JSON, without Qdrant's envelope, but for `points/cas`,
//! which answers as the writes it stands beside.

mod admin;
mod audit;
mod cas;
mod changes;
mod regions;

pub(super) use audit::audits;
pub(super) use changes::feeds;
pub(super) use regions::own_parameters as regions_with_parameters;

use super::{Api, refusing};
use crate::cluster::{Cluster, NodeInfo};
use axum::{
    Json, Router,
    extract::State,
    routing::{delete, get, post},
};

/// Routes that are built.
pub(super) fn built() -> Router<Api> {
    Router::new()
        .route("/annal/v1/info", get(info))
        .route("/annal/v1/cluster", get(topology))
        .route("/annal/v1/cluster/nodes/{node}", delete(admin::remove))
        .route("/annal/v1/cluster/nodes/{node}/drain", post(admin::drain))
        .route("/annal/v1/collections/{collection}/points/cas", post(cas::cas))
        .route("/annal/v1/collections/{collection}/shards/{shard}/move", post(admin::move_shard))
        .route("/annal/v1/collections/{collection}/shards/{shard}/lead", post(admin::lead))
        .route("/annal/v1/regions", get(regions::links))
        .route("/annal/v1/regions/follow", post(regions::follow).delete(regions::unfollow))
        .route("/annal/v1/regions/handover", post(regions::handover))
        .route("/annal/v1/regions/takeover", post(regions::takeover))
        .route(crate::region::ASK, post(regions::ask))
}

/// The rest of the contract.
pub(super) fn unbuilt() -> Router<Api> {
    refusing(&[
        "POST /annal/v1/collections/{collection}/shards/{shard}/split",
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
