//! The way of a write: checked, cut by shard, proposed, answered.
//!
//! Cross-shard requests are not atomic (`docs/CONSISTENCY.md`): each shard's part is one command.

use super::{
    Cluster, ClusterError, PointSelector, Result, Token, WriteOptions, Written,
    placement::shard_of,
    shards::{LiveCollection, LiveShard},
};
use crate::{
    machine::{Outcome, Verdict},
    model::{Body, Command, Effect, Point, PointId, Position, ShardNumber, command::PointWrite},
    replica::{Proposed, Wait},
};
use futures::future::join_all;
use std::collections::BTreeMap;

impl Cluster {
    /// Writes whole points. They are checked against the schema here, before anything is logged.
    ///
    /// Errors: a point that does not fit, named as `points[i]` (no effect); see [`ClusterError`].
    pub async fn upsert(&self, name: &str, points: Vec<Point>, options: &WriteOptions) -> Result<Written> {
        let collection = self.lookup(name, options.deadline).await?;
        let schema = &collection.record.schema;
        let mut by_shard: BTreeMap<ShardNumber, Vec<PointWrite>> = BTreeMap::new();
        for (i, mut point) in points.into_iter().enumerate() {
            schema.admit(&mut point).map_err(|e| e.within(format_args!("points[{i}]")))?;
            by_shard.entry(collection.shard_of(point.id)).or_default().push(to_write(point));
        }
        let bodies = by_shard.into_iter().map(|(shard, points)| (shard, Body::Upsert(points))).collect();
        self.write(&collection, bodies, options).await
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
        let _ = (name, if_version, point, options);
        Err(ClusterError::Unimplemented(format!("writing point {id} by version")))
    }

    /// Deletes points; those that are not there are passed over.
    pub async fn delete_points(
        &self,
        name: &str,
        which: PointSelector,
        options: &WriteOptions,
    ) -> Result<Written> {
        let collection = self.lookup(name, options.deadline).await?;
        let bodies = match which {
            PointSelector::Ids(ids) => {
                let mut by_shard: BTreeMap<ShardNumber, Vec<PointId>> = BTreeMap::new();
                for id in ids {
                    by_shard.entry(collection.shard_of(id)).or_default().push(id);
                }
                by_shard.into_iter().map(|(shard, ids)| (shard, Body::Delete(ids))).collect()
            }
            PointSelector::Matching(filter) => {
                let body = Body::DeleteMatching(filter);
                collection.shards.iter().map(|s| (s.number, body.clone())).collect()
            }
        };
        self.write(&collection, bodies, options).await
    }
}

fn to_write(point: Point) -> PointWrite {
    let payload = match point.payload.is_empty() {
        true => Vec::new(),
        false => serde_json::to_vec(&point.payload).expect("a payload is JSON"),
    };
    PointWrite { id: point.id, vectors: point.vectors, payload: payload.into() }
}

impl LiveCollection {
    pub(super) fn shard_of(&self, id: PointId) -> ShardNumber {
        shard_of(id, self.shards.len() as u32)
    }
}

impl Cluster {
    /// Proposes a command to each shard that has one; all at once.
    pub(super) async fn write(
        &self,
        collection: &LiveCollection,
        bodies: BTreeMap<ShardNumber, Body>,
        options: &WriteOptions,
    ) -> Result<Written> {
        let parts = bodies.into_iter().map(|(number, body)| {
            let shard = &collection.shards[number.0 as usize];
            async move { (number, self.write_shard(shard, body, options).await) }
        });
        let parts = join_all(parts).await;
        let untouched = |part: &Result<_>| matches!(part, Err(e) if e.effect() == Effect::None);
        let all_untouched = parts.iter().all(|(_, part)| untouched(part));
        let mut shards = BTreeMap::new();
        for (number, part) in parts {
            match part {
                Ok(position) => shards.extend(position.map(|position| (number, position))),
                Err(e) if all_untouched => return Err(e),
                Err(e) => return Err(e.in_part()),
            }
        }
        let record = &collection.record;
        Ok(Written {
            position: shards.values().copied().max(),
            token: Token { collection: record.id, generation: record.generation, shards },
        })
    }

    /// The command's position; `None` if it is committed and nobody waits until it is applied.
    async fn write_shard(
        &self,
        shard: &LiveShard,
        body: Body,
        options: &WriteOptions,
    ) -> Result<Option<Position>> {
        let local = self.inner.shards.opened(shard, options.deadline).await?;
        let record = &shard.collection;
        let command = Command {
            collection: record.id,
            schema_version: record.schema.version,
            epoch: record.epoch,
            request: options.request.clone(),
            born: local.position(),
            body,
        };
        let wait = if options.wait { Wait::Applied } else { Wait::Committed };
        match local.replica.propose(command.encode(), options.deadline, wait).await? {
            Proposed::Applied(outcome) => accepted(outcome).map(Some),
            Proposed::Committed(_) => Ok(None),
        }
    }
}

/// Position of a command that took effect, now or when its first copy was applied.
fn accepted(outcome: Outcome) -> Result<Position> {
    match outcome.verdict {
        Verdict::Applied => Ok(outcome.position),
        Verdict::Duplicate { first } => accepted(*first),
        Verdict::Rejected(rejection) => Err(ClusterError::from(rejection)),
    }
}
