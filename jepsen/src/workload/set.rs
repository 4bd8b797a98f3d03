//! A set that only grows: points are added once, and all members are read now and then.

use super::{Session, Workload, register::write};
use crate::client::Effect;
use rand::Rng;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// The workload.
#[derive(Default)]
pub(super) struct Set(AtomicU64);

impl Workload for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn step(&self, session: &mut Session) {
        if session.rng.random_ratio(1, 100) {
            members(session);
        } else {
            let element = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            write(session, "add", element, element);
        }
    }

    fn proves(&self) -> &'static [&'static str] {
        &["set", "versioned"]
    }
}

fn members(session: &mut Session) {
    let (node, path) = (session.node(), session.path("/points/scroll"));
    let body = json!({"limit": 1_000_000, "with_payload": false});
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session.operate(node, ("members", None, Value::Null), Effect::Reads, send, |reply| {
        let points = reply.result()["points"].as_array().ok_or("no points")?;
        let ids: Vec<Value> = points.iter().map(|point| point["id"].clone()).collect();
        Ok((Value::from(ids), None))
    });
}
