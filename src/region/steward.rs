//! Carries out what the catalog says of homes: the node that leads the catalog looks again and again, and takes the next
//! step of every collection that is on its way from one part to another.
//!
//! Invariants: a step is taken from what the catalog says, so that any node goes on where another stopped; a step that
//! was taken is not undone by one that comes late.
//! Not here: what is a step at the request of a person (`failover`).

use super::{Regions, Result, STEP_WITHIN, link::Ask, shards};
use crate::{
    cluster::{ClusterError, Description, HomeRecord, Part, RegionChange, WriteOptions},
    model::{Body, CollectionId, Generation, Turn},
};
use futures::future::{join_all, try_join_all};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How often the steward looks, news apart.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a home makes way before it asks what became of the next one.
const HANDED_FOR: Duration = Duration::from_secs(15);

/// Since when this steward has seen collections make way.
type Handing = BTreeMap<CollectionId, (Generation, Instant)>;

impl Regions {
    /// Looks while this node leads the catalog, until it closes.
    pub(super) async fn steward(self) {
        let mut handing = Handing::new();
        loop {
            // What changes while steps are taken is looked at next.
            let news = self.cluster().news();
            if self.cluster().leads_catalog() {
                self.look(&mut handing).await;
            } else {
                handing.clear();
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if self.cluster().is_closing() {
                return;
            }
        }
    }

    /// Takes the next step of every collection.
    async fn look(&self, handing: &mut Handing) {
        let collections = self.cluster().described();
        for of in &collections {
            match &of.region.part {
                Part::Handing { next, .. } => {
                    let seen = handing.entry(of.id).or_insert((*next, Instant::now()));
                    if seen.0 != *next {
                        *seen = (*next, Instant::now());
                    }
                }
                _ => drop(handing.remove(&of.id)),
            }
        }
        let steps = collections.iter().map(|of| self.step(of, handing));
        for (of, step) in collections.iter().zip(join_all(steps).await) {
            if let Err(error) = step {
                tracing::debug!(collection = of.name, part = ?of.region.part, %error, "a step has to wait");
            }
        }
    }

    /// The next step of a collection.
    async fn step(&self, of: &Description, handing: &Handing) -> Result<()> {
        match &of.region.part {
            Part::Home => self.mind_followers(of).await,
            Part::Follower { home } => self.mind_home(of, home).await,
            Part::Promoting { next, .. } => self.promote_shards(of, *next).await.map(drop),
            Part::Handing { next, to } => {
                let due = handing.get(&of.id).is_some_and(|(_, since)| since.elapsed() >= HANDED_FOR);
                if due { self.mind_next(of, *next, to).await } else { Ok(()) }
            }
            Part::Fenced { homes, home } => self.settle(of, homes, home).await,
        }
    }

    /// A home tells the one before it, and hears of those that follow.
    async fn mind_followers(&self, of: &Description) -> Result<()> {
        let told = self.tell_old_home(of).await;
        let asked = of.region.followers.values().map(async |url| {
            if let Ok(there) = self.ask_description(url, of, false).await {
                self.hear(of, &there, url).await;
            }
        });
        join_all(asked).await;
        told
    }

    /// Until the old home knows, it is told; nothing to do after that.
    pub(super) async fn tell_old_home(&self, of: &Description) -> Result<()> {
        let (Some(url), Some(next)) = (&of.region.tell, of.region.homes.last()) else { return Ok(()) };
        self.ask(url, of, Ask::Fence { homes: of.region.homes.clone() }).await?;
        let change = RegionChange::Told { generation: next.generation };
        self.cluster().change_region(of.id, change, Instant::now() + STEP_WITHIN).await
    }

    /// A follower keeps to what its home says of the collection, and goes where that has gone.
    async fn mind_home(&self, of: &Description, home: &str) -> Result<()> {
        let deadline = || Instant::now() + STEP_WITHIN;
        if self.is_retired(of).await? {
            tracing::info!(collection = of.name, "the collection is dropped at its home, and so here");
            return self
                .cluster()
                .delete_collection(&of.name, &WriteOptions::until(deadline()))
                .await
                .map(drop);
        }
        let there = self.ask_description(home, of, true).await?;
        if there.id != of.id {
            return Err(ClusterError::Conflict(format!("{} is another collection at {home}", of.name)));
        }
        let newer = there.region.generation() > of.region.generation();
        match &there.region.part {
            Part::Home if newer => {
                let change =
                    RegionChange::Redirect { home: home.to_owned(), homes: there.region.homes.clone() };
                self.cluster().change_region(of.id, change, deadline()).await
            }
            Part::Home
                if (&there.spec.passthrough, &there.schema) != (&of.spec.passthrough, &of.schema)
                    || there.spec.vectors != of.spec.vectors =>
            {
                let change = RegionChange::Described { spec: there.spec, schema: there.schema };
                self.cluster().change_region(of.id, change, deadline()).await
            }
            Part::Follower { home: next } | Part::Fenced { home: next, .. }
                if *next != self.options().url =>
            {
                let there = self.ask_description(next, of, true).await?;
                match there.region.part == Part::Home && there.region.generation() >= of.region.generation() {
                    true => {
                        let change = RegionChange::Redirect { home: next.clone(), homes: there.region.homes };
                        self.cluster().change_region(of.id, change, deadline()).await
                    }
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether the home has dropped the collection: every shard here was told through its log.
    async fn is_retired(&self, of: &Description) -> Result<bool> {
        let standings =
            try_join_all(shards(of).map(async |shard| {
                self.cluster().shard_standing(of, shard, Instant::now() + STEP_WITHIN).await
            }));
        Ok(standings.await?.iter().all(|standing| standing.retired))
    }

    /// The shards of a region that becomes the home give positions from now on; then the catalog says so. Gives the home.
    ///
    /// Errors: it is gone on with later.
    pub(super) async fn promote_shards(&self, of: &Description, next: Generation) -> Result<HomeRecord> {
        let deadline = Instant::now() + STEP_WITHIN;
        let firsts = try_join_all(shards(of).map(async |shard| {
            let turn = Body::Turn(Turn::Promote(next));
            self.cluster().turn_shard(of, shard, turn, deadline).await?;
            let standing = self.cluster().shard_standing(of, shard, deadline).await?;
            let home = standing.homes.0.into_iter().find(|home| home.generation == next);
            home.map(|home| home.first).ok_or_else(|| {
                ClusterError::Unavailable(format!("shard {shard} of {} is not promoted yet", of.name))
            })
        }))
        .await?;
        let home = HomeRecord { generation: next, firsts };
        let change = RegionChange::Promoted { next: home.clone() };
        self.cluster().change_region(of.id, change, deadline).await?;
        Ok(home)
    }

    /// A home that has made way for long asks what became of the next one.
    async fn mind_next(&self, of: &Description, next: Generation, to: &str) -> Result<()> {
        let there = self.ask_description(to, of, false).await?;
        if there.region.part == Part::Home && there.region.generation() >= next {
            self.hear(of, &there, to).await;
            return Ok(());
        }
        // Refused if it is on its way; then it comes.
        self.ask(to, of, Ask::Abandon { next }).await?;
        tracing::warn!(
            collection = of.name,
            generation = next.0,
            to,
            "the next home does not come: this one goes on"
        );
        self.unseal(of, next, Instant::now() + STEP_WITHIN).await
    }
}
