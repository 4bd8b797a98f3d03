//! What clients and faults did, in the order in which it happened: the only thing that checkers see.
//!
//! Invariants: an invocation is written down before its request is sent, a completion after its answer came, both
//! under one lock, so that `index` is real time; a process whose operation is *info* is never used again; `fail`
//! says that the operation certainly had no effect; every invocation has a completion once the history is closed.
//! Not here: what the values mean (see `checker::observe`).
//! Source: the format and its rules are Jepsen's (Kingsbury), so that its tools read the EDN export.

mod edn;
mod record;

pub use edn::write_edn;
pub use record::{Invocation, Recorder};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A process begins an operation.
    Invoke,
    /// It took effect.
    Ok,
    /// It certainly had no effect.
    Fail,
    /// Nobody knows; or a fault, which is not an operation at all.
    Info,
}

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Process {
    /// A client that does one thing at a time.
    Client(u64),
    /// The one that breaks things.
    Nemesis(Nemesis),
}

/// Written as `"nemesis"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nemesis {
    /// There is one.
    Nemesis,
}

/// One line of `history.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in real time, from 0.
    pub index: u64,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Whose it is.
    pub process: Process,
    /// The operation: `read`, `write`, `cas` … or a fault.
    pub f: String,
    /// The point it is about, if it is about one.
    #[serde(default)]
    pub key: Option<u64>,
    /// What is written, asked or answered.
    #[serde(default)]
    pub value: Value,
    /// The version that was written or seen.
    #[serde(default)]
    pub version: Option<u64>,
    /// Nanoseconds since the run began.
    pub time: u64,
    /// The workload it belongs to: keys of two workloads are two points.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// The node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why it failed, or why nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It took effect between its invocation and its end.
    Ok,
    /// It had no effect.
    Fail,
    /// It may take effect at any time after its invocation, or never.
    Info,
}

/// An end that never comes.
pub const NEVER: u64 = u64::MAX;

/// An invocation with its completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Op {
    /// Whose it is.
    pub process: Process,
    /// What it does.
    pub f: String,
    /// The point it is about.
    pub key: Option<u64>,
    /// What was asked.
    pub input: Value,
    /// What was answered.
    pub output: Value,
    /// The version that was written or seen.
    pub version: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
    /// Index of its invocation.
    pub invoked: u64,
    /// Index of its completion; [`NEVER`] if nobody knows.
    pub ended: u64,
    /// Nanoseconds from its invocation on, and at its completion.
    pub time: (u64, u64),
    /// The workload it belongs to.
    pub workload: String,
    /// The node that was asked.
    pub node: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// All events of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// By index.
    pub events: Vec<Event>,
}

/// What is no history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A line is not an event.
    #[error("line {line}: {source}")]
    Line {
        /// From 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Events do not follow each other as they must.
    #[error("event {index}: {why}")]
    Order {
        /// Of the event.
        index: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl History {
    /// Reads `history.jsonl`.
    pub fn read(path: &Path) -> Result<Self, HistoryError> {
        let file_error = |source| HistoryError::File { path: path.display().to_string(), source };
        let file = File::open(path).map_err(file_error)?;
        let mut events = Vec::new();
        for (at, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(file_error)?;
            let event = serde_json::from_str(&line);
            events.push(event.map_err(|source| HistoryError::Line { line: at + 1, source })?);
        }
        Ok(History { events })
    }

    /// Pairs invocations with their completions; faults are left out.
    ///
    /// Errors: indexes do not grow, a process does two things at once, or a completion has no invocation.
    pub fn ops(&self) -> Result<Vec<Op>, HistoryError> {
        let mut pending: BTreeMap<Process, &Event> = BTreeMap::new();
        let mut ops = Vec::with_capacity(self.events.len() / 2);
        let mut last = None;
        for event in &self.events {
            let wrong = |why| Err(HistoryError::Order { index: event.index, why });
            if last.replace(event.index).is_some_and(|last| last >= event.index) {
                return wrong("its index is not larger than the one before");
            }
            if matches!(event.process, Process::Nemesis(_)) {
                continue;
            }
            match event.kind {
                Kind::Invoke => {
                    if pending.insert(event.process, event).is_some() {
                        return wrong("its process has an operation under way");
                    }
                }
                _ => match pending.remove(&event.process) {
                    Some(invoke) => ops.push(Op::of(invoke, Some(event))),
                    None => return wrong("its process has nothing under way"),
                },
            }
        }
        ops.extend(pending.into_values().map(|invoke| Op::of(invoke, None)));
        ops.sort_by_key(|op| op.invoked);
        Ok(ops)
    }

    /// What the nemesis did.
    pub fn faults(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| matches!(event.process, Process::Nemesis(_)))
    }
}

impl Op {
    fn of(invoke: &Event, completion: Option<&Event>) -> Self {
        let kind = completion.map_or(Kind::Info, |event| event.kind);
        let outcome = match kind {
            Kind::Ok => Outcome::Ok,
            Kind::Fail => Outcome::Fail,
            _ => Outcome::Info,
        };
        let ended = completion.filter(|_| outcome != Outcome::Info).map_or(NEVER, |event| event.index);
        Op {
            process: invoke.process,
            f: invoke.f.clone(),
            key: invoke.key,
            input: invoke.value.clone(),
            output: completion.map_or(Value::Null, |event| event.value.clone()),
            version: completion.and_then(|event| event.version),
            outcome,
            invoked: invoke.index,
            ended,
            time: (invoke.time, completion.map_or(invoke.time, |event| event.time)),
            workload: invoke.workload.clone(),
            node: invoke.node.clone(),
            error: completion.and_then(|event| event.error.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
