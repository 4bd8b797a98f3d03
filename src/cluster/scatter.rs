//! The way of a read: cut by shard, each part read from some replica, the answers merged.
//!
//! Invariants: a shard that cannot be read fails the whole read and is named; everything a request reads from a
//! shard comes from one view of it; the token of an answer names no lower position than the request's did.
//! Reads are not atomic across shards (`docs/CONSISTENCY.md`).
//! Not here: which replica is read and what it must have applied (`read`).

use super::{
    Cluster, ClusterError, Consistency, ReadOptions, Result, Seen, ShardExplanation, ShardHash, Token,
    read::{Found, Freshness, Held, Part, ShardRead, ShardSearch, Wish},
    shards::{LiveCollection, LiveShard},
};
use crate::{
    model::{
        Distance, Filter, Invalid, PointId, Position, Projection, Record, Schema, ScoredPoint, ScrollPage,
        ScrollRequest, SearchRequest, ShardNumber, Target, Vector, VectorParams,
    },
    mutant::{self, Mutant},
    shard::ShardStats,
};
use futures::future::{join_all, try_join_all};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

impl Cluster {
    /// Reads points by id; those that are not there are left out; order as asked.
    pub async fn retrieve(
        &self,
        name: &str,
        ids: Vec<PointId>,
        projection: Projection,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<Record>>> {
        let mut reading = self.reading(name, options).await?;
        loop {
            match reading.end(name, reading.retrieve(&ids, &projection).await).await? {
                End::Read(seen) => return Ok(seen),
                End::Anew(next) => reading = next,
            }
        }
    }

    /// Reads points in the order of their ids.
    pub async fn scroll(
        &self,
        name: &str,
        request: ScrollRequest,
        options: &ReadOptions,
    ) -> Result<Seen<ScrollPage>> {
        let (mut reading, limit) = (self.reading(name, options).await?, request.limit);
        let read = Arc::new(ShardRead::Scroll(request));
        loop {
            match reading.end(name, reading.scroll(&read, limit).await).await? {
                End::Read(seen) => return Ok(seen),
                End::Anew(next) => reading = next,
            }
        }
    }

    /// Counts points that pass the filter.
    pub async fn count(
        &self,
        name: &str,
        filter: Option<Filter>,
        options: &ReadOptions,
    ) -> Result<Seen<u64>> {
        let mut reading = self.reading(name, options).await?;
        let read = Arc::new(ShardRead::Count(filter));
        loop {
            let counted = reading.every(&read, count).await.map(|counts| counts.into_iter().sum());
            match reading.end(name, counted).await? {
                End::Read(seen) => return Ok(seen),
                End::Anew(next) => reading = next,
            }
        }
    }

    /// Searches.
    ///
    /// Errors: a query vector that does not fit the schema, named `query` (no effect).
    pub async fn search(
        &self,
        name: &str,
        request: SearchRequest,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<ScoredPoint>>> {
        let found = self.searched(name, &[request], options).await.map_err(|(_, error)| error)?;
        let Seen { mut value, token, age, explained } = found;
        Ok(Seen { value: value.pop().unwrap_or_default(), token, age, explained })
    }

    /// Searches; one answer for each request, all at the same position of each shard.
    ///
    /// Errors: as [`Cluster::search`], named `searches[i].query`.
    pub async fn search_batch(
        &self,
        name: &str,
        requests: Vec<SearchRequest>,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<Vec<ScoredPoint>>>> {
        self.searched(name, &requests, options).await.map_err(|error| match error {
            (Some(i), ClusterError::Invalid(e)) => e.within(format_args!("searches[{i}]")).into(),
            (_, other) => other,
        })
    }

    async fn searched(
        &self,
        name: &str,
        requests: &[SearchRequest],
        options: &ReadOptions,
    ) -> std::result::Result<Seen<Vec<Vec<ScoredPoint>>>, InBatch> {
        let whole = |error| (None, error);
        let mut reading = self.reading(name, options).await.map_err(whole)?;
        loop {
            let (about, found) = match reading.search(requests).await {
                Ok(found) => (None, Ok(found)),
                Err((about, error)) => (about, Err(error)),
            };
            match reading.end(name, found).await.map_err(|error| (about, error))? {
                End::Read(seen) => return Ok(seen),
                End::Anew(next) => reading = next,
            }
        }
    }

    async fn reading(&self, name: &str, options: &ReadOptions) -> Result<Reading> {
        Ok(Reading::new(self, self.lookup(name, options.deadline).await?, options))
    }

    /// Figures of every shard, each at least as new as this call.
    pub(super) async fn shard_stats(
        &self,
        collection: &LiveCollection,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<ShardStats>>> {
        let reading = Reading::new(self, collection.clone(), options);
        let stats = reading.every(&Arc::new(ShardRead::Stats), stats).await?;
        Ok(reading.seen(stats))
    }

    /// The hash of each shard's state, on every replica that answers in time.
    ///
    /// Without `at`: at one position of each shard that is at least as new as this call, if the shard stands still
    /// there; else at its last mark. With `at`: at the last mark at or below the position that the token names
    /// (position 0 and no replicas, if there is none). `scrub`: computed again from every record in the store; a
    /// replica whose store does not add up says so in the place of its hash.
    pub async fn state_hash(
        &self,
        name: &str,
        at: Option<&Token>,
        scrub: bool,
        options: &ReadOptions,
    ) -> Result<Vec<ShardHash>> {
        let mut reading = self.reading(name, options).await?;
        loop {
            let shards = &reading.collection.shards;
            let hashes = try_join_all(shards.iter().map(|shard| reading.hash(shard, at, scrub))).await;
            match reading.end(name, hashes).await? {
                End::Read(seen) => return Ok(seen.value),
                End::Anew(next) => reading = next,
            }
        }
    }
}

/// How a look at a collection ended.
enum End<T> {
    Read(Seen<T>),
    /// The collection was dropped, and its name is another one's by now.
    Anew(Reading),
}

/// One request that reads a collection.
struct Reading {
    cluster: Cluster,
    collection: LiveCollection,
    options: ReadOptions,
    /// What was seen, by shard.
    seen: Mutex<BTreeMap<ShardNumber, (Position, Option<Duration>)>>,
    /// What searches did, by shard.
    explained: Mutex<BTreeMap<ShardNumber, ShardExplanation>>,
}

/// Which request of a batch an error is about, if it is about one.
type InBatch = (Option<usize>, ClusterError);

impl Reading {
    fn new(cluster: &Cluster, collection: LiveCollection, options: &ReadOptions) -> Self {
        let (cluster, options) = (cluster.clone(), options.clone());
        Reading { cluster, collection, options, seen: Mutex::default(), explained: Mutex::default() }
    }

    fn wish(&self, shard: ShardNumber, read: Arc<ShardRead>, keep: bool) -> Wish {
        let id = self.collection.record.id;
        let token = self.options.at_least.as_ref().filter(|token| token.collection == id);
        let at_least = token.and_then(|token| token.shards.get(&shard)).copied();
        let lags = mutant::is(Mutant::IndexLagNoWait) && matches!(*read, ShardRead::Search(..));
        let consistency = if lags { Consistency::Local } else { self.options.consistency };
        let home = Some(self.collection.record.generation());
        let fresh = Freshness { consistency, at_least, of: token.map(|token| token.generation), home };
        Wish { collection: id, read, fresh, keep, deadline: self.options.deadline }
    }

    /// Reads one shard.
    async fn part(&self, shard: ShardNumber, read: Arc<ShardRead>, keep: bool) -> Result<Part> {
        let live = &self.collection.shards[shard.0 as usize];
        let part = self.cluster.read_shard(live, &self.wish(shard, read, keep)).await?;
        self.note(shard, &part);
        Ok(part)
    }

    /// What is to be done about an answer.
    async fn end<T>(&self, name: &str, read: Result<T>) -> Result<End<T>> {
        match read {
            Ok(value) => Ok(End::Read(self.seen(value))),
            Err(ClusterError::Gone(id)) => {
                let next = self.cluster.lookup_after(name, id, self.options.deadline).await?;
                Ok(End::Anew(Reading::new(&self.cluster, next, &self.options)))
            }
            Err(error) => Err(error),
        }
    }

    async fn retrieve(&self, ids: &[PointId], projection: &Projection) -> Result<Vec<Record>> {
        let mut by_shard: BTreeMap<ShardNumber, Vec<PointId>> = BTreeMap::new();
        for id in ids {
            by_shard.entry(self.collection.shard_of(*id)).or_default().push(*id);
        }
        let gets = by_shard.into_iter().map(|(shard, ids)| {
            let get = Arc::new(ShardRead::Get { ids, projection: projection.clone() });
            async move { self.shard(shard, get).await.and_then(records) }
        });
        let found: BTreeMap<PointId, Record> =
            try_join_all(gets).await?.into_iter().flatten().map(|r| (r.id, r)).collect();
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    async fn scroll(&self, read: &Arc<ShardRead>, limit: usize) -> Result<ScrollPage> {
        let pages = self.every(read, page).await?;
        let mut next: Vec<PointId> = pages.iter().filter_map(|p| p.next).collect();
        let mut points: Vec<Record> = pages.into_iter().flat_map(|p| p.points).collect();
        points.sort_by_key(|r| r.id);
        next.extend(points.get(limit).map(|r| r.id));
        points.truncate(limit);
        Ok(ScrollPage { points, next: next.into_iter().min() })
    }

    async fn shard(&self, shard: ShardNumber, read: Arc<ShardRead>) -> Result<Found> {
        Ok(self.part(shard, read, false).await?.found)
    }

    /// Reads the same of every shard; in the order of shards.
    async fn every<T>(&self, read: &Arc<ShardRead>, what: fn(Found) -> Result<T>) -> Result<Vec<T>> {
        let shards = self.collection.shards.iter();
        try_join_all(shards.map(async |s| self.shard(s.number, read.clone()).await.and_then(what))).await
    }

    fn note(&self, shard: ShardNumber, part: &Part) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(shard).or_insert((part.position, part.age));
        // An unknown age is that of the whole answer.
        *known = (part.position, known.1.zip(part.age).map(|(a, b)| a.max(b)));
    }

    fn seen<T>(&self, value: T) -> Seen<T> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let shards = seen.iter().map(|(shard, (position, _))| (*shard, *position)).collect();
        let record = &self.collection.record;
        let mut token = Token { collection: record.id, generation: record.generation(), shards };
        self.options.at_least.iter().for_each(|given| token.join(given));
        let explained = self.explained.lock().unwrap_or_else(PoisonError::into_inner);
        Seen {
            value,
            token,
            age: seen
                .values()
                .map(|(_, age)| *age)
                .collect::<Option<Vec<_>>>()
                .and_then(|ages| ages.into_iter().max()),
            explained: self.options.explain.then(|| explained.values().cloned().collect()),
        }
    }

    /// The hits of a part; what else it tells is kept.
    fn hits(&self, shard: ShardNumber, part: Part) -> Result<Vec<Vec<ScoredPoint>>> {
        let (hits, searches) = match part.found {
            Found::Hits(hits) => (hits, Vec::new()),
            Found::Explained(explained) => explained.into_iter().unzip(),
            _ => return Err(other_kind()),
        };
        if self.options.explain {
            let node = self.cluster.inner.router.calls.node_of(part.replica);
            let told = ShardExplanation { shard, node, position: part.position, searches };
            self.explained.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, told);
        }
        Ok(hits)
    }

    // --- searches ---

    /// Runs searches; one answer each.
    ///
    /// The vectors of points that are searched for are read first, and the views they came from are kept and
    /// searched.
    async fn search(
        &self,
        requests: &[SearchRequest],
    ) -> std::result::Result<Vec<Vec<ScoredPoint>>, InBatch> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut searches = self.planned(requests)?;
        loop {
            let held = self.resolve(requests, &mut searches).await?;
            match self.search_every(requests, &searches, held).await {
                // A view that was kept is gone, with its replica: all anew.
                Err(ClusterError::Unavailable(why))
                    if why == LOST_VIEW && Instant::now() < self.options.deadline => {}
                done => return done.map_err(|error| (None, error)),
            }
        }
    }

    /// What every shard is to search for, but for the vectors of points.
    fn planned(&self, requests: &[SearchRequest]) -> std::result::Result<Vec<ShardSearch>, InBatch> {
        let plan = |(i, request): (usize, &SearchRequest)| {
            let mut request = request.clone();
            let checked = match &mut request.target {
                Target::All => Ok(()),
                Target::NearestTo(_) => self.params(&request.using).map(|_| ()),
                Target::Nearest(vector) => self
                    .params(&request.using)
                    .and_then(|params| params.admit(vector).map_err(|e| Invalid::new("query", e.why).into())),
            };
            // A shard cannot know which of its hits the others push out: each gives its first offset + limit.
            request.limit = request.offset.saturating_add(request.limit);
            request.offset = 0;
            checked.map_err(|error| (Some(i), error))?;
            Ok(ShardSearch { request, exclude: None, explain: self.options.explain })
        };
        requests.iter().enumerate().map(plan).collect()
    }

    /// Puts the vectors of points in the place of their ids; gives the views they were read from.
    async fn resolve(
        &self,
        requests: &[SearchRequest],
        searches: &mut [ShardSearch],
    ) -> std::result::Result<BTreeMap<ShardNumber, Held>, InBatch> {
        let mut wanted: BTreeMap<ShardNumber, Vec<(usize, PointId, String)>> = BTreeMap::new();
        for (i, request) in requests.iter().enumerate() {
            if let Target::NearestTo(id) = request.target {
                let shard = self.collection.shard_of(id);
                wanted.entry(shard).or_default().push((i, id, request.using.clone()));
            }
        }
        let reads = wanted.iter().map(async |(shard, wanted)| {
            let vectors = wanted.iter().map(|(_, id, name)| (*id, name.clone())).collect();
            let part = self.part(*shard, Arc::new(ShardRead::Vectors(vectors)), true).await?;
            Ok((*shard, part))
        });
        let mut held = BTreeMap::new();
        for (shard, part) in try_join_all(reads).await.map_err(|error| (None, error))? {
            let found = vectors(part.found).map_err(|error| (None, error))?;
            for ((i, id, _), vector) in wanted[&shard].iter().zip(found) {
                let Some(Vector::Dense(values)) = vector else {
                    return Err((Some(*i), ClusterError::NoPoint(*id)));
                };
                searches[*i].request.target = Target::Nearest(values);
                searches[*i].exclude = Some(*id);
            }
            held.extend(part.held.map(|held| (shard, held)));
        }
        Ok(held)
    }

    async fn search_every(
        &self,
        requests: &[SearchRequest],
        searches: &[ShardSearch],
        held: BTreeMap<ShardNumber, Held>,
    ) -> Result<Vec<Vec<ScoredPoint>>> {
        let read = Arc::new(ShardRead::Search(searches.to_vec()));
        let parts = self.collection.shards.iter().map(async |shard| {
            let part = match held.get(&shard.number) {
                None => self.part(shard.number, read.clone(), false).await,
                Some(held) => {
                    let wish = self.wish(shard.number, read.clone(), false);
                    let part = self.cluster.read_held(held.clone(), &wish).await;
                    let lost = |e: ClusterError| match e.may_pass() {
                        true => ClusterError::Unavailable(LOST_VIEW.to_owned()),
                        false => e,
                    };
                    part.map_err(lost)
                }
            };
            let hits = self.hits(shard.number, part?)?;
            match hits.len() == requests.len() {
                true => Ok(hits),
                false => Err(other_kind()),
            }
        });
        let mut parts = try_join_all(parts).await?;
        let answers = requests.iter().enumerate().map(|(i, request)| {
            let order = match request.target {
                Target::All => None,
                _ => Some(self.params(&request.using)?.distance),
            };
            let mut hits: Vec<ScoredPoint> =
                parts.iter_mut().flat_map(|part| std::mem::take(&mut part[i])).collect();
            sort(&mut hits, order);
            Ok(hits.into_iter().skip(request.offset).take(request.limit).collect())
        });
        answers.collect()
    }

    fn params(&self, using: &str) -> Result<&VectorParams> {
        dense(&self.collection.record.schema, using)
    }

    // --- hashes ---

    async fn hash(&self, shard: &LiveShard, at: Option<&Token>, scrub: bool) -> Result<ShardHash> {
        let id = self.collection.record.id;
        if let Some(token) = at {
            let named = token.shards.get(&shard.number).filter(|_| token.collection == id);
            return Ok(self.hashes_at(shard, named.copied().unwrap_or(Position(0))).await);
        }
        let now = self.part(shard.number, Arc::new(ShardRead::Hash { scrub: false }), false).await?.position;
        for _ in 0..HASH_TRIES {
            let hashes = self.hashes(shard, ShardRead::Hash { scrub }, now).await;
            let Some(position) = hashes.iter().map(|(_, position, _)| *position).max() else { continue };
            let damaged = |hash: &str| hash.starts_with(DAMAGED);
            if hashes.iter().all(|(_, at, hash)| *at == position || damaged(hash)) {
                let replicas = hashes.into_iter().map(|(node, _, hash)| (node, hash)).collect();
                return Ok(ShardHash { shard: shard.number.0, position, replicas });
            }
        }
        // It does not stand still.
        Ok(self.hashes_at(shard, now).await)
    }

    /// The hashes at the last mark that lies at or below a position.
    async fn hashes_at(&self, shard: &LiveShard, position: Position) -> ShardHash {
        let hashes = self.hashes(shard, ShardRead::HashAt(position), position).await;
        let position = hashes.iter().map(|(_, position, _)| *position).max().unwrap_or(Position(0));
        let replicas = hashes.into_iter().filter(|(_, at, _)| *at == position);
        let replicas = replicas.map(|(node, _, hash)| (node, hash)).collect();
        ShardHash { shard: shard.number.0, position, replicas }
    }

    /// What each replica says, once it has applied a position; those that do not answer in time are left out.
    async fn hashes(
        &self,
        shard: &LiveShard,
        read: ShardRead,
        from: Position,
    ) -> Vec<(String, Position, String)> {
        let scrub = matches!(read, ShardRead::Hash { scrub: true });
        let within = if scrub { self.options.deadline } else { Instant::now() + HASH_WITHIN };
        let fresh = Freshness {
            consistency: super::Consistency::AtLeast,
            at_least: Some(from),
            of: None,
            home: None,
        };
        let deadline = within.min(self.options.deadline);
        let wish = Wish { fresh, deadline, ..self.wish(shard.number, Arc::new(read), false) };
        let seats = self.cluster.inner.router.calls.seats(shard.group().group);
        let asks = seats.iter().map(async |seat| {
            let part =
                tokio::time::timeout_at(deadline, self.cluster.read_replica(seat.replica, &wish)).await;
            match part.ok()? {
                Ok(Part { found: Found::Hash(Some((position, hash))), .. }) => {
                    Some((seat.node.clone(), position, hash))
                }
                Err(ClusterError::Internal { message, corrupt: true, .. }) => {
                    Some((seat.node.clone(), Position(0), format!("{DAMAGED}: {message}")))
                }
                _ => None,
            }
        });
        join_all(asks).await.into_iter().flatten().collect()
    }
}

/// How often the replicas of a shard are asked for their hash at one position.
const HASH_TRIES: usize = 3;
/// How long a replica may take to say its hash.
const HASH_WITHIN: Duration = Duration::from_secs(5);
/// Begins what is said in the place of a hash.
const DAMAGED: &str = "damaged";
/// A view that was kept for the second part of a search cannot be had any more.
const LOST_VIEW: &str = "a view was lost half-way through a search";

fn records(found: Found) -> Result<Vec<Record>> {
    if let Found::Records(records) = found { Ok(records) } else { Err(other_kind()) }
}

fn page(found: Found) -> Result<ScrollPage> {
    if let Found::Page(page) = found { Ok(page) } else { Err(other_kind()) }
}

fn count(found: Found) -> Result<u64> {
    if let Found::Count(count) = found { Ok(count) } else { Err(other_kind()) }
}

fn vectors(found: Found) -> Result<Vec<Option<Vector>>> {
    if let Found::Vectors(vectors) = found { Ok(vectors) } else { Err(other_kind()) }
}

fn stats(found: Found) -> Result<ShardStats> {
    if let Found::Stats(stats) = found { Ok(*stats) } else { Err(other_kind()) }
}

fn other_kind() -> ClusterError {
    super::internal("a replica answered something else than it was asked".to_owned()).of_read()
}

fn dense<'a>(schema: &'a Schema, using: &str) -> Result<&'a VectorParams> {
    schema.vectors.get(using).ok_or_else(|| {
        if schema.sparse.contains_key(using) {
            return ClusterError::Unimplemented(format!("search over the sparse vector {using}"));
        }
        let name = if using.is_empty() { "(default)" } else { using };
        Invalid::new("using", format!("Not existing vector name error: {name}")).into()
    })
}

/// Nearest first; of the same score, the smaller id first. Without a distance, by id.
fn sort(hits: &mut [ScoredPoint], order: Option<Distance>) {
    hits.sort_by(|a, b| {
        let nearer = match order {
            None => std::cmp::Ordering::Equal,
            Some(d) if d.larger_is_nearer() => b.score.total_cmp(&a.score),
            Some(_) => a.score.total_cmp(&b.score),
        };
        nearer.then(a.id.cmp(&b.id))
    });
}
