//! How far regions that follow are behind: two figures a shard, in positions, bytes and milliseconds.
//!
//! *Durable* is what a majority of the follower's replicas has on disk: it survives the loss of the home. *Applied* is
//! what every replica shows to readers. Both are told by the region that follows, which alone knows them; a home names
//! who follows and where it stands itself. Milliseconds are an age (see `cluster::regions`): since when the home may have
//! had something that is not here. Bytes are positions times the mean bytes of the home's commands.

use super::{Regions, Result, shards};
use crate::{
    cluster::{Description, Part},
    model::{CollectionId, Generation, Position, ShardNumber},
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long shards may take to say where they stand.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// A collection that has more than one region, as one of them sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkReport {
    /// Its name.
    pub collection: String,
    /// What this region is to it.
    pub role: Role,
    /// What that is in detail.
    pub part: Part,
    /// Where its home is, as far as it is known here.
    pub home: String,
    /// The home that counts.
    pub generation: Generation,
    /// Regions that follow this one, by name, with where they are.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub followers: BTreeMap<String, String>,
    /// By number.
    pub shards: Vec<ShardLag>,
}

/// What a region is to a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It gives positions, or did until a moment ago.
    Home,
    /// It follows.
    Follower,
}

/// How far a shard is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShardLag {
    /// Which.
    pub shard: ShardNumber,
    /// Its last position here.
    pub position: Position,
    /// What a majority has on disk, behind the home.
    pub durable_lag: LagFigures,
    /// What every replica shows, behind the home.
    pub applied_lag: LagFigures,
}

/// How far behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LagFigures {
    /// In commands; none if the home was not heard of.
    pub entries: Option<u64>,
    /// In bytes of the log, about.
    pub bytes: Option<u64>,
    /// In milliseconds, rounded up.
    pub ms: Option<u64>,
}

impl Regions {
    /// All collections that have more than one region.
    pub async fn links(&self) -> Result<Vec<LinkReport>> {
        let mut links = Vec::new();
        for of in self.cluster().described() {
            let shared = !of.region.homes.is_empty() || !of.region.followers.is_empty();
            if shared || of.region.part != Part::Home {
                links.push(self.link_of(&of).await?);
            }
        }
        Ok(links)
    }

    async fn link_of(&self, of: &Description) -> Result<LinkReport> {
        let own = || self.options().url.clone();
        let (role, home) = match &of.region.part {
            Part::Home => (Role::Home, own()),
            Part::Handing { to, .. } => (Role::Home, to.clone()),
            Part::Follower { home } => (Role::Follower, home.clone()),
            Part::Promoting { .. } => (Role::Follower, own()),
            Part::Fenced { home, .. } => (Role::Home, home.clone()),
        };
        let shards = match role {
            Role::Home => self.shards_of_home(of).await,
            Role::Follower => self.shards_that_follow(of).await?,
        };
        Ok(LinkReport {
            collection: of.name.clone(),
            role,
            part: of.region.part.clone(),
            home,
            generation: of.region.generation(),
            followers: of.region.followers.clone(),
            shards,
        })
    }

    /// A home is behind nobody.
    async fn shards_of_home(&self, of: &Description) -> Vec<ShardLag> {
        let none = LagFigures { entries: Some(0), bytes: Some(0), ms: Some(0) };
        let deadline = Instant::now() + ASK_WITHIN;
        let asked = shards(of).map(async |shard| {
            let standing = self.cluster().shard_standing(of, shard, deadline).await.ok()?;
            Some(ShardLag { shard, position: standing.position, durable_lag: none, applied_lag: none })
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn shards_that_follow(&self, of: &Description) -> Result<Vec<ShardLag>> {
        let shards = self.cluster().followed_shards(of).await?.into_iter().map(|followed| {
            let lag = |(position, age)| self.lag(of.id, followed.shard, followed.home, position, age);
            ShardLag {
                shard: followed.shard,
                position: followed.durable.0,
                durable_lag: lag(followed.durable),
                applied_lag: lag(followed.applied),
            }
        });
        Ok(shards.collect())
    }

    fn lag(
        &self,
        id: CollectionId,
        shard: ShardNumber,
        home: Option<Position>,
        position: Position,
        age: Option<Duration>,
    ) -> LagFigures {
        let entries = home.map(|home| home.0.saturating_sub(position.0));
        LagFigures {
            entries,
            bytes: entries.map(|entries| entries * self.command_bytes(id, shard)),
            ms: age.map(|age| age.as_micros().div_ceil(1_000) as u64),
        }
    }
}
