//! Commands on their way to leaders on other nodes: one lane a replica, several commands a call.
//!
//! A call goes out at once when none is under way; else the next one fills ([`crate::batch`]). A request between nodes
//! costs far more than a command, so a busy router sends few and large ones, and a lone command waits for nobody.
//!
//! Invariants: a command whose caller gave it up before it was taken into a call is not sent, and its caller knows
//! for certain; a call of which every caller gave up is dropped, so that a leader that hangs keeps no lane shut.
//! Not here: who leads, retries (`router`).

use super::{
    ClusterError,
    peers::{Errand, PeerCalls, Refusal, Remedy},
};
use crate::{
    batch::{BatchLimits, Batches, Item, Slot},
    machine::Outcome,
    model::ReplicaId,
    world,
};
use futures::future::{BoxFuture, join_all};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Of the calls to one replica.
const CALLS: BatchLimits = BatchLimits { bytes: 1 << 20, items: 1024, under_way: 3 };
/// For [`Lanes::idle`].
const IDLE: Duration = Duration::from_secs(30);

/// Carries commands to a replica; one answer each, in order.
pub(super) type Carrier =
    Arc<dyn Fn(ReplicaId, Vec<Errand>) -> BoxFuture<'static, Vec<Result<Outcome, Refusal>>> + Send + Sync>;

/// The ways to the leaders.
#[derive(Clone)]
pub(super) struct Lanes {
    carrier: Carrier,
    /// A lane that nobody used for so long is closed.
    idle: Duration,
    open: Arc<Mutex<HashMap<ReplicaId, mpsc::UnboundedSender<Waiting>>>>,
}

struct Waiting {
    errand: Errand,
    /// Set by whoever comes first: the lane that takes the command, or the caller that gives up.
    settled: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<Outcome, Refusal>>,
}

impl Item for Waiting {
    fn bytes(&self) -> usize {
        self.errand.command.len()
    }
}

/// A command that was handed to a lane.
pub(super) struct Sent {
    settled: Arc<AtomicBool>,
    answer: oneshot::Receiver<Result<Outcome, Refusal>>,
}

impl Sent {
    /// What became of it.
    pub(super) async fn answer(&mut self) -> Result<Outcome, Refusal> {
        (&mut self.answer).await.unwrap_or_else(|_| Err(Refusal::in_doubt("a command sent to another node")))
    }

    /// Gives it up: what is certain about it now.
    pub(super) fn give_up(self, why: &str, remedy: Remedy) -> Refusal {
        let refusal = if self.settled.swap(true, Ordering::AcqRel) {
            Refusal::in_doubt(why)
        } else {
            Refusal::unreached(why)
        };
        Refusal { remedy, ..refusal }
    }
}

impl Lanes {
    /// Lanes over the calls between nodes.
    pub(super) fn over(calls: PeerCalls) -> Self {
        let carrier: Carrier = Arc::new(move |to, errands| {
            let calls = calls.clone();
            Box::pin(async move {
                calls.propose(to, &errands).await.unwrap_or_else(|e| {
                    let refusal = Refusal::from(e);
                    errands.iter().map(|_| Err(refusal.clone())).collect()
                })
            })
        });
        Lanes { carrier, idle: IDLE, open: Arc::default() }
    }

    /// Hands a command to the lane of a replica.
    pub(super) fn send(&self, to: ReplicaId, errand: Errand) -> Sent {
        let settled = Arc::new(AtomicBool::new(false));
        let (tell, answer) = oneshot::channel();
        let waiting = Waiting { errand, settled: settled.clone(), answer: tell };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = open.entry(to).or_insert_with(|| {
            let (lane, queue) = mpsc::unbounded_channel();
            world::spawn(self.clone().run(to, Batches::of(queue, CALLS)));
            lane
        });
        // A lane closes only while nothing is in it and nobody can send, see `close_if_empty`.
        let _ = lane.send(waiting);
        Sent { settled, answer }
    }

    async fn run(self, to: ReplicaId, mut queue: Batches<Waiting>) {
        loop {
            let (mut taken, slot) = match timeout(self.idle, queue.next()).await {
                Ok(Some(batch)) => batch,
                Ok(None) => return,
                Err(_) if self.close_if_empty(to, &queue) => return,
                Err(_) => continue,
            };
            taken.retain(|waiting| !waiting.settled.swap(true, Ordering::AcqRel));
            if !taken.is_empty() {
                world::spawn(carry(self.carrier.clone(), to, taken, slot));
            }
        }
    }

