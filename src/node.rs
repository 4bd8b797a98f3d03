//! A node: opens every floor in order and closes them in reverse.
//!
//! Order: both listeners (HTTP answers from the first moment that the node is alive and starting); the data
//! folder with the log (it locks its folder, so a second node on the same data stops here), the store and
//! `node.json`; the peers' door, through which a node without data finds its cluster; the cluster (catalog, then
//! shards). A failure of the log stops the whole process: what it could not write, nobody may be told of. So does one of
//! the store, which would take no more writes before it was opened anew.

mod folder;
mod machine;

pub use machine::Machine;

use crate::{
    api,
    cluster::{
        Cluster, ClusterError, ClusterOptions,
        found::{self, Door, FoundError, Newcomer, Standing},
    },
    config::{Config, ConfigError},
    identity::Incarnation,
    model::ReplicaId,
    net::{self, Credentials, Peers, http::Http},
    region::{self, RegionOptions, Regions},
    replica::{CheckpointLimits, Pace, ReplicaOptions},
    shard::ShardOptions,
    store::{Store, StoreError, StoreOptions},
    world,
};
use folder::Folder;
use std::{future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// How often a replica reads all it has to see whether it still adds up.
const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long handing leadership over may hold a stop back.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// A node that listens, and nothing more yet.
pub struct Node {
    http: TcpListener,
    peer: net::socket::Listener,
    config: Config,
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
    /// The data folder holds a log, but nothing says whose it is.
    #[error("{0} is missing beside a log that holds data: whose it is cannot be told")]
    Ownerless(PathBuf),
    /// The log is damaged or gone and there is nobody to be made whole by.
    #[error("log: {0}; this node knows no peers that could make it whole")]
    Damaged(String),
    /// The log cannot be opened or has failed.
    #[error("log: {0}")]
    Log(#[from] annal_wal::Error),
    /// The store cannot be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// There is no cluster for this node.
    #[error(transparent)]
    Found(#[from] FoundError),
    /// A catalog or shard cannot be opened.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The log failed while the node ran.
    #[error("the log failed and the node stops: {0}")]
    Poisoned(Arc<str>),
    /// The store failed while the node ran.
    #[error(
        "the store failed and the node stops, since it takes no more writes; the log has what it lacks: {0}"
    )]
    StorePoisoned(Arc<str>),
    /// The log went back behind what this node had acknowledged of the catalog.
    #[error(
        "the log lacks entries that this node has acknowledged; its next start takes it in anew from its peers"
    )]
    Forgot,
    /// The HTTP service failed.
    #[error("http: {0}")]
    Http(io::Error),
    /// A task of the start stopped half-way.
    #[error("a bug: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A node that is up: what is closed again, in reverse.
pub struct Up {
    log: annal_wal::Log,
    store: Store,
    cluster: Cluster,
}

impl Node {
    /// Checks the settings and listens.
    pub async fn open(config: Config) -> Result<Node, NodeError> {
        config.check()?;
        let taken = |addr| move |source| NodeError::Listen { addr, source };
        let http = TcpListener::bind(config.http).await.map_err(taken(config.http))?;
        let peer = net::socket::listen(&config.peer.to_string()).await.map_err(taken(config.peer))?;
        Ok(Node { http, peer, config })
    }

    /// Where the HTTP service listens.
    pub fn http(&self) -> SocketAddr {
        self.http.local_addr().unwrap_or(self.config.http)
    }

    /// Where this node listens for its peers.
    pub fn peer(&self) -> SocketAddr {
        self.peer.local_addr().unwrap_or(self.config.peer)
    }

    /// Starts, and serves until `stop` resolves (then hands over, drains and closes in order) or the log fails.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), NodeError> {
        let stopping = CancellationToken::new();
        let told = stopping.clone();
        // Also while the node is starting.
        let listening = world::spawn(async move {
            stop.await;
            told.cancel();
        });
        let front = api::Front::starting(api_options(&self.config));
        let http_stop = CancellationToken::new();
        let me = Addresses {
            http: advertised(&self.config.node.http_advertise, self.http()),
            peer: advertised(&self.config.node.peer_advertise, self.peer()),
        };
        let at_http = me.http.clone();
        let Node { http, peer, config } = self;
        let mut serving = world::spawn(api::serve(http, front.clone(), http_stop.clone().cancelled_owned()));
        let peer_stop = CancellationToken::new();
        let ran = async {
            let ground = Ground::Real { listener: peer, peer_stop: peer_stop.clone() };
            let Some(up) = start(&config, me, ground, &stopping).await? else { return Ok(()) };
            let link = region::HttpLink::new(Http::default(), config.regions.api_key.clone());
            let regions =
                Regions::start(up.cluster.clone(), Arc::new(link), region_options(&config, &at_http));
            front.open(up.cluster.clone(), regions).map_err(NodeError::Http)?;
            up.serve(&stopping, &mut serving).await?;
            // What is asked from now on finds other leaders; then nothing new is accepted.
            if timeout(DRAIN_WITHIN, up.cluster.drain()).await.is_err() {
                tracing::warn!(within = ?DRAIN_WITHIN, "leadership could not be handed over in time");
            }
            http_stop.cancel();
            (&mut serving).await?.map_err(NodeError::Http)?;
            up.close().await
        };
        let ran = ran.await;
        http_stop.cancel();
        peer_stop.cancel();
        listening.abort();
        ran
    }
}

