//! Asks homes where they stand, from every node of a region that follows: so that each knows how old what it shows is.
//!
//! Questions overlap: over a long way one is asked while the last ones are still under way, so that the age is that of
//! the way and of one pulse, not of several ways.
//!
//! Invariant: an answer counts from when the question was asked, by this node's clock.

use super::{
    ASK_WITHIN, Regions,
    link::{Answer, Ask},
};
use crate::{
    cluster::{Description, Part},
    model::CollectionId,
    world,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};

/// Questions under way to one home.
const UNDER_WAY: usize = 64;
/// How often it is looked which homes there are.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After a failure a home is not asked for so long.
const REST: Duration = Duration::from_millis(100);

impl Regions {
    /// Asks every home that is followed, until the node closes.
    pub(super) async fn pulses(self) {
        let mut asking: BTreeMap<CollectionId, Description> = BTreeMap::new();
        loop {
            let news = self.cluster().news();
            let followed = self.cluster().described();
            let followed = followed.into_iter().filter(|of| matches!(of.region.part, Part::Follower { .. }));
            let followed: BTreeMap<_, _> = followed.map(|of| (of.id, of)).collect();
            asking.retain(|id, of| followed.get(id).is_some_and(|now| now.is_as(of)));
            for (id, of) in followed {
                if asking.insert(id, of.clone()).is_none() {
                    world::spawn(self.clone().pulse(of));
                }
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

    /// Asks one home for as long as it is followed.
    async fn pulse(self, of: Description) {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY));
        let failing = Arc::new(Semaphore::new(1));
        while self.cluster().described_now(&of.name).is_some_and(|now| now.is_as(&of)) {
            // One at a time while it fails: nobody is asked in vain many times at once.
            if failing.available_permits() == 0 && !self.pause(REST).await {
                return;
            }
            let permit = under_way.clone().try_acquire_owned();
            if let Ok(permit) = permit {
                let (regions, of, failing) = (self.clone(), of.clone(), failing.clone());
                world::spawn(async move {
                    let failed = regions.ask_positions(&of).await.is_none();
                    if failed {
                        let rest = failing.try_acquire();
                        tokio::time::sleep(REST).await;
                        drop(rest);
                    }
                    drop(permit);
                });
            }
            if !self.pause(self.options().pulse).await {
                return;
            }
        }
    }

    async fn ask_positions(&self, of: &Description) -> Option<()> {
        let Part::Follower { home } = &of.region.part else { return None };
        let asked = Instant::now();
        let generation = of.region.generation();
        let answer = self.ask(home, of, Ask::Positions { generation });
        let answer = tokio::time::timeout(ASK_WITHIN, answer).await.ok()?;
        let Ok(Answer::Positions(positions)) = answer else { return None };
        let (positions, bytes): (Vec<_>, Vec<_>) = positions.into_iter().unzip();
        self.cluster().hear_of_home(of, asked, &positions);
        self.note_command_bytes(of.id, bytes);
        Some(())
    }
}
