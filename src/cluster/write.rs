//! The way of a write: checked, cut by shard, given a name, carried to each shard's leader, answered.
//!
//! Every command carries a `RequestId`, the client's own or one of this node's, so that it can be tried again
//! wherever its fate is unknown. Cross-shard requests are not atomic (`docs/CONSISTENCY.md`): each shard's part is
//! one command.
//! Not here: finding the leader and trying again (`router`).

use super::{
    Cluster, ClusterError, PointSelector, Result, Token, WriteOptions, Written,
    placement::shard_of,
    router::{Carried, Way},
    shards::{LiveCollection, LiveShard, LocalShard},
};
use crate::{
    machine::{Outcome, Rejection, Verdict},
    model::{
        Body, CollectionId, Command, Effect, Invalid, Payload, Point, PointId, Position, RequestId, Schema,
        ShardNumber, command::PointWrite,
    },
    mutant::{self, Mutant},
    world,
};
use futures::future::join_all;
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;

/// Largest command: a mirror of it, which is a little larger, still is one.
const COMMAND_BYTES_MAX: usize = 32 << 20;

/// What each shard is to do.
type Bodies = BTreeMap<ShardNumber, Body>;

impl Cluster {
    /// Writes whole points. They are checked against the schema here, before anything is logged.
    ///
    /// Errors: a point that does not fit, named as `points[i]` (no effect); see [`ClusterError`].
    pub async fn upsert(&self, name: &str, points: Vec<Point>, options: &WriteOptions) -> Result<Written> {
        self.write_to(name, options, |collection| {
            let mut by_shard: BTreeMap<ShardNumber, Vec<PointWrite>> = BTreeMap::new();
            for (i, point) in points.iter().enumerate() {
                let write = admitted(&collection.record.schema, point);
                let write = write.map_err(|e| e.within(format_args!("points[{i}]")))?;
                by_shard.entry(collection.shard_of(point.id)).or_default().push(write);
            }
            Ok(by_shard.into_iter().map(|(shard, points)| (shard, Body::Upsert(points))).collect())
        })
        .await
    }

    /// Writes a point (or, without one, deletes it) only at the version named; `None` if it must not exist.
    ///
    /// Errors: `Precondition` with the version it is at (no effect).
    pub async fn cas(
        &self,
        name: &str,
        id: PointId,
        if_version: Option<Position>,
        point: Option<Point>,
        options: &WriteOptions,
    ) -> Result<Written> {
        // The position is the version that the next one is compared with.
        let options = WriteOptions { wait: true, ..options.clone() };
        self.write_to(name, &options, |collection| {
            let admit = |point| admitted(&collection.record.schema, point);
            let point = point.as_ref().map(admit).transpose().map_err(|e| e.within("point"))?;
            Ok([(collection.shard_of(id), Body::Cas { id, if_version, point })].into())
        })
        .await
    }

    /// Deletes points; those that are not there are passed over.
    pub async fn delete_points(
        &self,
        name: &str,
        which: PointSelector,
        options: &WriteOptions,
    ) -> Result<Written> {
        self.write_to(name, options, |collection| match &which {
            PointSelector::Ids(ids) => {
                let mut by_shard: BTreeMap<ShardNumber, Vec<PointId>> = BTreeMap::new();
                for id in ids {
                    by_shard.entry(collection.shard_of(*id)).or_default().push(*id);
                }
                Ok(by_shard.into_iter().map(|(shard, ids)| (shard, Body::Delete(ids))).collect())
            }
            PointSelector::Matching(filter) => {
                let body = Body::DeleteMatching(filter.clone());
                Ok(collection.shards.iter().map(|s| (s.number, body.clone())).collect())
            }
        })
        .await
    }

