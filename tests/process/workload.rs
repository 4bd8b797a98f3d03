//! Load whose every operation is written down: workers at all nodes write and read points that are registers.
//!
//! Invariants: a worker that does not know what became of its write to a private register never writes that register
//! again; a write under a retried `Idempotency-Key` is one operation from its first copy to its acknowledgement.
//! Not here: what the operations must look like (`history`), faults (`cluster`).

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use crate::{
    connection::{Connection, Failed, Reply, number_in},
    history::{History, Kind, Nanos, Op, Order, Outcome},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The vector that belongs to a value, exact in f32: a torn point shows.
pub fn vector_of(key: u64, value: u64) -> [f32; 4] {
    [(key % 4096) as f32, (value & 0xffff) as f32, (value >> 16 & 0xffff) as f32, (value >> 32) as f32]
}

/// The body that writes a value.
pub fn upsert_body(key: u64, value: u64, worker: usize) -> String {
    let [a, b, c, d] = vector_of(key, value);
    format!(
        r#"{{"points":[{{"id":{key},"vector":[{a},{b},{c},{d}],"payload":{{"v":{value},"writer":{worker}}}}}]}}"#
    )
}

/// What a load is like.
#[derive(Clone)]
pub struct Plan {
    pub collection: String,
    pub writers: usize,
    pub readers: usize,
    /// Registers a writer has in use at a time; of a shared load: all there are.
    pub keys: usize,
    pub order: Order,
    /// Rest between two operations of a worker.
    pub rest: Duration,
    /// How long writers wait for an answer.
    pub write_within: Duration,
    /// How long readers wait: longer than a freeze, so that what a frozen node answers late is checked too.
    pub read_within: Duration,
    /// Every write has an `Idempotency-Key` and is sent again until it is acknowledged; one in five is sent once more
    /// much later, to a node picked at random.
    pub retries: bool,
    /// Each writer reads what it wrote through another node, this often in a hundred writes.
    pub read_back: u32,
    /// Nodes the writers are at; all if empty.
    pub at: Vec<usize>,
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            collection: "c".to_owned(),
            writers: 4,
            readers: 4,
            keys: 8,
            order: Order::Values,
            rest: Duration::from_millis(2),
            write_within: Duration::from_secs(5),
            read_within: Duration::from_secs(60),
            retries: false,
            read_back: 50,
            at: Vec::new(),
            seed: scaled_seed(),
        }
    }
}

fn scaled_seed() -> u64 {
    std::env::var("ANNAL_SEED").map_or(1, |n| n.parse().unwrap())
}

/// A running load. Dropping it stops it.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<History>>,
}

struct Shared {
    plan: Plan,
    urls: Vec<String>,
    began: Instant,
    stop: AtomicBool,
    /// Registers that readers look at: `keys` slots a writer.
    registers: Vec<AtomicU64>,
    /// The next register nobody has used.
    next_key: AtomicU64,
    /// The number of the load among those of the process: part of every idempotency key.
    number: usize,
    acknowledged: AtomicU64,
    answered: AtomicU64,
    resent: AtomicU64,
}

/// Of writes, reads and, where there are any, retries: fewer say nothing.
pub const ENOUGH: u64 = 50;

/// Positions for which a shard remembers an intent: after as many a retry is refused.
const REMEMBERED: u64 = 1_000_000;
/// One in so many acknowledged writes is kept until it is forgotten, and then sent again.
const KEPT_OF: u64 = 64;

/// How long a slow machine is given for [`ENOUGH`].
const ENOUGH_WITHIN: Duration = Duration::from_secs(60);

