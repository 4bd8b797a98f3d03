//! What nodes say to each other survives the way: every read, every answer, every error, bit for bit.

use crate::{
    cluster::{
        ClusterError, Consistency,
        peers::{Errand, Refusal, Remedy, pack, unpack, wire},
        read::{Found, Freshness, ReadAnswer, ReadAsk, Seen, ShardRead, ShardSearch},
    },
    machine::{Outcome, Rejection, Verdict},
    model::{
        CollectionId, Condition, Effect, Explanation, FieldTest, Filter, FilterExplanation, Invalid,
        PartExplanation, PartKind, PayloadSelector, PointId, Position, Projection, Record, ReplicaId,
        ScoredPoint, ScrollPage, ScrollRequest, SearchCost, SearchParams, SearchPlan, SearchRequest,
        SparseVector, Target, Vector, VectorSelector, Vectors, filter::Range,
    },
    shard::ShardStats,
};
use bytes::Bytes;
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, sync::Arc, time::Duration};
use tokio::time::Instant;

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    assert_eq!(&unpack::<T>(&pack(value)).unwrap(), value);
}

const UUID: PointId = PointId::Uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

fn filter() -> Filter {
    let path = "a.b[].c".parse().unwrap();
    let range = Range { gte: Some(0.1 + 0.2), ..Range::default() };
    Filter {
        must: vec![Condition::Field { path, test: FieldTest::Range(range) }],
        must_not: vec![Condition::HasId([PointId::Num(u64::MAX), UUID].into())],
        ..Filter::default()
    }
}

fn vectors() -> Vectors {
    let odd = [f32::MIN_POSITIVE / 4.0, -0.0, f32::MAX, 0.1, f32::from_bits(0x3eaa_aaab)];
    let sparse = SparseVector { indices: vec![0, u32::MAX], values: vec![-1.5, 1e-40] };
    [(String::new(), Vector::Dense(odd.to_vec())), ("words".to_owned(), Vector::Sparse(sparse))].into()
}

fn projections() -> [Projection; 3] {
    let names = vec!["a".to_owned(), "b".to_owned()];
    [
        Projection::default(),
        Projection { payload: PayloadSelector::All, vectors: VectorSelector::All },
        Projection {
            payload: PayloadSelector::Exclude(names.clone()),
            vectors: VectorSelector::Names(names),
        },
    ]
}

fn explanation() -> Explanation {
    let filter =
        FilterExplanation { estimated_min: 3, estimated_max: u64::MAX, actual: None, payloads_read: 9 };
    let cost = SearchCost { distances_codes: 7, distances_f32: 8, bytes_read: u64::MAX };
    let walked = PartExplanation {
        part: PartKind::Segment,
        rows: 100,
        allowed_estimated: Some(50),
        allowed_actual: None,
        plan: SearchPlan::Walk,
        ef: Some(64),
        code_bits: Some(4),
        cost,
    };
    let scanned = PartExplanation { part: PartKind::OpenDelta, ..PartExplanation::default() };
    let mut told = Explanation { filter: Some(filter), rounds: 2, micros: 77, ..Explanation::default() };
    told.note(0, walked);
    told.note(1, scanned);
    told
}

#[test]
fn every_read_comes_back_as_it_was() {
    let target = Target::Nearest(vec![0.1, -0.0, f32::from_bits(1)]);
    let request = SearchRequest {
        target,
        using: "v".to_owned(),
        filter: Some(filter()),
        limit: usize::MAX >> 1,
        offset: 3,
        score_threshold: Some(0.3),
        params: SearchParams { exact: true, ef: Some(77) },
        projection: Projection::default(),
    };
    let search = |target, exclude| ShardSearch {
        request: SearchRequest { target, ..request.clone() },
        exclude,
        explain: exclude.is_some(),
    };
    let mut reads = vec![
        ShardRead::Count(None),
        ShardRead::Count(Some(filter())),
        ShardRead::Search(vec![search(request.target.clone(), Some(UUID)), search(Target::All, None)]),
        ShardRead::Vectors(vec![(UUID, String::new()), (PointId::Num(0), "words".to_owned())]),
        ShardRead::Stats,
        ShardRead::Hash { scrub: true },
        ShardRead::HashAt(Position(1 << 60)),
    ];
    for projection in projections() {
        reads.push(ShardRead::Get { ids: vec![UUID, PointId::Num(7)], projection: projection.clone() });
        let offset = Some(UUID);
        reads.push(ShardRead::Scroll(ScrollRequest {
            offset,
            limit: 10,
            filter: Some(filter()),
            projection,
        }));
    }
    for (n, read) in reads.into_iter().enumerate() {
        let consistency = match n % 4 {
            0 => Consistency::Linearizable,
            1 => Consistency::AtLeast,
            2 => Consistency::Bounded(Duration::from_millis(50)),
            _ => Consistency::Local,
        };
        comes_back(&ReadAsk {
            replica: ReplicaId(5),
            collection: CollectionId(9),
            fresh: Freshness {
                consistency,
                at_least: (n % 2 == 0).then_some(Position(n as u64)),
                of: None,
                home: None,
            },
            read: Arc::new(read),
            view: (n % 3 == 0).then_some(3),
            keep: n % 2 == 0,
            within_ms: 30_000,
        });
    }
}

