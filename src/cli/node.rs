//! `annal node`: takes a node out of service, and back.

use super::{
    Done,
    server::Server,
    status::{lag, rows, text},
    wish::{Far, Wish},
};
use annal::net::http::part_of_path;
use clap::{Args, Subcommand};
use serde_json::Value;

/// Drains or removes a node.
#[derive(Subcommand)]
pub(super) enum Node {
    /// Moves all shards off a node, which stays a member; waits until none is left.
    ///
    /// The cluster goes on by itself: if this is cut off, run it again to watch.
    ///
    /// Examples:
    ///   annal node drain n3
    ///   annal node drain n3 --undo
    #[command(verbatim_doc_comment)]
    Drain {
        #[command(flatten)]
        of: Which,
        /// Lets the node take shards again.
        #[arg(long)]
        undo: bool,
    },
    /// Moves all off a node and forgets it; waits until it is forgotten.
    ///
    /// Ask another node than the one that goes. The cluster goes on by itself: if this is cut off, run it again to
    /// watch. A node that is no member is removed already.
    ///
    /// Example:
    ///   annal node remove n3 --url http://127.0.0.1:6333
    #[command(verbatim_doc_comment)]
    Remove {
        #[command(flatten)]
        of: Which,
    },
}

/// Which node, and whom to ask.
#[derive(Args)]
pub(super) struct Which {
    /// The node's name.
    name: String,
    #[command(flatten)]
    server: Server,
    /// Prints the end as JSON.
    #[arg(long)]
    json: bool,
}

impl Node {
    pub(super) fn run(self) -> Done {
        let (of, method, path, body, verb) = match self {
            Node::Drain { of, undo: true } => (of, "POST", "/drain", r#"{"undrain":true}"#, "undraining"),
            Node::Drain { of, undo: false } => (of, "POST", "/drain", "{}", "draining"),
            Node::Remove { of } => (of, "DELETE", "", "", "removing"),
        };
        let client = of.server.client();
        let wish = Wish {
            method,
            path: format!("/annal/v1/cluster/nodes/{}{path}", part_of_path(&of.name)),
            body: body.to_owned(),
            what: format!("{verb} {}", of.name),
        };
        wish.fulfil(&client, of.json, |cluster| far(cluster, &of.name))
    }
}

/// Shards the node still holds, and the replicas that take their place.
fn far(cluster: &Value, node: &str) -> Far {
    let mut far = Far { left: 0, now: String::new() };
    for shard in rows(cluster, "shards").iter().filter(|shard| !shard["collection"].is_null()) {
        if !rows(shard, "replicas").iter().any(|r| r["node"] == node) {
            continue;
        }
        far.left += 1;
        if far.now.is_empty() {
            far.now = coming(shard).unwrap_or_default();
        }
    }
    far
}

/// The replica of a shard that is being made, and what it lacks.
pub(super) fn coming(shard: &Value) -> Option<String> {
    let new = ["planned", "opened", "joining"];
    let replica = rows(shard, "replicas").iter().find(|r| new.contains(&text(r, "phase")))?;
    let lacks = lag(shard, replica).map_or_else(String::new, |lag| format!(", {lag} entries behind"));
    Some(format!(
        "{} shard {} to {}{lacks}",
        text(shard, "collection"),
        shard["shard"],
        text(replica, "node")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_on_a_node() {
        let replica = |node: &str, phase: &str, role: &str, applied: u64| json!({"node": node, "phase": phase, "role": role, "committed": 50, "applied": applied});
        let cluster = json!({"shards": [
            {"collection": null, "shard": 0, "leader": "n1", "replicas": [replica("n1", "voter", "leader", 9)]},
            {"collection": "a", "shard": 0, "leader": "n2", "replicas": [replica("n2", "voter", "leader", 50)]},
            {"collection": "a", "shard": 1, "leader": "n1", "replicas": [
                replica("n1", "leaving", "leader", 50), replica("n2", "joining", "learner", 8)]},
        ]});
        assert_eq!(far(&cluster, "n1"), Far { left: 1, now: "a shard 1 to n2, 42 entries behind".into() });
        assert_eq!(far(&cluster, "n3"), Far { left: 0, now: String::new() });
    }
}
