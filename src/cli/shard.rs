//! `annal shard`: moves replicas and leadership.

use super::{
    Done, NotBuilt,
    node::coming,
    server::Server,
    status::{rows, text},
    wish::{Far, Wish},
};
use annal::net::http::part_of_path;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Moves, splits or leads a shard.
#[derive(Subcommand)]
pub(super) enum Shard {
    /// Moves a shard's replica from one node to another; waits until it is there.
    ///
    /// The cluster goes on by itself: if this is cut off, run it again to watch.
    ///
    /// Example:
    ///   annal shard move glosses 0 --from n1 --to n4
    #[command(verbatim_doc_comment)]
    Move {
        #[command(flatten)]
        of: Which,
        /// The node it leaves.
        #[arg(long, value_name = "NODE")]
        from: String,
        /// The node it goes to.
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Makes a node the leader of a shard it holds.
    ///
    /// Example:
    ///   annal shard lead glosses 0 n2
    #[command(verbatim_doc_comment)]
    Lead {
        #[command(flatten)]
        of: Which,
        /// The node.
        node: String,
    },
    /// Cuts a shard in two (not built yet).
    Split(NotBuilt),
}

/// Which shard, and whom to ask.
#[derive(Args)]
pub(super) struct Which {
    /// The collection.
    collection: String,
    /// The shard's number.
    shard: u32,
    #[command(flatten)]
    server: Server,
    /// Prints the end as JSON.
    #[arg(long)]
    json: bool,
}

impl Shard {
    pub(super) fn run(self) -> Result<Done, ExitCode> {
        let (of, verb, body, what) = match self {
            Shard::Split(n) => return Err(n.refuse("shard split")),
            Shard::Move { of, from, to } => {
                let what = format!("moving shard {} of {} from {from} to {to}", of.shard, of.collection);
                (of, "move", json!({"from": from, "to": to}), what)
            }
            Shard::Lead { of, node } => {
                let what = format!("making {node} lead shard {} of {}", of.shard, of.collection);
                (of, "lead", json!({"to": node}), what)
            }
        };
        let wish = Wish {
            method: "POST",
            path: format!(
                "/annal/v1/collections/{}/shards/{}/{verb}",
                part_of_path(&of.collection),
                of.shard
            ),
            body: body.to_string(),
            what,
        };
        Ok(wish.fulfil(&of.server.client(), of.json, |cluster| {
            far(cluster, &of.collection, of.shard, verb, &body)
        }))
    }
}

/// Steps of a move that are left: the new replica becomes a member, then the old one goes. A change of leaders is one.
fn far(cluster: &Value, collection: &str, number: u32, verb: &str, body: &Value) -> Far {
    let wanted = |s: &&Value| s["collection"] == collection && s["shard"] == number;
    let Some(shard) = rows(cluster, "shards").iter().find(wanted) else {
        return Far { left: 1, now: String::new() };
    };
    if verb == "lead" {
        let now =
            format!("{} leads", if shard["leader"].is_null() { "nobody" } else { text(shard, "leader") });
        return Far { left: u64::from(shard["leader"] != body["to"]), now };
    }
    let replicas = rows(shard, "replicas");
    let joined = replicas.iter().any(|r| r["node"] == body["to"] && r["phase"] == "voter");
    let gone = replicas.iter().all(|r| r["node"] != body["from"]);
    Far { left: u64::from(!joined) + u64::from(!gone), now: coming(shard).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_move_is() {
        let cluster = |replicas: Value| json!({"shards": [{"collection": "a", "shard": 2, "leader": "n1", "replicas": replicas}]});
        let replica = |node: &str, phase: &str| json!({"node": node, "phase": phase, "role": "follower"});
        let body = json!({"from": "n1", "to": "n4"});
        let left = |replicas| far(&cluster(replicas), "a", 2, "move", &body).left;
        assert_eq!(left(json!([replica("n1", "voter")])), 2);
        assert_eq!(left(json!([replica("n1", "leaving"), replica("n4", "joining")])), 2);
        assert_eq!(left(json!([replica("n1", "leaving"), replica("n4", "voter")])), 1);
        assert_eq!(left(json!([replica("n4", "voter")])), 0);
        let lead = far(&cluster(json!([])), "a", 2, "lead", &json!({"to": "n2"}));
        assert_eq!(lead, Far { left: 1, now: "n1 leads".into() });
    }
}
