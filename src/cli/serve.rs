//! `annal serve`: runs a node until SIGTERM or SIGINT, then drains and exits 0.

use super::Done;
use annal::{config::Config, node::Node};
use clap::Args;
use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Runs a node.
///
/// Examples:
///   annal serve
///   annal serve --data-dir /var/lib/annal --http 127.0.0.1:7333
///   annal serve --node db1 --peer 10.0.0.1:6335 --join 10.0.0.1:6335,10.0.0.2:6335,10.0.0.3:6335
///   ANNAL__LOG__RETENTION_BYTES=10000000000 annal serve --config annal.yaml
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Serve {
    /// Settings in YAML; every key also as ANNAL__SECTION__KEY.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of everything the node keeps [default: ./annal-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the HTTP service listens [default: 127.0.0.1:6333].
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Where gRPC listens, or `off`; not built yet: nothing listens there.
    #[arg(long, value_name = "ADDR")]
    grpc: Option<String>,
    /// Where this node listens for its peers [default: 127.0.0.1:6335].
    #[arg(long, value_name = "ADDR")]
    peer: Option<SocketAddr>,
    /// This node's name [default: the host's name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Its region.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Its zone.
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Where to find a cluster, if this node has no data; may name the node itself. The first named may found
    /// one. Without it the node founds a cluster of its own.
    #[arg(long, value_name = "PEER_ADDR", value_delimiter = ',')]
    join: Vec<String>,
}

impl Serve {
    pub(super) fn run(self) -> Done {
        tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_env("ANNAL_LOG")
                    .unwrap_or_else(|_| "info,openraft=warn,fjall=warn,lsm_tree=warn".into()),
            )
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init();
        let config = self.over(Config::read(self.config.as_deref())?);
        give_memory_back()?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        if config.node.threads > 0 {
            runtime.worker_threads(config.node.threads);
        }
        let runtime = runtime.enable_all().build()?;
        runtime.block_on(async {
            // Listened for before the node opens: a signal during a long start is not lost.
            let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let stop = async move {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                tracing::info!("stopping");
            };
            let node = Node::open(config).await?;
            println!("listening http={} peer={}", node.http(), node.peer());
            io::stdout().flush()?;
            node.run(stop).await?;
            Ok(())
        })
    }

    /// The command line over the other settings.
    fn over(&self, mut config: Config) -> Config {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        set(&mut config.data_dir, &self.data_dir);
        set(&mut config.http, &self.http);
        set(&mut config.grpc, &self.grpc);
        set(&mut config.peer, &self.peer);
        set(&mut config.node.name, &self.node);
        set(&mut config.node.region, &self.region);
        set(&mut config.node.zone, &self.zone);
        if !self.join.is_empty() {
            config.cluster.join.clone_from(&self.join);
        }
        config
    }
}

/// How often memory is given back.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(2);

/// Sees to it that memory which the allocator keeps for later goes back to the system: by itself it looks at that only
/// when other memory is freed, so a node at rest would keep what a load took (`docs/BENCHMARKS.md`).
fn give_memory_back() -> io::Result<()> {
    let keeper = || loop {
        thread::sleep(GIVE_BACK_EVERY);
        #[expect(unsafe_code, reason = "a call of the allocator's own, which no safe crate has")]
        // SAFETY: it may be called at any time, from any thread; no memory that is in use is touched.
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    };
    thread::Builder::new().name("memory".to_owned()).spawn(keeper).map(drop)
}
