//! Graphs on real data, damaged files, and readers beside a writer.

use super::*;
use crate::shard::vector_index::segment::Segment;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// Rows of an npy file of f32 or f16, and how long they are.
fn rows(name: &str) -> (Vec<f32>, usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wordnet-2k").join(name);
    let file = npyz::NpyFile::new(io::BufReader::new(fs::File::open(path).unwrap())).unwrap();
    let dim = file.shape()[1] as usize;
    let values = match name.contains("f16") {
        true => file.into_vec::<half::f16>().unwrap().into_iter().map(f32::from).collect(),
        false => file.into_vec::<f32>().unwrap(),
    };
    (values, dim)
}

pub(super) struct WordNet {
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) payloads: Vec<Bytes>,
    pub(super) queries: Vec<Vec<f32>>,
}

pub(super) fn wordnet() -> WordNet {
    let split = |name| {
        let (values, dim) = rows(name);
        let params = VectorParams::new(dim as u32, Distance::Cosine, HnswParams::default());
        let admit = |row: &[f32]| {
            let mut row = row.to_vec();
            params.admit(&mut row).unwrap();
            row
        };
        values.chunks_exact(dim).map(admit).collect::<Vec<_>>()
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wordnet-2k/payload.jsonl");
    let payloads = fs::read_to_string(path).unwrap().lines().map(|l| l.to_owned().into()).collect();
    WordNet { vectors: split("vectors.f16.npy"), payloads, queries: split("queries.f32.npy") }
}

pub(super) fn open_wordnet(folder: &Path, seal_bytes: usize) -> Arc<Shard> {
    open_with(folder, ShardOptions { seal_bytes, ..options() })
}

fn open_with(folder: &Path, options: ShardOptions) -> Arc<Shard> {
    let store = Store::open(&folder.join("store"), StoreOptions::default()).unwrap();
    Shard::open(store, "w", &folder.join("index"), COLLECTION, options).unwrap()
}

pub(super) fn fill(shard: &Shard, data: &WordNet, distance: Distance) {
    let params = VectorParams::new(384, distance, HnswParams::default());
    let schema = Schema {
        version: 1,
        vectors: [(String::new(), params)].into(),
        fields: [("pos".parse().unwrap(), FieldType::Keyword)].into(),
        ..Schema::default()
    };
    let mut commands = vec![command(Body::Configure(schema)).encode()];
    for (number, chunk) in data.vectors.chunks(100).enumerate() {
        let write = |(i, vector): (usize, &Vec<f32>)| PointWrite {
            id: PointId::Num((100 * number + i) as u64),
            vectors: [(String::new(), Vector::Dense(vector.clone()))].into(),
            payload: data.payloads[100 * number + i].clone(),
        };
        commands.push(command(Body::Upsert(chunk.iter().enumerate().map(write).collect())).encode());
        shard.apply(std::mem::take(&mut commands), Bookmark(Bytes::new())).unwrap();
    }
}

/// Waits until nothing is worth building any more.
pub(super) fn settle(shard: &Shard) {
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let view = shard.view();
        let merged = view.vectors.values().all(|index| index.next_merge(&view.live, usize::MAX).is_none());
        // The manifest is written after a merged graph can be searched.
        let written =
            view.vectors.values().flat_map(|index| &index.segments).map(|s| s.segment.bytes()).sum::<u64>();
        if merged && shard.indexer.bytes() == written {
            return;
        }
        assert!(Instant::now() < deadline, "the index does not come to rest");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks for the ten nearest.
pub(super) fn ten_nearest(query: &[f32], filter: Option<Filter>, params: SearchParams) -> SearchRequest {
    SearchRequest {
        target: Target::Nearest(query.to_vec()),
        using: String::new(),
        filter,
        limit: 10,
        offset: 0,
        score_threshold: None,
        params,
        projection: Projection::default(),
    }
}

fn search(view: &ReadView, query: &[f32], filter: Option<Filter>, ef: Option<u32>) -> Vec<(PointId, f32)> {
    let request = ten_nearest(query, filter, SearchParams { exact: ef.is_none(), ef });
    view.search(&request, None, None).unwrap().into_iter().map(|p| (p.id, p.score)).collect()
}

/// Of the exact ten nearest of every query, the part that a walk over the graph finds.
fn recall(shard: &Shard, data: &WordNet, filter: Option<&Filter>, ef: u32) -> f64 {
    let view = shard.view();
    let mut hits = 0;
    for query in &data.queries {
        let exact = search(&view, query, filter.cloned(), None);
        let found = search(&view, query, filter.cloned(), Some(ef));
        assert_eq!(found.len(), 10);
        hits += found.iter().filter(|(_, score)| *score >= exact[9].1).count();
    }
    hits as f64 / (10 * data.queries.len()) as f64
}

pub(super) fn is_noun() -> Filter {
    let test = FieldTest::Match(Scalar::Keyword("n".into()));
    Filter { must: vec![Condition::Field { path: "pos".parse().unwrap(), test }], ..Filter::default() }
}

#[test]
fn graphs_find_the_neighbours_of_real_vectors() {
    let data = wordnet();
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), 256 << 10);
    fill(&shard, &data, Distance::Cosine);
    // The exact answers are those computed by another program.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wordnet-2k/neighbors10.i32.npy");
    let file = npyz::NpyFile::new(io::BufReader::new(fs::File::open(path).unwrap())).unwrap();
    let neighbours = file.into_vec::<i32>().unwrap();
    let (mut same, view) = (0, shard.view());
    for (query, want) in data.queries.iter().zip(neighbours.chunks_exact(10)) {
        let found = search(&view, query, None, None);
        same += found.iter().filter(|(id, _)| want.iter().any(|n| *id == PointId::Num(*n as u64))).count();
    }
    assert!(same >= 998, "{same} of 1000 exact neighbours agree");
    settle(&shard);
    let stats = shard.stats();
    assert!(!stats.building && stats.indexed_vectors == 2000 && stats.index_bytes > 2_000_000, "{stats:?}");
    // At these numbers of candidates a graph of 1,900 rows is walked; at the default it would be scanned.
    let (all, nouns) = (recall(&shard, &data, None, 32), recall(&shard, &data, Some(&is_noun()), 18));
    assert!(all >= 0.95 && nouns >= 0.95, "recall {all}, of nouns {nouns}");
    // Half of it dies: the segment is rewritten, and no dead row is ever found.
    let dead: Vec<PointId> = (0..2000).step_by(2).map(PointId::Num).collect();
    shard.apply(vec![command(Body::Delete(dead)).encode()], Bookmark(Bytes::new())).unwrap();
    let found = search(&shard.view(), &data.queries[0], None, Some(48));
    assert!(found.iter().all(|(id, _)| matches!(id, PointId::Num(n) if n % 2 == 1)));
    settle(&shard);
    let rows: usize = shard.view().vectors[""].segments.iter().map(|s| s.segment.rows().len()).sum();
    assert!(rows <= 1200, "{rows} rows in graphs");
    let mended = recall(&shard, &data, None, 20);
    assert!(mended >= 0.95, "recall {mended} once half of the rows are gone");
    let files = fs::read_dir(folder.path().join("index")).unwrap().count();
    assert!(files <= 1 + shard.view().vectors[""].segments.len(), "{files} files");
    shard.close();
}

