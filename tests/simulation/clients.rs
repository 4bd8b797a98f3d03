//! Clients of a simulated cluster: what they ask any node for, and what they were told.
//!
//! Invariants: values are unique, and a vector belongs to its value; an operation whose node went away is of unknown
//! outcome if it writes; who was told nothing is a new process from then on.
//! Not here: what may be told (the checkers of `annal-jepsen`).

use crate::record::{COLLECTION, Record, Told};
use annal::{
    changefeed::{self, FeedEvent, FeedOptions, From, Op},
    cluster::{Cluster, ClusterError, PointSelector, ReadOptions, Seen, WriteOptions, Written},
    model::{
        Effect, Payload, PayloadSelector, Point, PointId, Position, Projection, RequestId, ScrollRequest,
        SearchParams, SearchRequest, Target, Vector, VectorSelector,
    },
    world::Life,
};
use annal_jepsen::{
    checker::observe::PRECONDITION,
    history::{Kind, Process},
    point::{GROUPS, Hit, vector_of},
};
use futures::{StreamExt, pin_mut};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

/// The way into a node, whenever it is up.
pub(crate) type Entrance = watch::Receiver<Option<(Life, Cluster)>>;

/// What all clients share.
pub(crate) struct Stage {
    pub(crate) record: Record,
    pub(crate) names: Vec<String>,
    pub(crate) entrances: Vec<Entrance>,
    pub(crate) next_value: AtomicU64,
    /// Clients end.
    pub(crate) over: AtomicBool,
    /// Nothing is written any more; the feed may end when it is quiet.
    pub(crate) at_rest: AtomicBool,
    /// Much is to be deleted now.
    pub(crate) shed: Arc<AtomicBool>,
    pub(crate) seed: u64,
    pub(crate) shards: u32,
}

/// Points under test.
pub(crate) const KEYS: u64 = 9;
/// Groups of points that are written together, behind the others.
const BATCHES: u64 = 2;
const BATCH_POINTS: u64 = 3;
/// How long an operation is given.
const OP_WITHIN: Duration = Duration::from_secs(5);

/// One client.
pub(crate) struct Client {
    stage: Arc<Stage>,
    pub(crate) rng: StdRng,
    number: u64,
    process: Process,
    /// What it last knew of each point's version.
    known: BTreeMap<u64, Option<u64>>,
    /// Values it was told are there.
    written: Vec<(u64, u64)>,
    intents: Vec<(u64, u64)>,
}

type Answer<T> = Result<T, ClusterError>;

/// A value's point as it is written.
fn point(id: u64, value: u64) -> Point {
    let payload: Payload = [("v", json!(value)), ("g", json!(value % GROUPS))]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect();
    let vectors = BTreeMap::from([(String::new(), Vector::Dense(vector_of(id, value).to_vec()))]);
    Point { id: PointId::Num(id), vectors, payload }
}

fn whole() -> Projection {
    Projection { payload: PayloadSelector::All, vectors: VectorSelector::All }
}

fn hit(
    id: PointId,
    version: Position,
    payload: Option<&[u8]>,
    vectors: Option<&annal::model::Vectors>,
    score: Option<f32>,
) -> Hit {
    let payload: Value = payload.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
    let vector = match vectors.and_then(|vectors| vectors.get("")) {
        Some(Vector::Dense(values)) => Some(values.clone()),
        _ => None,
    };
    let PointId::Num(id) = id else { panic!("{id} is none of ours") };
    let v = payload["v"].as_u64().unwrap_or(u64::MAX);
    Hit { id, v, g: payload["g"].as_u64(), vector, version: Some(version.0), score }
}

fn version(written: &Written) -> Option<u64> {
    written.position.map(|position| position.0)
}

impl Client {
    pub(crate) fn new(stage: Arc<Stage>, number: u64) -> Client {
        let rng = StdRng::seed_from_u64(stage.seed.wrapping_mul(1_000_003).wrapping_add(number + 1));
        let process = stage.record.process();
        let (known, written, intents) = Default::default();
        Client { stage, rng, number, process, known, written, intents }
    }

    /// Does one thing after another until the run is over.
    pub(crate) async fn run(mut self, pause_ms: u64) {
        while !self.stage.over.load(Relaxed) {
            sleep(Duration::from_millis(self.rng.random_range(0..=pause_ms))).await;
            self.step().await;
        }
    }

