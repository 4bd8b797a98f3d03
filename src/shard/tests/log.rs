//! What a shard owes to its log: intents applied once, commands refused alike, bookmarks, hashes, snapshots.

use super::*;

fn apply(shard: &Shard, command: &Command) -> Verdict {
    let bookmark = Bookmark(shard.position().next().0.to_string().into());
    shard.apply(vec![command.encode()], bookmark).unwrap().remove(0).verdict
}

/// How many rows a table has.
fn rows(shard: &Shard, table: u8) -> usize {
    let view = shard.view();
    view.store.prefix(&view.keyspace, &[table]).count()
}

fn put(id: u64, x: f32) -> Body {
    let vectors = [(String::new(), Vector::Dense(vec![x; 3]))].into();
    Body::Upsert(vec![PointWrite { id: PointId::Num(id), vectors, payload: Bytes::new() }])
}

fn code(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Rejected(rejection) => &rejection.code,
        _ => "",
    }
}

#[test]
fn an_intent_is_applied_once_and_remembered_for_a_window() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    apply(&shard, &command(Body::Configure(schema(1, &[]))));
    let intent = |seq, born, body| Command {
        request: Some(RequestId { client: "a".into(), seq }),
        born: Position(born),
        ..command(body)
    };
    let first = intent(1, 1, put(1, 1.0));
    let unfit = intent(
        2,
        1,
        Body::Upsert(vec![PointWrite {
            id: PointId::Num(1),
            vectors: [("gone".to_owned(), Vector::Dense(vec![1.0]))].into(),
            payload: Bytes::new(),
        }]),
    );
    assert_eq!(apply(&shard, &first), Verdict::Applied);
    let refused = apply(&shard, &unfit);
    assert_eq!(code(&refused), "stale_schema");
    apply(&shard, &command(put(1, 2.0)));
    for _ in 0..2 {
        let again = |position, verdict| Verdict::Duplicate {
            first: Box::new(Outcome { position: Position(position), verdict }),
        };
        assert_eq!(apply(&shard, &first), again(2, Verdict::Applied));
        assert_eq!(apply(&shard, &unfit), again(3, refused.clone()));
        assert_eq!(code(&apply(&shard, &intent(1, 1, put(1, 9.0)))), "other_body");
        shard.close();
        drop(shard);
        shard = open(folder.path());
    }
    let vector = shard.view().vector(PointId::Num(1), "").unwrap();
    assert_eq!(vector, Some(Vector::Dense(vec![2.0; 3])), "no copy was applied again");
    let hash = shard.state_hash().unwrap().1;
    while shard.position().0 < 1 + WINDOW {
        apply(&shard, &command(Body::Delete(vec![])));
    }
    // The last position at which the first intent is remembered is 2 + WINDOW.
    assert!(matches!(apply(&shard, &first), Verdict::Duplicate { .. }));
    assert_eq!(code(&apply(&shard, &first)), "expired");
    assert_eq!(code(&apply(&shard, &first)), "expired");
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
    assert_eq!(rows(&shard, points::DEDUP), 0, "every entry was evicted");
    assert_eq!(rows(&shard, points::EVICTION), 0);
    assert_ne!(shard.state_hash().unwrap().1, hash);
    shard.close();
}

