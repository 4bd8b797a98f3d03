//! What a person asks of the region that is to become the home: a handover, which loses nothing, or a takeover, which
//! says what it lost.
//!
//! ```text
//!   handover   old home: sealed at S ──▶ here: S applied ──▶ promoted, first position S + 1 ──▶ old home follows
//!   takeover   old home: not asked       here: promoted at what is there ──▶ old home is told, and tells what it had
//! ```
//!
//! Invariant: between a seal and what becomes of it nobody gives positions.

use super::{
    Regions, Result,
    link::{Answer, Ask},
    shards,
};
use crate::{
    cluster::{ClusterError, Description, Loss, Part, RegionChange},
    model::{Generation, Position},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long what the old home has given may take to arrive.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(3);

impl Regions {
    /// Makes this region the home of a collection that it follows; the old home follows then. Nothing is lost.
    ///
    /// Errors: `Conflict` if it does not follow; `Unavailable` if the old home is not reached or does not come to an
    /// end: it goes on then, at once or within a quarter of a minute.
    pub async fn handover(&self, collection: &str, deadline: Instant) -> Result<Description> {
        let of = self.cluster().describe(collection, deadline).await?;
        let Part::Follower { home } = &of.region.part else { return self.is_home_already(of) };
        let next = next_generation(&of);
        // Before anything stops, the way is known to be open, and what is under way to be little.
        self.drained(&of, &self.positions_of(home, &of).await?, deadline).await?;
        let sealed = match self.ask(home, &of, Ask::Seal { next }).await? {
            Answer::Sealed(sealed) => sealed,
            _ => return Err(super::other_kind(home)),
        };
        let drained = self.drained(&of, &sealed, deadline.min(Instant::now() + DRAIN_WITHIN)).await;
        let promoted = match drained {
            Ok(()) => {
                let change = RegionChange::Promote { next, taken: None };
                self.cluster().change_region(of.id, change, deadline).await
            }
            late => late,
        };
        if let Err(error) = promoted {
            // Given up here first, so that it cannot come any more when the old home goes on.
            self.cluster().change_region(of.id, RegionChange::Abandon { next }, deadline).await?;
            self.ask(home, &of, Ask::Unseal { next }).await?;
            return Err(error);
        }
        let now = self.become_home(&of, next, deadline).await?;
        // Who waits at the old home is sent here the sooner; if this fails, the steward does it.
        if let Err(error) = self.tell_old_home(&now).await {
            tracing::debug!(collection, %error, "the old home is told later");
        }
        Ok(now)
    }

    /// Makes this region the home of a collection that it follows, with what is there. What the old home had beyond that
    /// is lost, and named as far as it is known.
    ///
    /// Errors: `Conflict` if it does not follow.
    pub async fn takeover(&self, collection: &str, deadline: Instant) -> Result<Loss> {
        let of = self.cluster().describe(collection, deadline).await?;
        let Part::Follower { .. } = &of.region.part else {
            let of = self.is_home_already(of)?;
            return loss_of(&of).ok_or_else(|| {
                ClusterError::Conflict(format!("this region is the home of {collection} already"))
            });
        };
        let next = next_generation(&of);
        let heard = self.cluster().heard_of(&of).into_iter().map(Option::unwrap_or_default).collect();
        let change = RegionChange::Promote { next, taken: Some(heard) };
        self.cluster().change_region(of.id, change, deadline).await?;
        let of = self.become_home(&of, next, deadline).await?;
        loss_of(&of).ok_or_else(|| ClusterError::Conflict("another home came meanwhile".to_owned()))
    }

    /// What was lost when this region took a collection over the last time.
    ///
    /// Errors: `NotFound` if it never did.
    pub async fn loss(&self, collection: &str, deadline: Instant) -> Result<Loss> {
        let of = self.cluster().describe(collection, deadline).await?;
        let none = || ClusterError::NotFound(format!("no loss of {}: it was not taken over here", of.name));
        of.region.losses.last().cloned().ok_or_else(none)
    }

    fn is_home_already(&self, of: Description) -> Result<Description> {
        match &of.region.part {
            Part::Home if !of.region.homes.is_empty() => Ok(of),
            part => {
                let why = format!("collection {} does not follow here: {part:?}", of.name);
                Err(ClusterError::Conflict(why))
            }
        }
    }

    async fn positions_of(&self, home: &str, of: &Description) -> Result<Vec<Position>> {
        let generation = of.region.generation();
        match self.ask(home, of, Ask::Positions { generation }).await? {
            Answer::Positions(positions) => Ok(positions.into_iter().map(|(position, _)| position).collect()),
            _ => Err(super::other_kind(home)),
        }
    }

    /// Waits until each shard has a position.
    async fn drained(&self, of: &Description, positions: &[Position], deadline: Instant) -> Result<()> {
        for (shard, position) in shards(of).zip(positions) {
            loop {
                let standing = self.cluster().shard_standing(of, shard, deadline).await?;
                if standing.position >= *position && !standing.seeding {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(ClusterError::Unavailable(format!(
                        "shard {shard} of {} is at {}, the home at {position}",
                        of.name, standing.position
                    )));
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Carries a promotion out that is in the catalog; gives the collection then.
    async fn become_home(
        &self,
        of: &Description,
        next: Generation,
        deadline: Instant,
    ) -> Result<Description> {
        loop {
            let now = self.cluster().describe(&of.name, deadline).await?;
            match &now.region.part {
                Part::Promoting { next: own, .. } if *own == next => {}
                Part::Home if now.region.generation() >= next => return Ok(now),
                part => {
                    let why = format!("home {next} of {} does not come: {part:?}", of.name);
                    return Err(ClusterError::Conflict(why));
                }
            }
            if let Err(error) = self.promote_shards(&now, next).await {
                tracing::debug!(collection = of.name, %error, "a promotion goes on");
                if Instant::now() >= deadline {
                    return Err(error);
                }
                sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// The generation of the next home from here.
fn next_generation(of: &Description) -> Generation {
    Generation(of.region.generation().max(of.region.abandoned).0 + 1)
}

fn loss_of(of: &Description) -> Option<Loss> {
    let generation = of.region.generation();
    of.region.losses.iter().find(|loss| loss.generation == generation).cloned()
}
