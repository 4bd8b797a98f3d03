//! The memory of intents: a retry gets the first outcome, and a copy that is too old is refused.
//!
//! Replicated state: every replica keeps the same entries and evicts the same ones at the same position.
//! An entry lives for [`WINDOW`] positions after its command. A command says which position its router had
//! applied when the intent was first seen (`born`); one born more than a window ago is refused, so an intent
//! whose entry is gone can never take effect again.
//!
//! Not here: the table's keys (`points`), intents of other shards (each shard command has its own).
//! Source: the client sessions of Raft (Ongaro 2014, section 6.3), with positions in place of sessions.

use super::points::DedupRecord;
use crate::{
    machine::{Outcome, Rejection, Verdict},
    model::{Command, Position},
};

/// How many positions an intent is remembered.
pub const WINDOW: u64 = 1_000_000;

/// What the memory says of a command at `position`; `None` if it is to be carried out.
///
/// `known`: the entry of the command's intent, if there is one.
pub(super) fn judge(
    command: &Command,
    known: Option<&DedupRecord>,
    position: Position,
    window: u64,
) -> Option<Verdict> {
    let request = command.request.as_ref()?;
    let rejected = |code: &str, message| Verdict::Rejected(Rejection { code: code.into(), message });
    match known {
        Some(first) if first.body_hash != command.body_hash() => {
            let at = first.position;
            Some(rejected("other_body", format!("request {request} did something else at position {at}")))
        }
        Some(first) => {
            let verdict = first.rejection().map_or(Verdict::Applied, Verdict::Rejected);
            Some(Verdict::Duplicate {
                first: Box::new(Outcome { position: Position(first.position), verdict }),
            })
        }
        None if position.0.saturating_sub(command.born.0) > window => Some(rejected(
            "expired",
            format!("request {request} was first seen at position {}, {window} and more ago", command.born),
        )),
        None => None,
    }
}
