//! A node that is none: a map in memory behind the routes that clients use, which can be told to lie in one way.
//!
//! Invariants: without a lie every answer is linearizable, since one lock is held for all of it.
//! Not here: what no workload asks for.

use annal_jepsen::point::{DIM, distance, vector_of};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Nothing.
    None,
    /// Now and then a read gives what was overwritten.
    StaleRead,
    /// Now and then a write is acknowledged and not done.
    LostWrite,
    /// A write is done, and said to have failed without effect.
    FailedWithEffect,
    /// Conditions always hold.
    BlindCas,
    /// A deleted point comes back.
    Resurrect,
    /// The halves of a batch become visible one after the other.
    HalfBatch,
    /// The payload of one write with the vector of another.
    Torn,
    /// Searches do not see what was just written.
    IndexLags,
    /// A retry is done again.
    ForgetsIntents,
    /// The feed leaves an event out.
    FeedLoses,
    /// The feed repeats its last event when somebody comes back.
    FeedRepeats,
    /// What collections there are is asked of an old catalog.
    OldCatalog,
    /// A member of the set is not shown.
    MemberMissing,
}

#[derive(Clone)]
struct Point {
    value: u64,
    version: u64,
    before: Option<u64>,
    written: Instant,
}

#[derive(Default)]
struct State {
    points: BTreeMap<u64, Point>,
    gone: Vec<(u64, Point)>,
    position: u64,
    intents: BTreeMap<String, u64>,
    events: Vec<Value>,
    collections: BTreeSet<String>,
    asked: u64,
    feeds: u64,
}

/// A node at a port of its own.
pub(crate) struct Fake {
    state: Mutex<State>,
    lie: Lie,
}

type Answer = (u16, bool, Value);

/// Starts one; gives its URL.
pub(crate) fn start(lie: Lie) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fake = Arc::new(Fake { state: Mutex::default(), lie });
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let fake = fake.clone();
            thread::spawn(move || fake.serve(socket));
        }
    });
    url
}

