//! The cluster in Qdrant's words: peers, and where the shards of a collection are.
//!
//! A node's peer id is a hash of its name, so every node gives the same one, and it never changes.

use super::{Unbuilt, aliases::resolved, refuse_unbuilt};
use crate::{
    api::{
        body::{At, Json},
        envelope::Reply,
        error::{ApiError, Result},
        wishes::Wishes,
    },
    cluster::Cluster,
    model::{Kind, ShardNumber, datetime},
};
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// `GET /cluster`
pub(super) async fn info(State(cluster): State<Cluster>, _: Wishes) -> Result<Reply> {
    let topology = Topology::of(&cluster).await?;
    Ok(Reply::new(&topology.described(&cluster.info().node, datetime::format_micros(now_micros()))))
}

/// `GET /collections/{collection}/cluster`
pub(super) async fn of_collection(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
) -> Result<Reply> {
    let (name, _) = resolved(&cluster, collection, &wishes.read()).await?;
    let held = cluster.figures().replicas.into_iter().filter(|r| r.collection.as_deref() == Some(&name));
    let points = held.map(|r| (r.shard.0, r.stats.map_or(0, |stats| stats.points))).collect();
    let topology = Topology::of(&cluster).await?;
    Ok(Reply::new(&topology.described_shards(&name, &cluster.info().node, &points)))
}

/// `POST /collections/{collection}/cluster`: a move of a shard; the rest is not built.
pub(super) async fn change(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
    Json(body): Json<OperationBody>,
) -> Result<Reply> {
    let MoveShard { shard_id, from_peer_id, to_peer_id, .. } = body.into_model()?;
    let topology = Topology::of(&cluster).await?;
    let from = topology.node_of("move_shard.from_peer_id", from_peer_id)?;
    let to = topology.node_of("move_shard.to_peer_id", to_peer_id)?;
    if from == to {
        return Err(ApiError::invalid("move_shard.to_peer_id", "is where the shard comes from"));
    }
    // Begun or done is the same answer, as it is Qdrant's.
    cluster.move_shard(&collection, ShardNumber(shard_id), from, to, wishes.deadline).await?;
    Ok(Reply::new(&true))
}

/// The number a node has as Qdrant's peer: below 2^53, so that every client can read it.
fn peer_id(node: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(node.as_bytes()) >> 11
}

