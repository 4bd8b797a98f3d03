//! Vectors that are searched as soon as they are acknowledged, replaced and deleted; now and then the exact and the
//! approximate answer to one question.

use super::{
    Session, Workload,
    batch::hits,
    keys::Keys,
    register::{delete, write},
};
use crate::{client::Effect, history::Kind, point::vector_of};
use rand::Rng;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

/// The workload.
pub(super) struct Search {
    /// Points that stay once they are written: they fill the index.
    next: AtomicU64,
    /// Points that are replaced and deleted.
    moving: Keys,
    /// What was written last.
    recent: Mutex<VecDeque<(u64, u64)>>,
}

impl Default for Search {
    fn default() -> Self {
        Search { next: AtomicU64::new(STAYING), moving: Keys::new(12), recent: Mutex::default() }
    }
}

/// Ids of points that stay begin here.
const STAYING: u64 = 1_000_000;
/// Writes that are remembered.
const RECENT: usize = 400;
/// Points of an answer.
const LIMIT: u64 = 5;

impl Workload for Search {
    fn name(&self) -> &'static str {
        "search"
    }

    fn step(&self, session: &mut Session) {
        let (key, value) = match session.rng.random_range(0..100) {
            0..35 => (self.next.fetch_add(1, Ordering::Relaxed), session.fresh_value()),
            35..50 => (self.moving.pick(&mut session.rng).0, session.fresh_value()),
            50..55 => {
                let (key, _) = self.moving.pick(&mut session.rng);
                if delete(session, key).0 == Kind::Info {
                    self.moving.unknown(key);
                }
                return;
            }
            n => return self.find(session, n >= 90),
        };
        match write(session, "write", key, value).0 {
            Kind::Ok => {
                let mut recent = self.recent();
                recent.push_front((key, value));
                recent.truncate(RECENT);
            }
            Kind::Info => self.moving.unknown(key),
            _ => {}
        }
    }

    fn proves(&self) -> &'static [&'static str] {
        &["search", "versioned"]
    }
}

impl Search {
    /// Searches for something that was written; mostly for what was written last.
    fn find(&self, session: &mut Session, pair: bool) {
        let newest = if session.rng.random() { 4 } else { RECENT };
        let chosen = {
            let recent = self.recent();
            let at = session.rng.random_range(0..newest.min(recent.len()).max(1));
            recent.get(at).copied()
        };
        let Some((key, value)) = chosen else { return };
        let node = session.node();
        let exact = session.rng.random();
        find(session, node, "search", (key, value), exact);
        if pair {
            find(session, node, "search", (key, value), !exact);
        }
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<(u64, u64)>> {
        self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// One search for the vector of a value.
pub(super) fn find(session: &mut Session, node: usize, f: &str, (key, value): (u64, u64), exact: bool) {
    let path = session.path("/points/query");
    let body = json!({"query": vector_of(key, value), "limit": LIMIT, "with_payload": true,
        "params": {"exact": exact}});
    let asked = json!({"v": value, "exact": exact});
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session.operate(node, (f, Some(key), asked), Effect::Reads, send, |reply| {
        let answer: Value = json!({"hits": hits(reply.result(), true)?, "token": reply.token});
        Ok((answer, None))
    });
}
