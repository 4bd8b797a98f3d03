//! Writing a history down while it happens.
//!
//! Invariants: see `history`. A line reaches the file with its newline or not at all as far as readers care: a run
//! that is cut off leaves pending invocations, which readers take as *info*.

use super::{Event, Kind, Nemesis, Process};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Takes down events of many threads in one order.
pub struct Recorder {
    began: Instant,
    next_process: AtomicU64,
    state: Mutex<State>,
}

struct State {
    file: Option<BufWriter<File>>,
    events: Vec<Event>,
    pending: BTreeMap<Process, usize>,
    /// The first failure of the file; told when the history is closed.
    failed: Option<io::Error>,
}

/// An operation under way.
#[derive(Clone, Copy, Debug)]
#[must_use = "an operation has an outcome"]
pub struct Invocation(Process);

impl Recorder {
    /// Writes to a new file, or to memory alone.
    pub fn new(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        let state = State { file, events: Vec::new(), pending: BTreeMap::new(), failed: None };
        Ok(Recorder { began: Instant::now(), next_process: AtomicU64::new(0), state: Mutex::new(state) })
    }

    /// A process nobody has been yet.
    pub fn process(&self) -> Process {
        Process::Client(self.next_process.fetch_add(1, Ordering::Relaxed))
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// An operation is about to be sent. Only `f`, `key`, `value`, `workload` and `node` of `event` count.
    pub fn invoke(&self, process: Process, event: Event) -> Invocation {
        let mut state = self.lock();
        let at = state.events.len();
        let before = state.pending.insert(process, at);
        assert!(before.is_none(), "process {process:?} has an operation under way");
        state.push(Event { kind: Kind::Invoke, process, time: self.now(), ..event });
        Invocation(process)
    }

    /// Its outcome is known. Only `value`, `version` and `error` of `told` count.
    pub fn complete(&self, Invocation(process): Invocation, kind: Kind, told: Event) {
        let mut state = self.lock();
        let at = state.pending.remove(&process).expect("it was invoked");
        let of = state.events[at].clone();
        let (value, version, error) = (told.value, told.version, told.error);
        state.push(Event { kind, value, version, error, time: self.now(), ..of });
    }

    /// Something was broken or mended.
    pub fn fault(&self, f: &str, value: Value) {
        let process = Process::Nemesis(Nemesis::Nemesis);
        let event = Event { kind: Kind::Info, process, time: self.now(), value, ..Event::of(f) };
        self.lock().push(event);
    }

    /// Ends what is pending as *info* and gives everything.
    ///
    /// Errors: the file could not be written.
    pub fn close(self) -> io::Result<super::History> {
        let now = self.now();
        let mut state = self.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        for at in std::mem::take(&mut state.pending).into_values() {
            let of = state.events[at].clone();
            let error = Some("still pending at the end".to_owned());
            state.push(Event { kind: Kind::Info, time: now, error, ..of });
        }
        if let Some(failed) = state.failed {
            return Err(failed);
        }
        if let Some(mut file) = state.file {
            file.flush()?;
        }
        Ok(super::History { events: state.events })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn push(&mut self, event: Event) {
        let event = Event { index: self.events.len() as u64, ..event };
        if let (Some(file), None) = (&mut self.file, &self.failed) {
            let written = serde_json::to_writer(&mut *file, &event).map_err(io::Error::from);
            self.failed = written.and_then(|()| file.write_all(b"\n")).err();
        }
        self.events.push(event);
    }
}

impl Event {
    /// An event that says no more than what it does.
    pub fn of(f: &str) -> Self {
        Event {
            index: 0,
            kind: Kind::Info,
            process: Process::Nemesis(Nemesis::Nemesis),
            f: f.to_owned(),
            key: None,
            value: Value::Null,
            version: None,
            time: 0,
            workload: String::new(),
            node: None,
            error: None,
        }
    }
}
