//! Damage to any row of one of two equal shards is found, by its scrub or by comparing their state hashes.

use super::*;
use crate::model::{Generation, Turn};
use std::ops::ControlFlow;

fn long_window() -> ShardOptions {
    ShardOptions { dedup_window: 2048, ..options() }
}

fn open_in(folder: &Path) -> Result<Arc<Shard>, MachineError> {
    Shard::open(store_in(folder), "shard1", &folder.join("index"), COLLECTION, long_window())
}

/// A log that leaves rows in every table.
fn log() -> Vec<Bytes> {
    let fields = [("n", FieldType::Integer), ("t", FieldType::Keyword)];
    let mut log = vec![command(Body::Configure(schema(1, &fields))).encode()];
    let point = |n: u64| PointWrite {
        id: if n.is_multiple_of(3) { PointId::Uuid(u128::from(n) << 70) } else { PointId::Num(n) },
        vectors: [
            (String::new(), Vector::Dense(vec![n as f32, 1.0, -1.0])),
            ("dot".to_owned(), Vector::Dense(vec![0.5, n as f32, 0.25])),
        ]
        .into(),
        payload: json!({"n": [n, n + 1], "t": format!("tag {}", n % 7)}).to_string().into(),
    };
    let nothing =
        Filter { must: vec![Condition::HasId([PointId::Num(u64::MAX)].into())], ..Filter::default() };
    // It is the second home of its collection.
    log.push(command(Body::Turn(Turn::Promote(Generation(2)))).encode());
    for n in 0..4500u64 {
        let body = match n % 90 {
            0..30 => Body::Upsert(vec![point(n), point(n / 2)]),
            30 => Body::DeleteMatching(nothing.clone()),
            31..34 => Body::Delete(vec![point(n - 31).id, PointId::Num(u64::MAX)]),
            _ => Body::Delete(vec![]),
        };
        let client = ["a", "bb"][(n % 5 == 0) as usize].to_owned();
        let request = (n % 4 == 0).then_some(RequestId { client, seq: n });
        log.push(Command { request, born: Position(n), ..command(body) }.encode());
    }
    log
}

#[test]
fn damage_to_any_row_is_found() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = open_in(here.path()).unwrap();
    for batch in log().chunks(50) {
        whole.apply(batch.to_vec(), Bookmark(whole.position().to_string().into())).unwrap();
    }
    let view = whole.view();
    for table in points::TABLES {
        let rows = view.store.keys(&view.keyspace, &[table]).count();
        assert!(rows > 0, "table {}", table as char);
    }
    assert_eq!(whole.scrub().unwrap(), whole.state_hash().unwrap());
    let mut stream = Vec::new();
    whole.write_snapshot(&mut stream).unwrap();
    let shard = open_in(there.path()).unwrap();
    let mut kinds = BTreeSet::new();
    for seed in 0..2 * rot::KINDS {
        shard.install_snapshot(&mut stream.as_slice()).unwrap();
        let done = rot::inject(&shard.store, "shard1", seed).unwrap().expect("there are rows");
        let found = shard.scrub().is_err() || shard.state_hash().unwrap() != whole.state_hash().unwrap();
        assert!(found, "seed {seed}: {done}");
        kinds.insert(seed % rot::KINDS);
    }
    assert_eq!(kinds.len() as u64, rot::KINDS, "each kind twice, which is more than fifty");
    // An install mends it.
    shard.install_snapshot(&mut stream.as_slice()).unwrap();
    assert_eq!(shard.scrub().unwrap(), whole.state_hash().unwrap());
    shard.close();
    whole.close();
}

#[test]
fn damage_done_while_a_node_was_down_is_found() {
    let log = log();
    let here = tempfile::tempdir().unwrap();
    let whole = open_in(here.path()).unwrap();
    whole.apply(log.clone(), Bookmark(Bytes::new())).unwrap();
    let hash = whole.state_hash().unwrap();
    let mut stream = Vec::new();
    whole.write_snapshot(&mut stream).unwrap();
    whole.close();
    for seed in 0..rot::KINDS {
        let folder = tempfile::tempdir().unwrap();
        let shard = open_in(folder.path()).unwrap();
        shard.install_snapshot(&mut stream.as_slice()).unwrap();
        shard.close();
        drop(shard);
        let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
        let done = rot::inject(&store, "shard1", 1000 * rot::KINDS + seed).unwrap().unwrap();
        assert_eq!(rot::inject(&store, "shard2", seed).unwrap(), None);
        drop(store);
        match open_in(folder.path()) {
            Err(e) => assert!(matches!(e, MachineError::Damaged { .. }), "{done}: {e}"),
            Ok(shard) => {
                let found = shard.scrub().is_err() || shard.state_hash().unwrap() != hash;
                assert!(found, "seed {seed}: {done}");
                shard.close();
            }
        }
    }
}

#[test]
fn a_gentle_scrub_goes_at_the_callers_pace() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open_in(folder.path()).unwrap();
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap(), "before the first command");
    shard.apply(log(), Bookmark(Bytes::new())).unwrap();
    let mut looks = Vec::new();
    let before = shard.state_hash().unwrap();
    let hash = shard.scrub_gently(|rows| {
        looks.push(rows);
        // The writer goes on meanwhile, and the scrub is of the state it began with.
        if looks.len() == 3 {
            shard.apply(vec![command(Body::Retire).encode()], Bookmark(Bytes::new())).unwrap();
        }
        ControlFlow::Continue(())
    });
    assert_eq!(hash.unwrap(), Some(before));
    assert!(looks.len() > 10 && looks.is_sorted(), "{looks:?}");
    let stopped = shard
        .scrub_gently(|rows| if rows > 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    assert_eq!(stopped.unwrap(), None);
    shard.close();
}

#[test]
fn a_closed_shard_whose_rows_were_dropped_has_not_rotted() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open_in(folder.path()).unwrap();
    shard.apply(log()[..40].to_vec(), Bookmark(Bytes::new())).unwrap();
    let scrubbed = || shard.scrub_gently(|_| ControlFlow::Continue(()));
    assert!(scrubbed().unwrap().is_some());
    shard.close();
    Shard::drop_files(&shard.store, "shard1", &folder.path().join("index")).unwrap();
    assert_eq!(scrubbed().unwrap(), None);
}
