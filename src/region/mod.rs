//! Regions: a collection has its home in one, others follow its log, serve reads of a declared age, and can take over.
//!
//! ```text
//!   home                                       follower
//!   shard ─ commands ─▶ stream ═══ HTTP ═══▶ mirror ─ propose ─▶ shard's own group ─▶ replicas
//!   shard ─ positions ◀──────── pulse, on every node ─▶ "as of when I asked"
//!   steward ◀═══ describe · seal · fence · lost ═══▶ steward     what becomes of homes
//! ```
//!
//! A follower is a whole cluster of its own, whose only writer for the collection is the mirror. What each collection is
//! here stands in the catalog (`cluster::catalog`, with the picture of its parts); every step that changes it is taken
//! by the node that leads the catalog, again and again until it is done, so that a step may be cut off anywhere.
//!
//! Invariants: positions and ids are the home's; a home is promoted only with a generation newer than any that is known;
//! an old home gives no positions once it has heard; what did not arrive is named, never merged. What is not followed
//! never leaves.
//! Not here: what a shard does with a mirrored command (`shard/`), HTTP routes (`api/`).

mod failover;
mod home;
mod http;
mod lag;
mod lease;
mod link;
mod loss;
mod mirror;
mod pulse;
mod steward;

pub use http::{ASK, HttpLink, STREAM};
pub use lag::{LagFigures, LinkReport, Role, ShardLag};
pub use link::{Answer, Ask, Link, Question, Wanted};

use crate::{
    cluster::{Cluster, ClusterError, Description, Part, RegionChange, WriteOptions},
    model::{CollectionId, Invalid, ShardNumber},
    world,
};
use futures::FutureExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

type Result<T> = std::result::Result<T, ClusterError>;

/// How a cluster lives with other regions.
#[derive(Clone, Debug)]
pub struct RegionOptions {
    /// Where other regions reach this one: `http://host:port`.
    pub url: String,
    /// How often the home is asked where it stands.
    pub pulse: Duration,
    /// How long a home that starts waits for its followers to say whether one has taken over.
    pub ask_within: Duration,
    /// Whether it takes writes although one did not say.
    pub accept_unheard: bool,
    /// A home that has heard from no majority of its followers for so long acknowledges no writes.
    pub home_lease: Option<Duration>,
    /// Folder of what an old home had that the new one has not.
    pub lost_dir: PathBuf,
}

/// This cluster among the regions; cheap to clone.
#[derive(Clone)]
pub struct Regions {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    link: Arc<dyn Link>,
    options: RegionOptions,
    /// Shards that are mirrored by a task of this node.
    mirrored: Mutex<BTreeSet<(CollectionId, ShardNumber)>>,
    /// Mean bytes of a command of the home's, by shard.
    command_bytes: Mutex<BTreeMap<CollectionId, Vec<u64>>>,
}

/// How long a question to another region may take.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// How long one of this cluster's own steps may take.
const STEP_WITHIN: Duration = Duration::from_secs(5);

impl Regions {
    /// Starts what this node does for regions; it ends when the cluster's node closes.
    pub fn start(cluster: Cluster, link: Arc<dyn Link>, options: RegionOptions) -> Regions {
        let (mirrored, command_bytes) = Default::default();
        let regions = Regions { inner: Arc::new(Inner { cluster, link, options, mirrored, command_bytes }) };
        // As the node's own copy of the catalog has it: what is followed was written there long before a restart.
        let followed = regions.cluster().described().into_iter().filter(|of| !of.region.followers.is_empty());
        let followed: Vec<Description> = followed.collect();
        regions.cluster().hold_writes(followed.iter().map(|of| of.id));
        if let Some(lease) = regions.options().home_lease {
            world::spawn(regions.clone().keep_leases(lease, followed.clone()));
        }
        for work in [
            regions.clone().ask_followers(followed).boxed(),
            regions.clone().mirror().boxed(),
            regions.clone().pulses().boxed(),
            regions.clone().steward().boxed(),
        ] {
            world::spawn(work);
        }
        regions
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.inner.cluster
    }

    fn options(&self) -> &RegionOptions {
        &self.inner.options
    }

    async fn ask(&self, url: &str, of: &Description, ask: Ask) -> Result<Answer> {
        self.ask_by_name(url, &of.name, Some(of.id), ask).await
    }

    async fn ask_by_name(
        &self,
        url: &str,
        collection: &str,
        id: Option<CollectionId>,
        ask: Ask,
    ) -> Result<Answer> {
        let (region, own) = (self.cluster().region().to_owned(), self.options().url.clone());
        let question = Question { collection: collection.to_owned(), id, region, url: own, ask };
        self.inner.link.ask(url, question, Instant::now() + ASK_WITHIN).await
    }

    async fn ask_description(&self, url: &str, of: &Description, follows: bool) -> Result<Description> {
        match self.ask(url, of, Ask::Describe { follows }).await? {
            Answer::Description(description) => Ok(*description),
            _ => Err(other_kind(url)),
        }
    }

