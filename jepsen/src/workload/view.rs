//! Few points that are written all the time, and read through filters: payload and vector must be of one write.

use super::{Session, Workload, batch::hits, keys::Keys, register::upsert};
use crate::{client::Effect, history::Kind, point::GROUPS};
use rand::Rng;
use serde_json::{Value, json};

/// The workload.
pub(super) struct ReadView(Keys);

impl Default for ReadView {
    fn default() -> Self {
        ReadView(Keys::new(24))
    }
}

impl Workload for ReadView {
    fn name(&self) -> &'static str {
        "read-view"
    }

    fn prepare(&self, ask: &dyn Fn(&str, &str, Value)) {
        let index = json!({"field_name": "g", "field_schema": "integer"});
        ask("PUT", "/collections/read-view/index?wait=true", index);
    }

    fn step(&self, session: &mut Session) {
        if session.rng.random() {
            let (key, _) = self.0.pick(&mut session.rng);
            if upsert(session, key).0 == Kind::Info {
                self.0.unknown(key);
            }
            return;
        }
        read(session);
    }

    fn proves(&self) -> &'static [&'static str] {
        &["view", "versioned"]
    }
}

/// A scroll or a search, with a filter or without one.
fn read(session: &mut Session) {
    let (node, group) = (session.node(), session.rng.random_range(0..GROUPS));
    let filtered = session.rng.random_ratio(3, 4);
    let mut body = json!({"limit": 64, "with_payload": true, "with_vector": true});
    if filtered {
        body["filter"] = json!({"must": [{"key": "g", "match": {"value": group}}]});
    }
    let path = if session.rng.random() {
        session.path("/points/scroll")
    } else {
        body["query"] = json!([0, 0, 0, 0]);
        session.path("/points/query")
    };
    let asked = if filtered { json!({"g": group}) } else { Value::Null };
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session.operate(node, ("scroll", None, asked), Effect::Reads, send, |reply| {
        Ok((json!(hits(reply.result(), false)?), None))
    });
}