/// A node of the version before searches were explained reads what this one asks for, and asks as it did.
#[test]
fn a_search_that_is_not_explained_is_asked_for_as_it_always_was() {
    #[derive(Serialize)]
    struct Before {
        request: SearchRequest,
        exclude: Option<PointId>,
    }
    let request = SearchRequest {
        target: Target::All,
        using: String::new(),
        filter: None,
        limit: 3,
        offset: 0,
        score_threshold: None,
        params: SearchParams::default(),
        projection: Projection::default(),
    };
    let before = pack(&Before { request: request.clone(), exclude: None });
    let now = ShardSearch { request, exclude: None, explain: false };
    assert_eq!(pack(&now), before);
    assert_eq!(unpack::<ShardSearch>(&before).unwrap(), now);
}

#[test]
fn every_answer_comes_back_as_it_was() {
    let payload = Some(Bytes::from_static("{\"ä\":[1.5e-7,null,\"\\u0000\"]}".as_bytes()));
    let record =
        Record { id: UUID, version: Position(3), payload: payload.clone(), vectors: Some(vectors()) };
    let bare = Record { id: PointId::Num(1), version: Position(1), payload: None, vectors: None };
    let hit = |score| ScoredPoint {
        id: UUID,
        version: Position(3),
        score,
        payload: payload.clone(),
        vectors: None,
    };
    let stats = ShardStats {
        points: 7,
        field_points: [("a.b[]".parse().unwrap(), 3)].into(),
        vectors_by_name: [(String::new(), 7)].into(),
        ..ShardStats::default()
    };
    let found = [
        Found::Records(vec![record.clone(), bare.clone()]),
        Found::Page(ScrollPage { points: vec![record, bare], next: Some(UUID) }),
        Found::Count(u64::MAX),
        Found::Hits(vec![vec![hit(0.1), hit(-0.0)], Vec::new()]),
        Found::Explained(vec![(vec![hit(0.1)], explanation()), (Vec::new(), Explanation::default())]),
        Found::Vectors(vec![None, Some(vectors().remove("words").unwrap())]),
        Found::Stats(Box::new(stats)),
        Found::Hash(Some((Position(4_096), "0".repeat(32)))),
        Found::Hash(None),
    ];
    for found in found {
        let age = Some(Duration::from_nanos(1_234_567));
        let answer: ReadAnswer = Ok(Seen { position: Position(8), age, kept: Some(1), found });
        comes_back(&answer);
    }
    // Equal is not enough: 0.0 equals -0.0, and NaN not even itself.
    for bits in [0x8000_0000u32, 0x7fc0_1234, 1, 0x7f80_0000] {
        let sent = Found::Hits(vec![vec![hit(f32::from_bits(bits))]]);
        let Found::Hits(hits) = unpack(&pack(&sent)).unwrap() else { panic!("hits were sent") };
        assert_eq!(hits[0][0].score.to_bits(), bits);
    }
}

#[test]
fn every_error_comes_back_with_its_effect() {
    let errors = [
        ClusterError::Invalid(Invalid::new("points[3].vector", "is too short")),
        ClusterError::Gone(CollectionId(4)),
        ClusterError::NoPoint(UUID),
        ClusterError::Precondition { message: "m".into(), version: Some(Position(3)) },
        ClusterError::Expired("e".into()),
        ClusterError::Timeout { what: "w".into(), effect: Effect::Unknown },
        ClusterError::Timeout { what: "w".into(), effect: Effect::None },
        ClusterError::Internal { message: "m".into(), corrupt: true, effect: Effect::Unknown },
    ];
    for error in errors {
        comes_back::<ReadAnswer>(&Err(error));
    }
}

#[test]
fn commands_and_their_fates_come_back_as_they_were() {
    let now = Instant::now();
    let errand = |command: &'static [u8], ms| Errand {
        command: Bytes::from_static(command),
        deadline: now + Duration::from_millis(ms),
    };
    let sent = [errand(b"one", 10_000), errand(b"", 50)];
    let bytes: Bytes = wire::Propose::of(ReplicaId(9), &sent).encode_to_vec().into();
    let (to, got) = wire::Propose::decode(bytes).unwrap().into_errands();
    assert_eq!(to, ReplicaId(9));
    for (sent, got) in sent.iter().zip(&got) {
        assert_eq!(sent.command, got.command);
        let off = sent.deadline.max(got.deadline) - sent.deadline.min(got.deadline);
        assert!(off < Duration::from_secs(1), "{off:?}");
    }

    let applied = |position, verdict| Outcome { position: Position(position), verdict };
    let rejection = Rejection { version: Some(Position(3)), ..Rejection::new("version_mismatch", "no") };
    let first = |verdict| Verdict::Duplicate { first: Box::new(Outcome { position: Position(2), verdict }) };
    let fates = [
        Ok(applied(5, Verdict::Applied)),
        Ok(applied(6, Verdict::Rejected(rejection.clone()))),
        Ok(applied(7, first(Verdict::Applied))),
        Ok(applied(8, first(Verdict::Rejected(rejection)))),
    ];
    let refusals = [
        Refusal::in_doubt("lost"),
        Refusal { remedy: Remedy::Leader(Some(ReplicaId(3))), ..Refusal::unreached("elsewhere") },
    ];
    let sent: Vec<Result<Outcome, Refusal>> =
        fates.into_iter().chain(refusals.into_iter().map(Err)).collect();
    let bytes: Bytes = wire::Done::of(sent.clone()).encode_to_vec().into();
    let got = wire::Done::decode(bytes).unwrap().into_results().unwrap();
    assert_eq!(got, sent);
}
