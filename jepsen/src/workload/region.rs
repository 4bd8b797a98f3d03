//! A collection in two regions: clients of both write and read, wherever its home is at the moment.
//!
//! ```text
//! put, remove   by a node of either region, under an Idempotency-Key; now and then what was meant before is sent again
//! get           linearizable, at-least a token that any client was given, bounded, or local
//! follow        all that one node has
//! links         beside: what each node takes for the home, again and again
//! change        beside: what the change feed tells a consumer, who goes to any node of either region
//! ```
//!
//! What an answer tells of homes and positions is its token, which is written down with it. These operations have names
//! of their own: a home that is taken over loses what it acknowledged, so what holds for one cluster does not hold here.
//!
//! Not here: homes that move (see `nemesis`), what must hold (see `checker::region`).

use super::{
    Session, Workload,
    batch::hits,
    feed::follow_regions,
    keys::Keys,
    last::{Look, compare, insist, replicas_of},
    session::Told,
};
use crate::{
    client::{Effect, Failed, Reply},
    cluster::Cluster,
    history::Kind,
    nemesis::settled_value,
    point::{Hit, body_of, vector_of},
    token::Seen,
};
use rand::Rng;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Its name, which is its collection's.
pub const REGION: &str = "region";

/// The workload.
pub(super) struct Region {
    keys: Keys,
    /// What each session has meant.
    meant: Mutex<BTreeMap<usize, Vec<Intent>>>,
    /// Tokens that clients were given lately, with the point they are of.
    tokens: Mutex<VecDeque<(String, u64)>>,
}

impl Default for Region {
    fn default() -> Self {
        Region { keys: Keys::new(12), meant: Mutex::default(), tokens: Mutex::default() }
    }
}

/// A point is to have a value, or to be deleted.
#[derive(Clone)]
struct Intent {
    request: String,
    key: u64,
    value: Option<u64>,
}

/// Tokens that are remembered.
const TOKENS: usize = 30;
/// What a request is given at the server: less than a client waits for an answer.
const WITHIN_MS: &str = "4000";
/// Between two looks at what a node takes for the home.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long regions may take to hold the same, once nothing is written any more.
const REST_WITHIN: Duration = Duration::from_secs(60);

impl Workload for Region {
    fn name(&self) -> &'static str {
        REGION
    }

    fn regions(&self) -> usize {
        2
    }

    fn step(&self, session: &mut Session) {
        match session.rng.random_range(0..100) {
            0..28 => {
                let value = session.fresh_value();
                self.mean(session, Some(value));
            }
            28..34 => self.mean(session, None),
            34..40 => {
                let meant = lock(&self.meant).get(&session.number).cloned().unwrap_or_default();
                if !meant.is_empty() {
                    let at = session.rng.random_range(0..meant.len());
                    self.send(session, &meant[at], true);
                }
            }
            40..52 => self.get(session, "linearizable"),
            52..74 => self.get(session, "local"),
            74..82 => self.get(session, "bounded"),
            82..97 => self.get(session, "at-least"),
            _ => {
                let node = session.node();
                follow(session, node, "follow");
            }
        }
    }

    fn beside(&self, session: &mut Session) -> bool {
        let mut consumer = Session::new(session.shared, REGION, session.number + 1);
        thread::scope(|scope| {
            scope.spawn(|| follow_regions(&mut consumer));
            for node in (0..session.shared.urls.len()).cycle() {
                if session.stopped() {
                    break;
                }
                links(session, node);
                thread::sleep(LOOK_EVERY);
            }
        });
        true
    }

    fn proves(&self) -> &'static [&'static str] {
        &["region", "end"]
    }

    fn shows(&self) -> &'static str {
        "held"
    }

    fn look(&self, Look { cluster, shared, number }: Look<'_>) {
        let mut session = Session::new(shared, REGION, number);
        rest(&mut session, cluster);
        for node in 0..cluster.len() {
            insist(|| follow(&mut session, node, "held"));
        }
        for region in &cluster.regions {
            for query in ["", "?scrub=true"] {
                insist(|| compare(&mut session, region.nodes.start, query, replicas_of(cluster)));
            }
        }
    }
}

impl Region {
    /// Something new is meant.
    fn mean(&self, session: &mut Session, value: Option<u64>) {
        let (key, _) = self.keys.pick(&mut session.rng);
        let sequence = lock(&self.meant).get(&session.number).map_or(0, Vec::len) + 1;
        let request = format!("jepsen{}-{}/{sequence}", session.shared.seed, session.number);
        let intent = Intent { request, key, value };
        lock(&self.meant).entry(session.number).or_default().push(intent.clone());
        if self.send(session, &intent, false) == Kind::Info {
            self.keys.unknown(key);
        }
    }

    /// Sends one copy of what is meant.
    fn send(&self, session: &mut Session, intent: &Intent, again: bool) -> Kind {
        let Intent { request, key, value } = intent;
        let node = session.node();
        let (f, method, path, body) = match value {
            Some(value) => ("put", "PUT", "/points?wait=true", json!({"points": [body_of(*key, *value)]})),
            None => ("remove", "POST", "/points/delete?wait=true", json!({"points": [key]})),
        };
        let path = session.path(path);
        let headers = [("idempotency-key", request.as_str()), ("annal-timeout-ms", WITHIN_MS)];
        let asked = json!({"request": request, "v": value, "again": again});
        let mut token = None;
        let send = |session: &Session| session.send(node, method, &path, &headers, Some(&body));
        let (kind, _) = session.operate(node, (f, Some(*key), asked), Effect::Writes, send, |reply| {
            token.clone_from(&reply.token);
            let version = reply.result()["operation_id"].as_u64();
            let version = version.ok_or_else(|| format!("no operation id: {}", reply.body))?;
            Ok((json!({"seen": seen(reply)?}), Some(version)))
        });
        if let Some(token) = token {
            let mut tokens = lock(&self.tokens);
            tokens.push_back((token, *key));
            if tokens.len() > TOKENS {
                tokens.pop_front();
            }
        }
        kind
    }