/// Where others dial this node.
struct Addresses {
    http: String,
    peer: String,
}

/// What a node stands on.
enum Ground {
    /// Its data folder and a socket.
    Real { listener: net::socket::Listener, peer_stop: CancellationToken },
    /// A simulated machine; what is left of the data folder holds `node.json` and nothing else of worth.
    Simulated(Machine),
}

/// Opens every floor. None: asked to stop before.
async fn start(
    config: &Config,
    at: Addresses,
    ground: Ground,
    stopping: &CancellationToken,
) -> Result<Option<Up>, NodeError> {
    let machine = match &ground {
        Ground::Real { .. } => None,
        Ground::Simulated(machine) => Some(machine.clone()),
    };
    let folder = Folder::new(&config.data_dir, machine.clone())?;
    let opening = folder.clone();
    let (log_options, own) = (log_options(config), at.peer.clone());
    let store_options =
        StoreOptions { cache_bytes: config.store.cache_bytes, memtable_bytes: config.store.memtable_bytes };
    let opened = world::blocking(move || opening.open(log_options, store_options, &own)).await??;
    let folder::Opened { known, log, store, lost } = opened;
    // The node keeps the name it has in its cluster: the others know it by that.
    let named = known.as_ref().map(|file| file.get());
    let me = Newcomer {
        node: named.as_ref().map_or_else(|| config.node.name.clone(), |known| known.node.clone()),
        incarnation: named.map_or_else(Incarnation::fresh, |known| known.incarnation),
        region: config.node.region.clone(),
        zone: config.node.zone.clone(),
        http: at.http,
        peer: at.peer,
    };
    let credentials = Credentials { node: me.node.clone(), secret: config.cluster.secret.clone() };
    let peers = match &ground {
        Ground::Real { .. } => Peers::new(credentials),
        Ground::Simulated(machine) => Peers::over(credentials, machine.carrier.clone()),
    };
    let door = Door::new(me, peers.clone());
    match ground {
        Ground::Real { listener, peer_stop } => {
            world::spawn(net::serve(listener, peers, Arc::new(door.clone()), peer_stop));
        }
        Ground::Simulated(machine) => machine.carrier.serve(peers, Arc::new(door.clone())),
    }
    let path = folder.identity();
    let settled = tokio::select! {
        settled = found::settle(&door, known, &path, &config.cluster.join) => settled?,
        () = stopping.cancelled() => {
            log.shutdown().await?;
            return Ok(None);
        }
    };
    let standing = Standing { identity: settled, door, lost };
    let options = cluster_options(config, &standing, machine.as_ref());
    let identity = standing.identity.clone();
    let opening = Cluster::open(options, standing, log.clone(), store.clone());
    let cluster = tokio::select! {
        opened = opening => opened?,
        () = stopping.cancelled() => {
            log.shutdown().await?;
            return Ok(None);
        }
    };
    identity.set_founded().map_err(|source| NodeError::File { path, source })?;
    Ok(Some(Up { log, store, cluster }))
}

impl Up {
    /// Starts a node without HTTP on a simulated machine.
    ///
    /// Errors: as [`Node::run`].
    pub async fn start(config: &Config, machine: Machine, peer: &str) -> Result<Up, NodeError> {
        let at = Addresses { http: peer.to_owned(), peer: peer.to_owned() };
        let never = CancellationToken::new();
        let up = start(config, at, Ground::Simulated(machine), &never).await?;
        Ok(up.expect("nobody asked it to stop"))
    }

    /// The way into the database.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The log.
    pub fn log(&self) -> &annal_wal::Log {
        &self.log
    }

    /// Until asked to stop. Errors: the log, the store or the HTTP service failed, or the log forgot.
    async fn serve(
        &self,
        stopping: &CancellationToken,
        serving: &mut JoinHandle<io::Result<()>>,
    ) -> Result<(), NodeError> {
        let poisoned = |mut failure: watch::Receiver<Option<Arc<str>>>| async move {
            match failure.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_else(|| "unknown".into()),
                // It was closed in order.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stopping.cancelled() => Ok(()),
            served = serving => Err(NodeError::Http(match served? {
                Ok(()) => io::Error::other("it ended by itself"),
                Err(error) => error,
            })),
            why = poisoned(self.log.failure()) => Err(NodeError::Poisoned(why)),
            why = poisoned(self.store.failure()) => Err(NodeError::StorePoisoned(why)),
            () = self.cluster.forgot() => Err(NodeError::Forgot),
        }
    }

