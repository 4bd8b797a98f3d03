//! Checkers are checked: every history under `histories/` is known to be good, or known to be bad in the way it says.
//!
//! ```text
//! ## good                                a history that may be: every checker must say so
//! ## bad: versioned=stale, …             one that cannot be: these checkers must find this
//! 0 write 1 5 | ok 5 @2                  process, f, key (or -), what is asked | outcome, what is told, @version
//! 1 read 1                               or over two lines, with others between: they overlap
//! 1 ok 5
//! ```

#![allow(clippy::unwrap_used, missing_docs)]

use annal_jepsen::{
    checker::{CHECKS, Valid, check},
    history::{Event, History, Invocation, Kind, Process, Recorder},
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, time::Duration};

/// A history, what it is called, and what must be found in it.
struct Case {
    name: String,
    expected: Vec<(String, String)>,
    history: History,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut files: Vec<_> =
        fs::read_dir("tests/histories").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for part in text.split("\n## ").skip(1) {
            let (head, lines) = part.split_once('\n').unwrap();
            let story = lines.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default();
            let name = format!("{}: {head}: {story}", file.file_name().unwrap().to_string_lossy());
            let expected = head.strip_prefix("bad: ").unwrap_or_default();
            let expected = expected.split(", ").filter_map(|pair| pair.split_once('='));
            let expected: Vec<_> = expected.map(|(c, a)| (c.to_owned(), a.to_owned())).collect();
            assert!(head == "good" || !expected.is_empty(), "{name}: neither good nor bad");
            cases.push(Case { history: history(&name, lines), name, expected });
        }
    }
    cases
}

fn history(name: &str, lines: &str) -> History {
    let recorder = Recorder::new(None).unwrap();
    let mut pending: BTreeMap<u64, Invocation> = BTreeMap::new();
    for line in lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (asked, told) = line.split_once(" | ").map_or((line, None), |(a, t)| (a, Some(t)));
        let (process, rest) = asked.split_once(' ').unwrap();
        let process: u64 = process.parse().unwrap_or_else(|_| panic!("{name}: {line}"));
        if let Some(kind) = kind(rest) {
            let invocation = pending.remove(&process).unwrap_or_else(|| panic!("{name}: {line}"));
            recorder.complete(invocation, kind, answer(name, rest));
            continue;
        }
        let invocation = recorder.invoke(Process::Client(process), question(name, rest));
        match told {
            Some(told) => recorder.complete(invocation, kind(told).unwrap(), answer(name, told)),
            None => assert!(pending.insert(process, invocation).is_none(), "{name}: {line}"),
        }
    }
    recorder.close().unwrap()
}

fn kind(text: &str) -> Option<Kind> {
    let kinds = [("ok", Kind::Ok), ("fail", Kind::Fail), ("info", Kind::Info)];
    let word = text.split(' ').next()?;
    kinds.into_iter().find(|(name, _)| *name == word).map(|(_, kind)| kind)
}

/// `write 1 5`, `scroll - {"g":1}`; the node of a `final` stands behind an `@`.
fn question(name: &str, text: &str) -> Event {
    let (text, node) = text.split_once(" @").map_or((text, None), |(t, n)| (t, Some(n.to_owned())));
    let mut words = text.splitn(3, ' ');
    let f = words.next().unwrap();
    let key = words.next().and_then(|key| key.parse().ok());
    let value = words.next().map_or(Value::Null, |json| parse(name, json));
    Event { key, value, node, ..Event::of(f) }
}

/// `ok 5 @2`, `fail !precondition @4`.
fn answer(name: &str, text: &str) -> Event {
    let mut event = Event::of("");
    let rest: Vec<_> = text.split(' ').skip(1).collect();
    let mut json = String::new();
    for word in rest {
        if let Some(version) = word.strip_prefix('@') {
            event.version = Some(version.parse().unwrap_or_else(|_| panic!("{name}: {text}")));
        } else if let Some(error) = word.strip_prefix('!') {
            event.error = Some(error.to_owned());
        } else {
            json += word;
        }
    }
    if !json.is_empty() {
        event.value = parse(name, &json);
    }
    event
}

fn parse(name: &str, json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{name}: {e}: {json}"))
}

#[test]
fn good_histories_pass_and_bad_ones_are_found() {
    let (mut good, mut bad) = (0, 0);
    let mut wrong = Vec::new();
    for Case { name, expected, history } in cases() {
        let verdicts = check(&history, Duration::from_secs(10)).unwrap();
        let found: Vec<_> = verdicts
            .iter()
            .flat_map(|(checker, verdict)| {
                verdict.findings.iter().map(move |f| (checker.clone(), f.anomaly.clone()))
            })
            .collect();
        for missing in expected.iter().filter(|pair| !found.contains(pair)) {
            wrong.push(format!("{name}\n  {missing:?} was not found, but {found:?}"));
        }
        if expected.is_empty() && verdicts.values().any(|verdict| verdict.valid != Valid::True) {
            wrong.push(format!("{name}\n  is good, but {found:?} was found"));
        }
        if expected.is_empty() { good += 1 } else { bad += 1 }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{good} good histories passed, {bad} bad ones were found");
}

/// Each checker has a history that it, and the anomaly, was made for.
#[test]
fn no_checker_is_left_untried() {
    let cases = cases();
    for (checker, _) in CHECKS {
        let tried = cases.iter().any(|case| case.expected.iter().any(|(c, _)| c == checker));
        assert!(tried, "no bad history for {checker}");
    }
}
