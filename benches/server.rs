//! What a search costs a whole node, from socket to socket, beside usearch's walk in this process at the same recall.
//!
//! `ANNAL_BENCH_DATA=DIR[:DIR] cargo bench --bench server`: each folder holds one set (`common`); `tests/data/wordnet-2k` if
//! none is named. The points go over HTTP into a node of its own, with a number from 0 to 999 each; when it is at rest,
//! its closed loops and usearch's take turns, and medians are printed. Then half of what went is held, and then come
//! searches that a share of the points may answer, in turns with those that all may. `-- compare`, `-- held` or `-- filtered`
//! runs one of the three.
//! The server has half of the processors and its load the other half, as if they were two machines: else each throws the
//! other out of its processor and its caches, which usearch, that walks alone, is spared. With `-- shared` both have all.
//! usearch is shown with our f32 kernel, and with its own in a copy that was read back from bytes.

#![allow(missing_docs, unreachable_pub, dead_code, unused_imports)]

use annal::{
    durable,
    model::{self, Distance, HnswParams},
    world,
};
use common::{
    K, Set, cpu_seconds, least_ef, quantile, recall_of_usearch, usearch_finds, usearch_with_its_own_metric,
    vector_index::{build, kernel::Metric},
};
use process::{Client, Node};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use usearch::{Index, IndexOptions};

mod common;
#[path = "../tests/process/mod.rs"]
mod process;

const RECALLS: [f64; 2] = [0.955, 0.98];
const CLIENTS: [usize; 3] = [1, 4, 8];
const TURNS: usize = 9;
const TURN: Duration = Duration::from_millis(1_500);
/// Queries of a turn of usearch.
const QUERIES: usize = 500;
/// Points of a request.
const BATCH: usize = 200;
/// Every so many of a thousand points that a filter lets through.
const ALLOWED: [u32; 6] = [500, 100, 30, 10, 3, 1];
/// Queries whose true answers under a filter are asked for.
const FILTERED_QUERIES: usize = 200;

fn main() {
    let folders = std::env::var("ANNAL_BENCH_DATA").unwrap_or_else(|_| "tests/data/wordnet-2k".to_owned());
    for folder in folders.split(':') {
        run(&Set::read(Path::new(folder)));
    }
}

fn run(set: &Set) {
    let rows = set.base.len() / set.dim;
    println!("{}: {rows} vectors of {} dimensions, {} queries", set.name, set.dim, set.truth.len());
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let named = |what: &str| words.iter().any(|word| word == what);
    let places = Places::of(named("shared"));
    let folder = tempfile::tempdir().expect("room for the node");
    let node = places.with(&places.server, || Node::ready(folder.path()));
    let server = Server { client: node.client(), node, set, places };
    server.load();
    server.rest();
    let wanted = |what: &str| named(what) || !["compare", "held", "filtered"].into_iter().any(named);
    if wanted("compare") {
        beside_usearch(&server);
    }
    if wanted("held") {
        held(&server);
    }
    if wanted("filtered") {
        filtered(&server);
    }
}

fn beside_usearch(server: &Server<'_>) {
    let set = server.set;
    let (metric, go) = (Metric::of(Distance::Cosine), AtomicBool::new(false));
    let ours = build::insert(metric, set.dim, &set.base, HnswParams::default(), &go)
        .expect("usearch takes these vectors");
    let own = with_its_own_metric(&ours);
    for recall in RECALLS {
        compare(server, recall, &ours, &own);
    }
}

/// The same graph once more, compared by usearch's own kernel.
fn with_its_own_metric(index: &Index) -> Index {
    let mut bytes = vec![0; index.serialized_length()];
    index.save_to_buffer(&mut bytes).expect("as long as it said");
    let own = Index::new(&IndexOptions::default()).expect("its own options");
    own.load_from_buffer(&bytes).expect("written just now");
    usearch_with_its_own_metric(own)
}