    async fn step(&mut self) {
        let key = self.rng.random_range(0..KEYS);
        match self.rng.random_range(0..100) {
            0..50 if self.stage.shed.load(Relaxed) => self.delete(key).await,
            0..28 => self.read(key).await,
            28..45 => self.write(key).await,
            45..55 => self.delete(key).await,
            55..67 => self.cas(key).await,
            67..75 => self.intend().await,
            75..82 if self.stage.shards == 1 => self.write_batch().await,
            82..89 if self.stage.shards == 1 => self.read_batch().await,
            75..82 => self.scroll().await,
            _ => self.search().await,
        }
    }

    fn fresh(&self) -> u64 {
        self.stage.next_value.fetch_add(1, Relaxed)
    }

    /// Any node that is up; one in eight times it does not look.
    fn node(&mut self) -> usize {
        let all = self.stage.entrances.len();
        let first = self.rng.random_range(0..all);
        if self.rng.random_ratio(1, 8) {
            return first;
        }
        let up = |node: &usize| self.stage.entrances[*node].borrow().is_some();
        (0..all).map(|n| (first + n) % all).find(up).unwrap_or(first)
    }

    fn reading() -> ReadOptions {
        ReadOptions::linearizable(Instant::now() + OP_WITHIN)
    }

    fn writing(request: Option<RequestId>) -> WriteOptions {
        WriteOptions { wait: true, deadline: Instant::now() + OP_WITHIN, request, token: None }
    }

