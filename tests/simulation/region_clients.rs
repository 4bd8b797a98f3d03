//! Those who use regions in a simulation: writers, a reader, a consumer of the change feed; and what they were told.
//!
//! Invariants: values are unique; a write is acknowledged with a home, a shard and a position, refused without effect, or of
//! unknown outcome.
//! Not here: what is made of it (`region_truth`).

use crate::{
    record::COLLECTION,
    trace::Trace,
    ways::{Door, Ways},
};
use annal::{
    changefeed::{self, FeedEvent, FeedOptions, From, Op},
    cluster::{ClusterError, Consistency, PointSelector, ReadOptions, WriteOptions},
    model::{
        Effect, Generation, PayloadSelector, Point, PointId, Position, Projection, RequestId, ShardNumber,
        Vector, VectorSelector,
    },
};
use annal_jepsen::point::vector_of;
use futures::{StreamExt, pin_mut};
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// The regions there may be.
pub(crate) const REGIONS: [&str; 3] = ["a", "b", "c"];
/// Points under test.
pub(crate) const KEYS: u64 = 12;
/// How long one operation is given.
const OP_WITHIN: Duration = Duration::from_secs(3);
/// Writes that a reader looks back at.
const RECENT: usize = 50;
/// A consumer that has heard of nothing new for so long has had everything.
const QUIET: Duration = Duration::from_millis(800);

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Acked {
    pub(crate) region: usize,
    pub(crate) generation: Generation,
    pub(crate) shard: ShardNumber,
    pub(crate) position: Position,
    pub(crate) key: u64,
    /// None: it is deleted.
    pub(crate) value: Option<u64>,
    /// Its writer, and what that meant.
    pub(crate) intent: (u64, u64),
    /// Meant before: it may have taken a position of its own, of which nobody is told.
    pub(crate) again: bool,
    pub(crate) asked: Instant,
    pub(crate) at: Instant,
}

/// A write whose outcome nobody was told.
#[derive(Clone, Debug)]
pub(crate) struct Unknown {
    pub(crate) region: usize,
    pub(crate) key: u64,
    pub(crate) value: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Told {
    pub(crate) acked: Vec<Acked>,
    pub(crate) unknown: Vec<Unknown>,
    pub(crate) refused: usize,
    pub(crate) findings: Vec<String>,
    pub(crate) checked: u64,
}

/// What writers, readers and the one who compares share.
pub(crate) struct Stage {
    pub(crate) ways: Arc<Ways>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) regions: usize,
    pub(crate) next_value: AtomicU64,
    /// Writers wait.
    pub(crate) rest: AtomicBool,
    pub(crate) over: AtomicBool,
    /// Writes under way.
    pub(crate) under_way: AtomicU64,
    pub(crate) told: Mutex<Told>,
}

impl Stage {
    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, what: impl Into<String>) {
        self.told().findings.push(what.into());
    }

    pub(crate) fn checked(&self, count: usize) {
        self.told().checked += count as u64;
    }

    /// Asks a node of a region something within its life; none if nobody there says anything in time.
    pub(crate) async fn ask<T, F>(&self, region: usize, ask: impl FnOnce(Door) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let door = self.ways.door(REGIONS[region])?;
        let life = door.life.clone();
        let asked = life.spawn(ask(door));
        timeout(OP_WITHIN * 5, asked).await.ok()?.ok()
    }
}

fn point(id: u64, value: u64) -> Point {
    let payload = [("v".to_owned(), json!(value))].into_iter().collect();
    let vectors = BTreeMap::from([(String::new(), Vector::Dense(vector_of(id, value).to_vec()))]);
    Point { id: PointId::Num(id), vectors, payload }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + OP_WITHIN
}

/// Writes wherever it is let; now and then again what it meant before, whatever became of that.
pub(crate) async fn write(stage: Arc<Stage>, mut rng: StdRng, writer: u64, pause_ms: u64) {
    let mut meant: Vec<(u64, Option<u64>)> = Vec::new();
    while !stage.over.load(Relaxed) {
        sleep(Duration::from_millis(rng.random_range(0..=pause_ms))).await;
        if stage.rest.load(Relaxed) {
            continue;
        }
        let region = rng.random_range(0..stage.regions);
        let again = !meant.is_empty() && rng.random_ratio(1, 6);
        let seq = if again { rng.random_range(0..meant.len()) } else { meant.len() };
        if !again {
            let value = (!rng.random_ratio(1, 5)).then(|| stage.next_value.fetch_add(1, Relaxed));
            meant.push((rng.random_range(0..KEYS), value));
        }
        let ((key, value), intent) = (meant[seq], (writer, seq as u64));
        let request = Some(RequestId { client: format!("writer{writer}"), seq: seq as u64 + 1 });
        if stage.ways.door(REGIONS[region]).is_none() {
            stage.told().refused += 1;
            continue;
        }
        stage.under_way.fetch_add(1, Relaxed);
        let asked = Instant::now();
        let answer = stage
            .ask(region, move |Door { regions, .. }| async move {
                let options = WriteOptions { wait: true, deadline: soon(), request, token: None };
                let cluster = regions.cluster();
                match value {
                    Some(value) => cluster.upsert(COLLECTION, vec![point(key, value)], &options).await,
                    None => {
                        let which = PointSelector::Ids(vec![PointId::Num(key)]);
                        cluster.delete_points(COLLECTION, which, &options).await
                    }
                }
            })
            .await;
        let mut told = stage.told();
        match answer {
            Some(Ok(written)) => {
                let (shard, position) = written.token.shards.iter().next().expect("one shard was written");
                let (shard, position, generation) = (*shard, *position, written.token.generation);
                let at = Instant::now();
                stage.trace.line(format_args!(
                    "{} took {key} {value:?} {generation:?} {shard} {position}",
                    REGIONS[region]
                ));
                told.acked.push(Acked {
                    region,
                    generation,
                    shard,
                    position,
                    key,
                    value,
                    intent,
                    again,
                    asked,
                    at,
                });
            }
            Some(Err(error)) if error.effect() == Effect::None => told.refused += 1,
            Some(Err(_)) | None => told.unknown.push(Unknown { region, key, value }),
        }
        drop(told);
        stage.under_way.fetch_sub(1, Relaxed);
    }
}

