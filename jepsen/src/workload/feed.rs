//! A consumer of the change feed: it records every event as it comes, is cut off and goes elsewhere, and goes on from
//! its last token.
//!
//! ```text
//!                       of one cluster   of several regions
//! begins, anew after    (never anew)     changes
//! its token was refused                  changes-refused
//! an event              event            change
//! all there is          feed-end         changes-end
//! ```
//!
//! Invariants: events are recorded in the order in which they came, each as an operation of its own; the end is
//! recorded once the cluster is at rest and two connections in a row were let in and brought nothing. Between regions a
//! token may be refused for good (410): then it begins anew where it is let in, and tells so.

use super::{Session, session::ANSWER_WITHIN};
use crate::{
    client::{Client, Effect, Reply},
    token::fed,
};
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

/// Follows the feed of one cluster to its end.
pub(super) fn follow(session: &mut Session) {
    Consumer { token: BEGIN.to_owned(), regions: false, fresh: false }.follow(session);
}

/// Follows the feed of a collection in several regions, by nodes of any of them, to its end.
pub(super) fn follow_regions(session: &mut Session) {
    Consumer { token: BEGIN.to_owned(), regions: true, fresh: true }.follow(session);
}

const BEGIN: &str = "begin";

struct Consumer {
    token: String,
    /// Whether homes may move.
    regions: bool,
    /// Whether the next line is the first since it began.
    fresh: bool,
}

impl Consumer {
    fn follow(&mut self, session: &mut Session) {
        let mut rested: Option<Instant> = None;
        let mut quiet = 0;
        while rested.is_none_or(|since| since.elapsed() < END_WITHIN) {
            let rests = session.shared.at_rest.load(Ordering::Relaxed);
            if rests {
                rested.get_or_insert_with(Instant::now);
            }
            // A connection lasts no longer than an answer may take: a node that stands still is left.
            let within = if rests { QUIET_WITHIN } else { ANSWER_WITHIN };
            match self.consume(session, within) {
                Some(0) if rests => quiet += 1,
                Some(_) => quiet = 0,
                None => thread::sleep(Duration::from_millis(20)),
            }
            if quiet >= QUIET {
                let node = session.node();
                self.note(session, node, if self.regions { "changes-end" } else { "feed-end" });
                return;
            }
        }
    }

    /// Reads lines of one connection, to any node, until it is cut off; tells how many events came, or that it was not
    /// let in.
    fn consume(&mut self, session: &mut Session, within: Duration) -> Option<u32> {
        let node = session.rng.random_range(0..session.shared.urls.len());
        let lines_max = session.rng.random_range(20..400);
        let path = session.path(&format!("/changes?from={}&with_payload=true&with_vector=true", self.token));
        let client = Client::new(session.shared.api_key.as_deref(), within);
        let url = format!("{}/annal/v1{path}", session.shared.urls[node]);
        let answer = client.open("GET", &url, &[], None).ok()?;
        if self.regions && answer.status() == 410 {
            let oldest = answer.headers().get("annal-token").and_then(|token| token.to_str().ok());
            self.begin_anew(session, node, oldest);
            return None;
        }
        if answer.status() != 200 {
            return None;
        }
        let (mut lines, mut events) = (0, 0);
        for line in BufReader::new(answer.into_body().into_reader()).lines().take(lines_max) {
            let Some(event) = line.ok().and_then(|line| serde_json::from_str::<Value>(&line).ok()) else {
                break;
            };
            let Some(next) = event["token"].as_str() else { break };
            lines += 1;
            next.clone_into(&mut self.token);
            if std::mem::take(&mut self.fresh) {
                self.note(session, node, "changes");
            }
            if event["heartbeat"] != true {
                events += 1;
                self.record(session, node, &event);
            }
        }
        // Every answer begins with a heartbeat; one without it says nothing.
        (lines > 0).then_some(events)
    }

    /// Its token is good no more: what it saw is lost, or the log reaches back to `oldest` only.
    fn begin_anew(&mut self, session: &mut Session, node: usize, oldest: Option<&str>) {
        if !self.fresh {
            let f = if oldest.is_some() { "changes-too-old" } else { "changes-refused" };
            self.note(session, node, f);
        }
        oldest.unwrap_or(BEGIN).clone_into(&mut self.token);
        self.fresh = true;
    }

    /// Records how far it has come.
    fn note(&self, session: &mut Session, node: usize, f: &str) {
        let shown = if self.regions { json!({"fed": fed(&self.token)}) } else { json!(self.token) };
        let asked = (f, None, Value::Null);
        session.operate(node, asked, Effect::Reads, |_| Ok(Reply::here()), |_| Ok((shown, None)));
    }

    fn record(&self, session: &mut Session, node: usize, event: &Value) {
        let mut shown = json!({"shard": event["shard"], "position": event["position"], "n": event["n"],
            "of": event["of"], "op": event["op"], "v": event["payload"]["v"]});
        if self.regions {
            shown["fed"] = json!(fed(&self.token));
        }
        let f = if self.regions { "change" } else { "event" };
        let asked = (f, event["id"].as_u64(), Value::Null);
        let version = event["version"].as_u64();
        session.operate(node, asked, Effect::Reads, |_| Ok(Reply::here()), |_| Ok((shown, version)));
    }
}