    /// One operation: recorded, asked of a node within its life, and recorded as what it told.
    pub(crate) async fn operate<T, F>(
        &mut self,
        node: usize,
        what: (&str, Option<u64>, Value),
        writes: bool,
        ask: impl FnOnce(Cluster) -> F,
        told: impl FnOnce(&T) -> Told,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = Answer<T>> + Send + 'static,
    {
        let stage = self.stage.clone();
        let invocation = stage.record.invoke(self.process, &stage.names[node], what);
        let entrance = stage.entrances[node].borrow().clone();
        let answer = match entrance {
            None => Err((false, Told::failed("connection refused"))),
            Some((life, cluster)) => {
                let asked = life.spawn(ask(cluster));
                // The client's own patience is longer than the node's.
                match timeout(OP_WITHIN + Duration::from_secs(2), asked).await {
                    Ok(Ok(Ok(answer))) => Ok(answer),
                    Ok(Ok(Err(error))) => Err(outcome(&error)),
                    Ok(Err(_)) => Err((true, Told::failed("the connection broke"))),
                    Err(_) => Err((true, Told::failed("no answer came"))),
                }
            }
        };
        match answer {
            Ok(answer) => {
                stage.record.complete(invocation, Kind::Ok, told(&answer));
                Some(answer)
            }
            Err((unknown, told)) => {
                let kind = if unknown && writes { Kind::Info } else { Kind::Fail };
                stage.record.complete(invocation, kind, told);
                if kind == Kind::Info {
                    self.process = stage.record.process();
                }
                None
            }
        }
    }

    async fn read(&mut self, key: u64) {
        let node = self.node();
        let ask = |cluster: Cluster| async move {
            let ids = vec![PointId::Num(key)];
            Ok(cluster.retrieve(COLLECTION, ids, whole(), &Self::reading()).await?.value.pop())
        };
        let shown = |record: &Option<annal::model::Record>| {
            record.as_ref().map(|r| hit(r.id, r.version, r.payload.as_deref(), r.vectors.as_ref(), None))
        };
        let told = |record: &_| match shown(record) {
            Some(Hit { v, version, .. }) => Told::of(json!(v), version),
            None => Told::of(Value::Null, None),
        };
        if let Some(record) = self.operate(node, ("read", Some(key), Value::Null), false, ask, told).await {
            let shown = shown(&record);
            // A point of two writes is a finding of its own.
            if let Some(torn) = shown.as_ref().and_then(Hit::torn) {
                panic!("point {key} is torn: {torn}");
            }
            self.known.insert(key, shown.and_then(|hit| hit.version));
        }
    }

    async fn write(&mut self, key: u64) {
        let node = self.node();
        self.write_by(node, key).await;
    }

    pub(crate) async fn write_by(&mut self, node: usize, key: u64) -> Option<()> {
        let value = self.fresh();
        let ask = move |cluster: Cluster| async move {
            cluster.upsert(COLLECTION, vec![point(key, value)], &Self::writing(None)).await
        };
        let told = |written: &Written| Told::of(json!(value), version(written));
        let written = self.operate(node, ("write", Some(key), json!(value)), true, ask, told).await?;
        self.wrote(key, value, &written);
        Some(())
    }

    fn wrote(&mut self, key: u64, value: u64, written: &Written) {
        self.known.insert(key, version(written));
        self.written.push((key, value));
    }

    async fn delete(&mut self, key: u64) {
        let node = self.node();
        let ask = move |cluster: Cluster| async move {
            let which = PointSelector::Ids(vec![PointId::Num(key)]);
            cluster.delete_points(COLLECTION, which, &Self::writing(None)).await
        };
        let told = |written: &Written| Told::of(Value::Null, version(written));
        if self.operate(node, ("delete", Some(key), Value::Null), true, ask, told).await.is_some() {
            self.known.insert(key, None);
        }
    }

    async fn cas(&mut self, key: u64) {
        let (node, expected) = (self.node(), self.known.get(&key).copied().flatten());
        let value = (!self.rng.random_ratio(1, 6)).then(|| self.fresh());
        let ask = move |cluster: Cluster| async move {
            let new = value.map(|value| point(key, value));
            let id = PointId::Num(key);
            cluster.cas(COLLECTION, id, expected.map(Position), new, &Self::writing(None)).await
        };
        let told = |written: &Written| Told::of(json!(value), version(written));
        let what = ("cas", Some(key), json!([expected, value]));
        match (self.operate(node, what, true, ask, told).await, value) {
            (Some(written), Some(value)) => self.wrote(key, value, &written),
            (Some(_), None) => drop(self.known.insert(key, None)),
            // What it knew was wrong, or old.
            (None, _) => drop(self.known.remove(&key)),
        }
    }

    /// Something is meant once, and sent until it is known; or something old is sent again.
    async fn intend(&mut self) {
        let again = !self.intents.is_empty() && self.rng.random_ratio(1, 3);
        let (seq, key, value) = match again {
            true => {
                let at = self.rng.random_range(0..self.intents.len());
                (at as u64 + 1, self.intents[at].0, self.intents[at].1)
            }
            false => {
                let intent = (self.rng.random_range(0..KEYS), self.fresh());
                self.intents.push(intent);
                (self.intents.len() as u64, intent.0, intent.1)
            }
        };
        let copies = if again { 1 } else { 4 };
        for _ in 0..copies {
            let node = self.rng.random_range(0..self.stage.names.len());
            let request = RequestId { client: format!("client{}", self.number), seq };
            let asked = json!({"request": format!("{}/{seq}", request.client), "v": value});
            let ask = move |cluster: Cluster| async move {
                cluster.upsert(COLLECTION, vec![point(key, value)], &Self::writing(Some(request))).await
            };
            let told = |written: &Written| Told::of(json!(value), version(written));
            if self.operate(node, ("intend", Some(key), asked), true, ask, told).await.is_some() {
                return;
            }
            sleep(Duration::from_millis(self.rng.random_range(0..300))).await;
        }
    }

    fn batch(&mut self) -> Vec<u64> {
        let first = KEYS + self.rng.random_range(0..BATCHES) * BATCH_POINTS;
        (first..first + BATCH_POINTS).collect()
    }

    async fn write_batch(&mut self) {
        let (node, value, keys) = (self.node(), self.fresh(), self.batch());
        let points: Vec<Point> = keys.iter().map(|key| point(*key, value)).collect();
        let ask = move |cluster: Cluster| async move {
            cluster.upsert(COLLECTION, points, &Self::writing(None)).await
        };
        let what = ("write-batch", None, json!({"v": value, "keys": keys}));
        let told = |written: &Written| Told::of(Value::Null, version(written));
        self.operate(node, what, true, ask, told).await;
    }

    async fn read_batch(&mut self) {
        let (node, keys) = (self.node(), self.batch());
        let ids: Vec<PointId> = keys.iter().map(|key| PointId::Num(*key)).collect();
        let ask = move |cluster: Cluster| async move {
            Ok(cluster.retrieve(COLLECTION, ids, whole(), &Self::reading()).await?.value)
        };
        let told = |records: &Vec<annal::model::Record>| Told::of(hits(records), None);
        self.operate(node, ("read-batch", None, json!(keys)), false, ask, told).await;
    }

    async fn scroll(&mut self) {
        let node = self.node();
        let ask = |cluster: Cluster| async move { scroll(&cluster).await };
        let told = |records: &Vec<annal::model::Record>| Told::of(hits(records), None);
        self.operate(node, ("scroll", None, Value::Null), false, ask, told).await;
    }

    /// What was acknowledged is found by its vector.
    async fn search(&mut self) {
        let newest = self.written.len().saturating_sub(if self.rng.random() { 3 } else { 40 });
        if self.written.is_empty() {
            return;
        }
        let (key, value) = self.written[self.rng.random_range(newest..self.written.len())];
        let node = self.node();
        let exact = self.rng.random();
        self.find(node, "search", (key, value), exact).await;
    }

    pub(crate) async fn find(&mut self, node: usize, f: &str, (key, value): (u64, u64), exact: bool) {
        let ask = move |cluster: Cluster| async move {
            let request = SearchRequest {
                target: Target::Nearest(vector_of(key, value).to_vec()),
                using: String::new(),
                filter: None,
                limit: 5,
                offset: 0,
                score_threshold: None,
                params: SearchParams { exact, ef: None },
                projection: whole(),
            };
            cluster.search(COLLECTION, request, &Self::reading()).await
        };
        let told = |seen: &Seen<Vec<annal::model::ScoredPoint>>| {
            let hits = seen.value.iter().map(|found| {
                let (payload, vectors) = (found.payload.as_deref(), found.vectors.as_ref());
                hit(found.id, found.version, payload, vectors, Some(found.score))
            });
            Told::of(json!({"hits": hits.collect::<Vec<_>>(), "token": seen.token.to_string()}), None)
        };
        self.operate(node, (f, Some(key), json!({"v": value, "exact": exact})), false, ask, told).await;
    }

    /// Every point, by one node, and how many that node counts.
    pub(crate) async fn read_all(&mut self, node: usize) -> Option<Vec<(u64, u64)>> {
        let ask = |cluster: Cluster| async move {
            let records = scroll(&cluster).await?;
            let counted = cluster.count(COLLECTION, None, &Self::reading()).await?.value;
            Ok((records, counted))
        };
        let told = |(records, counted): &(Vec<annal::model::Record>, u64)| {
            Told::of(json!({"hits": hits(records), "count": counted}), None)
        };
        let all = self.operate(node, ("final", None, Value::Null), false, ask, told).await?;
        let hits: Vec<Hit> = serde_json::from_value(hits(&all.0)).expect("made above");
        Some(hits.into_iter().map(|hit| (hit.id, hit.v)).collect())
    }

    /// The state hashes of all replicas; tried until they are equal and enough, for a while.
    pub(crate) async fn compare(&mut self, replicas: usize, scrub: bool) {
        let ask = move |cluster: Cluster| async move {
            let until = Instant::now() + OP_WITHIN - Duration::from_secs(1);
            loop {
                let shards = cluster.state_hash(COLLECTION, None, scrub, &Self::reading()).await?;
                let equal = shards.iter().all(|shard| {
                    let mut hashes: Vec<_> = shard.replicas.values().collect();
                    hashes.dedup();
                    hashes.len() == 1 && shard.replicas.len() >= replicas
                });
                if equal || Instant::now() >= until {
                    return Ok(shards);
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let told = |shards: &Vec<annal::cluster::ShardHash>| {
            Told::of(serde_json::to_value(shards).expect("JSON"), None)
        };
        let what = ("state-hash", None, json!({"replicas": replicas, "scrub": scrub}));
        if self.operate(0, what, false, ask, told).await.is_none() {
            self.note("converge", Kind::Fail, Told::failed("no state hash was to be had")).await;
        }
    }

    /// Something that was looked at from outside.
    pub(crate) async fn note(&mut self, f: &str, kind: Kind, told: Told) {
        let invocation = self.stage.record.invoke(self.process, "all", (f, None, Value::Null));
        self.stage.record.complete(invocation, kind, told);
    }
}

async fn scroll(cluster: &Cluster) -> Answer<Vec<annal::model::Record>> {
    let request = ScrollRequest { offset: None, limit: 10_000, filter: None, projection: whole() };
    Ok(cluster.scroll(COLLECTION, request, &Client::reading()).await?.value.points)
}

fn hits(records: &[annal::model::Record]) -> Value {
    let hits = records
        .iter()
        .map(|record| {
            let (payload, vectors) = (record.payload.as_deref(), record.vectors.as_ref());
            hit(record.id, record.version, payload, vectors, None)
        })
        .collect::<Vec<_>>();
    json!(hits)
}

/// What an error tells: whether the effect is unknown, and of a refused condition the version that was there.
fn outcome(error: &ClusterError) -> (bool, Told) {
    match error {
        ClusterError::Precondition { version, .. } => {
            let told = Told { version: version.map(|version| version.0), ..Told::failed(PRECONDITION) };
            (false, told)
        }
        error => (error.effect() == Effect::Unknown, Told::failed(error.to_string())),
    }
}

/// Follows the change feed from its beginning, from node to node, to its end.
pub(crate) async fn witness(stage: Arc<Stage>) {
    let mut rng = StdRng::seed_from_u64(stage.seed ^ 0xfeed);
    let mut from = From::Begin;
    let mut quiet = 0;
    let mut client = Client::new(stage.clone(), 1 << 20);
    while quiet < 2 {
        sleep(Duration::from_millis(20)).await;
        let node = rng.random_range(0..stage.names.len());
        let Some((life, cluster)) = stage.entrances[node].borrow().clone() else { continue };
        let at_rest = stage.at_rest.load(Relaxed);
        let lines = if at_rest { usize::MAX } else { rng.random_range(5..120) };
        let within = Duration::from_millis(if at_rest { 1_500 } else { 4_000 });
        let (pass, mut passed) = mpsc::channel(8);
        let resumed = from.clone();
        let reader = life.spawn(async move {
            let options = FeedOptions { with_payload: true, with_vector: true, ..FeedOptions::default() };
            let feed = match changefeed::open(&cluster, COLLECTION, resumed, options).await {
                Ok(feed) => feed,
                Err(error) => return drop(pass.send(Err(error)).await),
            };
            pin_mut!(feed);
            while let Some(item) = feed.next().await {
                if pass.send(item).await.is_err() {
                    return;
                }
            }
        });
        let until = Instant::now() + within;
        let (mut opened, mut events) = (false, 0);
        for _ in 0..lines {
            match tokio::time::timeout_at(until, passed.recv()).await {
                Ok(Some(Ok(event))) => {
                    opened = true;
                    from = From::Token(event.token().clone());
                    if let FeedEvent::Change(change) = event {
                        events += 1;
                        let process = client.process;
                        take_down(&stage, process, &stage.names[node], &change);
                    }
                }
                // No replica reaches back, which is allowed where all were replaced.
                Ok(Some(Err(ClusterError::TooOld { .. }))) => return reader.abort(),
                _ => break,
            }
        }
        reader.abort();
        quiet = if at_rest && opened && events == 0 { quiet + 1 } else { 0 };
    }
    client.note("feed-end", Kind::Ok, Told::default()).await;
}

fn take_down(stage: &Stage, process: Process, node: &str, change: &changefeed::PointChange) {
    let PointId::Num(id) = change.id else { panic!("{} is none of ours", change.id) };
    let (op, v) = match &change.op {
        Op::Delete => ("delete", Value::Null),
        Op::Upsert { payload, .. } => {
            let payload: Value =
                payload.as_deref().and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
            ("upsert", payload["v"].clone())
        }
    };
    let shown = json!({"shard": change.shard.0, "position": change.position.0, "n": change.n, "of": change.of,
        "op": op, "v": v});
    let invocation = stage.record.invoke(process, node, ("event", Some(id), Value::Null));
    stage.record.complete(invocation, Kind::Ok, Told::of(shown, Some(change.position.0)));
}
