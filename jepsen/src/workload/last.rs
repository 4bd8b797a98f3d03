//! The last operations of a run, when faults have stopped and clients are gone: does everything that was acknowledged
//! still stand, on every node alike?
//!
//! ```text
//! converge (within 30 s) -> log: did a node panic? -> final, by every node
//!                        -> state-hash, as kept and recomputed -> audit of the index
//! ```
//!
//! Not here: the last look at regions (see `region`).

use super::{Session, Shared, Workload, batch::hits, search::find};
use crate::{
    client::{Effect, Reply},
    cluster::Cluster,
    history::Kind,
    point::Hit,
};
use serde_json::{Value, json};
use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

/// How long the cluster may take to come to rest.
const CONVERGE_WITHIN: Duration = Duration::from_secs(30);
/// Points whose vectors are searched at the end, at most.
const AUDITED_MAX: usize = 300;
/// How long an operation of the end is tried.
const TRY_WITHIN: Duration = Duration::from_secs(12);

/// Replicas of every shard, in each region.
pub fn replicas_of(cluster: &Cluster) -> usize {
    cluster.regions[0].nodes.len().min(3)
}

/// The number of the session that does all this: none of a client's.
const LOOKS_AT_THE_END: usize = 1 << 30;

/// Who looks at the end, and at what.
pub struct Look<'a> {
    /// The nodes.
    pub cluster: &'a Cluster,
    /// What all sessions share.
    pub shared: &'a Shared,
    /// The number of the session that looks.
    pub number: usize,
}

/// Waits until the cluster is whole, and looks at all it holds. Whether it came to rest.
pub fn finish(cluster: &mut Cluster, shared: &Shared, workloads: &[Box<dyn Workload>]) -> bool {
    let Some(first) = workloads.first() else { return true };
    let mut session = Session::new(shared, first.name(), LOOKS_AT_THE_END);
    let whole = cluster.wait_whole(CONVERGE_WITHIN);
    let rested = whole.is_ok();
    let said = |_: &Session| match whole {
        Ok(()) => Ok(Reply::here()),
        Err(why) => Err(crate::client::Failed::NotSent(why)),
    };
    session.operate(0, ("converge", None, Value::Null), Effect::Reads, said, |_| Ok((Value::Null, None)));
    for (i, node) in cluster.nodes.iter().enumerate() {
        let panics = node.panics();
        session.operate(
            i,
            ("log", None, Value::Null),
            Effect::Reads,
            |_| Ok(Reply::here()),
            |_| Ok((json!(panics), None)),
        );
    }
    shared.at_rest.store(true, Ordering::Relaxed);
    for workload in workloads {
        workload.look(Look { cluster, shared, number: LOOKS_AT_THE_END });
    }
    rested
}

/// Every node shows all it holds, replicas are compared, and every point is sought by its vector.
pub(super) fn look(workload: &'static str, Look { cluster, shared, number }: Look<'_>) {
    let mut session = Session::new(shared, workload, number);
    let mut held = Vec::new();
    for node in 0..cluster.len() {
        held = insist(|| read_all(&mut session, node)).unwrap_or_default();
    }
    for query in ["", "?scrub=true"] {
        insist(|| compare(&mut session, 0, query, replicas_of(cluster)));
    }
    let every = held.len().div_ceil(AUDITED_MAX).max(1);
    for (n, hit) in held.iter().enumerate().step_by(every) {
        find(&mut session, n % cluster.len(), "audit", (hit.id, hit.v), false);
    }
}

/// Tries until it is done, for a while.
pub(super) fn insist<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + TRY_WITHIN;
    loop {
        let done = attempt();
        if done.is_some() || Instant::now() > deadline {
            return done;
        }
        thread::sleep(Duration::from_millis(250));
    }
}

/// Reads every point by one node, and counts them.
fn read_all(session: &mut Session, node: usize) -> Option<Vec<Hit>> {
    let scroll = json!({"limit": 1_000_000, "with_payload": true, "with_vector": true});
    let (scroll_path, count_path) = (session.path("/points/scroll"), session.path("/points/count"));
    let send = |session: &Session| {
        let mut reply = session.send(node, "POST", &scroll_path, &[], Some(&scroll))?;
        let counted = session.send(node, "POST", &count_path, &[], Some(&json!({"exact": true})))?;
        reply.body["result"]["count"] = counted.result()["count"].clone();
        Ok(reply)
    };
    let mut shown = Vec::new();
    let read = |reply: &Reply| {
        shown = hits(reply.result(), false)?;
        Ok((json!({"hits": shown, "count": reply.result()["count"]}), None))
    };
    let (kind, _) = session.operate(node, ("final", None, Value::Null), Effect::Reads, send, read);
    (kind == Kind::Ok).then_some(shown)
}

/// Compares the replicas' state hashes, as a node's cluster knows them. One that is being opened may have none for a moment: then it is asked again.
pub(super) fn compare(session: &mut Session, node: usize, query: &str, replicas: usize) -> Option<()> {
    let path = format!("/annal/v1{}", session.path(&format!("/state-hash{query}")));
    let deadline = Instant::now() + Duration::from_secs(2);
    let equal = |body: &Value| {
        body.as_array().is_some_and(|rows| {
            rows.iter().all(|row| {
                let hashes: Vec<_> =
                    row["replicas"].as_object().into_iter().flatten().map(|(_, hash)| hash).collect();
                hashes.len() >= replicas && hashes.windows(2).all(|two| two[0] == two[1])
            })
        })
    };
    let mut answer = session.send(node, "GET", &path, &[], None);
    while !answer.as_ref().is_ok_and(|reply| equal(&reply.body)) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        answer = session.send(node, "GET", &path, &[], None);
    }
    let asked = json!({"replicas": replicas, "scrub": !query.is_empty()});
    let read = |reply: &Reply| Ok((reply.body.clone(), None));
    let (kind, _) = session.operate(node, ("state-hash", None, asked), Effect::Reads, |_| answer, read);
    (kind == Kind::Ok).then_some(())
}
