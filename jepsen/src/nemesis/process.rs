//! Nodes that die, stand still, are restarted, and stay away for too long.

use super::{Injected, Refused, Try, names, target, targets};
use crate::cluster::Cluster;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde_json::json;
use std::{thread, time::Duration};

pub(super) fn kill(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let killed = targets(cluster, rng);
    for i in &killed {
        // All signals first, so that they die as near to at once as can be.
        let _ = cluster.nodes[*i].signal(Signal::KILL);
    }
    killed.iter().try_for_each(|i| cluster.kill(*i))?;
    let what = json!({"nodes": names(cluster, &killed)});
    Ok(Injected::new(what, move |cluster| killed.iter().try_for_each(|i| cluster.restart(*i))))
}

pub(super) fn pause(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let paused = targets(cluster, rng);
    paused.iter().try_for_each(|i| cluster.nodes[*i].signal(Signal::STOP))?;
    thread::sleep(Duration::from_millis(20));
    let standing = paused.iter().all(|i| cluster.nodes[*i].process_state() == Some('T'));
    let what = json!({"nodes": names(cluster, &paused)});
    Ok(Injected::new(what, move |cluster| {
        paused.iter().try_for_each(|i| cluster.nodes[*i].signal(Signal::CONT))?;
        standing.then_some(()).ok_or_else(|| "a process did not stand still".to_owned())
    }))
}

/// How long a node may take to stop, and to be back.
const STOP_WITHIN: Duration = Duration::from_secs(15);
const BACK_WITHIN: Duration = Duration::from_secs(20);

/// A rolling restart: the first node stops; it comes back, and the others follow, when the fault is healed.
pub(super) fn restart(cluster: &mut Cluster) -> Try {
    cluster.terminate(0, STOP_WITHIN)?;
    Ok(Injected::new(json!({"nodes": "all, in turn"}), |cluster| {
        let mut stopped = Ok(());
        for i in 0..cluster.len() {
            if cluster.nodes[i].runs() {
                stopped = stopped.and(cluster.terminate(i, STOP_WITHIN));
            }
            cluster.restart(i)?;
            // The next one waits until this one is back.
            cluster.wait_ready(BACK_WITHIN)?;
        }
        stopped
    }))
}

/// Bytes that are written while a node is away: more than the log keeps.
const BALLAST_BYTES: usize = 48 << 20;
const BALLAST_POINT_BYTES: usize = 16 << 10;
const BALLAST_POINTS: usize = 64;

/// A node is killed, and more is written than the log keeps; then it comes back.
pub(super) fn outlive_the_log(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    if cluster.regions[0].nodes.len() < 3 {
        return Err(Refused::Skipped("wants three nodes".to_owned()));
    }
    let away = target(cluster, rng);
    cluster.kill(away)?;
    let what = json!({"nodes": names(cluster, &[away]), "bytes": BALLAST_BYTES});
    Ok(Injected::new(what, move |cluster| {
        let written = write_ballast(cluster);
        cluster.restart(away).and(written)
    }))
}

fn write_ballast(cluster: &Cluster) -> Result<(), String> {
    let within = Duration::from_secs(10);
    let collection =
        json!({"vectors": {"size": 1, "distance": "Euclid"}, "shard_number": 1, "replication_factor": 3});
    // It is there from the second time on.
    let _ = cluster.ask("PUT", "/collections/ballast", Some(&collection), Duration::ZERO);
    let text = "x".repeat(BALLAST_POINT_BYTES);
    for _ in 0..BALLAST_BYTES / (BALLAST_POINT_BYTES * BALLAST_POINTS) {
        let points: Vec<_> = (0..BALLAST_POINTS)
            .map(|id| json!({"id": id, "vector": [0], "payload": {"text": text}}))
            .collect();
        let body = json!({"points": points});
        let told = cluster.ask("PUT", "/collections/ballast/points?wait=true", Some(&body), within);
        told.ok_or_else(|| "the ballast was not written in time".to_owned())?;
    }
    Ok(())
}