impl Fake {
    fn serve(&self, socket: TcpStream) {
        socket.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(socket.try_clone().unwrap());
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if !reader.read_line(&mut head).is_ok_and(|count| count > 0) {
                    return;
                }
            }
            let header = |name: &str| {
                let mut fields = head.lines().filter_map(|line| line.split_once(": "));
                fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
            };
            let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let mut words = head.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            if let Some((_, from)) = path.split_once("/changes?from=") {
                return self.feed(&socket, from.split('&').next().unwrap());
            }
            let (status, effect, body) = self.answer(method, path, &body, header("idempotency-key"));
            let effect = if effect { "" } else { "annal-effect: none\r\n" };
            let body = body.to_string();
            let answer =
                format!("HTTP/1.1 {status} X\r\n{effect}content-length: {}\r\n\r\n{body}", body.len());
            if (&socket).write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, method: &str, path: &str, body: &Value, intent: Option<String>) -> Answer {
        let route = path.split('?').next().unwrap().rsplit('/').next().unwrap();
        let mut state = self.state.lock().unwrap();
        state.asked += 1;
        let now_and_then = state.asked.is_multiple_of(23);
        let name = path.split('/').find(|part| part.starts_with("made-")).map(str::to_owned);
        if let Some(name) = name {
            let there = state.collections.contains(&name);
            let done = |result: Value| (200, true, json!({"result": result}));
            return match method {
                "PUT" if there => (400, false, json!({"status": {"error": "it already exists!"}})),
                "PUT" => done(json!(state.collections.insert(name))),
                "DELETE" => done(json!(state.collections.remove(&name))),
                _ => done(json!({"exists": there && self.lie != Lie::OldCatalog})),
            };
        }
        match (method, route) {
            ("PUT", "points") => {
                let points = body["points"].as_array().unwrap();
                if let Some(position) = intent.as_ref().and_then(|intent| state.intents.get(intent)) {
                    return written(*position);
                }
                if self.lie == Lie::LostWrite && now_and_then {
                    state.position += 1;
                    return written(state.position);
                }
                if self.lie == Lie::HalfBatch && points.len() > 1 {
                    let (first, rest) = points.split_at(points.len() / 2);
                    let position = state.write(first);
                    drop(state);
                    thread::sleep(Duration::from_millis(3));
                    let mut state = self.state.lock().unwrap();
                    state.position -= u64::from(state.position == position);
                    state.write(rest);
                    return written(position);
                }
                let position = state.write(points);
                if let Some(intent) = intent.filter(|_| self.lie != Lie::ForgetsIntents) {
                    state.intents.insert(intent, position);
                }
                if self.lie == Lie::FailedWithEffect && now_and_then {
                    return (503, false, json!({"status": {"error": "not proposed"}}));
                }
                written(position)
            }
            ("POST", "cas") => {
                let id = body["id"].as_u64().unwrap();
                let at = state.points.get(&id).map(|point| point.version);
                if at != body["if_version"].as_u64() && self.lie != Lie::BlindCas {
                    return (412, false, json!({"version": at, "status": {"error": "version"}}));
                }
                match &body["point"] {
                    Value::Null => written(state.delete(id)),
                    point => written(state.write(std::slice::from_ref(point))),
                }
            }
            ("POST", "delete") => {
                let position = state.delete(body["points"][0].as_u64().unwrap());
                if self.lie == Lie::Resurrect
                    && state.asked.is_multiple_of(3)
                    && let Some((id, point)) = state.gone.pop()
                {
                    state.points.entry(id).or_insert(point);
                }
                written(position)
            }
            ("GET", id) => {
                let id: u64 = id.parse().unwrap();
                let Some(point) = state.points.get(&id) else {
                    return (404, false, json!({"status": {"error": "No point"}}));
                };
                let stale = self.lie == Lie::StaleRead && now_and_then;
                let value = point.before.filter(|_| stale).unwrap_or(point.value);
                (200, true, json!({"result": shown(id, value, point.version, None)}))
            }
            ("POST", "points") => {
                let ids = body["ids"].as_array().unwrap().iter().filter_map(Value::as_u64);
                let found = ids.filter_map(|id| Some(shown(id, state.points.get(&id)?.value, 0, None)));
                (200, true, json!({"result": found.collect::<Vec<_>>()}))
            }
            ("POST", "scroll" | "query") => {
                let query: Option<[f32; DIM]> = serde_json::from_value(body["query"].clone()).ok();
                let points = self.find(&state, body, query, now_and_then);
                (200, true, json!({"result": {"points": points, "next_page_offset": null}}))
            }
            _ => (200, true, json!({"result": true})),
        }
    }

    fn find(&self, state: &State, body: &Value, query: Option<[f32; DIM]>, now_and_then: bool) -> Vec<Value> {
        let must = &body["filter"]["must"][0];
        let ids: Option<Vec<u64>> = serde_json::from_value(must["has_id"].clone()).ok();
        let group = must["match"]["value"].as_u64();
        let lags = self.lie == Lie::IndexLags && query.is_some();
        let missing = self.lie == Lie::MemberMissing;
        let passes = |(id, point): &(&u64, &Point)| {
            ids.as_ref().is_none_or(|ids| ids.contains(id))
                && group.is_none_or(|g| g == point.value % 8)
                && !(lags && point.written.elapsed() < Duration::from_millis(30))
        };
        let mut found: Vec<(f32, Value)> = state
            .points
            .iter()
            .filter(passes)
            .skip(usize::from(missing))
            .map(|(id, point)| {
                let vector = vector_of(*id, point.value);
                let score = query.map(|query| distance(&query, &vector));
                let mut shown = shown(*id, point.value, point.version, score);
                if self.lie == Lie::Torn && now_and_then {
                    shown["vector"] = json!(vector_of(*id, point.before.unwrap_or(point.value)));
                }
                (score.unwrap_or(0.0), shown)
            })
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(body["limit"].as_u64().unwrap() as usize);
        found.into_iter().map(|(_, point)| point).collect()
    }

    /// Lines from a place on, for a while.
    fn feed(&self, mut socket: &TcpStream, from: &str) {
        let mut at: usize = from.parse().unwrap_or(0);
        let mut state = self.state.lock().unwrap();
        state.feeds += 1;
        // Not for ever, or the feed would have no end.
        if self.lie == Lie::FeedRepeats && state.feeds < 4 {
            at = at.saturating_sub(1);
        }
        drop(state);
        let mut text =
            format!("HTTP/1.1 200 X\r\nconnection: close\r\n\r\n{{\"token\":\"{at}\",\"heartbeat\":true}}\n");
        let ends = Instant::now() + Duration::from_millis(300);
        while Instant::now() < ends && socket.write_all(text.as_bytes()).is_ok() {
            text.clear();
            for event in self.state.lock().unwrap().events.iter().skip(at) {
                at += 1;
                let mut event = event.clone();
                event["token"] = json!(at.to_string());
                if self.lie != Lie::FeedLoses || !at.is_multiple_of(17) {
                    text += &format!("{event}\n");
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl State {
    fn write(&mut self, points: &[Value]) -> u64 {
        self.position += 1;
        let of = points.len();
        for (n, point) in points.iter().enumerate() {
            let (id, value) = (point["id"].as_u64().unwrap(), point["payload"]["v"].as_u64().unwrap());
            let before = self.points.get(&id).map(|point| point.value);
            let point = Point { value, version: self.position, before, written: Instant::now() };
            self.points.insert(id, point);
            self.tell(id, "upsert", json!({"v": value}), n, of);
        }
        self.position
    }

    fn delete(&mut self, id: u64) -> u64 {
        self.position += 1;
        if let Some(point) = self.points.remove(&id) {
            self.gone.push((id, point));
            self.tell(id, "delete", Value::Null, 0, 1);
        }
        self.position
    }

    fn tell(&mut self, id: u64, op: &str, payload: Value, n: usize, of: usize) {
        let position = self.position;
        self.events.push(json!({"shard": 0, "position": position, "n": n, "of": of, "op": op, "id": id,
            "version": position, "payload": payload}));
    }
}

fn written(position: u64) -> Answer {
    (200, true, json!({"result": {"operation_id": position, "status": "completed"}}))
}

fn shown(id: u64, value: u64, version: u64, score: Option<f32>) -> Value {
    let mut point =
        json!({"id": id, "payload": {"v": value, "g": value % 8}, "vector": vector_of(id, value)});
    if version > 0 {
        point["version"] = json!(version);
    }
    if let Some(score) = score {
        point["score"] = json!(score);
    }
    point
}