impl Load {
    pub fn start(urls: Vec<String>, plan: Plan) -> Load {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let slots = match plan.order {
            Order::Values => plan.writers * plan.keys,
            Order::Positions => plan.keys,
        } as u64;
        let shared = Arc::new(Shared {
            registers: (1..=slots).map(AtomicU64::new).collect(),
            next_key: AtomicU64::new(slots + 1),
            stop: AtomicBool::new(false),
            began: Instant::now(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            urls,
            plan,
            acknowledged: AtomicU64::default(),
            answered: AtomicU64::default(),
            resent: AtomicU64::default(),
        });
        let worker = |n: usize| {
            let shared = shared.clone();
            thread::spawn(move || {
                let writes = n < shared.plan.writers;
                let mut worker = Worker::new(shared, n);
                if writes {
                    worker.write_on()
                } else {
                    worker.read_on()
                }
                worker.history
            })
        };
        let workers = (0..shared.plan.writers + shared.plan.readers).map(worker).collect();
        Load { shared, workers }
    }

    /// The load's clock.
    pub fn now(&self) -> Nanos {
        self.shared.now()
    }

    /// Stops all workers once there is enough to look at, and gives what they did.
    pub fn stop(mut self) -> History {
        let waited = Instant::now();
        while !self.shared.has_enough() && waited.elapsed() < ENOUGH_WITHIN {
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = History::default();
        for worker in self.workers.drain(..) {
            all.join(worker.join().expect("a worker does not panic"));
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn now(&self) -> Nanos {
        self.began.elapsed().as_nanos() as Nanos
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn has_enough(&self) -> bool {
        let reached = |count: &AtomicU64, wanted: bool| !wanted || count.load(Ordering::Relaxed) > ENOUGH;
        let plan = &self.plan;
        reached(&self.acknowledged, plan.writers > 0)
            && reached(&self.answered, plan.readers > 0 || plan.read_back > 0)
            && reached(&self.resent, plan.retries)
    }
}

/// An acknowledged write that may be sent again.
#[derive(Clone)]
struct Sent {
    key: u64,
    value: u64,
    request: String,
    position: u64,
}

struct Worker {
    shared: Arc<Shared>,
    number: usize,
    nodes: Nodes,
    rng: StdRng,
    history: History,
    sent: VecDeque<Sent>,
    /// Those that are sent again once the shard has forgotten them, oldest first.
    kept: VecDeque<Sent>,
    /// Of writes under this worker's name.
    sequence: u64,
}

impl Worker {
    fn new(shared: Arc<Shared>, number: usize) -> Self {
        let plan = &shared.plan;
        let writes = number < plan.writers;
        let within = if writes { plan.write_within } else { plan.read_within };
        let home = match plan.at.as_slice() {
            [] => number % shared.urls.len(),
            at => at[number % at.len()],
        };
        Worker {
            nodes: Nodes::new(&shared.urls, home, within),
            rng: StdRng::seed_from_u64(plan.seed << 16 | number as u64),
            history: History::default(),
            sent: VecDeque::new(),
            kept: VecDeque::new(),
            sequence: 0,
            number,
            shared,
        }
    }

    fn write_on(&mut self) {
        let shared = self.shared.clone();
        let keys = shared.plan.keys;
        let mut versions = vec![0u64; keys];
        while !shared.stopped() {
            let n = self.rng.random_range(0..keys);
            versions[n] += 1;
            let (slot, value) = match shared.plan.order {
                Order::Values => (self.number * keys + n, versions[n]),
                // Unique among all writers.
                Order::Positions => (n, (self.number as u64 + 1) << 24 | self.sequence),
            };
            let key = shared.registers[slot].load(Ordering::Relaxed);
            let outcome = self.write(key, value);
            if outcome == Outcome::Unknown && shared.plan.order == Order::Values {
                // The register keeps its unknown write for ever; the worker goes on with another one.
                let fresh = shared.next_key.fetch_add(1, Ordering::Relaxed);
                shared.registers[slot].store(fresh, Ordering::Relaxed);
                versions[n] = 0;
            }
            if outcome == Outcome::Ok && self.rng.random_range(0..100) < shared.plan.read_back {
                let other = self.nodes.other(&mut self.rng);
                self.read(key, other);
            }
            if self.rng.random_ratio(1, 5) {
                self.send_again();
            }
            thread::sleep(shared.plan.rest);
        }
    }

    fn read_on(&mut self) {
        let shared = self.shared.clone();
        while !shared.stopped() {
            let slot = self.rng.random_range(0..shared.registers.len());
            let key = shared.registers[slot].load(Ordering::Relaxed);
            let node = self.nodes.here();
            self.read(key, node);
            thread::sleep(shared.plan.rest);
        }
    }

    /// Writes once, or with retries until it is acknowledged; the whole is one operation.
    fn write(&mut self, key: u64, value: u64) -> Outcome {
        let shared = self.shared.clone();
        self.sequence += 1;
        let request = format!("load{}-{}/{}", shared.number, self.number, self.sequence);
        let invoked = shared.now();
        loop {
            let node = self.nodes.here();
            let sent = self.upsert(node, key, value, &request);
            let ended = shared.now();
            let (outcome, position) = match &sent {
                Ok(reply) if reply.status == 200 => {
                    self.nodes.well(node);
                    shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                    (Outcome::Ok, reply.number("operation_id").unwrap_or(0))
                }
                Ok(reply) if reply.no_effect() => (Outcome::Fail, 0),
                Err(Failed::NotSent(_)) => (Outcome::Fail, 0),
                Ok(_) | Err(Failed::Lost(_)) => (Outcome::Unknown, 0),
            };
            if outcome != Outcome::Ok {
                self.trouble(node, "write", &sent);
            }
            if outcome != Outcome::Ok && shared.plan.retries && !shared.stopped() {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            // An earlier copy may have been applied all the same.
            let outcome = match outcome {
                Outcome::Fail if shared.plan.retries => Outcome::Unknown,
                outcome => outcome,
            };
            if outcome == Outcome::Ok && shared.plan.retries {
                let sent = Sent { key, value, request, position };
                if self.sequence.is_multiple_of(KEPT_OF) {
                    self.kept.push_back(sent.clone());
                }
                self.sent.push_back(sent);
            }
            self.history.ops.push(Op {
                key,
                kind: Kind::Write,
                value,
                position,
                node,
                invoked,
                ended,
                outcome,
            });
            return outcome;
        }
    }

    fn upsert(&mut self, node: usize, key: u64, value: u64, request: &str) -> Result<Reply, Failed> {
        let shared = self.shared.clone();
        let path = format!("/collections/{}/points?wait=true", shared.plan.collection);
        let body = upsert_body(key, value, self.number);
        let with_request = [("idempotency-key", request)];
        let headers = if shared.plan.retries { &with_request[..] } else { &[] };
        self.nodes.at(node).send("PUT", &path, headers, &body)
    }

    /// Sends one of the older acknowledged writes again, anywhere: it must be told its first outcome.
    fn send_again(&mut self) {
        let later = self.rng.random_range(1..64);
        if self.sent.len() < later {
            return;
        }
        // Shards are written to alike: what is old in one is so in all, or soon.
        let now = self.sent.back().expect("not empty").position;
        let forgotten = self.kept.pop_front_if(|kept| kept.position + REMEMBERED + REMEMBERED / 50 < now);
        let again = forgotten.or_else(|| self.sent.remove(self.sent.len() - later));
        let Sent { key, value, request, position } = again.expect("there are so many");
        let node = self.nodes.other(&mut self.rng);
        match self.upsert(node, key, value, &request) {
            Ok(reply) if reply.status == 200 => {
                self.resent();
                let told = reply.number("operation_id").unwrap_or(0);
                if told != position {
                    let first = format!("{request} took effect at position {position}");
                    self.history.noticed.push(format!("{first}, its retry at node {node} says {told}"));
                }
            }
            // Too old to be remembered, and said so.
            Ok(reply) if reply.status == 410 && reply.no_effect() => {
                self.resent();
                self.history.forgotten += 1;
            }
            other => self.trouble(node, "retry", &other),
        }
        while self.sent.len() > 256 {
            self.sent.pop_front();
        }
    }

    fn resent(&mut self) {
        self.history.resent += 1;
        self.shared.resent.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&mut self, key: u64, node: usize) {
        let path = format!("/collections/{}/points/{key}", self.shared.plan.collection);
        let invoked = self.shared.now();
        let answer = self.nodes.at(node).get(&path, &[]);
        let ended = self.shared.now();
        let value = match &answer {
            Ok(reply) if reply.status == 200 => match value_in(key, &reply.body) {
                Ok(value) => Some(value),
                Err(why) => {
                    self.history.noticed.push(format!("read of {key} at node {node}: {why}"));
                    None
                }
            },
            Ok(reply) if reply.status == 404 && reply.body.contains("No point") => Some(0),
            _ => None,
        };
        match value {
            Some(value) => {
                self.nodes.well(node);
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
                let (kind, outcome) = (Kind::Read, Outcome::Ok);
                self.history.ops.push(Op { key, kind, value, position: 0, node, invoked, ended, outcome });
            }
            None => self.trouble(node, "read", &answer),
        }
    }

    fn trouble(&mut self, node: usize, what: &str, answer: &Result<Reply, Failed>) {
        self.nodes.ill(node);
        let answer = match answer {
            Ok(reply) => {
                let why = reply.json()["status"]["error"].as_str().unwrap_or(&reply.body).to_owned();
                format!("{what}: {} {}", reply.status, without_numbers(&why))
            }
            Err(failed) => format!("{what}: {}", without_numbers(&failed.to_string())),
        };
        *self.history.errors.entry(answer).or_default() += 1;
    }
}

/// So that errors that differ in an id or a time count as one.
fn without_numbers(text: &str) -> String {
    let mut shown: String = text.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
    while shown.contains("##") {
        shown = shown.replace("##", "#");
    }
    shown.truncate(120);
    shown
}

/// The value in a point's JSON; an error if its parts do not belong together.
pub fn value_in(key: u64, body: &str) -> Result<u64, String> {
    let value = number_in(body, "v").ok_or_else(|| format!("no value in {body}"))?;
    let vector = body.split_once(r#""vector":["#).and_then(|(_, rest)| rest.split(']').next());
    let vector: Option<Vec<f32>> =
        vector.and_then(|text| text.split(',').map(|n| n.trim().parse().ok()).collect());
    if vector.as_deref() != Some(&vector_of(key, value)) {
        return Err(format!("the vector is not that of value {value}: {body}"));
    }
    Ok(value)
}

/// A worker's connections: it stays at its home, goes elsewhere while that is in trouble, and comes back.
struct Nodes {
    connections: Vec<Connection>,
    home: usize,
    /// Until when a node is avoided.
    avoided: Vec<Option<Instant>>,
}

/// How long a node in trouble is avoided.
const AVOIDED: Duration = Duration::from_millis(500);

impl Nodes {
    fn new(urls: &[String], home: usize, answer_within: Duration) -> Self {
        let connection = |url: &String| Connection::new(url).within(answer_within);
        Nodes { connections: urls.iter().map(connection).collect(), home, avoided: vec![None; urls.len()] }
    }

    fn at(&mut self, node: usize) -> &mut Connection {
        &mut self.connections[node]
    }

    /// Home, or the next node that is not avoided.
    fn here(&self) -> usize {
        let now = Instant::now();
        let count = self.connections.len();
        let mut from_home = (0..count).map(|n| (self.home + n) % count);
        from_home.find(|n| self.avoided[*n].is_none_or(|until| until < now)).unwrap_or(self.home)
    }

    /// A node that is not home, if there is one.
    fn other(&self, rng: &mut StdRng) -> usize {
        let count = self.connections.len();
        (self.home + rng.random_range(1..count.max(2))) % count
    }

    fn well(&mut self, node: usize) {
        self.avoided[node] = None;
    }

    fn ill(&mut self, node: usize) {
        self.avoided[node] = Some(Instant::now() + AVOIDED);
    }
}

/// Everything in a collection of registers: value by key; each point is checked to be whole.
///
/// Errors: an answer that is not 200.
pub fn read_all(connection: &mut Connection, collection: &str) -> Result<BTreeMap<u64, u64>, String> {
    let mut found = BTreeMap::new();
    let mut offset = Value::Null;
    loop {
        let body = json!({"limit": 1000, "offset": offset, "with_payload": true, "with_vector": true});
        let path = format!("/collections/{collection}/points/scroll");
        let reply = connection.send("POST", &path, &[], &body.to_string()).map_err(|e| e.to_string())?;
        if reply.status != 200 {
            return Err(format!("{} {}", reply.status, reply.body));
        }
        let page = reply.json();
        for point in page["result"]["points"].as_array().unwrap() {
            let key = point["id"].as_u64().unwrap();
            found.insert(key, value_in(key, &point.to_string())?);
        }
        offset = page["result"]["next_page_offset"].clone();
        if offset.is_null() {
            return Ok(found);
        }
    }
}