/// Closed loops and usearch in turns.
fn compare(server: &Server<'_>, recall: f64, ours: &Index, own: &Index) {
    let set = server.set;
    let their_ef = least_ef(recall, |ef| recall_of_usearch(ours, set, ef));
    let ef = server.least_ef(recall);
    let (Some(their_ef), Some(ef)) = (their_ef, ef) else {
        return println!("  recall {recall} is out of reach");
    };
    let bodies = server.bodies(Some(ef), None);
    let mut by_clients = CLIENTS.map(|_| Vec::new());
    let (mut by_ours, mut by_own) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        for (clients, loads) in CLIENTS.into_iter().zip(&mut by_clients) {
            loads.push(server.load_of(&bodies, clients, None));
        }
        for (index, took) in [(ours, &mut by_ours), (own, &mut by_own)] {
            let began = cpu_seconds();
            for query in set.queries.chunks_exact(set.dim).cycle().skip(turn * QUERIES).take(QUERIES) {
                usearch_finds(index, query, their_ef);
            }
            took.push((cpu_seconds() - began) / QUERIES as f64);
        }
    }
    println!(
        "  recall {recall}: usearch ef {their_ef}, {:.3} CPU-ms, by its own kernel {:.3}",
        quantile(&mut by_ours.clone(), 0.5) * 1e3,
        quantile(&mut by_own.clone(), 0.5) * 1e3
    );
    for (clients, loads) in CLIENTS.into_iter().zip(by_clients) {
        let of = |figure: fn(&Load) -> f64, share| {
            quantile(&mut loads.iter().map(figure).collect::<Vec<_>>(), share)
        };
        let against = |took: &[f64]| {
            let mut ratios: Vec<f64> = loads.iter().zip(took).map(|(load, took)| load.cpu / took).collect();
            format!(
                "{:.2} ({:.2} to {:.2})",
                quantile(&mut ratios, 0.5),
                quantile(&mut ratios, 0.25),
                quantile(&mut ratios, 0.75)
            )
        };
        println!(
            "    server, ef {ef}, {clients} clients: {:.3} CPU-ms, {} of usearch's, {} of its own; {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            of(|load| load.cpu, 0.5) * 1e3,
            against(&by_ours),
            against(&by_own),
            of(|load| load.rate, 0.5),
            of(|load| load.p50, 0.5) * 1e3,
            of(|load| load.p99, 0.5) * 1e3,
        );
    }
}

/// Half of what eight clients get through, held.
fn held(server: &Server<'_>) {
    let Some(ef) = server.least_ef(0.98) else { return };
    let bodies = server.bodies(Some(ef), None);
    let (mut rates, mut p50s, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let rate = server.load_of(&bodies, 8, None).rate / 2.0;
        let half = server.load_of(&bodies, 8, Some(rate));
        rates.push(half.rate);
        p50s.push(half.p50 * 1e3);
        p99s.push(half.p99 * 1e3);
    }
    println!(
        "  half load, 8 clients, recall 0.98: {:.0}/s held, p50 {:.2} ms, p99 {:.2} ms (quartiles {:.2} to {:.2})",
        quantile(&mut rates, 0.5),
        quantile(&mut p50s, 0.5),
        quantile(&mut p99s, 0.5),
        quantile(&mut p99s, 0.25),
        quantile(&mut p99s, 0.75)
    );
}

/// Searches with a filter, in turns with those without; four clients, the server's own choice of `ef`.
fn filtered(server: &Server<'_>) {
    let all = server.bodies(None, None);
    for allowed in ALLOWED {
        let filter = json!({"must": [{"key": "n", "range": {"lt": allowed}}]});
        let some = server.bodies(None, Some(&filter));
        let (mut hits, mut of) = (0, 0);
        let every = some.len().div_ceil(FILTERED_QUERIES);
        let queries = server.set.queries.chunks_exact(server.set.dim);
        for (query, body) in queries.zip(&some).step_by(every) {
            let exact = json!({"query": query, "limit": K, "filter": filter, "params": {"exact": true}});
            let exact: HashSet<u32> = server.found(&exact.to_string()).into_iter().collect();
            hits += server.found(body).iter().filter(|id| exact.contains(id)).count();
            of += exact.len();
        }
        let (mut cpu, mut ratios, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let without = server.load_of(&all, 4, None);
            let with = server.load_of(&some, 4, None);
            cpu.push(with.cpu * 1e3);
            ratios.push(with.cpu / without.cpu);
            p99.push(with.p99 * 1e3);
        }
        println!(
            "  {:>5} % allowed: {:.3} CPU-ms, {:.2} of what it is without a filter, recall {:.4}, p99 {:.2} ms",
            f64::from(allowed) / 10.0,
            quantile(&mut cpu, 0.5),
            quantile(&mut ratios, 0.5),
            hits as f64 / of as f64,
            quantile(&mut p99, 0.5)
        );
    }
}

/// A search; the server chooses `ef` where it is not said.
fn body(query: &[f32], ef: Option<usize>, filter: Option<&Value>) -> String {
    let mut body = json!({"query": query, "limit": K});
    if let Some(ef) = ef {
        body["params"] = json!({"hnsw_ef": ef});
    }
    if let Some(filter) = filter {
        body["filter"] = filter.clone();
    }
    body.to_string()
}

/// Where the server runs, and where its load.
struct Places {
    all: CpuSet,
    server: CpuSet,
    load: CpuSet,
}

impl Places {
    /// Half of this thread's processors each, if there are two and they are not shared.
    fn of(shared: bool) -> Self {
        let all = sched_getaffinity(None).expect("this thread's processors");
        if shared || all.count() < 2 {
            println!("  server and load share {} processors", all.count());
            return Places { server: all, load: all, all };
        }
        let (mut server, mut load) = (CpuSet::new(), CpuSet::new());
        for (number, processor) in (0..CpuSet::MAX_CPU).filter(|at| all.is_set(*at)).enumerate() {
            let half = if number % 2 == 0 { &mut server } else { &mut load };
            half.set(processor);
        }
        println!("  the server has {} processors, its load {} others", server.count(), load.count());
        Places { all, server, load }
    }

