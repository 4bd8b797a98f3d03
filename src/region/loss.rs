//! What an old home had that the new one has not: told to the new home, kept here as a file, never merged.
//!
//! The file is JSON lines, one for each change that was lost, in order: `{"shard","position","op","id","payload"?,
//! "vector"?}`; it can be replayed as upserts and deletions by who decides so.
//!
//! Invariants: what is lost is exactly what was counted here from the new home's first position on; nothing of it is
//! dropped here before the new home has heard of all of it and the file is on disk.

use super::{Regions, Result, STEP_WITHIN, link::Ask, shards};
use crate::{
    cluster::{ClusterError, Description, HomeRecord, Parts, RegionChange, ShardLoss, homes_of},
    durable,
    model::{Position, ShardNumber, Vector},
    shard::Change,
    world,
};
use futures::{StreamExt, future::try_join_all};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// How long the reading of one lost command may take.
const READ_WITHIN: Duration = Duration::from_secs(30);

impl Regions {
    /// An old home that knows of the new one: its shards are sealed, what they had beyond is told and kept, and then it
    /// follows: with what it has if nothing was lost, else with a copy.
    pub(super) async fn settle(&self, of: &Description, homes: &[HomeRecord], home: &str) -> Result<()> {
        let deadline = Instant::now() + STEP_WITHIN;
        let own = of.region.generation();
        // The first home after this one is where what it had ends, however many have come since.
        let (Some(next), Some(newest)) = (homes.iter().find(|home| home.generation > own), homes.last())
        else {
            return Ok(());
        };
        let ends = self.seal_shards(of, newest.generation, deadline).await?;
        let first = |shard: ShardNumber| homes_of(homes, shard.0 as usize).end_of(own).unwrap_or_default();
        let lost: Vec<_> = shards(of).zip(ends).collect();
        let told = lost.iter().map(async |(shard, to)| {
            let loss = self.collect(of, *shard, first(*shard), *to, next).await?;
            let nothing = loss.to < loss.from;
            let told = Ask::Lost { generation: next.generation, shard: *shard, loss };
            match self.ask(home, of, told).await {
                Ok(_) => {}
                // After a handover nobody asks for what was not lost.
                Err(ClusterError::Missing(_)) if nothing => {}
                Err(error) => return Err(error),
            }
            Ok(nothing)
        });
        let nothing = try_join_all(told).await?.into_iter().all(|nothing| nothing);
        if nothing {
            return self.cluster().change_region(of.id, RegionChange::Settle, deadline).await;
        }
        tracing::warn!(
            collection = of.name,
            generation = next.generation.0,
            folder = %self.options().lost_dir.display(),
            "what the new home has not is kept as a file; the collection is copied anew"
        );
        self.cluster().refollow(of, Instant::now() + STEP_WITHIN).await
    }

    /// Reads what a shard had from one position up to and with another, and writes it to a file.
    async fn collect(
        &self,
        of: &Description,
        shard: ShardNumber,
        from: Position,
        to: Position,
        next: &HomeRecord,
    ) -> Result<ShardLoss> {
        let before = Position(from.0.saturating_sub(1));
        if to < from {
            return Ok(ShardLoss { from, to: before, ids: Vec::new(), complete: true });
        }
        let deadline = Instant::now() + READ_WITHIN;
        let parts = Parts { payload: true, vectors: true, commands: false };
        let failed = |error: crate::cluster::FollowError| {
            ClusterError::Unavailable(format!(
                "what shard {shard} of {} lost cannot be read: {error}",
                of.name
            ))
        };
        let mut events = self
            .cluster()
            .follow_shard(&of.followed(), shard, from, None, parts, deadline)
            .await
            .map_err(failed)?;
        let (mut ids, mut lines) = (BTreeSet::new(), Vec::new());
        let mut at = before;
        while at < to {
            let event = tokio::time::timeout(READ_WITHIN, events.next()).await;
            let event = event.ok().flatten().ok_or_else(|| {
                ClusterError::Unavailable(format!("what shard {shard} of {} lost is not given", of.name))
            })?;
            let event = event.map_err(failed)?;
            at = event.position;
            for change in &event.changes {
                ids.insert(match change {
                    Change::Upsert(point) => point.id,
                    Change::Delete(id) => *id,
                });
                serde_json::to_writer(&mut lines, &line(shard, at, change)).expect("string keys");
                lines.push(b'\n');
            }
        }
        let file = format!("{}-shard{shard}-home{}.jsonl", of.id, next.generation);
        let folder = self.options().lost_dir.clone();
        let path = folder.join(file);
        let written = world::blocking(move || {
            durable::create_folder(&folder)?;
            durable::write(&path, &lines)
        })
        .await;
        let kept = |why: String| ClusterError::Unavailable(format!("what was lost cannot be kept: {why}"));
        written.map_err(|e| kept(e.to_string()))?.map_err(|e| kept(e.to_string()))?;
        Ok(ShardLoss { from, to, ids: ids.into_iter().collect(), complete: true })
    }
}

fn line(shard: ShardNumber, position: Position, change: &Change) -> Value {
    match change {
        Change::Delete(id) => json!({"shard": shard, "position": position, "op": "delete", "id": id}),
        Change::Upsert(point) => {
            let payload: Value = serde_json::from_slice(&point.payload).unwrap_or_default();
            let vectors: Map<String, Value> = point
                .vectors
                .iter()
                .map(|(name, vector)| {
                    let value = match vector {
                        Vector::Dense(values) => json!(values),
                        Vector::Sparse(s) => json!({"indices": s.indices, "values": s.values}),
                    };
                    (name.clone(), value)
                })
                .collect();
            let vector = match vectors.get("") {
                Some(unnamed) if vectors.len() == 1 => unnamed.clone(),
                _ => Value::Object(vectors),
            };
            json!({
                "shard": shard, "position": position, "op": "upsert", "id": point.id, "payload": payload,
                "vector": vector,
            })
        }
    }
}
