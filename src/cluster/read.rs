//! One shard's part of a read: which replica is asked, what it must have applied, and the one function that reads.
//!
//! ```text
//! here, if a replica is open -- else the leader's node -- else any that votes
//!      | not reached, stuck or failed: the next one; slow: the next one too, and the first answer counts
//!      v
//! position to see (ReadIndex | token | bound | none) -> one view -> `execute`, on the search pool unless it is quick
//! ```
//!
//! Invariants: [`execute`] alone reads a shard, for callers here and elsewhere; everything a request reads from a
//! shard comes from one view (a second look at it names the view of the first, which is kept for that long); a read
//! fails only after its deadline, or where every replica says the same.
//! The age of a view is measured with this node's monotonic clock alone: what the leader had committed when it was
//! asked at time t is applied, so the view is not older than t.
//! Not here: which shards, and merging what they answer (`scatter`).
//! Source: ReadIndex (Ongaro 2014, section 6.4); hedged requests (Dean and Barroso, The Tail at Scale, 2013).

use super::{
    Cluster, ClusterError, Consistency, Result,
    catalog::Phase,
    peers::within,
    regions::{AgeFrom, age_counts_from, known_here},
    router::jittered,
    shards::{LiveShard, LocalShard},
};
use crate::{
    machine::MachineError,
    model::{
        Body, CollectionId, Command, Counting, Duty, Epoch, Explanation, Filter, Generation, Homes, PointId,
        Position, Projection, Record, ReplicaId, ScoredPoint, ScrollPage, ScrollRequest, SearchRequest,
        Vector, region::Seed,
    },
    mutant::{self, Mutant},
    replica::ReadIndex,
    shard::{ReadView, SeedCursor, Shard, ShardStats},
    world,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// What is read of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ShardRead {
    /// Points by id.
    Get { ids: Vec<PointId>, projection: Projection },
    /// Points in the order of their ids.
    Scroll(ScrollRequest),
    /// How many points pass.
    Count(Option<Filter>),
    /// Searches, all on one view. The targets are vectors, or none.
    Search(Vec<ShardSearch>),
    /// Vectors of points, by id and name.
    Vectors(Vec<(PointId, String)>),
    /// Figures.
    Stats,
    /// The hash of the state: the rolling one, or computed from the store.
    Hash { scrub: bool },
    /// The hash that was recorded at the last mark at or below a position.
    HashAt(Position),
    /// How the shard counts.
    Standing,
    /// A step of a copy, of about so many bytes.
    Seed { cursor: SeedCursor, bytes_max: usize },
}

impl ShardRead {
    /// Whether it tells of points, so that only a home can say what they are now.
    fn is_of_points(&self) -> bool {
        use ShardRead::{Count, Get, Scroll, Search, Vectors};
        matches!(self, Get { .. } | Scroll(_) | Count(_) | Search(_) | Vectors(_))
    }
}

/// A search on one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ShardSearch {
    pub(super) request: SearchRequest,
    /// The point whose vector is searched for: not an answer itself.
    pub(super) exclude: Option<PointId>,
    /// Whether to tell what the search did.
    #[serde(default, skip_serializing_if = "is_not")]
    pub(super) explain: bool,
}

fn is_not(wish: &bool) -> bool {
    !wish
}

/// What was read, by the kind of read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Found {
    /// To [`ShardRead::Get`].
    Records(Vec<Record>),
    /// To [`ShardRead::Scroll`].
    Page(ScrollPage),
    /// To [`ShardRead::Count`].
    Count(u64),
    /// To [`ShardRead::Search`], in order.
    Hits(Vec<Vec<ScoredPoint>>),
    /// The same, with what each search did: where one of them is to be explained.
    Explained(Vec<(Vec<ScoredPoint>, Explanation)>),
    /// To [`ShardRead::Vectors`], in order.
    Vectors(Vec<Option<Vector>>),
    /// To [`ShardRead::Stats`].
    Stats(Box<ShardStats>),
    /// To [`ShardRead::Hash`] and [`ShardRead::HashAt`]: the position it belongs to, and 32 hexadecimal digits;
    /// none if no mark was recorded.
    Hash(Option<(Position, String)>),
    /// To [`ShardRead::Standing`].
    Standing(ShardStanding),
    /// To [`ShardRead::Seed`]: the step, as a command, and where the next one begins.
    Seed(Vec<u8>, Option<SeedCursor>),
}

