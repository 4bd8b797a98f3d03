//! Collections go to files and come back equal; what is damaged is named, and nothing is lost.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "process/command.rs"]
mod command;
mod process;

use command::{annal, done, refused};
use process::{Client, Node};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// Everything in a collection, by id.
fn points(client: &Client, collection: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut offset = Value::Null;
    loop {
        let body = json!({"limit": 500, "offset": offset, "with_payload": true, "with_vector": true});
        let page = client.post(&format!("/collections/{collection}/points/scroll"), &body).ok();
        for point in page["points"].as_array().unwrap() {
            assert!(found.insert(point["id"].to_string(), point.clone()).is_none(), "{point} twice");
        }
        offset = page["next_page_offset"].clone();
        if offset.is_null() {
            return found;
        }
    }
}

/// What a collection's points look like.
fn like(client: &Client, collection: &str) -> [Value; 3] {
    let info = client.get(&format!("/collections/{collection}")).ok();
    let params = &info["config"]["params"];
    [params["vectors"].clone(), params["sparse_vectors"].clone(), info["payload_schema"].clone()]
}

fn write(client: &Client, collection: &str, all: &[Value]) {
    for points in all.chunks(300) {
        client.put(&format!("/collections/{collection}/points?wait=true"), &json!({ "points": points })).ok();
    }
}

/// Numbers that are no short decimals.
fn numbers(seed: u64, count: u64) -> Vec<f32> {
    (0..count).map(|n| ((seed * 37 + n * 101) as f32).sin()).collect()
}

fn uuid(n: u64) -> String {
    format!("{n:08x}-e29b-41d4-a716-446655440000")
}

/// A collection of one unnamed vector: ids of both kinds, payloads of all shapes.
fn plain(client: &Client) {
    client.put("/collections/plain", &json!({"vectors": {"size": 5, "distance": "Cosine"}})).ok();
    for (field, kind) in [("n", "integer"), ("word", "keyword")] {
        client
            .put("/collections/plain/index?wait=true", &json!({"field_name": field, "field_schema": kind}))
            .ok();
    }
    let payload = |n: u64| match n % 4 {
        0 => json!({}),
        1 => json!({"n": n, "word": format!("wörd \"{n}\"\n\u{2028}")}),
        2 => json!({"n": n, "deep": {"list": [1, null, 2.5, {"é": "\\"}]}, "big": u64::MAX}),
        _ => json!({"word": "w", "id": n, "vector": [1]}),
    };
    let id = |n: u64| match n % 5 {
        4 => json!(uuid(n)),
        3 => json!(u64::MAX - n),
        _ => json!(n),
    };
    let all: Vec<_> =
        (1..=1203).map(|n| json!({"id": id(n), "vector": numbers(n, 5), "payload": payload(n)})).collect();
    write(client, "plain", &all);
}

