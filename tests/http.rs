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
//! (`annal-effect`, `retry-after`) are shown; `time` is masked. A line `# node: KEY=VALUE …` at the top sets the
//! node's environment; `@restart` instead of a request kills the node with SIGKILL and starts it again.
//! `REWRITE=1 cargo test --test http` writes the answers anew: review them as code.

#![allow(clippy::unwrap_used, missing_docs)]

mod process;

use process::{Answer, Node, NodeOptions};
use std::{fmt::Write, fs, path::Path};

/// One request and what was answered, as they stand in a script.
struct Exchange {
    /// Comments and blank lines before it.
    preamble: String,
    request: String,
    answer: String,
}

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http");
    let mut scripts: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    scripts.sort();
    let only = std::env::var("SCRIPT").ok();
    scripts.retain(|path| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only.as_str())));
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    let wrong: Vec<String> = scripts.iter().filter_map(|script| run(script)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs a script; tells where its answers differ.
fn run(path: &Path) -> Option<String> {
    let script = fs::read_to_string(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut options = NodeOptions::new(folder.path());
    options.environment = environment(&script);
    let mut node = Node::start(options);
    node.wait_ready();
    let mut replayed = String::new();
    let mut wrong = String::new();
    for exchange in exchanges(&script) {
        let answer = if exchange.request.trim() == "@restart" {
            node = node.kill_and_restart();
            String::new()
        } else {
            shown(&send(&node, &exchange.request))
        };
        if answer.trim() != exchange.answer.trim() {
            writeln!(
                wrong,
                "{}:\n{}expected {}got      {answer}",
                path.display(),
                exchange.request,
                exchange.answer
            )
            .unwrap();
        }
        write!(replayed, "{}{}", exchange.preamble, exchange.request).unwrap();
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

/// `# node: KEY=VALUE …` lines.
fn environment(script: &str) -> Vec<(String, String)> {
    let settings =
        script.lines().filter_map(|line| line.strip_prefix("# node: ")).flat_map(str::split_whitespace);
    settings.map(|s| s.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Splits a script: blank lines and comments, a request, `---`, an answer up to the next blank line.
fn exchanges(script: &str) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    let mut lines = script.lines().peekable();
    loop {
        let mut take_while = |wanted: &dyn Fn(&str) -> bool| {
            let mut taken = String::new();
            while let Some(line) = lines.next_if(|line| wanted(line)) {
                taken += line;
                taken += "\n";
            }
            taken
        };
        let preamble = take_while(&|line| line.trim().is_empty() || line.starts_with('#'));
        let request = take_while(&|line| line != "---" && !line.trim().is_empty());
        if request.is_empty() {
            return exchanges;
        }
        take_while(&|line| line == "---");
        let answer = take_while(&|line| !line.trim().is_empty());
        exchanges.push(Exchange { preamble, request, answer });
    }
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
fn shown(answer: &Answer) -> String {
    let mut text = format!("{}\n", answer.status);
    for name in ["annal-effect", "retry-after"] {
        if let Some(value) = answer.header(name) {
            writeln!(text, "{name}: {value}").unwrap();
        }
    }
    // One list item of a result a line: readable, and a small difference stays small.
    writeln!(text, "{}", mask_time(&answer.text)).unwrap();
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
