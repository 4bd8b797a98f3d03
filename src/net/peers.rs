//! The calling side: one connection an address, opened when it is needed and again when it broke.
//!
//! Invariants: at most one attempt to connect is under way per address, and between two of them lie
//! `RETRY_AFTER`; a message that hyper hands back unsent is sent once more over a fresh connection.

use super::{
    ByteStream, CALL_BYTES_MAX, CONNECT_WITHIN, CONNECTION_WINDOW, CallError, Carrier, Credentials,
    FRAME_BYTES, Failure, HELLO_WITHIN, PING_EVERY, PING_WITHIN, RETRY_AFTER, STREAM_WINDOW,
    body::{self, Outgoing},
    hello,
    pipe::{self, Pipe, Told, Untold},
    socket,
    traffic::Traffic,
};
use crate::world;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    http::uri::{Authority, Parts, PathAndQuery, Scheme},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    collections::HashMap,
    error::Error,
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};
use tokio::time::{Instant, timeout, timeout_at};

type Result<T> = std::result::Result<T, CallError>;
type Sender = SendRequest<Outgoing>;

/// The other nodes, by address (`host:port`); cheap to clone.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    credentials: Credentials,
    cluster: ArcSwapOption<String>,
    links: RwLock<HashMap<String, Arc<Link>>>,
    traffic: Traffic,
    /// Instead of connections, in a simulation.
    carrier: Option<Arc<dyn Carrier>>,
}

/// The way to one address.
struct Link {
    to: String,
    state: Mutex<State>,
}

enum State {
    Idle,
    Dialing(Shared<BoxFuture<'static, Result<Connection>>>),
    Live(Connection),
    Failed(Instant, CallError),
}

/// A connection that said hello.
#[derive(Clone)]
struct Connection {
    sender: Sender,
    pipe: Pipe,
}

impl Connection {
    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.pipe.is_over()
    }
}

impl Peers {
    /// No peers yet, and no cluster.
    pub fn new(credentials: Credentials) -> Peers {
        let (cluster, links, traffic) = Default::default();
        Peers { inner: Arc::new(Inner { credentials, cluster, links, traffic, carrier: None }) }
    }

    /// As `new`, over something else than sockets.
    pub fn over(credentials: Credentials, carrier: Arc<dyn Carrier>) -> Peers {
        let (cluster, links, traffic) = Default::default();
        Peers { inner: Arc::new(Inner { credentials, cluster, links, traffic, carrier: Some(carrier) }) }
    }

    /// The cluster this node belongs to from now on: sent in every hello, and asked of those who call us.
    ///
    /// Connections opened before are left to the calls that use them.
    pub fn set_cluster(&self, cluster_id: String) {
        self.inner.cluster.store(Some(Arc::new(cluster_id)));
        for link in self.inner.links.read().unwrap_or_else(PoisonError::into_inner).values() {
            *link.lock() = State::Idle;
        }
    }