/// How a shard counts commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardStanding {
    /// Its last position.
    pub position: Position,
    /// The homes it counts in, after the first.
    pub homes: Homes,
    /// What it does with commands.
    pub duty: Duty,
    /// Whether a copy of its home is being made.
    pub seeding: bool,
    /// Whether its collection is dropped at the home.
    pub retired: bool,
}

/// Runs a read on a view. This is the only place that does; it computes and reads files.
pub(super) fn execute(
    shard: &Shard,
    view: &ReadView,
    read: &ShardRead,
) -> std::result::Result<Found, MachineError> {
    let hex = |(position, hash): (Position, u128)| Some((position, format!("{hash:032x}")));
    Ok(match read {
        ShardRead::Get { ids, projection } => Found::Records(view.get(ids, projection)?),
        ShardRead::Scroll(request) => Found::Page(view.scroll(request)?),
        ShardRead::Count(filter) => Found::Count(view.count(filter.as_ref())?),
        ShardRead::Search(searches) => {
            shard.note_search();
            if searches.iter().any(|search| search.explain) {
                let explained = searches.par_iter().map(|search| explained(view, search));
                return Ok(Found::Explained(explained.collect::<std::result::Result<_, _>>()?));
            }
            let search = |search: &ShardSearch| view.search(&search.request, search.exclude, None);
            Found::Hits(searches.par_iter().map(search).collect::<std::result::Result<_, _>>()?)
        }
        ShardRead::Vectors(wanted) => {
            let vector = |(id, name): &(PointId, String)| view.vector(*id, name);
            Found::Vectors(wanted.iter().map(vector).collect::<std::result::Result<_, _>>()?)
        }
        ShardRead::Stats => Found::Stats(Box::new(shard.stats())),
        ShardRead::Hash { scrub: false } => Found::Hash(hex(shard.state_hash()?)),
        ShardRead::Hash { scrub: true } => Found::Hash(hex(shard.scrub()?)),
        ShardRead::HashAt(position) => {
            let mark = Position(position.0.min(view.position().0) / HASH_EVERY * HASH_EVERY);
            Found::Hash(shard.state_hash_at(mark)?.and_then(|hash| hex((mark, hash))))
        }
        ShardRead::Standing => {
            let Counting { position, homes, duty, seeding } = view.counting()?;
            let retired = view.retired();
            Found::Standing(ShardStanding { position, homes, duty, seeding: seeding != 0, retired })
        }
        ShardRead::Seed { cursor, bytes_max } => {
            let (step, next) = view.seed(cursor, *bytes_max)?;
            Found::Seed(seed_command(step).encode().to_vec(), next)
        }
    })
}

/// A step as it travels: who takes it in gives it its place.
fn seed_command(step: Seed) -> Command {
    let (collection, epoch, born) = (CollectionId(0), Epoch(0), Position(0));
    let body = Body::Seed { attempt: 0, step };
    Command { collection, schema_version: 0, epoch, request: None, born, body }
}

/// Whether a read is over sooner than another thread could take it.
fn is_quick(view: &ReadView, read: &ShardRead) -> bool {
    matches!(read, ShardRead::Search(searches)
        if matches!(&searches[..], [search] if !search.explain && view.is_quick(&search.request)))
}

fn explained(
    view: &ReadView,
    search: &ShardSearch,
) -> std::result::Result<(Vec<ScoredPoint>, Explanation), MachineError> {
    let (began, mut explanation) = (Instant::now(), Explanation::default());
    let hits = view.search(&search.request, search.exclude, Some(&mut explanation))?;
    explanation.micros = began.elapsed().as_micros() as u64;
    Ok((hits, explanation))
}

/// Positions between two recorded hashes, see `Shard::state_hash_at`.
const HASH_EVERY: u64 = 4_096;

/// How new the view of a shard must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Freshness {
    pub(super) consistency: Consistency,
    /// And at least at this position.
    pub(super) at_least: Option<Position>,
    /// The home that the position counts in.
    #[serde(default)]
    pub(super) of: Option<Generation>,
    /// The home that the answer's age counts from, as whoever reads knows it; none: the shard's own.
    #[serde(default)]
    pub(super) home: Option<Generation>,
}

