//! What is done around every request, in one layer: each of axum's layers clones and boxes all within it for every
//! request.
//!
//! ```text
//! request → count, id, key ─┬─ probes, metrics, change feeds, what is not built (501)          ─┬→ envelope → compress
//!                           └─ load → wishes → deadline → decompress → here or another region  ─┘
//! ```
//!
//! Invariants: a panic is an answer; what is turned away has had no effect.
//! Not here: who may do what (`auth`), what another region answers (`forward`).

use super::{ApiOptions, Keys, auth, envelope, error::ApiError, forward::Forwarder, metrics, wishes};
use crate::model::{Effect, Kind};
use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{
        HeaderName, HeaderValue,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use std::{
    any::Any,
    convert::Infallible,
    future::ready,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::{
    compression::{
        CompressionLayer, CompressionLevel, Predicate,
        predicate::{NotForContentType, SizeAbove},
    },
    decompression::RequestDecompressionLayer,
};
use tracing::Instrument;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long after its deadline a request is cut off, if what it called did not give up by itself.
const GRACE: Duration = Duration::from_secs(1);

/// Answers below this are sent as they are: compressing them costs more than it saves.
const COMPRESSED_BYTES_MIN: u64 = 8_192;

/// Lets requests in and answers out.
#[derive(Default)]
pub(super) struct Door {
    keys: Keys,
}

/// The door of what is turned away by load, has wishes, and keeps a deadline.
pub(super) struct Guard {
    door: Door,
    /// Requests in flight.
    admission: Semaphore,
    /// Time for one that does not say.
    timeout_default: Duration,
    /// None: every collection has its home here.
    forwarder: Option<Forwarder>,
}

impl Door {
    pub(super) fn new(options: &ApiOptions) -> Door {
        Door { keys: options.keys.clone() }
    }

    /// Gives a request an id and a span, lets in who may do what it asks, puts the answer into its envelope, and counts it.
    /// The span is for those who look closely: it would be a fiftieth of a small write.
    async fn through<F: Future<Output = Response>>(
        &self,
        mut request: Request,
        inside: impl FnOnce(Request) -> F,
    ) -> Response {
        let _in_flight = metrics::InFlight::enter();
        let started = Instant::now();
        let id = request.headers().get(REQUEST_ID).cloned().unwrap_or_else(fresh_id);
        let route = request.extensions().get::<MatchedPath>().cloned();
        let route = route.as_ref().map_or("(none)", MatchedPath::as_str);
        let method = request.method().clone();
        let uri = request.uri().clone();
        let accepted: Vec<HeaderValue> = request.headers().get_all(ACCEPT_ENCODING).iter().cloned().collect();
        let span = tracing::debug_span!("http", ?id, %method, path = uri.path());
        request.headers_mut().insert(REQUEST_ID, id.clone());
        let mut response = match self.keys.check(&request) {
            Ok(()) => {
                let inside = AssertUnwindSafe(inside(request)).catch_unwind().instrument(span);
                inside.await.unwrap_or_else(panicked)
            }
            Err(error) => error.into_response(),
        };
        envelope::wrap(&mut response, started.elapsed());
        metrics::answered(route, &method, response.status().as_u16(), started.elapsed());
        if let Some(error) = response.extensions().get::<ApiError>().filter(|e| e.status().as_u16() == 500) {
            tracing::error!(?id, %method, path = uri.path(), %error, "request failed");
        }
        response.headers_mut().insert(REQUEST_ID, id);
        match !accepted.is_empty() && worth_compressing().should_compress(&response) {
            true => compressed(accepted, response).await,
            false => response,
        }
    }
}

/// Around what neither is turned away by load nor bound to a deadline.
pub(super) async fn door(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    door.through(request, |request| next.run(request)).await
}

/// Around all else.
pub(super) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    guard.door.through(request, |request| guard.pass(request, next)).await
}

impl Guard {
    pub(super) fn new(forwarder: Option<Forwarder>, options: &ApiOptions) -> Guard {
        Guard {
            door: Door::new(options),
            admission: Semaphore::new(options.in_flight_max),
            timeout_default: options.timeout_default,
            forwarder,
        }
    }

    /// Takes a place among the requests in flight, or turns the request away at once; reads its wishes; and cuts it off
    /// after its deadline, which what it calls keeps by itself, knowing the effect.
    ///
    /// Not tower's `LoadShed`: it asks for readiness, which tokio's cooperative budget may deny to a request that
    /// would find a place.
    async fn pass(&self, mut request: Request, next: Next) -> Response {
        let Ok(_place) = self.admission.try_acquire() else {
            return ApiError::new(Kind::Limited, "", "too many requests are in flight already")
                .into_response();
        };
        let deadline = match wishes::read(&mut request, self.timeout_default) {
            Ok(deadline) => deadline,
            Err(error) => return error.into_response(),
        };
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let effect = if auth::only_reads(request.method(), path) { Effect::None } else { Effect::Unknown };
        match tokio::time::timeout_at(deadline + GRACE, self.decompressed(request, next)).await {
            Ok(response) => response,
            Err(_) => {
                let error = ApiError::new(Kind::Timeout, "", "the request did not finish in time");
                ApiError { effect, ..error }.into_response()
            }
        }
    }

    async fn decompressed(&self, request: Request, next: Next) -> Response {
        if !request.headers().contains_key(CONTENT_ENCODING) {
            return self.answered(request, next).await;
        }
        let plain = service_fn(|request: axum::http::Request<_>| {
            self.answered(request.map(Body::new), next.clone()).map(Ok::<_, Infallible>)
        });
        let layer = RequestDecompressionLayer::new().pass_through_unaccepted(true);
        match layer.layer(plain).oneshot(request).await {
            Ok(response) => response.map(Body::new),
            Err(e) => ApiError::invalid("body", e.to_string()).into_response(),
        }
    }

    /// Here or in another region.
    async fn answered(&self, request: Request, next: Next) -> Response {
        match &self.forwarder {
            Some(forwarder) => forwarder.forward(request, next).await,
            None => next.run(request).await,
        }
    }
}

/// What is large and has an end. A compressor would hold the lines of a feed back.
fn worth_compressing() -> impl Predicate {
    SizeAbove::new(COMPRESSED_BYTES_MIN)
        .and(NotForContentType::const_new("application/x-ndjson"))
        .and(NotForContentType::SSE)
}

/// The answer in an encoding that its client accepts, if there is one.
async fn compressed(accepted: Vec<HeaderValue>, response: Response) -> Response {
    let mut request = Request::default();
    for encodings in accepted {
        request.headers_mut().append(ACCEPT_ENCODING, encodings);
    }
    let mut response = Some(response);
    let answer = service_fn(|_: Request| ready(Ok::<_, Infallible>(response.take().unwrap_or_default())));
    let layer = CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(worth_compressing());
    match layer.layer(answer).oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

fn fresh_id() -> HeaderValue {
    let id = uuid::Uuid::new_v4().simple().to_string();
    HeaderValue::try_from(id).expect("hexadecimal digits are visible ASCII")
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let error = ApiError::new(Kind::Internal, "", format!("a bug: {text}"));
    ApiError { effect: Effect::Unknown, ..error }.into_response()
}
