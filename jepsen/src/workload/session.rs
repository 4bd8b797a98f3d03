//! One client process: asks nodes for single operations and records what it is told.
//!
//! Invariants: see `workload`. It stays at its home node, goes elsewhere for a while when that is in trouble, and
//! asks another node now and then.

use crate::{
    checker::{
        observe::{EXISTS, PRECONDITION},
        view::ODD,
    },
    client::{Client, Effect, Failed, Reply, outcome},
    history::{Event, Kind, Process, Recorder},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// What all sessions of a run share.
pub struct Shared {
    /// Where events go.
    pub recorder: Recorder,
    /// Where the nodes are, and what they are called.
    pub urls: Vec<String>,
    /// Names of the nodes.
    pub names: Vec<String>,
    /// What to say to be let in.
    pub api_key: Option<String>,
    /// Set when clients are to stop.
    pub stop: AtomicBool,
    /// Set once nothing is written any more and the cluster has come to rest.
    pub at_rest: AtomicBool,
    /// The next value nobody has written.
    pub next_value: AtomicU64,
    /// The seed of the run.
    pub seed: u64,
}

/// One client.
pub struct Session<'a> {
    /// What it shares with the others.
    pub shared: &'a Shared,
    /// Its random numbers.
    pub rng: StdRng,
    /// Its number among the sessions of the run; stays the same whatever process it is.
    pub number: usize,
    workload: &'static str,
    process: Process,
    client: Client,
    /// Until when each node is avoided.
    avoided: Vec<Option<Instant>>,
}

/// How long a node in trouble is avoided.
const AVOIDED: Duration = Duration::from_millis(1_000);
/// How long a client waits for an answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What an answer tells of an operation that took effect, or what is odd about it.
pub(super) type Told = Result<(Value, Option<u64>), String>;

impl<'a> Session<'a> {
    /// A session of a workload.
    pub fn new(shared: &'a Shared, workload: &'static str, number: usize) -> Self {
        Session {
            rng: StdRng::seed_from_u64(shared.seed << 20 ^ number as u64),
            number,
            workload,
            process: shared.recorder.process(),
            client: Client::new(shared.api_key.as_deref(), ANSWER_WITHIN),
            avoided: vec![None; shared.urls.len()],
            shared,
        }
    }

    /// Whether it is to stop.
    pub fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// A value that nobody has written.
    pub fn fresh_value(&self) -> u64 {
        self.shared.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// Home, or any node one time in eight; the next one if that is avoided.
    pub fn node(&mut self) -> usize {
        let count = self.shared.urls.len();
        let first =
            if self.rng.random_ratio(1, 8) { self.rng.random_range(0..count) } else { self.number % count };
        let now = Instant::now();
        let mut from_first = (0..count).map(|n| (first + n) % count);
        from_first.find(|n| self.avoided[*n].is_none_or(|until| until < now)).unwrap_or(first)
    }

    /// Sends a request to a node, unrecorded.
    pub fn send(
        &self,
        node: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Reply, Failed> {
        self.client.send(method, &format!("{}{path}", self.shared.urls[node]), headers, body)
    }

    /// The path of something in its collection.
    pub fn path(&self, rest: &str) -> String {
        format!("/collections/{}{rest}", self.workload)
    }

    /// One operation: recorded, sent by `send`, and recorded as what `told` reads from a good answer (200).
    ///
    /// Gives what became of it and what was told.
    pub fn operate(
        &mut self,
        node: usize,
        (f, key, value): (&str, Option<u64>, Value),
        effect: Effect,
        send: impl FnOnce(&Self) -> Result<Reply, Failed>,
        told: impl FnOnce(&Reply) -> Told,
    ) -> (Kind, Event) {
        let asked = Event {
            key,
            value,
            workload: self.workload.to_owned(),
            node: Some(self.shared.names[node].clone()),
            ..Event::of(f)
        };
        let invocation = self.shared.recorder.invoke(self.process, asked);
        let answer = send(self);
        let (kind, told) = match &answer {
            Ok(reply) if is_answer(reply) => match told(reply) {
                Ok((value, version)) => (Kind::Ok, Event { value, version, ..Event::of("") }),
                Err(odd) => (Kind::Info, Event { error: Some(format!("{ODD}{odd}")), ..Event::of("") }),
            },
            _ => outcome(effect, &answer),
        };
        let (kind, told) = refused(&answer).map_or((kind, told), |told| (Kind::Fail, told));
        self.avoided[node] = match &answer {
            Ok(reply) if reply.status < 500 => None,
            _ => Some(Instant::now() + AVOIDED),
        };
        self.shared.recorder.complete(invocation, kind, told.clone());
        if kind == Kind::Info {
            self.process = self.shared.recorder.process();
        }
        (kind, told)
    }
}

/// 200, or that there is no such point (which is an answer too).
fn is_answer(reply: &Reply) -> bool {
    reply.status == 200 || is_no_point(reply)
}

/// Whether the answer is that there is no such point.
pub(super) fn is_no_point(reply: &Reply) -> bool {
    reply.status == 404 && reply.body["status"]["error"].as_str().is_some_and(|why| why.contains("No point"))
}

/// An answer that says why nothing was done: the version that was there (412), or that the collection exists.
fn refused(answer: &Result<Reply, Failed>) -> Option<Event> {
    let reply = answer.as_ref().ok().filter(|reply| reply.no_effect)?;
    let exists = reply.body["status"]["error"].as_str().is_some_and(|why| why.contains("already exists"));
    let error = match reply.status {
        412 => PRECONDITION,
        _ if exists => EXISTS,
        _ => return None,
    };
    Some(Event { version: reply.body["version"].as_u64(), error: Some(error.to_owned()), ..Event::of("") })
}
