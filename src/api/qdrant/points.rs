//! Writing, reading, listing, counting and deleting points.

use super::{
    Unbuilt,
    answer::Answer,
    filter::{FilterBody, filter_field},
    refuse_unbuilt,
    vector::{BatchVectors, OneVector, PointVectors},
    within,
};
use crate::{
    api::{
        body::{At, Json},
        envelope::Reply,
        error::{ApiError, Result, Told},
        wishes::Wishes,
    },
    cluster::{Cluster, ClusterError, PointSelector, Written},
    model::{Payload, PayloadSelector, Point, PointId, Projection, ScrollRequest, VectorSelector, Vectors},
};
use axum::extract::State;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::json;
use std::{collections::HashSet, fmt};

/// Most points in one answer, and the furthest offset of a search.
pub(super) const LIMIT_MAX: usize = 1_000_000;
/// Points in an answer whose request does not say.
pub(super) const LIMIT_DEFAULT: usize = 10;

// --- writing ---

/// `PUT /collections/{collection}/points`
pub(super) async fn upsert(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<UpsertBody>,
) -> Result<Reply> {
    let written = cluster.upsert(&collection, body.into_model()?, &wishes.write()).await?;
    Ok(acknowledged(written))
}

/// What became of a write, as Qdrant says it.
pub(in crate::api) fn acknowledged(written: Written) -> Reply {
    let result = match written.position {
        Some(position) => json!({"operation_id": position, "status": "completed"}),
        None => json!({"status": "acknowledged"}),
    };
    Reply::new(&result).wrote(written)
}

/// Points row by row or column by column.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpsertBody {
    points: Option<Vec<PointBody>>,
    batch: Option<BatchBody>,
    shard_key: Unbuilt,
    update_filter: Unbuilt,
    update_mode: Unbuilt,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointBody {
    id: PointId,
    vector: PointVectors,
    payload: Option<Payload>,
}

/// A point whose id stands beside it; one that it names itself must be the same.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct PointContent {
    id: Option<PointId>,
    vector: PointVectors,
    payload: Option<Payload>,
}

