//! Whose turn it is to build, among the shards of a node, so that one graph is built at a time.
//!
//! Invariants: turns are had in the order in which they were asked for, so that a shard whose every build ends with the next
//! one waiting does not keep the others from theirs.
//! Not here: what is built, and how much what builds gives way (`indexer`).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How often who waits looks at something else.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The turns of a node, and how many searches there were that a build might be in the way of; its clones are the same.
#[derive(Clone, Debug, Default)]
pub struct BuildTurn(Arc<Turns>);

#[derive(Debug, Default)]
struct Turns {
    /// Who has the turn, then who waits for it.
    queue: Mutex<VecDeque<Place>>,
    moved: Condvar,
    /// Of the next place.
    number: AtomicU64,
    searches: AtomicU64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    /// Whether it waits with so much to build that all is to be done to give it its turn.
    late: bool,
}

/// A turn, or a place among those who wait for one, until it is dropped.
#[derive(Debug)]
pub(super) struct InTurn<'a> {
    turns: &'a Turns,
    number: u64,
}

/// Who waited for a turn was told to stop.
#[derive(Debug)]
pub(super) struct Stopped;

impl BuildTurn {
    /// Says that there is a search.
    pub(super) fn search(&self) {
        self.0.searches.fetch_add(1, Ordering::Relaxed);
    }

    /// How many searches there were.
    pub(super) fn searches(&self) -> u64 {
        self.0.searches.load(Ordering::Relaxed)
    }

    /// Waits for a turn; `stops` and `is_late` are asked now and then meanwhile.
    ///
    /// Errors: `stops` said so before it came.
    pub(super) fn wait(
        &self,
        stops: impl Fn() -> bool,
        is_late: impl Fn() -> bool,
    ) -> Result<InTurn<'_>, Stopped> {
        let turn = InTurn { turns: &self.0, number: self.0.number.fetch_add(1, Ordering::Relaxed) };
        self.0.queue().push_back(Place { number: turn.number, late: false });
        loop {
            let late = is_late();
            let mut queue = self.0.queue();
            if queue.front().is_some_and(|first| first.number == turn.number) {
                return Ok(turn);
            }
            queue.iter_mut().filter(|place| place.number == turn.number).for_each(|place| place.late = late);
            let waited = self.0.moved.wait_timeout(queue, LOOK_EVERY);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if stops() {
                return Err(Stopped);
            }
        }
    }

    /// Whether someone waits for a turn with so much to build that who has it should hurry.
    pub(super) fn is_awaited_late(&self) -> bool {
        self.0.queue().iter().skip(1).any(|place| place.late)
    }
}

impl Turns {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Place>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        self.turns.queue().retain(|place| place.number != self.number);
        self.turns.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicBool, AtomicUsize},
        mpsc,
    };

    /// Waits until so many have the turn or wait for it.
    fn until_asked_by(turn: &BuildTurn, count: usize) {
        while turn.0.queue().len() < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn turns_come_in_the_order_they_were_asked_for() {
        let turn = BuildTurn::default();
        let (had, order) = mpsc::channel();
        std::thread::scope(|scope| {
            let first = turn.wait(|| false, || false).expect("it is free");
            for number in 0..4 {
                let (turns, had) = (turn.clone(), had.clone());
                scope.spawn(move || {
                    let _turn = turns.wait(|| false, || false).expect("it comes");
                    had.send(number).expect("it is waited for");
                });
                until_asked_by(&turn, number + 2);
            }
            drop(first);
            // Who had it asks again at once, and is the last.
            let _again = turn.wait(|| false, || false).expect("it comes");
            assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        });
        assert_eq!(turn.0.queue().len(), 0);
    }

    #[test]
    fn who_stops_leaves_its_place_and_who_is_late_is_known() {
        let turn = BuildTurn::default();
        let (stops, late) = (AtomicBool::new(false), AtomicBool::new(false));
        let asked = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let held = turn.wait(|| false, || true).expect("it is free");
            assert!(!turn.is_awaited_late(), "who has it does not wait");
            let waits = scope.spawn(|| {
                let is_late = || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    late.load(Ordering::Relaxed)
                };
                turn.wait(|| stops.load(Ordering::Relaxed), is_late).map(drop)
            });
            until_asked_by(&turn, 2);
            while asked.load(Ordering::Relaxed) < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!turn.is_awaited_late());
            late.store(true, Ordering::Relaxed);
            while !turn.is_awaited_late() {
                std::thread::sleep(Duration::from_millis(1));
            }
            stops.store(true, Ordering::Relaxed);
            assert!(waits.join().expect("it ends").is_err());
            assert!(!turn.is_awaited_late());
            assert_eq!(turn.0.queue().len(), 1);
            drop(held);
        });
        turn.wait(|| true, || false).expect("it is free again");
    }
}
