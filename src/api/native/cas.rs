//! Writing or deleting a point only at the version its writer has seen.
//!
//! Both the version and the point must be said, null included: what is left out by mistake deletes nothing.

use crate::{
    api::{
        body::{At, Json},
        envelope::Reply,
        error::{ApiError, Result},
        qdrant::{PointContent, acknowledged},
        wishes::Wishes,
    },
    cluster::Cluster,
    model::{Point, PointId, Position},
};
use axum::extract::State;
use serde::{Deserialize, Deserializer};

/// `POST /annal/v1/collections/{collection}/points/cas`
///
/// Errors: 412 with the version the point is at.
pub(super) async fn cas(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<CasBody>,
) -> Result<Reply> {
    let (id, if_version) = (body.id, body.if_version.map(Position));
    let point = body.into_model()?;
    Ok(acknowledged(cluster.cas(&collection, id, if_version, point, &wishes.write()).await?))
}

/// Which point, at which version (null: it must not exist), and what it becomes (null: deleted).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CasBody {
    id: PointId,
    #[serde(deserialize_with = "said")]
    if_version: Option<u64>,
    #[serde(deserialize_with = "said")]
    point: Option<PointContent>,
}

/// A null that must be written: without this, a missing field is one.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> std::result::Result<Option<T>, D::Error> {
    Option::deserialize(d)
}

impl CasBody {
    fn into_model(self) -> Result<Option<Point>> {
        let id = self.id;
        self.point.map(|content| content.into_model(id)).transpose().map_err(|e: ApiError| e.within("point"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    fn read(text: &str) -> Result<(Option<u64>, Option<Point>)> {
        let body = parse::<CasBody>(text.as_bytes())?;
        Ok((body.if_version, body.into_model()?))
    }

    #[test]
    fn writes_and_deletions() {
        let (version, point) =
            read(r#"{"id":7,"if_version":3,"point":{"vector":[1],"payload":{"a":1}}}"#).unwrap();
        let point = point.unwrap();
        assert_eq!((version, point.id, point.payload.len()), (Some(3), PointId::Num(7), 1));
        let (version, point) = read(r#"{"id":7,"if_version":null,"point":{"id":7,"vector":{}}}"#).unwrap();
        assert_eq!((version, point.unwrap().vectors.len()), (None, 0));
        assert_eq!(read(r#"{"id":7,"if_version":3,"point":null}"#).unwrap(), (Some(3), None));
    }

    #[test]
    fn nothing_is_left_to_guess() {
        for (text, message) in [
            (r#"{"id":7,"point":null}"#, "Format error in JSON body: missing field `if_version`"),
            (r#"{"id":7,"if_version":3}"#, "Format error in JSON body: missing field `point`"),
            (r#"{"if_version":3,"point":null}"#, "Format error in JSON body: missing field `id`"),
            (r#"{"id":7,"if_version":-1,"point":null}"#, "if_version: invalid value: integer `-1`"),
            (r#"{"id":7,"if_version":"3","point":null}"#, "if_version: invalid type: string"),
            (r#"{"id":7,"if_version":3,"point":{"id":8,"vector":[1]}}"#, "point.id: is 8, not 7"),
            (r#"{"id":7,"if_version":3,"point":{}}"#, "point: missing field `vector`"),
            (r#"{"id":7,"if_version":3,"point":{"vector":[1e99]}}"#, "point.vector[0]: number 1e99"),
            (r#"{"id":7,"if_version":3,"point":null,"force":true}"#, "force: unknown field `force`"),
        ] {
            assert_refused(read(text), 400, message, text);
        }
    }
}
