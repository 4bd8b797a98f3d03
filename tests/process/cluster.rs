//! A cluster under test: real `annal serve` processes on loopback, each with a data folder and a log file of its own.
//!
//! Invariants: one cluster runs at a time in a test binary, since two would spoil each other's timing; every process
//! is ended by its own pid when the cluster is dropped, also by a panic, which shows the end of each node's log.
//! Ports lie below the range the kernel gives to outgoing connections, so that a node that is down keeps its own.
//! `ANNAL_NODES` sets how many nodes tests start (3); `ANNAL_KEEP` keeps the folders of a failed test.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use crate::process::{Answer, Client, processor_time};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a cluster may take to come to rest: processes start, elections, repairs.
const SETTLE: Duration = Duration::from_secs(60);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Nodes of a cluster under test, unless a test needs another number.
pub fn nodes_wanted() -> usize {
    scaled("ANNAL_NODES", 3) as usize
}

/// A number from the environment, for tests that can be run longer.
pub fn scaled(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

/// How the nodes of a cluster are started.
#[derive(Clone, Default)]
pub struct Options {
    /// More environment variables of every node, such as `ANNAL__CLUSTER__REPLACE_AFTER_MS`.
    pub environment: Vec<(String, String)>,
    /// More arguments of every node.
    pub arguments: Vec<String>,
}

impl Options {
    pub fn with(mut self, variable: &str, value: impl ToString) -> Self {
        self.environment.push((variable.to_owned(), value.to_string()));
        self
    }
}

/// Some nodes, by number from 0; node `i` is called `n{i+1}`.
pub struct TestCluster {
    nodes: Vec<Member>,
    options: Options,
    /// What every node's `--join` says; none for a cluster of one.
    join: Option<String>,
    folder: Option<tempfile::TempDir>,
    /// Dropped last: the next cluster starts when this one has ended.
    _one_at_a_time: MutexGuard<'static, ()>,
}

struct Member {
    name: String,
    http: u16,
    peer: u16,
    child: Option<Child>,
    paused: bool,
}

/// What of a node's data is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A flipped byte amid what the log has written last.
    Log,
    /// The log is gone, the rest is there.
    LogGone,
    /// Flipped bytes in every file of the store.
    Store,
    /// The store is gone, the log is there.
    StoreGone,
    /// Flipped bytes in every index file.
    Index,
}

