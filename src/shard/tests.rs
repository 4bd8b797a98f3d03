//! A shard against a slow, obvious one.
#![allow(clippy::unwrap_used)]

mod builds;
mod cost;
mod explain;
mod intents;
mod log;
mod oracle;
mod quantization;
mod real;
mod regions;
mod rest;
mod rotten;

use super::*;
use crate::{
    machine::{Rejection, Verdict},
    model::{
        Body, Distance, Epoch, FieldType, Filter, HnswParams, Payload, PayloadSelector, PointId, Projection,
        RequestId, ScrollRequest, SearchParams, SearchRequest, Target, VectorParams, VectorSelector, Vectors,
        command::PointWrite,
        filter::{Condition, FieldTest, MinShould, Range, Scalar, Subject},
    },
    store::StoreOptions,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const COLLECTION: CollectionId = CollectionId(5);
const WINDOW: u64 = 20;

fn options() -> ShardOptions {
    ShardOptions { dedup_window: WINDOW, ..ShardOptions::default() }
}

/// A store with a small cache.
fn store_in(folder: &Path) -> Store {
    let options = StoreOptions { cache_bytes: 1 << 20, ..StoreOptions::default() };
    Store::open(&folder.join("store"), options).unwrap()
}

fn open(folder: &Path) -> Arc<Shard> {
    Shard::open(store_in(folder), "shard1", &folder.join("index"), COLLECTION, options()).unwrap()
}

fn command(body: Body) -> Command {
    Command {
        collection: COLLECTION,
        schema_version: 1,
        epoch: Epoch(1),
        request: None,
        born: Position(0),
        body,
    }
}

fn schema(version: u64, fields: &[(&str, FieldType)]) -> Schema {
    let params = |distance| VectorParams::new(3, distance, HnswParams::default());
    Schema {
        version,
        vectors: [("".into(), params(Distance::Euclid)), ("dot".into(), params(Distance::Dot))].into(),
        sparse: [("words".into(), Default::default())].into(),
        fields: fields.iter().map(|(path, of)| (path.parse().unwrap(), *of)).collect(),
    }
}

/// Where the rows of a snapshot end, and its index files begin.
fn rows_end(stream: &[u8]) -> usize {
    let mut at = 8;
    loop {
        match u32::from_le_bytes(stream[at..at + 4].try_into().unwrap()) {
            0 => return at + 24,
            length => at += 8 + length as usize,
        }
    }
}

fn everything() -> Projection {
    Projection { payload: PayloadSelector::All, vectors: VectorSelector::All }
}

/// The shard as anyone would write it.
#[derive(Clone, Default)]
struct Obvious {
    points: BTreeMap<PointId, (Position, Vectors, Bytes)>,
    fields: BTreeMap<FieldPath, FieldType>,
    retired: bool,
}

impl Obvious {
    /// What the command does to the points, or why it does nothing.
    fn apply(&mut self, position: Position, body: &Body) -> Result<Vec<Change>, Rejection> {
        if self.retired && *body != Body::Retire {
            return Err(Rejection::new("retired", ""));
        }
        let changes: Vec<Change> = match body {
            Body::Configure(schema) => {
                self.fields = schema.fields.clone();
                vec![]
            }
            Body::Retire => {
                self.retired = true;
                vec![]
            }
            Body::Upsert(writes) => writes.iter().cloned().map(Change::Upsert).collect(),
            Body::Delete(ids) => {
                let mut seen = BTreeSet::new();
                let there = ids.iter().filter(|id| self.points.contains_key(id) && seen.insert(**id));
                there.copied().map(Change::Delete).collect()
            }
            Body::DeleteMatching(filter) => self.matching(filter).into_iter().map(Change::Delete).collect(),
            Body::Cas { id, if_version, point } => {
                let version = self.points.get(id).map(|point| point.0);
                if version != *if_version {
                    return Err(Rejection { version, ..Rejection::new("version_mismatch", "") });
                }
                let delete = version.map(|_| Change::Delete(*id));
                point.clone().map(Change::Upsert).or(delete).into_iter().collect()
            }
            Body::Mirror { .. } | Body::Turn(_) | Body::Seed { .. } => unreachable!("they have no position"),
        };
        for change in &changes {
            self.change(position, change);
        }
        Ok(changes)
    }

    fn change(&mut self, position: Position, change: &Change) {
        match change {
            Change::Upsert(w) => {
                _ = self.points.insert(w.id, (position, w.vectors.clone(), w.payload.clone()));
            }
            Change::Delete(id) => assert!(self.points.remove(id).is_some(), "{id} was not there"),
        }
    }

    fn matching(&self, filter: &Filter) -> BTreeSet<PointId> {
        let passes = |(id, (_, vectors, payload)): (&PointId, &(Position, Vectors, Bytes))| {
            let payload: Payload = search::parse(payload).unwrap();
            let names: Vec<String> = vectors.keys().cloned().collect();
            let subject = Subject { id: Some(*id), payload: &payload, vectors: &names, fields: &self.fields };
            filter.matches(&subject).then_some(*id)
        };
        self.points.iter().filter_map(passes).collect()
    }

    fn nearest(&self, name: &str, query: &[f32], filter: &Filter, count: usize) -> Vec<(PointId, f32)> {
        let mut all = Vec::new();
        for id in self.matching(filter) {
            if let Some(Vector::Dense(v)) = self.points[&id].1.get(name) {
                let score: f32 = match name {
                    "dot" => v.iter().zip(query).map(|(a, b)| a * b).sum(),
                    _ => v.iter().zip(query).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt(),
                };
                all.push((id, score));
            }
        }
        let sign = if name == "dot" { -1.0 } else { 1.0 };
        all.sort_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1)).then(a.0.cmp(&b.0)));
        all.truncate(count);
        all
    }
}