    /// The cluster this node belongs to.
    pub fn cluster(&self) -> Option<Arc<String>> {
        self.inner.cluster.load_full()
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// Closes the connection to an address that is not needed any more; calls under way finish.
    pub fn forget(&self, to: &str) {
        self.inner.links.write().unwrap_or_else(PoisonError::into_inner).remove(to);
    }

    /// Asks a peer. `path` starts with `/`; `body` is at most [`CALL_BYTES_MAX`].
    ///
    /// Cost: a frame each way and two copies of a small body; above 64 KiB a stream on the peer's connection.
    pub async fn call(&self, to: &str, path: &'static str, body: Bytes, deadline: Instant) -> Result<Bytes> {
        let sent = body.len();
        if let Some(carrier) = &self.inner.carrier {
            return carried(to, deadline, carrier.call(to, path, body)).await;
        }
        if sent <= pipe::BODY_BYTES_MAX {
            return self.counted(path, sent, self.ask(to, path, &body, deadline).await);
        }
        let exchange = async {
            let response = self.send(to, Method::POST, path, checked(to, body)?, deadline).await?;
            read_answer(to, response, deadline).await
        };
        self.counted(path, sent, exchange.await)
    }

    /// Sends a stream to a peer, behind a `head` of at most [`CALL_BYTES_MAX`]. `body` is read as fast as the
    /// peer takes it. An error in `body` is one at the peer too, and the call is [`CallError::Lost`].
    pub async fn upload(
        &self,
        to: &str,
        path: &'static str,
        head: Bytes,
        body: ByteStream,
        deadline: Instant,
    ) -> Result<Bytes> {
        if head.len() > CALL_BYTES_MAX {
            return Err(too_large(to, head.len()));
        }
        if let Some(carrier) = &self.inner.carrier {
            return carried(to, deadline, carrier.upload(to, path, head, body)).await;
        }
        let counters = self.inner.traffic.of(path);
        // What broke the body says more than the reset that follows from it.
        let broke = Arc::new(OnceLock::new());
        let of = broke.clone();
        let body = body.inspect(move |item| match item {
            Ok(bytes) => counters.sent.increment(bytes.len() as u64),
            Err(error) => _ = of.set(error.to_string()),
        });
        let exchange = async {
            let body = body::flow(Some(head), body.boxed());
            let response = self.send(to, Method::PUT, path, body, deadline).await?;
            read_answer(to, response, deadline).await
        };
        let outcome = exchange.await.map_err(|error| match (error, broke.get()) {
            (CallError::Lost { to, .. }, Some(why)) => {
                CallError::Lost { to, why: format!("what was sent broke: {why}") }
            }
            (error, _) => error,
        });
        self.counted(path, 0, outcome)
    }

    /// Asks a peer for a stream. Its last item is an error if it was cut off; dropping it cancels it at the peer.
    ///
    /// `deadline_to_first`: when the peer must have begun to answer; what follows may take its time.
    pub async fn download(
        &self,
        to: &str,
        path: &'static str,
        body: Bytes,
        deadline_to_first: Instant,
    ) -> Result<ByteStream> {
        let sent = body.len();
        if let Some(carrier) = &self.inner.carrier {
            return carried(to, deadline_to_first, carrier.download(to, path, body)).await;
        }
        let exchange = async {
            let body = checked(to, body)?;
            let response = self.send(to, Method::GET, path, body, deadline_to_first).await?;
            if response.status() != StatusCode::OK {
                return Err(read_failure(to, response, deadline_to_first).await);
            }
            Ok(response)
        };
        let response = exchange.await;
        let counters = self.inner.traffic.of(path);
        counters.count(sent, 0, response.as_ref().err());
        let response = response?;
        let body = body::incoming(response.into_body());
        let received = move |item: &io::Result<Bytes>| item.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(body.inspect(move |item| counters.received.increment(received(item))).boxed())
    }

    fn counted(&self, path: &'static str, sent: usize, outcome: Result<Bytes>) -> Result<Bytes> {
        let received = outcome.as_ref().map_or(0, Bytes::len);
        self.inner.traffic.of(path).count(sent, received, outcome.as_ref().err());
        outcome
    }

    /// Asks through the pipe.
    async fn ask(&self, to: &str, path: &'static str, body: &[u8], deadline: Instant) -> Result<Bytes> {
        let link = self.link(to);
        let to = to.to_owned();
        // A connection may end between the look at it and the sending: what was never sent is sent once more.
        for last in [false, true] {
            let Connection { pipe, .. } = link.connection(self, deadline).await?;
            return match timeout_at(deadline, pipe.call(path, body)).await {
                Ok(Ok(Told::Answer(answer))) => Ok(answer),
                Ok(Ok(Told::Failed(failure))) => Err(Failure::into_error(&to, &failure)),
                Ok(Ok(Told::Refused(why))) => Err(CallError::Refused { to, why }),
                Ok(Err(Untold::Unsent)) if !last => continue,
                Ok(Err(Untold::Unsent | Untold::Unprocessed)) => {
                    Err(CallError::Unreached { to, why: "it ends its connections".to_owned() })
                }
                Ok(Err(Untold::Broke(why))) => Err(CallError::Lost { to, why }),
                Err(_) => Err(CallError::Deadline { to, sent: true }),
            };
        }
        unreachable!("the second attempt returns")
    }

    /// Sends a request and waits for the head of its answer.
    async fn send(
        &self,
        to: &str,
        method: Method,
        path: &'static str,
        body: Outgoing,
        deadline: Instant,
    ) -> Result<Response<Incoming>> {
        let link = self.link(to);
        let mut request = request(method, path, body);
        // A connection may end between the look at it and the sending: what was never sent is sent once more.
        for last in [false, true] {
            let Connection { mut sender, .. } = link.connection(self, deadline).await?;
            match timeout_at(deadline, sender.try_send_request(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(mut failed)) => match failed.take_message() {
                    Some(unsent) if !last => request = unsent,
                    Some(_) => return Err(unreached(to, &failed.into_error())),
                    None => return Err(broken(to, &failed.into_error())),
                },
                Err(_) => return Err(CallError::Deadline { to: to.to_owned(), sent: true }),
            }
        }
        unreachable!("the second attempt returns")
    }

    fn link(&self, to: &str) -> Arc<Link> {
        if let Some(link) = self.inner.links.read().unwrap_or_else(PoisonError::into_inner).get(to) {
            return link.clone();
        }
        let mut links = self.inner.links.write().unwrap_or_else(PoisonError::into_inner);
        let link = || Arc::new(Link { to: to.to_owned(), state: Mutex::new(State::Idle) });
        links.entry(to.to_owned()).or_insert_with(link).clone()
    }

    /// Connects, says hello and opens the pipe.
    async fn connect(&self, to: &str) -> Result<Connection> {
        let unreached = |why: String| CallError::Unreached { to: to.to_owned(), why };
        let stream = timeout(CONNECT_WITHIN, socket::connect(to))
            .await
            .map_err(|_| unreached(format!("no connection within {CONNECT_WITHIN:?}")))?
            .map_err(|e| unreached(e.to_string()))?;
        let (mut sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .max_local_error_reset_streams(None)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| unreached(reason(&e)))?;
        let address = to.to_owned();
        world::spawn(async move {
            match connection.await {
                Ok(()) => tracing::debug!(to = address, "connection to a peer ended"),
                Err(error) => {
                    tracing::debug!(to = address, error = reason(&error), "connection to a peer broke")
                }
            }
        });
        let mut hello = request(Method::POST, hello::PATH, body::whole(Bytes::new()));
        let cluster = self.cluster();
        *hello.headers_mut() =
            hello::headers(self.credentials(), cluster.as_ref().map(|c| c.as_str())).map_err(unreached)?;
        let (pipe, asks) = Pipe::new();
        let answered = async {
            let response = sender.send_request(hello).await.map_err(|e| unreached(reason(&e)))?;
            read_answer(to, response, Instant::now() + HELLO_WITHIN).await?;
            let answers = sender.send_request(request(Method::POST, pipe::PATH, asks)).await;
            world::spawn(pipe.calls().listen(answers.map_err(|e| unreached(reason(&e)))?.into_body()));
            Ok(())
        };
        match timeout(HELLO_WITHIN, answered).await {
            Ok(Ok(())) => Ok(Connection { sender, pipe }),
            Ok(Err(refused @ CallError::Refused { .. })) => Err(refused),
            // Whatever went wrong, no call was sent.
            Ok(Err(error)) => Err(unreached(error.to_string())),
            Err(_) => Err(unreached(format!("connected, but no answer to hello within {HELLO_WITHIN:?}"))),
        }
    }
}

impl Link {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection; a new one if there is none, or it is known to be broken.
    async fn connection(self: &Arc<Self>, peers: &Peers, deadline: Instant) -> Result<Connection> {
        if let State::Live(connection) = &*self.lock()
            && !connection.is_over()
        {
            return Ok(connection.clone());
        }
        let late = |_| CallError::Deadline { to: self.to.clone(), sent: false };
        timeout_at(deadline, self.dial(peers)).await.map_err(late)?
    }

