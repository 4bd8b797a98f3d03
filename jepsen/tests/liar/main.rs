//! The way from a client's request to a verdict, against a node that lies: every lie is found, and no honest node is
//! accused. What real nodes do is for real runs; this shows that the evidence would have shown it.

#![allow(clippy::unwrap_used, missing_docs)]

mod fake;

use annal_jepsen::{
    checker::{Valid, check},
    history::Recorder,
    workload::{self, Session, Shared, of_one_region},
};
use fake::Lie;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// Clients of a workload, and how long they work.
const CLIENTS: usize = 4;
const TIME: Duration = Duration::from_millis(900);

/// What checkers find when a workload's clients talk to a node that lies so.
fn found(name: &str, lie: Lie) -> Vec<(String, String)> {
    let workload = workload::by_name(name).unwrap();
    let shared = Shared {
        recorder: Recorder::new(None).unwrap(),
        urls: vec![fake::start(lie)],
        names: vec!["n1".into()],
        api_key: None,
        stop: AtomicBool::new(false),
        at_rest: AtomicBool::new(false),
        next_value: AtomicU64::new(1),
        seed: 7,
    };
    thread::scope(|scope| {
        let worker = |number| {
            let mut session = Session::new(&shared, workload.name(), number);
            let workload = &workload;
            move || {
                while !session.stopped() {
                    workload.step(&mut session);
                    thread::sleep(Duration::from_millis(2));
                }
            }
        };
        let workers: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(worker(number))).collect();
        let mut beside = Session::new(&shared, workload.name(), CLIENTS);
        let workload = &workload;
        scope.spawn(move || workload.beside(&mut beside));
        thread::sleep(TIME);
        shared.stop.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        shared.at_rest.store(true, Ordering::Relaxed);
    });
    let history = shared.recorder.close().unwrap();
    let oks = history.ops().unwrap().iter().filter(|op| op.error.is_none()).count();
    assert!(oks > 100, "{name}: only {oks} operations were answered");
    let verdicts = check(&history, Duration::from_secs(20)).unwrap();
    for checker in workload.proves() {
        assert!(verdicts[*checker].checked > 0, "{name}: {checker} had nothing to look at");
    }
    let mut found: Vec<_> = verdicts
        .iter()
        .flat_map(|(checker, verdict)| verdict.findings.iter().map(|f| (checker.clone(), f.anomaly.clone())))
        .collect();
    found.sort();
    found.dedup();
    let clean = verdicts.values().all(|verdict| verdict.valid == Valid::True);
    assert_eq!(clean, found.is_empty(), "{found:?}");
    found
}

#[test]
fn an_honest_node_is_not_accused() {
    for name in of_one_region() {
        assert_eq!(found(name, Lie::None), [], "{name}");
    }
}

#[test]
fn every_lie_is_found() {
    let lies = [
        (Lie::StaleRead, "register", "versioned", "stale"),
        (Lie::LostWrite, "register", "linearizable", "not-linearizable"),
        (Lie::FailedWithEffect, "register", "versioned", "ghost"),
        (Lie::BlindCas, "register", "versioned", "lost-update"),
        (Lie::Resurrect, "register", "linearizable", "not-linearizable"),
        (Lie::OldCatalog, "register", "linearizable", "not-linearizable"),
        (Lie::HalfBatch, "batch", "batch", "partial-batch"),
        (Lie::Torn, "read-view", "view", "torn"),
        (Lie::IndexLags, "search", "search", "not-found"),
        (Lie::ForgetsIntents, "dedup", "dedup", "applied-twice"),
        (Lie::FeedLoses, "tail", "tail", "feed-lost"),
        (Lie::FeedRepeats, "tail", "tail", "feed-order"),
        (Lie::MemberMissing, "set", "set", "lost"),
    ];
    let missed: Vec<_> = lies
        .into_iter()
        .filter_map(|(lie, workload, checker, anomaly)| {
            let found = found(workload, lie);
            println!("{lie:?} under {workload}: {found:?}");
            let wanted = (checker.to_owned(), anomaly.to_owned());
            (!found.contains(&wanted)).then(|| format!("{lie:?}: {wanted:?} is not among {found:?}"))
        })
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
