//! A cluster under test: real `annal serve` processes, each with a data folder, a log file and maybe a disk of its
//! own.
//!
//! ```text
//! --net proxy   http and peer on loopback; peers dial the proxy of a node, which the node advertises
//! --net netns   10.77.S.i in a namespace of its own; all frames pass our switch
//! ```
//!
//! There may be two regions, each a cluster for itself; then what stands here is both of them.
//!
//! Invariants: every process is ended by its own pid when the cluster is dropped, what was mounted is unmounted and
//! what was made is taken away; addresses of a node stay the same for the whole run.
//! Not here: what is broken when (see `nemesis`).

mod process;
mod region;
mod status;

pub use process::Node;
pub use region::{Region, Settled};
pub use status::{ReplicaStatus, ShardStatus, Status};

use crate::{
    client::Client,
    disk::Disk,
    net::{
        Links, Rule,
        netns::Netns,
        proxy::{self, Dialler},
    },
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// What lies between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetKind {
    /// TCP proxies on loopback; for everyone.
    Proxy,
    /// Network namespaces and a packet switch; wants root.
    Netns,
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's binary.
    pub binary: PathBuf,
    /// How many regions: one, or up to as many as there are letters for.
    pub regions: usize,
    /// How many nodes each region has.
    pub nodes: usize,
    /// What lies between nodes.
    pub net: NetKind,
    /// How long the way from one region to another takes.
    pub way: Duration,
    /// Whether each has a disk of its own.
    pub disks: bool,
    /// libfaketime, if clocks are to be moved.
    pub faketime: Option<PathBuf>,
    /// A planted bug, by name.
    pub mutant: Option<String>,
    /// Where logs and data of nodes lie.
    pub out: PathBuf,
}

/// Some nodes, by number from 0; node `i` is called `n{i+1}`, or by its region (`a1`, `b1`) if there are several.
pub struct Cluster {
    /// The nodes, one region after the other.
    pub nodes: Vec<Node>,
    /// The regions; one unless more were asked for.
    pub regions: Vec<Region>,
    /// What lies between them.
    pub links: Links,
    /// What clients say to be let in.
    pub api_key: Option<String>,
    pids: proxy::Pids,
    out: PathBuf,
    netns: Option<Netns>,
}

/// How long a cluster may take to start.
const START: Duration = Duration::from_secs(60);

/// Where nodes listen that have a namespace of their own.
const HTTP: u16 = 6333;
const PEER: u16 = 6335;

/// What nodes outside loopback want to hear.
const SECRET: &str = "sesame";

impl Cluster {
    /// Starts all nodes over empty folders and waits until they are ready.
    ///
    /// Errors: something that was asked for is not to be had here, or a node did not start.
    pub fn start(options: &Options) -> Result<Self, String> {
        let count = options.regions * options.nodes;
        let fronts = if options.regions > 1 { options.regions } else { 0 };
        let links = Links::new(count + fronts);
        let pids: proxy::Pids = Arc::new(Mutex::new(vec![None; count]));
        let netns = match options.net {
            NetKind::Proxy => None,
            NetKind::Netns => Some(Netns::new(count + fronts, links.clone())?),
        };
        let mut cluster = Cluster {
            nodes: Vec::new(),
            regions: Vec::new(),
            links,
            api_key: netns.is_some().then(|| SECRET.to_owned()),
            pids,
            out: options.out.clone(),
            netns,
        };
        let mut ports = free_ports(3 * count + fronts).into_iter();
        let mut port = || ports.next().expect("three a node, and one a front");
        for r in 0..options.regions {
            let region = cluster.region(options, r, &mut port);
            cluster.regions.push(region);
        }
        for i in 0..count {
            let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
            let at = match &cluster.netns {
                None => {
                    Addresses { http: loopback(port()), peer: loopback(port()), dialled: loopback(port()) }
                }
                Some(netns) => {
                    let at = |port| SocketAddr::from((netns.address(i), port));
                    Addresses { http: at(HTTP), peer: at(PEER), dialled: at(PEER) }
                }
            };
            if cluster.netns.is_none() {
                let dialler = Dialler::Node(cluster.pids.clone());
                let started = proxy::start(cluster.links.clone(), dialler, i, at.dialled, vec![at.peer]);
                started.map_err(|e| format!("proxy at {}: {e}", at.dialled))?;
            }
            let node = cluster.new_node(options, i, at)?;
            cluster.nodes.push(node);
        }
        for region in cluster.regions.clone() {
            let nodes = &mut cluster.nodes[region.nodes];
            let join = nodes.iter().map(|node| node.dialled.to_string()).collect::<Vec<_>>().join(",");
            nodes.iter_mut().for_each(|node| node.arguments.extend(["--join".to_owned(), join.clone()]));
        }
        cluster.join_regions(options.way)?;
        (0..count).try_for_each(|i| cluster.restart(i))?;
        cluster.wait_ready(START)?;
        Ok(cluster)
    }

