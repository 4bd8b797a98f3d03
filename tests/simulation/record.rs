//! The history of a run, as the checkers of the harness read it.

use crate::trace::Trace;
use annal_jepsen::history::{Event, History, Kind, Process};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// The workload everything belongs to; also the collection's name.
pub(crate) const COLLECTION: &str = "c";

/// Takes events down in one order.
pub(crate) struct Record {
    began: Instant,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    processes: u64,
    pending: BTreeMap<Process, usize>,
}

/// An operation under way.
pub(crate) struct Invocation(Process);

impl Record {
    pub(crate) fn new(trace: Arc<Trace>) -> Record {
        Record { began: Instant::now(), trace, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process nobody has been yet.
    pub(crate) fn process(&self) -> Process {
        let mut state = self.lock();
        state.processes += 1;
        Process::Client(state.processes)
    }

    fn push(&self, state: &mut State, mut event: Event) {
        event.index = state.events.len() as u64;
        event.time = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let Event { kind, process, f, key, value, version, .. } = &event;
        self.trace.line(format_args!("{kind:?} {process:?} {f} {key:?} {value} {version:?}"));
        state.events.push(event);
    }

    pub(crate) fn invoke(
        &self,
        process: Process,
        node: &str,
        (f, key, value): (&str, Option<u64>, Value),
    ) -> Invocation {
        let mut state = self.lock();
        let at = state.events.len();
        assert!(state.pending.insert(process, at).is_none(), "{process:?} does one thing at a time");
        let (workload, node) = (COLLECTION.to_owned(), Some(node.to_owned()));
        let event = Event { kind: Kind::Invoke, process, key, value, workload, node, ..Event::of(f) };
        self.push(&mut state, event);
        Invocation(process)
    }

    pub(crate) fn complete(&self, Invocation(process): Invocation, kind: Kind, told: Told) {
        let mut state = self.lock();
        let at = state.pending.remove(&process).expect("it was invoked");
        let Told { value, version, error } = told;
        let event = Event { kind, value, version, error, ..state.events[at].clone() };
        self.push(&mut state, event);
    }

    /// Everything; what is under way is of unknown outcome.
    pub(crate) fn history(&self) -> History {
        History { events: self.lock().events.clone() }
    }
}

/// What an operation was told.
#[derive(Clone, Default)]
pub(crate) struct Told {
    pub(crate) value: Value,
    pub(crate) version: Option<u64>,
    pub(crate) error: Option<String>,
}

impl Told {
    pub(crate) fn of(value: Value, version: Option<u64>) -> Told {
        Told { value, version, error: None }
    }

    pub(crate) fn failed(error: impl Into<String>) -> Told {
        Told { error: Some(error.into()), ..Told::default() }
    }
}
