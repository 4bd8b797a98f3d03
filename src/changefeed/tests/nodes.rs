//! Nodes in one process: logs in memory, stores in folders, peers over loopback.

use super::soon;
use crate::{
    cluster::{
        Cluster, ClusterOptions, CollectionSpec, WriteOptions,
        found::{self, Door, Newcomer, Standing},
    },
    identity::{IdentityFile, Incarnation},
    model::{Distance, HnswParams, ReplicaId, VectorParams},
    net::{self, Credentials, Peers, socket},
    replica::ReplicaOptions,
    shard::ShardOptions,
    store::{Store, StoreOptions},
};
use annal_wal::{Log, MemoryDisk};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(super) const C: &str = "c";

/// A node that may be stopped and started again.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) cluster: Cluster,
    address: String,
    join: Vec<String>,
    options: annal_wal::Options,
    disk: MemoryDisk,
    folder: Arc<tempfile::TempDir>,
    log: Log,
    store: Store,
    stop: CancellationToken,
}

/// One node with the collection.
pub(super) async fn node(options: annal_wal::Options, shards: u32) -> Node {
    let mut nodes = nodes(1, options).await;
    create(&nodes[0].cluster, shards, 1).await;
    nodes.remove(0)
}

/// Nodes `n1`, `n2`, …: the first founds, the others join.
pub(super) async fn nodes(count: usize, options: annal_wal::Options) -> Vec<Node> {
    let mut join = Vec::new();
    let mut listeners = Vec::new();
    for _ in 0..count {
        let listener = socket::listen("127.0.0.1:0").await.unwrap();
        join.push(listener.local_addr().unwrap().to_string());
        listeners.push(listener);
    }
    let starts = listeners.into_iter().enumerate().map(|(i, listener)| {
        let (join, options) = (join.clone(), options.clone());
        let (disk, folder) = (MemoryDisk::new(1 << 30), Arc::new(tempfile::tempdir().unwrap()));
        tokio::spawn(Node::start(format!("n{}", i + 1), listener, join, options, disk, folder))
    });
    let mut nodes = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        nodes.push(start.await.unwrap());
    }
    let known = async || nodes[0].cluster.topology().await["nodes"].as_array().map_or(0, Vec::len) == count;
    let deadline = soon();
    while !known().await {
        assert!(Instant::now() < deadline, "the nodes do not find each other");
        sleep(Duration::from_millis(20)).await;
    }
    nodes
}

pub(super) async fn create(cluster: &Cluster, shards: u32, copies: u32) {
    let vectors = VectorParams::new(2, Distance::Cosine, HnswParams::default());
    let spec = CollectionSpec {
        vectors: [(String::new(), vectors)].into(),
        sparse: [("words".to_owned(), Default::default())].into(),
        shard_number: shards,
        replication_factor: copies,
        ..CollectionSpec::default()
    };
    cluster.create_collection(C, spec, &WriteOptions::until(soon())).await.unwrap();
}

impl Node {
    async fn start(
        name: String,
        listener: socket::Listener,
        join: Vec<String>,
        options: annal_wal::Options,
        disk: MemoryDisk,
        folder: Arc<tempfile::TempDir>,
    ) -> Node {
        let path = folder.path().join("node.json");
        let known = IdentityFile::read(&path).unwrap();
        let incarnation = known.as_ref().map_or_else(Incarnation::fresh, |known| known.get().incarnation);
        let address = listener.local_addr().unwrap().to_string();
        let (region, zone, http) = ("r".to_owned(), name.clone(), "127.0.0.1:1".to_owned());
        let me = Newcomer {
            node: name.clone(),
            incarnation,
            region: region.clone(),
            zone: zone.clone(),
            http: http.clone(),
            peer: address.clone(),
        };
        let peers = Peers::new(Credentials { node: name.clone(), secret: None });
        let (door, stop) = (Door::new(me, peers.clone()), CancellationToken::new());
        tokio::spawn(net::serve(listener, peers, Arc::new(door.clone()), stop.clone()));
        let identity = found::settle(&door, known, &path, &join).await.unwrap();
        let (log, _) = Log::open_in_memory(disk.clone(), options.clone()).unwrap();
        let store = Store::open(
            &folder.path().join("store"),
            StoreOptions { cache_bytes: 1 << 20, ..StoreOptions::default() },
        )
        .unwrap();
        let mut replica =
            ReplicaOptions { incoming: folder.path().to_owned(), ..ReplicaOptions::new(ReplicaId(1)) };
        // So that a new replica is sent a snapshot rather than the log.
        replica.checkpoint.every = Duration::from_millis(200);
        replica.checkpoint.keep_entries = 5;
        let cluster_options = ClusterOptions {
            region,
            zone,
            http,
            peer: address.clone(),
            search_threads: 1,
            recall_sample: 0.0,
            index_dir: folder.path().join("index"),
            shard: ShardOptions::default(),
            replica,
            replace_after: Duration::from_secs(3600),
            scrub_every: Duration::from_secs(3600),
        };
        let standing = Standing { identity: identity.clone(), door, lost: BTreeSet::new() };
        let cluster = Cluster::open(cluster_options, standing, log.clone(), store.clone()).await.unwrap();
        identity.set_founded().unwrap();
        Node { name, cluster, address, join, options, disk, folder, log, store, stop }
    }

    /// Stops without handing anything over.
    pub(super) async fn close(self) -> Stopped {
        let Node { name, cluster, address, join, options, disk, folder, log, store, stop } = self;
        stop.cancel();
        cluster.close().await;
        drop(cluster);
        store.persist().unwrap();
        drop(store);
        log.shutdown().await.unwrap();
        Stopped { name, address, join, options, disk, folder }
    }
}

/// A node that is down, with all it has.
pub(super) struct Stopped {
    name: String,
    address: String,
    join: Vec<String>,
    options: annal_wal::Options,
    disk: MemoryDisk,
    folder: Arc<tempfile::TempDir>,
}

impl Stopped {
    pub(super) async fn start(self) -> Node {
        let deadline = soon();
        let listener = loop {
            match socket::listen(&self.address).await {
                Ok(listener) => break listener,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            sleep(Duration::from_millis(20)).await;
        };
        let Stopped { name, join, options, disk, folder, .. } = self;
        Node::start(name, listener, join, options, disk, folder).await
    }
}
