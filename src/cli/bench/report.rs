//! What a bench ends with, as a table or as JSON.

use super::{
    super::{Done, server::Failure, table::Table},
    load::Measured,
    server_cpu::ServerCpu,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The whole result; what was not measured is left out.
#[derive(Default, Serialize)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) search: Option<Measurement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) write: Option<Measurement>,
    /// Of the first `limit`, the part that was found, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recall: Option<f64>,
    /// Answers that this was measured on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recall_answers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) green_after_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<Cpu>,
}

/// One kind of request.
#[derive(Serialize)]
pub(super) struct Measurement {
    clients: u32,
    /// Requests a second that were wanted; null: as fast as answers come.
    rate: Option<f64>,
    seconds: f64,
    /// Requests that were answered with success.
    answered: u64,
    /// Searches, or points written.
    operations: u64,
    operations_per_second: f64,
    latency_ms: Latency,
    /// Requests by what became of them: a status, or `no answer`.
    errors: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p95: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

/// CPU time of the server's processes.
#[derive(Serialize)]
pub(super) struct Cpu {
    seconds: f64,
    /// Of searches and points written together.
    seconds_per_1000_operations: f64,
}

impl Cpu {
    /// None if no process is watched.
    pub(super) fn of(server: &ServerCpu, operations: u64) -> Result<Option<Self>, Failure> {
        let cpu =
            |seconds: f64| Cpu { seconds, seconds_per_1000_operations: seconds * 1000.0 / operations as f64 };
        Ok(server.seconds()?.filter(|_| operations > 0).map(cpu))
    }
}

impl Measurement {
    pub(super) fn of(clients: u32, rate: Option<f64>, measured: &Measured) -> Self {
        let ms = |micros: u64| micros as f64 / 1000.0;
        let at = |quantile: f64| ms(measured.latency.value_at_quantile(quantile));
        let errors = measured.errors.iter().map(|(status, count)| match status {
            0 => ("no answer".to_owned(), *count),
            _ => (status.to_string(), *count),
        });
        Measurement {
            clients,
            rate,
            seconds: measured.seconds,
            answered: measured.answered,
            operations: measured.operations,
            operations_per_second: measured.operations as f64 / measured.seconds.max(1e-9),
            latency_ms: Latency {
                mean: measured.latency.mean() / 1000.0,
                p50: at(0.5),
                p95: at(0.95),
                p99: at(0.99),
                p999: at(0.999),
                max: ms(measured.latency.max()),
            },
            errors: errors.collect(),
        }
    }

    fn said(&self) -> String {
        let errors: Vec<_> = self.errors.iter().map(|(what, count)| format!("{what}: {count}")).collect();
        if errors.is_empty() { "none".to_owned() } else { errors.join(", ") }
    }
}

impl Report {
    /// Errors: nothing was answered with success.
    pub(super) fn print(&self, json: bool) -> Done {
        match json {
            true => println!("{}", serde_json::to_string_pretty(self)?),
            false => print!("{}", self.text()),
        }
        for (what, measured) in self.kinds() {
            if measured.answered == 0 {
                return Err(format!("no {what} was answered with success: {}", measured.said()).into());
            }
        }
        Ok(())
    }

    fn kinds(&self) -> impl Iterator<Item = (&'static str, &Measurement)> {
        [("search", &self.search), ("upsert", &self.write)]
            .into_iter()
            .filter_map(|(what, measured)| measured.as_ref().map(|measured| (what, measured)))
    }

    fn text(&self) -> String {
        let head = [
            "", "CLIENTS", "WANTED/s", "OPS/s", "ANSWERED", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms",
            "MAX ms", "ERRORS",
        ];
        let mut table = Table::new(head);
        for (what, of) in self.kinds() {
            let latency = &of.latency_ms;
            let [p50, p95, p99, p999, max] =
                [latency.p50, latency.p95, latency.p99, latency.p999, latency.max]
                    .map(|ms| format!("{ms:.2}"));
            table.row([
                what.to_owned(),
                of.clients.to_string(),
                of.rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string()),
                format!("{:.1}", of.operations_per_second),
                of.answered.to_string(),
                p50,
                p95,
                p99,
                p999,
                max,
                of.said(),
            ]);
        }
        let mut text = table.text();
        if let (Some(recall), Some(answers), Some(limit)) = (self.recall, self.recall_answers, self.limit) {
            text += &format!("recall@{limit} {recall:.4} of {answers} answers\n");
        }
        if let Some(green) = self.green_after_seconds {
            text += &format!("green after {green:.1} s\n");
        }
        if let Some(cpu) = &self.cpu {
            let of_1000 = cpu.seconds_per_1000_operations;
            text +=
                &format!("server {of_1000:.3} CPU-s per 1,000 operations, {:.2} CPU-s in all\n", cpu.seconds);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::load::{Client, Plan, drive};
    use std::time::Duration;

    struct Fails(u16);

    impl Client for Fails {
        type Request = ();
        fn prepare(&mut self, _: u64) -> Result<Option<()>, Failure> {
            Ok(Some(()))
        }
        fn send(&mut self, (): &()) -> u16 {
            self.0
        }
        fn look(&mut self, (): ()) -> Result<u64, Failure> {
            Ok(1)
        }
    }

    fn measured(status: u16) -> Measurement {
        let plan = Plan { clients: 2, rate: None, time: Duration::from_secs(9), count: Some(5) };
        Measurement::of(2, None, &drive(plan, || Fails(status)).unwrap())
    }

    #[test]
    fn a_report_says_what_was_measured() {
        let mut report = Report { bench: "search", search: Some(measured(200)), ..Report::default() };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["search"]["answered"], &json["search"]["operations"]), (&5.into(), &5.into()));
        assert!(json["search"]["latency_ms"]["p99.9"].as_f64().unwrap() > 0.0);
        for absent in ["write", "recall", "cpu", "green_after_seconds"] {
            assert_eq!(json.get(absent), None);
        }
        report.print(true).unwrap();
        report.recall = Some(0.98765);
        report.recall_answers = Some(7);
        report.limit = Some(10);
        report.cpu = Some(Cpu { seconds: 1.5, seconds_per_1000_operations: 300.0 });
        report.green_after_seconds = Some(2.0);
        let text = report.text();
        for line in [
            "recall@10 0.9877 of 7 answers",
            "green after 2.0 s",
            "server 300.000 CPU-s per 1,000 operations, 1.50 CPU-s in all",
        ] {
            assert!(text.lines().any(|said| said == line), "{text}");
        }
        assert!(
            text.lines().nth(1).unwrap().starts_with("search")
                && text.lines().nth(1).unwrap().ends_with("none"),
            "{text}"
        );

        for (status, wanted) in [(503, "503: 5"), (0, "no answer: 5")] {
            let report = Report { bench: "ingest", write: Some(measured(status)), ..Report::default() };
            assert!(report.text().contains(wanted));
            let error = report.print(false).unwrap_err().to_string();
            assert_eq!(error, format!("no upsert was answered with success: {wanted}"));
        }
    }
}
