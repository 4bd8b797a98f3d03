//! `annal bench mixed`: searches while points are written.

use super::{
    super::Done,
    Bounds, Target, between,
    ingest::{Again, Points, Written},
    load::{Plan, drive},
    report::{Cpu, Measurement, Report},
    search::{Asked, Searcher},
    server_cpu::ServerCpu,
    truth::{Recall, Truth},
};
use clap::Args;
use std::sync::Mutex;

/// Searches while points are written, and measures both.
///
/// Writers take the points of the file in turn, again and again: points that are there already are written over. Recall
/// is measured when the writers have ended, against exact searches for --truth-sample of the queries.
///
/// Examples:
///   annal bench mixed --collection glosses --queries queries.npy --vectors vectors.npy --seconds 20 --write-rate 50
///   annal bench mixed --collection glosses --queries queries.npy --vectors vectors.npy --clients 4 --write-clients 2
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Mixed {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    written: Written,
    #[command(flatten)]
    bounds: Bounds,
    /// Upserts under way at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    write_clients: u32,
    /// Upserts a second, of --batch points each; as fast as answers come if not given.
    #[arg(long, value_parser = write_rate)]
    write_rate: Option<f64>,
    #[command(flatten)]
    target: Target,
}

fn write_rate(text: &str) -> Result<f64, String> {
    between(text, super::RATE_MAX)
}

impl Mixed {
    pub(super) fn run(self) -> Done {
        let collection = self.target.collection();
        let points = Points::open(&self.written, None, Again::Yes)?;
        self.written.ensure(&collection, &points)?;
        let queries = self.asked.queries()?;
        let untold = Truth::none(queries.len(), self.asked.limit() as usize);
        let nothing = Mutex::new(Recall::default());
        let searching = self.bounds.plan(None);
        let writing = Plan { clients: self.write_clients, rate: self.write_rate, ..searching };
        let cpu = ServerCpu::watch(&self.target.pid)?;
        let (searched, written) = std::thread::scope(|scope| {
            let writers = scope.spawn(|| drive(writing, || self.written.writer(&self.target, &points)));
            let searched = drive(searching, || Searcher {
                collection: self.target.collection(),
                queries: &queries,
                truth: &untold,
                recall: &nothing,
                answer: String::new(),
            });
            (searched, writers.join())
        });
        let (searched, written) = (searched?, written.map_err(|_| "a writing thread panicked")??);
        let cpu = Cpu::of(&cpu, searched.operations + written.operations)?;
        let recall = self.asked.truth(&collection, &queries)?.recall_of(&collection, &queries)?;
        let report = Report {
            bench: "mixed",
            cpu,
            recall: recall.mean(),
            recall_answers: recall.answers(),
            limit: Some(self.asked.limit()),
            search: Some(Measurement::of(self.bounds.clients, self.bounds.rate, &searched)),
            write: Some(Measurement::of(self.write_clients, self.write_rate, &written)),
            ..Report::default()
        };
        report.print(self.target.json)
    }
}
