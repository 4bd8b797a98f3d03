//! Searching: `query`, its batch, and the older `search` routes, which ask for the same.

use super::{
    Unbuilt,
    answer::Answer,
    filter::{FilterBody, filter_field},
    numbers::{lifted, list_or},
    points::{LIMIT_DEFAULT, LIMIT_MAX, WithPayload, WithVector, numbered, projection},
    refuse_unbuilt,
    vector::{Example, ExampleVisitor, OneVector, numbers},
    within,
};
use crate::{
    api::{
        body::{self, At, BodyLimit, Json},
        envelope::Reply,
        error::{ApiError, Result},
        wishes::Wishes,
    },
    cluster::Cluster,
    model::{ScoredPoint, SearchParams, SearchRequest, Target, Vector},
};
use axum::extract::{FromRef, FromRequest, Request, State};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use std::fmt;

/// Most searches in one batch.
const BATCH_MAX: usize = 4_096;
/// Largest `hnsw_ef`.
const EF_MAX: u32 = 100_000;

/// `POST /collections/{collection}/points/query`
pub(super) async fn query(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    AroundList(body): AroundList<QueryBody>,
) -> Result<Reply> {
    let seen = cluster.search(&collection, body.into_model()?, &wishes.read()).await?;
    Ok(Reply::json(one(&seen.value, points)).seen(seen))
}

/// `POST /collections/{collection}/points/query/batch`
pub(super) async fn query_batch(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<Batch<QueryBody>>,
) -> Result<Reply> {
    let requests = body.into_model(QueryBody::into_model)?;
    let seen = cluster.search_batch(&collection, requests, &wishes.read()).await?;
    Ok(Reply::json(many(&seen.value, points)).seen(seen))
}

/// `POST /collections/{collection}/points/search`
pub(super) async fn search(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    AroundList(body): AroundList<SearchBody>,
) -> Result<Reply> {
    let seen = cluster.search(&collection, body.into_model()?, &wishes.read()).await?;
    Ok(Reply::json(one(&seen.value, list)).seen(seen))
}

/// `POST /collections/{collection}/points/search/batch`
pub(super) async fn search_batch(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<Batch<SearchBody>>,
) -> Result<Reply> {
    let requests = body.into_model(SearchBody::into_model)?;
    let seen = cluster.search_batch(&collection, requests, &wishes.read()).await?;
    Ok(Reply::json(many(&seen.value, list)).seen(seen))
}

// --- answers ---

type WriteFound = fn(&mut Answer, &[ScoredPoint]);

/// What `search` found: `[…]`.
fn list(answer: &mut Answer, found: &[ScoredPoint]) {
    answer.list(found, Answer::scored);
}

/// What `query` found: `{"points":[…]}`.
fn points(answer: &mut Answer, found: &[ScoredPoint]) {
    answer.text(r#"{"points":"#);
    list(answer, found);
    answer.text("}");
}

fn one(found: &[ScoredPoint], write: WriteFound) -> Vec<u8> {
    let mut answer = Answer::default();
    write(&mut answer, found);
    answer.0
}

fn many(found: &[Vec<ScoredPoint>], write: WriteFound) -> Vec<u8> {
    let mut answer = Answer::default();
    answer.list(found, |answer, found| write(answer, found));
    answer.0
}

// --- requests ---

/// A JSON body of which one list of numbers is most.
pub(super) trait ListBody: DeserializeOwned + Send + 'static {
    /// The member that may be the list.
    const LIST: &'static str;

    /// Puts the list in its place.
    fn put(&mut self, values: Vec<f32>);
}

/// A parsed JSON body, of which the list was read apart.
pub(super) struct AroundList<T>(pub(super) T);

impl<S, T> FromRequest<S> for AroundList<T>
where
    S: Send + Sync,
    T: ListBody,
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        body::parsed(request, state, parse_around).await.map(AroundList)
    }
}

/// Parses a body; one without a plain list, or with an error to be named, as any other.
fn parse_around<T: ListBody>(text: &[u8]) -> Result<T> {
    if let Some((values, others)) = lifted(text, T::LIST)
        && let Ok(mut body) = serde_json::from_slice::<T>(&others)
    {
        body.put(values);
        return Ok(body);
    }
    body::parse(text)
}