fn now_micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// One change of a collection's shards.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OperationBody {
    move_shard: Option<MoveShard>,
    replicate_shard: Unbuilt,
    abort_transfer: Unbuilt,
    restart_transfer: Unbuilt,
    drop_replica: Unbuilt,
    create_sharding_key: Unbuilt,
    drop_sharding_key: Unbuilt,
    start_resharding: Unbuilt,
    abort_resharding: Unbuilt,
    replicate_points: Unbuilt,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveShard {
    shard_id: u32,
    from_peer_id: u64,
    to_peer_id: u64,
    /// A hint: what a new replica lacks decides how it gets it.
    #[serde(rename = "method")]
    _method: Option<TransferMethod>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TransferMethod {
    StreamRecords,
    Snapshot,
    WalDelta,
}

impl OperationBody {
    fn into_model(self) -> Result<MoveShard> {
        refuse_unbuilt([
            ("replicate_shard", self.replicate_shard),
            ("abort_transfer", self.abort_transfer),
            ("restart_transfer", self.restart_transfer),
            ("drop_replica", self.drop_replica),
            ("create_sharding_key", self.create_sharding_key),
            ("drop_sharding_key", self.drop_sharding_key),
            ("start_resharding", self.start_resharding),
            ("abort_resharding", self.abort_resharding),
            ("replicate_points", self.replicate_points),
        ])?;
        self.move_shard.ok_or_else(|| ApiError::invalid("body", "wants an operation such as move_shard"))
    }
}

/// What of `GET /annal/v1/cluster` Qdrant has a word for.
#[derive(Deserialize)]
struct Topology {
    nodes: Vec<Node>,
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    peer: String,
}

#[derive(Deserialize)]
struct Shard {
    /// None: the catalog.
    collection: Option<String>,
    shard: u32,
    leader: Option<String>,
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
struct Replica {
    node: String,
    phase: String,
    role: String,
    state: String,
    term: Option<u64>,
    committed: Option<u64>,
    applied: Option<u64>,
}

impl Topology {
    async fn of(cluster: &Cluster) -> Result<Topology> {
        let topology = serde_json::from_value(cluster.topology().await);
        topology
            .map_err(|e| ApiError::new(Kind::Internal, "", format!("the cluster cannot be described: {e}")))
    }

    /// The node of a peer id.
    fn node_of(&self, field: &str, peer: u64) -> Result<&String> {
        let found = self.nodes.iter().map(|n| &n.name).find(|name| peer_id(name) == peer);
        found.ok_or_else(|| ApiError::new(Kind::NotFound, field, format!("there is no peer {peer}")))
    }

    /// Qdrant's `ClusterStatus`, from `me`.
    fn described(&self, me: &str, now: String) -> Value {
        let uri = |n: &Node| json!({"uri": format!("http://{}/", n.peer)});
        let peers: Map<_, _> = self.nodes.iter().map(|n| (peer_id(&n.name).to_string(), uri(n))).collect();
        let catalog = self.shards.iter().find(|s| s.collection.is_none());
        let mine = catalog.and_then(|c| c.replicas.iter().find(|r| r.node == me));
        let figure = |of: fn(&Replica) -> Option<u64>| mine.and_then(of).unwrap_or(0);
        let mut raft = json!({
            "term": figure(|r| r.term),
            "commit": figure(|r| r.committed),
            "pending_operations": figure(|r| Some(r.committed?.saturating_sub(r.applied?))),
            "is_voter": mine.is_some_and(|r| r.phase == "voter"),
            "role": match mine.map(|r| r.role.as_str()) {
                Some("leader") => "Leader",
                Some("candidate") => "Candidate",
                _ => "Follower",
            },
        });
        if let Some(leader) = catalog.and_then(|c| c.leader.as_deref()) {
            raft["leader"] = peer_id(leader).into();
        }
        json!({
            "status": "enabled",
            "peer_id": peer_id(me),
            "peers": peers,
            "raft_info": raft,
            "consensus_thread_status": {"consensus_thread_status": "working", "last_update": now},
            "message_send_failures": {},
        })
    }

    /// Qdrant's `CollectionClusterInfo`, from `me`; `points` by number of the shards that `me` holds.
    fn described_shards(&self, collection: &str, me: &str, points: &BTreeMap<u32, u64>) -> Value {
        let shards: Vec<_> =
            self.shards.iter().filter(|s| s.collection.as_deref() == Some(collection)).collect();
        let (mut local, mut remote) = (Vec::new(), Vec::new());
        for shard in &shards {
            // One that leaves and is not there any more is not worth a word.
            let told = |r: &&Replica| r.phase != "leaving" || r.state == "ok";
            for replica in shard.replicas.iter().filter(told) {
                let state = replica.described();
                if replica.node == me {
                    let count = points.get(&shard.shard).copied().unwrap_or(0);
                    local.push(json!({"shard_id": shard.shard, "points_count": count, "state": state}));
                } else {
                    let peer = peer_id(&replica.node);
                    remote.push(json!({"shard_id": shard.shard, "peer_id": peer, "state": state}));
                }
            }
        }
        json!({
            "peer_id": peer_id(me),
            "shard_count": shards.len(),
            "local_shards": local,
            "remote_shards": remote,
            "shard_transfers": [],
        })
    }
}

impl Replica {
    /// Qdrant's `ReplicaState`.
    fn described(&self) -> &'static str {
        match (self.state.as_str(), self.phase.as_str()) {
            ("ok", "voter" | "leaving") => "Active",
            ("ok", "learner") => "Listener",
            ("ok", "joining") => "Partial",
            (_, "planned" | "opened") => "Initializing",
            _ => "Dead",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    fn replica(node: &str, phase: &str, role: &str, state: &str) -> Value {
        json!({"node": node, "replica": 1, "phase": phase, "role": role, "state": state, "term": 4,
               "committed": 9, "applied": 7})
    }

    fn topology() -> Topology {
        let catalog = [replica("a", "voter", "follower", "ok"), replica("b", "voter", "leader", "ok")];
        let moving = [
            replica("a", "leaving", "leader", "ok"),
            replica("b", "joining", "learner", "ok"),
            replica("c", "voter", "unknown", "unreachable"),
        ];
        serde_json::from_value(json!({
            "nodes": [
                {"name": "a", "peer": "127.0.0.1:1", "http": "", "region": "r", "zone": "z", "state": "alive"},
                {"name": "b", "peer": "127.0.0.1:2", "http": "", "region": "r", "zone": "z", "state": "alive"},
            ],
            "shards": [
                {"collection": null, "shard": 0, "epoch": 1, "leader": "b", "replicas": catalog},
                {"collection": "x", "shard": 0, "epoch": 1, "leader": "a", "replicas": moving},
                {"collection": "y", "shard": 0, "epoch": 1, "leader": null, "replicas": []},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn peers_and_the_catalogs_raft() {
        let described = topology().described("a", "2026-01-01T00:00:00Z".into());
        let (a, b) = (peer_id("a"), peer_id("b"));
        assert_eq!(described["peer_id"], a);
        assert_eq!(described["peers"][b.to_string()], json!({"uri": "http://127.0.0.1:2/"}));
        assert_eq!(
            described["raft_info"],
            json!({"term": 4, "commit": 9, "pending_operations": 2, "leader": b, "role": "Follower", "is_voter": true})
        );
        let unknown = topology().described("z", String::new());
        assert_eq!(
            (&unknown["raft_info"]["term"], &unknown["raft_info"]["is_voter"]),
            (&json!(0), &json!(false))
        );
    }

    #[test]
    fn where_the_shards_are() {
        let described = topology().described_shards("x", "a", &[(0, 12)].into());
        assert_eq!(described["shard_count"], 1);
        assert_eq!(
            described["local_shards"],
            json!([{"shard_id": 0, "points_count": 12, "state": "Active"}])
        );
        assert_eq!(
            described["remote_shards"],
            json!([
                {"shard_id": 0, "peer_id": peer_id("b"), "state": "Partial"},
                {"shard_id": 0, "peer_id": peer_id("c"), "state": "Dead"},
            ])
        );
    }

    #[test]
    fn peer_ids_are_fixed_for_ever_and_fit_every_client() {
        assert_eq!(peer_id("n1"), topology().node_of("", peer_id("a")).map(|_| peer_id("n1")).unwrap());
        assert!(["n1", "n2", "a much longer name"].iter().all(|name| peer_id(name) < 1 << 53));
        assert_ne!(peer_id("n1"), peer_id("n2"));
        assert_refused(topology().node_of("to", 7), 404, "to: there is no peer 7", "");
    }

    #[test]
    fn operations() {
        let read = |text: &str| parse::<OperationBody>(text.as_bytes())?.into_model();
        let of = r#"{"move_shard":{"shard_id":1,"from_peer_id":2,"to_peer_id":3,"method":"wal_delta"}}"#;
        assert_eq!(read(of).unwrap().shard_id, 1);
        for (text, status, message) in [
            ("{}", 400, "body: wants an operation"),
            (r#"{"move_shard":{"shard_id":1}}"#, 400, "move_shard: missing field `from_peer_id`"),
            (r#"{"replicate_shard":{}}"#, 501, "replicate_shard: is not implemented yet"),
            (r#"{"drop_shard":{}}"#, 400, "drop_shard: unknown field"),
        ] {
            assert_refused(read(text), status, message, text);
        }
    }
}
