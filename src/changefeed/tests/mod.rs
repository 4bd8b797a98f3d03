//! The feed on one node: against a model, cut off everywhere, opened now, left behind, dropped.

mod cluster;
mod nodes;

use super::*;
use crate::{
    cluster::{PointSelector, ReadOptions, WriteOptions, Written},
    model::{
        Condition, FieldTest, Filter, PayloadSelector, Point, PointId, Projection, RequestId, ScrollRequest,
        SparseVector, Vector, VectorSelector, Vectors, filter::Scalar,
    },
    shard::Change,
};
use futures::StreamExt;
use nodes::{C, Node, create, node, nodes};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::{pin::pin, sync::Arc};
use tokio::time::timeout;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

impl Node {
    /// Changes from a place on, until every shard has passed where it stands now.
    async fn read(&self, from: From, options: FeedOptions) -> Vec<PointChange> {
        let followed = self.cluster.followed(C, soon()).await.unwrap();
        let mut ends = BTreeMap::new();
        for shard in (0..followed.shards).map(ShardNumber) {
            ends.insert(shard, self.cluster.shard_stand(&followed, shard, soon()).await.unwrap().position);
        }
        let mut feed = pin!(open(&self.cluster, C, from, options).await.unwrap());
        let mut changes = Vec::new();
        loop {
            let event = timeout(Duration::from_secs(20), feed.next()).await.expect("the feed hangs");
            let event = event.expect("a feed has no end").unwrap();
            let passed = event.token().shards.iter().all(|(shard, place)| place.position > ends[shard]);
            if let FeedEvent::Change(change) = event {
                changes.push(change);
            }
            if passed {
                return changes;
            }
        }
    }
}

/// Everything, and heartbeats so often that a log's end without events is noticed soon.
fn all() -> FeedOptions {
    FeedOptions {
        with_payload: true,
        with_vector: true,
        heartbeat: Duration::from_millis(20),
        ..FeedOptions::default()
    }
}

fn options(request: Option<RequestId>) -> WriteOptions {
    WriteOptions { wait: true, deadline: soon(), request, token: None }
}

fn point(id: u64, value: u64) -> Point {
    let words = SparseVector { indices: vec![1, value as u32 + 2], values: vec![0.5, value as f32] };
    let vectors: Vectors = [
        (String::new(), Vector::Dense(vec![1.0, value as f32])),
        ("words".to_owned(), Vector::Sparse(words)),
    ]
    .into();
    let payload = json!({"value": value, "kind": value % 3, "text": "two\nlines"});
    Point { id: PointId::Num(id), vectors, payload: payload.as_object().unwrap().clone() }
}

fn of_kind(kind: i64) -> Filter {
    let test = FieldTest::Match(Scalar::Integer(kind));
    let condition = Condition::Field { path: "kind".parse().unwrap(), test };
    Filter { must: vec![condition], ..Filter::default() }
}

/// What each command did: points with their values, none for a delete.
type Expected = BTreeMap<(ShardNumber, Position), Vec<(u64, Option<u64>)>>;

/// Writes at random, and knows what each command must have done: value by id, none if it is gone.
struct Writer {
    cluster: Cluster,
    rng: StdRng,
    shards: u32,
    /// Value and version.
    points: BTreeMap<u64, (u64, Position)>,
    expected: Expected,
    /// A request that may be retried.
    last: Option<(RequestId, Vec<Point>)>,
    count: u64,
}

impl Writer {
    fn over(cluster: &Cluster, shards: u32, seed: u64) -> Self {
        println!("seed {seed}");
        let rng = StdRng::seed_from_u64(seed);
        let (points, expected, last) = Default::default();
        Writer { cluster: cluster.clone(), rng, shards, points, expected, last, count: 0 }
    }

    fn shard_of(&self, id: u64) -> ShardNumber {
        Cluster::shard_of_point(PointId::Num(id), self.shards)
    }

