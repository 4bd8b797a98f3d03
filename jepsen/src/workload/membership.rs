//! Registers whose shards are led and moved elsewhere by the clients themselves.

use super::{Session, Workload, keys::Keys, register::one_of_all};
use crate::client::Effect;
use rand::Rng;
use serde_json::json;

/// The workload.
pub(super) struct Membership(Keys);

impl Default for Membership {
    fn default() -> Self {
        Membership(Keys::new(10))
    }
}

impl Workload for Membership {
    fn name(&self) -> &'static str {
        "membership"
    }

    fn step(&self, session: &mut Session) {
        // One of them does it, the others keep on reading and writing.
        if session.number.is_multiple_of(4) && session.rng.random_ratio(1, 60) {
            change(session);
        } else {
            one_of_all(session, &self.0);
        }
    }

    fn proves(&self) -> &'static [&'static str] {
        &["linearizable", "versioned"]
    }
}

/// Asks for another leader of a shard, or for a move of one of its replicas; either may be refused.
fn change(session: &mut Session) {
    let (node, shard) = (session.node(), session.rng.random_range(0..2));
    let names = session.shared.names.clone();
    let to = &names[session.rng.random_range(0..names.len())];
    let (verb, body) = if session.rng.random() {
        ("lead", json!({"to": to}))
    } else {
        ("move", json!({"from": names[session.rng.random_range(0..names.len())], "to": to}))
    };
    let path = format!("/annal/v1{}", session.path(&format!("/shards/{shard}/{verb}?timeout=3")));
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    let asked = (verb, None, body.clone());
    session.operate(node, asked, Effect::Writes, send, |reply| Ok((reply.body.clone(), None)));
}
