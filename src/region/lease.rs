//! A home that is cut off from those who follow it stops by itself, if that is wished (`home_lease`).
//!
//! Every node asks for itself, since every node acknowledges: a region counts as heard from when it was asked what it
//! answered, by this node's clock. A region that begins to follow counts from when this node learned of it; after a start
//! nothing is heard yet.
//!
//! Invariant: with a lease of `T`, a node acknowledges no write of a followed collection if a majority of its followers
//! was last heard from more than `T` ago.
//! Not here: turning a write away (`cluster::write`).

use super::Regions;
use crate::{
    cluster::{Description, Part},
    model::CollectionId,
};
use futures::future::join_all;
use std::{collections::BTreeMap, time::Duration};
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
        self.note_leases(&followed, &heard, lease);
        loop {
            let began = Instant::now();
            let homes: Vec<Description> =
                self.cluster().described().into_iter().filter(|of| of.region.part == Part::Home).collect();
            heard.retain(|(id, region), _| {
                homes.iter().any(|of| of.id == *id && of.region.followers.contains_key(region))
            });
            for (of, region, _) in of_each(&homes) {
                heard.entry((of.id, region.clone())).or_insert(Some(began));
            }
            self.note_leases(&homes, &heard, lease);
            let asked = of_each(&homes).map(async |(of, region, url)| {
                let there = timeout(lease / ROUNDS, self.ask_description(url, of, false)).await;
                if let Ok(Ok(there)) = there {
                    self.hear(of, &there, url).await;
                    return Some((of.id, region.clone()));
                }
                None
            });
            for region in join_all(asked).await.into_iter().flatten() {
                heard.insert(region, Some(began));
            }
            self.note_leases(&homes, &heard, lease);
            if !self.pause((lease / ROUNDS).saturating_sub(began.elapsed())).await {
                return;
            }
        }
    }

    /// Tells how long each home may go on; one that nobody follows is not limited.
    fn note_leases(&self, homes: &[Description], heard: &Heard, lease: Duration) {
        let until = homes.iter().filter(|of| !of.region.followers.is_empty()).map(|of| {
            let times = of
                .region
                .followers
                .keys()
                .map(|region| heard.get(&(of.id, region.clone())).copied().flatten());
            (of.id, heard_by_majority(times.collect()).map(|at| at + lease))
        });
        self.cluster().lease_writes(until.collect());
    }
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
