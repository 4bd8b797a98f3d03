//! One shard's commands and what they did, in order, from wherever a replica reaches back.
//!
//! ```text
//!   this node's replica ── Tail + effects ──┐
//!   a peer's replica ── "/feed" ── frames ──┴─> source ─> Follow ─> ShardEvents, ShardEvents, …
//!                                               (another one, whenever it ends)
//! ```
//!
//! Invariants: positions come one after the other, without a hole or a repetition, whatever the sources do; a source
//! that ends, says something else or is silent while the shard goes on is left for another one, at the next
//! position, for ever; it is over only when every replica that has a past says that it does not reach back, and
//! says it twice (`Expired`), or when the collection is dropped. Nothing is read that nobody asks for.
//! Not here: what a consumer has had of a command (`changefeed/`), how a command did what it did (`shard/effects`).

mod source;
#[cfg(test)]
mod tests;
mod wire;

pub(super) use wire::FeedAsk;

use super::{
    Cluster, ClusterError, NodeName, Result,
    catalog::{CollectionRecord, HomeRecord, Phase, newest},
    peers::PeerCalls,
    shards::LocalShard,
};
use crate::{
    model::{CollectionId, Generation, Position, ReplicaId, ShardNumber},
    shard::Change,
};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use serde::{Deserialize, Serialize};
use source::Source;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};

/// A collection as those who follow it know it.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its id.
    pub id: CollectionId,
    /// Its name, not an alias.
    pub name: String,
    /// The homes its positions count in, after the first.
    pub homes: Vec<HomeRecord>,
    /// How many shards it has.
    pub shards: u32,
}

impl Followed {
    /// The home that gives positions now.
    pub fn generation(&self) -> Generation {
        newest(&self.homes)
    }
}

impl From<&CollectionRecord> for Followed {
    fn from(record: &CollectionRecord) -> Self {
        let (id, name, homes) = (record.id, record.name.clone(), record.region.homes.clone());
        Followed { id, name, homes, shards: record.shards.len() as u32 }
    }
}

/// Which parts of a point that was written are wanted; the others are left empty on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Its payload.
    pub payload: bool,
    /// Its vectors.
    pub vectors: bool,
    /// Instead of what a command did, the command itself.
    #[serde(default)]
    pub commands: bool,
}

/// What one command did.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardEvents {
    /// The command.
    pub position: Position,
    /// The home that gave it its position.
    pub home: Generation,
    /// In order; none if it was rejected, a repetition, or met nothing.
    pub changes: Vec<Change>,
    /// It retired the shard: nothing changes any more.
    pub retired: bool,
    /// The command itself, if that was asked for in the place of changes.
    pub command: Option<Bytes>,
}

/// Where a shard, or who follows it, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stand {
    /// The position of the last command.
    pub position: Position,
    /// The home that gave it.
    pub home: Generation,
}

/// One shard's commands from a position on; an error is the last item.
pub type ShardStream = BoxStream<'static, std::result::Result<ShardEvents, FollowError>>;

/// Why a shard cannot be followed (any further).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// No replica reaches back to the position.
    #[error("no replica reaches back, the oldest command is {oldest}")]
    Expired {
        /// The first position that can be followed.
        oldest: Position,
    },
    /// The position lies beyond what was ever acknowledged.
    #[error("the shard ends at {end}")]
    Beyond {
        /// Its last position.
        end: Position,
    },
    /// What the follower had seen is no part of what a later home has.
    #[error("position {} of home {} was lost when home {later} came", seen.position, seen.home)]
    Lost {
        /// The last that it had seen.
        seen: Stand,
        /// The home by which it is known to be lost.
        later: Generation,
    },
    /// The collection is dropped.
    #[error("the collection is dropped")]
    Dropped,
    /// No replica could be asked by the deadline, or this node stops.
    #[error("{0}")]
    Away(String),
    /// Those replicas that reach back are damaged there.
    #[error("{0}")]
    Damaged(String),
}