/// Searches to be answered together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch<T> {
    searches: Vec<T>,
}

impl<T> Batch<T> {
    fn into_model(self, into: fn(T) -> Result<SearchRequest>) -> Result<Vec<SearchRequest>> {
        if self.searches.len() > BATCH_MAX {
            let why = format!("has {} searches, at most {BATCH_MAX} are served at once", self.searches.len());
            return Err(ApiError::invalid("searches", why));
        }
        numbered("searches", self.searches, into)
    }
}

/// A search as `query` words it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueryBody {
    query: Option<Query>,
    using: Option<String>,
    filter: Option<FilterBody>,
    params: Option<ParamsBody>,
    score_threshold: Option<f32>,
    limit: Option<usize>,
    offset: Option<usize>,
    with_payload: Option<WithPayload>,
    #[serde(alias = "with_vectors")]
    with_vector: Option<WithVector>,
    prefetch: Unbuilt,
    lookup_from: Unbuilt,
    shard_key: Unbuilt,
}

impl ListBody for QueryBody {
    const LIST: &'static str = "query";

    fn put(&mut self, values: Vec<f32>) {
        self.query = Some(Query::Example(Example::list(values)));
    }
}

impl QueryBody {
    fn into_model(self) -> Result<SearchRequest> {
        refuse_unbuilt([
            ("prefetch", self.prefetch),
            ("lookup_from", self.lookup_from),
            ("shard_key", self.shard_key),
        ])?;
        let target = match self.query {
            None => Target::All,
            Some(query) => query.into_model().map_err(|e| e.within("query"))?,
        };
        Ok(SearchRequest {
            target,
            using: self.using.unwrap_or_default(),
            filter: filter_field(self.filter)?,
            limit: within("limit", self.limit.unwrap_or(LIMIT_DEFAULT), 1, LIMIT_MAX)?,
            offset: within("offset", self.offset.unwrap_or(0), 0, LIMIT_MAX)?,
            score_threshold: self.score_threshold,
            params: self.params.map(ParamsBody::into_model).transpose()?.unwrap_or_default(),
            projection: projection(self.with_payload, self.with_vector),
        })
    }
}

/// A search as the older `search` words it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchBody {
    vector: SearchVector,
    filter: Option<FilterBody>,
    params: Option<ParamsBody>,
    score_threshold: Option<f32>,
    limit: usize,
    offset: Option<usize>,
    with_payload: Option<WithPayload>,
    #[serde(alias = "with_vectors")]
    with_vector: Option<WithVector>,
    shard_key: Unbuilt,
}

impl ListBody for SearchBody {
    const LIST: &'static str = "vector";

    fn put(&mut self, values: Vec<f32>) {
        self.vector = SearchVector::unnamed(OneVector::Dense(values));
    }
}

impl SearchBody {
    fn into_model(self) -> Result<SearchRequest> {
        QueryBody {
            query: Some(Query::Example(Example::Vector(self.vector.vector))),
            using: Some(self.vector.name),
            filter: self.filter,
            params: self.params,
            score_threshold: self.score_threshold,
            limit: Some(self.limit),
            offset: self.offset,
            with_payload: self.with_payload,
            with_vector: self.with_vector,
            prefetch: None,
            lookup_from: None,
            shard_key: self.shard_key,
        }
        .into_model()
    }
}

