//! What goes wrong between two regions, and homes that move: ways that are cut or narrow, takeovers and handovers.
//!
//! ```text
//! takeover   harm the way, or the home's nodes -> both go on for a while -> taken over -> heal -> settle -> loss
//! handover   mostly no harm                    -> handed over            -> heal -> settle
//! ```
//!
//! Moves of the home, and what the regions have settled on after each, are operations in the history of the workload, since
//! what may be true depends on them.
//!
//! Invariants: a move counts as installed if there is another home after it than before; none begins before the
//! regions have settled after the last one.
//! Not here: whether what they say of it is true (see `checker::region`).

use super::{Injected, Refused, Try, names, network::until_healed};
use crate::{
    client::{Client, Effect, outcome},
    cluster::{Cluster, Settled},
    history::{Event, Kind, Recorder},
    net::Rule,
    workload::REGION,
};
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::Duration,
};

/// How long regions may take to settle before a move,
const READY_WITHIN: Duration = Duration::from_secs(15);
/// and after one, once everything is healed.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// How long a move may take to be answered.
const MOVE_WITHIN: Duration = Duration::from_secs(15);
/// How long both sides go on after the harm, before the move.
const GO_ON_MS: std::ops::Range<u64> = 100..2_500;

/// Which way, for people.
type Ways = (&'static str, Vec<(usize, usize)>);

/// Links from the ends of one region to those of the other.
fn way(cluster: &Cluster, from: usize, to: usize) -> Vec<(usize, usize)> {
    let (from, to) = (&cluster.regions[from], &cluster.regions[to]);
    from.ends().flat_map(|f| to.ends().map(move |t| (f, t))).collect()
}

/// Both ways between two regions, or one of them.
fn ways(cluster: &Cluster, rng: &mut StdRng) -> Ways {
    match rng.random_range(0..4) {
        0 => ("a -> b", way(cluster, 0, 1)),
        1 => ("b -> a", way(cluster, 1, 0)),
        _ => ("both", [way(cluster, 0, 1), way(cluster, 1, 0)].concat()),
    }
}

fn two(cluster: &Cluster) -> Result<(), Refused> {
    match cluster.regions.len() {
        2 => Ok(()),
        _ => Err(Refused::Skipped(format!("wants two regions, as the workload {REGION} has"))),
    }
}

/// Nothing passes between the regions, both ways or one.
pub(super) fn apart(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    two(cluster)?;
    let (which, cut) = ways(cluster, rng);
    cut.iter().for_each(|(from, to)| cluster.links.set(*from, *to, Rule::CUT));
    Ok(until_healed(cluster, json!({"cut": which})))
}

/// The ways between the regions are longer, lossy, or carry little.
pub(super) fn narrow(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    two(cluster)?;
    let (which, ways) = ways(cluster, rng);
    let delay = cluster.links.rule(ways[0].0, ways[0].1).delay;
    let rule = Rule {
        delay: delay + Duration::from_millis([0, 0, 60, 200][rng.random_range(0..4)]),
        loss: [0.0, 0.02, 0.1][rng.random_range(0..3)],
        bytes_per_second_max: Some(1_024 * [8, 32, 128][rng.random_range(0..3)]),
        cut: false,
    };
    ways.iter().for_each(|(from, to)| cluster.links.set(*from, *to, rule));
    let what = json!({"ways": which, "delay_ms": rule.delay.as_millis() as u64, "loss": rule.loss,
        "bytes_per_second_max": rule.bytes_per_second_max});
    Ok(until_healed(cluster, what))
}

/// The region that follows takes over, mostly because the home is cut off or down.
pub(super) fn takeover(cluster: &mut Cluster, recorder: &Recorder, rng: &mut StdRng) -> Try {
    let before = ready(cluster, recorder)?;
    let to = 1 - before.home;
    let harm = match rng.random_range(0..10) {
        0..5 => cut(cluster, ("both", [way(cluster, 0, 1), way(cluster, 1, 0)].concat())),
        5 => cut(cluster, ("the home is not heard", way(cluster, before.home, to))),
        6 => cut(cluster, ("the home hears nothing", way(cluster, to, before.home))),
        7..9 => kill(cluster, before.home, rng)?,
        _ => json!("nothing"),
    };
    move_home(cluster, recorder, rng, "takeover", before, harm)
}

/// The region that follows is handed the home.
pub(super) fn handover(cluster: &mut Cluster, recorder: &Recorder, rng: &mut StdRng) -> Try {
    let before = ready(cluster, recorder)?;
    let to = 1 - before.home;
    let harm = match rng.random_range(0..20) {
        0 => cut(cluster, ("the home is not heard", way(cluster, before.home, to))),
        1 => kill(cluster, before.home, rng)?,
        2 => kill(cluster, to, rng)?,
        _ => json!("nothing"),
    };
    move_home(cluster, recorder, rng, "handover", before, harm)
}

fn ready(cluster: &Cluster, recorder: &Recorder) -> Result<Settled, Refused> {
    two(cluster)?;
    // Those before this move have to be known: what it loses is told from what they did.
    let settled = cluster.wait_settled(REGION, READY_WITHIN);
    let settled = settled.map_err(|why| Refused::Skipped(format!("the regions have not settled: {why}")))?;
    note(cluster, recorder, &settled);
    Ok(settled)
}

fn cut(cluster: &Cluster, (which, cut): Ways) -> Value {
    cut.iter().for_each(|(from, to)| cluster.links.set(*from, *to, Rule::CUT));
    json!({"cut": which})
}

/// All nodes of a region, or the first of them.
fn kill(cluster: &mut Cluster, region: usize, rng: &mut StdRng) -> Result<Value, Refused> {
    let nodes = cluster.regions[region].nodes.clone();
    let count = if rng.random() { nodes.len() } else { 1 };
    let killed: Vec<usize> = nodes.take(count).collect();
    killed.iter().try_for_each(|i| cluster.kill(*i))?;
    Ok(json!({"killed": names(cluster, &killed)}))
}

/// Both sides go on for a while, and then the home moves.
fn move_home(
    cluster: &Cluster,
    recorder: &Recorder,
    rng: &mut StdRng,
    verb: &'static str,
    before: Settled,
    harm: Value,
) -> Try {
    thread::sleep(Duration::from_millis(rng.random_range(GO_ON_MS)));
    let to = 1 - before.home;
    let first = rng.random_range(cluster.regions[to].nodes.clone());
    let told = ask_to_move(cluster, recorder, first, verb);
    let name = &cluster.regions[to].name;
    let what = json!({"to": name, "after": before.generation, "harm": harm, "told": told});
    Ok(Injected::recorded(what, move |cluster, recorder| {
        cluster.links.heal();
        cluster.revive();
        let settled = cluster.wait_settled(REGION, SETTLE_WITHIN);
        match settled {
            Ok(settled) => {
                note(cluster, recorder, &settled);
                match settled.generation > before.generation {
                    true => Ok(()),
                    false => Err(format!("no other home came: {told}")),
                }
            }
            Err(why) => {
                let told = Event { error: Some(why.clone()), ..Event::of("") };
                record(cluster, recorder, None, ("settle", Value::Null), |_| (Kind::Fail, told));
                Err(why)
            }
        }
    }))
}

/// Asks a node for a move; what it says, for people.
fn ask_to_move(cluster: &Cluster, recorder: &Recorder, node: usize, verb: &str) -> Value {
    let url = format!("http://{}/annal/v1/regions/{verb}", cluster.nodes[node].http);
    let body = json!({"collection": REGION});
    let mut said = Value::Null;
    record(cluster, recorder, Some(node), (verb, Value::Null), |client| {
        let answer = client.send("POST", &url, &[], Some(&body));
        match &answer {
            Ok(reply) if reply.status == 200 => {
                said = reply.body.clone();
                (Kind::Ok, Event { value: said.clone(), ..Event::of("") })
            }
            _ => {
                let (kind, told) = outcome(Effect::Writes, &answer);
                said = json!(told.error);
                (kind, told)
            }
        }
    });
    said
}

/// Writes down what the regions have settled on: the home, and what the takeover to it lost.
fn note(cluster: &Cluster, recorder: &Recorder, settled: &Settled) {
    let value = settled_value(cluster, settled);
    record(cluster, recorder, None, ("settle", Value::Null), |_| {
        (Kind::Ok, Event { value, ..Event::of("") })
    });
}

/// `{home, generation, loss?, files?}`: files as the other region keeps them.
pub(crate) fn settled_value(cluster: &Cluster, settled: &Settled) -> Value {
    let mut value = json!({"home": cluster.regions[settled.home].name, "generation": settled.generation});
    if let Some(loss) = &settled.loss {
        let others = (0..cluster.regions.len()).filter(|region| *region != settled.home);
        let files: Vec<Value> = others
            .flat_map(|region| cluster.lost_files(region, settled.generation))
            .flat_map(|file| lines(&fs::read_to_string(file).unwrap_or_default()))
            .collect();
        (value["loss"], value["files"]) = (loss.clone(), files.into());
    }
    value
}

/// What a file holds of each shard: `{shard, from, to, ids}`.
fn lines(text: &str) -> Vec<Value> {
    let mut shards: BTreeMap<u64, (BTreeSet<u64>, BTreeSet<u64>)> = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let number = |name: &str| line[name].as_u64().unwrap_or(u64::MAX);
        let (positions, ids) = shards.entry(number("shard")).or_default();
        positions.insert(number("position"));
        ids.insert(number("id"));
    }
    let row = |(shard, (positions, ids)): (u64, (BTreeSet<u64>, BTreeSet<u64>))| json!({"shard": shard, "from": positions.first(), "to": positions.last(), "ids": ids});
    shards.into_iter().map(row).collect()
}

/// One operation of the one who looks after the regions.
fn record(
    cluster: &Cluster,
    recorder: &Recorder,
    node: Option<usize>,
    (f, value): (&str, Value),
    act: impl FnOnce(&Client) -> (Kind, Event),
) {
    let node = node.map(|node| cluster.nodes[node].name.clone());
    let asked = Event { value, node, workload: REGION.to_owned(), ..Event::of(f) };
    let invocation = recorder.invoke(recorder.process(), asked);
    let (kind, told) = act(&cluster.client(MOVE_WITHIN));
    recorder.complete(invocation, kind, told);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_what_was_lost_is_read_shard_by_shard() {
        let text = "{\"shard\":0,\"position\":7,\"op\":\"upsert\",\"id\":3,\"payload\":{}}\n\
            {\"shard\":0,\"position\":8,\"op\":\"delete\",\"id\":3}\n{\"shard\":0,\"position\":9,\"op\":\"delete\",\"id\":1}\n";
        assert_eq!(lines(text), [json!({"shard": 0, "from": 7, "to": 9, "ids": [1, 3]})]);
        assert!(lines("").is_empty());
    }
}
