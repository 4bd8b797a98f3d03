//! `annal bench ingest`: upserts, their latency, and how long it takes until the collection is green.

use super::{
    super::{
        Done,
        collection::Collection,
        import::{Source, open},
        row::{Row, upsert_body},
        server::Failure,
        settings::{Distance, Settings},
    },
    Bounds, Target,
    load::{Client, drive},
    report::{Cpu, Measurement, Report},
    server_cpu::ServerCpu,
};
use clap::Args;
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// Writes points, and measures rate and latency.
///
/// The points are written into the collection that is named, which is created if it is not there; ids that are there
/// already are written over.
///
/// Examples:
///   annal bench ingest --collection glosses --vectors vectors.npy --batch 100 --clients 4 --until-green
///   annal bench ingest --collection glosses --vectors vectors.fbin --rate 20 --seconds 30 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Ingest {
    #[command(flatten)]
    written: Written,
    #[command(flatten)]
    bounds: Bounds,
    /// Ends after so many points; the whole file if not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Waits until all graphs are built, and counts the CPU time until then.
    #[arg(long)]
    until_green: bool,
    #[command(flatten)]
    target: Target,
}

// What is written. No doc comment: it would take the place of each command's own.
#[derive(Args)]
pub(super) struct Written {
    /// The points: any file that `annal import` takes.
    #[arg(long, value_name = "FILE")]
    vectors: PathBuf,
    /// The payloads, for a file without: a .jsonl file whose line k belongs to row k.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// Added to every id that is a number: to write beside what is there. A point that is written over by an equal one
    /// needs no new place in a graph, which makes a load lighter than it looks.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    id_offset: u64,
    /// Points of one request.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Distance of a collection that is created.
    #[arg(long, value_enum, default_value_t = Distance::Cosine)]
    distance: Distance,
    /// Name of the vector; the unnamed one if not given.
    #[arg(long, value_name = "NAME")]
    vector: Option<String>,
}

/// How long graphs may take to be built.
const GREEN_WITHIN: Duration = Duration::from_secs(3600);
const GREEN_PAUSE: Duration = Duration::from_millis(100);

impl Ingest {
    pub(super) fn run(self) -> Done {
        let points = Points::open(&self.written, self.count, Again::No)?;
        self.written.ensure(&self.target.collection(), &points)?;
        let cpu = ServerCpu::watch(&self.target.pid)?;
        let started = Instant::now();
        // Bounded by the file, if by nothing else.
        let plan = self.bounds.plan(Some(u64::MAX));
        let written = drive(plan, || self.written.writer(&self.target, &points))?;
        let green = self.until_green.then(|| wait_green(&self.target.collection(), started)).transpose()?;
        let report = Report {
            bench: "ingest",
            cpu: Cpu::of(&cpu, written.operations)?,
            write: Some(Measurement::of(self.bounds.clients, self.bounds.rate, &written)),
            green_after_seconds: green,
            ..Report::default()
        };
        report.print(self.target.json)
    }
}

/// Seconds from the start until the server says that all graphs are built.
fn wait_green(of: &Collection, started: Instant) -> Result<f64, Failure> {
    let waited = Instant::now();
    loop {
        let info = of.info()?.ok_or("the collection is gone")?;
        if info["status"] == "green" {
            return Ok(started.elapsed().as_secs_f64());
        }
        if waited.elapsed() > GREEN_WITHIN {
            return Err(format!("the collection is {} after an hour", info["status"]).into());
        }
        std::thread::sleep(GREEN_PAUSE);
    }
}

impl Written {
    /// Creates the collection if it is not there.
    pub(super) fn ensure(&self, to: &Collection, points: &Points) -> Result<(), Failure> {
        if to.info()?.is_some() {
            return Ok(());
        }
        let state = points.lock()?;
        let first =
            state.ahead.as_ref().ok_or_else(|| format!("{}: holds no points", self.vectors.display()))?;
        to.create(&Settings::of_row(first, self.vector.as_deref().unwrap_or_default(), self.distance)?)
    }

    pub(super) fn writer<'a>(&'a self, target: &Target, points: &'a Points<'a>) -> Writer<'a> {
        Writer { collection: target.collection(), points, batch: self.batch, name: self.vector.as_deref() }
    }
}

/// Whether a file that has ended is read again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    No,
    Yes,
}

/// Points that several clients write.
pub(super) struct Points<'a> {
    of: &'a Written,
    again: Again,
    state: Mutex<State>,
}

struct State {
    source: Box<dyn Source>,
    /// The next point.
    ahead: Option<Row>,
    left: u64,
}

impl<'a> Points<'a> {
    pub(super) fn open(of: &'a Written, count: Option<u64>, again: Again) -> Result<Self, Failure> {
        let mut source = open(&of.vectors, of.payload.as_deref())?;
        let ahead = source.next()?;
        let state = State { source, ahead, left: count.unwrap_or(u64::MAX) };
        Ok(Points { of, again, state: Mutex::new(state) })
    }

    /// The next points, at most so many; none when there are no more.
    fn take(&self, count: u32) -> Result<Vec<Row>, Failure> {
        let mut state = self.lock()?;
        let mut rows = Vec::with_capacity(count as usize);
        while rows.len() < count as usize && state.left > 0 {
            if state.ahead.is_none() && self.again == Again::Yes {
                state.source = open(&self.of.vectors, self.of.payload.as_deref())?;
                state.ahead = state.source.next()?;
            }
            let Some(mut row) = state.ahead.take() else { break };
            if self.of.id_offset > 0
                && let Ok(id) = row.id.parse::<u64>()
            {
                let beyond = || format!("--id-offset {}: id {id} would pass 2^64", self.of.id_offset);
                row.id = id.checked_add(self.of.id_offset).ok_or_else(beyond)?.to_string();
            }
            state.ahead = state.source.next()?;
            state.left -= 1;
            rows.push(row);
        }
        Ok(rows)
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, Failure> {
        self.state.lock().map_err(|_| "a client panicked".into())
    }
}

/// A client that writes.
pub(super) struct Writer<'a> {
    collection: Collection,
    points: &'a Points<'a>,
    batch: u32,
    name: Option<&'a str>,
}

impl Client for Writer<'_> {
    /// A body, and how many points it holds.
    type Request = (String, u64);

    fn prepare(&mut self, _: u64) -> Result<Option<(String, u64)>, Failure> {
        let rows = self.points.take(self.batch)?;
        Ok(if rows.is_empty() { None } else { Some((upsert_body(&rows, self.name)?, rows.len() as u64)) })
    }

    fn send(&mut self, (body, _): &(String, u64)) -> u16 {
        self.collection.ask_once("PUT", "/points?wait=true", body).map_or(0, |reply| reply.status)
    }

    fn look(&mut self, (_, points): (String, u64)) -> Result<u64, Failure> {
        Ok(points)
    }
}
