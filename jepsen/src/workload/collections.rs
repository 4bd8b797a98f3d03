//! Collections that are made, dropped and asked for: names as registers that are taken or free.
//!
//! Invariants: few names at a time, so that they meet; the keys of names are apart from those of points.

use super::{Session, keys::Keys};
use crate::{client::Effect, history::Kind, point::DIM};
use rand::Rng;
use serde_json::{Value, json};

/// Names in use.
pub(super) struct Collections(Keys);

impl Default for Collections {
    fn default() -> Self {
        Collections(Keys::new(2))
    }
}

/// The key of a name, above those of points.
const NAMES: u64 = 1 << 40;

impl Collections {
    /// One operation on one name.
    pub(super) fn step(&self, session: &mut Session) {
        let (number, _) = self.0.pick(&mut session.rng);
        let path = format!("/collections/made-{number}");
        let kind =
            match session.rng.random_range(0..5) {
                0 => create(session, NAMES | number, &path),
                1 => {
                    operate(session, "drop", NAMES | number, Effect::Writes, "DELETE", &path, |result| result)
                }
                _ => {
                    let path = format!("{path}/exists");
                    operate(session, "exists", NAMES | number, Effect::Reads, "GET", &path, |result| {
                        &result["exists"]
                    })
                }
            };
        if kind == Kind::Info {
            self.0.unknown(number);
        }
    }
}

fn create(session: &mut Session, key: u64, path: &str) -> Kind {
    let node = session.node();
    let body = json!({"vectors": {"size": DIM, "distance": "Euclid"}, "shard_number": 1});
    let send = |session: &Session| session.send(node, "PUT", path, &[], Some(&body));
    session
        .operate(node, ("create", Some(key), Value::Null), Effect::Writes, send, |_| Ok((Value::Null, None)))
        .0
}

fn operate(
    session: &mut Session,
    f: &str,
    key: u64,
    effect: Effect,
    method: &str,
    path: &str,
    shown: impl FnOnce(&Value) -> &Value,
) -> Kind {
    let node = session.node();
    let send = |session: &Session| session.send(node, method, path, &[], None);
    session
        .operate(node, (f, Some(key), Value::Null), effect, send, |reply| {
            let there = shown(reply.result()).as_bool();
            there
                .map(|there| (json!(there), None))
                .ok_or_else(|| format!("neither true nor false: {}", reply.body))
        })
        .0
}