impl TestCluster {
    /// Starts `n` nodes over empty folders with one shared `--join` list, and waits until all are ready.
    pub fn start(n: usize, options: Options) -> Self {
        let one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let folder = tempfile::Builder::new().prefix("annal-cluster-").tempdir().unwrap();
        let mut cluster = TestCluster {
            nodes: (0..n).map(Member::new).collect(),
            options,
            join: None,
            folder: Some(folder),
            _one_at_a_time: one_at_a_time,
        };
        let peers: Vec<_> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.peer)).collect();
        cluster.join = (n > 1).then(|| peers.join(","));
        (0..n).for_each(|i| cluster.spawn(i));
        cluster.wait_ready();
        cluster
    }

    /// Starts one more node; its `--join` names those that were there from the start. Waits until it is ready.
    pub fn add(&mut self) -> usize {
        let i = self.nodes.len();
        self.nodes.push(Member::new(i));
        self.join.get_or_insert(format!("127.0.0.1:{}", self.nodes[0].peer));
        self.spawn(i);
        self.wait_ready_node(i);
        i
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn name(&self, i: usize) -> &str {
        &self.nodes[i].name
    }

    /// The number of the node with this name.
    pub fn number(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    pub fn url(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[i].http)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.len()).map(|i| self.url(i)).collect()
    }

    pub fn client(&self, i: usize) -> Client {
        Client::new(&self.url(i))
    }

    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.folder().join(&self.nodes[i].name)
    }

    pub fn pid(&self, i: usize) -> u32 {
        self.nodes[i].child.as_ref().unwrap().id()
    }

    pub fn runs(&self, i: usize) -> bool {
        self.nodes[i].child.is_some()
    }

    /// Nodes that run and are not paused.
    pub fn awake(&self) -> Vec<usize> {
        (0..self.len()).filter(|i| self.runs(*i) && !self.nodes[*i].paused).collect()
    }

    // --- faults ---

    /// SIGKILL, at once.
    pub fn kill(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        let mut child = node.child.take().unwrap();
        node.paused = false;
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGKILL to all that run, as near to at once as can be.
    pub fn kill_all(&mut self) {
        let mut children: Vec<_> = self.nodes.iter_mut().filter_map(|node| node.child.take()).collect();
        children.iter_mut().for_each(|child| child.kill().unwrap());
        for mut child in children {
            child.wait().unwrap();
        }
    }

    /// SIGSTOP: the node freezes, its sockets stay open.
    pub fn pause(&mut self, i: usize) {
        self.signal(i, "STOP");
        self.nodes[i].paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self, i: usize) {
        self.signal(i, "CONT");
        self.nodes[i].paused = false;
    }

    /// SIGTERM; waits until the node has ended, and tells how.
    pub fn terminate(&mut self, i: usize) -> ExitStatus {
        self.signal(i, "TERM");
        self.nodes[i].child.take().unwrap().wait().unwrap()
    }

    /// Starts a node that does not run over what it has, at the same addresses. Does not wait.
    pub fn restart(&mut self, i: usize) {
        self.spawn(i);
    }

    /// Deletes the data folder of a node that does not run.
    pub fn wipe(&mut self, i: usize) {
        assert!(!self.runs(i), "a running node is not wiped");
        fs::remove_dir_all(self.data_dir(i)).unwrap();
    }

    /// Keeps a copy of the data folder of a node that does not run.
    pub fn keep_copy(&self, i: usize, to: &Path) {
        assert!(!self.runs(i), "a running node's folder is not copied");
        copy_all(&self.data_dir(i), to);
    }

    /// Puts such a copy in the place of what the node has written since.
    pub fn bring_back(&mut self, i: usize, from: &Path) {
        self.wipe(i);
        copy_all(from, &self.data_dir(i));
    }

    /// Waits until a node ends by itself, and tells how.
    pub fn wait_end(&mut self, i: usize) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.nodes[i].child.as_mut().unwrap().try_wait().unwrap() {
                self.nodes[i].child = None;
                return status;
            }
            assert!(started.elapsed() < SETTLE, "{} still runs after {SETTLE:?}", self.name(i));
            thread::sleep(Duration::from_millis(25));
        }
    }

    /// Damages the data of a node that does not run; tells which files.
    pub fn corrupt(&mut self, i: usize, what: Damage) -> Vec<PathBuf> {
        assert!(!self.runs(i), "a running node is not damaged");
        let dir = self.data_dir(i);
        match what {
            Damage::LogGone => delete(&dir.join("wal")),
            Damage::StoreGone => delete(&dir.join("store")),
            Damage::Log => {
                // The newest file that holds something: what was written last lies there.
                let mut files = files_under(&dir.join("wal"));
                files.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
                let damaged: Vec<_> = files.into_iter().rev().filter(|path| flip(path)).take(1).collect();
                assert!(!damaged.is_empty(), "no log to damage in {}", dir.display());
                damaged
            }
            Damage::Store => files_under(&dir.join("store")).into_iter().filter(|path| flip(path)).collect(),
            Damage::Index => files_under(&dir.join("index")).into_iter().filter(|path| flip(path)).collect(),
        }
    }

    fn signal(&self, i: usize, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.pid(i).to_string()).status();
        assert!(sent.unwrap().success(), "kill -{signal} {}", self.name(i));
    }

    // --- what it says of itself ---

    /// Waits until every node that is awake answers 200 on `/readyz`.
    pub fn wait_ready(&mut self) {
        for i in self.awake() {
            self.wait_ready_node(i);
        }
    }

    pub fn wait_ready_node(&mut self, i: usize) -> Duration {
        let started = Instant::now();
        let client = self.quick(i);
        loop {
            let answer = client.get("/readyz");
            if answer.status == 200 {
                return started.elapsed();
            }
            let child = self.nodes[i].child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{} ended before it was ready: {status}", self.nodes[i].name);
            }
            let name = &self.nodes[i].name;
            assert!(started.elapsed() < SETTLE, "{name} is not ready after {SETTLE:?}: {answer:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the nodes that are awake say on `/annal/v1/cluster`: of each shard the row with the newest term.
    pub fn status(&self) -> Status {
        let mut rows: BTreeMap<(Option<String>, u32), ShardStatus> = BTreeMap::new();
        let mut nodes = Vec::new();
        for i in self.awake() {
            let answer = self.quick(i).get("/annal/v1/cluster");
            let Ok(status) = serde_json::from_str::<Status>(&answer.text) else { continue };
            for row in status.shards {
                let at = (row.collection.clone(), row.shard);
                let newer = |old: &ShardStatus| {
                    (row.epoch, row.leader.is_some(), row.term())
                        > (old.epoch, old.leader.is_some(), old.term())
                };
                if rows.get(&at).is_none_or(newer) {
                    rows.insert(at, row);
                }
            }
            if nodes.is_empty() {
                nodes = status.nodes;
            }
        }
        Status { nodes, shards: rows.into_values().collect() }
    }

    /// The node that leads a shard; waits until there is one.
    pub fn leader_of(&self, collection: &str, shard: u32) -> usize {
        let name = self.wait_for(&format!("a leader of {collection}/{shard}"), |cluster| {
            let leader = cluster.status().shard(Some(collection), shard)?.leader.clone()?;
            cluster.runs(cluster.number(&leader)).then_some(leader)
        });
        self.number(&name)
    }

    /// Waits until every shard of a collection has a leader that runs.
    pub fn wait_led(&self, collection: &str, shards: u32) {
        for shard in 0..shards {
            self.leader_of(collection, shard);
        }
    }

    /// Waits until every node that is awake is ready, every shard has a leader, and every replica is in order and
    /// has applied what its leader committed; then gives the status.
    pub fn wait_all_ok(&mut self) -> Status {
        self.wait_ready();
        self.wait_for("every replica in order", |cluster| {
            let status = cluster.status();
            let whole = !status.shards.is_empty() && status.shards.iter().all(ShardStatus::is_whole);
            whole.then_some(status)
        })
    }

    /// Asks until there is an answer; a cluster that does not come to rest fails the test.
    pub fn wait_for<T>(&self, what: &str, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(answer) = ask(self) {
                return answer;
            }
            assert!(
                started.elapsed() < SETTLE,
                "still waiting for {what} after {SETTLE:?}: {:#?}",
                self.status()
            );
            thread::sleep(Duration::from_millis(25));
        }
    }

    /// Asks for a replica of a shard to move; it may take longer than the answer.
    pub fn move_shard(&self, collection: &str, shard: u32, from: &str, to: &str) {
        let path = format!("/annal/v1/collections/{collection}/shards/{shard}/move");
        let moved = self.client(0).post(&path, &json!({"from": from, "to": to}));
        assert!((200..300).contains(&moved.status), "{} {}", moved.status, moved.text);
    }

    /// Waits until a shard lies on exactly these nodes, in any order, and all is well.
    pub fn wait_on(&mut self, collection: &str, shard: u32, nodes: &[&str]) {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        self.wait_for(&format!("{collection}/{shard} on {nodes:?}"), |cluster| {
            let status = cluster.status();
            (status.shard(Some(collection), shard)?.nodes() == nodes).then_some(())
        });
        self.wait_all_ok();
    }

    /// Moves a shard's leader to a node that does not hold the shard, and waits for it.
    pub fn move_on(&mut self, collection: &str, shard: u32) {
        let leader = self.leader_of(collection, shard);
        let from = self.name(leader).to_owned();
        let status = self.status();
        let held = status.shard(Some(collection), shard).expect("it has a leader").nodes();
        let free = |name: &String| !held.contains(&name.as_str());
        let to =
            (0..self.len()).map(|i| self.name(i).to_owned()).find(free).expect("a node without the shard");
        self.move_shard(collection, shard, &from, &to);
        let nodes: Vec<_> = held.iter().copied().filter(|name| *name != from).chain([to.as_str()]).collect();
        self.wait_on(collection, shard, &nodes);
    }

    /// Makes a collection of 4 dimensions whose shards all nodes hold (three replicas at most), and waits for it.
    pub fn create(&mut self, collection: &str, shards: u32) {
        let replication = self.len().min(3);
        let body = json!({
            "vectors": {"size": 4, "distance": "Euclid"}, "shard_number": shards, "replication_factor": replication,
        });
        self.client(0).put(&format!("/collections/{collection}"), &body).ok();
        let collection = Some(collection.to_owned());
        let status = self.wait_all_ok();
        for shard in 0..shards {
            let row = status.shard(collection.as_deref(), shard).unwrap();
            assert_eq!(row.replicas.len(), replication, "{row:?}");
        }
    }

    /// Waits until all replicas of every shard have one hash at one position, and gives the hashes by shard.
    ///
    /// `replicas`: how many replicas each shard must have. `scrub`: recomputed from the store, not the rolling value.
    pub fn wait_equal(&self, collection: &str, replicas: usize, scrub: bool) -> BTreeMap<u32, String> {
        let scrub = if scrub { "?scrub=true" } else { "" };
        let path = format!("/annal/v1/collections/{collection}/state-hash{scrub}");
        let node = self.awake()[0];
        let mut last = Answer { status: 0, headers: Vec::new(), text: String::new() };
        let started = Instant::now();
        while started.elapsed() < SETTLE {
            last = self.client(node).get(&path);
            let equal = serde_json::from_str::<Vec<ShardHash>>(&last.text).ok().and_then(|shards| {
                let one = |shard: &ShardHash| {
                    let mut hashes = shard.replicas.values();
                    // A replica that cannot hash its store says why instead.
                    let first = hashes.next().filter(|hash| is_hash(hash))?.clone();
                    (shard.replicas.len() == replicas && hashes.all(|hash| *hash == first))
                        .then_some((shard.shard, first))
                };
                shards.iter().map(one).collect::<Option<BTreeMap<_, _>>>()
            });
            if let Some(hashes) = equal.filter(|hashes| !hashes.is_empty()) {
                return hashes;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("replicas of {collection} are not {replicas} equal ones: {} {}", last.status, last.text);
    }

    /// Processor time of a node so far.
    pub fn cpu(&self, i: usize) -> Duration {
        processor_time(self.pid(i))
    }

    /// Runs the `annal` command against a node.
    pub fn command(&self, i: usize, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_annal"));
        command.args(arguments).args(["--url", &self.url(i)]).stdin(Stdio::null()).output().unwrap()
    }

    /// A client that does not wait long: a node may be frozen.
    fn quick(&self, i: usize) -> Client {
        self.client(i).within(Duration::from_secs(2))
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    fn log_file(&self, i: usize) -> PathBuf {
        self.folder().join(format!("{}.log", self.nodes[i].name))
    }

    fn spawn(&mut self, i: usize) {
        assert!(!self.runs(i), "{} runs already", self.name(i));
        let log = File::options().create(true).append(true).open(self.log_file(i)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_annal"));
        command
            .args(["serve", "--grpc", "off", "--node", self.name(i)])
            .arg("--data-dir")
            .arg(self.data_dir(i))
            .args(["--http", &format!("127.0.0.1:{}", self.nodes[i].http)])
            .args(["--peer", &format!("127.0.0.1:{}", self.nodes[i].peer)])
            .args(self.join.iter().flat_map(|join| ["--join", join]))
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.nodes[i].child = Some(command.spawn().unwrap());
    }

    /// The last lines of every node's log.
    fn show_logs(&self) {
        for i in 0..self.len() {
            let text = fs::read_to_string(self.log_file(i)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            println!("--- the end of {}'s log", self.name(i));
            lines[lines.len().saturating_sub(30)..].iter().for_each(|line| println!("{line}"));
        }
    }
}

fn copy_all(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success(), "cp -a {} {}", from.display(), to.display());
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for mut child in self.nodes.iter_mut().filter_map(|node| node.child.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            self.show_logs();
            if std::env::var("ANNAL_KEEP").is_ok() {
                println!("--- kept: {}", self.folder.take().unwrap().keep().display());
            }
        }
    }
}

impl Member {
    fn new(i: usize) -> Self {
        Member {
            name: format!("n{}", i + 1),
            http: free_port(),
            peer: free_port(),
            child: None,
            paused: false,
        }
    }
}

/// A port that nobody listens on; each is given out once, and other test processes begin elsewhere.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    for _ in 0..COUNT {
        let n = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + (std::process::id() * 128 + n) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(files_under(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn delete(dir: &Path) -> Vec<PathBuf> {
    fs::remove_dir_all(dir).unwrap();
    vec![dir.to_owned()]
}

/// Flips a bit in the middle of what a file holds; false if it holds next to nothing.
fn flip(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap();
    let Some(end) = bytes.iter().rposition(|b| *b != 0).filter(|end| *end > 64) else { return false };
    let at = end / 2;
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
    true
}

/// What `GET /annal/v1/cluster` tells.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
    #[serde(default)]
    pub shards: Vec<ShardStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    pub state: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ShardStatus {
    /// None for the catalog.
    pub collection: Option<String>,
    pub shard: u32,
    pub epoch: u64,
    pub leader: Option<String>,
    pub replicas: Vec<ReplicaStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ReplicaStatus {
    pub node: String,
    pub role: String,
    pub state: String,
    #[serde(default)]
    pub term: Option<u64>,
    #[serde(default)]
    pub committed: Option<u64>,
    #[serde(default)]
    pub applied: Option<u64>,
}

fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A row of `state-hash`.
#[derive(Clone, Debug, Deserialize)]
pub struct ShardHash {
    pub shard: u32,
    pub position: u64,
    pub replicas: BTreeMap<String, String>,
}

impl Status {
    pub fn shard(&self, collection: Option<&str>, shard: u32) -> Option<&ShardStatus> {
        self.shards.iter().find(|row| row.collection.as_deref() == collection && row.shard == shard)
    }

    /// Rows of one collection.
    pub fn of<'a>(&'a self, collection: &'a str) -> impl Iterator<Item = &'a ShardStatus> {
        self.shards.iter().filter(move |row| row.collection.as_deref() == Some(collection))
    }
}

impl ShardStatus {
    pub fn term(&self) -> u64 {
        self.replicas.iter().filter_map(|replica| replica.term).max().unwrap_or(0)
    }

    /// Names of the nodes that hold it, sorted.
    pub fn nodes(&self) -> Vec<&str> {
        let mut nodes: Vec<_> = self.replicas.iter().map(|replica| replica.node.as_str()).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Led, every replica in order, and none far behind. Replicas without a vote are the catalog's alone.
    fn is_whole(&self) -> bool {
        let Some(leader) = self.replicas.iter().find(|replica| Some(&replica.node) == self.leader.as_ref())
        else {
            return false;
        };
        self.replicas.iter().all(|replica| {
            let votes = ["leader", "follower"].contains(&replica.role.as_str());
            let stands = votes || self.collection.is_none() && replica.role == "learner";
            // Under load a follower is always a little behind.
            let near = replica.applied.unwrap_or(0) + 200 >= leader.committed.unwrap_or(0);
            stands && replica.state == "ok" && near
        })
    }
}

/// The JSON of a point to write.
pub fn point(id: u64, vector: [f32; 4], payload: Value) -> Value {
    json!({"id": id, "vector": vector, "payload": payload})
}
