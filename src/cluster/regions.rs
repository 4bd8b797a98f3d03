//! What the cluster does for regions: it says which part each collection has, turns its shards, and tells how old what
//! follows a home is.
//!
//! The age of a shard that follows is measured with this node's monotonic clock alone: what the home had committed when
//! it was asked at time t is applied, so nothing here is older than t. So every node asks by itself.
//!
//! Invariants: a shard is turned only as the catalog says; nothing is turned by the clock.
//! Not here: the way from region to region, and when to do what (`region/`).

use super::{
    Cluster, ClusterError, HomeFigures, Result,
    catalog::{CatalogCommand, CollectionRecord, Follow, Part, RegionChange, RegionRecord},
    follow::Followed,
    placement,
    read::{Found, Freshness, Part as Answered, ShardRead, ShardStanding, Wish},
    router::Way,
    shards::{LiveCollection, LocalShard},
};
use crate::{
    machine::Verdict,
    model::{Body, CollectionId, Command, Generation, Position, Schema, ShardNumber},
    replica::Role,
    shard::{ReadView, SeedCursor},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// A collection as another region is told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Its id, the same everywhere.
    pub id: CollectionId,
    /// Its name, not an alias.
    pub name: String,
    /// What its creator said, with later changes.
    pub spec: super::CollectionSpec,
    /// Its schema.
    pub schema: Schema,
    /// What it is in the region that tells.
    pub region: RegionRecord,
    /// The groups of its shards: others, if it is copied anew. No affair of other regions.
    #[serde(skip)]
    groups: Vec<u32>,
}

impl Description {
    /// As those who follow its commands know it.
    pub fn followed(&self) -> Followed {
        let (id, name, homes) = (self.id, self.name.clone(), self.region.homes.clone());
        Followed { id, name, homes, shards: self.spec.shard_number }
    }

    /// Whether the same groups have the same part after the same homes.
    pub fn is_as(&self, other: &Description) -> bool {
        let of = |of: &Description| (of.id, of.groups.clone());
        of(self) == of(other)
            && (&self.region.part, &self.region.homes) == (&other.region.part, &other.region.homes)
    }
}

/// Where the home of a collection is that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// There, and there it has this name: an alias is of one cluster.
    At {
        /// Its address.
        home: String,
        /// The collection's own name.
        name: String,
    },
    /// It is being handed over; soon it is known where it is.
    OnTheWay,
}

/// Questions to the home that are remembered, and how far apart.
const HEARD_MAX: usize = 256;
const HEARD_EVERY: Duration = Duration::from_millis(2);
/// How long a shard is waited for between two looks at its age.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What one replica's node has heard of the last home it asked: when it asked, and what the home had committed then. Of
/// the next home that says nothing.
#[derive(Default)]
struct HeardOfHome(Mutex<(Generation, VecDeque<(Instant, Position)>)>);

impl HeardOfHome {
    fn note(&self, home: Generation, asked: Instant, position: Position) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.0.cmp(&home) {
            Ordering::Less => *known = (home, VecDeque::new()),
            Ordering::Equal => {}
            Ordering::Greater => return,
        }
        let heard = &mut known.1;
        if heard.back().is_none_or(|(last, _)| asked >= *last + HEARD_EVERY) {
            heard.push_back((asked, position));
        }
        if heard.len() > HEARD_MAX {
            heard.pop_front();
        }
    }

    /// When this home was last asked that had no more then than `applied`.
    fn as_of(&self, home: Generation, applied: Position) -> Option<Instant> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Some(&known.1).filter(|_| known.0 == home)?;
        heard.iter().rev().find(|(_, position)| *position <= applied).map(|(asked, _)| *asked)
    }

    /// The highest position that this home is known to have committed.
    fn highest(&self, home: Generation) -> Option<Position> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Some(&known.1).filter(|_| known.0 == home)?;
        heard.iter().map(|(_, position)| *position).max()
    }
}

/// How often a shard is looked at that has not heard of a home.
const HEARD_OF_EVERY: Duration = Duration::from_millis(20);

/// What the age of a view counts from.
pub(super) enum AgeFrom {
    /// From what the shard's own leader had committed.
    Leader,
    /// From what a home elsewhere had, of which the view has everything up to a position.
    Home(Generation, Position),
    /// It is not known.
    Nothing,
}