#[test]
fn what_does_not_fit_is_refused_and_counts_as_a_position() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open(folder.path());
    apply(&shard, &command(Body::Configure(schema(3, &[]))));
    let foreign = Command { collection: CollectionId(6), ..command(put(1, 1.0)) };
    assert_eq!(code(&apply(&shard, &foreign)), "wrong_collection");
    let long = Vector::Dense(vec![0.0; 4]);
    let write = |vectors: Vectors, payload: &'static str| {
        command(Body::Upsert(vec![
            PointWrite { id: PointId::Num(1), vectors: Vectors::new(), payload: Bytes::new() },
            PointWrite { id: PointId::Num(2), vectors, payload: payload.into() },
        ]))
    };
    assert_eq!(code(&apply(&shard, &write([(String::new(), long)].into(), ""))), "stale_schema");
    assert_eq!(code(&apply(&shard, &write(Vectors::new(), "[1]"))), "bad_payload");
    let mut other = schema(4, &[]);
    other.vectors.get_mut("").unwrap().dim = 4;
    assert_eq!(code(&apply(&shard, &command(Body::Configure(other)))), "invalid_schema");
    // An older schema than the shard's is no harm, and a command checked against one neither.
    assert_eq!(
        apply(&shard, &command(Body::Configure(schema(2, &[("a", FieldType::Bool)])))),
        Verdict::Applied
    );
    assert!(shard.view().schema().fields.is_empty());
    assert_eq!(apply(&shard, &command(put(1, 1.0))), Verdict::Applied);
    assert_eq!((shard.position(), shard.view().count(None).unwrap()), (Position(7), 1));
    shard.close();
}

#[test]
fn an_unknown_command_stops_the_shard() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open(folder.path());
    let mut unknown = command(Body::Delete(vec![])).encode().to_vec();
    unknown[1] = 99;
    let batch = vec![command(Body::Configure(schema(1, &[]))).encode(), unknown.into()];
    let refused = shard.apply(batch, Bookmark(Bytes::new()));
    assert!(matches!(refused, Err(MachineError::Command { after: Position(0), .. })), "{refused:?}");
    let later = shard.apply(vec![], Bookmark(Bytes::new()));
    assert!(matches!(later, Err(MachineError::Poisoned(_))));
    assert_eq!((shard.position(), shard.bookmark()), (Position(0), None), "nothing of the batch was applied");
    shard.close();
}

#[test]
fn bookmarks_and_hashes_are_recorded_often_enough() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open(folder.path());
    let nothing = command(Body::Delete(vec![])).encode();
    let mut position = 0u64;
    for count in [3000usize, 7, 2000, 0, 1500, 2500] {
        position += count as u64;
        shard.apply(vec![nothing.clone(); count], Bookmark(position.to_string().into())).unwrap();
    }
    assert_eq!(shard.bookmark_at(Position(2999)).unwrap(), None);
    for at in (3000..=position).step_by(83) {
        let (mark, bookmark) = shard.bookmark_at(Position(at)).unwrap().unwrap();
        assert!(mark.0 <= at && at - mark.0 < 4096, "{mark} for {at}");
        assert_eq!(bookmark.0, mark.to_string());
    }
    let other = tempfile::tempdir().unwrap();
    let replay = open(other.path());
    replay.apply(vec![nothing; 8192], Bookmark(Bytes::new())).unwrap();
    let hash = shard.state_hash_at(Position(8192)).unwrap();
    assert_eq!(hash, Some(replay.state_hash().unwrap().1), "whatever the batches were");
    assert_eq!(shard.state_hash_at(Position(8191)).unwrap(), None);
    let marks = shard.hash_marks(Position(0)).unwrap();
    assert_eq!(marks, replay.hash_marks(Position(4096)).unwrap());
    assert_eq!(marks.iter().map(|(at, _)| at.0).collect::<Vec<_>>(), [4096, 8192]);
    assert_eq!(shard.hash_marks(Position(4097)).unwrap(), [(Position(8192), hash.unwrap())]);
    shard.close();
    replay.close();
}

