//! What people ask of the cluster itself: nodes drained and removed, shards moved and led.
//!
//! Each may be asked again, by anyone, of any node: `{"done":true}` (200) tells that it is so, `{"done":false}` (202)
//! that it goes on although the request's time is over. `GET /annal/v1/cluster` shows how far it is.

use crate::{
    api::{
        body::{At, Json, JsonIfAny},
        error::{ApiError, Result},
        wishes::Wishes,
    },
    cluster::Cluster,
    model::ShardNumber,
};
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

/// Whether it is done, or goes on.
pub(super) struct Progress(bool);

impl IntoResponse for Progress {
    fn into_response(self) -> Response {
        let status = if self.0 { StatusCode::OK } else { StatusCode::ACCEPTED };
        (status, axum::Json(json!({"done": self.0}))).into_response()
    }
}

/// Whether shards are to go, or may come again.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    #[serde(default)]
    undrain: bool,
}

/// `POST /annal/v1/cluster/nodes/{node}/drain`
pub(super) async fn drain(
    State(cluster): State<Cluster>,
    At(node): At<String>,
    wishes: Wishes,
    JsonIfAny(body): JsonIfAny<DrainBody>,
) -> Result<Progress> {
    if body.undrain {
        cluster.undrain_node(&node, wishes.deadline).await?;
        return Ok(Progress(true));
    }
    Ok(Progress(cluster.drain_node(&node, wishes.deadline).await?))
}

/// `DELETE /annal/v1/cluster/nodes/{node}`
pub(super) async fn remove(
    State(cluster): State<Cluster>,
    At(node): At<String>,
    wishes: Wishes,
) -> Result<Progress> {
    Ok(Progress(cluster.remove_node(&node, wishes.deadline).await?))
}

/// From which node to which, by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveBody {
    from: String,
    to: String,
}

/// `POST /annal/v1/collections/{collection}/shards/{shard}/move`
pub(super) async fn move_shard(
    State(cluster): State<Cluster>,
    At((collection, shard)): At<(String, u32)>,
    wishes: Wishes,
    Json(MoveBody { from, to }): Json<MoveBody>,
) -> Result<Progress> {
    if from == to {
        return Err(ApiError::invalid("to", format!("\"{to}\" is where it comes from")));
    }
    let shard = ShardNumber(shard);
    Ok(Progress(cluster.move_shard(&collection, shard, &from, &to, wishes.deadline).await?))
}

/// To which node, by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeadBody {
    to: String,
}

/// `POST /annal/v1/collections/{collection}/shards/{shard}/lead`
pub(super) async fn lead(
    State(cluster): State<Cluster>,
    At((collection, shard)): At<(String, u32)>,
    wishes: Wishes,
    Json(body): Json<LeadBody>,
) -> Result<Progress> {
    Ok(Progress(cluster.lead_shard(&collection, ShardNumber(shard), &body.to, wishes.deadline).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    #[test]
    fn what_goes_on_is_accepted() {
        assert_eq!(Progress(true).into_response().status(), 200);
        assert_eq!(Progress(false).into_response().status(), 202);
    }

    #[test]
    fn bodies_are_checked() {
        assert!(!parse::<DrainBody>(b"{}").unwrap().undrain);
        assert!(parse::<DrainBody>(br#"{"undrain":true}"#).unwrap().undrain);
        assert_refused(
            parse::<DrainBody>(br#"{"drain":true}"#).map(|b| b.undrain),
            400,
            "drain: unknown",
            "",
        );
        assert_refused(
            parse::<MoveBody>(br#"{"from":"a"}"#).map(|b| b.from),
            400,
            "Format error in JSON body: missing field `to`",
            "",
        );
        assert_refused(parse::<LeadBody>(br#"{"to":7}"#).map(|b| b.to), 400, "to: invalid type", "");
    }
}