#[test]
fn euclid_and_manhattan_have_graphs_too() {
    let data = wordnet();
    for distance in [Distance::Euclid, Distance::Manhattan] {
        let folder = tempfile::tempdir().unwrap();
        let shard = open_wordnet(folder.path(), 2 << 20);
        fill(&shard, &data, distance);
        settle(&shard);
        let view = shard.view();
        let mut hits = 0;
        for query in &data.queries {
            let exact = search(&view, query, None, None);
            let found = search(&view, query, None, Some(48));
            hits += found.iter().filter(|(_, score)| *score <= exact[9].1).count();
        }
        assert!(hits >= 950, "{distance:?}: {hits} of 1000");
        shard.close();
    }
}

#[test]
fn a_damaged_index_costs_time_and_no_answer() {
    let data = wordnet();
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index");
    let shard = open_wordnet(folder.path(), 2 << 20);
    fill(&shard, &data, Distance::Cosine);
    settle(&shard);
    let answers = |shard: &Shard| -> Vec<_> {
        let view = shard.view();
        data.queries[..20].iter().map(|q| search(&view, q, None, None)).collect()
    };
    let want = answers(&shard);
    shard.close();
    drop(shard);
    let segment =
        fs::read_dir(&index).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some()).unwrap();
    let whole = fs::read(&segment).unwrap();
    let manifest = fs::read(index.join("manifest")).unwrap();
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let cut = whole[..whole.len() - 1].to_vec();
    let damages: Vec<(&Path, Option<Vec<u8>>)> = vec![
        (&segment, Some(flip(70))),
        (&segment, Some(flip(whole.len() / 2))),
        (&segment, Some(flip(whole.len() - 1))),
        (&segment, Some(cut)),
        (&segment, Some(Vec::new())),
        (&segment, None),
        (Path::new("manifest"), Some(manifest[..manifest.len() / 2].to_vec())),
        (Path::new("manifest"), None),
    ];
    for (file, bytes) in damages {
        // Each damage is done to the same, whole index.
        fs::write(&segment, &whole).unwrap();
        fs::write(index.join("manifest"), &manifest).unwrap();
        let path = index.join(file);
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        // So large a delta is not sealed: no time goes into building, and the damaged file must be left out.
        let shard = open_wordnet(folder.path(), 1 << 30);
        assert!(shard.view().vectors[""].segments.is_empty(), "{}", path.display());
        assert_eq!(answers(&shard), want);
        shard.close();
        drop(shard);
    }
    fs::remove_dir_all(&index).unwrap();
    let shard = open_wordnet(folder.path(), 2 << 20);
    assert_eq!(answers(&shard), want);
    settle(&shard);
    assert_eq!(answers(&shard), want);
    assert_eq!(shard.stats().segments, 2, "one graph and the open delta");
    shard.close();
    drop(shard);
    let shard = open_wordnet(folder.path(), 1 << 30);
    assert_eq!(shard.view().vectors[""].segments.len(), 1, "it was built again, and is used");
    shard.close();
}

