//! Linearizability of every point: get, upsert, compare-and-set and delete, with values and versions.
//!
//! Invariants: exact as far as versions are known. A write of unknown outcome has a version only if somebody saw its
//! value with one; until then its version is taken to fit every condition, which can only hide, never invent.
//! Not here: the search (see `linearizable`); the check by versions alone, which sees long histories whole
//! (see `versioned`).

use super::{
    Finding, Valid, Verdict,
    linearizable::{Found, Model, Timed, search},
    observe::{Access, Act, Registers},
};
use crate::history::NEVER;
use std::time::Instant;

/// A point: absent, or a value with its version, if that is known.
pub type State = Option<(u64, Option<u64>)>;

/// A point as a register.
pub struct Register;

impl Model for Register {
    type State = State;
    type Act = (Act, Option<u64>);

    fn initial(&self) -> State {
        None
    }

    fn step(&self, state: &State, (act, version): &Self::Act) -> Option<State> {
        let holds = match *act {
            Act::Write(_) => true,
            Act::Cas { expected, .. } => is_at(state, expected),
            Act::Seen => is_at(state, *version),
            Act::There(there) => state.is_some() == there,
            Act::Read(None) => state.is_none(),
            Act::Read(Some(value)) => state
                .is_some_and(|(v, at)| v == value && (at.is_none() || version.is_none() || at == *version)),
        };
        let next = match act.writes() {
            Some(value) => value.map(|value| (value, *version)),
            None => *state,
        };
        holds.then_some(next)
    }
}

/// Whether a state may be at a version (`None`: no such point).
fn is_at(state: &State, version: Option<u64>) -> bool {
    match (state, version) {
        (None, None) | (Some((_, None)), Some(_)) => true,
        (Some((_, Some(at))), Some(version)) => *at == version,
        _ => false,
    }
}

/// Searches every point's history.
pub fn check(registers: &Registers, deadline: Instant) -> Verdict {
    let mut verdict = Verdict::default();
    for (key, accesses) in &registers.by_key {
        verdict.checked += accesses.len() as u64;
        let ops = timed(accesses);
        match search(&Register, &ops, deadline) {
            Found::Linearizable => {}
            Found::Unknown => {
                verdict.valid = verdict.valid.max(Valid::Unknown);
                verdict.findings.push(Finding {
                    anomaly: "unknown".to_owned(),
                    why: format!("no verdict on point {key} in time ({} accesses)", accesses.len()),
                    workload: String::new(),
                    key: Some(*key),
                    ops: Vec::new(),
                });
            }
            Found::Not { placed, stuck } => {
                let accesses = searched(accesses);
                let why = format!(
                    "no order explains point {key}: {} of {} accesses can be placed, then {:?} cannot",
                    placed.len(),
                    accesses.len(),
                    accesses[stuck].act
                );
                let mut shown: Vec<u64> = placed.iter().rev().take(8).map(|n| accesses[*n].op).collect();
                shown.push(accesses[stuck].op);
                verdict.wrong("not-linearizable", Some(*key), &shown, why);
            }
        }
    }
    verdict
}

/// What takes part in the search: what was answered, and what may have had an effect.
pub fn searched(accesses: &[Access]) -> Vec<Access> {
    accesses.iter().filter(|access| access.ended != NEVER || access.act.writes().is_some()).copied().collect()
}

/// The same for the search.
pub fn timed(accesses: &[Access]) -> Vec<Timed<(Act, Option<u64>)>> {
    let timed = |access: &Access| Timed {
        act: (access.act, access.version),
        invoked: access.invoked,
        ended: access.ended,
    };
    searched(accesses).iter().map(timed).collect()
}