/// A read of one replica, as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ReadAsk {
    pub(super) replica: ReplicaId,
    pub(super) collection: CollectionId,
    pub(super) fresh: Freshness,
    pub(super) read: Arc<ShardRead>,
    /// The view of an earlier read.
    pub(super) view: Option<u64>,
    /// Whether the view is to be kept for a later read.
    pub(super) keep: bool,
    pub(super) within_ms: u64,
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Of the view.
    pub(super) position: Position,
    /// How old the view may be; none if it is linearizable, or nothing is known.
    pub(super) age: Option<Duration>,
    /// By which the view is asked for again.
    pub(super) kept: Option<u64>,
    pub(super) found: Found,
}

/// What [`ReadAsk`] is answered with.
pub(super) type ReadAnswer = Result<Seen>;

/// A view that is kept for a second look.
#[derive(Clone)]
pub(super) enum Held {
    Here(Arc<LocalShard>, Arc<ReadView>),
    There(ReplicaId, u64),
}

/// One shard's part of a request.
pub(super) struct Part {
    /// Who answered.
    pub(super) replica: ReplicaId,
    pub(super) position: Position,
    pub(super) age: Option<Duration>,
    pub(super) found: Found,
    pub(super) held: Option<Held>,
}

/// How long a replica may take before another one is asked too.
const HEDGE_AFTER: Duration = Duration::from_millis(50);
/// How long it may take before that is taken for a sign that it stands still: then another one is asked whatever
/// that costs, and first for a while.
const SLOW_AFTER: Duration = Duration::from_millis(300);
const SUSPECT_FOR: Duration = Duration::from_secs(1);
/// Reads for each hedge that may be sent, and how many may be saved up.
const READS_PER_HEDGE: i64 = 10;
const HEDGES_MAX: i64 = 20;
/// How long all are given to recover once each of them has failed.
const ROUND_PAUSE: Duration = Duration::from_millis(40);

/// What this node remembers between reads.
#[derive(Default)]
pub(super) struct Reads {
    ages: Mutex<HashMap<ReplicaId, VecDeque<Asked>>>,
    kept: Mutex<HashMap<u64, Arc<ReadView>>>,
    names: AtomicU64,
    /// Reads since the last hedge.
    spare: AtomicI64,
    /// Replicas that seem to stand still, and until when they are asked last.
    suspects: Mutex<HashMap<ReplicaId, Instant>>,
    /// Replicas of which the age is being asked.
    learning: Mutex<BTreeSet<ReplicaId>>,
}

/// What a read had to wait for when the leader was asked.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    index: ReadIndex,
}

/// Questions remembered for each replica, and how far apart.
const ASKED_MAX: usize = 64;
const ASKED_EVERY: Duration = Duration::from_millis(5);

impl Reads {
    fn note(&self, replica: ReplicaId, asked: Asked) {
        let mut ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
        let ages = ages.entry(replica).or_default();
        if ages.back().is_none_or(|last| asked.at >= last.at + ASKED_EVERY) {
            ages.push_back(asked);
        }
        if ages.len() > ASKED_MAX {
            ages.pop_front();
        }
    }

    /// The last question whose answer is applied.
    async fn newest_applied(&self, local: &LocalShard) -> Option<Instant> {
        let asked: Vec<Asked> = {
            let ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
            ages.get(&local.id)?.iter().rev().copied().collect()
        };
        for asked in asked {
            // Answered at once: the deadline has passed.
            if local.replica.wait_applied(asked.index, Instant::now()).await.is_ok() {
                return Some(asked.at);
            }
        }
        None
    }