    fn get(&self, session: &mut Session, consistency: &str) {
        let (mut key, _) = self.keys.pick(&mut session.rng);
        let mut asked = json!({"consistency": consistency});
        let (mut wish, mut token) = (consistency.to_owned(), None);
        match consistency {
            "bounded" => {
                let bound_ms: u64 = session.rng.random_range(20..600);
                asked["bound_ms"] = bound_ms.into();
                wish = format!("bounded={bound_ms}ms");
            }
            "at-least" => {
                let tokens = lock(&self.tokens);
                if tokens.is_empty() {
                    return;
                }
                let (text, of) = tokens[session.rng.random_range(0..tokens.len())].clone();
                asked["token"] = json!(Seen::of(&text));
                (key, token) = (of, Some(text));
            }
            _ => {}
        }
        let mut headers = vec![("annal-consistency", wish.as_str()), ("annal-timeout-ms", WITHIN_MS)];
        headers.extend(token.as_deref().map(|token| ("annal-token", token)));
        let (path, body) = if session.rng.random() {
            (session.path("/points"), json!({"ids": [key], "with_payload": true, "with_vector": true}))
        } else {
            let filter = json!({"must": [{"has_id": [key]}]});
            let query = json!({"query": vector_of(key, 0), "limit": 2, "with_payload": true, "with_vector": true,
                "filter": filter});
            (session.path("/points/query"), query)
        };
        let node = session.node();
        let send = |session: &Session| session.send(node, "POST", &path, &headers, Some(&body));
        session.operate(node, ("get", Some(key), asked), Effect::Reads, send, |reply| {
            let hits = whole(hits(reply.result(), false)?)?;
            match hits.as_slice() {
                [] => Ok((shown(reply, Value::Null)?, None)),
                [hit] if hit.id == key => Ok((shown(reply, json!(hit.v))?, hit.version)),
                _ => Err(format!("asked for {key}: {}", reply.result())),
            }
        });
    }
}

/// `{v, seen, age_ms}`.
fn shown(reply: &Reply, v: Value) -> Result<Value, String> {
    Ok(json!({"v": v, "seen": seen(reply)?, "age_ms": reply.age_ms}))
}

fn seen(reply: &Reply) -> Result<Seen, String> {
    reply.token.as_deref().and_then(Seen::of).ok_or_else(|| format!("no token: {:?}", reply.token))
}

fn whole(hits: Vec<Hit>) -> Result<Vec<Hit>, String> {
    match hits.iter().find_map(Hit::torn) {
        Some(torn) => Err(torn),
        None => Ok(hits),
    }
}

/// All that one node has.
fn follow(session: &mut Session, node: usize, f: &str) -> Option<()> {
    let body = json!({"limit": 1_000_000, "with_payload": true, "with_vector": true});
    let path = session.path("/points/scroll");
    let headers = [("annal-consistency", "local"), ("annal-timeout-ms", WITHIN_MS)];
    let send = |session: &Session| session.send(node, "POST", &path, &headers, Some(&body));
    let read = |reply: &Reply| -> Told {
        let hits = whole(hits(reply.result(), false)?)?;
        Ok((json!({"hits": hits, "seen": seen(reply)?, "age_ms": reply.age_ms}), None))
    };
    let (kind, _) = session.operate(node, (f, None, Value::Null), Effect::Reads, send, read);
    (kind == Kind::Ok).then_some(())
}

/// What a node takes for the home: `{generation, part}`.
fn links(session: &mut Session, node: usize) {
    let send = |session: &Session| session.send(node, "GET", "/annal/v1/regions", &[], None);
    session.operate(node, ("links", None, Value::Null), Effect::Reads, send, |reply| {
        let rows = reply.body["links"].as_array().ok_or("no links")?;
        let link = rows.iter().find(|link| link["collection"] == REGION).ok_or("no link")?;
        Ok((json!({"generation": link["generation"], "part": link["part"]["part"]}), None))
    });
}

/// Waits until all regions hold the same: `{home, generation, loss?, regions: {name: [{shard, position, replicas}]}}`.
fn rest(session: &mut Session, cluster: &Cluster) {
    let deadline = Instant::now() + REST_WITHIN;
    let held = loop {
        match cluster.at_rest(REGION, replicas_of(cluster)) {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(200)),
            held => break held,
        }
    };
    let value = held.and_then(|held| {
        let mut value = settled_value(cluster, &cluster.settled(REGION)?);
        value["regions"] = held;
        Ok(value)
    });
    let said = |_: &Session| value.clone().map(|_| Reply::here()).map_err(Failed::NotSent);
    session.operate(0, ("rest", None, Value::Null), Effect::Reads, said, |_| {
        Ok((value.clone().unwrap_or_default(), None))
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