/// A collection of named vectors, some of which lack, and of sparse ones.
fn named(client: &Client) {
    client
        .put(
            "/collections/named",
            &json!({"vectors": {"a": {"size": 3, "distance": "Dot"}, "b.c": {"size": 2, "distance": "Manhattan"}},
                    "sparse_vectors": {"s": {}}}),
        )
        .ok();
    let vectors = |n: u64| match n % 4 {
        0 => json!({"a": numbers(n, 3)}),
        1 => {
            json!({"a": numbers(n, 3), "b.c": numbers(n, 2), "s": {"indices": [n, 4_000_000_000u32], "values": [0.1, -2.5]}})
        }
        2 => json!({"a": numbers(n, 3), "s": {"indices": [1], "values": numbers(n, 1)}}),
        _ => json!({"a": numbers(n, 3), "b.c": [1, n]}),
    };
    let all: Vec<_> = (0..207).map(|n| json!({"id": n, "vector": vectors(n), "payload": {"n": n}})).collect();
    write(client, "named", &all);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_format_that_can_carry_a_collection_brings_it_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(&folder.path().join("data"));
    let client = node.client();
    plain(&client);
    named(&client);
    for (collection, name) in [
        ("plain", "a.jsonl"),
        ("plain", "b.parquet"),
        ("plain", "c.npy"),
        ("plain", "d.fvecs"),
        ("plain", "e.fbin"),
        ("named", "f.jsonl"),
        ("named", "g.parquet"),
    ] {
        let wanted = points(&client, collection);
        let (file, again) = (folder.path().join(name), folder.path().join(format!("again-{name}")));
        let beside = |file: &Path, more: &str| PathBuf::from(format!("{}{more}", text(file)));
        let (lines, settings) = (beside(&file, ".jsonl"), beside(&file, ".collection.json"));
        let export = |collection: &str, file: &Path| {
            done(&node, &["export", text(file), "--collection", collection, "--batch", "100"])
        };
        let exported = export(collection, &file);
        assert_eq!(exported["points"], wanted.len(), "{name}");
        let is_matrix = ["npy", "fvecs", "fbin"].iter().any(|ending| name.ends_with(ending));
        let files = if is_matrix { vec![&settings, &lines, &file] } else { vec![&settings, &file] };
        assert_eq!(exported["files"], json!(files), "{name}");

        let copy = format!("copy-of-{name}");
        let mut words = vec!["import", text(&file), "--collection", &copy, "--settings", text(&settings)];
        words.extend(["--batch", "77"]);
        if is_matrix {
            words.extend(["--points", text(&lines)]);
        }
        let imported = done(&node, &words);
        assert_eq!(
            (&imported["sent"], &imported["there_already"]),
            (&json!(wanted.len()), &json!(0)),
            "{name}"
        );
        assert_eq!(points(&client, &copy), wanted, "{name}");
        assert_eq!(like(&client, &copy), like(&client, collection), "{name}");

        // In the order of ids, and the same bytes whoever wrote the points in which order.
        export(&copy, &again);
        for more in ["", ".jsonl", ".collection.json"] {
            let [first, second] = [&file, &again].map(|file| fs::read(beside(file, more)).ok());
            assert!(first == second, "{name}{more}");
        }
        // An import that ended before its indexes were made is resumed with them.
        let index = format!("/collections/{copy}/index/word?wait=true");
        client.delete(&index).ok();
        words.push("--resume");
        let resumed = done(&node, &words);
        assert_eq!(like(&client, &copy), like(&client, collection), "{name}");
        assert_eq!(
            (&resumed["sent"], &resumed["there_already"]),
            (&json!(0), &json!(wanted.len())),
            "{name}"
        );
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_none_or(|ending| ending != "part")), "{left:?}");

    // From another server, which is this one.
    let address = node.url.strip_prefix("http://").unwrap();
    for collection in ["plain", "named"] {
        let (from, copy) = (format!("qdrant://{address}/{collection}"), format!("moved-{collection}"));
        let wanted = points(&client, collection);
        let some: Vec<_> = wanted.values().take(50).map(|point| point["id"].clone()).collect();
        let words = ["import", &from, "--collection", &copy, "--batch", "90"];
        assert_eq!(done(&node, &words)["sent"], wanted.len());
        assert_eq!(
            (points(&client, &copy), like(&client, &copy)),
            (wanted.clone(), like(&client, collection))
        );
        client.post(&format!("/collections/{copy}/points/delete?wait=true"), &json!({ "points": some })).ok();
        let resumed = done(&node, &[&words[..], &["--resume"]].concat());
        assert_eq!((&resumed["sent"], &resumed["there_already"]), (&json!(50), &json!(wanted.len() - 50)));
        assert_eq!(points(&client, &copy), wanted);
    }

    // Part of a collection.
    let filter = r#"{"must":[{"key":"word","match":{"value":"w"}}]}"#;
    let file = folder.path().join("part.jsonl");
    let part = done(&node, &["export", text(&file), "--collection", "plain", "--filter", filter]);
    let wanted = points(&client, "plain").values().filter(|point| point["payload"]["word"] == "w").count();
    assert_eq!(part["points"], wanted);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), wanted);
}

/// A collection `kept` with one point that must outlive every failure.
fn kept(client: &Client) -> BTreeMap<String, Value> {
    client.put("/collections/kept", &json!({"vectors": {"size": 2, "distance": "Dot"}})).ok();
    write(client, "kept", &[json!({"id": 1_000_000, "vector": [1, 2], "payload": {"kept": true}})]);
    points(client, "kept")
}

