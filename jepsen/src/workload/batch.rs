//! Groups of points that are written together, in one shard, and read together.

use super::{Session, Workload, keys::Keys, register::written};
use crate::{
    client::Effect,
    history::Kind,
    point::{Hit, body_of, vector_of},
};
use rand::Rng;
use serde_json::{Value, json};

/// The workload.
pub(super) struct Batch(Keys);

impl Default for Batch {
    fn default() -> Self {
        Batch(Keys::new(6))
    }
}

/// Points of a group.
const POINTS: u64 = 6;

impl Workload for Batch {
    fn name(&self) -> &'static str {
        "batch"
    }

    /// A request is atomic within a shard.
    fn shards(&self) -> u32 {
        1
    }

    fn step(&self, session: &mut Session) {
        let (group, _) = self.0.pick(&mut session.rng);
        let keys: Vec<u64> = (group * POINTS..(group + 1) * POINTS).collect();
        if session.rng.random() {
            return read(session, &keys);
        }
        let kind = write_batch(session, &keys);
        if kind == Kind::Info {
            self.0.unknown(group);
        }
    }

    fn proves(&self) -> &'static [&'static str] {
        &["batch", "versioned"]
    }
}

/// Writes one value to all of them.
pub(super) fn write_batch(session: &mut Session, keys: &[u64]) -> Kind {
    let (node, path, value) = (session.node(), session.path("/points?wait=true"), session.fresh_value());
    let points: Vec<Value> = keys.iter().map(|key| body_of(*key, value)).collect();
    let (asked, body) = (json!({"v": value, "keys": keys}), json!({"points": points}));
    let send = |session: &Session| session.send(node, "PUT", &path, &[], Some(&body));
    let asks = ("write-batch", None, asked.clone());
    session.operate(node, asks, Effect::Writes, send, |reply| written(reply, asked)).0
}

/// Reads all of them, by their ids or by a filtered search, which tells versions too.
fn read(session: &mut Session, keys: &[u64]) {
    let node = session.node();
    let (path, body) = if session.rng.random() {
        (session.path("/points"), json!({"ids": keys, "with_payload": true, "with_vector": true}))
    } else {
        let body = json!({"query": vector_of(keys[0], 0), "limit": 2 * POINTS, "with_payload": true,
            "with_vector": true, "filter": {"must": [{"has_id": keys}]}, "params": {"exact": true}});
        (session.path("/points/query"), body)
    };
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session.operate(node, ("read-batch", None, json!(keys)), Effect::Reads, send, |reply| {
        let hits = hits(reply.result(), false)?;
        Ok((json!(hits), None))
    });
}

/// Points of an answer, in a list or behind `points`; scores only if they mean something.
pub(super) fn hits(result: &Value, scored: bool) -> Result<Vec<Hit>, String> {
    let points = result["points"].as_array().or(result.as_array()).ok_or("no points")?;
    let hit = |point| Hit::from_answer(point).map(|hit| Hit { score: hit.score.filter(|_| scored), ..hit });
    points.iter().map(hit).collect()
}