    /// Notes what a write did.
    fn did(&mut self, written: &Written, changes: Vec<(u64, Option<u64>)>) {
        for (id, value) in changes {
            let shard = self.shard_of(id);
            let position = written.token.shards[&shard];
            self.expected.entry((shard, position)).or_default().push((id, value));
            match value {
                Some(value) => self.points.insert(id, (value, position)),
                None => self.points.remove(&id),
            };
        }
    }

    async fn step(&mut self) {
        self.count += 1;
        let request = RequestId { client: "writer".into(), seq: self.count };
        let id = self.rng.random_range(0..40u64);
        match self.rng.random_range(0..100) {
            0..50 => {
                let count = self.rng.random_range(1..=12);
                let points: Vec<_> =
                    (0..count).map(|n| point(self.rng.random_range(0..40), self.count * 100 + n)).collect();
                let changes = points.iter().map(|p| match p.id {
                    PointId::Num(id) => (id, p.payload["value"].as_u64()),
                    PointId::Uuid(_) => unreachable!(),
                });
                let changes = changes.collect();
                let options = options(Some(request.clone()));
                let written = self.cluster.upsert(C, points.clone(), &options).await.unwrap();
                self.did(&written, changes);
                self.last = Some((request, points));
            }
            50..65 => {
                let ids: Vec<u64> = (0..6).map(|_| self.rng.random_range(0..60)).collect();
                let mut there: Vec<u64> = Vec::new();
                for id in &ids {
                    if self.points.contains_key(id) && !there.contains(id) {
                        there.push(*id);
                    }
                }
                let which = PointSelector::Ids(ids.into_iter().map(PointId::Num).collect());
                let written = self.cluster.delete_points(C, which, &options(None)).await.unwrap();
                self.did(&written, there.into_iter().map(|id| (id, None)).collect());
            }
            65..75 => {
                let kind = self.rng.random_range(0..3);
                let there = self.points.iter().filter(|(_, (value, _))| value % 3 == kind);
                let there = there.map(|(id, _)| (*id, None)).collect();
                let which = PointSelector::Matching(of_kind(kind as i64));
                let written = self.cluster.delete_points(C, which, &options(Some(request))).await.unwrap();
                self.did(&written, there);
            }
            75..90 => {
                // At the right version, or one beside it; a write or a deletion.
                let version = self.points.get(&id).map(|(_, version)| *version);
                let right = self.rng.random_bool(0.7);
                let if_version = if right { version } else { Some(Position(1)) };
                let value = self.rng.random_bool(0.6).then_some(self.count * 100);
                let point = value.map(|value| point(id, value));
                let options = options(Some(request));
                let written = self.cluster.cas(C, PointId::Num(id), if_version, point, &options).await;
                match written {
                    Ok(written) if value.is_some() || version.is_some() => {
                        self.did(&written, vec![(id, value)]);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        assert!(!right && matches!(error, ClusterError::Precondition { .. }), "{error}")
                    }
                }
            }
            _ => {
                // A retry, of the last one if there is one: it does nothing.
                if let Some((request, points)) = self.last.clone() {
                    self.cluster.upsert(C, points, &options(Some(request))).await.unwrap();
                }
            }
        }
    }
}

/// The value in a payload of [`point`].
fn value_of(change: &PointChange) -> Option<u64> {
    match &change.op {
        Op::Delete => None,
        Op::Upsert { payload, .. } => {
            let payload: serde_json::Value = serde_json::from_slice(payload.as_ref().unwrap()).unwrap();
            Some(payload["value"].as_u64().unwrap())
        }
    }
}

