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
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// Questions under way to one home.
const UNDER_WAY: usize = 64;
/// How often it is looked which homes there are.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a home is asked that does not answer.
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
        let (under_way, fails) = (Arc::new(Semaphore::new(UNDER_WAY)), Arc::new(AtomicBool::new(false)));
        while self.cluster().described_now(&of.name).is_some_and(|now| now.is_as(&of)) {
            if let Ok(permit) = under_way.clone().try_acquire_owned() {
                let (regions, of, fails) = (self.clone(), of.clone(), fails.clone());
                world::spawn(async move {
                    fails.store(regions.ask_positions(&of).await.is_none(), Ordering::Relaxed);
                    drop(permit);
                });
            }
            // Who does not answer is not asked as often.
            let rest = if fails.load(Ordering::Relaxed) { REST } else { self.options().pulse };
            if !self.pause(rest).await {
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
