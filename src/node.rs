//! A node: opens every floor in order and closes them in reverse.
//!
//! Order: the data folder and `node.json`; the log (it locks its folder, so a second node on the same data
//! stops here); the store; the cluster (catalog, then shards); the HTTP service. A failure of the log stops the
//! whole process: what it could not write, nobody may be told of.

use crate::{
    api,
    cluster::{Cluster, ClusterError, ClusterOptions},
    config::{Config, ConfigError},
    shard::ShardOptions,
    store::{Store, StoreError, StoreOptions},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::TcpListener;

/// A node that listens but may not be ready yet.
pub struct Node {
    listener: TcpListener,
    config: Config,
    log: annal_wal::Log,
    store: Store,
    cluster: Cluster,
}

/// Why a node could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The settings do not make a node.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file of the data folder.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address is taken or not ours.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be opened or has failed.
    #[error("log: {0}")]
    Log(#[from] annal_wal::Error),
    /// The store cannot be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// A catalog or shard cannot be opened.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The log failed while the node ran.
    #[error("the log failed and the node stops: {0}")]
    Poisoned(Arc<str>),
    /// The HTTP service failed.
    #[error("http: {0}")]
    Http(io::Error),
}

/// `node.json`: who the owner of a data folder is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    /// Version of this file's form.
    format: u32,
    cluster_id: String,
    node: String,
}

impl Node {
    /// Opens everything a node has. Blocks the calling task while files are read.
    pub async fn open(config: Config) -> Result<Node, NodeError> {
        config.check()?;
        let dir = &config.data_dir;
        create_dir(dir)?;
        let listener = TcpListener::bind(config.http)
            .await
            .map_err(|source| NodeError::Listen { addr: config.http, source })?;
        let (log, _) = annal_wal::Log::open(&dir.join("wal"), log_options(&config))?;
        let identity = Identity::read_or_found(&dir.join("node.json"), &config.node.name)?;
        let store = Store::open(&dir.join("store"), StoreOptions { cache_bytes: config.store.cache_bytes })?;
        let cluster =
            Cluster::open(cluster_options(&config, identity, &listener), log.clone(), store.clone()).await?;
        Ok(Node { listener, config, log, store, cluster })
    }

    /// Where the HTTP service listens.
    pub fn http(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.config.http)
    }

    /// Serves until `stop` resolves (then drains and closes in order) or the log fails.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), NodeError> {
        let Node { listener, config, log, store, cluster } = self;
        let mut failure = log.failure();
        let poisoned = async move {
            match failure.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_else(|| "unknown".into()),
                // The log was closed in order.
                Err(_) => std::future::pending().await,
            }
        };
        let serve = api::serve(listener, cluster.clone(), api_options(&config), stop);
        tokio::select! {
            served = serve => served.map_err(NodeError::Http)?,
            why = poisoned => return Err(NodeError::Poisoned(why)),
        }
        cluster.close().await;
        drop(cluster);
        store.persist()?;
        log.shutdown().await?;
        Ok(())
    }
}

fn log_options(config: &Config) -> annal_wal::Options {
    annal_wal::Options {
        segment_bytes: config.log.segment_bytes,
        retention_bytes: config.log.retention_bytes,
        free_bytes_min: config.log.free_bytes_min,
        ..annal_wal::Options::default()
    }
}

fn cluster_options(config: &Config, identity: Identity, listener: &TcpListener) -> ClusterOptions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ClusterOptions {
        cluster_id: identity.cluster_id,
        node: identity.node,
        incarnation: "1".to_owned(),
        region: config.node.region.clone(),
        zone: config.node.zone.clone(),
        http: listener.local_addr().unwrap_or(config.http).to_string(),
        peer: config.peer.to_string(),
        search_threads: if config.search.threads == 0 { cores } else { config.search.threads },
        index_dir: config.data_dir.join("index"),
        shard: ShardOptions { seal_bytes: config.index.seal_bytes, ..ShardOptions::default() },
    }
}

fn api_options(config: &Config) -> api::ApiOptions {
    api::ApiOptions {
        keys: api::Keys {
            full: config.auth.api_key.clone(),
            read_only: config.auth.read_only_api_key.clone(),
        },
        body_bytes_max: config.limits.request_bytes_max,
        timeout_default: std::time::Duration::from_millis(config.limits.timeout_ms),
        in_flight_max: config.limits.requests_max,
        ..api::ApiOptions::default()
    }
}

fn create_dir(dir: &Path) -> Result<(), NodeError> {
    fs::create_dir_all(dir).map_err(|source| NodeError::File { path: dir.to_owned(), source })
}

impl Identity {
    /// Reads the file, or founds a cluster of one node if there is none.
    ///
    /// The node keeps the name it was founded under: other nodes will know it by that.
    fn read_or_found(path: &Path, name: &str) -> Result<Identity, NodeError> {
        let wrong = |source: io::Error| NodeError::File { path: path.to_owned(), source };
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| wrong(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let cluster_id = uuid::Uuid::new_v4().to_string();
                let identity = Identity { format: 1, cluster_id, node: name.to_owned() };
                identity.write(path).map_err(wrong)?;
                Ok(identity)
            }
            Err(e) => Err(wrong(e)),
        }
    }

    /// Writes the file whole or not at all.
    fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}