/// Everything a view answers is what the obvious shard answers.
fn same(shard: &Shard, truth: &Obvious, filter: &Filter, query: &[f32]) {
    let view = shard.view();
    assert_eq!(view.count(None).unwrap(), truth.points.len() as u64);
    let ids: Vec<PointId> = (0..8).map(PointId::Num).chain([PointId::Uuid(7)]).collect();
    let got = view.get(&ids, &everything()).unwrap();
    let want: Vec<_> = ids.iter().filter_map(|id| truth.points.get_key_value(id)).collect();
    assert_eq!(got.len(), want.len());
    for (got, (id, (version, vectors, payload))) in got.iter().zip(want) {
        let payload = if payload.is_empty() { &b"{}"[..] } else { payload };
        assert_eq!((got.id, got.version), (*id, *version));
        assert_eq!(got.payload.as_deref(), Some(payload));
        assert_eq!(got.vectors.as_ref(), Some(vectors));
    }
    let matching = truth.matching(filter);
    assert_eq!(view.count(Some(filter)).unwrap(), matching.len() as u64, "{filter:?}");
    let mut scrolled = Vec::new();
    let mut offset = None;
    loop {
        let request = ScrollRequest {
            offset,
            limit: 2,
            filter: Some(filter.clone()),
            projection: Projection::default(),
        };
        let page = view.scroll(&request).unwrap();
        assert!(page.points.len() == 2 || page.next.is_none());
        scrolled.extend(page.points.iter().map(|r| r.id));
        offset = page.next;
        if offset.is_none() {
            break;
        }
    }
    assert!(scrolled.iter().eq(&matching), "{filter:?}: {scrolled:?} instead of {matching:?}");
    for using in ["", "dot"].into_iter().filter(|using| view.schema().vectors.contains_key(*using)) {
        let request = SearchRequest {
            target: Target::Nearest(query.to_vec()),
            using: using.into(),
            filter: Some(filter.clone()),
            limit: 4,
            offset: 1,
            score_threshold: None,
            params: SearchParams::default(),
            projection: Projection::default(),
        };
        let found = view.search(&request, None, None).unwrap();
        assert!(found.iter().all(|p| p.version == truth.points[&p.id].0), "the versions of {found:?}");
        let found: Vec<_> = found.iter().map(|p| (p.id, p.score)).collect();
        let want = truth.nearest(using, query, filter, 5);
        assert_eq!(found, want.into_iter().skip(1).collect::<Vec<_>>(), "{using}");
    }
}