/// Why one replica gives nothing from a position on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
enum Refusal {
    #[error("reaches back to {oldest} only")]
    Gone { oldest: Position },
    #[error("ends at {end}")]
    Beyond { end: Position },
    #[error("position {} of home {} was lost when home {later} came", seen.position, seen.home)]
    Lost { seen: Stand, later: Generation },
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Away(String),
}

/// What a source gives: a command, the reason of its end, or nothing more.
type Item = Option<std::result::Result<ShardEvents, Refusal>>;

/// A replica that may have what is asked for.
#[derive(Clone, Debug)]
struct Candidate {
    replica: ReplicaId,
    node: NodeName,
    /// Whether it has been a member, so that the shard's past may be there.
    has_past: bool,
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    Dropped,
    /// This node stops.
    Closing,
}

/// The replicas of one shard, as its follower sees them.
trait Group: Send + Sync + 'static {
    fn fate(&self) -> Fate;
    /// Returns when the fate may have changed.
    fn news(&self) -> BoxFuture<'static, ()>;
    /// The one that is asked first comes first.
    fn candidates(&self) -> Vec<Candidate>;
    /// Opens a source at a position, not later than the deadline.
    fn open(
        &self,
        at: Candidate,
        from: Position,
        seen: Option<Stand>,
        deadline: Instant,
    ) -> BoxFuture<'_, std::result::Result<Source, Refusal>>;
    /// Where the last command stands that was acknowledged before this call, or a later one.
    fn stand(&self, at: Candidate, deadline: Instant) -> BoxFuture<'_, std::result::Result<Stand, Refusal>>;
}

/// How long one replica may take to open a source or to say where it stands.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Pauses between two rounds of asking: doubled from the first to the last.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(1);
/// A source that is silent for so long is compared with the shard.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5_000 });
/// How long a dropped collection's shard may be silent before it is taken to have said all.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Cluster {
    /// The collection of a name or alias, to be followed.
    pub async fn followed(&self, name: &str, deadline: Instant) -> Result<Followed> {
        Ok(Followed::from(&*self.lookup(name, deadline).await?.record))
    }

    /// Where a shard stands: at the last command acknowledged before this call, or a later one.
    ///
    /// Errors (no effect): `Unavailable`, `NoCollection`.
    pub async fn shard_stand(&self, of: &Followed, shard: ShardNumber, deadline: Instant) -> Result<Stand> {
        let group = self.group(of, shard);
        let mut pauses = Pauses::default();
        loop {
            let why = match stand_of(&group, deadline).await {
                Ok(stand) => return Ok(stand),
                Err(why) => why,
            };
            if group.fate() == Fate::Dropped {
                return Err(ClusterError::NoCollection(of.name.clone()));
            }
            if !pauses.wait(deadline).await || group.fate() == Fate::Closing {
                return Err(ClusterError::Unavailable(format!("shard {shard} of {}: {why}", of.name)));
            }
        }
    }

    /// Follows a shard from a position on, for as long as it lives; returns once a replica gives it. Who has `seen`
    /// something of it is given what goes on from that, by replicas that know the home of it.
    ///
    /// Errors: `Away` only here (by the deadline) and when this node stops; the others also as the last item.
    /// Cost: nothing is read ahead but a piece of the log (about 1 MiB), at the replica that gives it.
    pub async fn follow_shard(
        &self,
        of: &Followed,
        shard: ShardNumber,
        from: Position,
        seen: Option<Stand>,
        parts: Parts,
        deadline: Instant,
    ) -> std::result::Result<ShardStream, FollowError> {
        let group = ShardGroup { parts, ..self.group(of, shard) };
        let mut follow = Follow::new(Arc::new(group), Position(from.0.max(1)), seen);
        follow.open(Some(deadline)).await?;
        Ok(follow.into_stream())
    }

    fn group(&self, of: &Followed, shard: ShardNumber) -> ShardGroup {
        let parts = Parts { payload: false, vectors: false, commands: false };
        ShardGroup { cluster: self.clone(), of: of.clone(), shard, parts, asked: AtomicUsize::new(0) }
    }
}

