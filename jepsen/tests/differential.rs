//! The search against another's: our verdict on random histories is that of `todc-utils`, which was written by others
//! from the same paper; and the two checkers of registers agree with each other.
//!
//! `ANNAL_HISTORIES` sets how many histories (20,000); each is checked as it is and once more with one answer
//! changed. A seed that disagrees is printed.

#![allow(clippy::unwrap_used, missing_docs)]

use annal_jepsen::{
    checker::{
        Valid,
        linearizable::{Found, Model, search},
        observe::{Access, Act, Registers},
        register::{self, Register, searched, timed},
        versioned,
    },
    history::NEVER,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use todc_utils::{
    linearizability::{
        WGLChecker,
        history::{Action, History},
    },
    specifications::Specification,
};

/// The register as the other checker wants it.
struct Theirs;

impl Specification for Theirs {
    type State = register::State;
    type Operation = (Act, Option<u64>);

    fn init() -> Self::State {
        Register.initial()
    }

    fn apply(operation: &Self::Operation, state: &Self::State) -> (bool, Self::State) {
        match Register.step(state, operation) {
            Some(next) => (true, next),
            None => (false, *state),
        }
    }
}

/// Whether the other checker finds an order. It knows no operation that may never have happened: those are tried
/// both ways, in all combinations.
fn theirs(accesses: &[Access]) -> bool {
    let accesses = searched(accesses);
    let open: Vec<usize> = (0..accesses.len()).filter(|n| accesses[*n].ended == NEVER).collect();
    (0..1u32 << open.len()).any(|chosen| {
        let left = |n: &usize| open.iter().position(|o| o == n).is_none_or(|bit| chosen >> bit & 1 == 1);
        let kept: Vec<Access> = (0..accesses.len()).filter(left).map(|n| accesses[n]).collect();
        let mut moments = Vec::new();
        for (n, op) in timed(&kept).into_iter().enumerate() {
            moments.push((op.invoked, 0, n, Action::Call(op.act)));
            moments.push((op.ended, 1, n, Action::Response(op.act)));
        }
        moments.sort_by_key(|(time, ends, n, _)| (*time, *ends, *n));
        let actions: Vec<_> = moments.into_iter().map(|(_, _, n, action)| (n, action)).collect();
        actions.is_empty() || WGLChecker::<Theirs>::is_linearizable(History::from_actions(actions))
    })
}

fn ours(accesses: &[Access]) -> bool {
    match search(&Register, &timed(accesses), Instant::now() + Duration::from_secs(20)) {
        Found::Linearizable => true,
        Found::Not { .. } => false,
        Found::Unknown => panic!("a history this small has a verdict"),
    }
}

/// What a good register would answer to some clients; each act takes effect at a random moment between its ends.
fn random(rng: &mut StdRng) -> Vec<Access> {
    let clients = rng.random_range(2..=4);
    let count = rng.random_range(4..=12);
    let mut state: register::State = None;
    let mut busy: Vec<Option<(usize, bool)>> = vec![None; clients];
    let mut accesses: Vec<Access> = Vec::new();
    let (mut time, mut version) = (0, 0);
    while accesses.len() < count || busy.iter().any(Option::is_some) {
        time += 1;
        let client = rng.random_range(0..clients);
        match busy[client] {
            None if accesses.len() < count => {
                let value = accesses.len() as u64 + 1;
                let at = state.and_then(|(_, at)| at);
                let expected = if rng.random_ratio(2, 3) { at } else { Some(rng.random_range(1..8)) };
                let act = match rng.random_range(0..9) {
                    0..=3 => Act::Read(None),
                    4..=5 => Act::Write(Some(value)),
                    6 => Act::Write(None),
                    7 => Act::Cas { expected, value: None },
                    _ => Act::Cas { expected, value: Some(value) },
                };
                busy[client] = Some((accesses.len(), false));
                accesses.push(Access { act, version: None, invoked: time, ended: NEVER, op: time });
            }
            None => {}
            Some((n, false)) if rng.random_ratio(1, 12) => {
                // The client never hears of it; half of these never happen.
                busy[client] = None;
                if rng.random() {
                    version += 1;
                    (state, _) = take_effect(accesses[n], state, version);
                }
            }
            Some((n, false)) => {
                version += 1;
                let answered;
                (state, answered) = take_effect(accesses[n], state, version);
                accesses[n] = answered;
                busy[client] = Some((n, true));
            }
            Some((n, true)) => {
                accesses[n].ended = time;
                busy[client] = None;
            }
        }
    }
    accesses
}

/// The state after an act, and the act with what is answered.
fn take_effect(asked: Access, state: register::State, version: u64) -> (register::State, Access) {
    let at = state.and_then(|(_, at)| at);
    match asked.act {
        Act::Cas { expected, .. } if expected != at => {
            (state, Access { act: Act::Seen, version: at, ..asked })
        }
        Act::Write(value) | Act::Cas { value, .. } => {
            (value.map(|value| (value, Some(version))), Access { version: Some(version), ..asked })
        }
        _ => (state, Access { act: Act::Read(state.map(|(value, _)| value)), version: at, ..asked }),
    }
}

/// One answer is changed.
fn mutate(accesses: &mut [Access], rng: &mut StdRng) {
    let answered: Vec<usize> = (0..accesses.len()).filter(|n| accesses[*n].ended != NEVER).collect();
    let Some(n) = answered.get(rng.random_range(0..answered.len().max(1))) else { return };
    let access = &mut accesses[*n];
    let other = Some(rng.random_range(1..8)).filter(|_| rng.random_ratio(4, 5));
    match access.act {
        Act::Read(_) => (access.act, access.version) = (Act::Read(other), None),
        Act::Seen => access.version = other,
        Act::Cas { value, .. } => access.act = Act::Cas { expected: other, value },
        Act::Write(_) | Act::There(_) => {
            access.ended = access.ended.saturating_sub(6).max(access.invoked + 1)
        }
    }
}

#[test]
fn the_search_agrees_with_todc() {
    let count = std::env::var("ANNAL_HISTORIES").map_or(20_000, |n| n.parse().unwrap());
    let (mut good, mut bad) = (0, 0);
    for seed in 0..count {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut accesses = random(&mut rng);
        assert!(ours(&accesses), "seed {seed}: {accesses:#?}");
        assert!(theirs(&accesses), "seed {seed}: {accesses:#?}");
        mutate(&mut accesses, &mut rng);
        let (ours, theirs) = (ours(&accesses), theirs(&accesses));
        assert_eq!(ours, theirs, "seed {seed}, mutated: {accesses:#?}");
        if ours { good += 1 } else { bad += 1 }
    }
    println!(
        "{count} histories: all linearizable; of their mutations {good} are and {bad} are not; no disagreement"
    );
    assert!(bad * 5 > count, "too few bad ones to say anything: {bad} of {count}");
}

/// With every version known the check by versions accuses no good history and misses none that the search finds bad.
#[test]
fn the_two_checks_of_a_register_agree() {
    let mut found = 0;
    for seed in 0..8_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut accesses = random(&mut rng);
        let exists = |registers: &Registers| versioned::check(registers).valid != Valid::False;
        let of = |accesses: &[Access]| {
            let mut registers = Registers::default();
            registers.by_key = BTreeMap::from([(1, accesses.to_vec())]);
            registers
        };
        assert!(exists(&of(&accesses)), "seed {seed} is good: {accesses:#?}");
        // Without unknown outcomes both are exact.
        if accesses.iter().any(|access| access.ended == NEVER) {
            continue;
        }
        mutate(&mut accesses, &mut rng);
        match (ours(&accesses), exists(&of(&accesses))) {
            (false, false) => found += 1,
            (false, true) => panic!("seed {seed}: the check by versions misses {accesses:#?}"),
            // It knows more than the search: versions grow with time.
            (true, _) => {}
        }
    }
    println!("the check by versions found all {found} bad histories");
    assert!(found > 500, "too few bad ones to say anything: {found}");
}