    fn close_if_empty(&self, to: ReplicaId, queue: &Batches<Waiting>) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = queue.is_empty();
        if empty {
            open.remove(&to);
        }
        empty
    }
}

/// One call, and its answers.
async fn carry(carrier: Carrier, to: ReplicaId, taken: Vec<Waiting>, _slot: Slot) {
    let (errands, mut callers): (Vec<_>, Vec<_>) = taken.into_iter().map(|w| (w.errand, w.answer)).unzip();
    let results = tokio::select! {
        results = carrier(to, errands) => results,
        _ = join_all(callers.iter_mut().map(|caller| caller.closed())) => return,
    };
    for (caller, result) in callers.into_iter().zip(results) {
        // A caller that gave up is no longer there.
        let _ = caller.send(result);
    }
}

impl From<Refusal> for ClusterError {
    fn from(refusal: Refusal) -> Self {
        refusal.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        machine::Verdict,
        model::{Effect, Position},
    };
    use bytes::Bytes;
    use tokio::{sync::Semaphore, time::Instant};

    const LEADER: ReplicaId = ReplicaId(7);

    fn errand(command: impl Into<Bytes>) -> Errand {
        let deadline = Instant::now() + Duration::from_secs(10);
        Errand { command: command.into(), deadline }
    }

    /// A leader that answers each call once a permit is there; notes how many commands each call had.
    fn leader(permits: Arc<Semaphore>) -> (Lanes, Arc<Mutex<Vec<usize>>>) {
        let calls: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = calls.clone();
        let carrier: Carrier = Arc::new(move |_, errands| {
            let (seen, permits) = (seen.clone(), permits.clone());
            Box::pin(async move {
                seen.lock().unwrap().push(errands.len());
                permits.acquire().await.unwrap().forget();
                let position = |e: &Errand| Position(e.command.len() as u64);
                let applied = |e| Ok(Outcome { position: position(e), verdict: Verdict::Applied });
                errands.iter().map(applied).collect()
            })
        });
        (Lanes { carrier, idle: Duration::from_millis(20), open: Arc::default() }, calls)
    }

    #[tokio::test]
    async fn commands_that_wait_share_a_call_and_each_gets_its_own_answer() {
        let permits = Arc::new(Semaphore::new(0));
        let (lanes, calls) = leader(permits.clone());
        let mut sent = vec![lanes.send(LEADER, errand("x"))];
        tokio::time::sleep(Duration::from_millis(10)).await;
        sent.extend((2..=100).map(|length| lanes.send(LEADER, errand(vec![0; length]))));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(*calls.lock().unwrap(), [1], "the first goes out alone, and nothing follows it");
        permits.add_permits(10);
        for (at, sent) in sent.iter_mut().enumerate() {
            let Ok(outcome) = sent.answer().await else { panic!("{at} was not applied") };
            assert_eq!(outcome.position, Position(at as u64 + 1));
        }
        assert_eq!(*calls.lock().unwrap(), [1, 99]);
    }

    #[tokio::test]
    async fn giving_up_is_certain_before_the_command_was_taken_and_in_doubt_after() {
        let (lanes, calls) = leader(Arc::new(Semaphore::new(0)));
        let taken = lanes.send(LEADER, errand("taken"));
        tokio::time::sleep(Duration::from_millis(10)).await;
        let waiting = lanes.send(LEADER, errand("waiting"));
        let effect = |sent: Sent| sent.give_up("too late", Remedy::Again).error.effect();
        assert_eq!(effect(waiting), Effect::None);
        assert_eq!(effect(taken), Effect::Unknown);
        // All callers of the call under way are gone: the lane is free again, and what was given up is not sent.
        let _next = lanes.send(LEADER, errand("next"));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(*calls.lock().unwrap(), [1, 1]);
    }

    #[tokio::test]
    async fn a_lane_that_nobody_uses_closes_and_opens_again() {
        let (lanes, _) = leader(Arc::new(Semaphore::new(2)));
        assert!(lanes.send(LEADER, errand("a")).answer().await.is_ok());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(lanes.open.lock().unwrap().is_empty());
        assert!(lanes.send(LEADER, errand("b")).answer().await.is_ok());
    }
}