/// One follower of one shard.
struct Follow {
    group: Arc<dyn Group>,
    /// The position it waits for.
    next: Position,
    /// What it has given last, or was seen before.
    seen: Option<Stand>,
    source: Option<(ReplicaId, Source)>,
    /// Whether the source has given anything.
    gave: bool,
    /// The replica whose source ended last: it is asked last.
    left: Option<ReplicaId>,
    /// Replicas found damaged at a position.
    damaged: BTreeMap<ReplicaId, (Position, String)>,
    pauses: Pauses,
    /// Where the shard stood when the source was silent.
    stood: Option<Position>,
    /// The shard was retired: nothing comes any more.
    retired: bool,
}

impl Follow {
    fn new(group: Arc<dyn Group>, from: Position, seen: Option<Stand>) -> Follow {
        Follow {
            group,
            next: from,
            seen,
            source: None,
            gave: false,
            left: None,
            damaged: BTreeMap::new(),
            pauses: Pauses::default(),
            stood: None,
            retired: false,
        }
    }

    fn into_stream(self) -> ShardStream {
        let items = stream::unfold(Some(self), |follow| async {
            let mut follow = follow?;
            match follow.next().await {
                Ok(events) => Some((Ok(events), Some(follow))),
                Err(error) => Some((Err(error), None)),
            }
        });
        items.boxed()
    }

    /// The next command; waits for it.
    async fn next(&mut self) -> std::result::Result<ShardEvents, FollowError> {
        while !self.retired {
            let Some((replica, source)) = self.source.as_mut() else {
                self.open(None).await?;
                continue;
            };
            let replica = *replica;
            let item = match source.next().now_or_never() {
                Some(item) => item,
                None => match self.wait().await? {
                    Some(item) => item,
                    None => continue,
                },
            };
            let why = match item {
                Some(Ok(events)) if events.position == self.next => {
                    self.next = self.next.next();
                    self.seen = Some(Stand { position: events.position, home: events.home });
                    (self.gave, self.stood, self.retired) = (true, None, events.retired);
                    self.pauses = Pauses::default();
                    return Ok(events);
                }
                Some(Ok(events)) => format!("it gives position {} for {}", events.position, self.next),
                Some(Err(Refusal::Damaged(why))) => {
                    self.damaged.insert(replica, (self.next, why.clone()));
                    why
                }
                Some(Err(refusal)) => refusal.to_string(),
                None => "it ended".to_owned(),
            };
            self.leave(&why).await;
        }
        Err(FollowError::Dropped)
    }

    /// Waits for the source's next item; `None`: look again.
    async fn wait(&mut self) -> std::result::Result<Option<Item>, FollowError> {
        let Some((_, source)) = self.source.as_mut() else { return Ok(None) };
        // Watched before it is looked at, so that no change is missed.
        let news = self.group.news();
        let silence = match self.group.fate() {
            Fate::Lives => LOOK_EVERY,
            Fate::Dropped => LAST_WORDS,
            Fate::Closing => return Err(closing()),
        };
        tokio::select! {
            biased;
            item = source.next() => return Ok(Some(item)),
            () = news => return Ok(None),
            () = sleep(silence) => {}
        }
        match self.group.fate() {
            Fate::Dropped => Err(FollowError::Dropped),
            _ => self.look().await,
        }
    }

    /// Leaves a source that was silent for two looks though at the first the shard had more.
    async fn look(&mut self) -> std::result::Result<Option<Item>, FollowError> {
        match self.stood {
            Some(stood) if stood >= self.next => self.leave("it stands still").await,
            _ => {
                let stand = stand_of(&*self.group, Instant::now() + LOOK_EVERY).await;
                self.stood = stand.ok().map(|stand| stand.position);
            }
        }
        Ok(None)
    }

    /// Leaves a source; not at once for the next one, if this one gave nothing.
    async fn leave(&mut self, why: &str) {
        self.left = self.source.take().map(|(replica, _)| replica);
        tracing::debug!(replica = ?self.left, position = self.next.0, why, "a source of the feed is left");
        self.stood = None;
        if !self.gave {
            self.pauses.wait(far()).await;
        }
    }

