//! The answering side: accepts peers, checks their hello, and hands what they ask to the service.
//!
//! Invariants: nothing is served over a connection before its hello; a closed path only to a node of our cluster.

use super::{
    ByteStream, CONNECTION_WINDOW, FRAME_BYTES, Failure, PING_EVERY, PING_WITHIN, Peers, STREAM_WINDOW,
    STREAMS_MAX, Service,
    body::{self, Outgoing},
    hello::{self, Hello},
    pipe::{self, Told},
    socket::{self, Listener, Stream},
};
use crate::world;
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http2::Builder, service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// Connections from peers.
const CONNECTIONS: &str = "annal_peer_connections";

/// How long calls under way may take to finish after `stop`.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves peers until `stop`; then accepts nothing new, tells all peers that what they sent last was not looked
/// at, and gives calls under way two seconds.
///
/// `peers` gives this node's credentials and, from the moment it is set, its cluster.
pub async fn serve(listener: Listener, peers: Peers, service: Arc<dyn Service>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = socket::accept(&listener) => match accepted {
                Ok(stream) => {
                    let (peers, service, stop) = (peers.clone(), service.clone(), stop.clone());
                    let visit = Visit { peers, service, stop, hello: OnceLock::new() };
                    connections.spawn(attend(stream, Arc::new(visit)));
                }
                // Most often no descriptor is free: waiting lets some come back.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    if timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::debug!("calls of peers were still under way");
    }
}

/// One connection of a peer.
struct Visit {
    peers: Peers,
    service: Arc<dyn Service>,
    stop: CancellationToken,
    hello: OnceLock<Hello>,
}

async fn attend(stream: Stream, visit: Arc<Visit>) {
    let gauge = metrics::gauge!(CONNECTIONS);
    gauge.increment(1.0);
    let of = visit.clone();
    let connection = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_concurrent_streams(STREAMS_MAX)
        // Peers are trusted, and cancel many calls at once when this node was held up.
        .max_pending_accept_reset_streams(STREAMS_MAX as usize)
        .max_local_error_reset_streams(None)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| {
                let visit = of.clone();
                async move { Ok::<_, Infallible>(visit.serve(request).await) }
            }),
        );
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = visit.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    gauge.decrement(1.0);
    if let Err(error) = ended {
        let from = visit.hello.get().map(|hello| hello.node.as_str());
        tracing::debug!(from, %error, "connection from a peer broke");
    }
}

impl Visit {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Response<Outgoing> {
        if request.uri().path() == hello::PATH {
            return match hello::check(self.peers.credentials(), request.headers()) {
                Ok(hello) => {
                    // A second hello on one connection changes nothing.
                    let _ = self.hello.set(hello);
                    answer(StatusCode::OK, Bytes::new())
                }
                Err((status, why)) => {
                    tracing::warn!(why, "a peer's hello was refused");
                    answer(status, Bytes::from_static(why.as_bytes()))
                }
            };
        }
        if request.uri().path() == pipe::PATH {
            let (visit, stop) = (self.clone(), self.stop.clone());
            let answering = move |path: &str, body| visit.tell(path, body);
            return Response::new(pipe::answer(request.into_body(), Arc::new(answering), stop));
        }
        let from = match self.admit(request.uri().path()) {
            Ok(from) => from,
            Err(why) => return answer(StatusCode::FORBIDDEN, why.into()),
        };
        let done = match *request.method() {
            Method::POST => self.call(from, request).await.map(body::whole),
            Method::PUT => self.upload(from, request).await.map(body::whole),
            Method::GET => self.download(from, request).await.map(|stream| body::flow(None, stream)),
            _ => Err(Refusal::Service(Failure::no_path(request.method().as_str()))),
        };
        match done {
            Ok(body) => Response::new(body),
            Err(Refusal::Service(failure)) if failure.code == Failure::NO_PATH => {
                answer(StatusCode::NOT_FOUND, failure.message.into())
            }
            Err(Refusal::Service(failure)) => answer(StatusCode::UNPROCESSABLE_ENTITY, failure.encode()),
            Err(Refusal::Body(error)) => answer(StatusCode::BAD_REQUEST, error.to_string().into()),
        }
    }

    /// The name of a peer that may ask for a path.
    fn admit(&self, path: &str) -> Result<&str, String> {
        let hello = self.hello.get().ok_or("no hello was said over this connection")?;
        if self.service.is_open(path) {
            return Ok(&hello.node);
        }
        let ours = self.peers.cluster().ok_or("this node has no cluster yet")?;
        match &hello.cluster {
            Some(theirs) if *theirs == *ours => Ok(&hello.node),
            Some(theirs) => Err(format!("this node belongs to cluster {ours}, the caller to {theirs}")),
            None => Err(format!("this node belongs to cluster {ours}, the caller to none")),
        }
    }

    /// Answers a call that came through the pipe.
    fn tell(&self, path: &str, body: Bytes) -> BoxFuture<'static, Told> {
        let answering = match self.admit(path) {
            Ok(from) => self.service.answer(from, path, body),
            Err(why) => return Box::pin(async { Told::Refused(why) }),
        };
        Box::pin(async move {
            match answering.await {
                Ok(answer) => Told::Answer(answer),
                Err(failure) if failure.code == Failure::NO_PATH => Told::Refused(failure.message),
                Err(failure) => Told::Failed(failure.encode()),
            }
        })
    }

    async fn call(&self, from: &str, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let (head, body) = request.into_parts();
        let body = body::read_whole(body).await?;
        Ok(self.service.answer(from, head.uri.path(), body).await?)
    }

    async fn upload(&self, from: &str, request: Request<Incoming>) -> Result<Bytes, Refusal> {
        let (head, body) = request.into_parts();
        let (first, body) = body::take_head(body::incoming(body)).await?;
        // To its end also when the caller gives up: what was half received has to be cleared away.
        let received = world::spawn(self.service.receive(from, head.uri.path(), first, body));
        Ok(received.await.map_err(io::Error::other)??)
    }

    async fn download(&self, from: &str, request: Request<Incoming>) -> Result<ByteStream, Refusal> {
        let (head, body) = request.into_parts();
        let body = body::read_whole(body).await?;
        Ok(self.service.stream(from, head.uri.path(), body).await?)
    }
}

/// Why a request has no good answer.
enum Refusal {
    /// Its body broke or does not fit.
    Body(io::Error),
    /// The service said so.
    Service(Failure),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Body(error)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal::Service(failure)
    }
}

fn answer(status: StatusCode, body: Bytes) -> Response<Outgoing> {
    let mut response = Response::new(body::whole(body));
    *response.status_mut() = status;
    response
}
