//! Scripts of requests and answers against a real node: `tests/http/*.txt`, one node a script.
//!
//! ```text
//! # A comment.
//! PUT /collections/a?wait=true
//! some-header: value
//! {"vectors": {"size": 2, "distance": "Dot"}}
//! ---
//! 200
//! {"result":true,"status":"ok","time":T}
//! ```
//!
//! A body may have several lines. Of an answer's headers only those of Annal's that tell something stable
//! (`annal-effect`, `retry-after`) are shown; `time` is masked. Lines at the top of a script change that:
//! `# node: KEY=VALUE …` sets the node's environment, `# show: HEADER …` shows that these headers are there, and
//! `# mask: KEY …` shows the values under these keys of a JSON answer as `N`, ports of this host as `PORT`.
//! In a request `$TOKEN` stands for the last `Annal-Token`. `@restart` instead of a request kills the node with
//! SIGKILL and starts it again.
//! `REWRITE=1 cargo test --test http` writes the answers anew: review them as code.

#![allow(clippy::unwrap_used, missing_docs)]

mod process;
#[path = "process/script.rs"]
mod script;

use process::{Answer, Node, NodeOptions};
use std::{fmt::Write, fs, path::Path};

#[test]
fn scripts() {
    script::all_of("http", run);
}

/// Runs a script; tells where its answers differ.
fn run(path: &Path) -> Option<String> {
    let script = fs::read_to_string(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut options = NodeOptions::new(folder.path());
    options.environment = settings(&script, "node").map(|s| s.split_once('=').unwrap()).map(owned).collect();
    let mut token = String::new();
    let mut node = Node::start(options);
    node.wait_ready();
    let mut replayed = String::new();
    let mut wrong = String::new();
    for exchange in script::scenes(&script) {
        let answer = if exchange.asked.trim() == "@restart" {
            node = node.kill_and_restart();
            String::new()
        } else {
            let answer = send(&node, &exchange.asked.replace("$TOKEN", &token));
            token = answer.header("annal-token").map_or(token, str::to_owned);
            shown(&answer, &script)
        };
        if answer.trim() != exchange.answered.trim() {
            writeln!(
                wrong,
                "{}:\n{}expected {}got      {answer}",
                path.display(),
                exchange.asked,
                exchange.answered
            )
            .unwrap();
        }
        write!(replayed, "{}{}", exchange.preamble, exchange.asked).unwrap();
        if !answer.is_empty() {
            write!(replayed, "---\n{answer}").unwrap();
        }
    }
    if std::env::var("REWRITE").is_ok() {
        fs::write(path, replayed).unwrap();
        return None;
    }
    (!wrong.is_empty()).then_some(wrong)
}

/// The words of the lines `# NAME: WORD …`.
fn settings<'a>(script: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let head = format!("# {name}: ");
    script.lines().filter_map(move |line| line.strip_prefix(&head)).flat_map(str::split_whitespace)
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn send(node: &Node, request: &str) -> Answer {
    let mut lines = request.lines().peekable();
    let (method, path) = lines.next().unwrap().split_once(' ').unwrap();
    let mut client = node.client();
    while let Some(header) = lines.next_if(|line| is_header(line)) {
        let (name, value) = header.split_once(':').unwrap();
        client = client.with(name, value.trim());
    }
    let body: Vec<_> = lines.collect();
    let body = body.join("\n");
    client.send(method, path, (!body.is_empty()).then_some(&body))
}

/// `name: value`, unlike a body, which starts as JSON.
fn is_header(line: &str) -> bool {
    let name = line.split(':').next().unwrap();
    line.contains(':') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// An answer as scripts show it.
fn shown(answer: &Answer, script: &str) -> String {
    let mut text = format!("{}\n", answer.status);
    for name in ["annal-effect", "retry-after"] {
        if let Some(value) = answer.header(name) {
            writeln!(text, "{name}: {value}").unwrap();
        }
    }
    for name in settings(script, "show").filter(|name| answer.header(name).is_some()) {
        writeln!(text, "{name}: …").unwrap();
    }
    let mut body = mask_time(&answer.text);
    let mut masked = settings(script, "mask").peekable();
    if masked.peek().is_some() {
        body = mask_ports(&body);
    }
    for key in masked {
        body = mask_values(&body, key);
    }
    writeln!(text, "{body}").unwrap();
    text
}

/// The seconds a request took differ each time.
fn mask_time(body: &str) -> String {
    match body.rsplit_once(r#""time":"#) {
        Some((before, time)) if time.trim_end_matches('}').parse::<f64>().is_ok() => {
            format!(r#"{before}"time":T}}"#)
        }
        _ => body.trim_end().to_owned(),
    }
}

fn mask_ports(body: &str) -> String {
    const HOST: &str = "127.0.0.1:";
    let mut parts = body.split(HOST);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |masked, part| {
        masked + HOST + "PORT" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

/// Numbers and strings under a key.
fn mask_values(body: &str, key: &str) -> String {
    let head = format!("\"{key}\":");
    let mut parts = body.split(head.as_str());
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |masked, part| {
        let rest = match part.strip_prefix('"') {
            Some(text) => text.split_once('"').map_or("", |(_, rest)| rest),
            None => part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c)),
        };
        masked + &head + "N" + rest
    })
}