#[test]
fn a_damaged_snapshot_changes_nothing_and_a_whole_one_moves_everything() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shard = open(here.path());
    apply(&shard, &command(Body::Configure(schema(1, &[("n", FieldType::Keyword)]))));
    for id in 0..40 {
        apply(&shard, &command(put(id, id as f32)));
    }
    let mut stream = Vec::new();
    shard.write_snapshot(&mut stream).unwrap();
    let other = open(there.path());
    apply(&other, &command(Body::Configure(schema(1, &[]))));
    apply(&other, &command(put(777, 7.0)));
    let before = other.state_hash().unwrap();
    let end = rows_end(&stream);
    for at in (0..end).step_by(end / 40).chain([end - 1]) {
        assert!(other.install_snapshot(&mut &stream[..at]).is_err(), "{at} bytes");
        let mut damaged = stream.clone();
        damaged[at] ^= 4;
        assert!(other.install_snapshot(&mut damaged.as_slice()).is_err(), "byte {at}");
        assert_eq!(other.state_hash().unwrap(), before);
        assert_eq!(other.view().count(None).unwrap(), 1);
    }
    let old_format = [b"ANNALSH1", &stream[8..]].concat();
    assert!(other.install_snapshot(&mut old_format.as_slice()).is_err());
    let old_view = other.view();
    other.install_snapshot(&mut stream.as_slice()).unwrap();
    assert_eq!(other.state_hash().unwrap(), shard.state_hash().unwrap());
    assert_eq!(other.bookmark(), shard.bookmark());
    assert_eq!(
        old_view.get(&[PointId::Num(777)], &everything()).unwrap().len(),
        1,
        "old views stay readable"
    );
    apply(&other, &command(put(1000, 1.0)));
    drop(old_view);
    other.close();
    drop(other);
    let other = open(there.path());
    assert_eq!((other.position(), other.view().count(None).unwrap()), (Position(42), 41));
    let name = |n: &str| other.store.keyspaces().contains(&n.to_owned());
    assert!(name("shard1.2") && !name("shard1.1"));
    other.close();
    let store = other.store.clone();
    drop(other);
    Shard::drop_files(&store, "shard1", &there.path().join("index")).unwrap();
    assert!(store.keyspaces().is_empty());
    shard.close();
}

#[test]
fn snapshot_bytes_are_golden() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open(folder.path());
    let first = Command { request: Some(RequestId { client: "me".into(), seq: 9 }), ..command(put(1, 1.0)) };
    let log = [command(Body::Configure(schema(1, &[("n", FieldType::Keyword)]))), first.clone(), first];
    let bookmark = Bookmark(Bytes::from_static(b"mark"));
    shard.apply(log.iter().map(Command::encode).collect(), bookmark).unwrap();
    let mut stream = Vec::new();
    shard.write_snapshot(&mut stream).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/snapshot.bin");
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&golden, &stream).unwrap();
    }
    assert!(std::fs::read(golden).unwrap() == stream, "{}", String::from_utf8_lossy(&stream));
    shard.close();
}

#[test]
fn a_store_of_another_collection_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open(folder.path());
    apply(&shard, &command(put(1, 1.0)));
    shard.close();
    let store = shard.store.clone();
    drop(shard);
    let other = Shard::open(store, "shard1", &folder.path().join("index"), CollectionId(6), options());
    assert!(matches!(other, Err(MachineError::Damaged { .. })));
}

