//! Batches that clock themselves: what waits goes out together as soon as nothing else is under way.
//!
//! Who waits alone waits for nobody; while a batch is under way the next one fills, and it follows early only if it
//! is large enough that one more costs next to nothing. Behind a batch of several, the next one is held back for those
//! who were just answered: they come again, within turns of the event loop that take as long as there is other work. So
//! there is no timer, many callers share the cost of a batch, and a slow machine slows its callers.
//!
//! Invariants: items leave in the order in which they came; batches under way are bounded in number and each in bytes
//! and items (but for a single larger item).
//! Not here: what an item is, room in the queue.
//! Source: Nagle, RFC 896.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::{Notify, mpsc};

/// A batch of so many bytes follows while others are under way,
const WORTH_BYTES: usize = 128 << 10;
/// and one of so many items.
const WORTH_ITEMS: usize = 256;

/// A batch is held back until so many turns of the event loop brought nothing.
const TURNS_IN_VAIN: usize = 24;

/// What is put into batches.
pub trait Item {
    /// Its size.
    fn bytes(&self) -> usize;
}

/// Bounds of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// A batch is filled up to this many bytes (or holds one larger item),
    pub bytes: usize,
    /// and up to this many items.
    pub items: usize,
    /// Batches under way at a time.
    pub under_way: usize,
}

/// The end of a queue that takes items out in batches.
pub struct Batches<T> {
    limits: BatchLimits,
    queue: mpsc::UnboundedReceiver<T>,
    /// Taken from the queue, not yet in a batch.
    waiting: VecDeque<T>,
    waiting_bytes: usize,
    /// Items of the last batch.
    crowd: usize,
    under_way: Arc<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    count: AtomicUsize,
    fewer: Notify,
}

/// A batch is under way until this is dropped.
pub struct Slot(Arc<UnderWay>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.fewer.notify_one();
    }
}

impl<T: Item> Batches<T> {
    /// Over a queue.
    pub fn of(queue: mpsc::UnboundedReceiver<T>, limits: BatchLimits) -> Self {
        let (waiting, under_way) = Default::default();
        Batches { limits, queue, waiting, waiting_bytes: 0, crowd: 0, under_way }
    }

    /// The next batch, once it may go out; `None` once nobody can add an item. May be dropped and asked again.
    pub async fn next(&mut self) -> Option<(Vec<T>, Slot)> {
        loop {
            self.take_in_all();
            if self.may_go() {
                if self.crowd > 1 {
                    self.take_in_latecomers().await;
                }
                let batch = self.take_out();
                self.crowd = batch.len();
                return Some((batch, self.slot()));
            }
            tokio::select! {
                item = self.queue.recv(), if !self.is_full() => match item {
                    Some(item) => self.take_in(item),
                    // What waits still goes out, when it may.
                    None if self.waiting.is_empty() => return None,
                    None => self.under_way.fewer.notified().await,
                },
                () = self.under_way.fewer.notified() => {}
            }
        }
    }

    /// Whether a batch is under way, so that the next one may have to wait.
    pub fn is_busy(&self) -> bool {
        self.count() > 0
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.queue.is_empty()
    }

