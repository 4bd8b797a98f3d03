//! From operations to accesses of single points.
//!
//! Every workload writes values that are unique for their point, so whatever shows a value (a read, a search, a
//! scroll, the final state, a refused condition) is a read of a register. This room knows what `f`, `key`, `value`
//! and `version` mean; the register checkers know accesses alone.
//!
//! | f | key | input | output | version |
//! |---|---|---|---|---|
//! | `read` | point | | value, or null | seen, if told |
//! | `write`, `add` | point | value | | written |
//! | `delete` | point | | | of the delete |
//! | `cas` | point | `[version or null, value or null]` | | written; of a `fail` by `precondition`: seen |
//! | `intend` | point | `{request, v}`: one copy of an intent | | written |
//! | `write-batch` | | `{v, keys}` | | written |
//! | `read-batch` | | keys | hits | |
//! | `scroll`, `members`, `final` | | what is asked for | hits | |
//! | `search`, `audit` | point | `{v, exact, …}` | `{hits, token}` | |
//! | `create`, `drop`, `exists` | collection | | whether it was there | |
//! | `event` | point | | `{shard, position, n, of, op, v}` | of the event |
//!
//! Invariants: a write of unknown outcome has a version once anything (a hit, an event of the feed) showed its
//! value with one. An operation without effect leaves a *ghost*: its value must never be seen. The copies of an
//! intent are one write, from the first invocation to the first acknowledgement.

use crate::{
    history::{NEVER, Op, Outcome},
    point::Hit,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What is done to one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// Written, or deleted (`None`).
    Write(Option<u64>),
    /// Written or deleted if the version was this one (`None`: if there was no such point).
    Cas {
        /// The version it must have been at.
        expected: Option<u64>,
        /// What is written; `None` deletes.
        value: Option<u64>,
    },
    /// A value was seen, or that there is no such point.
    Read(Option<u64>),
    /// A version was seen (`None`: no such point), and not the value.
    Seen,
    /// It was seen whether it is there (a collection, which has no version).
    There(bool),
}

/// One access of one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub act: Act,
    /// The version that was written or seen.
    pub version: Option<u64>,
    /// When it began.
    pub invoked: u64,
    /// When it had certainly taken effect; [`NEVER`] if it may never.
    pub ended: u64,
    /// Index of the operation's invocation.
    pub op: u64,
}

/// All accesses of a workload.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// By point, in order of invocation.
    pub by_key: BTreeMap<u64, Vec<Access>>,
    /// Values whose writes had no effect.
    pub ghosts: BTreeSet<(u64, u64)>,
    /// Points that were written; the other keys are collections.
    points: BTreeSet<u64>,
    /// Versions that were shown of values.
    versions: BTreeMap<(u64, u64), u64>,
}

impl Act {
    /// What it writes, if it writes.
    pub fn writes(&self) -> Option<Option<u64>> {
        match *self {
            Act::Write(value) | Act::Cas { value, .. } => Some(value),
            Act::Read(_) | Act::Seen | Act::There(_) => None,
        }
    }
}

/// Why a conditional write was refused, as clients record it.
pub const PRECONDITION: &str = "precondition";
/// Why a collection was not made, as clients record it.
pub const EXISTS: &str = "exists";

/// Takes operations apart.
pub fn registers(ops: &[Op]) -> Registers {
    let mut registers = Registers::default();
    let mut intents: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        match (op.f.as_str(), op.key) {
            ("intend", Some(_)) => {
                intents.entry(op.input["request"].as_str().unwrap_or_default()).or_default().push(op);
            }
            ("write-batch", _) => {
                for key in op.input["keys"].as_array().into_iter().flatten().filter_map(Value::as_u64) {
                    registers.write(key, Act::Write(op.input["v"].as_u64()), op);
                }
            }
            ("write" | "add", Some(key)) => registers.write(key, Act::Write(op.input.as_u64()), op),
            ("delete", Some(key)) => registers.write(key, Act::Write(None), op),
            ("cas", Some(key)) => {
                let act = Act::Cas { expected: op.input[0].as_u64(), value: op.input[1].as_u64() };
                registers.write(key, act, op);
            }
            ("read", Some(key)) if op.outcome == Outcome::Ok => {
                registers.read(key, Act::Read(op.output.as_u64()), op.version, op);
            }
            ("create" | "drop" | "exists", Some(key)) => registers.collection(key, op),
            ("event", Some(key)) => {
                if let (Some(value), Some(version)) = (op.output["v"].as_u64(), op.version) {
                    registers.versions.entry((key, value)).or_insert(version);
                }
            }
            _ if op.outcome == Outcome::Ok => registers.hits(op),
            _ => {}
        }
    }
    for copies in intents.values() {
        registers.intent(copies);
    }
    registers.settle();
    registers
}

