//! A node's settings: defaults, then a YAML file, then `ANNAL__SECTION__KEY`, then the command line.
//!
//! An unknown key is refused by name. Sizes are in bytes and times in milliseconds, as the names say.

use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// All settings of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of everything the node keeps: `wal/ store/ index/ node.json`.
    pub data_dir: PathBuf,
    /// Where the HTTP service listens.
    pub http: SocketAddr,
    /// Where gRPC will listen (not built yet), or `off`.
    pub grpc: String,
    /// Where this node listens for its peers.
    pub peer: SocketAddr,
    /// Who this node is.
    pub node: Node,
    /// Who may ask.
    pub auth: Auth,
    /// How it finds its peers and lives with them.
    pub cluster: Cluster,
    /// How its cluster lives with other regions.
    pub regions: Regions,
    /// The log.
    pub log: Log,
    /// The store.
    pub store: Store,
    /// Vector indexes.
    pub index: Index,
    /// Searches.
    pub search: Search,
    /// What one client may ask for.
    pub limits: Limits,
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Its name everywhere; the host's name if not given.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its zone within the region.
    pub zone: String,
    /// Where peers dial it (`host:port`), if that is not where it listens.
    pub peer_advertise: Option<String>,
    /// Where clients dial it (`host:port`), if that is not where it listens.
    pub http_advertise: Option<String>,
    /// Threads that serve clients and peers; 0 for one a core. Nodes that share a machine do well with their share of its
    /// cores: threads without work wake each other.
    pub threads: usize,
}

/// How a node finds its peers and lives with them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// What all nodes of the cluster share; a peer without it is turned away.
    pub secret: Option<String>,
    /// Peer addresses to find a cluster at, if this node has no data; the first may found one.
    pub join: Vec<String>,
    /// How long a node may be gone before its replicas are made anew elsewhere.
    pub replace_after_ms: u64,
    /// How often a leader says that it lives.
    pub heartbeat_ms: u64,
    /// Without a leader's word for this long, at the least, others stand for election.
    pub election_ms_min: u64,
    /// The same, at the most.
    pub election_ms_max: u64,
    /// How fast this node sends snapshots, all of them together, and installs each: so that searches and writes hardly
    /// notice that a replica moves. 0: as fast as it goes.
    pub snapshot_bytes_per_second: u64,
}

/// How a cluster lives with other regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Regions {
    /// Where other regions reach this cluster (`http://host:port`), if that is not where this node listens.
    pub url: Option<String>,
    /// The key that other regions want.
    pub api_key: Option<String>,
    /// How often a home is asked where it stands.
    pub pulse_ms: u64,
    /// How long a home that starts asks the regions that follow it whether one has taken over, before it takes writes.
    pub ask_ms: u64,
    /// Whether it takes writes then although one could not be asked.
    pub accept_unheard: bool,
    /// A home that has heard from no majority of the regions that follow it for so long acknowledges no writes; 0: it goes
    /// on alone.
    pub home_lease_ms: u64,
    /// Whether what only a home elsewhere can answer is sent there; else it is refused.
    pub forward: bool,
}

/// Who may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// May do everything.
    pub api_key: Option<String>,
    /// May read.
    pub read_only_api_key: Option<String>,
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Size of one segment.
    pub segment_bytes: u64,
    /// History that is kept on this node, over all shards; up to twice as much while a reader has not come that far.
    pub retention_bytes: u64,
    /// Free space on the disk below which writes are turned away.
    pub free_bytes_min: u64,
    /// Memory for the newest entries, over all shards, so that they need not be read again.
    pub memory_bytes: usize,
}

/// The store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Memory for blocks that were read.
    pub cache_bytes: u64,
    /// Memory of one shard for what is not yet written to a table.
    pub memtable_bytes: u64,
}

/// Vector indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Index {
    /// Bytes of vectors that are scanned before a graph is built over them.
    pub seal_bytes: usize,
    /// Graphs that together hold more bytes of vectors are not made one.
    pub segment_bytes_max: usize,
}