/// Reads at any region what its node has, and looks whether that is as old as it says at the most.
pub(crate) async fn read(stage: Arc<Stage>, mut rng: StdRng) {
    while !stage.over.load(Relaxed) {
        sleep(Duration::from_millis(rng.random_range(0..=400))).await;
        let (region, key) = (rng.random_range(0..stage.regions), rng.random_range(0..KEYS));
        let asked = Instant::now();
        let answer = stage
            .ask(region, move |Door { regions, .. }| async move {
                let local = Consistency::Local;
                let options = ReadOptions { consistency: local, ..ReadOptions::linearizable(soon()) };
                let ids = vec![PointId::Num(key)];
                regions.cluster().retrieve(COLLECTION, ids, whole(), &options).await
            })
            .await;
        let Some(Ok(seen)) = answer else { continue };
        let Some(as_of) = seen.age.and_then(|age| asked.checked_sub(age)) else { continue };
        let mut told = stage.told();
        let (mut younger, mut checked) = (None, 0);
        let known = |w: &&Acked| w.generation == seen.token.generation && w.at <= as_of;
        for write in told.acked.iter().rev().filter(known).take(RECENT) {
            let Some(shown) = seen.token.shards.get(&write.shard) else { continue };
            checked += 1;
            if write.position > *shown {
                younger = Some(format!(
                    "{write:?} was acknowledged before what {} shows at {shown}, age {:?}",
                    REGIONS[region], seen.age
                ));
            }
        }
        told.checked += checked;
        told.findings.extend(younger);
    }
}

pub(crate) fn whole() -> Projection {
    Projection { payload: PayloadSelector::All, vectors: VectorSelector::None }
}

/// A consumer of the change feed, wherever the home is.
#[derive(Default)]
pub(crate) struct Consumer {
    pub(crate) from: Option<From>,
    /// What the events come to.
    pub(crate) state: BTreeMap<u64, u64>,
    /// Values that came since it began.
    pub(crate) seen: BTreeSet<u64>,
    /// It may have had what the next home has not.
    pub(crate) ahead: bool,
    pub(crate) resumed: u64,
    pub(crate) expired: u64,
}

impl Consumer {
    /// Takes what there is in a region until that is quiet; `Err` if its token is no longer good there.
    pub(crate) async fn take(&mut self, stage: &Stage, region: usize) -> Result<bool, ()> {
        let Some(from) = self.from.clone() else { return Ok(false) };
        let answer = stage
            .ask(region, move |Door { regions, .. }| async move {
                let options = FeedOptions {
                    with_payload: true,
                    heartbeat: Duration::from_millis(100),
                    deadline: soon(),
                    ..FeedOptions::default()
                };
                let feed = changefeed::open(regions.cluster(), COLLECTION, from, options).await?;
                pin_mut!(feed);
                let (mut events, mut last) = (Vec::new(), Instant::now());
                while last.elapsed() < QUIET {
                    let Some(item) = feed.next().await else { break };
                    let event = item?;
                    if matches!(event, FeedEvent::Change(_)) {
                        last = Instant::now();
                    }
                    events.push(event);
                }
                Ok::<_, ClusterError>(events)
            })
            .await;
        match answer {
            Some(Ok(events)) => {
                self.resumed += 1;
                for event in events {
                    self.from = Some(From::Token(event.token().clone()));
                    let FeedEvent::Change(change) = event else { continue };
                    let PointId::Num(id) = change.id else { panic!("{} is none of ours", change.id) };
                    match change.op {
                        Op::Delete => drop(self.state.remove(&id)),
                        Op::Upsert { payload, .. } => {
                            let payload: Value =
                                serde_json::from_slice(payload.as_deref().unwrap_or_default()).expect("JSON");
                            let value = payload["v"].as_u64().expect("a number");
                            if !self.seen.insert(value) {
                                stage.find(format!("the feed has value {value} of point {id} twice"));
                            }
                            self.state.insert(id, value);
                        }
                    }
                }
                Ok(true)
            }
            Some(Err(ClusterError::TooOld { .. } | ClusterError::Expired(_))) => {
                self.expired += 1;
                self.from = None;
                Err(())
            }
            _ => Ok(false),
        }
    }

    /// Begins anew at what a region holds, which nobody changes meanwhile.
    pub(crate) async fn begin(&mut self, stage: &Stage, region: usize, held: &BTreeMap<u64, u64>) {
        self.state.clone_from(held);
        self.seen.clear();
        self.from = Some(From::Now);
        if self.take(stage, region).await != Ok(true) {
            self.from = None;
        }
    }
}