    /// Opens a source, by the deadline if there is one.
    async fn open(&mut self, deadline: Option<Instant>) -> std::result::Result<(), FollowError> {
        let mut settled_before = false;
        loop {
            match self.group.fate() {
                Fate::Lives => {}
                Fate::Dropped => return Err(FollowError::Dropped),
                Fate::Closing => return Err(closing()),
            }
            let refusals = match self.round(deadline).await {
                Ok(source) => {
                    (self.source, self.gave) = (Some(source), false);
                    return Ok(());
                }
                Err(refusals) => refusals,
            };
            // A segment may go just while it is read: what is settled is asked once more.
            let settled = verdict(&refusals);
            match settled {
                Some(verdict) if settled_before => return Err(verdict),
                _ => settled_before = settled.is_some(),
            }
            let waited = self.pauses.wait(deadline.unwrap_or_else(far)).await;
            if !waited && deadline.is_some() {
                return Err(FollowError::Away(told(&refusals)));
            }
        }
    }

    /// Asks every replica for a source, until one gives it.
    async fn round(
        &mut self,
        deadline: Option<Instant>,
    ) -> std::result::Result<(ReplicaId, Source), Vec<(Candidate, Refusal)>> {
        let mut candidates = self.group.candidates();
        // Stable: the others keep their order.
        candidates.sort_by_key(|candidate| Some(candidate.replica) == self.left);
        let mut refusals = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            if let Some((position, why)) = self.damaged.get(&candidate.replica)
                && *position == self.next
            {
                let refusal = Refusal::Damaged(why.clone());
                refusals.push((candidate, refusal));
                continue;
            }
            let by = (Instant::now() + ASK_WITHIN).min(deadline.unwrap_or_else(far));
            let late = || Err(Refusal::Away("it did not answer in time".to_owned()));
            let opened = timeout_at(by, self.group.open(candidate.clone(), self.next, self.seen, by)).await;
            match opened.unwrap_or_else(|_| late()) {
                Ok(source) => return Ok((candidate.replica, source)),
                Err(refusal) => refusals.push((candidate, refusal)),
            }
        }
        Err(refusals)
    }
}

/// What the refusals of all candidates come to, if they leave nothing open.
fn verdict(refusals: &[(Candidate, Refusal)]) -> Option<FollowError> {
    let lost = refusals.iter().find_map(|(_, refusal)| match refusal {
        Refusal::Beyond { end } => Some(FollowError::Beyond { end: *end }),
        Refusal::Lost { seen, later } => Some(FollowError::Lost { seen: *seen, later: *later }),
        _ => None,
    });
    if lost.is_some() {
        return lost;
    }
    let mut oldest = None;
    for (candidate, refusal) in refusals {
        match refusal {
            Refusal::Gone { oldest: its } => oldest = Some(oldest.map_or(*its, |o: Position| o.min(*its))),
            Refusal::Damaged(_) => {}
            Refusal::Away(_) if candidate.has_past => return None,
            Refusal::Away(_) | Refusal::Beyond { .. } | Refusal::Lost { .. } => {}
        }
    }
    let damaged = refusals.iter().any(|(_, refusal)| matches!(refusal, Refusal::Damaged(_)));
    match oldest {
        _ if damaged => Some(FollowError::Damaged(told(refusals))),
        Some(oldest) => Some(FollowError::Expired { oldest }),
        None => None,
    }
}

fn told(refusals: &[(Candidate, Refusal)]) -> String {
    let one = |(candidate, refusal): &(Candidate, Refusal)| {
        format!("replica {} on {}: {refusal}", candidate.replica, candidate.node)
    };
    match refusals {
        [] => "it has no replica yet".to_owned(),
        refusals => refusals.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

/// Asks one replica after the other where the shard stands.
async fn stand_of(group: &dyn Group, deadline: Instant) -> std::result::Result<Stand, String> {
    let mut refusals = Vec::new();
    for candidate in group.candidates() {
        let by = (Instant::now() + ASK_WITHIN).min(deadline);
        match timeout_at(by, group.stand(candidate.clone(), by)).await {
            Ok(Ok(stand)) => return Ok(stand),
            Ok(Err(refusal)) => refusals.push((candidate, refusal)),
            Err(_) => refusals.push((candidate, Refusal::Away("it did not answer in time".to_owned()))),
        }
    }
    Err(told(&refusals))
}

fn closing() -> FollowError {
    FollowError::Away("this node stops".to_owned())
}

/// So far away that it is never reached, and can be counted with.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

/// Pauses that grow.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Pauses(*PAUSES.start())
    }
}