fn file(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn lines(of: impl Iterator<Item = u64>) -> String {
    of.map(|n| format!("{{\"id\":{n},\"vector\":[{n},0.5]}}\n")).collect()
}

#[test]
fn what_is_damaged_is_named_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(&folder.path().join("data"));
    let client = node.client();
    let before = kept(&client);
    let fvecs = |rows: &[[f32; 2]]| -> Vec<u8> {
        rows.iter()
            .flat_map(|row| [&2i32.to_le_bytes()[..], &row[0].to_le_bytes(), &row[1].to_le_bytes()].concat())
            .collect()
    };
    let good = fvecs(&[[1.0, 2.0], [3.0, 4.0]]);
    let payload = file(folder.path(), "payload.jsonl", "{\"a\":1}\n{\"a\":\n");
    for (name, bytes, more, wanted) in [
        ("cut.fvecs", good[..good.len() - 1].to_vec(), &[][..], "has 23 bytes"),
        ("cut.fbin", vec![9, 0, 0, 0, 2, 0, 0, 0, 1], &[], "9 rows of 2 numbers take 80"),
        ("cut.bvecs", vec![2, 0, 0, 0, 1], &[], "has 5 bytes"),
        ("no.npy", b"\x93NUMPY\x01".to_vec(), &[], "no.npy: "),
        ("no.parquet", b"PAR1 no PAR1".to_vec(), &[], "no.parquet: "),
        (
            "first.jsonl",
            b"{\"id\":1,\"vector\":[1,\"x\"]}\n".to_vec(),
            &[],
            "first.jsonl line 1: vector[1]: invalid type",
        ),
        ("no.csv", b"1,2".to_vec(), &[], "ends in none of .npy, .fvecs, .bvecs, .fbin, .parquet, .jsonl"),
        ("no.ivecs", good.clone(), &[], "ends in none of"),
        ("good.fvecs", good.clone(), &["--id-field", "a"], "--id-field wants --payload"),
        ("a.jsonl", Vec::new(), &["--payload", text(&payload)], "--payload has no meaning for a .jsonl file"),
        ("good2.fvecs", good.clone(), &["--column", "a"], "--column has no meaning for a matrix"),
    ] {
        let path = file(folder.path(), name, bytes);
        let said = refused(&node, &[&["import", text(&path), "--collection", "kept"], more].concat());
        assert!(said.contains(wanted), "{name}: {said}");
        assert_eq!(points(&client, "kept"), before, "{name}");
        // Nothing is created for what cannot be read.
        let said = refused(&node, &[&["import", text(&path), "--collection", "new"], more].concat());
        assert!(said.contains(wanted), "{name}: {said}");
        assert_eq!(client.get("/collections/new").status, 404, "{name}");
    }

    let path = file(folder.path(), "bare.jsonl", "{\"id\":1,\"vector\":{}}\n");
    let said = refused(&node, &["import", text(&path), "--collection", "new"]);
    assert!(said.contains("the first point has no vector: --settings says"), "{said}");

    // What stands before the damage is in, and the same command goes on behind it when the file is mended.
    let damaged = lines(0..699) + "{\"id\":699,\"vector\":[1,2\n" + &lines(700..1500);
    let path = file(folder.path(), "late.jsonl", damaged);
    let words = ["import", text(&path), "--collection", "kept", "--batch", "100"];
    let said = refused(&node, &words);
    assert!(
        said.contains("late.jsonl line 700: ") && said.contains("699 points were sent; with --resume"),
        "{said}"
    );
    assert_eq!(points(&client, "kept").len(), 700);
    file(folder.path(), "late.jsonl", lines(0..1500));
    let resumed = done(&node, &[&words[..], &["--resume"]].concat());
    assert_eq!((&resumed["sent"], &resumed["there_already"]), (&json!(801), &json!(699)));
    let after = points(&client, "kept");
    assert_eq!(after.len(), 1501);
    assert_eq!(after["1000000"], before["1000000"]);
    assert_eq!(after["1499"]["vector"], json!([1499.0, 0.5]));

    // A row that the server refuses is named as the file has it; its batch is refused whole.
    let path = file(folder.path(), "dim.jsonl", lines(2000..2050) + "\n{\"id\":7777,\"vector\":[1,2,3]}\n");
    let said = refused(&node, &["import", text(&path), "--collection", "kept"]);
    assert!(
        said.contains("dim.jsonl line 52 (id 7777): vector: Vector dimension error: expected dim: 2, got 3"),
        "{said}"
    );
    assert_eq!(points(&client, "kept"), after);
    // Lines beside a matrix.
    let path = file(folder.path(), "beside.fvecs", &good);
    let said = refused(&node, &["import", text(&path), "--collection", "kept", "--payload", text(&payload)]);
    assert!(said.contains("payload.jsonl line 2: EOF while parsing"), "{said}");
}