/// Searches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Search {
    /// Threads that search; 0 for one a core.
    pub threads: usize,
    /// The part of approximate searches that are answered again, exactly, in the background, to know their recall, for no
    /// more than a hundredth of one core's time; 0 for none.
    pub recall_sample: f64,
}

/// What one client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request body.
    pub request_bytes_max: usize,
    /// Time a request gets if it names none.
    pub timeout_ms: u64,
    /// Requests served at once; more are turned away with 429.
    pub requests_max: usize,
}

/// More threads than any machine has a use for.
const THREADS_MAX: usize = 1_024;

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "annal-data".into(),
            http: SocketAddr::from(([127, 0, 0, 1], 6333)),
            grpc: "127.0.0.1:6334".to_owned(),
            peer: SocketAddr::from(([127, 0, 0, 1], 6335)),
            node: Node::default(),
            auth: Auth::default(),
            cluster: Cluster::default(),
            regions: Regions::default(),
            log: Log::default(),
            store: Store::default(),
            index: Index::default(),
            search: Search::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Node {
            name: host,
            region: "default".to_owned(),
            zone: "default".to_owned(),
            peer_advertise: None,
            http_advertise: None,
            threads: 0,
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            secret: None,
            join: Vec::new(),
            replace_after_ms: 600_000,
            heartbeat_ms: 100,
            election_ms_min: 900,
            election_ms_max: 1_300,
            snapshot_bytes_per_second: 32 << 20,
        }
    }
}

