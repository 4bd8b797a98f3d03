//! The hash of each shard's state, for people who check the database.

use crate::{
    api::{
        Api,
        body::At,
        error::{ApiError, Result},
        wishes::refuse_others,
    },
    cluster::{Cluster, ReadOptions, ShardHash, Token},
};
use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::HeaderMap,
    routing::get,
};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// Routes with parameters and a deadline of their own.
pub(in crate::api) fn audits() -> Router<Api> {
    Router::new().route("/annal/v1/collections/{collection}/state-hash", get(state_hash))
}

/// How long a shard may take to hash itself: a scrub reads every record.
const AUDIT_WITHIN: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default)]
    scrub: bool,
    at: Option<String>,
}

/// `GET /annal/v1/collections/{collection}/state-hash`
async fn state_hash(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    parameters: std::result::Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Vec<ShardHash>>> {
    let Query(parameters) = parameters.map_err(|e| ApiError::invalid("query parameters", e.body_text()))?;
    refuse_others(&headers, &[])?;
    let at = parameters.at.map(|text| text.parse::<Token>().map_err(|why| ApiError::invalid("at", why)));
    let at = at.transpose()?;
    let options = ReadOptions::linearizable(Instant::now() + AUDIT_WITHIN);
    Ok(Json(cluster.state_hash(&collection, at.as_ref(), parameters.scrub, &options).await?))
}