/// Knobs of a search. Those that could only weaken an answer (`indexed_only`, `quantization`, `acorn`) are
/// accepted and met: every answer is complete, and scored with the vectors as they were written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParamsBody {
    exact: Option<bool>,
    hnsw_ef: Option<u32>,
    #[serde(rename = "indexed_only")]
    _indexed_only: Option<bool>,
    #[serde(rename = "quantization")]
    _quantization: Option<QuantizationBody>,
    #[serde(rename = "acorn")]
    _acorn: Option<AcornBody>,
    idf: Unbuilt,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantizationBody {
    #[serde(rename = "ignore")]
    _ignore: Option<bool>,
    #[serde(rename = "rescore")]
    _rescore: Option<bool>,
    #[serde(rename = "oversampling")]
    _oversampling: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AcornBody {
    #[serde(rename = "enable")]
    _enable: Option<bool>,
    #[serde(rename = "max_selectivity")]
    _max_selectivity: Option<f64>,
}

impl ParamsBody {
    fn into_model(self) -> Result<SearchParams> {
        refuse_unbuilt([("params.idf", self.idf)])?;
        let ef = self.hnsw_ef.map(|ef| within("params.hnsw_ef", ef, 1, EF_MAX)).transpose()?;
        Ok(SearchParams { exact: self.exact.unwrap_or(false), ef })
    }
}

/// What a query looks for: an example as it stands, or an object that says how to look.
enum Query {
    Example(Example),
    Object(Box<QueryObject>),
}

/// Every field an object in the place of a query may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryObject {
    nearest: Option<Example>,
    mmr: Unbuilt,
    recommend: Unbuilt,
    discover: Unbuilt,
    context: Unbuilt,
    order_by: Unbuilt,
    fusion: Unbuilt,
    rrf: Unbuilt,
    formula: Unbuilt,
    defaults: Unbuilt,
    sample: Unbuilt,
    relevance_feedback: Unbuilt,
    // A sparse vector.
    indices: Unbuilt,
    values: Unbuilt,
    // An object to be embedded.
    text: Unbuilt,
    image: Unbuilt,
    object: Unbuilt,
    model: Unbuilt,
    options: Unbuilt,
}

impl Query {
    fn into_model(self) -> Result<Target> {
        match self {
            Query::Example(example) => target(example),
            Query::Object(object) => object.into_model(),
        }
    }
}

impl QueryObject {
    fn into_model(self) -> Result<Target> {
        refuse_unbuilt([
            ("mmr", self.mmr),
            ("recommend", self.recommend),
            ("discover", self.discover),
            ("context", self.context),
            ("order_by", self.order_by),
            ("fusion", self.fusion),
            ("rrf", self.rrf),
            ("formula", self.formula),
            ("defaults", self.defaults),
            ("sample", self.sample),
            ("relevance_feedback", self.relevance_feedback),
            ("indices", self.indices),
            ("values", self.values),
            ("text", self.text),
            ("image", self.image),
            ("object", self.object),
            ("model", self.model),
            ("options", self.options),
        ])?;
        let nearest = self.nearest.ok_or_else(|| ApiError::invalid("nearest", "is missing"))?;
        target(nearest).map_err(|e| e.within("nearest"))
    }
}

fn target(example: Example) -> Result<Target> {
    match example {
        Example::Id(id) => Ok(Target::NearestTo(id)),
        Example::Vector(vector) => match vector.into_model()? {
            Vector::Dense(values) => Ok(Target::Nearest(values)),
            Vector::Sparse(_) => Err(ApiError::unbuilt("", "a sparse query")),
        },
    }
}

impl<'de> Deserialize<'de> for Query {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct QueryVisitor;

        impl<'de> Visitor<'de> for QueryVisitor {
            type Value = Query;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vector, a point id or an object such as {nearest}")
            }

            fn visit_u64<E: Error>(self, id: u64) -> std::result::Result<Query, E> {
                ExampleVisitor.visit_u64(id).map(Query::Example)
            }

            fn visit_str<E: Error>(self, id: &str) -> std::result::Result<Query, E> {
                ExampleVisitor.visit_str(id).map(Query::Example)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<Query, A::Error> {
                ExampleVisitor.visit_seq(list).map(Query::Example)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<Query, A::Error> {
                QueryObject::deserialize(MapAccessDeserializer::new(object))
                    .map(|o| Query::Object(Box::new(o)))
            }
        }

        list_or(d, |values| Query::Example(Example::list(values)), QueryVisitor)
    }
}

/// A list of numbers, or `{name, vector}`.
struct SearchVector {
    name: String,
    vector: OneVector,
}

impl<'de> Deserialize<'de> for SearchVector {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct SearchVisitor;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            name: String,
            vector: OneVector,
        }

        impl<'de> Visitor<'de> for SearchVisitor {
            type Value = SearchVector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers or {name, vector}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<SearchVector, A::Error> {
                numbers(list).map(SearchVector::unnamed)
            }

            fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<SearchVector, A::Error> {
                let Named { name, vector } = Named::deserialize(MapAccessDeserializer::new(object))?;
                Ok(SearchVector { name, vector })
            }
        }

        list_or(d, |values| SearchVector::unnamed(OneVector::Dense(values)), SearchVisitor)
    }
}

