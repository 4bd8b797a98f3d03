//! Intents: writes under an `Idempotency-Key` that are sent again when nobody knows, and once more much later.

use super::{
    Session, Workload,
    keys::Keys,
    register::{get, written},
};
use crate::{client::Effect, history::Kind, point::body_of};
use rand::Rng;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

/// The workload.
pub(super) struct Dedup {
    keys: Keys,
    /// What each session has sent.
    sent: Mutex<BTreeMap<usize, Vec<Intent>>>,
}

impl Default for Dedup {
    fn default() -> Self {
        Dedup { keys: Keys::new(10), sent: Mutex::default() }
    }
}

/// A write that may be sent again.
#[derive(Clone)]
struct Intent {
    request: String,
    key: u64,
    value: u64,
}

/// Copies that are sent while nobody knows.
const COPIES_MAX: u32 = 4;

impl Workload for Dedup {
    fn name(&self) -> &'static str {
        "dedup"
    }

    fn step(&self, session: &mut Session) {
        match session.rng.random_range(0..10) {
            0..4 => {
                let (key, _) = self.keys.pick(&mut session.rng);
                get(session, key);
            }
            4..6 => {
                let number = session.number;
                let sent = self.sent().get(&number).cloned().unwrap_or_default();
                if !sent.is_empty() {
                    let at = session.rng.random_range(0..sent.len());
                    send(session, &sent[at]);
                }
            }
            _ => self.intend(session),
        }
    }

    fn proves(&self) -> &'static [&'static str] {
        &["dedup", "versioned"]
    }
}

impl Dedup {
    /// Something new is meant, and sent until it is known.
    fn intend(&self, session: &mut Session) {
        let (key, _) = self.keys.pick(&mut session.rng);
        let number = session.number;
        let sequence = self.sent().get(&number).map_or(0, Vec::len) + 1;
        let request = format!("jepsen{}-{number}/{sequence}", session.shared.seed);
        let intent = Intent { request, key, value: session.fresh_value() };
        self.sent().entry(number).or_default().push(intent.clone());
        for _ in 0..COPIES_MAX {
            if send(session, &intent) == Kind::Ok {
                return;
            }
        }
        self.keys.unknown(key);
    }

    fn sent(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Intent>>> {
        self.sent.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Sends one copy, to any node.
fn send(session: &mut Session, Intent { request, key, value }: &Intent) -> Kind {
    let node = session.rng.random_range(0..session.shared.urls.len());
    let path = session.path("/points?wait=true");
    let body = json!({"points": [body_of(*key, *value)]});
    let asked = json!({"request": request, "v": value});
    let headers = [("idempotency-key", request.as_str())];
    let send = |session: &Session| session.send(node, "PUT", &path, &headers, Some(&body));
    session
        .operate(node, ("intend", Some(*key), asked), Effect::Writes, send, |reply| {
            written(reply, json!(value))
        })
        .0
}