/// The points an answer showed.
pub fn hits_of(op: &Op) -> Vec<Hit> {
    let hits = op.output.get("hits").unwrap_or(&op.output);
    serde_json::from_value(hits.clone()).unwrap_or_default()
}

/// The points a read asked for by id: those it did not show were not there.
fn keys_of(op: &Op) -> Vec<u64> {
    let keys = op.input.get("keys").unwrap_or(&op.input);
    keys.as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

impl Registers {
    fn push(&mut self, key: u64, access: Access) {
        self.by_key.entry(key).or_default().push(access);
    }

    /// A name that a collection may have: making it wants that there is none, dropping tells whether there was one.
    fn collection(&mut self, key: u64, op: &Op) {
        let shown = op.output.as_bool().unwrap_or(true);
        let made = Act::Cas { expected: None, value: Some(op.invoked) };
        // Some version: any fits, since none is known.
        let dropped = Act::Cas { expected: Some(0), value: None };
        let act = match (op.f.as_str(), op.outcome) {
            ("create", Outcome::Ok | Outcome::Info) => made,
            ("create", Outcome::Fail) if op.error.as_deref() == Some(EXISTS) => Act::There(true),
            ("drop", Outcome::Ok) if shown => dropped,
            ("drop", Outcome::Ok) => Act::There(false),
            ("drop", Outcome::Info) => Act::Write(None),
            ("exists", Outcome::Ok) => Act::There(shown),
            _ => return,
        };
        self.push(key, Access { act, version: None, invoked: op.invoked, ended: op.ended, op: op.invoked });
    }

    fn write(&mut self, key: u64, act: Act, op: &Op) {
        self.points.insert(key);
        let access =
            Access { act, version: op.version, invoked: op.invoked, ended: op.ended, op: op.invoked };
        match op.outcome {
            Outcome::Ok => self.push(key, access),
            Outcome::Info => self.push(key, Access { version: None, ended: NEVER, ..access }),
            Outcome::Fail => {
                if let Some(Some(value)) = act.writes() {
                    self.ghosts.insert((key, value));
                }
                if op.error.as_deref() == Some(PRECONDITION) {
                    self.push(key, Access { act: Act::Seen, ..access });
                }
            }
        }
    }

    /// Gives versions to writes of unknown outcome that were seen, and puts accesses in order.
    fn settle(&mut self) {
        for (key, accesses) in &mut self.by_key {
            for access in accesses.iter_mut().filter(|access| access.version.is_none()) {
                if let Some(Some(value)) = access.act.writes() {
                    access.version = self.versions.get(&(*key, value)).copied();
                }
            }
            accesses.sort_by_key(|access| access.invoked);
        }
    }

    fn read(&mut self, key: u64, act: Act, version: Option<u64>, op: &Op) {
        if let (Act::Read(Some(value)), Some(version)) = (act, version) {
            self.versions.entry((key, value)).or_insert(version);
        }
        self.push(key, Access { act, version, invoked: op.invoked, ended: op.ended, op: op.invoked });
    }

    fn hits(&mut self, op: &Op) {
        let hits = match op.f.as_str() {
            "read-batch" | "scroll" | "final" | "search" | "audit" => hits_of(op),
            _ => return,
        };
        for hit in &hits {
            self.read(hit.id, Act::Read(Some(hit.v)), hit.version, op);
        }
        // Asked for by id, or asked for all: what is not shown is not there.
        let absent: Vec<u64> = match op.f.as_str() {
            "read-batch" => keys_of(op),
            "final" => self.points.iter().copied().collect(),
            _ => return,
        };
        let shown: BTreeSet<u64> = hits.iter().map(|hit| hit.id).collect();
        for key in absent.into_iter().filter(|key| !shown.contains(key)) {
            self.read(key, Act::Read(None), None, op);
        }
    }

    /// All copies of one intent are one write.
    fn intent(&mut self, copies: &[&Op]) {
        let first = copies[0];
        let (Some(key), value) = (first.key, first.input["v"].as_u64()) else { return };
        if let Some(known) = copies.iter().filter(|op| op.outcome == Outcome::Ok).min_by_key(|op| op.ended) {
            let whole = Op { invoked: first.invoked, ..(*known).clone() };
            return self.write(key, Act::Write(value), &whole);
        }
        let lost = copies.iter().find(|op| op.outcome == Outcome::Info).unwrap_or(&first);
        self.write(key, Act::Write(value), &Op { invoked: first.invoked, ..(*lost).clone() });
    }
}