    /// Closes every floor in order.
    ///
    /// Errors: what was not made durable; the log has it.
    pub async fn close(self) -> Result<(), NodeError> {
        let Up { log, store, cluster } = self;
        cluster.close().await;
        drop(cluster);
        store.persist()?;
        log.shutdown().await?;
        Ok(())
    }
}

/// Where others dial: what the settings say, else where it listens; for a listener on every address, the host's
/// name.
fn advertised(said: &Option<String>, listens: SocketAddr) -> String {
    match said {
        Some(said) => said.clone(),
        None if listens.ip().is_unspecified() => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            format!("{host}:{}", listens.port())
        }
        None => listens.to_string(),
    }
}

fn log_options(config: &Config) -> annal_wal::Options {
    annal_wal::Options {
        segment_bytes: config.log.segment_bytes,
        retention_bytes: config.log.retention_bytes,
        // Beyond what it is to stay within anyway, or nothing would be kept for who reads on.
        history_bytes_max: config.log.retention_bytes.saturating_mul(2),
        free_bytes_min: config.log.free_bytes_min,
        hot_bytes_max: config.log.memory_bytes,
        ..annal_wal::Options::default()
    }
}

fn cluster_options(config: &Config, standing: &Standing, machine: Option<&Machine>) -> ClusterOptions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let me = standing.door.me();
    ClusterOptions {
        region: me.region.clone(),
        zone: me.zone.clone(),
        http: me.http.clone(),
        peer: me.peer.clone(),
        search_threads: if config.search.threads == 0 { cores } else { config.search.threads },
        recall_sample: config.search.recall_sample,
        index_dir: config.data_dir.join("index"),
        shard: ShardOptions {
            seal_bytes: config.index.seal_bytes,
            segment_bytes_max: config.index.segment_bytes_max,
            ..ShardOptions::default()
        },
        replica: ReplicaOptions {
            heartbeat_ms: config.cluster.heartbeat_ms,
            election_ms: config.cluster.election_ms_min..config.cluster.election_ms_max,
            checkpoint: machine.map_or_else(CheckpointLimits::default, |machine| machine.checkpoint),
            incoming: config.data_dir.join(if machine.is_none() { "store" } else { "" }),
            snapshot_pace: Pace::new(config.cluster.snapshot_bytes_per_second),
            ..ReplicaOptions::new(ReplicaId(0))
        },
        replace_after: Duration::from_millis(config.cluster.replace_after_ms),
        scrub_every: machine.map_or(SCRUB_EVERY, |machine| machine.scrub_every),
    }
}

/// `http`: where others dial this node.
fn region_options(config: &Config, http: &str) -> RegionOptions {
    let own = || format!("http://{http}");
    RegionOptions {
        url: config.regions.url.clone().unwrap_or_else(own),
        pulse: Duration::from_millis(config.regions.pulse_ms),
        ask_within: Duration::from_millis(config.regions.ask_ms),
        accept_unheard: config.regions.accept_unheard,
        home_lease: Some(config.regions.home_lease_ms).filter(|ms| *ms > 0).map(Duration::from_millis),
        lost_dir: config.data_dir.join("lost"),
    }
}

fn api_options(config: &Config) -> api::ApiOptions {
    api::ApiOptions {
        keys: api::Keys {
            full: config.auth.api_key.clone(),
            read_only: config.auth.read_only_api_key.clone(),
        },
        body_bytes_max: config.limits.request_bytes_max,
        timeout_default: Duration::from_millis(config.limits.timeout_ms),
        in_flight_max: config.limits.requests_max,
        forward: config.regions.forward,
        region_key: config.regions.api_key.clone(),
        ..api::ApiOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_more_for_who_reads_on_than_it_does_anyway() {
        let config = Config::default();
        let options = log_options(&config);
        assert!(options.history_bytes_max >= options.retention_bytes + 16 * options.segment_bytes);
    }

    #[test]
    fn others_are_told_an_address_they_can_dial() {
        let listens = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(advertised(&None, listens("127.0.0.1:7001")), "127.0.0.1:7001");
        assert_eq!(advertised(&Some("db:1".into()), listens("127.0.0.1:7001")), "db:1");
        let host = advertised(&None, listens("0.0.0.0:7001"));
        assert!(host.ends_with(":7001") && !host.starts_with("0.0.0.0"), "{host}");
    }
}
