//! The machines of a simulation, and the lives of the nodes on them.
//!
//! Invariants: a node's disks outlive it, its tasks do not; a node whose log failed stops like a process that exits;
//! what a power cut takes is what its disks say.
//! Not here: when any of it happens (`faults`).

use crate::{
    network::{Net, address},
    trace::Trace,
    ways::{Door, Ways, url_of},
};
use annal::{
    cluster::Cluster,
    config::{self, Config},
    node::{Machine, Up},
    region::{RegionOptions, Regions},
    replica::CheckpointLimits,
    store::MemoryStore,
    world::Life,
};
use annal_wal::MemoryDisk;
use rand::{Rng, rngs::StdRng};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// What all nodes of a run have in common.
pub(crate) struct Site {
    pub(crate) net: Arc<Net>,
    pub(crate) trace: Arc<Trace>,
    pub(crate) folder: PathBuf,
    pub(crate) names: Vec<String>,
    pub(crate) checkpoint: CheckpointLimits,
    pub(crate) segment_bytes: u64,
    /// Segments of the log that are kept, if nobody needs more.
    pub(crate) segments: u64,
    pub(crate) replace_after: Duration,
    /// None: there are no others.
    pub(crate) region: Option<OfRegion>,
}

/// Which region nodes are, among others.
pub(crate) struct OfRegion {
    pub(crate) name: String,
    pub(crate) ways: Arc<Ways>,
    /// How long a home goes on that hears nothing of the others.
    pub(crate) home_lease: Option<Duration>,
}

/// One machine, and the node on it.
pub(crate) struct Host {
    pub(crate) name: String,
    site: Arc<Site>,
    pub(crate) log: MemoryDisk,
    pub(crate) store: MemoryStore,
    alive: Option<Alive>,
    /// The process's own view of itself, for clients.
    seen: watch::Sender<Option<(Life, Cluster)>>,
}

struct Alive {
    life: Life,
    /// Why the process ended by itself.
    ended: oneshot::Receiver<String>,
    stop: Option<oneshot::Sender<()>>,
}

/// A disk holds so much.
const DISK_BYTES: u64 = 1 << 30;

impl Host {
    pub(crate) fn new(name: &str, site: Arc<Site>) -> Host {
        let (log, store) = (MemoryDisk::new(DISK_BYTES), MemoryStore::new());
        Host { name: name.to_owned(), site, log, store, alive: None, seen: watch::Sender::new(None) }
    }

    /// The way into the node, whenever it is up.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<(Life, Cluster)>> {
        self.seen.subscribe()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.alive.is_some()
    }

    fn dir(&self) -> PathBuf {
        self.site.folder.join(&self.name)
    }

    /// Where it keeps what another home has not.
    pub(crate) fn lost_dir(&self) -> PathBuf {
        self.dir().join("lost")
    }

    fn config(&self) -> Config {
        let cluster = config::Cluster {
            join: self.site.names.iter().map(|name| address(name)).collect(),
            replace_after_ms: self.site.replace_after.as_millis() as u64,
            ..config::Cluster::default()
        };
        let mut node = config::Node { name: self.name.clone(), ..config::Node::default() };
        if let Some(region) = &self.site.region {
            node.region.clone_from(&region.name);
        }
        Config {
            data_dir: self.dir(),
            node,
            cluster,
            log: config::Log {
                segment_bytes: self.site.segment_bytes,
                retention_bytes: self.site.segments * self.site.segment_bytes,
                free_bytes_min: 4 * self.site.segment_bytes,
                ..config::Log::default()
            },
            index: config::Index { seal_bytes: usize::MAX, ..config::Index::default() },
            // A sample would take from the chance of a seed, and a shard without graphs has nothing to be sampled.
            search: config::Search { threads: 1, recall_sample: 0.0 },
            ..Config::default()
        }
    }

    /// Starts the process.
    pub(crate) fn start(&mut self) {
        assert!(self.alive.is_none(), "{} runs", self.name);
        self.site.trace.line(format_args!("start {}", self.name));
        let life = Life::new();
        let machine = Machine {
            log: self.log.clone(),
            store: self.store.clone(),
            carrier: self.site.net.wire(&self.name, life.clone()),
            checkpoint: self.site.checkpoint,
            scrub_every: Duration::from_secs(15),
        };
        let (config, at, seen) = (self.config(), address(&self.name), self.seen.clone());
        let (site, name, lost) = (self.site.clone(), self.name.clone(), self.lost_dir());
        let (tell, ended) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let within = life.clone();
        life.spawn(async move {
            let why = match Up::start(&config, machine, &at).await {
                Ok(up) => {
                    if let Some(OfRegion { name: region, ways, home_lease }) = &site.region {
                        let options = RegionOptions {
                            url: url_of(region),
                            pulse: Duration::from_millis(200),
                            ask_within: Duration::from_secs(2),
                            accept_unheard: true,
                            home_lease: *home_lease,
                            lost_dir: lost,
                        };
                        let regions = Regions::start(up.cluster().clone(), ways.link(region), options);
                        ways.open(region, &name, Door { life: within.clone(), regions });
                    }
                    seen.send_replace(Some((within, up.cluster().clone())));
                    let mut failure = up.log().failure();
                    let failed = async move { drop(failure.wait_for(Option::is_some).await) };
                    let why = tokio::select! {
                        () = failed => Some("the log failed"),
                        () = up.cluster().forgot() => Some("the log lacks what was acknowledged"),
                        Ok(()) = stopped => None,
                    };
                    match why {
                        Some(why) => why.to_owned(),
                        None => {
                            seen.send_replace(None);
                            // As the process does: leadership that finds nobody holds nothing back for long.
                            let _ = timeout(Duration::from_secs(5), up.cluster().drain()).await;
                            match up.close().await {
                                Ok(()) => "stopped".to_owned(),
                                Err(error) => format!("closing: {error}"),
                            }
                        }
                    }
                }
                Err(error) => format!("starting: {error}"),
            };
            let _ = tell.send(why);
            std::future::pending::<()>().await;
        });
        self.alive = Some(Alive { life, ended, stop: Some(stop) });
    }

    /// Why the process ended by itself, if it did.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.alive.as_mut()?.ended.try_recv().ok()
    }

    /// Asks the process to stop in order.
    pub(crate) fn ask_to_stop(&mut self) {
        if let Some(stop) = self.alive.as_mut().and_then(|alive| alive.stop.take()) {
            let _ = stop.send(());
        }
    }

    /// The process is gone, between any two of its steps.
    async fn end(&mut self) {
        self.site.net.hang_up(&self.name);
        self.seen.send_replace(None);
        if let Some(alive) = self.alive.take() {
            alive.life.end().await;
        }
    }

    /// `kill -9`: the disks keep all they were given.
    pub(crate) async fn kill(&mut self) {
        self.end().await;
        self.log.restart_process();
        self.store.restart_process();
    }

    /// The power fails: the disks keep what was synced, and of the store a chance of the rest.
    pub(crate) async fn cut_power(&mut self, rng: &mut StdRng) {
        self.end().await;
        self.log.crash();
        self.store.crash(|unsynced| rng.random_range(0..=unsynced));
    }

    /// The disks are replaced by empty ones.
    pub(crate) async fn wipe(&mut self) {
        self.end().await;
        self.log.wipe();
        self.store.wipe();
        // What is left of the folder is the node's name card.
        let removed = std::fs::remove_dir_all(self.dir());
        assert!(removed.is_ok() || !self.dir().exists(), "{removed:?}");
    }
}
