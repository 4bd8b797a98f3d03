//! Figures that are counted as things happen: those of the HTTP door, and the exporter for those of every floor.
//!
//! Not here: figures that are looked up when somebody asks (see `scrape`).

use hyper::Method;
use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::{cell::RefCell, collections::HashMap, io, sync::OnceLock, time::Duration};

/// Requests answered, by route, method and status.
const REQUESTS: &str = "annal_http_requests_total";
/// How long they took, by route and method, in seconds.
const SECONDS: &str = "annal_http_request_seconds";
/// Requests being served now.
const IN_FLIGHT: &str = "annal_http_requests_in_flight";

/// Change feeds that are being followed now.
const FEEDS: &str = "annal_http_feeds_open";

/// How often collected figures are folded into their histograms.
pub(super) const UPKEEP: Duration = Duration::from_secs(5);

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The process's exporter: installed as the `metrics` facade's recorder on the first call.
///
/// Errors: another recorder is installed already.
pub fn exporter() -> io::Result<PrometheusHandle> {
    static EXPORTER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let installed = EXPORTER.get_or_init(|| install().map_err(|e| e.to_string()));
    installed.clone().map_err(io::Error::other)
}

fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)?
        .install_recorder()?;
    metrics::describe_counter!(REQUESTS, "Requests answered, by route, method and status");
    metrics::describe_histogram!(SECONDS, metrics::Unit::Seconds, "How long they took, by route and method");
    metrics::describe_gauge!(IN_FLIGHT, "Requests being served now");
    metrics::describe_gauge!(FEEDS, "Change feeds that are being followed now");
    Ok(handle)
}

thread_local! {
    static REQUESTS_IN_FLIGHT: Gauge = metrics::gauge!(IN_FLIGHT);
}

/// A request being served; counted out when dropped (also when its client went away).
pub(super) struct InFlight(());

impl InFlight {
    pub(super) fn enter() -> Self {
        REQUESTS_IN_FLIGHT.with(|gauge| gauge.increment(1.0));
        InFlight(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        REQUESTS_IN_FLIGHT.with(|gauge| gauge.decrement(1.0));
    }
}

/// A change feed that is being followed; counted out when dropped.
pub(super) struct FeedOpen(());

impl FeedOpen {
    pub(super) fn enter() -> Self {
        metrics::gauge!(FEEDS).increment(1.0);
        FeedOpen(())
    }
}

impl Drop for FeedOpen {
    fn drop(&mut self) {
        metrics::gauge!(FEEDS).decrement(1.0);
    }
}

/// The counters of one kind of answer.
struct Answered {
    method: &'static str,
    status: u16,
    seconds: Histogram,
    requests: Counter,
}

thread_local! {
    /// By route: looking counters up by their labels took 2 % of a write's time.
    static ANSWERED: RefCell<HashMap<String, Vec<Answered>>> = RefCell::default();
}

/// Counts an answer.
pub(super) fn answered(route: &str, method: &Method, status: u16, took: Duration) {
    let method = named(method);
    ANSWERED.with_borrow_mut(|routes| {
        let kinds = match routes.get_mut(route) {
            Some(kinds) => kinds,
            None => routes.entry(route.to_owned()).or_default(),
        };
        let same = |kind: &Answered| (kind.method, kind.status) == (method, status);
        let at = kinds.iter().position(same).unwrap_or_else(|| {
            kinds.push(Answered::new(route, method, status));
            kinds.len() - 1
        });
        kinds[at].seconds.record(took);
        kinds[at].requests.increment(1);
    });
}

/// A method's name; strange ones are counted together.
fn named(method: &Method) -> &'static str {
    let known = [&Method::GET, &Method::PUT, &Method::POST, &Method::PATCH, &Method::DELETE, &Method::HEAD];
    match known.iter().position(|known| *known == method) {
        Some(at) => ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"][at],
        None => "other",
    }
}

impl Answered {
    fn new(route: &str, method: &'static str, status: u16) -> Answered {
        let labels = [("route", route.to_owned()), ("method", method.to_owned())];
        let seconds = metrics::histogram!(SECONDS, &labels);
        let [route, method_label] = labels;
        let requests = metrics::counter!(REQUESTS, &[route, method_label, ("status", status.to_string())]);
        Answered { method, status, seconds, requests }
    }
}
