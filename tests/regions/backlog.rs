//! A region that was cut off for long: it catches up from the home's log, and the home does not notice.

use crate::{Region, SETTLE, create, point, process::Client, scaled, value_of, wait_equal, write};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde_json::{Value, json};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// Between two requests of the one who measures.
const PACE: Duration = Duration::from_millis(4);
/// Points in a request of those that fill.
const TOGETHER: u64 = 100;

/// How long requests took: each point written, then read.
fn serve(client: &Client, until: impl Fn() -> bool) -> Vec<Duration> {
    let (mut times, began) = (Vec::new(), Instant::now());
    while !until() {
        assert!(began.elapsed() < 20 * SETTLE, "it does not end");
        let asked = Instant::now();
        let n = times.len() as u64;
        write(client, "c", &[point(n % 50, n)]).ok();
        times.push(asked.elapsed());
        let asked = Instant::now();
        assert_eq!(value_of(client, "c", n % 50).1, Some(n));
        times.push(asked.elapsed());
        thread::sleep(PACE);
    }
    times
}

fn told(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |hundredth| times[times.len() * hundredth / 100];
    format!("p50 {:?}, p99 {:?} of {}", at(50), at(99), times.len())
}

/// Gives each process a processor of its own, if there are enough: each region would have a machine.
fn apart(pids: [u32; 2]) {
    let all = sched_getaffinity(None).expect("this thread's processors");
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor)).collect();
    if allowed.len() < pids.len() {
        return;
    }
    for (pid, processor) in pids.into_iter().zip(allowed) {
        let mut own = CpuSet::new();
        own.set(processor);
        for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there") {
            let name = thread.expect("a thread").file_name();
            let id =
                name.to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw).expect("a thread's id");
            // One that has ended meanwhile needs none.
            _ = sched_setaffinity(Some(id), &own);
        }
    }
}

/// `ANNAL_BACKLOG` points (2,000) of some 500 bytes wait; three times as many were there before, which a copy would carry.
/// `ANNAL_LOAD_SECONDS` (2) tell what is usual. The home has a processor of its own, before as while the other catches up.
#[test]
fn a_backlog_is_caught_up_without_a_copy_while_the_home_serves() {
    let delay = Duration::from_millis(35);
    let kept = [("ANNAL__LOG__RETENTION_BYTES", "34359738368")];
    let (home, away) = (Region::start("home", delay, &kept), Region::start("away", delay, &kept));
    apart([&home, &away].map(|region| region.node.pid()));
    create(&home, "c", 2);
    away.follow("c", &home);
    let backlog = scaled("ANNAL_BACKLOG", 2_000);
    let mut rng = StdRng::seed_from_u64(7);
    let mut fill = |from: u64, count: u64| {
        for first in (from..from + count).step_by(TOGETHER as usize) {
            let points: Vec<Value> = (first..first + TOGETHER)
                .map(|id| {
                    let noise: String = (0..60).map(|_| format!("{:08x}", rng.random::<u32>())).collect();
                    json!({"id": id, "vector": [id, 1, 2, 3], "payload": {"v": id, "noise": noise}})
                })
                .collect();
            write(&home.client(), "c", &points).ok();
        }
    };
    fill(1_000, 3 * backlog);
    wait_equal("c", &home, &away);
    let whole = home.wire.bytes();

    [&home, &away].iter().for_each(|region| region.wire.cut());
    fill(1_000 + 3 * backlog, backlog);
    let began = Instant::now();
    let time = Duration::from_secs(scaled("ANNAL_LOAD_SECONDS", 2));
    let mut usual = serve(&home.client(), || began.elapsed() > time);

    let positions = |region: &Region| -> Vec<u64> {
        let shards = region.link("c")["shards"].as_array().cloned().unwrap_or_default();
        shards.iter().map(|shard| shard["position"].as_u64().unwrap_or_default()).collect()
    };
    let wanted: Vec<u64> = home.hashes("c").iter().map(|(position, _)| position.as_u64().unwrap()).collect();
    let (before, began) = (home.wire.bytes(), Instant::now());
    [&home, &away].iter().for_each(|region| region.wire.mend());
    let (mut busy, took) = thread::scope(|scope| {
        let catches_up = scope.spawn(|| {
            while !positions(&away).iter().zip(&wanted).all(|(there, wanted)| there >= wanted) {
                assert!(began.elapsed() < 10 * SETTLE, "{:?} of {wanted:?}", positions(&away));
                thread::sleep(Duration::from_millis(20));
            }
            began.elapsed()
        });
        let busy = serve(&home.client(), || catches_up.is_finished());
        (busy, catches_up.join().unwrap())
    });
    let carried = home.wire.bytes() - before;
    println!(
        "{backlog} points caught up in {took:?}, {carried} bytes ({whole} for three times as many before); requests to the \
         home: {} while the way was cut, {} while the other caught up",
        told(&mut usual),
        told(&mut busy)
    );
    wait_equal("c", &home, &away);
    assert!(carried < whole / 2, "{carried} of {whole} bytes: that is a copy");
}