impl Default for Regions {
    fn default() -> Self {
        Regions {
            url: None,
            api_key: None,
            pulse_ms: 20,
            ask_ms: 10_000,
            accept_unheard: true,
            home_lease_ms: 0,
            forward: true,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log {
            segment_bytes: 64 << 20,
            retention_bytes: 4 << 30,
            free_bytes_min: 1 << 30,
            memory_bytes: 64 << 20,
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Store { cache_bytes: 256 << 20, memtable_bytes: 16 << 20 }
    }
}

impl Default for Index {
    fn default() -> Self {
        Index { seal_bytes: 8 << 20, segment_bytes_max: 2 << 30 }
    }
}

impl Default for Search {
    fn default() -> Self {
        Search { threads: 0, recall_sample: 0.001 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { request_bytes_max: 32 << 20, timeout_ms: 30_000, requests_max: 1_024 }
    }
}

/// Settings that do not make a node.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment does not fit; names the key.
    #[error("configuration: {0}")]
    Read(#[from] config::ConfigError),
    /// A value is outside its bounds.
    #[error("{key}: {why}")]
    Value {
        /// The key, by its path.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Config {
    /// Defaults, then the file (if any), then the environment.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder().add_source(config::Config::try_from(&Config::default())?);
        if let Some(file) = file {
            builder = builder.add_source(config::File::from(file).format(config::FileFormat::Yaml));
        }
        Ok(builder.add_source(environment()).build()?.try_deserialize()?)
    }

    /// Checks what a single value cannot tell.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: &str| Err(ConfigError::Value { key, why: why.to_owned() });
        let visible = |s: &str| !s.is_empty() && !s.chars().any(char::is_control);
        let keys = [
            ("auth.api_key", &self.auth.api_key),
            ("auth.read_only_api_key", &self.auth.read_only_api_key),
            ("regions.api_key", &self.regions.api_key),
            ("cluster.secret", &self.cluster.secret),
        ];
        for (name, key) in keys {
            if key.as_deref().is_some_and(|key| !visible(key)) {
                return wrong(name, "at least one visible character, and none that is not");
            }
        }
        if !self.http.ip().is_loopback() && self.auth.api_key.is_none() {
            return wrong("http", "an address that others can reach wants auth.api_key");
        }
        if !self.peer.ip().is_loopback() && self.cluster.secret.is_none() {
            return wrong("peer", "an address that others can reach wants cluster.secret");
        }
        if let Some(strange) = self.cluster.join.iter().find(|to| !is_address(to)) {
            return wrong("cluster.join", &format!("`{strange}` is not host:port"));
        }
        let reached = |url: &str| url.strip_prefix("http://").is_some_and(is_address);
        if let Some(strange) = self.regions.url.as_deref().filter(|url| !reached(url)) {
            return wrong("regions.url", &format!("`{strange}` is not http://host:port"));
        }
        if !(1..=60_000).contains(&self.regions.pulse_ms) {
            return wrong("regions.pulse_ms", "1 to 60000 milliseconds");
        }
        if !matches!(self.regions.home_lease_ms, 0 | 1_000..=3_600_000) {
            return wrong("regions.home_lease_ms", "0, or 1000 to 3600000 milliseconds");
        }
        let advertised = [
            ("node.peer_advertise", &self.node.peer_advertise),
            ("node.http_advertise", &self.node.http_advertise),
        ];
        for (key, address) in advertised {
            if let Some(strange) = address.as_deref().filter(|to| !is_address(to)) {
                return wrong(key, &format!("`{strange}` is not host:port"));
            }
        }
        if self.node.threads > THREADS_MAX {
            return wrong("node.threads", "at most 1024");
        }
        let cluster = &self.cluster;
        if cluster.heartbeat_ms == 0 || cluster.election_ms_min < 3 * cluster.heartbeat_ms {
            return wrong("cluster.election_ms_min", "at least three heartbeats (cluster.heartbeat_ms)");
        }
        if cluster.election_ms_max <= cluster.election_ms_min {
            return wrong("cluster.election_ms_max", "more than cluster.election_ms_min");
        }
        if cluster.replace_after_ms < cluster.election_ms_max {
            return wrong("cluster.replace_after_ms", "at least an election (cluster.election_ms_max)");
        }
        if !matches!(cluster.snapshot_bytes_per_second, 0 | 8_388_608..) {
            // A sender does not wait for ever for an installation.
            return wrong("cluster.snapshot_bytes_per_second", "0 (no limit), or at least 8 MiB");
        }
        let named = |s: &str| !s.is_empty() && s.len() <= 255 && !s.chars().any(char::is_control);
        if !named(&self.node.name) || !named(&self.node.region) || !named(&self.node.zone) {
            return wrong("node", "name, region and zone are 1 to 255 visible characters");
        }
        if !(0.0..=1.0).contains(&self.search.recall_sample) {
            return wrong("search.recall_sample", "between 0 (none) and 1 (all of the searches)");
        }
        if !(1 << 20..=1 << 30).contains(&self.log.segment_bytes) {
            return wrong("log.segment_bytes", "between 1 MiB and 1 GiB");
        }
        if self.log.retention_bytes < 2 * self.log.segment_bytes {
            return wrong("log.retention_bytes", "at least two segments (log.segment_bytes)");
        }
        if !(1 << 20..=1 << 30).contains(&self.store.memtable_bytes) {
            return wrong("store.memtable_bytes", "between 1 MiB and 1 GiB");
        }
        if self.index.segment_bytes_max < self.index.seal_bytes {
            return wrong("index.segment_bytes_max", "at least what is sealed at a time (index.seal_bytes)");
        }
        if self.limits.request_bytes_max as u64 > self.log.segment_bytes / 2 {
            return wrong("limits.request_bytes_max", "at most half a segment (log.segment_bytes)");
        }
        if self.limits.request_bytes_max == 0 || self.limits.timeout_ms == 0 || self.limits.requests_max == 0
        {
            return wrong("limits", "every limit is at least 1");
        }
        Ok(())
    }
}

/// `ANNAL__SECTION__KEY`.
fn environment() -> config::Environment {
    config::Environment::with_prefix("ANNAL")
        .prefix_separator("__")
        .separator("__")
        .list_separator(",")
        .with_list_parse_key("cluster.join")
        .try_parsing(true)
}

/// Whether a text is `host:port` with a port that can be dialled.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        !host.is_empty()
            && !host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/')
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("annal.yaml");
        std::fs::write(&file, yaml).expect("written");
        let config = Config::read(Some(&file))?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn a_file_changes_what_it_names_and_nothing_else() {
        let config = read("http: 127.0.0.1:7000\nlog:\n  retention_bytes: 1000000000\n").expect("fits");
        assert_eq!(config.http.port(), 7000);
        assert_eq!(config.log, Log { retention_bytes: 1_000_000_000, ..Log::default() });
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let refused = |yaml: &str, word: &str| {
            let error = read(yaml).expect_err("refused").to_string();
            assert!(error.contains(word), "{error} does not name {word}");
        };
        refused("colour: red\n", "colour");
        refused("log:\n  segment_size: 3\n", "segment_size");
        refused("log:\n  segment_bytes: 3\n", "log.segment_bytes");
        for share in ["1.5", "-0.1", "1e9"] {
            refused(
                &format!("search:\n  recall_sample: {share}\n"),
                "search.recall_sample: between 0 (none) and 1",
            );
        }
        refused("node:\n  threads: 5000\n", "node.threads");
        refused("http: 0.0.0.0:6333\n", "auth.api_key");
        refused("peer: 0.0.0.0:6335\n", "cluster.secret");
        refused("cluster:\n  secret: ''\n", "cluster.secret");
        refused("http: 0.0.0.0:6333\nauth:\n  api_key: ''\n", "auth.api_key");
        refused("auth:\n  read_only_api_key: \"a\\tb\"\n", "auth.read_only_api_key");
        refused("regions:\n  api_key: ''\n", "regions.api_key");
        refused("cluster:\n  join: [a:1, nonsense]\n", "nonsense");
        refused("cluster:\n  join: ['a:0']\n", "a:0");
        refused("cluster:\n  election_ms_min: 200\n", "cluster.election_ms_min");
        refused("cluster:\n  election_ms_max: 500\n", "cluster.election_ms_max");
        refused("cluster:\n  replace_after_ms: 5\n", "cluster.replace_after_ms");
        refused("cluster:\n  snapshot_bytes_per_second: 1000\n", "cluster.snapshot_bytes_per_second");
        refused("cluster:\n  quorum: 2\n", "quorum");
        refused("node:\n  peer_advertise: here\n", "node.peer_advertise");
    }

    #[test]
    fn peers_are_named_in_the_file() {
        let config = read(concat!(
            "peer: 10.0.0.1:6335\nnode:\n  peer_advertise: db1.example:6335\n",
            "cluster:\n  secret: sesame\n  join: [db1.example:6335, '[::1]:6335']\n",
        ))
        .expect("fits");
        assert_eq!(config.cluster.join, ["db1.example:6335", "[::1]:6335"]);
        assert_eq!(config.node.peer_advertise.as_deref(), Some("db1.example:6335"));
        let rest = Cluster {
            secret: Some("sesame".into()),
            join: config.cluster.join.clone(),
            ..Cluster::default()
        };
        assert_eq!(config.cluster, rest);
    }

    #[test]
    fn the_environment_lists_peers_with_commas() {
        let set = |source: config::Environment, key: &str, value: &str| {
            source.source(Some(config::Map::from([(key.to_owned(), value.to_owned())])))
        };
        let read = |key: &str, value: &str| {
            let builder = config::Config::builder()
                .add_source(config::Config::try_from(&Config::default()).expect("plain"))
                .add_source(set(environment(), key, value));
            builder.build().and_then(config::Config::try_deserialize::<Config>).expect("fits")
        };
        assert_eq!(read("ANNAL__CLUSTER__JOIN", "a:1,b:2").cluster.join, ["a:1", "b:2"]);
        assert_eq!(read("ANNAL__CLUSTER__JOIN", "a:1").cluster.join, ["a:1"]);
        assert_eq!(read("ANNAL__CLUSTER__HEARTBEAT_MS", "50").cluster.heartbeat_ms, 50);
        assert_eq!(read("ANNAL__CLUSTER__SECRET", "sesame").cluster.secret.as_deref(), Some("sesame"));
        assert_eq!(read("ANNAL__NODE__NAME", "n,1").node.name, "n,1");
    }
}