    /// Waits for the attempt to connect that is under way, or starts one. It goes on if the caller gives up.
    async fn dial(self: &Arc<Self>, peers: &Peers) -> Result<Connection> {
        let attempt = {
            let mut state = self.lock();
            match &*state {
                State::Live(connection) if !connection.is_over() => return Ok(connection.clone()),
                State::Failed(at, error) if at.elapsed() < RETRY_AFTER => return Err(error.clone()),
                State::Dialing(attempt) if attempt.peek().is_none() => attempt.clone(),
                _ => {
                    let attempt = self.clone().attempt(peers.clone());
                    *state = State::Dialing(attempt.clone());
                    attempt
                }
            }
        };
        attempt.await
    }

    fn attempt(self: Arc<Self>, peers: Peers) -> Shared<BoxFuture<'static, Result<Connection>>> {
        let to = self.to.clone();
        let task = world::spawn(async move {
            let cluster = peers.cluster();
            let outcome = peers.connect(&self.to).await;
            let mut state = self.lock();
            match &outcome {
                // The hello told of another cluster than ours is by now: this connection serves those who waited.
                _ if peers.cluster() != cluster => *state = State::Idle,
                Ok(connection) => *state = State::Live(connection.clone()),
                Err(error) => *state = State::Failed(Instant::now(), error.clone()),
            }
            outcome
        });
        let stopped = move |_| Err(CallError::Unreached { to, why: "the node is stopping".to_owned() });
        async move { task.await.unwrap_or_else(stopped) }.boxed().shared()
    }
}

