//! A long life of small writes and searches, held against an exact oracle while graphs are built, joined and swapped.
//!
//! `ANNAL_ORACLE_OPS=1000000 cargo test --lib tests::oracle -- --nocapture`; synthetic vectors.

use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs,
    time::{Duration, Instant},
};

const DIM: usize = 16;
/// Points there may be at a time.
const IDS: u64 = 4_000;
/// Nearest asked for.
const LIMIT: usize = 10;
/// Batches after which there must have been graphs.
const WALKED_MIN: u64 = 100;
/// Operations from which on memory is this test's own, and not of the tests beside it.
const ALONE_OPS: u64 = 100_000;
/// What approximate searches must find of what is nearest, over all.
const RECALL_MIN: f64 = 0.95;

/// What is there, by id: the vector, and the number in the payload.
type Oracle = BTreeMap<u64, (Vec<f32>, i64)>;

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

/// A vector near one of 50 places: as uneven as embeddings are.
fn vector(rng: &mut StdRng) -> Vec<f32> {
    let place = rng.random_range(0..50u64);
    let centre = |n: usize| ((place * 7919 + n as u64 * 104_729) % 1_000) as f32 / 500.0;
    (0..DIM).map(|n| centre(n) + rng.random_range(-0.4..0.4)).collect()
}

fn upsert(id: u64, vector: Vec<f32>, number: i64) -> Body {
    let vectors = [(String::new(), Vector::Dense(vector))].into();
    Body::Upsert(vec![PointWrite {
        id: PointId::Num(id),
        vectors,
        payload: json!({"n": number}).to_string().into(),
    }])
}

/// Resident memory that no file is behind, in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[derive(Default)]
struct Counted {
    writes: u64,
    exact: u64,
    approximate: u64,
    wanted: u64,
    found: u64,
}

impl Counted {
    fn recall(&self) -> f64 {
        self.found as f64 / self.wanted as f64
    }
}

/// Asks the shard, and holds the answer against the oracle.
fn search(view: &ReadView, oracle: &Oracle, rng: &mut StdRng, counted: &mut Counted) {
    // As many as all, and as few as one in a thousand.
    let below = [1_000i64, 1_000, 500, 100, 10, 1][rng.random_range(0..6)];
    let (query, exact) = (vector(rng), rng.random_bool(0.5));
    let range = Range { lt: Some(below as f64), ..Range::default() };
    let condition = Condition::Field { path: "n".parse().unwrap(), test: FieldTest::Range(range) };
    let request = SearchRequest {
        target: Target::Nearest(query.clone()),
        using: String::new(),
        filter: (below < 1_000).then(|| Filter { must: vec![condition], ..Filter::default() }),
        limit: LIMIT,
        offset: 0,
        score_threshold: None,
        params: SearchParams { exact, ef: None },
        projection: everything(),
    };
    let answer = view.search(&request, None, None).unwrap();
    let mut right: Vec<f32> =
        oracle.values().filter(|(_, n)| *n < below).map(|(v, _)| distance(&query, v)).collect();
    right.sort_by(f32::total_cmp);
    right.truncate(LIMIT);
    let mut seen = BTreeSet::new();
    for point in &answer {
        let PointId::Num(id) = point.id else { panic!("{} was never written", point.id) };
        let (vector, number) = oracle.get(&id).unwrap_or_else(|| panic!("{id} is deleted"));
        assert!(*number < below, "{id} does not match");
        assert_eq!(
            point.vectors.as_ref().unwrap()[""],
            Vector::Dense(vector.clone()),
            "{id} as it was before"
        );
        assert!((point.score - distance(&query, vector)).abs() <= 1e-3, "the score of {id}");
        assert!(seen.insert(id), "{id} twice");
    }
    assert!(answer.is_sorted_by(|a, b| a.score <= b.score), "nearest first");
    // Sums of another order are not equal to the last bit.
    let reached = answer.iter().zip(&right).filter(|(got, right)| got.score <= **right + 1e-3).count();
    if exact {
        assert_eq!((answer.len(), reached), (right.len(), right.len()), "an exact search misses a point");
        counted.exact += 1;
    } else {
        assert_eq!(answer.len(), right.len(), "an approximate search finds too few");
        counted.approximate += 1;
        counted.wanted += right.len() as u64;
        let farthest = right.last().copied().unwrap_or_default() + 1e-3;
        counted.found += answer.iter().filter(|point| point.score <= farthest).count() as u64;
    }
}

#[test]
fn a_long_life_agrees_with_an_exact_oracle() {
    let ops: u64 = std::env::var("ANNAL_ORACLE_OPS").map_or(6_000, |ops| ops.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
    // A delta of 500 rows, graphs of 3,000: all that happens to large ones happens here often.
    let row = DIM * 4;
    let options =
        ShardOptions { seal_bytes: 500 * row, segment_bytes_max: 3_000 * row, ..ShardOptions::default() };
    let shard = Shard::open(store, "s", &folder.path().join("index"), COLLECTION, options).unwrap();
    let params = VectorParams::new(DIM as u32, Distance::Euclid, HnswParams::default());
    let schema = Schema {
        version: 1,
        vectors: [(String::new(), params)].into(),
        fields: [("n".parse().unwrap(), FieldType::Integer)].into(),
        ..Schema::default()
    };
    shard.apply(vec![command(Body::Configure(schema)).encode()], Bookmark(Bytes::new())).unwrap();
    let (mut rng, mut oracle, mut counted) = (StdRng::seed_from_u64(2026), Oracle::new(), Counted::default());
    let (mut done, mut walked, mut early) = (0, 0, None);
    let began = Instant::now();
    // Graphs are built beside it, on a busy machine late: it goes on until it has searched some.
    while done < ops || (walked <= WALKED_MIN && began.elapsed() < Duration::from_secs(120)) {
        let batch = rng.random_range(1..6);
        let mut commands = Vec::new();
        for _ in 0..batch {
            let id = rng.random_range(0..IDS);
            let body = if rng.random_bool(0.7) || oracle.is_empty() {
                let (vector, number) = (vector(&mut rng), rng.random_range(0..1_000));
                oracle.insert(id, (vector.clone(), number));
                upsert(id, vector, number)
            } else {
                oracle.remove(&id);
                Body::Delete(vec![PointId::Num(id)])
            };
            commands.push(command(body).encode());
        }
        done += batch;
        counted.writes += batch;
        shard.apply(commands, Bookmark(Bytes::new())).unwrap();
        let view = shard.view();
        walked += u64::from(!view.vectors[""].segments.is_empty());
        for _ in 0..rng.random_range(0..4) {
            search(&view, &oracle, &mut rng, &mut counted);
            done += 1;
        }
        if early.is_none() && done > ops / 4 {
            early = Some(memory());
        }
    }
    let (early, late) = (early.unwrap(), memory());
    println!(
        "{done} operations in {:.0?}: {} writes, {} exact searches, {} others with recall {:.4}; {} points at the end; memory {} MiB after a quarter, {} MiB at the end",
        began.elapsed(),
        counted.writes,
        counted.exact,
        counted.approximate,
        counted.recall(),
        oracle.len(),
        early >> 20,
        late >> 20
    );
    assert!(walked > WALKED_MIN, "graphs were there for {walked} batches");
    assert!(counted.recall() >= RECALL_MIN, "recall {}", counted.recall());
    // The store's own cache and memtables fill for a while.
    let bound = early + early / 2 + (64 << 20);
    assert!(ops < ALONE_OPS || late <= bound, "memory grew from {early} to {late} bytes");
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
    shard.close();
}