#[test]
fn an_index_that_is_gone_is_built_while_it_is_opened_as_far_as_memory_wants() {
    let data = wordnet();
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), 1 << 30);
    fill(&shard, &data, Distance::Cosine);
    let of = |shard: &Shard| -> Vec<_> {
        data.queries.iter().map(|query| search(&shard.view(), query, None, None)).collect()
    };
    let want = of(&shard);
    shard.close();
    drop(shard);
    for _ in 0..2 {
        let options = ShardOptions { seal_bytes: 256 << 10, waiting_bytes: 1 << 20, ..options() };
        let shard = open_with(folder.path(), options);
        // Of 3 MB.
        let view = shard.view();
        let index = &view.vectors[""];
        assert!(!index.segments.is_empty() && index.waiting_bytes() <= 1 << 20, "{}", index.waiting_bytes());
        assert_eq!(of(&shard), want);
        let text = fs::read_to_string(folder.path().join("index").join("manifest")).unwrap();
        assert!(index.segments.iter().all(|s| text.contains(&s.file)), "they are found again: {text}");
        shard.close();
    }
}

#[test]
fn a_snapshot_brings_its_graphs() {
    let data = wordnet();
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sender = open_wordnet(here.path(), 256 << 10);
    fill(&sender, &data, Distance::Cosine);
    settle(&sender);
    // Some rows are in no graph, some rows of graphs are dead.
    let upsert = |id: usize| PointWrite {
        id: PointId::Num(id as u64),
        vectors: [(String::new(), Vector::Dense(data.vectors[id + 1].clone()))].into(),
        payload: Bytes::new(),
    };
    let late = (0..30).map(upsert).collect();
    sender.apply(vec![command(Body::Upsert(late)).encode()], Bookmark(Bytes::new())).unwrap();
    let answers = |shard: &Shard| -> Vec<_> {
        let view = shard.view();
        data.queries[..20]
            .iter()
            .map(|q| (search(&view, q, None, None), search(&view, q, None, Some(48))))
            .collect()
    };
    let files = |shard: &Shard| -> Vec<Vec<u8>> {
        shard.view().vectors[""].segments.iter().map(|s| s.segment.file_bytes().to_vec()).collect()
    };
    let (want, graphs) = (answers(&sender), files(&sender));
    assert!(!graphs.is_empty());
    let mut stream = Vec::new();
    sender.write_snapshot(&mut stream).unwrap();
    // So large a delta is not sealed: a graph that is there was not built there.
    let receiver = open_wordnet(there.path(), 1 << 30);
    for _ in 0..2 {
        receiver.install_snapshot(&mut stream.as_slice()).unwrap();
        assert_eq!(files(&receiver), graphs);
        assert_eq!(answers(&receiver), want);
        let stats = receiver.stats();
        assert!(
            !stats.building && stats.indexed_vectors == 2000 && stats.index_bytes > 2_000_000,
            "{stats:?}"
        );
        assert_eq!(receiver.scrub().unwrap(), sender.state_hash().unwrap());
    }
    receiver.close();
    drop(receiver);
    let receiver = open_wordnet(there.path(), 1 << 30);
    assert_eq!((files(&receiver), answers(&receiver)), (graphs, want.clone()));
    let in_folder = || fs::read_dir(there.path().join("index")).unwrap().count();
    assert_eq!(in_folder(), 1 + receiver.view().vectors[""].segments.len());
    // What is wrong with the files costs graphs; which, depends on where it is.
    let exact = |answers: Vec<(Vec<(PointId, f32)>, _)>| answers.into_iter().map(|a| a.0).collect::<Vec<_>>();
    let (begin, want) = (rows_end(&stream), exact(want));
    let mut lost = 0;
    for at in [begin + 3, begin + 5, begin + 20, begin + 1000, (begin + stream.len()) / 2, stream.len() - 1] {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        for stream in [&damaged[..], &stream[..at]] {
            receiver.install_snapshot(&mut &*stream).unwrap();
            assert_eq!(receiver.state_hash().unwrap(), sender.state_hash().unwrap());
            let segments = receiver.view().vectors[""].segments.len();
            assert!(segments < sender.view().vectors[""].segments.len(), "byte {at}");
            lost += usize::from(segments == 0);
            assert_eq!(exact(answers(&receiver)), want, "byte {at}");
        }
    }
    assert!(lost >= 8, "{lost}");
    // Rot of a file on its sender's disk: its scrub finds it, and the receiver does not take it.
    let view = sender.view();
    let path = here.path().join("index").join(&view.vectors[""].segments[0].file);
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    io::Seek::seek(&mut file, io::SeekFrom::Start(1_000)).unwrap();
    io::Write::write_all(&mut file, &[0xaa; 3]).unwrap();
    assert!(matches!(sender.scrub(), Err(MachineError::Damaged { .. })));
    let mut rotten = Vec::new();
    sender.write_snapshot(&mut rotten).unwrap();
    receiver.install_snapshot(&mut rotten.as_slice()).unwrap();
    assert_eq!(receiver.view().vectors[""].segments.len(), view.vectors[""].segments.len() - 1);
    assert_eq!(exact(answers(&receiver)), want);
    assert_eq!(receiver.scrub().unwrap(), sender.state_hash().unwrap());
    sender.close();
    receiver.close();
}

