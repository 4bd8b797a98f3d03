//! A shard against a slow, obvious one.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    machine::Verdict,
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

fn open(folder: &Path) -> Arc<Shard> {
    let store = Store::open(&folder.join("store"), StoreOptions { cache_bytes: 1 << 20 }).unwrap();
    Shard::open(store, "shard1", &folder.join("index"), COLLECTION, options()).unwrap()
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
    let params = |distance| VectorParams { dim: 3, distance, hnsw: HnswParams::default() };
    Schema {
        version,
        vectors: [("".into(), params(Distance::Euclid)), ("dot".into(), params(Distance::Dot))].into(),
        sparse: [("words".into(), Default::default())].into(),
        fields: fields.iter().map(|(path, of)| (path.parse().unwrap(), *of)).collect(),
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
}

impl Obvious {
    fn apply(&mut self, position: Position, body: &Body) {
        match body {
            Body::Configure(schema) => self.fields = schema.fields.clone(),
            Body::Upsert(writes) => {
                for w in writes {
                    self.points.insert(w.id, (position, w.vectors.clone(), w.payload.clone()));
                }
            }
            Body::Delete(ids) => ids.iter().for_each(|id| _ = self.points.remove(id)),
            Body::DeleteMatching(filter) => {
                for id in self.matching(filter) {
                    self.points.remove(&id);
                }
            }
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
        let found: Vec<_> = view.search(&request, None).unwrap().iter().map(|p| (p.id, p.score)).collect();
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
        truth.apply(position, body);
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
