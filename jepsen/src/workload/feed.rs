//! A consumer of the change feed: it records every event as it comes, is cut off and goes elsewhere, and goes on from
//! its last token.
//!
//! Invariants: events are recorded in the order in which they came, each as an operation of its own; `feed-end` is
//! recorded once the cluster is at rest and two connections in a row were let in and brought nothing.

use super::{Session, session::ANSWER_WITHIN};
use crate::client::{Client, Effect, Reply};
use rand::Rng;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

/// Connections that bring nothing, in a row, after which the feed has ended.
const QUIET: u32 = 2;
/// How long a connection lasts once the cluster is at rest.
const QUIET_WITHIN: Duration = Duration::from_millis(1_500);
/// How long it waits for the feed's end once the cluster is at rest.
const END_WITHIN: Duration = Duration::from_secs(25);

/// Follows the feed to its end.
pub(super) fn follow(session: &mut Session) {
    let mut token = "begin".to_owned();
    let mut rested: Option<Instant> = None;
    let mut quiet = 0;
    while rested.is_none_or(|since| since.elapsed() < END_WITHIN) {
        let rests = session.shared.at_rest.load(Ordering::Relaxed);
        if rests {
            rested.get_or_insert_with(Instant::now);
        }
        // A connection lasts no longer than an answer may take: a node that stands still is left.
        let within = if rests { QUIET_WITHIN } else { ANSWER_WITHIN };
        match consume(session, &mut token, within) {
            Some(0) if rests => quiet += 1,
            Some(_) => quiet = 0,
            None => thread::sleep(Duration::from_millis(20)),
        }
        if quiet >= QUIET {
            let node = session.node();
            let asked = ("feed-end", None, Value::Null);
            session.operate(node, asked, Effect::Reads, |_| Ok(Reply::here()), |_| Ok((json!(token), None)));
            return;
        }
    }
}

/// Reads lines of one connection, to any node, until it is cut off; tells how many events came, or that it was not
/// let in.
fn consume(session: &mut Session, token: &mut String, within: Duration) -> Option<u32> {
    let node = session.rng.random_range(0..session.shared.urls.len());
    let lines_max = session.rng.random_range(20..400);
    let path = session.path(&format!("/changes?from={token}&with_payload=true&with_vector=true"));
    let client = Client::new(session.shared.api_key.as_deref(), within);
    let url = format!("{}/annal/v1{path}", session.shared.urls[node]);
    let answer = client.open("GET", &url, &[], None).ok().filter(|answer| answer.status() == 200)?;
    let (mut lines, mut events) = (0, 0);
    for line in BufReader::new(answer.into_body().into_reader()).lines().take(lines_max) {
        let Some(event) = line.ok().and_then(|line| serde_json::from_str::<Value>(&line).ok()) else { break };
        let Some(next) = event["token"].as_str() else { break };
        lines += 1;
        if event["heartbeat"] != true {
            events += 1;
            record(session, node, &event);
        }
        next.clone_into(token);
    }
    // Every answer begins with a heartbeat; one without it says nothing.
    (lines > 0).then_some(events)
}

fn record(session: &mut Session, node: usize, event: &Value) {
    let shown = json!({"shard": event["shard"], "position": event["position"], "n": event["n"], "of": event["of"],
        "op": event["op"], "v": event["payload"]["v"]});
    let version = event["version"].as_u64();
    let asked = ("event", event["id"].as_u64(), Value::Null);
    session.operate(node, asked, Effect::Reads, |_| Ok(Reply::here()), |_| Ok((shown, version)));
}