impl PointContent {
    /// The point under its id.
    pub(in crate::api) fn into_model(self, id: PointId) -> Result<Point> {
        match self.id {
            Some(other) if other != id => Err(ApiError::invalid("id", format!("is {other}, not {id}"))),
            _ => PointBody { id, vector: self.vector, payload: self.payload }.into_model(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    ids: Vec<PointId>,
    vectors: BatchVectors,
    payloads: Option<Vec<Option<Payload>>>,
}

impl UpsertBody {
    fn into_model(self) -> Result<Vec<Point>> {
        refuse_unbuilt([
            ("shard_key", self.shard_key),
            ("update_filter", self.update_filter),
            ("update_mode", self.update_mode),
        ])?;
        let points = match (self.points, self.batch) {
            (Some(points), None) => numbered("points", points, PointBody::into_model)?,
            (None, Some(batch)) => batch.into_model().map_err(|e| e.within("batch"))?,
            _ => return Err(ApiError::invalid("body", "wants either points or batch")),
        };
        if points.is_empty() {
            return Err(ApiError::invalid("points", "is empty: there is nothing to write"));
        }
        Ok(points)
    }
}

/// Converts a list; an error names `name[i]`.
pub(super) fn numbered<T, U>(name: &str, items: Vec<T>, into: impl Fn(T) -> Result<U>) -> Result<Vec<U>> {
    let items = items.into_iter().enumerate();
    items.map(|(i, item)| into(item).map_err(|e| e.within(format!("{name}[{i}]")))).collect()
}

impl PointBody {
    fn into_model(self) -> Result<Point> {
        let vectors = self.vector.into_model().map_err(|e| e.within("vector"))?;
        Ok(Point { id: self.id, vectors, payload: self.payload.unwrap_or_default() })
    }
}

impl BatchBody {
    fn into_model(self) -> Result<Vec<Point>> {
        let count = self.ids.len();
        let same_count = |name: &str, other: usize| match other == count {
            true => Ok(()),
            false => Err(ApiError::invalid(name, format!("has {other} items for {count} ids"))),
        };
        let mut vectors = vec![Vectors::new(); count];
        let mut fill = |field: &str, name: &str, column: Vec<OneVector>| {
            same_count(field, column.len())?;
            let column = numbered(field, column, OneVector::into_model)?;
            for (vectors, vector) in vectors.iter_mut().zip(column) {
                vectors.insert(name.to_owned(), vector);
            }
            Ok::<_, ApiError>(())
        };
        match self.vectors {
            BatchVectors::Unnamed(column) => fill("vectors", "", column)?,
            BatchVectors::Named(columns) => {
                for (name, column) in columns {
                    fill(&format!("vectors.{name}"), &name, column)?;
                }
            }
        }
        let payloads = self.payloads.unwrap_or_else(|| vec![None; count]);
        same_count("payloads", payloads.len())?;
        let rows = self.ids.into_iter().zip(vectors).zip(payloads);
        let points =
            rows.map(|((id, vectors), payload)| Point { id, vectors, payload: payload.unwrap_or_default() });
        Ok(points.collect())
    }
}

// --- deleting ---

/// `POST /collections/{collection}/points/delete`
pub(super) async fn delete(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<DeleteBody>,
) -> Result<Reply> {
    let written = cluster.delete_points(&collection, body.into_model()?, &wishes.write()).await?;
    Ok(acknowledged(written))
}

/// Which points to delete.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteBody {
    points: Option<Vec<PointId>>,
    filter: Option<FilterBody>,
    shard_key: Unbuilt,
}

impl DeleteBody {
    fn into_model(self) -> Result<PointSelector> {
        refuse_unbuilt([("shard_key", self.shard_key)])?;
        match (self.points, filter_field(self.filter)?) {
            (Some(ids), None) if ids.is_empty() => {
                Err(ApiError::invalid("points", "is empty: there is nothing to delete"))
            }
            (Some(ids), None) => Ok(PointSelector::Ids(ids)),
            (None, Some(filter)) => Ok(PointSelector::Matching(filter)),
            _ => Err(ApiError::invalid("body", "wants either points or filter")),
        }
    }
}

// --- reading ---

/// `POST /collections/{collection}/points`
pub(super) async fn retrieve(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<RetrieveBody>,
) -> Result<Reply> {
    refuse_unbuilt([("shard_key", body.shard_key)])?;
    let (mut ids, mut there) = (body.ids, HashSet::new());
    // Each once, however often it is asked for.
    ids.retain(|id| there.insert(*id));
    within("ids", ids.len(), 0, LIMIT_MAX)?;
    let projection = projection(body.with_payload.or(Some(WithPayload::All)), body.with_vector);
    let seen = cluster.retrieve(&collection, ids, projection, &wishes.read()).await?;
    let mut answer = Answer::default();
    answer.list(&seen.value, Answer::record);
    Ok(Reply::json(answer.0).seen(seen))
}

/// Which points to read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetrieveBody {
    ids: Vec<PointId>,
    with_payload: Option<WithPayload>,
    #[serde(alias = "with_vectors")]
    with_vector: Option<WithVector>,
    shard_key: Unbuilt,
}

/// `GET /collections/{collection}/points/{id}`
pub(super) async fn get(
    State(cluster): State<Cluster>,
    At((collection, id)): At<(String, String)>,
    wishes: Wishes,
) -> Result<Reply> {
    let id = id.parse().map_err(|why: &str| ApiError::invalid("id", format!("\"{id}\": {why}")))?;
    let all = Projection { payload: PayloadSelector::All, vectors: VectorSelector::All };
    let seen = cluster.retrieve(&collection, vec![id], all, &wishes.read()).await?;
    let Some(record) = seen.value.first() else {
        return Err(ApiError::from(ClusterError::NoPoint(id)).telling(Told::Seen(seen.token)));
    };
    let mut answer = Answer::default();
    answer.record(record);
    Ok(Reply::json(answer.0).seen(seen))
}

/// `POST /collections/{collection}/points/scroll`
pub(super) async fn scroll(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<ScrollBody>,
) -> Result<Reply> {
    let seen = cluster.scroll(&collection, body.into_model()?, &wishes.read()).await?;
    let mut answer = Answer::default();
    answer.text(r#"{"points":"#);
    answer.list(&seen.value.points, Answer::record);
    answer.next_page(seen.value.next);
    answer.text("}");
    Ok(Reply::json(answer.0).seen(seen))
}

/// Which page to read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScrollBody {
    offset: Option<PointId>,
    limit: Option<usize>,
    filter: Option<FilterBody>,
    with_payload: Option<WithPayload>,
    #[serde(alias = "with_vectors")]
    with_vector: Option<WithVector>,
    order_by: Unbuilt,
    shard_key: Unbuilt,
}

impl ScrollBody {
    fn into_model(self) -> Result<ScrollRequest> {
        refuse_unbuilt([("order_by", self.order_by), ("shard_key", self.shard_key)])?;
        Ok(ScrollRequest {
            offset: self.offset,
            limit: within("limit", self.limit.unwrap_or(LIMIT_DEFAULT), 1, LIMIT_MAX)?,
            filter: filter_field(self.filter)?,
            projection: projection(self.with_payload.or(Some(WithPayload::All)), self.with_vector),
        })
    }
}

/// `POST /collections/{collection}/points/count`
pub(super) async fn count(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<CountBody>,
) -> Result<Reply> {
    refuse_unbuilt([("shard_key", body.shard_key)])?;
    let seen = cluster.count(&collection, filter_field(body.filter)?, &wishes.read()).await?;
    Ok(Reply::new(&json!({"count": seen.value})).seen(seen))
}

/// Which points to count; the count is exact, whatever `exact` says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CountBody {
    filter: Option<FilterBody>,
    #[serde(rename = "exact")]
    _exact: Option<bool>,
    shard_key: Unbuilt,
}

