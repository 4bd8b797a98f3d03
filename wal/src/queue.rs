//! What waits for the writer: requests of all groups, in one order, within a budget of bytes.
//!
//! Invariants: a group's requests are queued under that group's lock, so the order of the queue is the order its
//! owner saw; once closed nothing enters; what entered is completed exactly once, by the writer or by the failure.
//! Deliberately absent: priorities. Requests of a few bytes (votes, purges) pass without a permit, so that a full
//! queue can't keep a vote from being saved.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use crate::{
    entry::GroupId,
    error::Error,
    group::GroupCell,
    record::{self, Event},
};

/// Called once, in log order, on the writer's thread.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// One record of a request: its head lies in the request's `heads`.
pub(crate) struct Part {
    pub(crate) event: Event,
    pub(crate) head_bytes: usize,
    pub(crate) payload: Bytes,
    pub(crate) crc: u32,
}

/// Records of one group that are written together.
pub(crate) struct Request {
    pub(crate) cell: Arc<GroupCell>,
    pub(crate) heads: Vec<u8>,
    pub(crate) parts: Vec<Part>,
    /// Bytes of all its records.
    pub(crate) bytes: usize,
    /// Permits to give back when it is done.
    pub(crate) permits: usize,
    pub(crate) done: Option<Done>,
}

impl Request {
    pub(crate) fn new(cell: Arc<GroupCell>) -> Request {
        Request { cell, heads: Vec::new(), parts: Vec::new(), bytes: 0, permits: 0, done: None }
    }

    /// A request of one record without payload.
    pub(crate) fn single(cell: Arc<GroupCell>, event: Event, done: Option<Done>) -> Request {
        let mut request = Request::new(cell);
        request.push(event, Bytes::new());
        request.done = done;
        request
    }

    /// Encodes one more record, on the caller's thread: the writer only copies.
    pub(crate) fn push(&mut self, event: Event, payload: Bytes) {
        let start = self.heads.len();
        let crc = record::encode_head(&mut self.heads, self.cell.id, &event, &payload);
        let head_bytes = self.heads.len() - start;
        self.bytes += head_bytes + payload.len();
        self.parts.push(Part { event, head_bytes, payload, crc });
    }

    pub(crate) fn group(&self) -> GroupId {
        self.cell.id
    }
}

/// Why nothing enters any more.
#[derive(Clone, Debug)]
pub(crate) enum Closed {
    Poisoned(Arc<str>),
    ShutDown,
}

impl Closed {
    pub(crate) fn error(&self) -> Error {
        match self {
            Closed::Poisoned(why) => Error::Poisoned { why: why.clone() },
            Closed::ShutDown => Error::Closed,
        }
    }
}

#[derive(Default)]
struct Waiting {
    requests: Vec<Request>,
    /// Whether one of them is worth a frame of its own.
    eager: bool,
    asleep: bool,
    closed: Option<Closed>,
}

/// The queue before the writer.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// As `wake`, for a writer that is a task.
    rouse: Notify,
    budget: Semaphore,
    budget_bytes: usize,
}

/// Permits taken from the budget, given back when dropped unless they are spent.
pub(crate) struct Permits<'a> {
    permits: tokio::sync::SemaphorePermit<'a>,
    count: usize,
}

impl Permits<'_> {
    /// Hands the permits to a request.
    pub(crate) fn spend(self) -> usize {
        self.permits.forget();
        self.count
    }
}

impl Queue {
    pub(crate) fn new(budget_bytes: usize) -> Queue {
        let budget = Semaphore::new(budget_bytes);
        Queue { waiting: Mutex::default(), wake: Condvar::new(), rouse: Notify::new(), budget, budget_bytes }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for `bytes`; awaits only when the budget is spent. A request larger than the budget takes it all.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Permits<'_>, Error> {
        let count = bytes.min(self.budget_bytes);
        let wanted = u32::try_from(count).expect("the budget is checked to fit 32 bits");
        let permits = match self.budget.try_acquire_many(wanted) {
            Ok(permits) => Ok(permits),
            Err(_) => self.budget.acquire_many(wanted).await,
        };
        let permits = permits.map_err(|_| self.closed().unwrap_or(Error::Closed))?;
        Ok(Permits { permits, count })
    }

    pub(crate) fn release(&self, permits: usize) {
        self.budget.add_permits(permits);
    }

    /// Queues a request and wakes the writer.
    pub(crate) fn push(&self, request: Request) -> Result<(), Error> {
        self.push_all([request])
    }

    /// Queues requests one behind the other, all or none, and wakes the writer.
    pub(crate) fn push_all(&self, requests: impl IntoIterator<Item = Request>) -> Result<(), Error> {
        let mut waiting = self.waiting();
        if let Some(closed) = &waiting.closed {
            return Err(closed.error());
        }
        waiting.requests.extend(requests);
        waiting.eager = true;
        if std::mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.wake.notify_one();
            self.rouse.notify_one();
        }
        Ok(())
    }

    /// Queues a request that can wait for the next frame, or the next idle moment.
    pub(crate) fn push_lazily(&self, request: Request) -> Result<(), Error> {
        let mut waiting = self.waiting();
        if let Some(closed) = &waiting.closed {
            return Err(closed.error());
        }
        waiting.requests.push(request);
        Ok(())
    }

    /// Sleeps up to `patience` as `take` does, on no thread.
    pub(crate) async fn rest(&self, patience: Duration) {
        {
            let mut waiting = self.waiting();
            if waiting.eager || waiting.closed.is_some() {
                return;
            }
            waiting.asleep = true;
        }
        // In vain or not, `take` looks.
        let _ = tokio::time::timeout(patience, self.rouse.notified()).await;
        self.waiting().asleep = false;
    }

    /// Takes all that waits, sleeping up to `patience` if nothing does that can't wait. `Err` when closed and empty.
    /// `into` must be empty.
    pub(crate) fn take(&self, into: &mut Vec<Request>, patience: Duration) -> Result<(), Closed> {
        let mut waiting = self.waiting();
        let idle = |waiting: &mut Waiting| !waiting.eager && waiting.closed.is_none();
        if !patience.is_zero() && idle(&mut waiting) {
            waiting.asleep = true;
            let woken = self.wake.wait_timeout_while(waiting, patience, idle);
            (waiting, _) = woken.unwrap_or_else(PoisonError::into_inner);
            waiting.asleep = false;
        }
        waiting.eager = false;
        if waiting.requests.is_empty()
            && let Some(closed) = &waiting.closed
        {
            return Err(closed.clone());
        }
        std::mem::swap(into, &mut waiting.requests);
        Ok(())
    }

    /// Lets nothing in any more; a poisoning overrides a shutdown. Gives what waits if poisoned.
    pub(crate) fn close(&self, why: Closed) -> Vec<Request> {
        let mut waiting = self.waiting();
        let poisoned = matches!(why, Closed::Poisoned(_));
        let overrides = match &waiting.closed {
            None => true,
            Some(Closed::ShutDown) => poisoned,
            Some(Closed::Poisoned(_)) => false,
        };
        if overrides {
            waiting.closed = Some(why);
        }
        let left = if poisoned { std::mem::take(&mut waiting.requests) } else { Vec::new() };
        drop(waiting);
        self.budget.close();
        self.wake.notify_all();
        self.rouse.notify_one();
        left
    }

    pub(crate) fn closed(&self) -> Option<Error> {
        self.waiting().closed.as_ref().map(Closed::error)
    }
}
