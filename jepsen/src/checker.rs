//! Checkers: what a history must look like if the promises hold.
//!
//! ```text
//! history.jsonl -> Vec<Op> -> by workload -> observe: accesses of each point -> versioned, linearizable
//!                                         -> set, batch, view, search, tail, dedup, region, final state
//! ```
//!
//! Invariants: a checker sees nothing but the history, so that `check DIR` repeats what the run said; `False` names
//! the operations that cannot be; a checker that ran out of time says `Unknown`; what it had nothing to look at is
//! `checked: 0`, and the run decides whether that is enough.
//! Not here: making histories.

pub mod batch;
pub mod dedup;
pub mod end;
pub mod linearizable;
pub mod observe;
pub mod region;
pub mod register;
pub mod search;
pub mod set;
pub mod shrink;
pub mod tail;
pub mod versioned;
pub mod view;

use crate::history::{History, HistoryError, Op};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Whether a history may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Valid {
    /// Nothing is wrong with it.
    #[default]
    True,
    /// Nobody knows.
    Unknown,
    /// It cannot be.
    False,
}

impl Serialize for Valid {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Valid::True => to.serialize_bool(true),
            Valid::False => to.serialize_bool(false),
            Valid::Unknown => to.serialize_str("unknown"),
        }
    }
}

impl<'de> Deserialize<'de> for Valid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(from)? {
            serde_json::Value::Bool(true) => Ok(Valid::True),
            serde_json::Value::Bool(false) => Ok(Valid::False),
            _ => Ok(Valid::Unknown),
        }
    }
}

/// Something that cannot be, or a check that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// One word for its kind: `stale`, `lost`, `torn` …
    pub anomaly: String,
    /// In a sentence.
    pub why: String,
    /// The workload it was found in.
    #[serde(default)]
    pub workload: String,
    /// The point it is about.
    pub key: Option<u64>,
    /// Indexes of the invocations that show it.
    pub ops: Vec<u64>,
}

/// What a checker says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the history may be, as far as this checker goes.
    pub valid: Valid,
    /// How many things it looked at.
    pub checked: u64,
    /// What it found; the first [`FINDINGS_MAX`] of a kind.
    pub findings: Vec<Finding>,
    /// How many it found.
    pub found: u64,
}

/// Findings of one checker that are kept.
pub const FINDINGS_MAX: usize = 100;

impl Verdict {
    /// Something cannot be.
    pub fn wrong(&mut self, anomaly: &str, key: Option<u64>, ops: &[u64], why: impl Into<String>) {
        self.valid = Valid::False;
        self.found += 1;
        if self.findings.len() < FINDINGS_MAX {
            let (anomaly, ops) = (anomaly.to_owned(), ops.to_vec());
            self.findings.push(Finding { anomaly, why: why.into(), workload: String::new(), key, ops });
        }
    }

    /// Adds what another checker, or the same one elsewhere, said.
    pub fn join(&mut self, other: Verdict) {
        self.valid = self.valid.max(other.valid);
        self.checked += other.checked;
        self.found += other.found;
        let left = FINDINGS_MAX.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(left));
    }

    /// How many findings of a kind were kept.
    pub fn count(&self, anomaly: &str) -> usize {
        self.findings.iter().filter(|finding| finding.anomaly == anomaly).count()
    }
}

/// A checker: looks at all operations of one workload.
pub type Check = fn(&[Op], Instant) -> Verdict;

/// All checkers, by name.
pub const CHECKS: &[(&str, Check)] = &[
    ("linearizable", |ops, deadline| register::check(&observe::registers(ops), deadline)),
    ("versioned", |ops, _| versioned::check(&observe::registers(ops))),
    ("set", |ops, _| set::check(ops)),
    ("batch", |ops, _| batch::check(ops)),
    ("view", |ops, _| view::check(ops)),
    ("search", |ops, _| search::check(ops)),
    ("tail", |ops, _| tail::check(ops)),
    ("dedup", |ops, _| dedup::check(ops)),
    ("region", |ops, _| region::check(ops)),
    ("end", |ops, _| end::check(ops)),
];

/// Runs every checker on every workload of a history.
///
/// `within`: how long the searches among them may take altogether; what is left over is `Unknown`.
pub fn check(history: &History, within: Duration) -> Result<BTreeMap<String, Verdict>, HistoryError> {
    let mut by_workload: BTreeMap<String, Vec<Op>> = BTreeMap::new();
    for op in history.ops()? {
        by_workload.entry(op.workload.clone()).or_default().push(op);
    }
    let deadline = Instant::now() + within;
    let mut verdicts: BTreeMap<String, Verdict> = BTreeMap::new();
    for (workload, ops) in &by_workload {
        for (name, check) in CHECKS {
            let mut verdict = check(ops, deadline);
            verdict.findings.iter_mut().for_each(|finding| finding.workload.clone_from(workload));
            verdicts.entry((*name).to_owned()).or_default().join(verdict);
        }
    }
    Ok(verdicts)
}