    /// Follows a collection of the home at `home`; changes nothing if that is done already.
    ///
    /// Errors (no effect): `Invalid` (no URL, this cluster itself), `Exists` (a collection of the name or the id that
    /// does not follow), `NoCollection` at the home, `Unavailable`.
    pub async fn follow(&self, collection: &str, home: &str, deadline: Instant) -> Result<()> {
        let home = checked_url(home)?;
        if home == self.options().url {
            return Err(Invalid::new("home", "a region does not follow itself").into());
        }
        let there = match self.ask_by_name(&home, collection, None, Ask::Describe { follows: true }).await? {
            Answer::Description(there) => *there,
            _ => return Err(other_kind(&home)),
        };
        if there.region.part != Part::Home {
            let why = format!("{collection} is not at home at {home}: {:?}", there.region.part);
            return Err(Invalid::new("home", why).into());
        }
        match self.cluster().describe(&there.name, deadline).await {
            Err(ClusterError::NoCollection(_)) => {}
            Err(error) => return Err(error),
            Ok(here) if here.id == there.id => return self.redirect(&here, home, &there, deadline).await,
            Ok(here) => {
                let why = format!("collection {} exists here and is another one", here.name);
                return Err(ClusterError::Conflict(why));
            }
        }
        self.cluster().follow_collection(there, home, deadline).await.map_err(|error| match error {
            ClusterError::Exists(why) => ClusterError::Conflict(why),
            other => other,
        })
    }

    /// A collection that follows goes on with a home elsewhere.
    async fn redirect(
        &self,
        here: &Description,
        home: String,
        there: &Description,
        deadline: Instant,
    ) -> Result<()> {
        match &here.region.part {
            Part::Follower { home: before } if *before == home && here.region.homes == there.region.homes => {
                Ok(())
            }
            Part::Follower { .. } => {
                let change = RegionChange::Redirect { home, homes: there.region.homes.clone() };
                self.cluster().change_region(here.id, change, deadline).await
            }
            part => {
                let why = format!("collection {} does not follow here: {part:?}", here.name);
                Err(ClusterError::Conflict(why))
            }
        }
    }

    /// Stops following a collection; its copy here is dropped.
    ///
    /// Errors: `Conflict` if it does not follow.
    pub async fn unfollow(&self, collection: &str, deadline: Instant) -> Result<()> {
        let here = match self.cluster().describe(collection, deadline).await {
            Err(ClusterError::NoCollection(_)) => return Ok(()),
            here => here?,
        };
        let Part::Follower { home } = &here.region.part else {
            return Err(ClusterError::Conflict(format!("collection {} does not follow here", here.name)));
        };
        if let Err(error) = self.ask(home, &here, Ask::Leave).await {
            tracing::warn!(collection = here.name, %error, "the home was not told that it is not followed any more");
        }
        self.cluster().delete_collection(&here.name, &WriteOptions::until(deadline)).await.map(drop)
    }

    /// Until the node closes.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = sleep(time) => {}
            () = self.cluster().closed() => {}
        }
        !self.cluster().is_closing()
    }

    /// A home that starts asks those that follow it whether one has taken over, before it takes writes.
    async fn ask_followers(self, collections: Vec<Description>) {
        let asked = collections.into_iter().map(|of| {
            let regions = self.clone();
            async move { regions.ask_followers_of(of).await }
        });
        futures::future::join_all(asked).await;
    }

    async fn ask_followers_of(&self, of: Description) {
        let until = Instant::now() + self.options().ask_within;
        let mut unheard = of.region.followers.clone();
        loop {
            for (region, url) in unheard.clone() {
                match self.ask_description(&url, &of, false).await {
                    Ok(there) => {
                        self.hear(&of, &there, &url).await;
                        unheard.remove(&region);
                    }
                    // It follows no longer.
                    Err(ClusterError::NoCollection(_)) => drop(unheard.remove(&region)),
                    Err(error) => tracing::debug!(region, %error, "a follower is not heard"),
                }
            }
            let late = Instant::now() >= until;
            if late && !unheard.is_empty() {
                tracing::warn!(collection = of.name, ?unheard, "regions that follow were not heard in time");
            }
            if unheard.is_empty() || (late && self.options().accept_unheard) {
                return self.cluster().release_writes(of.id);
            }
            if !self.pause(Duration::from_millis(200)).await {
                return;
            }
        }
    }

    /// Hears of a collection elsewhere: if that is a newer home, this one is fenced.
    async fn hear(&self, of: &Description, there: &Description, url: &str) {
        let newer = there.id == of.id
            && there.region.part == Part::Home
            && there.region.generation() > of.region.generation();
        if newer && let Err(error) = self.fence(of, there.region.homes.clone(), url.to_owned()).await {
            tracing::warn!(collection = of.name, %error, "a newer home was heard of, and could not be noted");
        }
    }

    fn note_command_bytes(&self, id: CollectionId, bytes: Vec<u64>) {
        self.inner.command_bytes.lock().unwrap_or_else(PoisonError::into_inner).insert(id, bytes);
    }

    fn command_bytes(&self, id: CollectionId, shard: ShardNumber) -> u64 {
        let known = self.inner.command_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).and_then(|bytes| bytes.get(shard.0 as usize)).copied().unwrap_or_default()
    }
}

/// The shards of a collection.
fn shards(of: &Description) -> impl Iterator<Item = ShardNumber> + use<> {
    (0..of.spec.shard_number).map(ShardNumber)
}

/// An address as it is compared and asked.
fn checked_url(url: &str) -> Result<String> {
    let address = url.trim_end_matches('/');
    let rest = address.strip_prefix("http://");
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(['/', ' ', '?', '#']) => Ok(address.to_owned()),
        _ => Err(Invalid::new("home", format!("`{url}` is not http://host:port")).into()),
    }
}

fn other_kind(url: &str) -> ClusterError {
    ClusterError::Unavailable(format!("{url} answers something else than it was asked"))
}
