//! The public HTTP door: Qdrant's REST (tier 1) and Annal's own routes.
//!
//! ```text
//! request → door (count, key, envelope) ─┬─ probes, metrics, change feeds, what is not built (501)
//!                                         └─ guard (load, wishes, deadline, another region) → handler
//! ```
//!
//! Invariants: JSON becomes model words here and nowhere else; a request is refused as a whole, naming the field
//! and the limit, before anything is logged; what is known but not built answers 501, what is unknown 4xx.
//! Not here: what a request does (see [`Cluster`]), TLS, gRPC.

mod auth;
mod body;
mod door;
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

use crate::{cluster::Cluster, model::Kind, region::Regions};
use axum::{
    Router,
    extract::{FromRef, MatchedPath},
    handler::Handler,
    http::{Method, Uri},
    middleware::from_fn_with_state,
};
use body::BodyLimit;
use door::{Door, Guard};
use error::ApiError;
use forward::Forwarder;
use metrics_exporter_prometheus::PrometheusHandle;
use std::{io, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

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
    let guard = Guard::new(Some(Forwarder::new(cluster.clone(), options)), options);
    let api = Api { cluster, regions, body_limit, exporter: exporter()?, leaving };
    Ok(layered((built(), guard), (open(), Door::new(options))).with_state(api))
}

/// Puts one layer around each route, and around what is none.
fn layered<S: Clone + Send + Sync + 'static>(
    (built, guard): (Router<S>, Guard),
    (open, door): (Router<S>, Door),
) -> Router<S> {
    let guard = from_fn_with_state(Arc::new(guard), door::guard);
    let door = from_fn_with_state(Arc::new(door), door::door);
    let unknown = unknown.layer(door.clone());
    let routes = built.layer(guard).merge(open.layer(door));
    routes.fallback(unknown.clone()).method_not_allowed_fallback(unknown)
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
    qdrant::vital_signs().fallback(unready).layer(from_fn_with_state(Arc::new(Door::default()), door::door))
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