#[test]
fn points_come_and_go_and_stay_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let mut truth = Obvious::default();
    let put = |id: u64, x: f32, payload: &str| PointWrite {
        id: PointId::Num(id),
        vectors: [("".to_owned(), Vector::Dense(vec![x, 0.0, 1.0]))].into(),
        payload: payload.as_bytes().to_vec().into(),
    };
    let bodies = [
        Body::Configure(schema(1, &[("n", FieldType::Integer)])),
        Body::Upsert((0..6).map(|i| put(i, i as f32, &json!({"n": i}).to_string())).collect()),
        Body::Upsert(vec![put(2, 2.0, r#"{"n":20}"#), put(3, 30.0, ""), put(3, 31.0, r#"{"n":[3,null]}"#)]),
        Body::Delete(vec![PointId::Num(0), PointId::Num(77)]),
    ];
    let filter = Filter {
        must: vec![Condition::Field {
            path: "n".parse().unwrap(),
            test: FieldTest::Range(Range { gte: Some(3.0), ..Range::default() }),
        }],
        ..Filter::default()
    };
    let shard = open(folder.path());
    for (i, body) in bodies.iter().enumerate() {
        let position = Position(i as u64 + 1);
        let bookmark = Bookmark(vec![i as u8].into());
        let outcomes = shard.apply(vec![command(body.clone()).encode()], bookmark.clone()).unwrap();
        assert_eq!(outcomes, [Outcome { position, verdict: Verdict::Applied }]);
        truth.apply(position, body).unwrap();
        same(&shard, &truth, &filter, &[2.6, 0.0, 1.0]);
        assert_eq!(shard.bookmark(), Some(bookmark));
    }
    let hash = shard.state_hash().unwrap();
    shard.persist().unwrap();
    shard.close();
    drop(shard);
    let shard = open(folder.path());
    same(&shard, &truth, &filter, &[2.6, 0.0, 1.0]);
    assert_eq!(shard.state_hash().unwrap(), hash);
    assert_eq!(shard.position(), Position(4));
}

// ---- random command streams -------------------------------------------------------------------------------

fn id() -> impl Strategy<Value = PointId> {
    prop_oneof![8 => (0u64..8).prop_map(PointId::Num), 1 => Just(PointId::Uuid(7))]
}

/// Halves, so that sums are exact whatever their order.
fn row() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-6i8..6).prop_map(|x| f32::from(x) / 2.0), 3)
}

fn vectors() -> impl Strategy<Value = Vectors> {
    (prop::option::weighted(0.9, row()), prop::option::weighted(0.4, row()), any::<bool>()).prop_map(
        |(unnamed, dot, sparse)| {
            let mut vectors = Vectors::new();
            vectors.extend(unnamed.map(|v| (String::new(), Vector::Dense(v))));
            vectors.extend(dot.map(|v| ("dot".to_owned(), Vector::Dense(v))));
            if sparse {
                let s = crate::model::SparseVector { indices: vec![3, 9], values: vec![1.5, -2.0] };
                vectors.insert("words".into(), Vector::Sparse(s));
            }
            vectors
        },
    )
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..4).prop_map(Value::from),
        (-3i64..4).prop_map(|n| Value::from(n as f64 / 2.0)),
        prop::sample::select(vec![
            "red",
            "Green",
            "red wine",
            "wine, RED",
            "",
            "2024-01-01",
            "2024-01-02T00:00:00Z",
            "550e8400-e29b-41d4-a716-446655440000",
            "550E8400E29B41D4A716446655440000",
        ])
        .prop_map(Value::from),
    ]
}

fn payload() -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        3 => leaf(),
        1 => prop::collection::vec(leaf(), 0..3).prop_map(Value::from),
        1 => prop::collection::btree_map("[xy]", leaf(), 0..3).prop_map(|m| json!(m)),
        1 => prop::collection::vec(prop::collection::btree_map("[xy]", leaf(), 0..3), 0..3).prop_map(|m| json!(m)),
    ];
    prop::collection::btree_map("[abc]", value, 0..3).prop_map(|m| json!(m))
}

fn path() -> impl Strategy<Value = FieldPath> {
    prop::sample::select(vec!["a", "b", "c", "a.x", "b[].x", "c[0]", "absent"])
        .prop_map(|p| p.parse().unwrap())
}

fn scalar() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        (-3i64..4).prop_map(Scalar::Integer),
        any::<bool>().prop_map(Scalar::Bool),
        prop::sample::select(vec!["red", "Green", "550e8400e29b41d4a716446655440000", "2024-01-01"])
            .prop_map(|s| Scalar::Keyword(s.into())),
    ]
}

fn range<T: Copy + std::fmt::Debug + 'static>(of: fn(i8) -> T) -> impl Strategy<Value = Range<T>> {
    let bound = move || prop::option::of((-3i8..5).prop_map(of));
    (bound(), bound(), bound(), bound()).prop_map(|(lt, gt, lte, gte)| Range { lt, gt, lte, gte })
}