#[test]
fn readers_never_see_half_of_a_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
    // Small deltas: graphs are built, merged and swapped all the time.
    let options = ShardOptions { seal_bytes: 3_000, ..options() };
    let shard = Shard::open(store, "r", &folder.path().join("index"), COLLECTION, options).unwrap();
    let configure = command(Body::Configure(schema(1, &[("v", FieldType::Integer)])));
    shard.apply(vec![configure.encode()], Bookmark(Bytes::new())).unwrap();
    let done = AtomicBool::new(false);
    let reads: usize = std::thread::scope(|scope| {
        let reader = |seed: u64| {
            let (shard, done) = (&shard, &done);
            move || {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    let view = shard.view();
                    let v = (reads as u64 * 7 + seed) % 50;
                    let request = SearchRequest {
                        target: Target::Nearest(vec![v as f32, 0.0, 0.0]),
                        using: String::new(),
                        filter: Some(Filter {
                            must: vec![Condition::Field {
                                path: "v".parse().unwrap(),
                                test: FieldTest::Range(Range { gte: Some(v as f64), ..Range::default() }),
                            }],
                            ..Filter::default()
                        }),
                        limit: 20,
                        offset: 0,
                        score_threshold: None,
                        params: SearchParams { exact: seed.is_multiple_of(2), ef: Some(4) },
                        projection: everything(),
                    };
                    let mut seen = BTreeSet::new();
                    for point in view.search(&request, None, None).unwrap() {
                        let payload: Value = serde_json::from_slice(&point.payload.unwrap()).unwrap();
                        let Vector::Dense(vector) = &point.vectors.unwrap()[""] else { panic!() };
                        let held = payload["v"].as_u64().unwrap();
                        assert_eq!(held as f32, vector[0], "payload and vector of {}", point.id);
                        assert!(held >= v, "the filter saw another payload");
                        assert_eq!(
                            point.score,
                            (vector[0] - v as f32).abs(),
                            "the score is of another vector"
                        );
                        assert!(point.version <= view.position());
                        assert!(seen.insert(point.id), "{} was found twice", point.id);
                    }
                    reads += 1;
                }
                reads
            }
        };
        let readers: Vec<_> = (0..4).map(|seed| scope.spawn(reader(seed))).collect();
        let rounds = 1500u64;
        for round in 0..rounds {
            let write = |id: u64| {
                let v = (round * 13 + id * 5) % 60;
                PointWrite {
                    id: PointId::Num(id),
                    vectors: [(String::new(), Vector::Dense(vec![v as f32, 0.0, 0.0]))].into(),
                    payload: json!({"v": v}).to_string().into(),
                }
            };
            let ids = (0..4).map(|i| (round * 7 + i * 11) % 40);
            let mut bodies = vec![Body::Upsert(ids.map(write).collect())];
            if round % 5 == 0 {
                bodies.push(Body::Delete(vec![PointId::Num(round % 40)]));
            }
            let commands = bodies.into_iter().map(|b| command(b).encode()).collect();
            shard.apply(commands, Bookmark(Bytes::new())).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    assert!(reads > 100, "{reads} reads");
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
    shard.close();
}

#[test]
fn writers_wait_for_graphs_but_not_for_ever() {
    let upsert = |id: u64| {
        let row = Vector::Dense(vec![id as f32, 0.0, 1.0]);
        let write = PointWrite {
            id: PointId::Num(id),
            vectors: [(String::new(), row)].into(),
            payload: Bytes::new(),
        };
        command(Body::Upsert(vec![write])).encode()
    };
    for index_works in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("index");
        if !index_works {
            fs::write(&index, "a file where a folder is wanted").unwrap();
        }
        let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
        // Every row is a sealed delta of 12 bytes, and eight of them are too many.
        let options = ShardOptions { seal_bytes: 1, waiting_bytes: 24, ..options() };
        let shard = Shard::open(store, "b", &index, COLLECTION, options).unwrap();
        let configure = command(Body::Configure(schema(1, &[]))).encode();
        shard.apply(vec![configure], Bookmark(Bytes::new())).unwrap();
        for id in 0..40 {
            shard.apply(vec![upsert(id)], Bookmark(Bytes::new())).unwrap();
            let waiting = shard.view().vectors[""].waiting_rows();
            assert!(waiting <= 9 || !index_works, "{waiting} rows wait");
            let found = search(&shard.view(), &[id as f32, 0.0, 1.0], None, None);
            assert_eq!(found[0], (PointId::Num(id), 0.0));
        }
        shard.close();
    }
}

