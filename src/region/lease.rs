//! A home that is cut off from those who follow it stops by itself, if that is wished (`home_lease`).
//!
//! Every node asks for itself, since every node acknowledges: a region counts as heard from when it was asked what it
//! answered, by this node's clock, and only if it still follows this home. A region that begins to follow counts from when
//! this node learned of it; after a start nothing is heard yet.
//!
//! Invariant: with a lease of `T`, a node acknowledges no write of a followed collection if a majority of its followers
//! was last heard from more than `T` ago.
//! Not here: turning a write away (`cluster::write`).

use super::Regions;
use crate::{
    cluster::{Description, Part},
    model::CollectionId,
    world,
};
use futures::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Rounds of asking within a lease.
const ROUNDS: u32 = 4;

/// When each region was last heard from, by collection and name; none: not since the start.
type Heard = BTreeMap<(CollectionId, String), Option<Instant>>;

impl Regions {
    /// Until the node closes. `followed`: what was followed before this node started.
    pub(super) async fn keep_leases(self, lease: Duration, followed: Vec<Description>) {
        let mut heard: Heard =
            of_each(&followed).map(|(of, region, _)| ((of.id, region.clone()), None)).collect();
        loop {
            let began = Instant::now();
            let followed: Vec<Description> =
                self.cluster().described().into_iter().filter(|of| !of.region.followers.is_empty()).collect();
            let known: BTreeSet<_> =
                of_each(&followed).map(|(of, region, _)| (of.id, region.clone())).collect();
            heard.retain(|region, _| known.contains(region));
            // While this node still learns what was there before its start, what it learns is nothing new.
            let new = self.cluster().unready().is_none().then_some(began);
            for region in known {
                heard.entry(region).or_insert(new);
            }
            self.note_leases(&followed, &heard, lease);
            let mut asked: FuturesUnordered<_> = of_each(&followed)
                .filter(|(of, ..)| of.region.part == Part::Home)
                .map(|(of, region, url)| {
                    let asked = timeout(lease / 2, self.ask_description(url, of, false));
                    async move { (of, region, url, asked.await) }
                })
                .collect();
            while let Some((of, region, url, there)) = asked.next().await {
                let Ok(Ok(there)) = there else { continue };
                if follows(&there, of) {
                    heard.insert((of.id, region.clone()), Some(began));
                    self.note_leases(&followed, &heard, lease);
                } else {
                    // That may take a while, and others are waited for.
                    let (regions, of, url) = (self.clone(), of.clone(), url.clone());
                    world::spawn(async move { regions.hear(&of, &there, &url).await });
                }
            }
            drop(asked);
            if !self.pause((lease / ROUNDS).saturating_sub(began.elapsed())).await {
                return;
            }
        }
    }

    /// Tells how long each collection may be written here. One that nobody follows is not limited; one that is not at home
    /// here takes no writes, and what was under way when it ceased to be is not acknowledged.
    fn note_leases(&self, followed: &[Description], heard: &Heard, lease: Duration) {
        let until = followed.iter().map(|of| {
            let heard = |region: &String| heard.get(&(of.id, region.clone())).copied().flatten();
            let times = of.region.followers.keys().map(heard).collect();
            let at_home = of.region.part == Part::Home;
            (of.id, heard_by_majority(times).filter(|_| at_home).map(|at| at + lease))
        });
        self.cluster().lease_writes(until.collect());
    }
}

/// Whether a region that was asked still follows the home that asks.
fn follows(there: &Description, of: &Description) -> bool {
    there.id == of.id
        && there.region.generation() <= of.region.generation()
        && matches!(there.region.part, Part::Follower { .. })
}

fn of_each(homes: &[Description]) -> impl Iterator<Item = (&Description, &String, &String)> {
    homes.iter().flat_map(|of| of.region.followers.iter().map(move |(region, url)| (of, region, url)))
}

/// When a majority was last heard from; none: never.
fn heard_by_majority(mut times: Vec<Option<Instant>>) -> Option<Instant> {
    times.sort_unstable_by(|a, b| b.cmp(a));
    times.get(times.len() / 2).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_majority_was_heard_when_its_last_one_was() {
        let start = Instant::now();
        let at = |s: &u64| Some(start + Duration::from_secs(*s));
        let heard = |times: &[u64], never: usize| {
            heard_by_majority(times.iter().map(at).chain(std::iter::repeat_n(None, never)).collect())
        };
        assert_eq!(heard(&[4], 0), at(&4));
        assert_eq!(heard(&[], 1), None);
        // Of two, both are a majority; of three, two.
        assert_eq!(heard(&[4, 9], 0), at(&4));
        assert_eq!(heard(&[4], 1), None);
        assert_eq!(heard(&[9, 1, 4], 0), at(&4));
        assert_eq!(heard(&[9, 4], 1), at(&4));
        assert_eq!(heard(&[9], 2), None);
        assert_eq!(heard(&[5, 8, 2, 9], 0), at(&5));
    }
}
