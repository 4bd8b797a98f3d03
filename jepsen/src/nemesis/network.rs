//! Links between the nodes of a cluster that are cut or slow; of several regions within one of them.
//!
//! | cut | what passes |
//! |---|---|
//! | alone | one node hears nobody and is heard by nobody |
//! | one way | one node hears, but is not heard; or the other way round |
//! | partial | two nodes do not hear each other; both hear the rest |
//! | halves | two groups |
//! | ring | every node hears a majority, and no two the same one (five nodes or more) |

use super::{Injected, Refused, Try, names, target};
use crate::{cluster::Cluster, net::Rule};
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use std::{ops::Range, time::Duration};

pub(super) fn partition(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let (one, nodes) = neighbours(cluster, rng)?;
    let count = nodes.len();
    let mut order: Vec<usize> = nodes.filter(|i| *i != one).collect();
    order.shuffle(rng);
    order.insert(0, one);
    let (kind, cut): (&str, Vec<(usize, usize)>) = match rng.random_range(0..5) {
        0 => ("alone", both(&order[..1], &order[1..])),
        1 if rng.random() => ("not heard", pairs(&order[..1], &order[1..])),
        1 => ("deaf", pairs(&order[1..], &order[..1])),
        2 => ("partial", both(&order[..1], &order[1..2])),
        3 if count >= 5 => ("ring", ring(&order)),
        _ => ("halves", both(&order[..count / 2], &order[count / 2..])),
    };
    cut.iter().for_each(|(from, to)| cluster.links.set(*from, *to, Rule::CUT));
    let shown: Vec<String> =
        cut.iter().map(|(from, to)| names(cluster, &[*from, *to]).join(" -> ")).collect();
    Ok(until_healed(cluster, json!({"cut": kind, "links": shown})))
}

pub(super) fn slow(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let (one, nodes) = neighbours(cluster, rng)?;
    let delay = Duration::from_millis(rng.random_range(20..400));
    let rule = Rule { delay, loss: [0.0, 0.02, 0.1][rng.random_range(0..3)], ..Rule::default() };
    let all = rng.random_ratio(1, 3);
    let nodes: Vec<usize> = nodes.collect();
    for (from, to) in pairs(&nodes, &nodes) {
        if all || from == one {
            cluster.links.set(from, to, rule);
        }
    }
    let from = if all { Value::from("all") } else { Value::from(names(cluster, &[one])) };
    let what = json!({"from": from, "delay_ms": rule.delay.as_millis() as u64, "loss": rule.loss});
    Ok(until_healed(cluster, what))
}

/// A node, and all of its region.
fn neighbours(cluster: &Cluster, rng: &mut StdRng) -> Result<(usize, Range<usize>), Refused> {
    let one = target(cluster, rng);
    let region = cluster.regions.iter().find(|region| region.nodes.contains(&one));
    let nodes = region.map_or(0..cluster.len(), |region| region.nodes.clone());
    match nodes.len() {
        0 | 1 => Err(Refused::Skipped("there is one node, and nothing between nodes".to_owned())),
        _ => Ok((one, nodes)),
    }
}

/// A rule nothing ran into is not a fault.
pub(super) fn until_healed(cluster: &Cluster, what: Value) -> Injected {
    let before = cluster.links.touched();
    Injected::new(what, move |cluster| {
        cluster.links.heal();
        let touched = cluster.links.touched() - before;
        if touched > 0 { Ok(()) } else { Err("nothing passed the links meanwhile".to_owned()) }
    })
}

fn pairs(from: &[usize], to: &[usize]) -> Vec<(usize, usize)> {
    from.iter().flat_map(|f| to.iter().filter(move |t| f != *t).map(|t| (*f, *t))).collect()
}

fn both(a: &[usize], b: &[usize]) -> Vec<(usize, usize)> {
    [pairs(a, b), pairs(b, a)].concat()
}

/// Each hears its neighbours on the ring, as many as make a majority with itself.
fn ring(order: &[usize]) -> Vec<(usize, usize)> {
    let count = order.len();
    let reach = (count / 2).div_ceil(2);
    let apart = |a: usize, b: usize| a.abs_diff(b).min(count - a.abs_diff(b));
    let all = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
    all.filter(|(a, b)| apart(*a, *b) > reach).map(|(a, b)| (order[a], order[b])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_ring_each_hears_a_majority_and_no_two_the_same() {
        let cut = ring(&[0, 1, 2, 3, 4]);
        let heard: Vec<Vec<usize>> =
            (0..5).map(|to| (0..5).filter(|from| !cut.contains(&(*from, to))).collect()).collect();
        assert!(heard.iter().all(|nodes| nodes.len() == 3), "{heard:?}");
        assert!((0..5).all(|i| (i + 1..5).all(|j| heard[i] != heard[j])), "{heard:?}");
    }

    #[test]
    fn one_way_leaves_the_other_way_open() {
        assert_eq!(pairs(&[0], &[1, 2]), [(0, 1), (0, 2)]);
        assert_eq!(both(&[0], &[1]), [(0, 1), (1, 0)]);
    }
}
