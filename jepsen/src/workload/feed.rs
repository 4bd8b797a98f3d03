//! A consumer of the change feed: it records every event as it comes, is cut off and goes elsewhere, and goes on from
//! its last token.
//!
//! Invariants: events are recorded in the order in which they came, each as an operation of its own; `feed-end` is recorded
//! once the cluster is at rest and two heartbeats in a row have brought nothing.

use super::{Session, session::ANSWER_WITHIN};
use crate::{
    client::{Client, Effect, Reply},
    history::Kind,
};
use rand::Rng;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

/// Heartbeats without an event between them from which on the feed has ended.
const QUIET: u32 = 3;
/// How long it waits for the feed's end once the cluster is at rest.
const END_WITHIN: Duration = Duration::from_secs(25);

/// Follows the feed to its end.
pub(super) fn follow(session: &mut Session) {
    let mut token = "begin".to_owned();
    let mut rested: Option<Instant> = None;
    let mut quiet = 0;
    loop {
        let node = session.rng.random_range(0..session.shared.urls.len());
        let lines_max = session.rng.random_range(20..400);
        let ended = consume(session, node, &mut token, &mut quiet, lines_max);
        if ended {
            let end = json!(token);
            let done = |_: &Session| Ok(Reply { status: 200, no_effect: false, token: None, body: Value::Null });
            session.operate(node, ("feed-end", None, Value::Null), Effect::Reads, done, |_| Ok((end, None)));
            return;
        }
        if session.shared.at_rest.load(Ordering::Relaxed) {
            let since = rested.get_or_insert_with(Instant::now);
            if since.elapsed() > END_WITHIN {
                return;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Reads lines of one connection; true once the feed has ended.
fn consume(session: &mut Session, node: usize, token: &mut String, quiet: &mut u32, lines_max: u32) -> bool {
    let path = format!("/annal/v1{}", session.path(&format!("/changes?from={token}&with_payload=true&with_vector=true")));
    // A connection lasts as long as an answer may: a node that stands still is left.
    let client = Client::new(session.shared.api_key.as_deref(), ANSWER_WITHIN);
    let url = format!("{}{path}", session.shared.urls[node]);
    let Ok(answer) = client.open("GET", &url, &[], None) else { return false };
    if answer.status() != 200 {
        return false;
    }
    *quiet = 0;
    let mut first = true;
    for line in BufReader::new(answer.into_body().into_reader()).lines().take(lines_max as usize) {
        let Ok(line) = line else { return false };
        let Ok(event) = serde_json::from_str::<Value>(&line) else { return false };
        let Some(next) = event["token"].as_str() else { return false };
        if event["heartbeat"] == true {
            // Every answer begins with one, which says nothing about what is to come.
            let rests = session.shared.at_rest.load(Ordering::Relaxed);
            *quiet += u32::from(rests && !first);
            if *quiet >= QUIET {
                return true;
            }
        } else {
            *quiet = 0;
            record(session, node, &event);
        }
        first = false;
        next.clone_into(token);
    }
    false
}

fn record(session: &mut Session, node: usize, event: &Value) -> Kind {
    let shown = json!({"shard": event["shard"], "position": event["position"], "n": event["n"], "of": event["of"],
        "op": event["op"], "v": event["payload"]["v"]});
    let version = event["version"].as_u64();
    let came = |_: &Session| Ok(Reply { status: 200, no_effect: false, token: None, body: Value::Null });
    let asked = ("event", event["id"].as_u64(), Value::Null);
    session.operate(node, asked, Effect::Reads, came, |_| Ok((shown, version))).0
}
