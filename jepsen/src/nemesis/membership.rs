//! Changes of the cluster on purpose: leadership handed over, replicas moved, nodes drained and taken back.
//!
//! Invariants: the nodes that are left always suffice for all replicas; a change counts once the cluster has taken
//! it on.

use super::{Injected, Refused, Try};
use crate::cluster::{Cluster, Node, ShardStatus};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a change may take to be taken on.
const WITHIN: Duration = Duration::from_secs(10);

pub(super) fn change(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let rows = cluster.status_of(0).shards;
    let rows: Vec<&ShardStatus> = rows.iter().filter(|row| row.collection.is_some()).collect();
    let Some(row) = rows.choose(rng) else { return Err(Refused::Skipped("there are no shards".to_owned())) };
    let holds = |name: &str| row.replicas.iter().any(|replica| replica.node == name);
    let spare: Vec<_> =
        nodes(cluster).iter().map(|node| node.name.clone()).filter(|name| !holds(name)).collect();
    match (rng.random_range(0..3), spare.choose(rng)) {
        (0, Some(to)) => {
            let from = row.replicas.choose(rng).map(|replica| replica.node.clone()).unwrap_or_default();
            done(cluster, &path(row, "move"), &json!({"from": from, "to": to}))
        }
        (1, Some(_)) => {
            let node = nodes(cluster).choose(rng).map(|node| node.name.clone()).unwrap_or_default();
            let path = format!("/annal/v1/cluster/nodes/{node}/drain");
            let drained = done(cluster, &format!("{path}?timeout=5"), &json!({}))?;
            Ok(Injected::new(drained.what, move |cluster| {
                let back = cluster.ask("POST", &path, Some(&json!({"undrain": true})), WITHIN);
                back.map(drop).ok_or_else(|| "the drained node was not taken back".to_owned())
            }))
        }
        _ => {
            let followers: Vec<_> =
                row.replicas.iter().filter(|replica| replica.role == "follower").collect();
            let Some(to) = followers.choose(rng) else {
                return Err(Refused::Skipped("there is nobody to hand leadership to".to_owned()));
            };
            done(cluster, &path(row, "lead"), &json!({"to": to.node}))
        }
    }
}

/// Those of the first region, which is the one that is asked.
fn nodes(cluster: &Cluster) -> &[Node] {
    &cluster.nodes[cluster.regions[0].nodes.clone()]
}

fn path(row: &ShardStatus, verb: &str) -> String {
    let collection = row.collection.as_deref().unwrap_or_default();
    format!("/annal/v1/collections/{collection}/shards/{}/{verb}?timeout=5", row.shard)
}

fn done(cluster: &Cluster, path: &str, body: &Value) -> Try {
    match cluster.ask("POST", path, Some(body), WITHIN) {
        Some(told) => Ok(Injected::new(json!({"asked": path, "body": body, "told": told}), |_| Ok(()))),
        None => Err(Refused::Indeterminate(format!("{path} {body} was not taken on"))),
    }
}
