//! `annal log tail`: a collection's changes, a JSON object a line, for as long as somebody reads.
//!
//! A connection that breaks or falls silent is made anew and goes on behind the last line printed, so every change
//! is printed once. What cannot be gone on with (the log no longer reaches back, the collection is gone) ends it.

use super::{
    Done,
    server::{Answer, Client, Server},
};
use annal::net::http::part_of_path;
use clap::Args;
use serde_json::Value;
use std::{
    io::{self, BufRead, BufReader, Write},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Follows a collection's changes: JSON lines, without an end.
///
/// Examples:
///   annal log tail glosses
///   annal log tail glosses --from begin --with-payload | jq .id
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Tail {
    /// The collection.
    collection: String,
    /// Where to begin: `begin`, `now`, or the token of a line, to go on behind it.
    #[arg(long, default_value = "now", value_name = "begin|now|TOKEN")]
    from: String,
    /// Only this shard's changes.
    #[arg(long, value_name = "NUMBER")]
    shard: Option<u32>,
    /// Prints what points are about.
    #[arg(long)]
    with_payload: bool,
    /// Prints their vectors.
    #[arg(long)]
    with_vector: bool,
    /// Prints the lines that only tell that the connection lives.
    #[arg(long)]
    heartbeats: bool,
    #[command(flatten)]
    server: Server,
}

/// A living feed says something more often than that.
const SILENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why a feed is not followed any further.
enum End {
    /// Nobody reads what is printed.
    Unread,
    /// The connection broke off.
    Broken(String),
    /// It cannot be gone on with.
    Refused(String),
}

impl Tail {
    pub(super) fn run(mut self) -> Done {
        let client = self.server.client();
        let (mut connected, mut pause) = (false, PAUSE);
        loop {
            let before = self.from.clone();
            match self.follow(&client, &mut io::stdout().lock()) {
                End::Unread => return Ok(()),
                End::Refused(why) => return Err(why.into()),
                // Most likely the address is wrong.
                End::Broken(why) if !connected && self.from == before => return Err(why.into()),
                End::Broken(why) => eprintln!("annal: {why}; going on behind the last line"),
            }
            connected = true;
            pause = if self.from == before { (pause * 2).min(PAUSE_MAX) } else { PAUSE };
            thread::sleep(pause);
        }
    }

    /// Prints until the connection ends; `from` is moved on with every line.
    fn follow(&mut self, client: &Client, out: &mut impl Write) -> End {
        let mut response = match client.stream(&self.path()) {
            Ok(response) => response,
            Err(error) => return End::Broken(format!("no connection: {error}")),
        };
        let status = response.status().as_u16();
        if status != 200 {
            let body = response.body_mut().read_json().unwrap_or_default();
            let answer = Answer { status, body };
            let why = answer.failure(&self.collection).to_string();
            return match answer.is_passing() || status >= 500 && status != 501 {
                true => End::Broken(why),
                false => End::Refused(why),
            };
        }
        let lines = read_aside(response.into_body().into_reader());
        loop {
            let line = match lines.recv_timeout(SILENCE) {
                Ok(Ok(line)) => line,
                Ok(Err(error)) => return End::Broken(format!("the connection broke: {error}")),
                Err(RecvTimeoutError::Disconnected) => {
                    return End::Broken("the node ended the feed".to_owned());
                }
                Err(RecvTimeoutError::Timeout) => return End::Broken(format!("silent for {SILENCE:?}")),
            };
            let Ok(event) = serde_json::from_str::<Value>(&line) else {
                return End::Broken("a line was cut off".to_owned());
            };
            if (self.heartbeats || event["heartbeat"] != true)
                && writeln!(out, "{line}").and_then(|()| out.flush()).is_err()
            {
                return End::Unread;
            }
            if let Some(token) = event["token"].as_str() {
                self.from = token.to_owned();
            }
        }
    }

    fn path(&self) -> String {
        let shard = self.shard.map(|shard| format!("&shard={shard}")).unwrap_or_default();
        format!(
            "/annal/v1/collections/{}/changes?from={}{shard}&with_payload={}&with_vector={}",
            part_of_path(&self.collection),
            part_of_path(&self.from),
            self.with_payload,
            self.with_vector
        )
    }
}

/// Reads lines on a thread of their own: a connection that falls silent would hold its reader for ever. It ends
/// with the connection, or with the first line nobody waits for any more.
fn read_aside(reader: impl io::Read + Send + 'static) -> Receiver<io::Result<String>> {
    let (lines, read) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    read
}