#[test]
fn a_condition_holds_or_tells_the_version_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path());
    apply(&shard, &command(Body::Configure(schema(1, &[]))));
    let cas = |if_version: Option<u64>, x: Option<f32>| {
        let point = x.map(|x| match put(1, x) {
            Body::Upsert(mut writes) => writes.remove(0),
            _ => unreachable!(),
        });
        command(Body::Cas { id: PointId::Num(1), if_version: if_version.map(Position), point })
    };
    let mismatch = |verdict: Verdict| match verdict {
        Verdict::Rejected(rejection) if rejection.code == "version_mismatch" => rejection.version,
        other => panic!("{other:?}"),
    };
    assert_eq!(mismatch(apply(&shard, &cas(Some(1), Some(1.0)))), None);
    assert_eq!(apply(&shard, &cas(None, Some(1.0))), Verdict::Applied);
    assert_eq!(mismatch(apply(&shard, &cas(None, Some(2.0)))), Some(Position(3)));
    let intent = Command {
        request: Some(RequestId { client: "a".into(), seq: 1 }),
        born: Position(4),
        ..cas(Some(2), Some(9.0))
    };
    let first = apply(&shard, &intent);
    assert_eq!(mismatch(first.clone()), Some(Position(3)));
    // The new version is the command's position; an upsert counts as a write too, and two in a batch are two.
    assert_eq!(apply(&shard, &cas(Some(3), Some(2.0))), Verdict::Applied);
    let batch = [cas(Some(6), Some(3.0)), command(put(1, 4.0)), cas(Some(8), Some(5.0)), cas(Some(8), None)];
    let outcomes = shard.apply(batch.iter().map(Command::encode).collect(), Bookmark(Bytes::new())).unwrap();
    let codes: Vec<&str> = outcomes.iter().map(|o| code(&o.verdict)).collect();
    assert_eq!(codes, ["", "", "", "version_mismatch"]);
    // A point that went and came again has a new version: what was seen of the old one does not hold.
    assert_eq!(apply(&shard, &cas(Some(9), None)), Verdict::Applied);
    assert_eq!(shard.view().count(None).unwrap(), 0);
    assert_eq!(apply(&shard, &cas(None, Some(5.0))), Verdict::Applied);
    assert_eq!(mismatch(apply(&shard, &cas(Some(9), Some(6.0)))), Some(Position(12)));
    assert_eq!(mismatch(apply(&shard, &cas(None, None))), Some(Position(12)));
    shard.close();
    drop(shard);
    shard = open(folder.path());
    let again = Verdict::Duplicate { first: Box::new(Outcome { position: Position(5), verdict: first }) };
    assert_eq!(apply(&shard, &intent), again, "a retry is told the version of then");
    let unfit = Command { schema_version: 1, ..cas(Some(12), Some(f32::NAN)) };
    assert_eq!(code(&apply(&shard, &unfit)), "stale_schema");
    shard.close();
}

#[test]
fn a_retired_shard_refuses_everything_but_says_what_became_of_what_was_before() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shard = open(folder.path());
    apply(&shard, &command(Body::Configure(schema(1, &[]))));
    let request = |seq| Some(RequestId { client: "a".into(), seq });
    let before = Command { request: request(1), ..command(put(1, 1.0)) };
    assert_eq!(apply(&shard, &before), Verdict::Applied);
    assert!(!shard.view().retired());
    let hash = shard.state_hash().unwrap().1;
    assert_eq!(apply(&shard, &command(Body::Retire)), Verdict::Applied);
    assert!(shard.view().retired());
    assert_ne!(shard.state_hash().unwrap().1, hash);
    let mut stream = Vec::new();
    shard.write_snapshot(&mut stream).unwrap();
    let copy = open(other.path());
    copy.install_snapshot(&mut stream.as_slice()).unwrap();
    for shard in [shard, copy] {
        assert!(shard.view().retired());
        let late = Command { request: request(2), ..command(put(2, 1.0)) };
        assert_eq!(code(&apply(&shard, &late)), "retired");
        assert!(matches!(apply(&shard, &late), Verdict::Duplicate { .. }));
        for body in [put(1, 2.0), Body::Delete(vec![PointId::Num(1)]), Body::Configure(schema(9, &[]))] {
            assert_eq!(code(&apply(&shard, &command(body))), "retired");
        }
        assert_eq!(apply(&shard, &command(Body::Retire)), Verdict::Applied);
        assert!(
            matches!(apply(&shard, &before), Verdict::Duplicate { first } if first.verdict == Verdict::Applied)
        );
        assert_eq!((shard.view().count(None).unwrap(), shard.view().schema().version), (1, 1));
        assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
        shard.close();
        let (name, store) = (shard.name.clone(), shard.store.clone());
        drop(shard);
        let nowhere = tempfile::tempdir().unwrap();
        let shard = Shard::open(store, &name, nowhere.path(), COLLECTION, options()).unwrap();
        assert!(shard.view().retired());
        shard.close();
    }
}