impl SearchVector {
    fn unnamed(vector: OneVector) -> Self {
        SearchVector { name: String::new(), vector }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{body::parse, error::tests::assert_refused},
        model::{PayloadSelector, PointId, VectorSelector},
    };

    fn query(text: &str) -> Result<SearchRequest> {
        parse_around::<QueryBody>(text.as_bytes())?.into_model()
    }

    #[test]
    fn targets() {
        for (text, target) in [
            ("{}", Target::All),
            (r#"{"query":null}"#, Target::All),
            (r#"{"query":[1,2.5]}"#, Target::Nearest(vec![1.0, 2.5])),
            (r#"{"query":{"nearest":[1]}}"#, Target::Nearest(vec![1.0])),
            (r#"{"query":7}"#, Target::NearestTo(PointId::Num(7))),
            (r#"{"query":{"nearest":7}}"#, Target::NearestTo(PointId::Num(7))),
            (r#"{"query":"00000000000000000000000000000009"}"#, Target::NearestTo(PointId::Uuid(9))),
        ] {
            assert_eq!(query(text).unwrap().target, target, "{text}");
        }
    }

    #[test]
    fn everything_else_of_a_query() {
        let usual = query("{}").unwrap();
        assert_eq!((usual.limit, usual.offset, usual.using.as_str()), (10, 0, ""));
        assert_eq!((usual.params, usual.score_threshold), (SearchParams::default(), None));
        assert_eq!(usual.projection, Default::default());
        let full = query(
            r#"{"query":[1],"using":"v","filter":{"must":{"has_id":[1]}},"limit":3,"offset":2,"score_threshold":0.5,
               "params":{"exact":true,"hnsw_ef":64,"indexed_only":true,"acorn":{"enable":true},
               "quantization":{"ignore":false,"rescore":true,"oversampling":2.0}},
               "with_payload":["a"],"with_vector":true,"prefetch":null}"#,
        )
        .unwrap();
        assert_eq!((full.limit, full.offset, full.using.as_str()), (3, 2, "v"));
        assert_eq!(
            (full.params, full.score_threshold),
            (SearchParams { exact: true, ef: Some(64) }, Some(0.5))
        );
        assert_eq!(full.filter.unwrap().must.len(), 1);
        assert_eq!(full.projection.payload, PayloadSelector::Include(vec!["a".into()]));
        assert_eq!(full.projection.vectors, VectorSelector::All);
    }

    #[test]
    fn a_list_read_apart_changes_nothing() {
        let before = [
            "",
            r#""limit":3,"#,
            r#" "using" : "]},\"query\":[9]", "#,
            r#" "using" : "]},{", "#,
            r#""filter":{"must":[{"key":"query","match":{"value":"]"}}]},"#,
            r#""query":null,"#,
            r#""other":[1],"#,
            "7,",
        ];
        let lists = ["[1,2.5]", "[]", " [ 0.25 ] ", "[null]", "[1,]", "[[1]]", "7", "[1 2]"];
        let after = ["", r#","limit":7"#, r#","query":[3]"#, ",", "}"];
        let told = |parsed: Result<QueryBody>| {
            parsed.and_then(QueryBody::into_model).map_err(|e| (e.status(), e.to_string()))
        };
        let mut read = 0;
        for before in before {
            for (list, after) in lists.iter().flat_map(|list| after.map(|after| (list, after))) {
                let text = format!("{{{before}\"query\":{list}{after}}}");
                let ordinary = told(parse(text.as_bytes()));
                assert_eq!(told(parse_around(text.as_bytes())), ordinary, "{text}");
                read += usize::from(ordinary.is_ok());
            }
        }
        assert!(read > 20, "{read} of them are queries");
    }

    #[test]
    fn the_older_words_ask_for_the_same() {
        let search = |text: &str| parse_around::<SearchBody>(text.as_bytes())?.into_model();
        let unnamed = search(r#"{"vector":[1],"limit":3,"with_vectors":true}"#).unwrap();
        assert_eq!(unnamed, query(r#"{"query":[1],"limit":3,"with_vector":true}"#).unwrap());
        let named = search(r#"{"vector":{"name":"v","vector":[1]},"limit":3}"#).unwrap();
        assert_eq!(named, query(r#"{"query":[1],"using":"v","limit":3}"#).unwrap());
        let error = search(r#"{"vector":[1]}"#).unwrap_err();
        assert!(error.to_string().starts_with("Format error in JSON body: missing field `limit`"), "{error}");
        let error =
            search(r#"{"vector":{"name":"s","vector":{"indices":[],"values":[]}},"limit":3}"#).unwrap_err();
        assert_eq!(error.to_string(), "query: a sparse query is not implemented yet");
    }

    #[test]
    fn what_is_no_query_is_named() {
        for (text, status, message) in [
            (r#"{"query":true}"#, 400, "query: invalid type: boolean"),
            (r#"{"query":-1}"#, 400, "query: invalid type: integer `-1`"),
            (r#"{"query":[1,"x"]}"#, 400, "query[1]: invalid type: string"),
            (r#"{"query":[1e39]}"#, 400, "query[0]: number 1e39"),
            (r#"{"query":{}}"#, 400, "query.nearest: is missing"),
            (r#"{"query":{"near":[1]}}"#, 400, "query.near: unknown field `near`"),
            (r#"{"limit":0}"#, 400, "limit: 0 is not within 1 to 1000000"),
            (r#"{"limit":1000001}"#, 400, "limit: 1000001 is not within"),
            (r#"{"limit":-1}"#, 400, "limit: invalid value"),
            (r#"{"offset":1000001}"#, 400, "offset: 1000001 is not within 0 to 1000000"),
            (r#"{"score_threshold":1e39}"#, 400, "score_threshold: number out of range"),
            (r#"{"params":{"hnsw_ef":0}}"#, 400, "params.hnsw_ef: 0 is not within 1 to 100000"),
            (r#"{"params":{"ef":1}}"#, 400, "params.ef: unknown field `ef`"),
            (r#"{"filter":{"must":[{}]}}"#, 400, "filter.must[0]: is no condition"),
            (r#"{"wiht_payload":true}"#, 400, "wiht_payload: unknown field"),
            (r#"{"prefetch":[]}"#, 501, "prefetch: is not implemented yet"),
            (r#"{"lookup_from":{}}"#, 501, "lookup_from: is not"),
            (r#"{"shard_key":"a"}"#, 501, "shard_key: is not"),
            (r#"{"params":{"idf":{}}}"#, 501, "params.idf: is not"),
            (r#"{"query":{"fusion":"rrf"}}"#, 501, "query.fusion: is not"),
            (r#"{"query":{"recommend":{}}}"#, 501, "query.recommend: is not"),
            (r#"{"query":{"nearest":[1],"mmr":{}}}"#, 501, "query.mmr: is not"),
            (r#"{"query":{"nearest":[[1]]}}"#, 501, "query.nearest: a multi-dense vector"),
            (r#"{"query":[[1],[2]]}"#, 501, "query: a multi-dense vector"),
            (r#"{"query":{"indices":[1],"values":[1]}}"#, 501, "query.indices: is not"),
        ] {
            assert_refused(query(text), status, message, text);
        }
    }

    #[test]
    fn batches_number_their_searches() {
        let batch =
            |text: &str| parse::<Batch<QueryBody>>(text.as_bytes())?.into_model(QueryBody::into_model);
        assert_eq!(batch(r#"{"searches":[{"query":[1]},{}]}"#).unwrap().len(), 2);
        assert_eq!(batch(r#"{"searches":[]}"#).unwrap(), []);
        let error = batch(r#"{"searches":[{},{"limit":0}]}"#).unwrap_err();
        assert!(error.to_string().starts_with("searches[1].limit: 0 is not"), "{error}");
        let many = format!(r#"{{"searches":[{}]}}"#, vec!["{}"; BATCH_MAX + 1].join(","));
        let error = batch(&many).unwrap_err();
        assert_eq!(error.to_string(), "searches: has 4097 searches, at most 4096 are served at once");
    }

    #[test]
    fn answers_have_two_shapes() {
        let found = vec![vec![], vec![]];
        assert_eq!(one(&found[0], points), br#"{"points":[]}"#);
        assert_eq!(one(&found[0], list), b"[]");
        assert_eq!(many(&found, points), br#"[{"points":[]},{"points":[]}]"#);
        assert_eq!(many(&found, list), b"[[],[]]");
    }
}