// --- projections ---

/// Which parts of a payload: `true`, `false`, a list of paths, `{include}` or `{exclude}`.
#[derive(Debug, PartialEq)]
pub(super) enum WithPayload {
    None,
    All,
    Include(Vec<String>),
    Exclude(Vec<String>),
}

/// Which vectors: `true`, `false` or a list of names.
#[derive(Debug, PartialEq)]
pub(super) enum WithVector {
    All(bool),
    Names(Vec<String>),
}

/// What of each point is wanted; nothing that is not asked for.
pub(super) fn projection(payload: Option<WithPayload>, vectors: Option<WithVector>) -> Projection {
    Projection {
        payload: match payload {
            None | Some(WithPayload::None) => PayloadSelector::None,
            Some(WithPayload::All) => PayloadSelector::All,
            Some(WithPayload::Include(paths)) => PayloadSelector::Include(paths),
            Some(WithPayload::Exclude(paths)) => PayloadSelector::Exclude(paths),
        },
        vectors: match vectors {
            None | Some(WithVector::All(false)) => VectorSelector::None,
            Some(WithVector::All(true)) => VectorSelector::All,
            Some(WithVector::Names(names)) => VectorSelector::Names(names),
        },
    }
}

impl<'de> Deserialize<'de> for WithPayload {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct PayloadVisitor;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Paths {
            include: Option<Vec<String>>,
            exclude: Option<Vec<String>>,
        }

        impl<'de> Visitor<'de> for PayloadVisitor {
            type Value = WithPayload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a list of paths, {include} or {exclude}")
            }

