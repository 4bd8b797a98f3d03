//! A search for an order in which a history could have happened one operation after the other.
//!
//! The operations that may come next are those that began before the first that is not yet placed ended. The search
//! places one, goes on, and takes it back when it is stuck; the set of placed operations with the state they lead
//! to is never looked at twice. An operation of unknown outcome may be placed at any time after its invocation, or
//! never.
//!
//! Invariants: `Linearizable` and `Not` are exact; past its deadline the search answers `Unknown`.
//! Not here: what a state is (see [`Model`]); cutting a history by point, which is sound because linearizability is
//! local (Herlihy and Wing, 1990).
//! Source: Wing and Gong, "Testing and verifying concurrent objects" (1993), with Lowe's memoisation ("Testing for
//! linearizability", 2017).

use crate::history::NEVER;
use std::{collections::HashSet, hash::Hash, time::Instant};

/// An object that does one thing at a time.
pub trait Model {
    /// What it is like between two acts.
    type State: Clone + Eq + Hash;
    /// What is done to it, with what was answered.
    type Act;

    /// The state before everything.
    fn initial(&self) -> Self::State;

    /// The state after an act, or none if the act cannot be answered so in this state.
    fn step(&self, state: &Self::State, act: &Self::Act) -> Option<Self::State>;
}

/// An act, and when it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed<A> {
    /// What was done.
    pub act: A,
    /// When it began.
    pub invoked: u64,
    /// When it had certainly taken effect; [`NEVER`] if it may never.
    pub ended: u64,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is such an order.
    Linearizable,
    /// There is none. The most that could be placed, and an operation that had to come next and could not.
    Not {
        /// Numbers of operations, in the order in which they were placed.
        placed: Vec<usize>,
        /// The number of the operation nothing could be placed before.
        stuck: usize,
    },
    /// The deadline passed.
    Unknown,
}

/// How many steps pass between two looks at the clock.
const STEPS_PER_LOOK: u64 = 1 << 12;

/// Searches until the deadline.
///
/// Cost: exponential in the operations that overlap, at worst; linear in histories of little concurrency.
pub fn search<M: Model>(model: &M, ops: &[Timed<M::Act>], deadline: Instant) -> Found {
    let mut line = Line::new(ops);
    let mut left = ops.iter().filter(|op| op.ended != NEVER).count();
    let mut placed = Placed::new(ops.len());
    let mut seen = HashSet::new();
    let mut state = model.initial();
    let mut path: Vec<(usize, M::State)> = Vec::new();
    let (mut deepest, mut stuck) = (Vec::new(), 0);
    let mut at = line.first();
    let mut steps = 0u64;
    while left > 0 {
        steps += 1;
        if steps.is_multiple_of(STEPS_PER_LOOK) && Instant::now() > deadline {
            return Found::Unknown;
        }
        if let Mark::Invoked(op) = line.mark(at) {
            let next = model.step(&state, &ops[op].act);
            // What may never have happened is placed only if it changes something.
            let next = next.filter(|next| ops[op].ended != NEVER || *next != state);
            let fresh = next.filter(|next| seen.insert((placed.with(op), next.clone())));
            match fresh {
                Some(next) => {
                    placed.flip(op);
                    path.push((op, std::mem::replace(&mut state, next)));
                    line.lift(op);
                    left -= usize::from(ops[op].ended != NEVER);
                    at = line.first();
                }
                None => at = line.next(at),
            }
            continue;
        }
        // An operation ends here that is not placed, or the line ends: what was placed last was wrong.
        if let (Mark::Ended(op), true) = (line.mark(at), path.len() >= deepest.len()) {
            deepest = path.iter().map(|(op, _)| *op).collect();
            stuck = op;
        }
        let Some((op, before)) = path.pop() else { return Found::Not { placed: deepest, stuck } };
        state = before;
        placed.flip(op);
        line.put_back(op);
        left += usize::from(ops[op].ended != NEVER);
        at = line.after_invocation(op);
    }
    Found::Linearizable
}

/// A point in time on the line.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Invoked(usize),
    Ended(usize),
    /// The end of the line.
    End,
}

/// Invocations and ends of operations not yet placed, in time: a list from which an operation can be lifted and put
/// back where it was, last lifted first.
struct Line {
    marks: Vec<Mark>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// Places of an operation's invocation and of its end (if it has one).
    places: Vec<(usize, Option<usize>)>,
}

/// The place before the first mark.
const HEAD: usize = 0;

impl Line {
    fn new<A>(ops: &[Timed<A>]) -> Self {
        let invoked = ops.iter().enumerate().map(|(n, op)| (op.invoked, 0, Mark::Invoked(n)));
        let ended = ops.iter().enumerate().filter(|(_, op)| op.ended != NEVER);
        // Of an invocation and an end at one time the invocation is first: they overlap.
        let mut timed: Vec<_> = invoked.chain(ended.map(|(n, op)| (op.ended, 1, Mark::Ended(n)))).collect();
        timed.sort_by_key(|(time, ends, _)| (*time, *ends));
        let mut marks = vec![Mark::End];
        marks.extend(timed.into_iter().map(|(_, _, mark)| mark));
        marks.push(Mark::End);
        let mut places = vec![(0, None); ops.len()];
        for (place, mark) in marks.iter().enumerate() {
            match *mark {
                Mark::Invoked(op) => places[op].0 = place,
                Mark::Ended(op) => places[op].1 = Some(place),
                Mark::End => {}
            }
        }
        let next = (1..=marks.len()).collect();
        let before = (0..marks.len()).map(|place| place.saturating_sub(1)).collect();
        Line { marks, next, before, places }
    }

    fn first(&self) -> usize {
        self.next[HEAD]
    }

    fn next(&self, place: usize) -> usize {
        self.next[place]
    }

    fn mark(&self, place: usize) -> Mark {
        self.marks[place]
    }

    fn after_invocation(&self, op: usize) -> usize {
        self.next[self.places[op].0]
    }

    fn lift(&mut self, op: usize) {
        let (invoked, ended) = self.places[op];
        for place in [Some(invoked), ended].into_iter().flatten() {
            let (before, next) = (self.before[place], self.next[place]);
            self.next[before] = next;
            self.before[next] = before;
        }
    }

    fn put_back(&mut self, op: usize) {
        let (invoked, ended) = self.places[op];
        for place in [ended, Some(invoked)].into_iter().flatten() {
            let (before, next) = (self.before[place], self.next[place]);
            self.next[before] = place;
            self.before[next] = place;
        }
    }
}

/// A set of operations.
struct Placed(Vec<u64>);

impl Placed {
    fn new(count: usize) -> Self {
        Placed(vec![0; count.div_ceil(64)])
    }

    fn flip(&mut self, op: usize) {
        self.0[op / 64] ^= 1 << (op % 64);
    }

    fn with(&self, op: usize) -> Box<[u64]> {
        let mut with: Box<[u64]> = self.0.as_slice().into();
        with[op / 64] |= 1 << (op % 64);
        with
    }
}
