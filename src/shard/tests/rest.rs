//! What becomes of a delta while nothing is written.

use super::*;
use crate::model::Residence;
use std::{fs, time::Instant};

const DIM: usize = 4;

fn numbers(id: u64) -> Vec<f32> {
    (0..DIM as u64).map(|n| ((id * 7919 + n * 104_729) % 10_007) as f32).collect()
}

fn upsert(shard: &Shard, ids: std::ops::Range<u64>) {
    let write = |id| PointWrite {
        id: PointId::Num(id),
        vectors: [(String::new(), Vector::Dense(numbers(id)))].into(),
        payload: Bytes::new(),
    };
    let body = Body::Upsert(ids.map(write).collect());
    shard.apply(vec![command(body).encode()], Bookmark(Bytes::new())).unwrap();
}

/// Waits until there is one graph of so many rows, and no more of it; the name of its file.
fn one_graph_of(shard: &Shard, rows: usize) -> String {
    wait_for("one graph", shard, |view| {
        let index = &view.vectors[""];
        match &index.segments[..] {
            [only] if only.segment.rows().len() == rows && index.sealed.is_empty() => Some(only.file.clone()),
            _ => None,
        }
    })
}

/// Looks at the shard's view until there is what is wanted.
fn wait_for<T>(what: &str, shard: &Shard, look: impl Fn(&ReadView) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look(&shard.view()) {
            return found;
        }
        assert!(Instant::now() < deadline, "there is not yet {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nearest(id: u64) -> SearchRequest {
    SearchRequest {
        target: Target::Nearest(numbers(id)),
        using: String::new(),
        filter: None,
        limit: 1,
        offset: 0,
        score_threshold: None,
        params: SearchParams { exact: false, ef: None },
        projection: Projection::default(),
    }
}

fn finds_itself(shard: &Shard, ids: impl Iterator<Item = u64>) {
    let view = shard.view();
    for id in ids {
        assert_eq!(view.search(&nearest(id), None, None).unwrap()[0].score, 0.0, "point {id}");
    }
}

fn open(folder: &Path, options: ShardOptions) -> (Arc<Shard>, VectorParams) {
    let store = Store::open(&folder.join("store"), StoreOptions::default()).unwrap();
    let shard = Shard::open(store, "r", &folder.join("index"), COLLECTION, options).unwrap();
    let params = VectorParams::new(DIM as u32, Distance::Euclid, HnswParams { m: 8, ef_construct: 32 });
    configure(&shard, 1, params);
    (shard, params)
}

fn configure(shard: &Shard, version: u64, params: VectorParams) {
    let schema = Schema { version, vectors: [(String::new(), params)].into(), ..Schema::default() };
    shard.apply(vec![command(Body::Configure(schema)).encode()], Bookmark(Bytes::new())).unwrap();
}

#[test]
fn graphs_grow_no_larger_than_they_may() {
    let folder = tempfile::tempdir().unwrap();
    // Deltas of 100 rows; graphs of 700.
    let row = DIM * 4;
    let options = ShardOptions { seal_bytes: 100 * row, segment_bytes_max: 700 * row, ..options() };
    let (shard, _) = open(folder.path(), options);
    for hundred in 0..30 {
        upsert(&shard, hundred * 100..(hundred + 1) * 100);
    }
    let sizes = wait_for("an end of building", &shard, |view| {
        let index = &view.vectors[""];
        let rests = index.sealed.is_empty() && index.next_merge(&view.live, 700 * row).is_none();
        rests.then(|| index.segments.iter().map(|s| s.segment.rows().len()).collect::<Vec<_>>())
    });
    assert_eq!(sizes.iter().sum::<usize>(), 3000, "{sizes:?}");
    assert!(sizes.iter().all(|rows| *rows <= 700) && sizes.len() <= 9, "{sizes:?}");
    finds_itself(&shard, (0..3000).step_by(37));
    shard.close();
}

#[test]
fn a_graph_is_held_where_the_schema_says_and_found_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (shard, params) = open(folder.path(), ShardOptions { seal_bytes: 1 << 30, ..options() });
    upsert(&shard, 0..2200);
    let file = one_graph_of(&shard, 2200);
    let held = |view: &ReadView| view.vectors[""].segments[0].segment.residence();
    // What is mapped is moved: the file's name is not needed.
    let (path, aside) = (folder.path().join("index").join(&file), folder.path().join("aside"));
    fs::rename(&path, &aside).unwrap();
    for (version, residence) in
        [(2, Residence::Disk), (3, Residence::Codes), (4, Residence::Memory), (5, Residence::Codes)]
    {
        configure(&shard, version, VectorParams { residence, ..params });
        wait_for("the other residence", &shard, |view| (held(view) == residence).then_some(()));
        assert_eq!(one_graph_of(&shard, 2200), file, "the same file");
        assert_eq!(shard.view().is_quick(&nearest(0)), residence == Residence::Memory);
        finds_itself(&shard, (0..2200).step_by(11));
    }
    shard.close();
    drop(shard);
    fs::rename(&aside, &path).unwrap();
    let (shard, _) = open(folder.path(), options());
    assert_eq!((held(&shard.view()), one_graph_of(&shard, 2200)), (Residence::Codes, file));
    finds_itself(&shard, (0..2200).step_by(11));
    shard.close();
}