    /// Keeps a view under a name until a time.
    fn keep(self: &Arc<Self>, view: Arc<ReadView>, until: Instant) -> u64 {
        let name = self.names.fetch_add(1, Ordering::Relaxed);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name, view);
        let reads = self.clone();
        world::spawn(async move {
            sleep_until(until).await;
            reads.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        });
        name
    }

    fn take(&self, name: u64) -> Result<Arc<ReadView>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        kept.ok_or_else(|| ClusterError::Unavailable("the view is no longer kept".to_owned()))
    }

    fn suspect(&self, replicas: &BTreeSet<ReplicaId>) {
        let (now, mut suspects) =
            (Instant::now(), self.suspects.lock().unwrap_or_else(PoisonError::into_inner));
        suspects.retain(|_, until| *until > now);
        suspects.extend(replicas.iter().map(|replica| (*replica, now + SUSPECT_FOR)));
    }

    fn is_suspect(&self, replica: ReplicaId) -> bool {
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(&replica).is_some_and(|until| *until > Instant::now())
    }

    /// Earns a part of a hedge.
    fn earn(&self) {
        let limit = HEDGES_MAX * READS_PER_HEDGE;
        let _ =
            self.spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |s| (s < limit).then_some(s + 1));
    }

    /// Spends a hedge, if there is one.
    fn hedge(&self) -> bool {
        let spend = |spare| (spare >= READS_PER_HEDGE).then_some(spare - READS_PER_HEDGE);
        self.spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

/// A replica that may be read.
#[derive(Clone)]
enum Choice {
    Here(Arc<LocalShard>),
    There(ReplicaId),
}

impl Choice {
    fn replica(&self) -> ReplicaId {
        match self {
            Choice::Here(local) => local.id,
            Choice::There(replica) => *replica,
        }
    }
}

/// How one part of a request is read.
#[derive(Clone)]
pub(super) struct Wish {
    pub(super) collection: CollectionId,
    pub(super) read: Arc<ShardRead>,
    pub(super) fresh: Freshness,
    pub(super) keep: bool,
    pub(super) deadline: Instant,
}

type Attempt = BoxFuture<'static, (ReplicaId, Result<Part>)>;

impl Cluster {
    /// Reads one shard, from whichever replica answers.
    ///
    /// Errors: what a view says of the request; `Gone`; else the shard is named.
    pub(super) async fn read_shard(&self, shard: &LiveShard, wish: &Wish) -> Result<Part> {
        let (group, reads) = (shard.group().group, &self.inner.reads);
        reads.earn();
        let mut running: FuturesUnordered<Attempt> = FuturesUnordered::new();
        let mut under_way = BTreeSet::new();
        let mut failures = Failures::default();
        let mut round = self.choices(group);
        let here = round.iter().find(|choice| matches!(choice, Choice::Here(_))).map(Choice::replica);
        // Whether the replica here is past waiting: then only the work itself takes its time.
        let viewed = Arc::new(AtomicBool::new(false));
        // Attempts that are to be made in the place of those that failed.
        let mut owed = 1;
        let mut since = Instant::now();
        let mut next = since;
        loop {
            let now = Instant::now();
            if now >= next {
                let working =
                    here.is_some_and(|here| under_way.contains(&here)) && viewed.load(Ordering::Relaxed);
                let waits_here = under_way.iter().all(|replica| Some(*replica) == here);
                let stuck = owed == 0 && !working && (waits_here || now - since >= SLOW_AFTER);
                let hedge = || !working && !round.is_empty() && (stuck || reads.hedge());
                if round.is_empty() && self.inner.router.is_gone(group) {
                    return Err(ClusterError::Gone(wish.collection));
                }
                if owed == 0 && !hedge() {
                    next = now + HEDGE_AFTER;
                    continue;
                }
                match round.pop_front() {
                    Some(choice) if !under_way.contains(&choice.replica()) => {
                        if stuck {
                            reads.suspect(&under_way);
                        }
                        under_way.insert(choice.replica());
                        running.push(self.attempt(choice, wish.clone(), viewed.clone()));
                        owed = owed.max(1) - 1;
                        (since, next) = (now, now + HEDGE_AFTER);
                    }
                    Some(_) => {}
                    None => {
                        round = self.choices(group);
                        next = now + jittered(ROUND_PAUSE);
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                Some((replica, done)) = running.next(), if !running.is_empty() => match done {
                    Ok(part) => return Ok(part),
                    Err(error) if !error.may_pass() => return Err(error),
                    Err(error) => {
                        under_way.remove(&replica);
                        if failures.note(error) && running.is_empty() && round.is_empty() {
                            return Err(failures.last(shard));
                        }
                        owed += 1;
                        next = if round.is_empty() { now + jittered(ROUND_PAUSE) } else { now };
                    }
                },
                () = sleep_until(wish.deadline) => return Err(failures.last(shard)),
                () = sleep_until(next) => {}
            }
        }
    }

    /// Looks again at a view that was held.
    ///
    /// Errors: `Unavailable` if it is gone: the request starts anew.
    pub(super) async fn read_held(&self, held: Held, wish: &Wish) -> Result<Part> {
        match held {
            Held::Here(local, view) => {
                let found = self.carry_out(&local, view.clone(), wish.read.clone()).await?;
                let (replica, position) = (local.id, view.position());
                let held = wish.keep.then(|| Held::Here(local, view));
                Ok(Part { replica, position, age: None, found, held })
            }
            Held::There(replica, name) => self.read_there(replica, Some(name), wish).await,
        }
    }

    /// Reads one replica of a shard and no other.
    pub(super) async fn read_replica(&self, replica: ReplicaId, wish: &Wish) -> Result<Part> {
        match self.held(replica) {
            Some(local) => self.read_here(local, wish, &AtomicBool::new(false)).await,
            None => self.read_there(replica, None, wish).await,
        }
    }

    /// The replicas of a group that may be read, the best first.
    fn choices(&self, group: u32) -> VecDeque<Choice> {
        let router = &self.inner.router;
        let seats = router.calls.seats(group);
        let phase = |replica| seats.iter().find(|seat| seat.replica == replica).map(|seat| seat.phase);
        // One that leaves is perhaps out already and hears of nobody, one that is not seated certainly.
        let here = self.replica_here(group).filter(|local| phase(local.id) == Some(Phase::Voter));
        let leader = match &here {
            Some(local) => local.replica.leadership().borrow().leader,
            None => router.believed_leader(group),
        };
        let here_is = here.as_ref().map(|local| local.id);
        let mut others: Vec<ReplicaId> = seats
            .iter()
            .filter(|seat| matches!(seat.phase, Phase::Voter | Phase::Leaving))
            .map(|seat| seat.replica)
            .filter(|replica| Some(*replica) != here_is)
            .collect();
        let turn = self.inner.reads.names.fetch_add(1, Ordering::Relaxed) as usize;
        if !others.is_empty() {
            let by = turn % others.len();
            others.rotate_left(by);
        }
        others.sort_by_key(|replica| (phase(*replica) == Some(Phase::Leaving), Some(*replica) != leader));
        let others = others.into_iter().map(Choice::There);
        let mut choices: Vec<Choice> = here.into_iter().map(Choice::Here).chain(others).collect();
        choices.sort_by_key(|choice| self.inner.reads.is_suspect(choice.replica()));
        choices.into()
    }

    fn attempt(&self, choice: Choice, wish: Wish, viewed: Arc<AtomicBool>) -> Attempt {
        let (cluster, replica) = (self.clone(), choice.replica());
        Box::pin(async move {
            let done = match choice {
                Choice::Here(local) => cluster.read_here(local, &wish, &viewed).await,
                Choice::There(replica) => cluster.read_there(replica, None, &wish).await,
            };
            (replica, done)
        })
    }

    async fn read_here(&self, local: Arc<LocalShard>, wish: &Wish, viewed: &AtomicBool) -> Result<Part> {
        let (view, age) = self.view(&local, wish).await?;
        viewed.store(true, Ordering::Relaxed);
        let found = self.carry_out(&local, view.clone(), wish.read.clone()).await?;
        let (replica, position) = (local.id, view.position());
        let held = wish.keep.then(|| Held::Here(local, view));
        Ok(Part { replica, position, age, found, held })
    }

    async fn read_there(&self, replica: ReplicaId, view: Option<u64>, wish: &Wish) -> Result<Part> {
        let Wish { collection, read, fresh, keep, deadline } = wish.clone();
        let within_ms = within(deadline).as_millis() as u64;
        let ask = ReadAsk { replica, collection, fresh, read, view, keep, within_ms };
        let Seen { position, age, kept, found } = self.inner.router.calls.read(&ask, deadline).await?;
        Ok(Part { replica, position, age, found, held: kept.map(|name| Held::There(replica, name)) })
    }

    /// Answers a peer's read.
    pub(super) async fn answer_read(&self, ask: ReadAsk) -> ReadAnswer {
        let ReadAsk { replica, collection, fresh, read, view, keep, within_ms } = ask;
        let deadline = Instant::now() + Duration::from_millis(within_ms);
        let local = self.held(replica).ok_or_else(|| {
            ClusterError::Unavailable(format!(
                "replica {replica} is not open on {}",
                self.inner.router.calls.me()
            ))
        })?;
        let wish = Wish { collection, read, fresh, keep, deadline };
        let (view, age) = match view {
            Some(name) => (self.inner.reads.take(name)?, None),
            None => self.view(&local, &wish).await?,
        };
        let found = self.carry_out(&local, view.clone(), wish.read).await?;
        let position = view.position();
        let kept = keep.then(|| self.inner.reads.keep(view, deadline));
        Ok(Seen { position, age, kept, found })
    }

    /// Runs a read on the search pool; one that reads the whole store, beside it; one that is over sooner than another
    /// thread could take it, here (`docs/decisions/0016`).
    async fn carry_out(
        &self,
        local: &Arc<LocalShard>,
        view: Arc<ReadView>,
        read: Arc<ShardRead>,
    ) -> Result<Found> {
        let stopped = || super::internal("a read stopped half-way".to_owned()).of_read();
        let (shard, long) = (local.shard.clone(), matches!(*read, ShardRead::Hash { scrub: true }));
        let (of, asked) = (view.clone(), read.clone());
        let work = move || execute(&shard, &of, &asked);
        let found = if long || world::is_simulated() {
            world::blocking(work).await.map_err(|_| stopped())?
        } else if is_quick(&view, &read) {
            work()
        } else {
            let (done, answer) = tokio::sync::oneshot::channel();
            self.pool().spawn(move || {
                // The reader may have given up: then the work is not begun.
                if !done.is_closed() {
                    let _ = done.send(work());
                }
            });
            answer.await.map_err(|_| stopped())?
        };
        let found = found.map_err(|e| ClusterError::from(e).of_read())?;
        self.sample_recall(local, &view, &read, &found);
        Ok(found)
    }

    /// A view of a replica here that is as new as is asked for, and its age if it is a weaker one.
    ///
    /// Errors (no effect): `Expired` if the position asked for lies beyond a linearizable view, or was lost with its
    /// home; `NotHome`; `Gone`; `Unavailable` with the age, if the view is too old.
    async fn view(&self, local: &LocalShard, wish: &Wish) -> Result<(Arc<ReadView>, Option<Duration>)> {
        let Wish { collection, read, fresh, deadline, .. } = wish;
        let (at_least, deadline) = (fresh.at_least.unwrap_or(Position(0)), *deadline);
        let mut age = None;
        self.wait_for_home(local, fresh, deadline).await?;
        match fresh.consistency {
            Consistency::Linearizable if mutant::is(Mutant::StaleRead) => {}
            Consistency::Linearizable => self.ask_and_apply(local, deadline).await?,
            Consistency::Bounded(limit) => {
                age = Some(match age_counts_from(&local.shard.view(), fresh)? {
                    AgeFrom::Leader => self.catch_up_within(local, limit, deadline).await?,
                    AgeFrom::Home(..) => self.catch_up_with_home(local, fresh, limit, deadline).await?,
                    AgeFrom::Nothing => {
                        let why = "the shard is of unknown age: it does not know the new home yet";
                        return Err(ClusterError::Unavailable(why.to_owned()));
                    }
                });
            }
            Consistency::AtLeast | Consistency::Local => {}
        }
        if fresh.consistency != Consistency::Linearizable && local.position() < at_least {
            let follows = local.shard.view().follows();
            // What a home has given may be long on its way; a replica of the home is late, or the position is lost.
            let soon = if follows { deadline } else { deadline.min(Instant::now() + CAUGHT_UP_WITHIN) };
            if local.replica.wait_position(at_least, soon).await.is_err() {
                if follows {
                    return Err(ClusterError::Unavailable(format!(
                        "position {at_least} has not come from the home yet, the shard is at {}",
                        local.position()
                    )));
                }
                // After this it is certain.
                self.ask_and_apply(local, deadline).await?;
            }
        }
        // Before the view: what is applied after it was taken makes it no younger.
        let weak = matches!(fresh.consistency, Consistency::AtLeast | Consistency::Local);
        let applied = if weak { self.inner.reads.newest_applied(local).await } else { None };
        let view = local.shard.view();
        known_here(&view, fresh)?;
        if matches!(**read, ShardRead::Standing) {
            return Ok((view, age));
        }
        if view.retired() {
            return Err(ClusterError::Gone(*collection));
        }
        if !read.is_of_points() {
            return Ok((view, age));
        }
        if view.schema().version == 0 || view.is_being_seeded() {
            // Its creator has not told it yet what its points look like, or the copy of its home is not whole.
            return Err(ClusterError::Unavailable("the shard is still being created".to_owned()));
        }
        if fresh.consistency == Consistency::Linearizable && !view.is_home() {
            let why = "a linearizable answer can only be given where the collection has its home";
            return Err(ClusterError::NotHome(why.to_owned()));
        }
        if weak {
            match age_counts_from(&view, fresh)? {
                AgeFrom::Leader => {
                    age = applied.map(|at| at.elapsed());
                    self.learn_age(local, age);
                }
                AgeFrom::Home(home, upto) => age = self.age_of(local.group, home, upto),
                AgeFrom::Nothing => {}
            }
        }
        Ok((view, age))
    }

    /// Asks the leader what is committed, and waits until that is applied here. Gives the time of asking.
    async fn ask_and_apply(&self, local: &LocalShard, deadline: Instant) -> Result<()> {
        let at = Instant::now();
        let index = local.replica.read_index(deadline).await.map_err(read_error)?;
        self.inner.reads.note(local.id, Asked { at, index });
        local.replica.wait_applied(index, deadline).await.map_err(read_error)
    }

    /// Waits until the replica here is not older than a limit; its age then.
    async fn catch_up_within(
        &self,
        local: &LocalShard,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Duration> {
        loop {
            let known = self.inner.reads.newest_applied(local).await;
            if let Some(age) = known.map(|at| at.elapsed()).filter(|age| *age <= limit) {
                return Ok(age);
            }
            // Another replica may be younger: this one is not waited for much longer than it may be old.
            let soon = deadline.min(Instant::now() + limit.max(CAUGHT_UP_WITHIN));
            if let Err(error) = self.ask_and_apply(local, soon).await {
                let age = match known {
                    Some(at) => format!("{:?} old", at.elapsed()),
                    None => "of unknown age".to_owned(),
                };
                return Err(ClusterError::Unavailable(format!(
                    "the replica is {age}, at most {limit:?} was asked for: {error}"
                )));
            }
        }
    }

    /// Has the age of a replica learned for the next weak read, if it was not of late.
    fn learn_age(&self, local: &LocalShard, age: Option<Duration>) {
        if age.is_some_and(|age| age < LEARN_EVERY) {
            return;
        }
        let (reads, id, replica) = (self.inner.reads.clone(), local.id, local.replica.clone());
        if reads.learning.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            world::spawn(async move {
                let at = Instant::now();
                if let Ok(index) = replica.read_index(at + LEARN_EVERY).await {
                    reads.note(id, Asked { at, index });
                }
                reads.learning.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            });
        }
    }
}

/// How long a weaker read waits for a position before the leader is asked whether there is one.
const CAUGHT_UP_WITHIN: Duration = Duration::from_millis(500);
/// How seldom the age of a replica is learned for weaker reads alone.
const LEARN_EVERY: Duration = Duration::from_secs(1);

fn read_error(error: crate::replica::ReplicaError) -> ClusterError {
    ClusterError::from(error).of_read()
}

/// What the replicas of a shard said so far.
#[derive(Default)]
struct Failures {
    last: Option<ClusterError>,
    /// Whether there was one that waiting may mend.
    passing: bool,
}

impl Failures {
    /// Notes a failure; true if all there were are of a kind that waiting does not mend.
    fn note(&mut self, error: ClusterError) -> bool {
        self.passing |= !matches!(error, ClusterError::Internal { .. });
        self.last = Some(error);
        !self.passing
    }

    /// The error of a shard that could not be read.
    fn last(self, shard: &LiveShard) -> ClusterError {
        let (number, name) = (shard.number, &shard.collection.name);
        let what = format!("shard {number} of {name}");
        match self.last {
            Some(ClusterError::Internal { message, corrupt, effect }) => {
                ClusterError::Internal { message: format!("{what}: {message}"), corrupt, effect }
            }
            Some(error) => ClusterError::Unavailable(format!("{what} cannot be read: {error}")),
            None => {
                ClusterError::Timeout { what: format!("reading {what}"), effect: crate::model::Effect::None }
            }
        }
    }
}