    fn region(&self, options: &Options, r: usize, port: &mut impl FnMut() -> u16) -> Region {
        let several = options.regions > 1;
        let front = options.regions * options.nodes + r;
        let url = several.then(|| match &self.netns {
            None => format!("http://127.0.0.1:{}", port()),
            Some(netns) => format!("http://{}:{HTTP}", netns.address(front)),
        });
        let name = if several { char::from(b'a' + r as u8).to_string() } else { String::new() };
        Region { name, nodes: r * options.nodes..(r + 1) * options.nodes, url, front }
    }

    /// Makes the ways between regions as long as they are, and starts the fronts.
    fn join_regions(&self, way: Duration) -> Result<(), String> {
        for region in &self.regions {
            let others = self.regions.iter().filter(|other| other.front != region.front);
            for (from, to) in
                others.flat_map(|other| region.ends().flat_map(|f| other.ends().map(move |t| (f, t))))
            {
                self.links.stand(from, to, Rule { delay: way, ..Rule::default() });
            }
            let address = region.url.as_deref().and_then(|url| url.strip_prefix("http://"));
            let Some(listen) = address.and_then(|address| address.parse().ok()) else { continue };
            let targets = self.nodes[region.nodes.clone()].iter().map(|node| node.http).collect();
            let (links, front) = (self.links.clone(), region.front);
            let started = match &self.netns {
                None => proxy::start(links, Dialler::Node(self.pids.clone()), front, listen, targets),
                // What passes between the namespaces, the switch minds.
                Some(netns) => netns
                    .inside(front, move || proxy::start(links, Dialler::Anybody, front, listen, targets))?,
            };
            started.map_err(|e| format!("front at {listen}: {e}"))?;
        }
        Ok(())
    }