fn test() -> impl Strategy<Value = FieldTest> {
    prop_oneof![
        scalar().prop_map(FieldTest::Match),
        prop::collection::btree_set(scalar(), 0..3).prop_map(FieldTest::MatchAny),
        prop::collection::btree_set(scalar(), 0..3).prop_map(FieldTest::MatchExcept),
        prop::sample::select(vec!["red", "wine red", "WINE", "ed w", ""])
            .prop_map(|t| FieldTest::Text(t.into())),
        range(|n| f64::from(n) / 2.0).prop_map(FieldTest::Range),
        range(|n| 1_704_067_200_000_000 + i64::from(n) * 43_200_000_000).prop_map(FieldTest::DatetimeRange),
        range(|n| n.unsigned_abs().into()).prop_map(FieldTest::ValuesCount),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    let leaf = prop_oneof![
        8 => (path(), test()).prop_map(|(path, test)| Condition::Field { path, test }),
        1 => prop::collection::btree_set(id(), 0..4).prop_map(Condition::HasId),
        1 => prop::sample::select(vec!["", "dot", "words"]).prop_map(|n| Condition::HasVector(n.into())),
        1 => path().prop_map(Condition::IsEmpty),
        1 => path().prop_map(Condition::IsNull),
    ];
    let of = |condition: BoxedStrategy<Condition>| {
        let some = move || prop::collection::vec(condition.clone(), 0..3);
        (some(), some(), some(), prop::option::weighted(0.3, (some(), 0usize..3))).prop_map(
            |(must, should, must_not, min)| Filter {
                must,
                should,
                must_not,
                min_should: min.map(|(conditions, min_count)| MinShould { conditions, min_count }),
            },
        )
    };
    let deep = leaf.prop_recursive(2, 8, 3, move |inner| {
        prop_oneof![
            of(inner.clone().boxed()).prop_map(|f| Condition::Filter(Box::new(f))),
            (path(), of(inner.boxed()))
                .prop_map(|(path, filter)| Condition::Nested { path, filter: Box::new(filter) }),
        ]
    });
    of(deep.boxed())
}

#[derive(Clone, Debug)]
enum Step {
    /// Commands of one batch.
    Apply(Vec<Body>),
    Reopen {
        without_index: bool,
    },
    Snapshot,
}

/// Stands for the version the point has, whatever it is.
const CURRENT: Position = Position(u64::MAX);

fn body() -> impl Strategy<Value = Body> {
    let write = (id(), vectors(), payload())
        .prop_map(|(id, vectors, payload)| PointWrite { id, vectors, payload: payload.to_string().into() })
        .boxed();
    let one = write.clone();
    let of = prop::sample::select(vec![
        FieldType::Keyword,
        FieldType::Integer,
        FieldType::Float,
        FieldType::Bool,
        FieldType::Uuid,
        FieldType::Datetime,
        FieldType::Text,
    ]);
    prop_oneof![
        6 => prop::collection::vec(write, 1..6).prop_map(Body::Upsert),
        2 => prop::collection::vec(id(), 0..3).prop_map(Body::Delete),
        4 => (id(), prop::option::of(prop_oneof![4 => Just(CURRENT), 1 => (1u64..9).prop_map(Position)]),
            prop::option::weighted(0.7, one)).prop_map(|(id, if_version, point)| {
            Body::Cas { id, if_version, point: point.map(|point| PointWrite { id, ..point }) }
        }),
        1 => filter().prop_map(Body::DeleteMatching),
        2 => prop::collection::btree_map(path(), of, 0..5)
            .prop_map(|fields| Body::Configure(Schema { fields, ..schema(1, &[]) })),
        1 => prop::bool::weighted(0.1).prop_map(|retire| if retire { Body::Retire } else { Body::Delete(vec![]) }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => prop::collection::vec(body(), 0..4).prop_map(Step::Apply),
        1 => any::<bool>().prop_map(|without_index| Step::Reopen { without_index }),
        1 => Just(Step::Snapshot),
    ]
}

fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(usual);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(48))]

    /// Whatever is applied, the shard answers what the obvious one answers; also after it was opened anew, lost
    /// its index, or was replaced by its own snapshot; and its hash is that of another shard with the same log.
    #[test]
    fn a_shard_is_the_obvious_shard(
        steps in prop::collection::vec((step(), filter(), row()), 1..14),
        seal_bytes in prop::sample::select(vec![1usize, 100, 1 << 20]),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let options = ShardOptions { seal_bytes, ..options() };
        let open = |folder: &Path| {
            Shard::open(store_in(folder), "shard1", &folder.join("index"), COLLECTION, options.clone()).unwrap()
        };
        let mut shard = open(folder.path());
        let mut truth = Obvious::default();
        let mut log: Vec<Bytes> = Vec::new();
        let mut effects = vec![vec![]];
        let mut version = 1;
        let first = command(Body::Configure(schema(1, &[]))).encode();
        shard.apply(vec![first.clone()], Bookmark(Bytes::new())).unwrap();
        log.push(first);
        for (step, filter, query) in &steps {
            match step {
                Step::Apply(bodies) => {
                    let mut commands = Vec::new();
                    let mut want = Vec::new();
                    for body in bodies {
                        let mut body = body.clone();
                        match &mut body {
                            Body::Configure(schema) => {
                                version += 1;
                                schema.version = version;
                            }
                            Body::Cas { id, if_version: Some(if_version), .. } if *if_version == CURRENT => {
                                *if_version = truth.points.get(id).map_or(CURRENT, |point| point.0);
                            }
                            _ => {}
                        }
                        commands.push(command(body.clone()).encode());
                        want.push(truth.apply(Position((log.len() + commands.len()) as u64), &body));
                    }
                    log.extend(commands.clone());
                    let bookmark = Bookmark(log.len().to_string().into());
                    let outcomes = shard.apply(commands, bookmark).unwrap();
                    for (outcome, want) in outcomes.into_iter().zip(want) {
                        match (outcome.verdict, &want) {
                            (Verdict::Applied, Ok(_)) => {}
                            (Verdict::Rejected(got), Err(want)) => {
                                prop_assert_eq!((&got.code, got.version), (&want.code, want.version));
                            }
                            (got, want) => prop_assert!(false, "{got:?} instead of {want:?}"),
                        }
                        effects.push(want.unwrap_or_default());
                    }
                }
                Step::Reopen { without_index } => {
                    shard.close();
                    drop(shard);
                    if *without_index {
                        let _ = std::fs::remove_dir_all(folder.path().join("index"));
                    }
                    shard = open(folder.path());
                }
                Step::Snapshot => {
                    let mut stream = Vec::new();
                    shard.write_snapshot(&mut stream).unwrap();
                    let middle = rows_end(&stream) / 2;
                    stream[middle] ^= 1;
                    prop_assert!(shard.install_snapshot(&mut stream.as_slice()).is_err());
                    same(&shard, &truth, filter, query);
                    stream[middle] ^= 1;
                    shard.install_snapshot(&mut stream.as_slice()).unwrap();
                }
            }
            prop_assert_eq!(shard.position(), Position(log.len() as u64));
            prop_assert_eq!(shard.view().retired(), truth.retired);
            same(&shard, &truth, filter, query);
        }
        // What a feed is told is what was done, and folded again it is the points.
        let mut fed = Obvious::default();
        for ((position, command), want) in (1..).map(Position).zip(&log).zip(effects) {
            let command = Command::decode(command).unwrap();
            let mut told = shard.effect_of(position, &command).unwrap();
            told.iter().for_each(|change| fed.change(position, change));
            if let Body::DeleteMatching(_) = command.body {
                told.sort_by_key(|change| match change {
                    Change::Delete(id) | Change::Upsert(PointWrite { id, .. }) => *id,
                });
            }
            prop_assert_eq!(told, want, "position {}", position);
        }
        prop_assert_eq!(&fed.points, &truth.points);
        prop_assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
        let hash = shard.state_hash().unwrap();
        let stats = shard.stats();
        prop_assert_eq!(stats.points, truth.points.len() as u64);
        let dense = |name: &str| truth.points.values().filter(|p| p.1.contains_key(name)).count() as u64;
        prop_assert_eq!(stats.vectors, dense("") + dense("dot"));
        shard.close();
        let other = tempfile::tempdir().unwrap();
        let replay = open(other.path());
        replay.apply(log, Bookmark(Bytes::new())).unwrap();
        prop_assert_eq!(replay.state_hash().unwrap(), hash);
        replay.close();
    }
}
