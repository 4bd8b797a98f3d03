//! What builds graphs: when it hurries and rests, what comes first, and what it leaves behind.

use super::{
    real::{fill, open_wordnet, wordnet},
    *,
};
use crate::{
    shard::vector_index::{IndexError, build::BuildError},
    world,
};
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
};

#[test]
fn a_build_that_fails_leaves_nothing_behind() {
    let data = wordnet();
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index");
    // A file is written, and cannot take its place.
    for number in 1..100 {
        fs::create_dir_all(index.join(format!("{number:08}.seg"))).unwrap();
    }
    for left in ["00000777.seg", "00000778.new"] {
        fs::write(index.join(left), "of a process that was killed").unwrap();
    }
    let shard = open_wordnet(folder.path(), 1 << 20);
    let files = || {
        let all = fs::read_dir(&index).unwrap().map(Result::unwrap);
        all.filter(|file| file.file_type().unwrap().is_file()).map(|file| file.path()).collect::<Vec<_>>()
    };
    assert_eq!(files(), Vec::<PathBuf>::new(), "when it is opened");
    fill(&shard, &data, Distance::Cosine);
    let until = Instant::now() + Duration::from_secs(60);
    while shard.indexer.absorbs() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!shard.indexer.absorbs(), "it fails");
    assert_eq!(files(), Vec::<PathBuf>::new(), "of a build that failed");
    shard.close();
}

#[test]
fn a_build_that_is_late_is_begun_anew_and_gives_way_no_more() {
    let upsert = |id: u64| {
        let vectors = [(String::new(), Vector::Dense(vec![id as f32, 0.0, 1.0]))].into();
        command(Body::Upsert(vec![PointWrite { id: PointId::Num(id), vectors, payload: Bytes::new() }]))
            .encode()
    };
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index");
    fs::write(&index, "a file where a folder is wanted: nothing is built").unwrap();
    let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
    let shard =
        Shard::open(store, "b", &index, COLLECTION, ShardOptions { seal_bytes: 1, ..options() }).unwrap();
    let apply = |command| shard.apply(vec![command], Bookmark(Bytes::new())).unwrap();
    apply(command(Body::Configure(schema(1, &[]))).encode());
    for id in 1..LATE_DELTAS as u64 {
        apply(upsert(id));
    }
    let begun = AtomicUsize::new(0);
    let work = |stop: &AtomicBool| {
        if begun.fetch_add(1, Ordering::Relaxed) == 0 {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Err(BuildError::Stopped.into());
        }
        Ok(rustix::process::nice(0).unwrap())
    };
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| shard.indexer.apart(&shard, work));
        while begun.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(begun.load(Ordering::Relaxed), 1, "it is not late yet");
        apply(upsert(0));
        late.join().unwrap().unwrap()
    });
    assert_eq!(begun.load(Ordering::Relaxed), 2);
    if cfg!(target_os = "linux") {
        assert_eq!(late, rustix::process::nice(0).unwrap());
    }
    shard.close();
    begun.store(0, Ordering::Relaxed);
    let stopped = shard.indexer.apart(&shard, work);
    assert!(
        matches!(stopped, Err(IndexError::Build(BuildError::Stopped))),
        "told to stop, it is not begun anew"
    );
    assert_eq!(begun.load(Ordering::Relaxed), 1);
}

#[test]
fn who_waits_late_for_its_turn_has_who_builds_hurry() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), 1 << 20);
    let turn = &shard.options.build_turn;
    let (begun, late, stops) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
    let until = |done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        done()
    };
    let work = |stop: &AtomicBool| match begun.fetch_add(1, Ordering::Relaxed) {
        0 => {
            until(&|| stop.load(Ordering::Relaxed));
            Err(BuildError::Stopped.into())
        }
        _ => Ok(()),
    };
    std::thread::scope(|scope| {
        let held = turn.wait(|| false, || false).unwrap();
        let builds = scope.spawn(|| shard.indexer.apart(&shard, work));
        let waits = scope
            .spawn(|| turn.wait(|| stops.load(Ordering::Relaxed), || late.load(Ordering::Relaxed)).map(drop));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(begun.load(Ordering::Relaxed), 1, "nobody is late");
        late.store(true, Ordering::Relaxed);
        assert!(until(&|| builds.is_finished()), "what was begun politely goes on");
        builds.join().unwrap().unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 2);
        stops.store(true, Ordering::Relaxed);
        waits.join().unwrap().unwrap_err();
        drop(held);
    });
    shard.close();
}

#[test]
fn of_two_vectors_the_one_that_keeps_more_waiting_is_built_first() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("index");
    fs::write(&index, "a file where a folder is wanted: nothing is built").unwrap();
    let shard = open_wordnet(folder.path(), 1);
    let params = VectorParams::new(2, Distance::Dot, HnswParams::default());
    let vectors = ["a", "b"].map(|name| (name.to_owned(), params)).into();
    let schema = Schema { version: 1, vectors, ..Schema::default() };
    shard.apply(vec![command(Body::Configure(schema)).encode()], Bookmark(Bytes::new())).unwrap();
    for (id, name, first) in [(1, "a", "a"), (2, "b", "a"), (3, "b", "b")] {
        let vectors = [(name.to_owned(), Vector::Dense(vec![1.0, 2.0]))].into();
        let write = PointWrite { id: PointId::Num(id), vectors, payload: Bytes::new() };
        shard.apply(vec![command(Body::Upsert(vec![write])).encode()], Bookmark(Bytes::new())).unwrap();
        assert_eq!(
            indexer::next_merge(&shard, &shard.view()).map(|(name, _)| name.to_owned()).as_deref(),
            Some(first)
        );
    }
    shard.close();
}

#[test]
fn what_builds_rests_while_there_are_searches_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), 1 << 20);
    // By the shortest of some breaths, since the machine may prolong any of them. It is looked for searches now and then.
    let rests_if = |searches: bool| {
        let breath = |_| {
            if searches {
                shard.note_search();
            }
            std::thread::sleep(Duration::from_millis(1));
            let began = Instant::now();
            world::breathe();
            began.elapsed()
        };
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if ((0..20).map(breath).min().unwrap() >= Duration::from_micros(50)) == searches {
                return true;
            }
        }
        false
    };
    let told = shard.indexer.apart(&shard, |_| Ok((rests_if(false), rests_if(true)))).unwrap();
    assert_eq!(told, (true, true), "left alone it does not rest; beside searches it does");
}