/// Rows of a segment that no path from its entries leads to.
fn unreached(segment: &Segment) -> usize {
    let graph = segment.graph();
    let mut seen = vec![false; segment.rows().len()];
    let mut waiting = graph.entries.to_vec();
    while let Some(row) = waiting.pop() {
        if !std::mem::replace(&mut seen[row as usize], true) {
            waiting.extend(graph.linked(row));
        }
    }
    seen.iter().filter(|seen| !**seen).count()
}

/// `ANNAL_BUILDS=100 cargo test --lib every_row_of_every_graph -- --nocapture`: graphs that are built, joined, and built
/// anew without a quarter of their rows.
#[test]
fn every_row_of_every_graph_is_reached() {
    let wanted: u64 = std::env::var("ANNAL_BUILDS").map_or(3, |builds| builds.parse().unwrap());
    let (mut data, mut rng) = (wordnet(), StdRng::seed_from_u64(5));
    let (mut built, mut rows) = (0, 0);
    while built < wanted {
        data.vectors.shuffle(&mut rng);
        let folder = tempfile::tempdir().unwrap();
        let shard = open_wordnet(folder.path(), rng.random_range(500..1500) * 384 * 4);
        fill(&shard, &data, Distance::Cosine);
        settle(&shard);
        let check = |rows: &mut usize| {
            let view = shard.view();
            let segments = &view.vectors[""].segments;
            assert!(!segments.is_empty());
            for segment in segments {
                assert_eq!(unreached(&segment.segment), 0, "after {built} builds");
                *rows += segment.segment.rows().len();
            }
            let newest = segments.iter().map(|s| s.file.clone()).max().unwrap();
            newest.trim_end_matches(".seg").parse::<u64>().unwrap()
        };
        check(&mut rows);
        let first = rng.random_range(0..1400);
        let gone = (first..first + 600).map(PointId::Num).collect();
        shard.apply(vec![command(Body::Delete(gone)).encode()], Bookmark(Bytes::new())).unwrap();
        shard.indexer.notify();
        settle(&shard);
        built += check(&mut rows);
        shard.close();
    }
    println!("{built} graphs were built; all {rows} rows of those looked at are reached");
}

