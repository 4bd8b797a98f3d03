//! Regions as real processes: a cluster each, with a wire between them that delays and can be cut.
//!
//! Sizes are small; `ANNAL_HANDOVERS`, `ANNAL_TAKEOVERS` and `ANNAL_LOAD_SECONDS` make them larger. Run with
//! `--nocapture` to see the figures.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "regions/backlog.rs"]
mod backlog;
#[path = "process/connection.rs"]
mod connection;
#[path = "process/mod.rs"]
mod process;
#[path = "process/wire.rs"]
mod wire;

use connection::{Connection, Lines};
use process::{Answer, Client, Node, NodeOptions};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use wire::Wire;

/// How long regions may take to come to rest.
const SETTLE: Duration = Duration::from_secs(60);

fn scaled(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

/// A region of one node, and the wire by which others reach it.
struct Region {
    node: Node,
    wire: Wire,
    folder: tempfile::TempDir,
}

impl Region {
    fn start(name: &str, delay: Duration, environment: &[(&str, &str)]) -> Region {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let wire = Wire::new(&format!("http://127.0.0.1:{port}"), delay, true);
        let mut options = NodeOptions::new(&folder.path().join("data"));
        options.http = format!("127.0.0.1:{port}");
        options.arguments.extend(["--region".to_owned(), name.to_owned()]);
        let settings = [("ANNAL__REGIONS__URL", wire.url.as_str()), ("ANNAL__LOG__FREE_BYTES_MIN", "0")];
        options.environment = settings
            .iter()
            .chain(environment)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut node = Node::start(options);
        node.wait_ready();
        Region { node, wire, folder }
    }

    fn client(&self) -> Client {
        self.node.client()
    }

    fn local(&self) -> Client {
        self.client().with("annal-consistency", "local")
    }

    fn follow(&self, collection: &str, home: &Region) {
        let body = json!({"collection": collection, "home": home.wire.url});
        let answer = self.client().post("/annal/v1/regions/follow", &body);
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    fn link(&self, collection: &str) -> Value {
        let links = self.client().get("/annal/v1/regions").json();
        let links = links["links"].as_array().cloned().unwrap_or_default();
        links.into_iter().find(|link| link["collection"] == collection).unwrap_or(Value::Null)
    }

    fn hashes(&self, collection: &str) -> Vec<(Value, BTreeSet<String>)> {
        let answer = self.client().get(&format!("/annal/v1/collections/{collection}/state-hash"));
        let shards = answer.json().as_array().cloned().unwrap_or_default();
        let of = |shard: &Value| {
            let hashes = shard["replicas"].as_object().cloned().unwrap_or_default();
            let hashes = hashes.values().map(|hash| hash.as_str().unwrap().to_owned()).collect();
            (shard["position"].clone(), hashes)
        };
        shards.iter().map(of).collect()
    }
}

fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < SETTLE, "still waiting for {what} after {SETTLE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until two regions have the same, shard by shard.
fn wait_equal(collection: &str, a: &Region, b: &Region) {
    let started = Instant::now();
    loop {
        let (left, right) = (a.hashes(collection), b.hashes(collection));
        let whole = !left.is_empty() && left.iter().all(|(_, hashes)| hashes.len() == 1);
        if whole && left == right {
            return;
        }
        assert!(
            started.elapsed() < SETTLE,
            "{left:?}\n{right:?}\n{}\n{}",
            a.link(collection),
            b.link(collection)
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn create(region: &Region, collection: &str, shards: u32) {
    let body = json!({"vectors": {"size": 4, "distance": "Euclid"}, "shard_number": shards});
    region.client().put(&format!("/collections/{collection}"), &body).ok();
}

fn point(id: u64, value: u64) -> Value {
    json!({"id": id, "vector": [id as f32, value as f32, 0.5, 1.0], "payload": {"v": value}})
}

fn write(client: &Client, collection: &str, points: &[Value]) -> Answer {
    client.put(&format!("/collections/{collection}/points?wait=true"), &json!({"points": points}))
}

fn value_of(client: &Client, collection: &str, id: u64) -> (Answer, Option<u64>) {
    let answer = client.get(&format!("/collections/{collection}/points/{id}"));
    let value = answer.json()["result"]["payload"]["v"].as_u64();
    (answer, value)
}

/// All points, by id.
fn all(client: &Client, collection: &str) -> BTreeMap<u64, u64> {
    let (mut points, mut next) = (BTreeMap::new(), Value::Null);
    loop {
        let mut body = json!({"limit": 500, "with_payload": true});
        if !next.is_null() {
            body["offset"] = next;
        }
        let page = client.post(&format!("/collections/{collection}/points/scroll"), &body).ok();
        for point in page["points"].as_array().unwrap() {
            points.insert(point["id"].as_u64().unwrap(), point["payload"]["v"].as_u64().unwrap());
        }
        next = page["next_page_offset"].clone();
        if next.is_null() {
            return points;
        }
    }
}

#[test]
fn a_region_follows_and_says_how_far_behind_it_is() {
    let delay = Duration::from_millis(10);
    let home = Region::start("home", delay, &[]);
    let away = Region::start("away", delay, &[]);
    create(&home, "c", 2);
    create(&home, "secret", 1);
    write(
        &home.client(),
        "secret",
        &[json!({
            "id": 1, "vector": [0.0, 0.0, 0.0, 0.0], "payload": {"v": 0, "word": "xyzzy-plugh"},
        })],
    )
    .ok();
    let points: Vec<_> = (0..200).map(|id| point(id, id)).collect();
    write(&home.client(), "c", &points).ok();
    away.follow("c", &home);
    // A second time changes nothing.
    away.follow("c", &home);
    wait_equal("c", &home, &away);
    assert_eq!(all(&away.local(), "c"), all(&home.client(), "c"));

    // What the home changes of the collection comes too.
    let field = json!({"field_name": "v", "field_schema": "integer"});
    home.client().put("/collections/c/index?wait=true", &field).ok();
    home.client()
        .post(
            "/collections/c/points/delete?wait=true",
            &json!({"filter": {"must": [
                {"key": "v", "range": {"lt": 50}},
            ]}}),
        )
        .ok();
    wait_equal("c", &home, &away);
    assert_eq!(all(&away.local(), "c").len(), 150);
    let schema = || away.local().get("/collections/c").ok()["payload_schema"]["v"]["data_type"].clone();
    wait_for("the payload index in the follower's catalog", || (schema() == "integer").then_some(()));

    // Reads here are of a declared age; linearizable ones are the home's, and so are writes.
    let (answer, value) = value_of(&away.local(), "c", 60);
    assert_eq!(value, Some(60), "{}", answer.text);
    let age: u64 = answer.header("annal-age-ms").expect("an age").parse().unwrap();
    assert!((20..5_000).contains(&age), "{age} ms over a way of 20 ms");
    let written = write(&away.client(), "c", &[point(1_000, 7)]);
    written.ok();
    assert_eq!(value_of(&home.client(), "c", 1_000).1, Some(7));
    assert_eq!(value_of(&away.client(), "c", 1_000).1, Some(7), "a linearizable read");
    let token = written.header("annal-token").expect("a token").to_owned();
    let session = away.client().with("annal-consistency", "at-least").with("annal-token", &token);
    let (answer, value) = value_of(&session, "c", 1_000);
    assert_eq!(value, Some(7), "{}", answer.text);
    let bounded = away.client().with("annal-consistency", "bounded=2000ms");
    assert_eq!(value_of(&bounded, "c", 1_000).0.status, 200);
    let (answer, _) = value_of(
        &away.client().with("annal-consistency", "bounded=5ms").with("annal-timeout-ms", "300"),
        "c",
        1,
    );
    assert_eq!(answer.status, 503, "nothing is younger than the way is long: {}", answer.text);
    assert!(answer.text.contains("old"), "{}", answer.text);
    let refused = away.client().delete("/collections/c");
    assert_eq!(refused.status, 409, "{}", refused.text);

    let link = away.link("c");
    assert_eq!((&link["role"], &link["generation"]), (&json!("follower"), &json!(1)), "{link}");
    assert_eq!(link["home"], home.wire.url);
    for shard in link["shards"].as_array().unwrap() {
        for lag in ["durable_lag", "applied_lag"] {
            assert!(shard[lag]["ms"].as_u64().is_some_and(|ms| ms < 10_000), "{link}");
            assert!(shard[lag]["entries"].is_u64() && shard[lag]["bytes"].is_u64(), "{link}");
        }
    }
    let link = home.link("c");
    assert_eq!(
        (&link["role"], &link["followers"]["away"]),
        (&json!("home"), &json!(away.wire.url)),
        "{link}"
    );

    // The home's log goes on while the wire is cut; then no copy is needed, only what is new.
    home.wire.cut();
    let more: Vec<_> = (2_000..2_500).map(|id| point(id, id)).collect();
    write(&home.client(), "c", &more).ok();
    let (answer, _) = value_of(&away.client(), "c", 2_000);
    assert_eq!((answer.status, answer.header("annal-effect")), (503, Some("none")), "{}", answer.text);
    let (answer, value) = value_of(&away.local(), "c", 60);
    assert_eq!((answer.status, value), (200, Some(60)), "it serves what it has");
    home.wire.mend();
    wait_equal("c", &home, &away);

    // What is not followed never leaves.
    assert!(home.wire.bytes() > 0);
    assert!(!home.wire.has_seen(b"secret") && !away.wire.has_seen(b"secret"));
    assert!(!home.wire.has_seen(b"plugh"));

    // A collection that is dropped at its home goes here too; one that is not followed any more stays there.
    let stop = away.client().send("DELETE", "/annal/v1/regions/follow", Some(r#"{"collection":"c"}"#));
    assert_eq!(stop.status, 200, "{}", stop.text);
    assert_eq!(away.local().get("/collections/c").status, 404);
    assert_eq!(home.client().get("/collections/c").status, 200);
    wait_for("the home to count no followers", || home.link("c").is_null().then_some(()));
    away.follow("c", &home);
    wait_equal("c", &home, &away);
    home.client().delete("/collections/c").ok();
    wait_for("the drop to arrive", || (away.local().get("/collections/c").status == 404).then_some(()));
}

#[test]
fn a_copy_is_taken_where_the_log_does_not_reach_back() {
    let small = [
        ("ANNAL__LIMITS__REQUEST_BYTES_MAX", "4194304"),
        ("ANNAL__LOG__SEGMENT_BYTES", "8388608"),
        ("ANNAL__LOG__RETENTION_BYTES", "16777216"),
    ];
    let home = Region::start("home", Duration::ZERO, &small);
    let away = Region::start("away", Duration::ZERO, &[]);
    let body = json!({"vectors": {"size": 1024, "distance": "Dot"}});
    home.client().put("/collections/c", &body).ok();
    let big = |id: u64, v: u64| json!({"id": id, "vector": vec![id as f32 * 0.5; 1024], "payload": {"v": v}});
    let mut rounds = 0;
    let feed = home.client().within(Duration::from_millis(500));
    // Until the log has forgotten its beginning.
    while feed.get("/annal/v1/collections/c/changes?from=begin").status != 410 {
        let points: Vec<_> = (0..500).map(|id| big(id, rounds)).collect();
        write(&home.client().with("idempotency-key", &format!("loader/{rounds}")), "c", &points).ok();
        rounds += 1;
        assert!(rounds < 200, "the log forgets nothing");
    }
    let gone: Vec<u64> = (0..100).collect();
    home.client().post("/collections/c/points/delete?wait=true", &json!({"points": gone})).ok();
    away.follow("c", &home);
    wait_equal("c", &home, &away);
    assert_eq!(all(&away.local(), "c"), all(&home.client(), "c"));
    // The memory of intents came with the copy: a retry after a handover is known.
    let turned = away.client().post("/annal/v1/regions/handover", &json!({"collection": "c"}));
    assert_eq!(turned.status, 200, "{}", turned.text);
    let points: Vec<_> = (0..500).map(|id| big(id, rounds - 1)).collect();
    write(&away.client().with("idempotency-key", &format!("loader/{}", rounds - 1)), "c", &points).ok();
    assert_eq!(all(&away.client(), "c").len(), 400, "it was applied before");
    wait_equal("c", &home, &away);
}

/// By register, the last value acknowledged and those whose fate is not known.
type Registers = BTreeMap<u64, (u64, Vec<u64>)>;

/// Writers that count their own registers up, at both regions, until they are stopped.
struct Writers {
    stop: Arc<AtomicBool>,
    /// What each has written, and how often it was turned away without effect.
    threads: Vec<thread::JoinHandle<(Registers, u64)>>,
    /// The longest time between two acknowledgements, over all writers, in microseconds.
    pause: Arc<AtomicU64>,
}

impl Writers {
    fn start(regions: &[&Region], each: u64) -> Writers {
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let last = Arc::new(Mutex::new(Instant::now()));
        let mut threads = Vec::new();
        for (r, region) in regions.iter().enumerate() {
            for w in 0..each {
                let (stop, pause, last) = (stop.clone(), pause.clone(), last.clone());
                let client = region.client().with("annal-timeout-ms", "20000");
                let number = r as u64 * each + w;
                threads.push(thread::spawn(move || {
                    let (mut written, mut refused) = (Registers::new(), 0);
                    for n in 1.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        let id = number * 1_000 + n % 20;
                        let answer = write(&client, "c", &[point(id, n)]);
                        let register = written.entry(id).or_insert((0, Vec::new()));
                        if answer.status == 200 {
                            *register = (n, Vec::new());
                            let mut last = last.lock().unwrap();
                            pause.fetch_max(last.elapsed().as_micros() as u64, Ordering::SeqCst);
                            *last = Instant::now();
                        } else if answer.header("annal-effect") == Some("none") {
                            refused += 1;
                            thread::sleep(Duration::from_millis(10));
                        } else {
                            register.1.push(n);
                        }
                    }
                    (written, refused)
                }));
            }
        }
        Writers { stop, threads, pause }
    }

    fn stop(self) -> (Registers, u64, Duration) {
        self.stop.store(true, Ordering::SeqCst);
        let (mut written, mut refused) = (Registers::new(), 0);
        for thread in self.threads {
            let (own, turned_away) = thread.join().unwrap();
            written.extend(own);
            refused += turned_away;
        }
        (written, refused, Duration::from_micros(self.pause.load(Ordering::SeqCst)))
    }
}

#[test]
fn handovers_lose_nothing() {
    let delay = Duration::from_millis(5);
    let regions = [Region::start("one", delay, &[]), Region::start("two", delay, &[])];
    create(&regions[0], "c", 2);
    regions[1].follow("c", &regions[0]);
    wait_equal("c", &regions[0], &regions[1]);
    let writers = Writers::start(&[&regions[0], &regions[1]], 2);
    let handovers = scaled("ANNAL_HANDOVERS", 6);
    let mut times = Vec::new();
    for n in 0..handovers {
        thread::sleep(Duration::from_millis(300));
        let next = &regions[(n as usize + 1) % 2];
        let began = Instant::now();
        let turned = wait_for("a handover", || {
            let answer = next.client().post("/annal/v1/regions/handover", &json!({"collection": "c"}));
            (answer.status == 200).then_some(answer)
        });
        times.push(began.elapsed());
        assert_eq!(turned.json()["generation"], n + 2, "{}", turned.text);
        wait_for("the old home to follow", || {
            let old = &regions[n as usize % 2];
            (old.link("c")["part"]["part"] == "follower").then_some(())
        });
    }
    thread::sleep(Duration::from_millis(300));
    let (written, refused, pause) = writers.stop();
    wait_equal("c", &regions[0], &regions[1]);
    times.sort_unstable();
    println!(
        "{handovers} handovers in {:?} (median), {:?} (worst); writes paused {pause:?} at the most; {refused} turned \
         away without effect; {} registers",
        times[times.len() / 2],
        times[times.len() - 1],
        written.len()
    );
    for region in &regions {
        let found = all(&region.client(), "c");
        for (id, (value, unknown)) in &written {
            let there = found.get(id).copied().unwrap_or(0);
            assert!(there == *value || unknown.contains(&there), "{id}: {there}, acknowledged {value}");
        }
    }
    assert!(written.len() > 20, "{}", written.len());
}

#[test]
fn a_takeover_names_exactly_what_it_lost() {
    for trial in 0..scaled("ANNAL_TAKEOVERS", 2) {
        let home = Region::start("home", Duration::from_millis(2), &[]);
        let away = Region::start("away", Duration::from_millis(2), &[]);
        create(&home, "c", 2);
        away.follow("c", &home);
        for id in 0..50 {
            write(&home.client(), "c", &[point(id, id)]).ok();
        }
        wait_equal("c", &home, &away);
        // Some more, cut off somewhere between.
        let cutting = {
            let client = home.client();
            thread::spawn(move || (100..140).for_each(|id| drop(write(&client, "c", &[point(id, id)]).ok())))
        };
        thread::sleep(Duration::from_millis(20 + 7 * trial));
        home.wire.cut();
        away.wire.cut();
        cutting.join().unwrap();
        let lost: Vec<u64> = (200..230).collect();
        for id in &lost {
            write(&home.client(), "c", &[point(*id, *id)]).ok();
        }
        home.client().post("/collections/c/points/delete?wait=true", &json!({"points": [0, 1, 9_999]})).ok();
        let taken = away.client().post("/annal/v1/regions/takeover", &json!({"collection": "c"}));
        assert_eq!(taken.status, 200, "{}", taken.text);
        assert_eq!((&taken.json()["generation"], &taken.json()["complete"]), (&json!(2), &json!(false)));
        let arrived = all(&away.client(), "c");
        let had = all(&home.client(), "c");
        // Both go on for a while: the old home has not heard.
        write(&home.client(), "c", &[point(300, 1)]).ok();
        write(&away.client(), "c", &[point(300, 2)]).ok();
        let newest = write(&away.client(), "c", &[point(400, 4)]);
        let token = newest.header("annal-token").expect("a token").to_owned();
        newest.ok();
        // What the new home gave is neither there nor lost: the old one cannot know.
        for consistency in ["at-least", "local", "bounded=10000ms", "linearizable"] {
            let asked = home.client().with("annal-consistency", consistency).with("annal-token", &token);
            let (answer, seen) = value_of(&asked.with("annal-timeout-ms", "300"), "c", 400);
            assert_eq!((answer.status, seen), (503, None), "{consistency}: {}", answer.text);
        }

        home.wire.mend();
        away.wire.mend();
        let loss = wait_for("the old home to tell", || {
            let loss = away.client().get("/annal/v1/regions/loss?collection=c").json();
            (loss["complete"] == true).then_some(loss)
        });
        let named: BTreeSet<u64> = loss["shards"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|shard| shard["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()))
            .collect();
        let truth: BTreeSet<u64> = had
            .keys()
            .filter(|id| !arrived.contains_key(id))
            .chain(arrived.keys().filter(|id| !had.contains_key(id)))
            .copied()
            .chain([300])
            .collect();
        assert_eq!(named, truth, "{loss}");
        wait_for("the old home to follow", || (home.link("c")["part"]["part"] == "follower").then_some(()));
        wait_equal("c", &home, &away);
        let now = all(&home.client(), "c");
        assert_eq!((now.get(&300), now.get(&400)), (Some(&2), Some(&4)));
        assert_eq!(now, all(&home.local(), "c"));
        let kept: Vec<PathBuf> =
            fs::read_dir(home.folder.path().join("data/lost")).unwrap().map(|e| e.unwrap().path()).collect();
        let lines: Vec<Value> = kept
            .iter()
            .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect();
        let in_file: BTreeSet<u64> = lines.iter().map(|line| line["id"].as_u64().unwrap()).collect();
        assert_eq!(in_file, truth);
        // Tokens: what was lost is said to be lost.
        println!("takeover {trial}: {} points lost and named", named.len());
    }
}

#[test]
fn a_home_that_hears_of_nobody_stops_by_itself_if_that_is_wished() {
    let delay = Duration::from_millis(2);
    let home = Region::start("home", delay, &[("ANNAL__REGIONS__HOME_LEASE_MS", "1000")]);
    let away = Region::start("away", delay, &[]);
    create(&home, "c", 1);
    create(&home, "alone", 1);
    away.follow("c", &home);
    wait_equal("c", &home, &away);
    // For longer than the lease.
    for id in 0..15 {
        write(&home.client(), "c", &[point(id, id)]).ok();
        thread::sleep(Duration::from_millis(100));
    }
    home.wire.cut();
    away.wire.cut();
    let cut = Instant::now();
    let refused = wait_for("the home to stop", || {
        let answer = write(&home.client(), "c", &[point(100, 1)]);
        (answer.status == 503).then_some(answer)
    });
    assert!(cut.elapsed() < Duration::from_secs(3), "after {:?}", cut.elapsed());
    assert_eq!(refused.header("annal-effect"), Some("none"), "{}", refused.text);
    assert!(refused.text.contains("lease"), "{}", refused.text);
    // What nobody follows is no affair of others, and reads go on.
    write(&home.client(), "alone", &[point(1, 1)]).ok();
    assert_eq!(value_of(&home.client(), "c", 3).1, Some(3));
    home.wire.mend();
    away.wire.mend();
    wait_for("the home to go on", || {
        (write(&home.client(), "c", &[point(200, 1)]).status == 200).then_some(())
    });
    wait_equal("c", &home, &away);
}

#[test]
fn the_declared_age_is_never_smaller_than_the_true_one() {
    let delay = Duration::from_millis(35);
    let home = Region::start("home", delay, &[]);
    let away = Region::start("away", delay, &[]);
    create(&home, "c", 1);
    away.follow("c", &home);
    write(&home.client(), "c", &[point(1, 0)]).ok();
    wait_equal("c", &home, &away);
    let stop = Arc::new(AtomicBool::new(false));
    // When each value was acknowledged.
    let acknowledged = Arc::new(Mutex::new(Vec::<Instant>::new()));
    let writer = {
        let (client, stop, acknowledged) = (home.client(), stop.clone(), acknowledged.clone());
        thread::spawn(move || {
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                write(&client, "c", &[point(1, n)]).ok();
                acknowledged.lock().unwrap().push(Instant::now());
                thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let (client, began) = (away.local(), Instant::now());
    let (mut times, mut ages, mut lags, mut too_old) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let time = Duration::from_secs(scaled("ANNAL_LOAD_SECONDS", 4));
    while began.elapsed() < time {
        let asked = Instant::now();
        let (answer, value) = value_of(&client, "c", 1);
        times.push(asked.elapsed());
        let age = answer.header("annal-age-ms").expect("an age").parse().unwrap();
        let as_of = asked.checked_sub(Duration::from_millis(age)).unwrap();
        ages.push(Duration::from_millis(age));
        let acknowledged = acknowledged.lock().unwrap();
        let newest = acknowledged.iter().take_while(|at| **at <= as_of).count();
        if newest > 0 && value.unwrap() < newest as u64 - 1 {
            too_old += 1;
        }
        // Since when something was acknowledged that this read has not seen.
        let unseen = acknowledged.get(value.unwrap() as usize + 1);
        lags.push(unseen.map_or(Duration::ZERO, |at| asked.saturating_duration_since(*at)));
        drop(acknowledged);
        thread::sleep(Duration::from_millis(1));
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    let at = |times: &mut Vec<Duration>, hundredth: usize| {
        times.sort_unstable();
        times[times.len() * hundredth / 100]
    };
    println!(
        "over a way of 70 ms: {} local reads, p50 {:?}, p99 {:?}; declared age p50 {:?}, p99 {:?}; true \
         lag p50 {:?}, p99 {:?}; {} writes",
        times.len(),
        at(&mut times, 50),
        at(&mut times, 99),
        at(&mut ages, 50),
        at(&mut ages, 99),
        at(&mut lags, 50),
        at(&mut lags, 99),
        acknowledged.lock().unwrap().len()
    );
    assert_eq!(too_old, 0, "reads older than they said");
    assert!(times.len() > 50 && acknowledged.lock().unwrap().len() > 50, "too few to say anything");
}

#[test]
fn an_old_home_that_comes_back_two_homes_later_tells_the_last_one() {
    let [one, two, three] = ["one", "two", "three"].map(|name| Region::start(name, Duration::ZERO, &[]));
    create(&one, "c", 1);
    write(&one.client(), "c", &[point(1, 1)]).ok();
    for follower in [&two, &three] {
        follower.follow("c", &one);
        wait_equal("c", &one, follower);
    }
    one.wire.cut();
    write(&one.client(), "c", &[point(2, 2)]).ok();
    let turn = |region: &Region, verb: &str| {
        let body = json!({"collection": "c"});
        let answer = region.client().post(&format!("/annal/v1/regions/{verb}"), &body);
        assert_eq!(answer.status, 200, "{verb}: {}", answer.text);
    };
    turn(&two, "takeover");
    for id in 10..15 {
        write(&two.client(), "c", &[point(id, id)]).ok();
    }
    three.follow("c", &two);
    wait_equal("c", &two, &three);
    turn(&three, "handover");
    write(&three.client(), "c", &[point(20, 20)]).ok();
    wait_equal("c", &two, &three);
    one.wire.mend();
    let loss = wait_for("the first home to tell", || {
        let loss = three.client().get("/annal/v1/regions/loss?collection=c").json();
        (loss["complete"] == true).then_some(loss)
    });
    assert_eq!((&loss["generation"], &loss["shards"][0]["ids"]), (&json!(2), &json!([2])), "{loss}");
    wait_equal("c", &one, &three);
    let found: Vec<u64> = all(&one.local(), "c").into_keys().collect();
    assert_eq!(found, [1, 10, 11, 12, 13, 14, 20]);
    assert_eq!((&one.link("c")["generation"], &one.link("c")["home"]), (&json!(3), &json!(three.wire.url)));
}

/// A region of three nodes; others reach it by the first one.
fn three_nodes(region: &str, folder: &Path, url: &str) -> Vec<Node> {
    let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let peers: Vec<_> = (0..3).map(|_| format!("127.0.0.1:{}", port())).collect();
    let join = peers.join(",");
    let mut nodes: Vec<Node> = (0..3)
        .map(|i| {
            let mut options = NodeOptions::new(&folder.join(format!("n{i}")));
            options.http = format!("127.0.0.1:{}", port());
            let name = format!("{region}{i}");
            let arguments =
                ["--peer", &peers[i], "--grpc", "off", "--node", &name, "--region", region, "--join", &join];
            options.arguments = arguments.map(str::to_owned).into();
            options.environment = [("ANNAL__REGIONS__URL", url), ("ANNAL__LOG__FREE_BYTES_MIN", "0")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
            Node::start(options)
        })
        .collect();
    for node in &mut nodes {
        node.wait_ready();
    }
    nodes
}

#[test]
fn a_region_of_three_nodes_follows_though_they_die() {
    let home = Region::start("home", Duration::from_millis(2), &[]);
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = three_nodes("away", folder.path(), "http://127.0.0.1:9");
    let body =
        json!({"vectors": {"size": 4, "distance": "Euclid"}, "shard_number": 2, "replication_factor": 3});
    home.client().put("/collections/c", &body).ok();
    let follow = json!({"collection": "c", "home": home.wire.url});
    let answer = nodes[1].client().post("/annal/v1/regions/follow", &follow);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (client, stop) = (home.client(), stop.clone());
        thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                write(&client, "c", &[point(n % 200, n), point(1_000 + n % 7, n)]).ok();
                n += 1;
            }
            n
        })
    };
    for round in 0..scaled("ANNAL_TRIALS", 4) {
        thread::sleep(Duration::from_millis(700));
        let node = nodes.remove((round % 3) as usize);
        nodes.insert((round % 3) as usize, node.kill_and_restart());
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.join().unwrap();
    let away = |node: &Node| {
        let answer = node.client().get("/annal/v1/collections/c/state-hash").json();
        let shards = answer.as_array().cloned().unwrap_or_default();
        let of = |shard: &Value| {
            let replicas = shard["replicas"].as_object().cloned().unwrap_or_default();
            (
                shard["position"].clone(),
                replicas.len(),
                replicas.into_iter().map(|(_, hash)| hash).collect::<Vec<_>>(),
            )
        };
        shards.iter().map(of).collect::<Vec<_>>()
    };
    let there: Vec<(Value, Value)> = home
        .hashes("c")
        .into_iter()
        .map(|(position, hashes)| (position, Value::from(hashes.first().unwrap().clone())))
        .collect();
    wait_for("three equal replicas of what the home has", || {
        let here = away(&nodes[0]);
        let equal = here.iter().zip(&there).all(|((position, count, hashes), (at, hash))| {
            position == at && *count == 3 && hashes.iter().all(|other| other == hash)
        });
        (equal && here.len() == there.len()).then_some(())
    });
    println!("{written} writes mirrored through {} kills", scaled("ANNAL_TRIALS", 4));
    assert!(written > 50, "too few writes to say anything");
    let local = nodes[2].client().with("annal-consistency", "local");
    assert_eq!(all(&local, "c"), all(&home.client(), "c"));
}

/// Points of the next events of a feed, and the token of the last one; or the status by which it is refused.
fn events(region: &Region, from: &str, count: usize) -> Result<(Vec<u64>, String), u16> {
    Ok(take(&mut feed(region, from)?, count))
}

fn feed(region: &Region, from: &str) -> Result<Lines, u16> {
    let path = format!("/annal/v1/collections/c/changes?from={from}");
    let connection = Connection::new(&region.client().url);
    connection.follow(&path, &[]).map_err(|(reply, _)| reply.map_or(0, |reply| reply.status))
}

fn take(feed: &mut Lines, count: usize) -> (Vec<u64>, String) {
    let (mut ids, mut token) = (Vec::new(), String::new());
    while ids.len() < count {
        let line = feed.next(Duration::from_secs(10)).unwrap().expect("a feed has no end");
        let event: Value = serde_json::from_str(&line).unwrap();
        ids.extend(event["id"].as_u64());
        event["token"].as_str().unwrap().clone_into(&mut token);
    }
    (ids, token)
}

/// Points, each written by itself.
fn put(region: &Region, ids: std::ops::Range<u64>) {
    ids.for_each(|id| drop(write(&region.client(), "c", &[point(id, id)]).ok()));
}

/// The region becomes the home.
fn turn(region: &Region, verb: &str) {
    let answer = region.client().post(&format!("/annal/v1/regions/{verb}"), &json!({"collection": "c"}));
    assert_eq!(answer.status, 200, "{verb}: {}", answer.text);
}

/// Its feed goes on through the handover; of two shards one has nothing to say for a while.
#[test]
fn a_consumer_that_stays_while_the_home_moves_goes_on_anywhere() {
    let home = Region::start("home", Duration::ZERO, &[]);
    let away = Region::start("away", Duration::ZERO, &[]);
    create(&home, "c", 2);
    away.follow("c", &home);
    put(&home, 0..6);
    let mut stays = feed(&home, "begin").unwrap();
    let (mut seen, _) = take(&mut stays, 6);
    wait_equal("c", &home, &away);
    turn(&away, "handover");
    (0..5).for_each(|_| put(&away, 6..7));
    let (more, token) = take(&mut stays, 5);
    assert_eq!(more, [6; 5]);
    wait_equal("c", &home, &away);
    put(&away, 20..24);
    for region in [&away, &home] {
        let (mut ids, _) = events(region, &token, 4).expect("nothing is lost");
        ids.sort_unstable();
        assert_eq!(ids, [20, 21, 22, 23], "{}", region.client().url);
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);

    // A region that has not come as far as the token is waited for; nothing is lost by its being late.
    away.wire.cut();
    put(&away, 24..26);
    let (_, token) = events(&away, &token, 6).unwrap();
    let late = thread::scope(|scope| {
        let late = scope.spawn(|| events(&home, &token, 1));
        thread::sleep(Duration::from_millis(500));
        away.wire.mend();
        put(&away, 26..27);
        late.join().unwrap()
    });
    assert_eq!(late.map(|(ids, _)| ids), Ok(vec![26]));
}

#[test]
fn a_consumer_goes_on_with_the_next_home_unless_what_it_saw_is_lost() {
    let home = Region::start("home", Duration::ZERO, &[]);
    let away = Region::start("away", Duration::ZERO, &[]);
    create(&home, "c", 1);
    away.follow("c", &home);
    put(&home, 0..5);
    let (ids, token) = events(&home, "begin", 5).unwrap();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
    wait_equal("c", &home, &away);
    turn(&away, "handover");
    put(&away, 5..8);
    // With the new home, and with the old one that follows it now.
    wait_equal("c", &home, &away);
    for region in [&away, &home] {
        assert_eq!(events(region, &token, 3).unwrap().0, [5, 6, 7]);
    }

    // The home is cut off; what its consumer sees of it then is lost by a takeover.
    away.wire.cut();
    let (_, shared) = events(&away, &token, 3).unwrap();
    put(&away, 8..10);
    let (ids, lost) = events(&away, &shared, 2).unwrap();
    assert_eq!(ids, [8, 9]);
    turn(&home, "takeover");
    put(&home, 20..22);
    assert_eq!(events(&home, &shared, 2).unwrap().0, [20, 21], "what was shared goes on");
    assert_eq!(events(&home, &lost, 1).expect_err("lost"), 410, "nothing is passed over in silence");
    let session = |token: &str| {
        let client = home.client().with("annal-consistency", "at-least").with("annal-token", token);
        value_of(&client, "c", 20).0.status
    };
    let written = write(&away.client(), "c", &[point(30, 30)]);
    written.ok();
    assert_eq!(session(written.header("annal-token").unwrap()), 410, "a session's token of what is lost");
}