    fn new_node(&self, options: &Options, i: usize, at: Addresses) -> Result<Node, String> {
        let region = &self.regions[i / options.nodes];
        let name = match region.url {
            None => format!("n{}", i + 1),
            Some(_) => format!("{}{}", region.name, i - region.nodes.start + 1),
        };
        let folder = options.out.join("nodes");
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mount = folder.join(&name);
        let disk = match options.disks {
            true => Some(Disk::new(&folder.join(format!("{name}.img")), &mount)?),
            false => None,
        };
        let mut environment: BTreeMap<String, String> = SIZES.iter().map(own).collect();
        environment.insert("ANNAL__NODE__PEER_ADVERTISE".to_owned(), at.dialled.to_string());
        if self.netns.is_some() {
            environment.insert("ANNAL__CLUSTER__SECRET".to_owned(), SECRET.to_owned());
            environment.insert("ANNAL__AUTH__API_KEY".to_owned(), SECRET.to_owned());
            environment.insert("ANNAL__REGIONS__API_KEY".to_owned(), SECRET.to_owned());
        }
        if let Some(url) = &region.url {
            environment.insert("ANNAL__REGIONS__URL".to_owned(), url.clone());
        }
        if let Some(mutant) = &options.mutant {
            environment.insert("ANNAL_MUTANT".to_owned(), mutant.clone());
        }
        let clock = options.faketime.as_ref().map(|library| {
            let clock = folder.join(format!("{name}.clock"));
            environment.insert("LD_PRELOAD".to_owned(), library.display().to_string());
            environment.insert("FAKETIME_TIMESTAMP_FILE".to_owned(), clock.display().to_string());
            environment.extend(FAKETIME.iter().map(own));
            clock
        });
        if let Some(clock) = &clock {
            fs::write(clock, "+0").map_err(|e| format!("{}: {e}", clock.display()))?;
        }
        let text = |word: &str| word.to_owned();
        let mut command: Vec<String> = self.netns.iter().flat_map(|netns| netns.enter(i)).collect();
        command.push(options.binary.display().to_string());
        let data_dir = mount.join("data");
        let mut arguments = vec![
            text("serve"),
            text("--grpc"),
            text("off"),
            text("--node"),
            name.clone(),
            text("--data-dir"),
            data_dir.display().to_string(),
            text("--http"),
            at.http.to_string(),
            text("--peer"),
            at.peer.to_string(),
        ];
        if region.url.is_some() {
            arguments.extend([text("--region"), region.name.clone()]);
        }
        let log = self.out.join("nodes").join(format!("{name}.log"));
        let (http, dialled) = (at.http, at.dialled);
        Ok(Node {
            name,
            http,
            dialled,
            data_dir,
            log,
            clock,
            disk,
            command,
            arguments,
            environment,
            child: None,
        })
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Where clients reach the nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}", node.http)).collect()
    }

    /// A client that waits so long for answers.
    pub fn client(&self, within: Duration) -> Client {
        Client::new(self.api_key.as_deref(), within)
    }

    /// Kills a node at once.
    pub fn kill(&mut self, i: usize) -> Result<(), String> {
        self.nodes[i].kill()?;
        self.note_pid(i);
        Ok(())
    }

    /// Asks a node to stop and waits until it has; kills it if it does not.
    pub fn terminate(&mut self, i: usize, within: Duration) -> Result<(), String> {
        let ended = self.nodes[i].terminate(within);
        self.note_pid(i);
        ended
    }

    /// Starts a node over what it has, at the same addresses; nothing if it runs. Does not wait.
    pub fn restart(&mut self, i: usize) -> Result<(), String> {
        if !self.nodes[i].runs() {
            self.nodes[i].start()?;
        }
        self.note_pid(i);
        Ok(())
    }

    /// Starts every node that does not run, its disk mended first. What cannot be is left, and shows later.
    pub fn revive(&mut self) {
        for i in 0..self.len() {
            if self.nodes[i].runs() {
                continue;
            }
            if let Some(disk) = &mut self.nodes[i].disk {
                let _ = disk.mend();
            }
            let _ = self.restart(i);
        }
    }

    fn note_pid(&self, i: usize) {
        let mut pids = self.pids.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        pids[i] = self.nodes[i].pid();
    }

    /// Waits until every node that runs says that it is ready.
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        let client = self.client(Duration::from_secs(2));
        for i in 0..self.len() {
            let url = format!("http://{}/readyz", self.nodes[i].http);
            while !client.get(&url).is_ok_and(|reply| reply.status == 200) {
                let name = self.nodes[i].name.clone();
                if !self.nodes[i].runs() {
                    return Err(format!("{name} ended; see its log"));
                }
                if Instant::now() > deadline {
                    return Err(format!("{name} is not ready"));
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// What the nodes say on `/annal/v1/cluster`: of each shard the row that knows most, of one region after the other.
    pub fn status(&self) -> Status {
        let rows = (0..self.regions.len()).flat_map(|region| self.status_of(region).shards);
        Status { shards: rows.collect() }
    }

    /// Waits until every node is ready and every replica is in order and has applied what is committed.
    ///
    /// Errors: not in time; says what is missing.
    pub fn wait_whole(&mut self, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let missing = match self.wait_ready(left) {
                Err(why) => why,
                Ok(()) => match self.status().why_not_whole() {
                    None => return Ok(()),
                    Some(why) => why,
                },
            };
            if Instant::now() > deadline {
                return Err(missing);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Asks any node (of the first region) that answers well; none if none does within `within`.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>, within: Duration) -> Option<Value> {
        self.ask_in(0, (method, path, body), within)
    }

    /// Takes the nodes' data away; their logs stay.
    pub fn discard_data(&mut self) {
        for i in 0..self.len() {
            let _ = self.kill(i);
            let _ = fs::remove_dir_all(&self.nodes[i].data_dir);
            if let Some(disk) = &mut self.nodes[i].disk {
                disk.discard();
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
        }
        self.links.stop();
    }
}

/// Where a node listens, and where its peers dial it.
struct Addresses {
    http: SocketAddr,
    peer: SocketAddr,
    dialled: SocketAddr,
}

/// Small sizes, so that a short run seals segments, builds graphs, retires history and fills disks.
const SIZES: &[(&str, &str)] = &[
    ("ANNAL__LOG__SEGMENT_BYTES", "4194304"),
    ("ANNAL__LOG__RETENTION_BYTES", "33554432"),
    ("ANNAL__LOG__FREE_BYTES_MIN", "33554432"),
    ("ANNAL__LIMITS__REQUEST_BYTES_MAX", "2097152"),
    ("ANNAL__STORE__CACHE_BYTES", "33554432"),
    ("ANNAL__INDEX__SEAL_BYTES", "16384"),
];

/// The wall clock alone is moved, and looked up often.
const FAKETIME: &[(&str, &str)] =
    &[("FAKETIME_CACHE_DURATION", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("DONT_FAKE_MONOTONIC", "1")];

fn own((name, value): &(&str, &str)) -> (String, String) {
    ((*name).to_owned(), (*value).to_owned())
}

/// Ports that nobody listens on, below those the kernel gives to outgoing connections.
fn free_ports(count: usize) -> Vec<u16> {
    let first = 10_000 + std::process::id() % 1_000 * 20;
    let free = (first..32_000).filter_map(|port| u16::try_from(port).ok());
    free.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}
