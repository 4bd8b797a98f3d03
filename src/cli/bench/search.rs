//! `annal bench search`: searches, their latency and their recall.

use super::{
    super::{Done, collection::Collection, export::object, matrix::Matrix, server::Failure},
    Bounds, Target,
    load::{Client, drive},
    report::{Cpu, Measurement, Report},
    server_cpu::ServerCpu,
    truth::{Recall, Truth},
};
use clap::Args;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Searches, and measures latency and recall.
///
/// Recall is measured on the searches of the load: against --truth, else against exact searches for --truth-sample of
/// the queries, asked before.
///
/// Examples:
///   annal bench search --collection glosses --queries queries.npy --seconds 10 --pid $(pgrep -x annal)
///   annal bench search --collection sift --queries query.fvecs --truth groundtruth.ivecs --count 10000 --ef 128
///   annal bench search --collection glosses --queries queries.npy --rate 200 --clients 16 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Search {
    #[command(flatten)]
    asked: Asked,
    /// Row q holds the ids of the points nearest to query q, nearest first: .ivecs, .ibin or .npy; without a filter.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["filter", "truth_sample"])]
    truth: Option<PathBuf>,
    #[command(flatten)]
    bounds: Bounds,
    /// Ends after so many searches.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
}

// What is searched for. No doc comment: it would take the place of each command's own.
#[derive(Args)]
pub(super) struct Asked {
    /// The queries: rows of .npy, .fvecs, .bvecs or .fbin; asked in turn, again and again.
    #[arg(long, value_name = "FILE")]
    queries: PathBuf,
    /// Points that are wanted.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Candidates that a walk keeps (`hnsw_ef`); the server's own choice if not given.
    #[arg(long)]
    ef: Option<u32>,
    /// Compares every vector.
    #[arg(long)]
    exact: bool,
    /// Only points that pass this filter.
    #[arg(long, value_name = "JSON", value_parser = object)]
    filter: Option<Value>,
    /// Name of the vector; the unnamed one if not given.
    #[arg(long, value_name = "NAME")]
    using: Option<String>,
    /// Queries whose true answers are asked for by exact searches.
    #[arg(long, default_value_t = 100)]
    truth_sample: u32,
}

/// Queries that are used of a file.
const QUERIES_MAX: usize = 100_000;

/// One search, and the same with every vector compared, as they are sent.
pub(super) struct Query {
    pub(super) body: String,
    pub(super) exact: String,
}

impl Search {
    pub(super) fn run(self) -> Done {
        let collection = self.target.collection();
        collection.info()?.ok_or_else(|| format!("there is no collection {}", self.target.collection))?;
        let queries = self.asked.queries()?;
        let k = self.asked.limit as usize;
        let truth = match &self.truth {
            Some(path) => Truth::read(path, queries.len(), k)?,
            None => self.asked.truth(&collection, &queries)?,
        };
        let recall = Mutex::new(Recall::default());
        let cpu = ServerCpu::watch(&self.target.pid)?;
        let searched = drive(self.bounds.plan(self.count), || Searcher {
            collection: self.target.collection(),
            queries: &queries,
            truth: &truth,
            recall: &recall,
            answer: String::new(),
        })?;
        let recall = recall.into_inner().map_err(|_| "a client panicked")?;
        let report = Report {
            bench: "search",
            cpu: Cpu::of(&cpu, searched.operations)?,
            recall: recall.mean(),
            recall_answers: recall.answers(),
            limit: Some(self.asked.limit),
            search: Some(Measurement::of(self.bounds.clients, self.bounds.rate, &searched)),
            ..Report::default()
        };
        report.print(self.target.json)
    }
}

impl Asked {
    /// Reads the queries and writes them as they are sent.
    ///
    /// Errors: a file that holds none, or is damaged.
    pub(super) fn queries(&self) -> Result<Vec<Query>, Failure> {
        let vectors = vectors(&self.queries)?;
        Ok(vectors
            .iter()
            .map(|vector| Query { body: self.body(vector, self.exact), exact: self.body(vector, true) })
            .collect())
    }

    /// True answers to a sample of the queries.
    pub(super) fn truth(&self, of: &Collection, queries: &[Query]) -> Result<Truth, Failure> {
        Truth::asked(of, queries, self.limit as usize, self.truth_sample as usize)
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    fn body(&self, vector: &[f32], exact: bool) -> String {
        let mut body = json!({"query": vector, "limit": self.limit, "with_payload": false});
        let mut params = json!({ "exact": exact });
        if let Some(ef) = self.ef {
            params["hnsw_ef"] = ef.into();
        }
        body["params"] = params;
        if let Some(filter) = &self.filter {
            body["filter"] = filter.clone();
        }
        if let Some(name) = &self.using {
            body["using"] = name.as_str().into();
        }
        body.to_string()
    }
}

fn vectors(path: &Path) -> Result<Vec<Vec<f32>>, Failure> {
    let mut matrix = Matrix::open(path)?;
    let mut vectors = Vec::new();
    while let Some(vector) = matrix.next_vector()? {
        if vectors.len() == QUERIES_MAX {
            break;
        }
        vectors.push(vector);
    }
    match vectors.is_empty() {
        true => Err(format!("{}: holds no queries", path.display()).into()),
        false => Ok(vectors),
    }
}

/// A client that searches.
pub(in crate::cli) struct Searcher<'a> {
    pub(super) collection: Collection,
    pub(super) queries: &'a [Query],
    pub(super) truth: &'a Truth,
    /// Of all clients.
    pub(super) recall: &'a Mutex<Recall>,
    pub(super) answer: String,
}

impl Client for Searcher<'_> {
    /// Which query.
    type Request = usize;

    fn prepare(&mut self, number: u64) -> Result<Option<usize>, Failure> {
        Ok(Some(usize::try_from(number % self.queries.len() as u64)?))
    }

    fn send(&mut self, query: &usize) -> u16 {
        let reply = self.collection.ask_once("POST", "/points/query", &self.queries[*query].body);
        let Ok(reply) = reply else { return 0 };
        self.answer = reply.text;
        reply.status
    }

    fn look(&mut self, query: usize) -> Result<u64, Failure> {
        if self.truth.knows(query) {
            let recall = self.truth.recall(query, &self.answer)?;
            self.recall.lock().map_err(|_| "a client panicked")?.add(recall);
        }
        Ok(1)
    }
}