#[test]
fn effects_are_kept_as_long_as_the_log() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shard = open(folder.path());
    let mut log = vec![command(Body::Configure(schema(1, &[])))];
    let num = |ids: &[u64]| Body::Delete(ids.iter().copied().map(PointId::Num).collect());
    let retry = Command { request: Some(RequestId { client: "a".into(), seq: 1 }), ..command(num(&[1])) };
    for round in 0..100 {
        log.push(command(put(1, round as f32)));
        log.push(retry.clone());
        log.push(command(num(&[1, 2, 1])));
        log.push(command(num(&[1])));
    }
    log.push(Command { collection: CollectionId(6), ..command(put(7, 1.0)) });
    shard.apply(log.iter().map(Command::encode).collect(), Bookmark(Bytes::new())).unwrap();
    let gone = |ids: &[u64]| ids.iter().copied().map(PointId::Num).map(Change::Delete).collect::<Vec<_>>();
    let effect = |shard: &Shard, position: u64| {
        shard.effect_of(Position(position), &log[position as usize - 1]).map_err(|e| e.kind())
    };
    assert_eq!(effect(&shard, 1), Ok(vec![]));
    let Body::Upsert(first) = put(1, 0.0) else { unreachable!() };
    assert_eq!(effect(&shard, 2), Ok(first.into_iter().map(Change::Upsert).collect()));
    assert_eq!([3, 4, 5, 7, 8, 9].map(|p| effect(&shard, p).unwrap().len()), [1, 0, 0, 0, 1, 0]);
    assert_eq!(effect(&shard, 8), Ok(gone(&[1])), "only what was there, and once");
    assert_eq!(effect(&shard, 402), Ok(vec![]), "of another collection");
    assert_eq!(effect(&shard, 403 - 1), Ok(vec![]));
    let beyond = shard.effect_of(Position(403), &log[1]).map_err(|e| e.kind());
    assert_eq!(beyond, Err(crate::model::Kind::Invalid));
    assert!(rows(&shard, points::EFFECT) > 290);
    // Told where the history begins, it forgets bit by bit; asked to forget, at once.
    shard.history_starts_at(Position(300));
    shard.history_starts_at(Position(200));
    apply(&shard, &command(Body::Delete(vec![])));
    assert_eq!(effect(&shard, 100), Err(crate::model::Kind::Expired));
    shard.forget_effects(Position(350)).unwrap();
    assert_eq!(effect(&shard, 349), Err(crate::model::Kind::Expired));
    assert_eq!(effect(&shard, 352).unwrap().len(), 1);
    let left = rows(&shard, points::EFFECT);
    assert!((30..60).contains(&left), "{left} rows");
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
    let mut stream = Vec::new();
    shard.write_snapshot(&mut stream).unwrap();
    let copy = open(other.path());
    copy.install_snapshot(&mut stream.as_slice()).unwrap();
    for position in 340..403 {
        assert_eq!(effect(&copy, position), effect(&shard, position));
    }
    shard.forget_effects(Position(u64::MAX)).unwrap();
    assert_eq!(rows(&shard, points::EFFECT), 0);
    assert_eq!(effect(&shard, 402), Err(crate::model::Kind::Expired));
    let replayed = copy.apply(vec![command(Body::Delete(vec![])).encode()], Bookmark(Bytes::new())).unwrap();
    shard.apply(vec![command(Body::Delete(vec![])).encode()], Bookmark(Bytes::new())).unwrap();
    assert_eq!(replayed[0].position, Position(404));
    assert_eq!(
        copy.state_hash().unwrap(),
        shard.state_hash().unwrap(),
        "what is kept of effects is no state"
    );
    shard.close();
    copy.close();
}