    /// Takes out all that wait.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.waiting_bytes = 0;
        let mut all = std::mem::take(&mut self.waiting);
        while let Ok(item) = self.queue.try_recv() {
            all.push_back(item);
        }
        all.into_iter()
    }

    fn count(&self) -> usize {
        self.under_way.count.load(Ordering::Acquire)
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= self.limits.items || self.waiting_bytes >= self.limits.bytes
    }

    fn may_go(&self) -> bool {
        let count = self.count();
        let large = self.waiting.len() >= WORTH_ITEMS || self.waiting_bytes >= WORTH_BYTES || self.is_full();
        !self.waiting.is_empty() && (count == 0 || large && count < self.limits.under_way)
    }

    fn take_in_all(&mut self) {
        while !self.is_full()
            && let Ok(item) = self.queue.try_recv()
        {
            self.take_in(item);
        }
    }

    /// Takes in what the next turns of the event loop bring, until as many are there as were just answered.
    async fn take_in_latecomers(&mut self) {
        let (all, mut in_vain) = (self.waiting.len() + self.crowd, 0);
        while self.waiting.len() < all && !self.is_full() && in_vain < TURNS_IN_VAIN {
            let before = self.waiting.len();
            tokio::task::yield_now().await;
            self.take_in_all();
            in_vain = if self.waiting.len() == before { in_vain + 1 } else { 0 };
        }
    }

    fn take_in(&mut self, item: T) {
        self.waiting_bytes += item.bytes();
        self.waiting.push_back(item);
    }

    fn take_out(&mut self) -> Vec<T> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < self.limits.items
            && let Some(item) = self.waiting.pop_front_if(|item| {
                bytes += item.bytes();
                bytes <= self.limits.bytes || batch.is_empty()
            })
        {
            self.waiting_bytes -= item.bytes();
            batch.push(item);
        }
        batch
    }

    fn slot(&self) -> Slot {
        self.under_way.count.fetch_add(1, Ordering::AcqRel);
        Slot(self.under_way.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    impl Item for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    fn batches(limits: BatchLimits) -> (mpsc::UnboundedSender<usize>, Batches<usize>) {
        let (queue, items) = mpsc::unbounded_channel();
        (queue, Batches::of(items, limits))
    }

    const LIMITS: BatchLimits = BatchLimits { bytes: 1 << 20, items: 1024, under_way: 3 };

    /// The batch that may go now.
    fn now(batches: &mut Batches<usize>) -> Option<(Vec<usize>, Slot)> {
        batches.crowd = 0;
        batches.next().now_or_never().flatten()
    }

    #[tokio::test]
    async fn those_who_were_just_answered_come_along() {
        let (queue, mut batches) = batches(LIMITS);
        [1, 2].iter().for_each(|item| queue.send(*item).unwrap());
        drop(batches.next().await.unwrap());
        queue.send(3).unwrap();
        let late = queue.clone();
        tokio::spawn(async move { late.send(4).unwrap() });
        assert_eq!(batches.next().await.unwrap().0, [3, 4]);
        // A lone one behind a batch of several goes all the same.
        queue.send(5).unwrap();
        assert_eq!(batches.next().await.unwrap().0, [5]);
    }

    #[test]
    fn one_goes_alone_and_those_behind_it_together() {
        let (queue, mut batches) = batches(LIMITS);
        queue.send(1).unwrap();
        let (first, slot) = now(&mut batches).unwrap();
        assert_eq!(first, [1]);
        (2..6).for_each(|item| queue.send(item).unwrap());
        assert!(now(&mut batches).is_none(), "the first is under way");
        queue.send(6).unwrap();
        assert!(batches.is_busy() && !batches.is_empty());
        drop(slot);
        assert_eq!(now(&mut batches).unwrap().0, [2, 3, 4, 5, 6]);
        assert!(batches.is_empty());
    }

    #[test]
    fn large_ones_follow_each_other_up_to_the_bound() {
        let (queue, mut batches) = batches(LIMITS);
        let mut slots = Vec::new();
        for _ in 0..LIMITS.under_way {
            queue.send(WORTH_BYTES).unwrap();
            slots.push(now(&mut batches).unwrap());
        }
        queue.send(WORTH_BYTES).unwrap();
        assert!(now(&mut batches).is_none());
        slots.pop();
        assert_eq!(now(&mut batches).unwrap().0, [WORTH_BYTES]);
    }

    #[test]
    fn a_batch_holds_no_more_than_it_may_and_order_stays() {
        let (queue, mut batches) = batches(BatchLimits { bytes: 100, items: 3, under_way: 9 });
        [40, 60, 1, 500, 1, 1, 1, 1].iter().for_each(|item| queue.send(*item).unwrap());
        drop(queue);
        let mut out = Vec::new();
        while let Some((batch, _)) = now(&mut batches) {
            out.push(batch);
        }
        assert_eq!(out, [vec![40, 60], vec![1], vec![500], vec![1, 1, 1], vec![1]]);
    }

    #[tokio::test]
    async fn what_waits_when_the_queue_is_closed_goes_out_first() {
        let (queue, mut batches) = batches(LIMITS);
        queue.send(1).unwrap();
        let (_, slot) = now(&mut batches).unwrap();
        queue.send(2).unwrap();
        drop(queue);
        let last =
            tokio::spawn(async move { (batches.next().await.unwrap().0, batches.next().await.is_none()) });
        tokio::task::yield_now().await;
        drop(slot);
        assert_eq!(last.await.unwrap(), (vec![2], true));
    }

    #[test]
    fn who_waits_can_be_sent_home() {
        let (queue, mut batches) = batches(LIMITS);
        queue.send(1).unwrap();
        let _under_way = now(&mut batches).unwrap();
        queue.send(2).unwrap();
        assert!(now(&mut batches).is_none());
        queue.send(3).unwrap();
        assert_eq!(batches.drain().collect::<Vec<_>>(), [2, 3]);
        assert!(batches.is_empty());
    }
}
