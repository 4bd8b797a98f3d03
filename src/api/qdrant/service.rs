//! Version, probes and figures: answered also while the node is not ready, and never turned away by load.

use crate::{
    api::{
        Api,
        error::{ApiError, Result},
        scrape,
    },
    model::Kind,
};
use axum::{Json, Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use serde_json::json;

/// The version of Qdrant's REST these routes follow; its clients compare it with their own.
const QDRANT_VERSION: &str = "1.20.0";

/// The routes.
pub(in crate::api) fn probes() -> Router<Api> {
    vital_signs().route("/", get(version)).route("/readyz", get(ready)).route("/metrics", get(figures))
}

/// Those that a node answers as soon as it listens.
pub(in crate::api) fn vital_signs<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/healthz", get(async || "healthz check passed"))
        .route("/livez", get(async || "livez check passed"))
}

async fn version() -> impl IntoResponse {
    Json(json!({"title": "annal - vector search engine, Qdrant-compatible", "version": QDRANT_VERSION}))
}

async fn ready(State(api): State<Api>) -> Result<&'static str> {
    let leaving = api.leaving.is_cancelled().then(|| "the node is stopping".to_owned());
    match leaving.or_else(|| api.cluster.unready()) {
        None => Ok("all shards are ready"),
        Some(why) => Err(ApiError::new(Kind::Unavailable, "", why)),
    }
}

async fn figures(State(api): State<Api>) -> impl IntoResponse {
    let text = api.exporter.render() + &scrape::written(&api.cluster.figures());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
