//! `annal bench`: generates a bounded load over HTTP and measures what its clients see.
//!
//! Invariants: a load ends, by count or by time; a request is sent once and counted once, whatever becomes of it; at a
//! given rate latency counts from when a request was due, so that a server that stalls is not spared.
//! Not here: synthetic vectors; recall means something on real ones only.

mod ingest;
mod load;
mod mixed;
mod report;
mod search;
mod server_cpu;
mod truth;

use super::{Done, collection::Collection, server::Server};
use clap::{Args, Subcommand};
use load::Plan;
use std::time::Duration;

/// Generates load and measures what clients see.
#[derive(Subcommand)]
pub(super) enum Bench {
    Search(search::Search),
    Ingest(ingest::Ingest),
    Mixed(mixed::Mixed),
}

impl Bench {
    pub(super) fn run(self) -> Done {
        match self {
            Bench::Search(search) => search.run(),
            Bench::Ingest(ingest) => ingest.run(),
            Bench::Mixed(mixed) => mixed.run(),
        }
    }
}

// Whom a load goes to, and who is watched. No doc comment: it would take the place of each command's own.
#[derive(Args)]
struct Target {
    /// The collection.
    #[arg(long)]
    collection: String,
    /// A process of the server on this machine, whose CPU time is measured; may be given several times.
    #[arg(long)]
    pid: Vec<u32>,
    #[command(flatten)]
    server: Server,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Target {
    fn collection(&self) -> Collection {
        Collection::new(self.server.client(), &self.collection)
    }
}

// How much load. No doc comment, as above.
#[derive(Args)]
struct Bounds {
    /// Requests under way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Requests a second; as fast as answers come if not given.
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Ends after this time.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
}

/// How long a load lasts that is bounded by nothing else.
const SECONDS_DEFAULT: f64 = 10.0;
/// The longest a load lasts.
const SECONDS_MAX: f64 = 86_400.0;
const RATE_MAX: f64 = 1_000_000.0;

impl Bounds {
    /// Ends after so many requests, if that is given; else after some time.
    fn plan(&self, count: Option<u64>) -> Plan {
        let seconds = match (self.seconds, count) {
            (Some(seconds), _) => seconds,
            (None, Some(_)) => SECONDS_MAX,
            (None, None) => SECONDS_DEFAULT,
        };
        Plan { clients: self.clients, rate: self.rate, time: Duration::from_secs_f64(seconds), count }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    between(text, RATE_MAX)
}

fn seconds(text: &str) -> Result<f64, String> {
    between(text, SECONDS_MAX)
}

fn between(text: &str, max: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= max => Ok(number),
        _ => Err(format!("wants a number above 0, at most {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_ends() {
        let bounds = |seconds| Bounds { clients: 1, rate: None, seconds };
        assert_eq!(bounds(None).plan(None).time.as_secs_f64(), SECONDS_DEFAULT);
        assert_eq!(bounds(None).plan(Some(5)).time.as_secs_f64(), SECONDS_MAX);
        assert_eq!(bounds(Some(2.5)).plan(Some(5)).time.as_secs_f64(), 2.5);
        for bad in ["0", "-1", "inf", "NaN", "86401", "x"] {
            seconds(bad).expect_err(bad);
        }
        assert_eq!(rate("0.5"), Ok(0.5));
    }
}
