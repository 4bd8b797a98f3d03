//! The public HTTP door: Qdrant's REST (tier 1) and Annal's own routes.
//!
//! ```text
//! request → compress → door (count, key, envelope) → catch panic ─┬─ probes, metrics, change feeds, what is not built (501)
//!                                                                 └─ guard (load, wishes, deadline) → decompress → handler
//! ```
//!
//! Invariants: JSON becomes model words here and nowhere else; a request is refused as a whole, naming the field
//! and the limit, before anything is logged; what is known but not built answers 501, what is unknown 4xx.
//! Not here: what a request does (see [`Cluster`]), TLS, gRPC.

mod auth;
mod body;
mod envelope;
mod error;
mod forward;
mod metrics;
mod native;
mod qdrant;
mod scrape;
mod server;
#[cfg(test)]
mod tests;
mod wishes;

pub use auth::Keys;
pub use metrics::exporter;
pub use server::{Front, serve};

use crate::{
    cluster::Cluster,
    model::{Effect, Kind},
    region::Regions,
};
use axum::{
    Router,
    extract::{FromRef, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, Uri},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use body::BodyLimit;
use error::ApiError;
use forward::Forwarder;
use metrics_exporter_prometheus::PrometheusHandle;
use std::{any::Any, io, sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer, CompressionLevel, Predicate,
        predicate::{NotForContentType, SizeAbove},
    },
    decompression::RequestDecompressionLayer,
};
use tracing::Instrument;

/// Limits and keys of the HTTP door.
#[derive(Clone)]
pub struct ApiOptions {
    /// Who may do what.
    pub keys: Keys,
    /// Largest body, decompressed.
    pub body_bytes_max: usize,
    /// How long a request may take that does not say.
    pub timeout_default: Duration,
    /// Requests served at once; more are turned away with 429.
    pub in_flight_max: usize,
    /// How long each step takes of a node that leaves: it serves and asks clients to go, turns them away, hears the last.
    pub linger: Duration,
    /// How long requests in flight may take to finish after that.
    pub drain: Duration,
    /// Whether what only a home in another region can answer is sent there.
    pub forward: bool,
    /// The key that other regions want.
    pub region_key: Option<String>,
}

impl Default for ApiOptions {
    fn default() -> Self {
        ApiOptions {
            keys: Keys::default(),
            body_bytes_max: 32 * 1024 * 1024,
            timeout_default: Duration::from_secs(30),
            in_flight_max: 1_024,
            linger: Duration::from_millis(300),
            drain: Duration::from_secs(10),
            forward: true,
            region_key: None,
        }
    }
}

/// What every handler can reach.
#[derive(Clone)]
struct Api {
    cluster: Cluster,
    regions: Regions,
    body_limit: BodyLimit,
    exporter: PrometheusHandle,
    /// Cancelled once the node leaves: answers without an end end then.
    leaving: CancellationToken,
}

impl FromRef<Api> for Cluster {
    fn from_ref(api: &Api) -> Self {
        api.cluster.clone()
    }
}

impl FromRef<Api> for Regions {
    fn from_ref(api: &Api) -> Self {
        api.regions.clone()
    }
}

impl FromRef<Api> for BodyLimit {
    fn from_ref(api: &Api) -> Self {
        api.body_limit
    }
}

/// The whole door as one service.
///
/// Errors: another metrics recorder is installed in this process.
fn router(
    cluster: Cluster,
    regions: Regions,
    options: &ApiOptions,
    leaving: CancellationToken,
) -> io::Result<Router> {
    let body_limit = BodyLimit(options.body_bytes_max);
    let forwarder = Forwarder::new(cluster.clone(), options);
    let built = built().route_layer(from_fn_with_state(forwarder, forward::forward));
    let api = Api { cluster, regions, body_limit, exporter: exporter()?, leaving };
    Ok(layered(built, open(), options).with_state(api))
}

/// Routes that are turned away by load, read the wishes, and keep a deadline.
fn built() -> Router<Api> {
    qdrant::built().merge(native::built())
}

/// Routes that do none of this.
fn open() -> Router<Api> {
    let unbuilt = qdrant::unbuilt().merge(native::unbuilt());
    let streams = native::feeds().merge(native::regions_with_parameters());
    qdrant::probes().merge(native::audits()).merge(streams).merge(unbuilt)
}

/// The door of a node that has no cluster to ask yet.
fn unready(why: &'static str) -> Router {
    let unready = async move || ApiError::new(Kind::Unavailable, "", why);
    qdrant::vital_signs().fallback(unready).layer(from_fn_with_state(Arc::new(Keys::default()), door))
}

