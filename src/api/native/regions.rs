//! Regions over HTTP: what people ask of them, and what they ask each other.

use crate::{
    api::{
        Api,
        body::{Json, parse},
        error::{ApiError, Result},
        wishes::{Wishes, refuse_others},
    },
    cluster::{ClusterError, Loss, ShardLoss},
    model::{Generation, Kind},
    region::{Answer, LinkReport, Question, Regions, STREAM, Wanted},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Routes with parameters and a deadline of their own, or none.
pub(in crate::api) fn own_parameters() -> Router<Api> {
    Router::new().route(STREAM, post(stream)).route("/annal/v1/regions/loss", get(loss))
}

/// How long the loss may take to be looked up.
const LOSS_WITHIN: Duration = Duration::from_secs(10);

/// `GET /annal/v1/regions`
pub(super) async fn links(State(regions): State<Regions>) -> Result<axum::Json<Links>> {
    Ok(axum::Json(Links { links: regions.links().await? }))
}

#[derive(Serialize)]
pub(super) struct Links {
    links: Vec<LinkReport>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowBody {
    collection: String,
    home: String,
}

/// `POST /annal/v1/regions/follow`
pub(super) async fn follow(
    State(regions): State<Regions>,
    wishes: Wishes,
    Json(FollowBody { collection, home }): Json<FollowBody>,
) -> Result<axum::Json<serde_json::Value>> {
    regions.follow(&collection, &home, wishes.deadline).await?;
    Ok(axum::Json(serde_json::json!({"follows": true})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CollectionBody {
    collection: String,
}

/// `DELETE /annal/v1/regions/follow`
pub(super) async fn unfollow(
    State(regions): State<Regions>,
    wishes: Wishes,
    Json(CollectionBody { collection }): Json<CollectionBody>,
) -> Result<axum::Json<serde_json::Value>> {
    regions.unfollow(&collection, wishes.deadline).await?;
    Ok(axum::Json(serde_json::json!({"follows": false})))
}

/// `POST /annal/v1/regions/handover`
pub(super) async fn handover(
    State(regions): State<Regions>,
    wishes: Wishes,
    Json(CollectionBody { collection }): Json<CollectionBody>,
) -> Result<axum::Json<serde_json::Value>> {
    let of = regions.handover(&collection, wishes.deadline).await?;
    Ok(axum::Json(serde_json::json!({"home": true, "generation": of.region.generation()})))
}

/// What did not arrive.
#[derive(Serialize)]
pub(super) struct Manifest {
    generation: Generation,
    shards: Vec<LossOfShard>,
    complete: bool,
}

#[derive(Serialize)]
struct LossOfShard {
    shard: usize,
    #[serde(flatten)]
    loss: ShardLoss,
}

impl From<Loss> for Manifest {
    fn from(loss: Loss) -> Self {
        let (generation, complete) = (loss.generation, loss.is_complete());
        let shards = loss.shards.into_iter().enumerate();
        let shards = shards.map(|(shard, loss)| LossOfShard { shard, loss }).collect();
        Manifest { generation, shards, complete }
    }
}

/// `POST /annal/v1/regions/takeover`
pub(super) async fn takeover(
    State(regions): State<Regions>,
    wishes: Wishes,
    Json(CollectionBody { collection }): Json<CollectionBody>,
) -> Result<axum::Json<Manifest>> {
    Ok(axum::Json(regions.takeover(&collection, wishes.deadline).await?.into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LossQuery {
    collection: String,
}

/// `GET /annal/v1/regions/loss?collection=`
async fn loss(
    State(regions): State<Regions>,
    headers: HeaderMap,
    query: std::result::Result<Query<LossQuery>, QueryRejection>,
) -> Result<axum::Json<Manifest>> {
    let Query(LossQuery { collection }) =
        query.map_err(|e| ApiError::invalid("query parameters", e.body_text()))?;
    refuse_others(&headers, &[])?;
    Ok(axum::Json(regions.loss(&collection, Instant::now() + LOSS_WITHIN).await?.into()))
}

/// `POST /annal/v1/regions/ask`: another region asks. Always answered with 200 and a result.
pub(super) async fn ask(
    State(regions): State<Regions>,
    Json(question): Json<Question>,
) -> axum::Json<std::result::Result<Answer, ClusterError>> {
    axum::Json(regions.answer(question).await)
}

/// `POST /annal/v1/regions/stream`: another region wants a shard's commands, or a copy of it.
async fn stream(State(api): State<Api>, body: Bytes) -> Result<Response> {
    let wanted: Wanted = parse(&body)?;
    if api.leaving.is_cancelled() {
        return Err(ApiError::new(Kind::Unavailable, "", "the node is stopping"));
    }
    match api.regions.answer_stream(wanted).await {
        Ok(pieces) => {
            let body = Body::from_stream(pieces.take_until(api.leaving.cancelled_owned()));
            Ok(([(CONTENT_TYPE, "application/octet-stream")], body).into_response())
        }
        Err(error) => Ok(axum::Json(Err::<Answer, ClusterError>(error)).into_response()),
    }
}