/// Checks that the changes are those expected, each once, in order, counted rightly.
fn check(changes: &[PointChange], expected: &Expected) {
    let mut got: Expected = BTreeMap::new();
    let mut last = BTreeMap::new();
    for change in changes {
        let PointChange { shard, position, n, of, id: PointId::Num(id), token, .. } = change else {
            panic!("{change:?}");
        };
        let before = last.insert(*shard, (*position, *n, *of));
        let follows = match before {
            Some((p, i, of)) if i + 1 == of => *position > p && *n == 0,
            Some((p, i, all)) => (*position, *n, *of) == (p, i + 1, all),
            None => *n == 0,
        };
        assert!(follows && n < of, "{before:?} is followed by {position} {n} of {of}");
        let place = token.shards[shard];
        let behind = if n + 1 == *of { (position.0 + 1, 0) } else { (position.0, n + 1) };
        assert_eq!((place.position.0, place.delivered), behind);
        got.entry((*shard, *position)).or_default().push((*id, value_of(change)));
    }
    assert!(last.values().all(|(_, n, of)| n + 1 == *of), "a command is not told to its end");
    let sorted = |of: &BTreeMap<_, Vec<(u64, Option<u64>)>>| {
        let mut of = of.clone();
        // What a filter deleted has no order of its own.
        of.values_mut()
            .filter(|changes| changes.iter().all(|(_, value)| value.is_none()))
            .for_each(|c| c.sort());
        of
    };
    assert_eq!(sorted(&got), sorted(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_rebuilt_from_the_feed_is_the_shards() {
    let node = node(annal_wal::Options::default(), 2).await;
    let mut writer = Writer::over(&node.cluster, 2, rand::random());
    for _ in 0..300 {
        writer.step().await;
    }
    let changes = node.read(From::Begin, all()).await;
    check(&changes, &writer.expected);
    assert!(changes.len() > 300, "too little to say anything: {}", changes.len());
    let mut rebuilt = BTreeMap::new();
    for PointChange { id, position, op, .. } in changes {
        match op {
            Op::Upsert { payload, vectors } => {
                rebuilt.insert(id, (position, payload.unwrap(), vectors.unwrap()))
            }
            Op::Delete => rebuilt.remove(&id),
        };
    }
    let everything = Projection { payload: PayloadSelector::All, vectors: VectorSelector::All };
    let request = ScrollRequest { offset: None, limit: 1000, filter: None, projection: everything };
    let page = node.cluster.scroll(C, request, &ReadOptions::linearizable(soon())).await.unwrap().value;
    let state: BTreeMap<_, _> = page
        .points
        .into_iter()
        .map(|r| (r.id, (r.version, r.payload.unwrap(), r.vectors.unwrap())))
        .collect();
    assert_eq!(rebuilt, state);

    // One shard alone gives its part of it; the token of the whole serves it, not the other way round.
    // No heartbeat but the first: a slow machine may need longer than 20 ms for an event.
    let one = FeedOptions { shard: Some(ShardNumber(1)), heartbeat: Duration::from_secs(60), ..all() };
    let mut part = Box::pin(open(&node.cluster, C, From::Begin, one.clone()).await.unwrap());
    let first = part.next().await.unwrap().unwrap();
    assert_eq!(first.token().shards.keys().collect::<Vec<_>>(), [&ShardNumber(1)]);
    for wanted in writer.expected.iter().filter(|((shard, _), _)| shard.0 == 1).take(20) {
        for n in 0..wanted.1.len() {
            let FeedEvent::Change(change) = part.next().await.unwrap().unwrap() else {
                panic!("a heartbeat")
            };
            assert_eq!((change.shard, change.position, change.n), (wanted.0.0, wanted.0.1, n as u64));
        }
    }
    let wrong = open(&node.cluster, C, From::Token(first.token().clone()), all()).await;
    assert!(matches!(wrong.err(), Some(ClusterError::Invalid(_))));
    let nowhere = FeedOptions { shard: Some(ShardNumber(2)), ..all() };
    assert!(matches!(
        open(&node.cluster, C, From::Begin, nowhere).await.err(),
        Some(ClusterError::Invalid(_))
    ));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_cut_off_a_thousand_times_gets_everything_once() {
    let node = node(annal_wal::Options::default(), 2).await;
    let seed = rand::random();
    let mut writer = Writer::over(&node.cluster, 2, seed);
    let writing = tokio::spawn(async move {
        for _ in 0..300 {
            writer.step().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        writer
    });
    let (mut rng, mut cuts) = (StdRng::seed_from_u64(seed), 0);
    let options = FeedOptions { heartbeat: Duration::from_millis(5), ..all() };
    let mut taken: Vec<PointChange> = Vec::new();
    // Round after round from the beginning, the first ones while it is written.
    let mut expected = None;
    let mut from = From::Begin;
    let mut inside = 0;
    while cuts < 1_000 || !taken.is_empty() {
        let options = FeedOptions { deadline: soon(), ..options.clone() };
        let mut feed = pin!(open(&node.cluster, C, from, options).await.unwrap());
        let mut token = None;
        // A consumer sees a line whole or not at all.
        for _ in 0..rng.random_range(1..=8) {
            let event = feed.next().await.unwrap().unwrap();
            token = Some(event.token().clone());
            if let FeedEvent::Change(change) = event {
                taken.push(change);
            }
        }
        let token = token.unwrap();
        inside += u64::from(token.shards.values().any(|place| place.delivered > 0));
        from = From::Token(token.to_string().parse().unwrap());
        cuts += 1;
        if expected.is_none() && writing.is_finished() {
            expected = Some(node.read(From::Begin, all()).await);
        }
        if expected.as_ref().is_some_and(|all| taken.len() >= all.len()) {
            let by_shard = |changes: &[PointChange]| {
                let mut changes =
                    changes.iter().map(|c| (c.shard, c.position, c.n, c.of, c.id, c.op.clone()));
                let mut of_shard: BTreeMap<ShardNumber, Vec<_>> = BTreeMap::new();
                changes.by_ref().for_each(|change| of_shard.entry(change.0).or_default().push(change));
                of_shard
            };
            assert_eq!(by_shard(&taken), by_shard(expected.as_ref().unwrap()));
            taken.clear();
            from = From::Begin;
        }
    }
    let writer = writing.await.unwrap();
    check(&expected.unwrap(), &writer.expected);
    println!("{cuts} cuts, {inside} of them inside a command");
    assert!(inside > 100, "hardly any command was cut");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_now_on_nothing_is_missed() {
    let node = node(annal_wal::Options::default(), 2).await;
    let (cluster, stop) = (node.cluster.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let busy = tokio::spawn({
        let stop = stop.clone();
        async move {
            for n in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                cluster.upsert(C, vec![point(n % 50, n)], &options(None)).await.unwrap();
            }
        }
    });
    for round in 0..30u64 {
        let ids: Vec<u64> = (0..20).map(|n| 1_000 + round * 100 + n).collect();
        node.cluster.upsert(C, vec![point(500 + round, 1)], &options(None)).await.unwrap();
        let mut feed = pin!(open(&node.cluster, C, From::Now, all()).await.unwrap());
        let writes =
            ids.iter().map(async |id| node.cluster.upsert(C, vec![point(*id, 7)], &options(None)).await);
        for written in future::join_all(writes).await {
            written.unwrap();
        }
        let mut missing: std::collections::BTreeSet<_> = ids.into_iter().map(PointId::Num).collect();
        while !missing.is_empty() {
            let event = timeout(Duration::from_secs(10), feed.next()).await.expect("something is missed");
            if let FeedEvent::Change(change) = event.unwrap().unwrap() {
                assert_ne!(change.id, PointId::Num(500 + round), "acknowledged before");
                assert_eq!(missing.remove(&change.id), matches!(change.id, PointId::Num(1_000..)), "twice");
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    busy.await.unwrap();
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_comes_too_late_learns_where_it_can_go_on() {
    let short = annal_wal::Options {
        segment_bytes: 128 << 10,
        retention_bytes: 1 << 20,
        history_bytes_max: 2 << 20,
        hot_bytes_max: 64 << 10,
        ..annal_wal::Options::default()
    };
    let node = node(short, 2).await;
    let early = {
        let mut feed = pin!(open(&node.cluster, C, From::Begin, all()).await.unwrap());
        feed.next().await.unwrap().unwrap().token().clone()
    };
    let (begun, mut count) = (Instant::now(), 0);
    let error = loop {
        let writes = (0..500).map(|n| {
            let (cluster, options) = (node.cluster.clone(), options(None));
            async move { cluster.upsert(C, vec![point(n, n)], &options).await }
        });
        for written in future::join_all(writes).await {
            written.unwrap();
        }
        count += 500;
        match open(&node.cluster, C, From::Token(early.clone()), all()).await {
            Err(error) => break error,
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(40), "{count} writes are all kept"),
        }
    };
    println!("{count} writes, then: {error}");
    assert_eq!(error.kind(), crate::model::Kind::Expired);
    let ClusterError::TooOld { oldest, message } = error else { panic!("{error}") };
    assert!(message.contains(&oldest), "{message}");
    let resumed: From = oldest.parse().unwrap();
    let From::Token(token) = &resumed else { panic!("{resumed:?}") };
    assert!(token.shards.values().any(|place| place.position > Position(1)), "{token:?}");
    // From there on it is whole: every write is one command with one event.
    let changes = node.read(resumed.clone(), all()).await;
    let first = changes.iter().find(|c| token.shards[&c.shard].position == c.position);
    assert!(first.is_some(), "the oldest command itself is missing");
    for shard in [0, 1].map(ShardNumber) {
        let positions: Vec<_> = changes.iter().filter(|c| c.shard == shard).map(|c| c.position.0).collect();
        assert!(positions.windows(2).all(|w| w[0] + 1 == w[1]), "a hole");
    }
    assert!(matches!(
        open(&node.cluster, C, From::Begin, all()).await.err(),
        Some(ClusterError::TooOld { .. })
    ));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_say_where_the_feed_stands() {
    let node = node(annal_wal::Options::default(), 1).await;
    let options_of_feed = FeedOptions { heartbeat: Duration::from_millis(50), ..FeedOptions::default() };
    let mut feed = pin!(open(&node.cluster, C, From::Now, options_of_feed).await.unwrap());
    let begun = Instant::now();
    let first = feed.next().await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(50), "the first line did not come at once");
    for _ in 0..3 {
        assert_eq!(feed.next().await.unwrap().unwrap(), first);
    }
    assert!(begun.elapsed() >= Duration::from_millis(150), "heartbeats without a pause");
    // A command that changes nothing moves the token all the same.
    let nothing = PointSelector::Ids(vec![PointId::Num(9)]);
    node.cluster.delete_points(C, nothing, &options(None)).await.unwrap();
    let moved = async {
        loop {
            let event = feed.next().await.unwrap().unwrap();
            assert!(matches!(event, FeedEvent::Heartbeat(_)));
            if event != first {
                return event;
            }
        }
    };
    let moved = timeout(Duration::from_secs(10), moved).await.expect("the token stands still");
    let place = |event: &FeedEvent| event.token().shards[&ShardNumber(0)].position;
    assert_eq!(place(&moved), place(&first).next());
    // What was not asked for is not there.
    node.cluster.upsert(C, vec![point(1, 1)], &options(None)).await.unwrap();
    let FeedEvent::Change(change) = feed.next().await.unwrap().unwrap() else { panic!("a heartbeat") };
    assert_eq!(change.op, Op::Upsert { payload: None, vectors: None });
    node.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_collection_ends_its_feed() {
    let node = node(annal_wal::Options::default(), 2).await;
    let mut feed = pin!(open(&node.cluster, C, From::Begin, all()).await.unwrap());
    node.cluster.upsert(C, vec![point(1, 1), point(2, 2)], &options(None)).await.unwrap();
    let mut token = feed.next().await.unwrap().unwrap().token().clone();
    node.cluster.delete_collection(C, &options(None)).await.unwrap();
    let mut changes = 0;
    let error = loop {
        let item = timeout(Duration::from_secs(10), feed.next()).await.expect("the feed hangs");
        match item.expect("an error comes last") {
            Ok(event) => {
                changes += u64::from(matches!(event, FeedEvent::Change(_)));
                token = event.token().clone();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ClusterError::NoCollection(name) if name == C));
    assert!(feed.next().await.is_none());
    println!("{changes} changes before the end");
    let gone = open(&node.cluster, C, From::Begin, all()).await;
    assert!(matches!(gone.err(), Some(ClusterError::NoCollection(_))));
    // One of the same name is another one.
    create(&node.cluster, 2, 1).await;
    let other = open(&node.cluster, C, From::Token(token.clone()), all()).await;
    assert!(matches!(other.err(), Some(ClusterError::Invalid(_))));
    let followed = node.cluster.followed(C, soon()).await.unwrap();
    let collection = followed.id;
    let places = |position, home| {
        let place = Place::before(Position(position), crate::model::Generation(home));
        ResumeToken { collection, shards: (0..2).map(|n| (ShardNumber(n), place)).collect() }
    };
    // A home that is to come, for all that is known here.
    let briefly = FeedOptions { deadline: Instant::now() + Duration::from_millis(300), ..all() };
    let moved = open(&node.cluster, C, From::Token(places(1, 9)), briefly).await;
    assert!(
        matches!(moved.err(), Some(ClusterError::Unavailable(why)) if why.contains("not heard of home 9"))
    );
    // Nothing was ever acknowledged there.
    let beyond = places(1_000, 1);
    assert!(matches!(
        open(&node.cluster, C, From::Token(beyond), all()).await.err(),
        Some(ClusterError::Expired(_))
    ));
    node.close().await;
}

/// A cursor over made-up shards: each command has as many deletions as the list says.
fn cursor(shards: Vec<Vec<usize>>, last: Option<FollowError>) -> impl Stream<Item = Result<FeedEvent>> {
    let home = crate::model::Generation(1);
    let begin = Place::before(Position(1), home);
    let places = (0..shards.len() as u32).map(|n| (ShardNumber(n), begin)).collect();
    let token = ResumeToken { collection: crate::model::CollectionId(1), shards: places };
    let streams = shards.into_iter().enumerate().map(|(shard, commands)| {
        let events = commands.into_iter().enumerate().map(|(n, of)| {
            let changes = (0..of as u64).map(|id| Change::Delete(PointId::Num(id))).collect();
            Ok(crate::cluster::ShardEvents {
                position: Position(n as u64 + 1),
                home,
                changes,
                retired: false,
                command: None,
            })
        });
        let events: Vec<_> = events.chain(last.clone().map(Err)).collect();
        (ShardNumber(shard as u32), futures::stream::iter(events).boxed())
    });
    let parts = Parts { payload: false, vectors: false, commands: false };
    Cursor::new(C.into(), token, streams.collect(), parts, Duration::from_secs(9)).into_stream()
}

#[tokio::test]
async fn shards_take_turns_by_the_command() {
    let last = FollowError::Expired { oldest: Position(70) };
    let mut feed = pin!(cursor(vec![vec![3; 50], vec![1; 50]], Some(last)));
    assert!(matches!(feed.next().await, Some(Ok(FeedEvent::Heartbeat(_)))));
    let (mut of_shard, mut before) = ([0u64; 2], None);
    let error = loop {
        match feed.next().await.unwrap() {
            Ok(FeedEvent::Change(change)) => {
                if change.n > 0 {
                    assert_eq!(before, Some((change.shard, change.position)), "a command was interrupted");
                }
                before = Some((change.shard, change.position));
                of_shard[change.shard.0 as usize] = change.position.0;
                assert!(of_shard[0].abs_diff(of_shard[1]) <= 2, "one shard waits: {of_shard:?}");
            }
            Ok(FeedEvent::Heartbeat(_)) => panic!("too early"),
            Err(error) => break error,
        }
    };
    assert!(feed.next().await.is_none());
    // One shard is left behind; the other goes on where it was.
    let ClusterError::TooOld { oldest, .. } = error else { panic!("{error}") };
    let oldest: ResumeToken = oldest.parse().unwrap();
    assert!(oldest.shards.values().any(|place| place.position == Position(70)), "{oldest:?}");
    assert!(
        oldest.shards.values().any(|place| place.position.0 >= 50 && place.position.0 <= 51),
        "{oldest:?}"
    );
}

#[tokio::test]
async fn the_end_of_a_collection_is_told_when_all_shards_have_said_it() {
    let mut feed = pin!(cursor(vec![vec![1; 5], vec![1; 500]], Some(FollowError::Dropped)));
    let mut changes = 0;
    while let Some(Ok(event)) = feed.next().await {
        changes += u64::from(matches!(event, FeedEvent::Change(_)));
    }
    assert_eq!(changes, 505);
}