#[test]
fn a_search_is_quick_that_reads_little_and_no_store() {
    let folder = tempfile::tempdir().unwrap();
    let (shard, _) = open(folder.path(), ShardOptions { seal_bytes: 1 << 30, ..options() });
    upsert(&shard, 0..2200);
    let view = shard.view();
    assert!(view.is_quick(&nearest(0)));
    let whole = Projection { payload: PayloadSelector::All, vectors: VectorSelector::None };
    for slow in [
        SearchRequest { target: Target::NearestTo(PointId::Num(0)), ..nearest(0) },
        SearchRequest { target: Target::All, ..nearest(0) },
        SearchRequest { filter: Some(Filter::default()), ..nearest(0) },
        SearchRequest { params: SearchParams { exact: true, ef: None }, ..nearest(0) },
        SearchRequest { projection: whole, ..nearest(0) },
    ] {
        assert!(!view.is_quick(&slow), "{slow:?}");
    }
    one_graph_of(&shard, 2200);
    let view = shard.view();
    let many = |limit, ef| SearchRequest { limit, params: SearchParams { exact: false, ef }, ..nearest(0) };
    assert!(view.is_quick(&many(255, None)) && view.is_quick(&many(10, Some(256))));
    assert!(!view.is_quick(&many(256, None)) && !view.is_quick(&many(10, Some(257))));
    shard.close();
}

#[test]
fn a_delta_at_rest_joins_the_graph_and_a_small_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (shard, _) = open(folder.path(), ShardOptions { seal_bytes: 1 << 30, ..options() });
    upsert(&shard, 0..2200);
    finds_itself(&shard, (0..2200).step_by(110));
    let first = one_graph_of(&shard, 2200);
    finds_itself(&shard, (0..2200).step_by(11));
    // Deleted rows are in the graph until it is written anew.
    let gone = (0..200).map(PointId::Num).collect();
    shard.apply(vec![command(Body::Delete(gone)).encode()], Bookmark(Bytes::new())).unwrap();
    upsert(&shard, 2200..4400);
    finds_itself(&shard, 2200..2220);
    let second = one_graph_of(&shard, 4200);
    assert_ne!(first, second);
    finds_itself(&shard, (200..4400).step_by(11));
    upsert(&shard, 4400..4450);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(one_graph_of(&shard, 4200), second, "fifty rows are scanned, not built");
    finds_itself(&shard, 4400..4450);
    shard.close();
}