/// 100,000 real vectors, for `docs/BENCHMARKS.md`: `ANNAL_WORDNET_100K=folder cargo test --release -p annal
/// --lib wordnet_100k -- --nocapture --ignored`.
#[test]
#[ignore = "minutes, and data that is not in the repository"]
fn wordnet_100k() {
    let data_dir = std::env::var("ANNAL_WORDNET_100K").unwrap();
    let read = |name: &str| {
        npyz::NpyFile::new(io::BufReader::new(fs::File::open(Path::new(&data_dir).join(name)).unwrap()))
            .unwrap()
    };
    let mut vectors: Vec<f32> =
        read("vectors.f16.npy").into_vec::<half::f16>().unwrap().into_iter().map(f32::from).collect();
    vectors.chunks_exact_mut(384).for_each(crate::model::schema::normalise);
    let queries = read("queries.f32.npy").into_vec::<f32>().unwrap();
    let neighbours = read("neighbors100.i32.npy").into_vec::<i32>().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), ShardOptions::default().seal_bytes);
    let schema = Schema {
        version: 1,
        vectors: [(String::new(), VectorParams::new(384, Distance::Cosine, HnswParams::default()))].into(),
        fields: [("n".parse().unwrap(), FieldType::Integer)].into(),
        ..Schema::default()
    };
    shard.apply(vec![command(Body::Configure(schema)).encode()], Bookmark(Bytes::new())).unwrap();
    let start = Instant::now();
    for (number, chunk) in vectors.chunks(384 * 256).enumerate() {
        let writes = chunk.chunks_exact(384).enumerate().map(|(i, row)| {
            let id = (number * 256 + i) as u64;
            PointWrite {
                id: PointId::Num(id),
                vectors: [(String::new(), Vector::Dense(row.to_vec()))].into(),
                payload:
                    json!({"n": id % 1000, "gloss": "a gloss of usual length stands here for the payload"})
                        .to_string()
                        .into(),
            }
        });
        shard.apply(vec![command(Body::Upsert(writes.collect())).encode()], Bookmark(Bytes::new())).unwrap();
    }
    println!("applied after {:?}", start.elapsed());
    let deadline = Instant::now() + Duration::from_secs(1800);
    loop {
        let view = shard.view();
        if view.vectors.values().all(|index| index.next_merge(&view.live, usize::MAX).is_none())
            || Instant::now() > deadline
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("graphs after {:?}: {:?}", start.elapsed(), shard.stats());
    let nouns = |below: f64| Filter {
        must: vec![Condition::Field {
            path: "n".parse().unwrap(),
            test: FieldTest::Range(Range { lt: Some(below), ..Range::default() }),
        }],
        ..Filter::default()
    };
    for ef in [None, Some(64), Some(128), Some(256)] {
        let view = shard.view();
        let (start, mut hits) = (Instant::now(), 0);
        for (query, want) in queries.chunks_exact(384).zip(neighbours.chunks_exact(100)).take(1000) {
            let mut query = query.to_vec();
            crate::model::schema::normalise(&mut query);
            let request = SearchRequest {
                target: Target::Nearest(query),
                using: String::new(),
                filter: None,
                limit: 10,
                offset: 0,
                score_threshold: None,
                params: SearchParams { exact: false, ef },
                projection: Projection::default(),
            };
            let found = view.search(&request, None, None).unwrap();
            hits +=
                found.iter().filter(|p| want[..10].iter().any(|n| p.id == PointId::Num(*n as u64))).count();
        }
        println!("ef {ef:?}: recall@10 {:.4}, {:?} a query", hits as f64 / 10_000.0, start.elapsed() / 1000);
    }
    for below in [1.0, 10.0, 100.0, 500.0] {
        let view = shard.view();
        let filter = nouns(below);
        let mut times = [Duration::ZERO; 2];
        let mut hits = 0;
        for query in queries.chunks_exact(384).take(200) {
            let start = Instant::now();
            let exact = search(&view, query, Some(filter.clone()), None);
            times[0] += start.elapsed();
            let start = Instant::now();
            let found = search(&view, query, Some(filter.clone()), Some(128));
            times[1] += start.elapsed();
            hits += found.iter().filter(|f| exact.contains(f)).count();
        }
        println!(
            "{} % allowed: recall {:.4}, exact {:?}, planned {:?}",
            below / 10.0,
            hits as f64 / 2000.0,
            times[0] / 200,
            times[1] / 200
        );
    }
    shard.persist().unwrap();
    shard.close();
    drop(shard);
    let cpu = || {
        let t = fs::read_to_string("/proc/self/schedstat").unwrap();
        t.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let (start, _) = (Instant::now(), cpu());
    let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
    println!("store open after {:?}", start.elapsed());
    let shard = Shard::open(store, "w", &folder.path().join("index"), COLLECTION, options()).unwrap();
    println!("open after {:?}: {:?}", start.elapsed(), shard.stats());
    shard.close();
}
