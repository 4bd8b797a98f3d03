//! Clusters of real nodes in one process: their own folders, logs and stores, talking over loopback.

#![allow(clippy::unwrap_used)]

mod recall;
mod routing;
mod wire;

use super::{
    Cluster, ClusterOptions, CollectionSpec, Consistency, ReadOptions, Result, WriteOptions,
    found::{self, Door, Newcomer, Standing},
};
use crate::{
    identity::{IdentityFile, Incarnation},
    model::{Distance, HnswParams, Point, PointId, ReplicaId, RequestId, Vector, VectorParams},
    net::{self, Credentials, Peers, socket},
    replica::{ReplicaOptions, Role},
    shard::ShardOptions,
    store::{Store, StoreOptions},
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// A node of a cluster.
struct Node {
    name: String,
    cluster: Cluster,
    peers: Peers,
    /// Whether what others send it stands still on the way.
    frozen: watch::Sender<bool>,
    _store: Store,
    _dir: TempDir,
    stop: CancellationToken,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn reading() -> ReadOptions {
    ReadOptions::linearizable(soon())
}

fn weaker(consistency: Consistency) -> ReadOptions {
    ReadOptions { consistency, ..reading() }
}

fn writing() -> WriteOptions {
    WriteOptions::until(soon())
}

fn named(seq: u64) -> WriteOptions {
    WriteOptions { request: Some(RequestId { client: "tester".to_owned(), seq }), ..writing() }
}

fn point(id: u64, tag: u64) -> Point {
    Point {
        id: PointId::Num(id),
        vectors: [(String::new(), Vector::Dense(vec![id as f32, tag as f32]))].into(),
        payload: serde_json::json!({ "tag": tag }).as_object().unwrap().clone(),
    }
}

fn spec(shard_number: u32, replication_factor: u32) -> CollectionSpec {
    let params = VectorParams::new(2, Distance::Euclid, HnswParams::default());
    CollectionSpec {
        vectors: [(String::new(), params)].into(),
        shard_number,
        replication_factor,
        ..CollectionSpec::default()
    }
}

/// Starts nodes `n1`, `n2`, …; the first founds, the others join.
async fn nodes(count: usize) -> Vec<Node> {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(socket::listen("127.0.0.1:0").await.unwrap());
    }
    let join: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let starts = listeners.into_iter().enumerate().map(|(i, listener)| {
        let join = join.clone();
        tokio::spawn(async move { Node::start(format!("n{}", i + 1), listener, &join).await })
    });
    let mut nodes = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        nodes.push(start.await.unwrap());
    }
    until("all nodes are known to all", || {
        nodes.iter().all(|node| node.cluster.inner.catalog.state().nodes.len() == count)
    })
    .await;
    nodes
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = soon();
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

impl Node {
    async fn start(name: String, listener: socket::Listener, join: &[String]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        // Others reach it through a gate.
        let peer = listener.local_addr().unwrap().to_string();
        let frozen = watch::Sender::new(false);
        let behind = socket::listen("127.0.0.1:0").await.unwrap();
        let to = behind.local_addr().unwrap().to_string();
        tokio::spawn(gate(listener, to, frozen.subscribe()));
        let (region, zone, http) = ("here".to_owned(), name.clone(), "127.0.0.1:1".to_owned());
        let me = Newcomer {
            node: name.clone(),
            incarnation: Incarnation::fresh(),
            region: region.clone(),
            zone: zone.clone(),
            http: http.clone(),
            peer: peer.clone(),
        };
        let peers = Peers::new(Credentials { node: name.clone(), secret: None });
        let (door, stop) = (Door::new(me, peers.clone()), CancellationToken::new());
        tokio::spawn(net::serve(behind, peers.clone(), Arc::new(door.clone()), stop.clone()));
        let identity: IdentityFile =
            found::settle(&door, None, &dir.path().join("node.json"), join).await.unwrap();
        let log_options = annal_wal::Options { segment_bytes: 4 << 20, ..annal_wal::Options::default() };
        let (log, _) = annal_wal::Log::open(&dir.path().join("wal"), log_options).unwrap();
        let store = Store::open(
            &dir.path().join("store"),
            StoreOptions { cache_bytes: 8 << 20, ..StoreOptions::default() },
        )
        .unwrap();
        let options = ClusterOptions {
            region,
            zone,
            http,
            peer,
            search_threads: 1,
            recall_sample: 1.0,
            index_dir: dir.path().join("index"),
            shard: ShardOptions::default(),
            replica: ReplicaOptions { incoming: dir.path().to_owned(), ..ReplicaOptions::new(ReplicaId(1)) },
            replace_after: Duration::from_secs(3600),
            scrub_every: Duration::from_secs(3600),
        };
        let standing = Standing { identity, door, lost: BTreeSet::new() };
        let cluster = Cluster::open(options, standing, log, store.clone()).await.unwrap();
        Node { name, cluster, peers, frozen, _store: store, _dir: dir, stop }
    }

    /// Stands still, as far as others can tell: what they send hangs, and nothing comes from it.
    fn freeze(&self) {
        self.frozen.send_replace(true);
        // Nobody listens to a node of another cluster.
        self.peers.set_cluster("elsewhere".to_owned());
    }

    /// Goes on as if nothing had been.
    fn thaw(&self, cluster_id: &str) {
        self.peers.set_cluster(cluster_id.to_owned());
        self.frozen.send_replace(false);
    }

    /// Leaves in order.
    async fn leave(&self) {
        self.cluster.drain().await;
        self.stop.cancel();
        self.cluster.close().await;
    }

    /// Whether this node leads the first shard of a collection.
    fn leads(&self, collection: &str) -> bool {
        let state = self.cluster.inner.catalog.state();
        let Some(record) = state.collections.get(collection) else { return false };
        let local = self.cluster.replica_here(record.shards[0].group);
        local.is_some_and(|local| local.replica.status().role == Role::Leader)
    }
}

/// Passes on what comes, unless it is frozen: then everything waits, and no connection breaks.
async fn gate(listener: socket::Listener, to: String, frozen: watch::Receiver<bool>) {
    while let Ok(from) = socket::accept(&listener).await {
        let Ok(to) = socket::connect(&to).await else { continue };
        let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
        for (mut read, mut write) in [(from_read, to_write), (to_read, from_write)] {
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(bytes @ 1..) = read.read(&mut buffer).await {
                    let open = frozen.wait_for(|frozen| !frozen).await.is_ok();
                    if !open || write.write_all(&buffer[..bytes]).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

/// The node that leads the first shard of a collection, and the others.
async fn leader<'a>(nodes: &'a [Node], collection: &str) -> (&'a Node, Vec<&'a Node>) {
    until("a leader", || nodes.iter().any(|node| node.leads(collection))).await;
    let at = nodes.iter().position(|node| node.leads(collection)).unwrap();
    let others = nodes.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, node)| node);
    (&nodes[at], others.collect())
}

/// Creates a collection through the first node.
async fn create(nodes: &[Node], name: &str, spec: CollectionSpec) -> Result<()> {
    nodes[0].cluster.create_collection(name, spec, &writing()).await.map(drop)
}
