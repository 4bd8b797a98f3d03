//! The log on a simulation's tasks: the same seed gives the same bytes, and power may fail at any moment.
#![allow(clippy::unwrap_used, missing_docs)]

mod workbench;

use annal_wal::{GroupId, Log, LogIndex, MemoryDisk, Options};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{runtime::Builder, time::sleep};
use workbench::{OnTokio, append, entries, small};

fn options() -> Options {
    Options { retention_bytes: 80 << 10, ..small() }
}

/// What was acknowledged, by group: the last index.
type Acked = Arc<Mutex<BTreeMap<u32, u64>>>;

/// Appends to three groups at once for a while, then stops between two steps, wherever everything is.
fn work(disk: &MemoryDisk, ms: u64) -> Acked {
    let acked = Acked::default();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (log, _) = Log::open_simulated(disk, options(), Arc::new(OnTokio::default())).unwrap();
        for number in 0..3 {
            let (log, acked) = (log.clone(), acked.clone());
            tokio::spawn(async move {
                let group = log.create_group(GroupId(number)).await.unwrap();
                for first in (1..).step_by(4) {
                    append(&group, entries(1, first..first + 4, 150 * (1 + number as usize))).await.unwrap();
                    acked.lock().unwrap().insert(number, first + 3);
                    if first % 40 == 1 && first > 60 {
                        let upto = group.read(LogIndex(first - 40)..LogIndex(first - 39), 1).await.unwrap();
                        group.purge(upto[0].id).await.unwrap();
                    }
                }
            });
        }
        sleep(Duration::from_millis(ms)).await;
    });
    acked
}

#[test]
fn the_same_steps_leave_the_same_bytes() {
    let bytes = || {
        let disk = MemoryDisk::new(1 << 30);
        let acked = work(&disk, 700);
        let segments: Vec<_> = disk
            .segments()
            .into_iter()
            .map(|number| (number, disk.bytes(number), disk.seal(number)))
            .collect();
        let acked = acked.lock().unwrap().clone();
        (acked, segments)
    };
    let (first, second) = (bytes(), bytes());
    assert!(first.0.values().all(|index| *index > 100), "too little was written: {:?}", first.0);
    assert!(first.1[0].0 > 1, "retention was to take a segment");
    assert!(first == second);
}

#[test]
fn power_may_fail_at_any_moment() {
    for ms in 0..120 {
        let disk = MemoryDisk::new(1 << 30);
        let acked = work(&disk, ms);
        disk.crash();
        let (log, report) = Log::open_in_memory(disk, options()).unwrap();
        assert!(report.damage.is_empty(), "after {ms} ms: {:?}", report.damage);
        for (number, last) in acked.lock().unwrap().iter() {
            let state = log.group(GroupId(*number)).unwrap().state();
            let there = state.last.unwrap().index.0;
            assert!(
                there >= *last,
                "after {ms} ms: {last} of group {number} was acknowledged, {there} is there"
            );
        }
    }
}