    /// Does something on some processors; what it starts stays there.
    fn with<T>(&self, processors: &CpuSet, work: impl FnOnce() -> T) -> T {
        sched_setaffinity(None, processors).expect("processors of this thread's");
        let done = work();
        sched_setaffinity(None, &self.all).expect("as before");
        done
    }
}

struct Server<'a> {
    node: Node,
    client: Client,
    set: &'a Set,
    places: Places,
}

/// What a turn took.
struct Load {
    /// Seconds of the server's processor time a search.
    cpu: f64,
    /// Searches a second.
    rate: f64,
    /// Seconds.
    p50: f64,
    p99: f64,
}

impl Server<'_> {
    fn load(&self) {
        let schema = json!({"vectors": {"size": self.set.dim, "distance": "Cosine"}});
        self.client.put("/collections/set", &schema).ok();
        let index = json!({"field_name": "n", "field_schema": "integer"});
        self.client.put("/collections/set/index?wait=true", &index).ok();
        let (began, cpu) = (Instant::now(), self.cpu());
        let batches = Mutex::new(self.set.base.chunks(BATCH * self.set.dim).zip((0..).step_by(BATCH)));
        let next = || batches.lock().expect("nobody panics who holds it").next();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    sched_setaffinity(None, &self.places.load).expect("processors of this process");
                    let client = self.node.client();
                    while let Some((batch, first)) = next() {
                        let points =
                            batch.chunks_exact(self.set.dim).zip(first..).map(|(vector, id): (_, u32)| {
                                // Fibonacci hashing: which points are allowed has nothing to do with where they lie.
                                let n =
                                    (u64::from(id.wrapping_mul(2_654_435_769).reverse_bits()) * 1_000) >> 32;
                                json!({"id": id, "vector": vector, "payload": {"n": n}})
                            });
                        let body = json!({"points": points.collect::<Vec<_>>()});
                        client.put("/collections/set/points?wait=true", &body).ok();
                    }
                });
            }
        });
        while self.client.get("/collections/set").ok()["status"] != "green" {
            thread::sleep(Duration::from_millis(200));
        }
        println!(
            "  loaded and green after {:.1} s, server {:.1} CPU-s",
            began.elapsed().as_secs_f64(),
            self.cpu() - cpu
        );
    }

    /// Waits until the server does next to nothing: graphs are joined, and the store has been read once more.
    fn rest(&self) {
        let mut quiet = 0;
        while quiet < 3 {
            let cpu = self.cpu();
            thread::sleep(Duration::from_secs(2));
            quiet = if self.cpu() - cpu < 0.05 { quiet + 1 } else { 0 };
        }
        let info = self.client.get("/collections/set").ok();
        println!("  at rest: {} segments", info["segments_count"]);
    }

    /// CPU seconds the server has used.
    fn cpu(&self) -> f64 {
        self.node.cpu().as_secs_f64()
    }

    /// The least `ef` that reaches a recall.
    fn least_ef(&self, recall: f64) -> Option<usize> {
        least_ef(recall, |ef| self.set.recall(|query| self.found(&body(query, Some(ef), None))))
    }

    fn bodies(&self, ef: Option<usize>, filter: Option<&Value>) -> Vec<String> {
        self.set.queries.chunks_exact(self.set.dim).map(|query| body(query, ef, filter)).collect()
    }

    fn found(&self, body: &str) -> Vec<u32> {
        let answer = self.client.send("POST", "/collections/set/points/query", Some(body));
        let points = answer.ok();
        points["points"]
            .as_array()
            .expect("a list of points")
            .iter()
            .map(|point| point["id"].as_u64().expect("an id of ours") as u32)
            .collect()
    }

    /// Searches for a turn: as fast as answers come, or so many a second, from the moment that each is due.
    fn load_of(&self, bodies: &[String], clients: usize, rate: Option<f64>) -> Load {
        let (cpu, began) = (self.cpu(), Instant::now());
        let next = AtomicUsize::new(0);
        let took: Vec<Vec<f64>> = thread::scope(|scope| {
            let clients: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(|| {
                        sched_setaffinity(None, &self.places.load).expect("processors of this process");
                        let (client, mut took) = (self.node.client(), Vec::new());
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            let mut due = Instant::now();
                            if let Some(rate) = rate {
                                due = began + Duration::from_secs_f64(number as f64 / rate);
                                thread::sleep(due.saturating_duration_since(Instant::now()));
                            }
                            if due - began >= TURN {
                                return took;
                            }
                            let body = &bodies[number % bodies.len()];
                            let answer = client.send("POST", "/collections/set/points/query", Some(body));
                            assert_eq!(answer.status, 200, "{}", answer.text);
                            took.push(due.elapsed().as_secs_f64());
                        }
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().expect("a client that was answered")).collect()
        });
        let mut took: Vec<f64> = took.into_iter().flatten().collect();
        Load {
            cpu: (self.cpu() - cpu) / took.len() as f64,
            rate: took.len() as f64 / began.elapsed().as_secs_f64(),
            p50: quantile(&mut took, 0.5),
            p99: quantile(&mut took, 0.99),
        }
    }
}