/// The age counts from the home that whoever reads names, even while the shard has taken over from that: not all of what it
/// acknowledged may be there, and what the next one gave is not its. Of a home that the shard does not follow yet nothing
/// can be said; nor of a shard that is sealed: the next home gives positions, since who knows when.
pub(super) fn age_counts_from(view: &ReadView, fresh: &Freshness) -> Result<AgeFrom> {
    let homes = view.counting().map_err(ClusterError::from)?.homes;
    let home = fresh.home.unwrap_or_else(|| homes.current());
    let last = homes.end_of(home).map(|end| Position(end.0.saturating_sub(1)));
    let upto = last.map_or(view.position(), |last| last.min(view.position()));
    Ok(match home.cmp(&homes.current()) {
        Ordering::Less => AgeFrom::Home(home, upto),
        Ordering::Equal if view.follows() => AgeFrom::Home(home, upto),
        Ordering::Equal if view.is_home() => AgeFrom::Leader,
        Ordering::Equal => AgeFrom::Nothing,
        Ordering::Greater => AgeFrom::Nothing,
    })
}

/// Whether a view has the position that is asked for.
///
/// Errors: `Expired`.
pub(super) fn known_here(view: &ReadView, fresh: &Freshness) -> Result<()> {
    let Some(at_least) = fresh.at_least else { return Ok(()) };
    let homes = view.counting().map_err(ClusterError::from)?.homes;
    let of = fresh.of.unwrap_or_else(|| homes.current());
    if !homes.keeps(of, at_least) {
        return Err(ClusterError::Expired(format!(
            "the token names position {at_least} of home {of}, which was lost when home {} took over",
            homes.current()
        )));
    }
    if at_least > view.position() {
        return Err(ClusterError::Expired(format!(
            "the token names position {at_least} of a shard that ends at {}",
            view.position()
        )));
    }
    Ok(())
}

/// What was heard of homes, by the group that follows.
#[derive(Default)]
pub(super) struct Heard(Mutex<HashMap<u32, Arc<HeardOfHome>>>);

impl Heard {
    fn of(&self, group: u32) -> Arc<HeardOfHome> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(group).or_default().clone()
    }
}

/// Collections that take no writes here until their followers were asked whether there is a newer home.
#[derive(Default)]
pub(super) struct Asking(Mutex<BTreeSet<CollectionId>>);

impl Asking {
    /// Errors: `Unavailable` while a collection is held.
    pub(super) fn check(&self, id: CollectionId) -> Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
            false => Ok(()),
            true => {
                let why = "the regions that follow the collection are being asked whether one has taken over";
                Err(ClusterError::Unavailable(why.to_owned()))
            }
        }
    }
}

/// Until when collections are written here, where that is limited; none: not at all.
#[derive(Default)]
pub(super) struct Leases(Mutex<BTreeMap<CollectionId, Option<Instant>>>);