    /// Cuts a request by the collection that has the name now, and writes it; anew if that was dropped meanwhile.
    async fn write_to(
        &self,
        name: &str,
        options: &WriteOptions,
        cut: impl Fn(&LiveCollection) -> Result<Bodies> + Send,
    ) -> Result<Written> {
        let request = options.request.clone().unwrap_or_else(|| self.inner.router.own_request());
        let options = WriteOptions { request: Some(request), ..options.clone() };
        let mut collection = self.lookup(name, options.deadline).await?;
        loop {
            let bodies = cut(&collection)?;
            if !collection.record.region.is_home() {
                return Err(ClusterError::NotHome(format!(
                    "{name} has its home elsewhere, or hands it over"
                )));
            }
            let id = collection.record.id;
            let followed = !collection.record.region.followers.is_empty();
            if followed {
                self.inner.asking.check(id)?;
                self.inner.leases.check(id)?;
            }
            match self.write(&collection, bodies, &options).await {
                Err(ClusterError::Gone(id)) => {
                    collection = self.lookup_after(name, id, options.deadline).await?;
                }
                Ok(written) if followed => {
                    // It is committed here; whether a home elsewhere will have it cannot be said.
                    let late = |error: ClusterError| ClusterError::Timeout {
                        what: error.to_string(),
                        effect: Effect::Unknown,
                    };
                    return self.inner.leases.check(id).map_err(late).map(|()| written);
                }
                done => return done,
            }
        }
    }
}

/// A point in the form that enters the log.
fn admitted(schema: &Schema, point: &Point) -> std::result::Result<PointWrite, Invalid> {
    let mut bare = Point { id: point.id, vectors: point.vectors.clone(), payload: Payload::new() };
    schema.admit(&mut bare)?;
    let payload = match point.payload.is_empty() {
        true => Vec::new(),
        false => serde_json::to_vec(&point.payload).expect("a payload is JSON"),
    };
    Ok(PointWrite { id: point.id, vectors: bare.vectors, payload: payload.into() })
}

impl LiveCollection {
    pub(super) fn shard_of(&self, id: PointId) -> ShardNumber {
        let shards = self.shards.len() as u32;
        match mutant::is(Mutant::WrongShardAccept) && world::chance().is_multiple_of(16) {
            true => ShardNumber(world::chance() as u32 % shards),
            false => shard_of(id, shards),
        }
    }
}

impl Cluster {
    /// Proposes a command to each shard that has one; all at once.
    ///
    /// Errors: `Gone` if the collection was dropped and no shard took anything.
    pub(super) async fn write(
        &self,
        collection: &LiveCollection,
        bodies: BTreeMap<ShardNumber, Body>,
        options: &WriteOptions,
    ) -> Result<Written> {
        let request = options.request.clone().unwrap_or_else(|| self.inner.router.own_request());
        let parts = bodies.into_iter().map(|(number, body)| {
            let (shard, request) = (&collection.shards[number.0 as usize], request.clone());
            async move { (number, self.write_shard(shard, body, request, options).await) }
        });
        let parts = join_all(parts).await;
        let untouched = |part: &Result<_>| matches!(part, Err(e) if e.effect() == Effect::None);
        let all_untouched = parts.iter().all(|(_, part)| untouched(part));
        let mut shards = BTreeMap::new();
        for (number, part) in parts {
            match part {
                Ok(position) => _ = shards.insert(number, position),
                Err(e) if all_untouched => return Err(e),
                Err(e) => return Err(e.in_part()),
            }
        }
        let record = &collection.record;
        let mut token = Token { collection: record.id, generation: record.generation(), shards };
        let position = token.shards.values().copied().max().filter(|_| options.wait);
        options.token.iter().for_each(|seen| token.join(seen));
        Ok(Written { position, token })
    }