            fn visit_bool<E: Error>(self, all: bool) -> std::result::Result<WithPayload, E> {
                Ok(if all { WithPayload::All } else { WithPayload::None })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<WithPayload, A::Error> {
                strings(list).map(WithPayload::Include)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<WithPayload, A::Error> {
                match Paths::deserialize(MapAccessDeserializer::new(object))? {
                    Paths { include: Some(paths), exclude: None } => Ok(WithPayload::Include(paths)),
                    Paths { include: None, exclude: Some(paths) } => Ok(WithPayload::Exclude(paths)),
                    _ => Err(A::Error::custom("wants either include or exclude")),
                }
            }
        }

        d.deserialize_any(PayloadVisitor)
    }
}

impl<'de> Deserialize<'de> for WithVector {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct NamesVisitor;

        impl<'de> Visitor<'de> for NamesVisitor {
            type Value = WithVector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a list of vector names")
            }

            fn visit_bool<E: Error>(self, all: bool) -> std::result::Result<WithVector, E> {
                Ok(WithVector::All(all))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<WithVector, A::Error> {
                strings(list).map(WithVector::Names)
            }
        }

        d.deserialize_any(NamesVisitor)
    }
}

fn strings<'de, A: SeqAccess<'de>>(mut list: A) -> std::result::Result<Vec<String>, A::Error> {
    let mut strings = Vec::new();
    while let Some(string) = list.next_element()? {
        strings.push(string);
    }
    Ok(strings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{body::parse, error::tests::assert_refused},
        model::Vector,
    };
    use serde_json::Value;

    fn upsert(text: &str) -> Result<Vec<Point>> {
        parse::<UpsertBody>(text.as_bytes())?.into_model()
    }

    fn point(id: u64, vectors: &[(&str, f32)], payload: Value) -> Point {
        let vectors = vectors.iter().map(|(name, v)| (name.to_string(), Vector::Dense(vec![*v])));
        let Value::Object(payload) = payload else { panic!("a payload is an object") };
        Point { id: PointId::Num(id), vectors: vectors.collect(), payload }
    }

    #[test]
    fn rows_and_columns_say_the_same() {
        let points = vec![point(1, &[("", 0.5)], json!({"a": 1})), point(2, &[("", 1.5)], json!({}))];
        for text in [
            r#"{"points":[{"id":1,"vector":[0.5],"payload":{"a":1}},{"id":2,"vector":[1.5],"payload":null}]}"#,
            r#"{"batch":{"ids":[1,2],"vectors":[[0.5],[1.5]],"payloads":[{"a":1},null]}}"#,
            r#"{"batch":{"ids":[1,2],"vectors":{"":[[0.5],[1.5]]},"payloads":[{"a":1},{}]},"shard_key":null}"#,
        ] {
            assert_eq!(upsert(text).unwrap(), points, "{text}");
        }
        let named = vec![point(1, &[("a", 1.0), ("b", 2.0)], json!({}))];
        for text in [
            r#"{"points":[{"id":1,"vector":{"a":[1],"b":[2]}}]}"#,
            r#"{"batch":{"ids":[1],"vectors":{"a":[[1]],"b":[[2]]}}}"#,
        ] {
            assert_eq!(upsert(text).unwrap(), named, "{text}");
        }
    }

    #[test]
    fn what_is_no_point_is_named() {
        for (text, status, message) in [
            ("{}", 400, "body: wants either points or batch"),
            (r#"{"points":[]}"#, 400, "points: is empty"),
            (r#"{"points":[{"id":1}]}"#, 400, "points[0]: missing field `vector`"),
            (r#"{"points":[{"vector":[1]}]}"#, 400, "points[0]: missing field `id`"),
            (r#"{"points":[{"id":-1,"vector":[1]}]}"#, 400, "points[0].id: invalid type: integer `-1`"),
            (r#"{"points":[{"id":1.5,"vector":[1]}]}"#, 400, "points[0].id: invalid type: floating point"),
            (r#"{"points":[{"id":"x","vector":[1]}]}"#, 400, "points[0].id: value x is not a valid point ID"),
            (r#"{"points":[{"id":1,"vector":[1],"payload":[1]}]}"#, 400, "points[0].payload: invalid type"),
            (
                r#"{"points":[{"id":1,"vector":[1]},{"id":2,"vector":[1e99]}]}"#,
                400,
                "points[1].vector[0]: number 1e99",
            ),
            (
                r#"{"points":[{"id":1,"vector":[1],"colour":1}]}"#,
                400,
                "points[0].colour: unknown field `colour`",
            ),
            (r#"{"points":[{"id":1,"vector":[[1]]}]}"#, 501, "points[0].vector: a multi-dense vector"),
            (r#"{"batch":{"ids":[1,2],"vectors":[[1]]}}"#, 400, "batch.vectors: has 1 items for 2 ids"),
            (r#"{"batch":{"ids":[1],"vectors":{"a":[]}}}"#, 400, "batch.vectors.a: has 0 items for 1 ids"),
            (
                r#"{"batch":{"ids":[1],"vectors":[[1]],"payloads":[]}}"#,
                400,
                "batch.payloads: has 0 items for 1 ids",
            ),
            (r#"{"batch":{"ids":[1],"vectors":[[[1]]]}}"#, 501, "batch.vectors[0]: a multi-dense"),
            (r#"{"points":[],"update_filter":{}}"#, 501, "update_filter: is not implemented yet"),
            (r#"{"points":[],"update_mode":"insert_only"}"#, 501, "update_mode: is not"),
            (r#"{"points":[],"shard_key":"a"}"#, 501, "shard_key: is not"),
        ] {
            assert_refused(upsert(text), status, message, text);
        }
    }

    #[test]
    fn deletions() {
        let read = |text: &str| parse::<DeleteBody>(text.as_bytes())?.into_model();
        assert_eq!(read(r#"{"points":[1]}"#).unwrap(), PointSelector::Ids(vec![PointId::Num(1)]));
        assert_eq!(read(r#"{"filter":{}}"#).unwrap(), PointSelector::Matching(Default::default()));
        for (text, message) in [
            ("{}", "body: wants either points or filter"),
            (r#"{"points":[1],"filter":{}}"#, "body: wants either"),
            (r#"{"points":[]}"#, "points: is empty"),
            (r#"{"filter":{"must":[{}]}}"#, "filter.must[0]: is no condition"),
        ] {
            assert_refused(read(text), 400, message, text);
        }
    }

    #[test]
    fn pages() {
        let read = |text: &str| parse::<ScrollBody>(text.as_bytes())?.into_model();
        let usual = read("{}").unwrap();
        assert_eq!((usual.limit, usual.offset, usual.filter), (10, None, None));
        assert_eq!(usual.projection, projection(Some(WithPayload::All), None));
        let bare = read(r#"{"limit":1,"offset":7,"with_payload":false,"with_vectors":["a"]}"#).unwrap();
        assert_eq!((bare.limit, bare.offset), (1, Some(PointId::Num(7))));
        let vectors = VectorSelector::Names(vec!["a".into()]);
        assert_eq!(bare.projection, Projection { payload: PayloadSelector::None, vectors });
        assert_eq!(read(r#"{"limit":0}"#).unwrap_err().to_string(), "limit: 0 is not within 1 to 1000000");
        assert_eq!(read(r#"{"order_by":"a"}"#).unwrap_err().status().as_u16(), 501);
    }

    #[test]
    fn payload_selectors() {
        let read = |text: &str| parse::<WithPayload>(text.as_bytes());
        let paths = || vec!["a.b".to_owned()];
        assert_eq!(read("true").unwrap(), WithPayload::All);
        assert_eq!(read("false").unwrap(), WithPayload::None);
        assert_eq!(read(r#"["a.b"]"#).unwrap(), WithPayload::Include(paths()));
        assert_eq!(read(r#"{"include":["a.b"]}"#).unwrap(), WithPayload::Include(paths()));
        assert_eq!(read(r#"{"exclude":["a.b"]}"#).unwrap(), WithPayload::Exclude(paths()));
        for text in ["7", r#"{"include":[],"exclude":[]}"#, "{}", r#"{"only":[]}"#, "[7]"] {
            read(text).unwrap_err();
        }
    }
}