impl Leases {
    /// Errors: `Unavailable` if the time is over.
    pub(super) fn check(&self, id: CollectionId) -> Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            Some(until) if until.is_none_or(|until| until <= Instant::now()) => {
                let why = "no majority of the regions that follow the collection was heard from within the home's lease";
                Err(ClusterError::Unavailable(why.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

impl Cluster {
    /// Waits until the shard knows the home that the token is of: before that its positions are those of another.
    ///
    /// Errors: `Unavailable` at the deadline.
    pub(super) async fn wait_for_home(
        &self,
        local: &LocalShard,
        fresh: &Freshness,
        deadline: Instant,
    ) -> Result<()> {
        let Some(of) = fresh.of.filter(|_| fresh.at_least.is_some()) else { return Ok(()) };
        loop {
            let known = local.shard.view().counting().map_err(ClusterError::from)?.homes.current();
            if of <= known {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ClusterError::Unavailable(format!(
                    "the token is of home {of}, of which the shard has not heard: it knows home {known}"
                )));
            }
            sleep_until(deadline.min(Instant::now() + HEARD_OF_EVERY)).await;
        }
    }

    /// Acknowledges writes of these collections here until a time, or not at all; of others without a limit.
    pub fn lease_writes(&self, until: BTreeMap<CollectionId, Option<Instant>>) {
        *self.inner.leases.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Takes no writes for these collections until [`Cluster::release_writes`].
    pub fn hold_writes(&self, ids: impl IntoIterator<Item = CollectionId>) {
        self.inner.asking.0.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    /// Takes writes for a collection again.
    pub fn release_writes(&self, id: CollectionId) {
        self.inner.asking.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// How old what is applied up to a position of a home may be, of a group that follows; none: the home was not heard
    /// of.
    pub(super) fn age_of(&self, group: u32, home: Generation, applied: Position) -> Option<Duration> {
        self.inner.heard.of(group).as_of(home, applied).map(|asked| asked.elapsed())
    }

    /// Waits until a shard that follows is not older than a limit; its age then.
    ///
    /// Errors (no effect): `Unavailable` with the age.
    pub(super) async fn catch_up_with_home(
        &self,
        local: &LocalShard,
        fresh: &Freshness,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Duration> {
        loop {
            let age = match age_counts_from(&local.shard.view(), fresh)? {
                AgeFrom::Home(home, upto) => self.age_of(local.group, home, upto),
                AgeFrom::Leader | AgeFrom::Nothing => None,
            };
            if let Some(age) = age.filter(|age| *age <= limit) {
                return Ok(age);
            }
            if Instant::now() >= deadline {
                let age = age.map_or_else(|| "of unknown age".to_owned(), |age| format!("{age:?} old"));
                let why = format!("the shard is {age}, at most {limit:?} was asked for");
                return Err(ClusterError::Unavailable(why));
            }
            sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
        }
    }

    /// How far a replica that follows is behind its home; none: the home was not heard of.
    pub(super) fn behind_home(&self, local: &LocalShard) -> Option<HomeFigures> {
        let (heard, applied) = (self.inner.heard.of(local.group), local.position());
        let home = local.shard.view().counting().ok()?.homes.current();
        let entries = heard.highest(home)?.0.saturating_sub(applied.0);
        Some(HomeFigures { entries, age: heard.as_of(home, applied).map(|asked| asked.elapsed()) })
    }

    /// The cluster's region, as this node has it.
    pub fn region(&self) -> &str {
        &self.inner.options.region
    }

    /// Where this node's HTTP service is.
    pub fn own_http(&self) -> &str {
        &self.inner.options.http
    }

    /// All collections as they are known here now.
    pub fn described(&self) -> Vec<Description> {
        self.inner.catalog.state().collections.values().map(|record| describe(record)).collect()
    }

    /// The collection of this name or alias, as it is known here now.
    pub fn described_now(&self, name: &str) -> Option<Description> {
        self.inner.catalog.state().collection(name).map(|record| describe(record))
    }

    /// The collection of this name or alias, after all that the catalog had acknowledged before.
    pub async fn describe(&self, name: &str, deadline: Instant) -> Result<Description> {
        self.catch_up_with_catalog(deadline).await?;
        self.described_now(name).ok_or_else(|| ClusterError::NoCollection(name.to_owned()))
    }

    /// Where the home of a collection is, as far as it is known here now; none: it is here, or there is no such
    /// collection.
    pub fn elsewhere(&self, name: &str) -> Option<Elsewhere> {
        let catalog = self.inner.catalog.state();
        let record = catalog.collection(name)?;
        match &record.region.part {
            Part::Home => None,
            Part::Follower { home } | Part::Fenced { home, .. } => {
                Some(Elsewhere::At { home: home.clone(), name: record.name.clone() })
            }
            Part::Handing { .. } | Part::Promoting { .. } => Some(Elsewhere::OnTheWay),
        }
    }

    /// Returns when the catalog has changed since this was called, or the node closes.
    pub fn news(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut catalog = self.inner.catalog.watch();
        catalog.mark_unchanged();
        let closing = self.inner.closing.clone();
        async move {
            tokio::select! {
                _ = catalog.changed() => {}
                () = closing.cancelled() => {}
            }
        }
    }

    /// Returns when this node closes.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner.closing.clone().cancelled_owned()
    }

    /// Mean bytes of the commands of each shard that this node has applied since it was opened; 0 if there are none
    /// here.
    pub fn command_bytes(&self, of: &Description) -> Vec<u64> {
        let Ok(collection) = self.live(of) else { return Vec::new() };
        let mean = |group| self.replica_here(group).map_or(0, |local| local.replica.command_bytes());
        collection.shards.iter().map(|shard| mean(shard.group().group)).collect()
    }

    /// Whether this node closes.
    pub fn is_closing(&self) -> bool {
        self.inner.closing.is_cancelled()
    }

    /// Whether this node leads the catalog.
    pub fn leads_catalog(&self) -> bool {
        self.inner.catalog_replica.status().role == Role::Leader
    }

    /// The shards of a collection whose groups this node leads.
    pub fn led_shards(&self, name: &str) -> Vec<ShardNumber> {
        let catalog = self.inner.catalog.state();
        let Some(record) = catalog.collections.get(name) else { return Vec::new() };
        let leads = |group: u32| {
            self.replica_here(group).is_some_and(|local| local.replica.status().role == Role::Leader)
        };
        let shards = record.shards.iter().enumerate().filter(|(_, group)| leads(group.group));
        shards.map(|(number, _)| ShardNumber(number as u32)).collect()
    }

    /// Changes what a collection is here.
    ///
    /// Errors: `Stale` if it does not fit what it is.
    pub async fn change_region(
        &self,
        id: CollectionId,
        change: RegionChange,
        deadline: Instant,
    ) -> Result<()> {
        self.propose_catalog(CatalogCommand::Region { id, change }, deadline).await
    }

    /// Makes a collection here that follows its home.
    ///
    /// Errors: `Exists` if the name or the id is taken.
    pub async fn follow_collection(&self, of: Description, home: String, deadline: Instant) -> Result<()> {
        let Description { id, name, spec, schema, region, .. } = of;
        let placement = placement::place(&self.inner.catalog.state(), &spec, &self.alive().await);
        let homes = region.homes;
        let follow = Follow { name, id, spec, schema, homes, home, placement };
        self.propose_catalog(CatalogCommand::Follow(follow), deadline).await
    }

    /// Has other groups take the place of those of a collection that follows, to take in a copy anew.
    pub async fn refollow(&self, of: &Description, deadline: Instant) -> Result<()> {
        let placement = placement::place(&self.inner.catalog.state(), &of.spec, &self.alive().await);
        self.change_region(of.id, RegionChange::Refollow { placement }, deadline).await
    }

    /// Proposes a command that has no position of its own (a turn, a mirrored batch, a step of a copy) to a shard, and
    /// waits until it is applied.
    ///
    /// Errors: `Conflict` with the code and the reason if the shard refused it (no effect); as a write otherwise.
    pub async fn turn_shard(
        &self,
        of: &Description,
        shard: ShardNumber,
        body: Body,
        deadline: Instant,
    ) -> Result<Position> {
        let collection = self.live(of)?;
        let live = collection.shards.get(shard.0 as usize).ok_or_else(|| no_shard(of, shard))?;
        let (record, group) = (&live.collection, live.group().group);
        let command = Command {
            collection: record.id,
            schema_version: record.schema.version,
            epoch: record.epoch,
            request: None,
            born: Position(0),
            body,
        };
        let here = || self.replica_here(group).map(|local| (local.id, local.replica.clone()));
        // A second copy is out of order, or turns what is turned already.
        let way = Way { deadline, safe_twice: true };
        let carried = self.inner.router.propose(group, here, command.encode(), way).await?;
        match carried.outcome.verdict {
            Verdict::Rejected(rejection) => {
                Err(ClusterError::Conflict(format!("{}: {}", rejection.code, rejection.message)))
            }
            Verdict::Applied | Verdict::Duplicate { .. } => Ok(carried.outcome.position),
        }
    }

    /// Bytes of the largest command that a shard's log here takes.
    ///
    /// Errors: `Unavailable` if no replica is here.
    pub fn command_bytes_max(&self, of: &Description, shard: ShardNumber) -> Result<usize> {
        let collection = self.live(of)?;
        let live = collection.shards.get(shard.0 as usize).ok_or_else(|| no_shard(of, shard))?;
        let here = self.replica_here(live.group().group);
        let here =
            here.ok_or_else(|| ClusterError::Unavailable(format!("no replica of shard {shard} is here")))?;
        Ok(here.replica.command_bytes_max())
    }

    /// How a shard counts, after all that its group had acknowledged before.
    pub async fn shard_standing(
        &self,
        of: &Description,
        shard: ShardNumber,
        deadline: Instant,
    ) -> Result<ShardStanding> {
        let answered = self.ask_shard(of, shard, ShardRead::Standing, None, deadline).await?;
        match answered.found {
            Found::Standing(standing) => Ok(standing),
            _ => Err(super::internal("a replica answered something else than it was asked".to_owned())),
        }
    }

    /// The state hash of a shard, after all that its group had acknowledged before, and the position it belongs to.
    pub async fn shard_hash(
        &self,
        of: &Description,
        shard: ShardNumber,
        deadline: Instant,
    ) -> Result<(Position, String)> {
        let answered = self.ask_shard(of, shard, ShardRead::Hash { scrub: false }, None, deadline).await?;
        match answered.found {
            Found::Hash(Some(hash)) => Ok(hash),
            _ => Err(super::internal("a replica answered something else than it was asked".to_owned())),
        }
    }

    /// Copies a shard, step by step, all of one view. Each step is a command that a shard which follows takes in.
    ///
    /// Errors: `Unavailable` if the view is lost half-way: the copy begins anew.
    pub fn seed_shard(&self, of: &Description, shard: ShardNumber) -> ShardCopy {
        ShardCopy {
            cluster: self.clone(),
            of: of.clone(),
            shard,
            next: Some(SeedCursor::default()),
            held: None,
        }
    }

    async fn ask_shard(
        &self,
        of: &Description,
        shard: ShardNumber,
        read: ShardRead,
        held: Option<super::read::Held>,
        deadline: Instant,
    ) -> Result<Answered> {
        let collection = self.live(of)?;
        let live = collection.shards.get(shard.0 as usize).ok_or_else(|| no_shard(of, shard))?;
        let keep = matches!(read, ShardRead::Seed { .. });
        let fresh =
            Freshness { consistency: super::Consistency::Linearizable, at_least: None, of: None, home: None };
        let wish = Wish { collection: of.id, read: Arc::new(read), fresh, keep, deadline };
        match held {
            Some(held) => self.read_held(held, &wish).await,
            None => self.read_shard(live, &wish).await,
        }
    }

    /// The collection, if it is still the same here.
    fn live(&self, of: &Description) -> Result<LiveCollection> {
        let catalog = self.inner.catalog.state();
        let record = catalog.collections.get(&of.name).filter(|record| record.id == of.id);
        let record = record.ok_or_else(|| ClusterError::NoCollection(of.name.clone()))?;
        Ok(LiveCollection::of(record.clone()))
    }

    /// Where each shard of a collection stands at its home: the last position acknowledged before this call, or a
    /// later one.
    pub async fn positions(&self, of: &Description, deadline: Instant) -> Result<Vec<Position>> {
        let followed = of.followed();
        let shards = (0..of.spec.shard_number).map(ShardNumber);
        let asked =
            shards.map(async |shard| Ok(self.shard_stand(&followed, shard, deadline).await?.position));
        futures::future::try_join_all(asked).await
    }

    /// Notes what the home of a collection answered to a question asked at a time of this node's clock.
    pub fn hear_of_home(&self, of: &Description, asked: Instant, positions: &[Position]) {
        let Ok(collection) = self.live(of) else { return };
        for (shard, position) in collection.shards.iter().zip(positions) {
            self.inner.heard.of(shard.group().group).note(of.region.generation(), asked, *position);
        }
    }

    /// The highest position that the home of a collection is known to have had, by shard.
    pub fn heard_of(&self, of: &Description) -> Vec<Option<Position>> {
        let Ok(collection) = self.live(of) else { return Vec::new() };
        let home = of.region.generation();
        collection.shards.iter().map(|shard| self.inner.heard.of(shard.group().group).highest(home)).collect()
    }

    /// How far each shard of a collection that follows has come, as far as its replicas answer.
    pub async fn followed_shards(&self, of: &Description) -> Result<Vec<FollowedShard>> {
        let (collection, catalog) = (self.live(of)?, self.inner.catalog.state());
        let home = of.region.generation();
        let reports = self.reports(&catalog).await;
        let shards = collection.shards.iter().map(|shard| {
            let replicas = &shard.group().replicas;
            let reported = replicas.iter().filter_map(|r| reports.get(&r.node)?.replicas.get(&r.replica));
            let positions: Vec<_> = reported.map(|report| Position(report.position)).collect();
            let heard = self.inner.heard.of(shard.group().group);
            let at = |position: Option<Position>| {
                let position = position.unwrap_or_default();
                (position, heard.as_of(home, position).map(|asked| asked.elapsed()))
            };
            FollowedShard {
                shard: shard.number,
                home: heard.highest(home),
                durable: at(positions.iter().max().copied()),
                applied: at(positions.iter().min().copied()),
            }
        });
        Ok(shards.collect())
    }
}

/// How far a shard that follows has come.
#[derive(Clone, Debug, PartialEq)]
pub struct FollowedShard {
    /// Which.
    pub shard: ShardNumber,
    /// The highest position that the home is known to have; none: it was not heard of.
    pub home: Option<Position>,
    /// The last position that a majority has on disk, and how old that is.
    pub durable: (Position, Option<Duration>),
    /// The last position that every replica which answers shows to readers, and how old that is.
    pub applied: (Position, Option<Duration>),
}

fn describe(record: &CollectionRecord) -> Description {
    Description {
        id: record.id,
        name: record.name.clone(),
        spec: record.spec.clone(),
        schema: record.schema.clone(),
        region: record.region.clone(),
        groups: record.shards.iter().map(|group| group.group).collect(),
    }
}

fn no_shard(of: &Description, shard: ShardNumber) -> ClusterError {
    ClusterError::NotFound(format!("shard {shard} of {}", of.name))
}

/// A copy of a shard under way.
pub struct ShardCopy {
    cluster: Cluster,
    of: Description,
    shard: ShardNumber,
    next: Option<SeedCursor>,
    held: Option<super::read::Held>,
}

/// About how large a step is.
const STEP_BYTES: usize = 512 << 10;
/// How long a step may take, and how long its view is kept for the next one.
const STEP_WITHIN: Duration = Duration::from_secs(60);

impl ShardCopy {
    /// The next step, as a command's bytes; none at the end.
    ///
    /// Errors: see [`Cluster::seed_shard`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(cursor) = self.next.take() else { return Ok(None) };
        let read = ShardRead::Seed { cursor, bytes_max: STEP_BYTES };
        let (held, deadline) = (self.held.take(), Instant::now() + STEP_WITHIN);
        let answered = self.cluster.ask_shard(&self.of, self.shard, read, held, deadline).await?;
        match answered.found {
            Found::Seed(command, next) => {
                (self.next, self.held) = (next, answered.held);
                Ok(Some(command.into()))
            }
            _ => Err(super::internal("a replica answered something else than it was asked".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_follows_is_as_old_as_the_question_whose_answer_it_has() {
        let (heard, home, next) = (HeardOfHome::default(), Generation(1), Generation(2));
        assert_eq!((heard.as_of(home, Position(9)), heard.highest(home)), (None, None));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for (ms, position) in [(0, 5), (10, 7), (20, 7), (30, 12)] {
            heard.note(home, at(ms), Position(position));
        }
        assert_eq!(heard.as_of(home, Position(4)), None);
        assert_eq!(heard.as_of(home, Position(5)), Some(at(0)));
        assert_eq!(heard.as_of(home, Position(11)), Some(at(20)));
        assert_eq!(heard.as_of(home, Position(12)), Some(at(30)));
        assert_eq!(heard.highest(home), Some(Position(12)));
        // Of the next home all that says nothing, and what the old one says late is not heard.
        assert_eq!((heard.as_of(next, Position(12)), heard.highest(next)), (None, None));
        heard.note(next, at(40), Position(13));
        heard.note(home, at(50), Position(12));
        assert_eq!(heard.as_of(next, Position(12)), None);
        assert_eq!(heard.as_of(next, Position(13)), Some(at(40)));
        assert_eq!(heard.as_of(home, Position(12)), None);
    }
}
