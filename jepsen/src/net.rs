//! What lies between nodes: links that can be cut, slowed, made lossy and narrow, each direction by itself.
//!
//! ```text
//! nemesis -> Links (a rule for every directed link) <- proxy    a TCP proxy for every directed link; works for everyone
//!                                                   <- switch   a packet switch between namespaces; wants root
//! ```
//!
//! Each link has a standing rule, which says what it is like when nothing is wrong with it (a way between two regions is
//! long), and to which it comes back when it is healed.
//!
//! Invariants: a rule counts from the moment it is set; what a link under another rule than its standing one held back
//! or dropped is counted, so that a fault that nobody noticed is not taken for one. Clients reach nodes directly: faults
//! are between nodes.

pub mod netns;
pub mod proxy;
pub mod switch;

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
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
    /// How much passes, if that is limited. What comes faster waits; the switch drops what would wait for too long.
    pub bytes_per_second_max: Option<u64>,
}

impl Rule {
    /// Nothing passes.
    pub const CUT: Rule = Rule { cut: true, delay: Duration::ZERO, loss: 0.0, bytes_per_second_max: None };
}

/// The rules of all directed links between `count` nodes.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    count: usize,
    rules: Mutex<Rules>,
    /// Pieces that passed each link under a rule that did something to them.
    touched: Vec<AtomicU64>,
    stop: AtomicBool,
}

/// By link.
struct Rules {
    now: Vec<Rule>,
    standing: Vec<Rule>,
    /// Until when a link that is narrow is busy with what it was given.
    busy: Vec<Option<Instant>>,
}

impl Links {
    /// All links whole.
    pub fn new(count: usize) -> Self {
        Links(Arc::new(Shared {
            count,
            rules: Mutex::new(Rules {
                now: vec![Rule::default(); count * count],
                standing: vec![Rule::default(); count * count],
                busy: vec![None; count * count],
            }),
            touched: (0..count * count).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
        }))
    }

    /// Sets what one direction is like when nothing is wrong with it, and what it is like now.
    pub fn stand(&self, from: usize, to: usize, rule: Rule) {
        self.set(from, to, rule);
        if from != to {
            let at = self.at(from, to);
            self.rules().standing[at] = rule;
        }
    }

    /// Sets the rule of one direction; a node's link to itself is always whole.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        if from != to {
            let at = self.at(from, to);
            let mut rules = self.rules();
            (rules.now[at], rules.busy[at]) = (rule, None);
        }
    }

    /// All links as they are when nothing is wrong.
    pub fn heal(&self) {
        let rules = &mut *self.rules();
        rules.now.clone_from(&rules.standing);
        rules.busy.fill(None);
    }

    /// The rule of one direction.
    pub fn rule(&self, from: usize, to: usize) -> Rule {
        self.rules().now[self.at(from, to)]
    }

    /// When a piece has left that a link is given now: after those before it, if the link is narrow.
    ///
    /// None: it would wait for longer than `patience`, and is not taken.
    pub fn leaves(&self, (from, to): (usize, usize), bytes: usize, patience: Duration) -> Option<Instant> {
        let (now, at) = (Instant::now(), self.at(from, to));
        let rules = &mut *self.rules();
        let Some(limit) = rules.now[at].bytes_per_second_max else { return Some(now) };
        let begins = rules.busy[at].map_or(now, |until| until.max(now));
        if begins.duration_since(now) > patience {
            return None;
        }
        let leaves = begins + Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64);
        rules.busy[at] = Some(leaves);
        Some(leaves)
    }

    /// A link did something to a piece. Counts if that is not what it always does.
    pub fn touch(&self, from: usize, to: usize) {
        let at = self.at(from, to);
        let rules = self.rules();
        if rules.now[at] != rules.standing[at] {
            self.0.touched[at].fetch_add(1, Ordering::Relaxed);
        }
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

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.0.rules.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_link_is_busy_for_as_long_as_the_bytes_take() {
        let links = Links::new(2);
        let narrow = Rule { bytes_per_second_max: Some(1_000), ..Rule::default() };
        links.set(0, 1, narrow);
        let began = Instant::now();
        let patience = Duration::from_secs(1);
        let first = links.leaves((0, 1), 500, patience).unwrap();
        let second = links.leaves((0, 1), 600, patience).unwrap();
        assert!(first - began >= Duration::from_millis(500));
        assert_eq!(second - first, Duration::from_millis(600));
        assert_eq!(links.leaves((0, 1), 1, patience), None, "1,100 ms is longer than one is patient");
        assert!(
            links.leaves((1, 0), 1 << 30, patience).unwrap().elapsed() < patience,
            "the other way is wide"
        );
        links.heal();
        assert!(links.leaves((0, 1), 1 << 30, patience).unwrap().elapsed() < patience);
    }

    #[test]
    fn a_healed_link_is_what_it_always_was_and_that_is_no_fault() {
        let links = Links::new(2);
        let long = Rule { delay: Duration::from_millis(35), ..Rule::default() };
        links.stand(0, 1, long);
        links.touch(0, 1);
        assert_eq!(links.touched(), 0);
        links.set(0, 1, Rule::CUT);
        links.touch(0, 1);
        assert_eq!(links.touched(), 1);
        links.heal();
        assert_eq!(links.rule(0, 1), long);
        links.touch(0, 1);
        assert_eq!(links.touched(), 1);
    }
}