/// What was carried, if it came in time.
async fn carried<T>(to: &str, deadline: Instant, way: BoxFuture<'static, Result<T>>) -> Result<T> {
    let late = |_| CallError::Deadline { to: to.to_owned(), sent: true };
    timeout_at(deadline, way).await.map_err(late)?
}

fn request(method: Method, path: &'static str, body: Outgoing) -> Request<Outgoing> {
    let mut uri = Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::from_static("annal"));
    uri.path_and_query = Some(PathAndQuery::from_static(path));
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(uri).expect("all three parts are there");
    request
}

fn checked(to: &str, body: Bytes) -> Result<Outgoing> {
    if body.len() > CALL_BYTES_MAX { Err(too_large(to, body.len())) } else { Ok(body::whole(body)) }
}

fn too_large(to: &str, bytes: usize) -> CallError {
    let why = format!("{bytes} bytes in one call, {CALL_BYTES_MAX} at most: not sent");
    CallError::Refused { to: to.to_owned(), why }
}

/// The body of an answer, or the failure it tells of.
async fn read_answer(to: &str, response: Response<Incoming>, deadline: Instant) -> Result<Bytes> {
    if response.status() != StatusCode::OK {
        return Err(read_failure(to, response, deadline).await);
    }
    read_body(to, response.into_body(), deadline).await
}

async fn read_body(to: &str, body: Incoming, deadline: Instant) -> Result<Bytes> {
    match timeout_at(deadline, body::read_whole(body)).await {
        Ok(read) => read.map_err(|e| CallError::Lost { to: to.to_owned(), why: reason(&e) }),
        Err(_) => Err(CallError::Deadline { to: to.to_owned(), sent: true }),
    }
}

async fn read_failure(to: &str, response: Response<Incoming>, deadline: Instant) -> CallError {
    let status = response.status();
    let body = match read_body(to, response.into_body(), deadline).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    match status {
        StatusCode::UNPROCESSABLE_ENTITY => Failure::into_error(to, &body),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            CallError::Refused { to: to.to_owned(), why: String::from_utf8_lossy(&body).into_owned() }
        }
        status => {
            let why = format!("answered {status}: {}", String::from_utf8_lossy(&body));
            CallError::Lost { to: to.to_owned(), why }
        }
    }
}

/// What an error after the hand-over to the connection means.
fn broken(to: &str, error: &hyper::Error) -> CallError {
    let h2 = causes(error).find_map(|cause| cause.downcast_ref::<h2::Error>());
    // A stream gets the peer's own GOAWAY as its error only if it lies above the last one the peer looked at.
    let unprocessed = h2
        .is_some_and(|e| e.is_remote() && (e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM)));
    if unprocessed { unreached(to, error) } else { CallError::Lost { to: to.to_owned(), why: reason(error) } }
}

fn unreached(to: &str, error: &hyper::Error) -> CallError {
    CallError::Unreached { to: to.to_owned(), why: reason(error) }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error with its causes, in one line.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = causes(error).map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        io::Error::other(error)
    }
}