/// Puts the stack around the routes; `open` ones are neither turned away by load nor bound to a deadline.
///
/// Each of axum's layers clones and boxes all within it for every request, so what always goes together is one layer.
fn layered<S: Clone + Send + Sync + 'static>(
    built: Router<S>,
    open: Router<S>,
    options: &ApiOptions,
) -> Router<S> {
    let limits = Limits {
        admission: Arc::new(Semaphore::new(options.in_flight_max)),
        timeout_default: options.timeout_default,
    };
    let built = built.layer(
        ServiceBuilder::new()
            .layer(from_fn_with_state(limits, guard))
            .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true)),
    );
    let compress = CompressionLayer::new().quality(CompressionLevel::Fastest);
    built.merge(open).fallback(unknown).method_not_allowed_fallback(unknown).layer(
        ServiceBuilder::new()
            .layer(compress.compress_when(compressed()))
            .layer(from_fn_with_state(Arc::new(options.keys.clone()), door))
            .layer(CatchPanicLayer::custom(panicked)),
    )
}

/// Answers below this are sent as they are: compressing them costs more than it saves.
const COMPRESSED_BYTES_MIN: u64 = 8_192;

/// What is compressed: what is large and has an end. A compressor would hold the lines of a feed back.
fn compressed() -> impl Predicate {
    SizeAbove::new(COMPRESSED_BYTES_MIN)
        .and(NotForContentType::const_new("application/x-ndjson"))
        .and(NotForContentType::SSE)
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Around every request: gives it an id and a span, lets in who may do what it asks, puts the answer into its envelope,
/// and counts it. The span is for those who look closely: it would be a fiftieth of a small write.
async fn door(State(keys): State<Arc<Keys>>, mut request: Request, next: Next) -> Response {
    let _in_flight = metrics::InFlight::enter();
    let started = std::time::Instant::now();
    let id = request.headers().get(REQUEST_ID).cloned().unwrap_or_else(fresh_id);
    let route = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let uri = request.uri().clone();
    let span = tracing::debug_span!("http", ?id, %method, path = uri.path());
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = match keys.check(&request) {
        Ok(()) => next.run(request).instrument(span).await,
        Err(error) => error.into_response(),
    };
    envelope::wrap(&mut response, started.elapsed());
    metrics::answered(&route, &method, response.status().as_u16(), started.elapsed());
    if let Some(error) = response.extensions().get::<ApiError>().filter(|e| e.status().as_u16() == 500) {
        tracing::error!(?id, %method, path = uri.path(), %error, "request failed");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn fresh_id() -> HeaderValue {
    let id = uuid::Uuid::new_v4().simple().to_string();
    HeaderValue::try_from(id).expect("hexadecimal digits are visible ASCII")
}

/// How long after its deadline a request is cut off, if what it called did not give up by itself.
const GRACE: Duration = Duration::from_secs(1);

/// What a node spends on requests.
#[derive(Clone)]
struct Limits {
    /// Requests in flight.
    admission: Arc<Semaphore>,
    /// Time for one that does not say.
    timeout_default: Duration,
}

/// Takes a place among the requests in flight, or turns the request away at once; reads its wishes; and cuts it off
/// after its deadline, which what it calls keeps by itself, knowing the effect.
///
/// Not tower's `LoadShed`: it asks for readiness, which tokio's cooperative budget may deny to a request that
/// would find a place.
async fn guard(State(limits): State<Limits>, mut request: Request, next: Next) -> Response {
    let Ok(_place) = limits.admission.try_acquire() else {
        return ApiError::new(Kind::Limited, "", "too many requests are in flight already").into_response();
    };
    let deadline = match wishes::read(&mut request, limits.timeout_default) {
        Ok(deadline) => deadline,
        Err(error) => return error.into_response(),
    };
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let effect = if auth::only_reads(request.method(), path) { Effect::None } else { Effect::Unknown };
    match tokio::time::timeout_at(deadline + GRACE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let error = ApiError::new(Kind::Timeout, "", "the request did not finish in time");
            ApiError { effect, ..error }.into_response()
        }
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let error = ApiError::new(Kind::Internal, "", format!("a bug: {text}"));
    ApiError { effect: Effect::Unknown, ..error }.into_response()
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    ApiError::new(Kind::NotFound, "", format!("Not found: there is no {method} {}", uri.path()))
}

/// Routes that are known but not built: each line holds methods and one path.
fn refusing<S: Clone + Send + Sync + 'static>(lines: &[&'static str]) -> Router<S> {
    use axum::routing::{MethodFilter, on};
    let refuse = async |method: Method, path: MatchedPath| {
        ApiError::unbuilt(format!("{method} {}", path.as_str()), "")
    };
    lines.iter().fold(Router::new(), |router, line| {
        let (methods, path) = line.rsplit_once(' ').expect("METHOD… /path");
        let methods = methods.split(' ').map(|m| match m {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            "PUT" => MethodFilter::PUT,
            "PATCH" => MethodFilter::PATCH,
            _ => MethodFilter::DELETE,
        });
        let methods = methods.reduce(MethodFilter::or).expect("one method at least");
        router.route(path, on(methods, refuse))
    })
}