#[test]
fn record_bytes_are_golden() {
    use prost::Message;
    let vectors: Vectors = [
        ("".to_owned(), Vector::Dense(vec![1.0, -2.5])),
        (
            "words".to_owned(),
            Vector::Sparse(crate::model::SparseVector { indices: vec![7], values: vec![0.5] }),
        ),
    ]
    .into();
    let point = points::PointRecord {
        version: 300,
        born: 299,
        slot: 70_000,
        ..points::PointRecord::of(&vectors, Bytes::from_static(br#"{"a":1}"#))
    };
    let slot = SlotRecord::of(PointId::Uuid(9), &point);
    let dedup = points::DedupRecord {
        position: 300,
        body_hash: 5,
        code: Some("stale_schema".into()),
        message: "why".into(),
        version: Some(12),
    };
    let clients = vec![points::ClientSeqs { client: "me".into(), seqs: vec![258, 9] }];
    let list = points::EvictionRecord { sum: vec![3; 16], clients };
    let floor = points::FloorRecord { seq: 258, evicted_at: 1_000_300 };
    let effect =
        points::EffectRecord { deleted: vec![PointId::Num(258).to_key(), PointId::Uuid(258).to_key()] };
    let mut state = StateRecord {
        bookmark: Some(Bytes::from_static(b"mark")),
        position: 300,
        next_slot: 70_001,
        points: 1,
        dedup_oldest: 2,
        marked: 256,
        vectors: [(String::new(), 1)].into(),
        retired: true,
        schema_hash: vec![7; 16],
        floor_cursor: "me".into(),
        effects_oldest: 3,
        ..points::first_state(CollectionId(5))
    };
    state.set_sums(points::Sums { points: 1, intents: 2, local: 3 });
    let path: FieldPath = "a.b".parse().unwrap();
    let entry = payload_index::integer(-3);
    let lines = [
        ("point key", points::point_key(PointId::Num(258))),
        ("point key of a uuid", points::point_key(PointId::Uuid(258))),
        ("point", point.encode_to_vec()),
        ("point hash", point.hash(PointId::Num(258)).to_le_bytes().to_vec()),
        ("slot key", points::slot_key(70_000)),
        ("slot", slot.encode_to_vec()),
        ("vector key", points::vector_key(70_000, "image")),
        ("vector", points::floats_to_bytes(&[1.0, -2.5])),
        ("field key, integer -3", points::field_key(&path, &entry, 70_000)),
        ("dedup key", points::dedup_key("me", 258)),
        ("dedup", dedup.encode_to_vec()),
        ("eviction list key", points::position_key(points::EVICTION, Position(258))),
        ("eviction list", list.encode_to_vec()),
        ("floor key", points::floor_key("me")),
        ("floor", floor.encode_to_vec()),
        ("effect key", points::position_key(points::EFFECT, Position(258))),
        ("effect", effect.encode_to_vec()),
        ("row hash", points::row_hash(b"key", b"value").to_le_bytes().to_vec()),
        ("state", state.to_value()),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text: String = lines.iter().map(|(name, bytes)| format!("{name}: {}\n", hex(bytes))).collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/shard-records.txt");
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(golden).unwrap(), text);
}

#[test]
fn a_bookmark_is_recorded_where_few_commands_are_many_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let shard = open(folder.path());
    apply(&shard, &command(Body::Configure(schema(1, &[]))));
    let payload: Bytes = json!({"text": "x".repeat(400_000)}).to_string().into();
    let big = |id| {
        Body::Upsert(vec![PointWrite {
            id: PointId::Num(id),
            vectors: Vectors::new(),
            payload: payload.clone(),
        }])
    };
    let marked = |at| shard.bookmark_at(Position(at)).unwrap().map(|(position, _)| position.0);
    (0..8).for_each(|id| drop(apply(&shard, &command(big(id)))));
    assert_eq!([1, 3, 4, 6, 7, 9].map(marked), [None, None, Some(4), Some(4), Some(7), Some(7)]);
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
}