impl Pauses {
    /// Waits, but not beyond the deadline; `false` if that was reached.
    async fn wait(&mut self, deadline: Instant) -> bool {
        let until = Instant::now() + self.0;
        self.0 = (self.0 * 2).min(*PAUSES.end());
        tokio::time::sleep_until(until.min(deadline)).await;
        until < deadline
    }
}

/// A shard of a collection, in the catalog of this node.
struct ShardGroup {
    cluster: Cluster,
    of: Followed,
    shard: ShardNumber,
    parts: Parts,
    /// Rounds begun: each starts with another peer.
    asked: AtomicUsize,
}

impl ShardGroup {
    fn record(&self) -> Option<Arc<CollectionRecord>> {
        let catalog = self.cluster.inner.catalog.state();
        // Ids are never used again; a name may be.
        catalog.collections.get(&self.of.name).filter(|record| record.id == self.of.id).cloned()
    }
}

impl Group for ShardGroup {
    fn fate(&self) -> Fate {
        match self.record() {
            _ if self.cluster.inner.closing.is_cancelled() => Fate::Closing,
            Some(_) => Fate::Lives,
            None => Fate::Dropped,
        }
    }

    fn news(&self) -> BoxFuture<'static, ()> {
        let mut catalog = self.cluster.inner.catalog.watch();
        let closing = self.cluster.inner.closing.clone();
        Box::pin(async move {
            tokio::select! {
                _ = catalog.changed() => {}
                () = closing.cancelled() => {}
            }
        })
    }

    fn candidates(&self) -> Vec<Candidate> {
        let Some(record) = self.record() else { return Vec::new() };
        let me = self.calls().me();
        let mut candidates: Vec<_> = record.shards[self.shard.0 as usize]
            .replicas
            .iter()
            .map(|replica| Candidate {
                replica: replica.replica,
                node: replica.node.clone(),
                has_past: matches!(replica.phase, Phase::Voter | Phase::Learner | Phase::Leaving),
            })
            .collect();
        if !candidates.is_empty() {
            let turn = self.asked.fetch_add(1, Ordering::Relaxed) % candidates.len();
            candidates.rotate_left(turn);
        }
        candidates.sort_by_key(|candidate| candidate.node != *me);
        candidates
    }

    fn open(
        &self,
        at: Candidate,
        from: Position,
        seen: Option<Stand>,
        deadline: Instant,
    ) -> BoxFuture<'_, std::result::Result<Source, Refusal>> {
        Box::pin(async move {
            match self.local(&at)? {
                Some(local) => source::open(local, from, seen, self.parts, deadline).await,
                None => wire::open(self.calls(), self.ask(&at, Some(from), seen), deadline).await,
            }
        })
    }

    fn stand(&self, at: Candidate, deadline: Instant) -> BoxFuture<'_, std::result::Result<Stand, Refusal>> {
        Box::pin(async move {
            match self.local(&at)? {
                Some(local) => source::stand(&local, deadline).await,
                None => wire::stand(self.calls(), self.ask(&at, None, None), deadline).await,
            }
        })
    }
}

impl ShardGroup {
    fn calls(&self) -> &PeerCalls {
        &self.cluster.inner.router.calls
    }

    fn ask(&self, at: &Candidate, from: Option<Position>, seen: Option<Stand>) -> FeedAsk {
        FeedAsk { replica: at.replica, from, seen, parts: self.parts }
    }

    /// The replica, if it is this node's to hold.
    fn local(&self, at: &Candidate) -> std::result::Result<Option<Arc<LocalShard>>, Refusal> {
        if at.node != *self.calls().me() {
            return Ok(None);
        }
        let closed = || Refusal::Away("it is not open here".to_owned());
        self.cluster.held(at.replica).ok_or_else(closed).map(Some)
    }
}
