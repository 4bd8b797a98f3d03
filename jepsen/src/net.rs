//! What lies between nodes: links that can be cut, slowed and made lossy, each direction by itself.
//!
//! ```text
//! nemesis -> Links (a rule for every directed link) <- proxy    a TCP proxy for every directed link; works for everyone
//!                                                   <- switch   a packet switch between namespaces; wants root
//! ```
//!
//! Invariants: a rule counts from the moment it is set; what a link held back or dropped is counted, so that a fault
//! that nobody noticed is not taken for one. Clients reach nodes directly: faults are between nodes.

pub mod netns;
pub mod proxy;
pub mod switch;

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// How a directed link behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rule {
    /// Nothing passes.
    pub cut: bool,
    /// What passes comes so much later.
    pub delay: Duration,
    /// The share of packets that is lost; to a TCP proxy each costs the time of a retransmission.
    pub loss: f64,
}

/// The rules of all directed links between `count` nodes.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    count: usize,
    rules: Mutex<Vec<Rule>>,
    /// Pieces that passed each link under a rule that did something to them.
    touched: Vec<AtomicU64>,
    stop: AtomicBool,
}

impl Links {
    /// All links whole.
    pub fn new(count: usize) -> Self {
        Links(Arc::new(Shared {
            count,
            rules: Mutex::new(vec![Rule::default(); count * count]),
            touched: (0..count * count).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
        }))
    }

    /// Sets the rule of one direction; a node's link to itself is always whole.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        if from != to {
            let at = self.at(from, to);
            self.rules()[at] = rule;
        }
    }

    /// All links whole again.
    pub fn heal(&self) {
        self.rules().fill(Rule::default());
    }

    /// The rule of one direction.
    pub fn rule(&self, from: usize, to: usize) -> Rule {
        self.rules()[self.at(from, to)]
    }

    /// A link did something to a piece.
    pub fn touch(&self, from: usize, to: usize) {
        self.0.touched[self.at(from, to)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many pieces rules did something to, so far.
    pub fn touched(&self) -> u64 {
        self.0.touched.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Ends all threads that carry something.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }

    /// Whether they are to end.
    pub fn stopped(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed)
    }

    fn at(&self, from: usize, to: usize) -> usize {
        from * self.0.count + to
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.rules.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