/// Kills a command as soon as `when` holds; whether it was still at work.
fn cut_off(node: &Node, words: &[&str], when: impl Fn() -> bool) -> bool {
    let mut child =
        annal(words).args(["--url", &node.url]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !when() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn what_was_cut_off_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(&folder.path().join("data"));
    let client = node.client();
    let path = file(folder.path(), "a.jsonl", lines(0..4000));
    let words = [
        "import",
        text(&path),
        "--collection",
        "a",
        "--distance",
        "dot",
        "--batch",
        "5",
        "--concurrency",
        "2",
    ];
    let count = |collection: &str| {
        let answer = client.post(&format!("/collections/{collection}/points/count"), &json!({}));
        answer.json()["result"]["count"].as_u64().unwrap_or(0)
    };
    assert!(cut_off(&node, &words, || count("a") >= 50), "it was through before it could be killed");
    let there = count("a");
    assert!((50..4000).contains(&there), "{there}");
    let resumed = done(&node, &[&words[..], &["--resume"]].concat());
    // What was under way when it was killed may have come in since.
    assert!(resumed["there_already"].as_u64().unwrap() >= there, "{resumed} {there}");
    assert_eq!(resumed["sent"].as_u64().unwrap() + resumed["there_already"].as_u64().unwrap(), 4000);
    assert_eq!(count("a"), 4000);

    // An export that was cut off gives no file its name; the next one does.
    let out = folder.path().join("out.jsonl");
    let part = folder.path().join("out.jsonl.part");
    let words = ["export", text(&out), "--collection", "a", "--batch", "1"];
    assert!(cut_off(&node, &words, || part.exists()), "it was through before it could be killed");
    assert!(!out.exists() && part.exists());
    assert_eq!(done(&node, &words[..4])["points"], 4000);
    assert!(!part.exists());
    // No text of a number was changed on the way, but that it is one of 32 bits.
    let found = fs::read_to_string(&out).unwrap();
    let wanted: String = (0..4000).map(|n| format!("{{\"id\":{n},\"vector\":[{n}.0,0.5]}}\n")).collect();
    assert!(found == wanted, "{}", &found[..200]);

    let before = fs::read(&out).unwrap();
    let said = refused(&node, &words[..4]);
    assert!(said.contains("is there already: --overwrite writes over it"), "{said}");
    assert!(
        refused(&node, &["export", text(&out), "--collection", "no", "--overwrite"])
            .contains("no collection no")
    );
    named(&client);
    let npy = file(folder.path(), "n.npy", "old");
    let said = refused(&node, &["export", text(&npy), "--collection", "named", "--overwrite"]);
    assert!(said.contains("\"a\", \"b.c\": --vector says which"), "{said}");
    // It breaks off at the first point that lacks the vector, with what was there before untouched.
    let lacking = ["export", text(&npy), "--collection", "named", "--overwrite", "--vector", "b.c"];
    let said = refused(&node, &lacking);
    assert!(said.contains("point 0 has no vector \"b.c\""), "{said}");
    assert_eq!((fs::read(&out).unwrap(), fs::read(&npy).unwrap()), (before, b"old".to_vec()));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| text(Path::new(name)).ends_with(".part")), "{left:?}");

    let said = refused(&node, &["import", "qdrant://127.0.0.1:1/a", "--collection", "a"]);
    assert!(said.contains("qdrant://127.0.0.1:1/a: "), "{said}");
    let address = node.url.strip_prefix("http://").unwrap();
    let said =
        refused(&node, &["import", &format!("qdrant://{address}/a"), "--collection", "x", "--vector", "v"]);
    assert!(said.contains("--vector has no meaning for another server"), "{said}");
    for (from, wanted) in [("no", "there is no such collection"), ("", "wants qdrant://HOST:PORT/COLLECTION")]
    {
        let said = refused(&node, &["import", &format!("qdrant://{address}/{from}"), "--collection", "x"]);
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn files_of_other_writers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::ready(&folder.path().join("data"));
    let client = node.client();
    let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parquet/pyarrow.parquet");
    let words = ["import", text(&parquet), "--collection", "p", "--id-field", "key", "--vector", "v"];
    assert_eq!(done(&node, &[&words[..], &["--distance", "euclid"]].concat())["sent"], 6);
    assert_eq!(like(&client, "p")[0], json!({"v": {"size": 3, "distance": "Euclid"}}));
    let found = points(&client, "p");
    assert_eq!(found["13"]["vector"], json!({"v": [3.5, -3.0, 0.25]}));
    assert_eq!(found["13"]["payload"]["tags"], json!([]));
    // An instant as it stands in the file can be searched for.
    client
        .put("/collections/p/index?wait=true", &json!({"field_name": "when", "field_schema": "datetime"}))
        .ok();
    let filter = json!({"must": [{"key": "when", "range": {"gte": "2024-01-02T03:04:05.020Z"}}]});
    assert_eq!(client.post("/collections/p/points/count", &json!({ "filter": filter })).ok()["count"], 2);

    // Bytes of .bvecs become floats; a batch that the server does not take at once goes in parts.
    let rows = 3000u32;
    let bvecs: Vec<u8> =
        (0..rows).flat_map(|n| [&1024i32.to_le_bytes()[..], &vec![(n % 251) as u8; 1024]].concat()).collect();
    let path = file(folder.path(), "b.bvecs", bvecs);
    let mut small = process::NodeOptions::new(&folder.path().join("small"));
    small.environment = vec![("ANNAL__LIMITS__REQUEST_BYTES_MAX".into(), "1000000".into())];
    let mut small = Node::start(small);
    small.wait_ready();
    let words = ["import", text(&path), "--collection", "b", "--distance", "dot", "--batch", "1000"];
    assert_eq!(done(&small, &words)["sent"], rows);
    let point = small.client().get("/collections/b/points/2999").ok();
    assert_eq!(point["vector"], json!(vec![(2999 % 251) as f32; 1024]));
    assert_eq!(small.client().post("/collections/b/points/count", &json!({})).ok()["count"], rows);
}