    /// The command's position. Whoever asks: only where it is applied it is known whether it took effect.
    async fn write_shard(
        &self,
        shard: &LiveShard,
        body: Body,
        request: RequestId,
        options: &WriteOptions,
    ) -> Result<Position> {
        let (record, group) = (&shard.collection, shard.group().group);
        if !matches!(body, Body::Configure(_) | Body::Retire) {
            self.configured(shard, options.deadline).await?;
        }
        let here = || self.replica_here(group).map(|local| (local.id, local.replica.clone()));
        let way = Way { deadline: options.deadline, safe_twice: true };
        let mut command = Command {
            collection: record.id,
            schema_version: record.schema.version,
            epoch: record.epoch,
            request: Some(request),
            born: Position(0),
            body,
        };
        // Of an intent that its client named, the client may know better when it was first seen.
        let own = command.request.as_ref().is_some_and(|request| self.inner.router.is_own(request));
        let seen = options.token.as_ref().filter(|token| !own && token.collection == record.id);
        let seen = seen.and_then(|token| token.shards.get(&shard.number)).copied();
        let known = self.known_position(group, options.deadline).await;
        command.born = seen.map_or(known, |seen| known.min(seen));
        let mut renewed = false;
        loop {
            let bytes = command.encode();
            // What a log holds and nobody can read stops every replica. Points are read as they are written.
            if matches!(command.body, Body::Configure(_) | Body::DeleteMatching(_)) {
                Command::decode(&bytes).map_err(|e| Invalid::new("request", e.to_string()))?;
            }
            if bytes.len() > COMMAND_BYTES_MAX {
                let why =
                    format!("{} bytes for shard {}, at most {COMMAND_BYTES_MAX}", bytes.len(), shard.number);
                return Err(Invalid::new("request", why).into());
            }
            let carried = self.inner.router.propose(group, here, bytes, way).await;
            let Carried { outcome, doubt } = carried.map_err(|error| match error {
                ClusterError::Missing(_) => ClusterError::Gone(record.id),
                error => error,
            })?;
            self.inner.router.hear(group, outcome.position);
            match accepted(outcome, command.collection) {
                Err(error @ (ClusterError::Expired(_) | ClusterError::NotHome(_))) if doubt => {
                    return Err(error.in_doubt("an earlier copy may have been taken"));
                }
                // What this node knew of the shard was old: it was far behind, or had not heard of it for long.
                Err(ClusterError::Expired(_)) if !renewed && seen.is_none() => {
                    renewed = true;
                    command.born = self.inner.router.ask_position(group, options.deadline).await;
                }
                done => return done,
            }
        }
    }

    /// Sees to it that a shard was told its schema once: a collection can be found before its creator has told all
    /// shards, and what a shard has once refused it refuses for ever.
    async fn configured(&self, shard: &LiveShard, deadline: Instant) -> Result<()> {
        let (record, group, router) = (&shard.collection, shard.group().group, &self.inner.router);
        let here = || self.replica_here(group).is_some_and(|local| local.shard.view().schema().version > 0);
        if router.is_configured(group) {
            return Ok(());
        }
        if !here() {
            let body = Body::Configure(record.schema.clone());
            let options = WriteOptions::until(deadline);
            Box::pin(self.write_shard(shard, body, router.own_request(), &options)).await?;
        }
        router.set_configured(group);
        Ok(())
    }

    /// The replica of a group that is open here.
    pub(super) fn replica_here(&self, group: u32) -> Option<Arc<LocalShard>> {
        let open = self.inner.shards.open();
        let seats = self.inner.router.calls.seats(group);
        seats.iter().find_map(|seat| open.get(&seat.replica).cloned())
    }

    /// How far a shard is known here to have come: a replica may be at its beginning while it is made.
    async fn known_position(&self, group: u32, deadline: Instant) -> Position {
        let here = self.replica_here(group).map_or(Position(0), |local| local.position());
        match here {
            Position(0) => self.inner.router.heard(group, deadline).await,
            here => here.max(self.inner.router.last_heard(group)),
        }
    }

    /// The collection that has a name now that the one of id `gone` was dropped.
    pub(super) async fn lookup_after(
        &self,
        name: &str,
        gone: CollectionId,
        deadline: Instant,
    ) -> Result<LiveCollection> {
        self.catch_up_with_catalog(deadline).await?;
        let next = self.lookup(name, deadline).await?;
        match next.record.id == gone {
            // A catalog that is current still has it: the shard is another one's, or ahead of its catalog, or its copies
            // are made anew elsewhere.
            true => Err(ClusterError::Unavailable(format!(
                "collection {name} is being dropped, or its copies are made anew"
            ))),
            false => Ok(next),
        }
    }
}

/// Position of a command that took effect, now or when its first copy was applied.
fn accepted(outcome: Outcome, collection: CollectionId) -> Result<Position> {
    let outcome = outcome.of_first();
    match outcome.verdict {
        Verdict::Rejected(Rejection { code, .. }) if code == "wrong_collection" || code == "retired" => {
            Err(ClusterError::Gone(collection))
        }
        Verdict::Rejected(rejection) => Err(ClusterError::from(rejection)),
        _ => Ok(outcome.position),
    }
}
