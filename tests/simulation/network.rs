//! The network between simulated nodes: calls that are late, lost, cut off one way, and overtake each other.
//!
//! ```text
//! Peers::call -> Wire -> fate of the request -> a task of the other node -> fate of the answer -> caller
//! ```
//!
//! Invariants: what the other node does for a call, it does in a task of its own life; a node that dies takes the
//! answers it owes with it; a stream that is cut ends with an error on both sides; what is lost shows only when a
//! connection's ping would have.
//! Not here: HTTP/2 (`src/net/tests.rs` and the harness with real processes have that).

use crate::trace::Trace;
use annal::{
    net::{ByteStream, CallError, Carrier, Failure, Peers, Service},
    world::Life,
};
use bytes::Bytes;
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

/// A connection on which nothing comes is given up after this long.
const PING: Duration = Duration::from_millis(2_000);
/// Nobody answers the dial for this long.
const DIAL: Duration = Duration::from_millis(500);

/// All links.
pub(crate) struct Net {
    trace: Arc<Trace>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    served: BTreeMap<String, Served>,
    /// From which node to which nothing comes, and since when.
    cuts: BTreeMap<(String, String), Instant>,
    /// Milliseconds that messages from one node to another take longer, at most.
    slow: BTreeMap<(String, String), u64>,
    lost_per_mille: u32,
    messages: u64,
}

#[derive(Clone)]
struct Served {
    peers: Peers,
    service: Arc<dyn Service>,
    life: Life,
}

/// What becomes of a message.
enum Fate {
    Arrives(u64),
    /// Noticed at that moment.
    Lost(Instant),
    /// There is no connection, and none to be had.
    NoWay,
}

impl Net {
    pub(crate) fn new(rng: StdRng, trace: Arc<Trace>) -> Arc<Net> {
        let (served, cuts, slow) = Default::default();
        let state = State { rng, served, cuts, slow, lost_per_mille: 0, messages: 0 };
        Arc::new(Net { trace, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way of one life of a node.
    pub(crate) fn wire(self: &Arc<Net>, name: &str, life: Life) -> Arc<dyn Carrier> {
        Arc::new(Wire { net: self.clone(), name: name.to_owned(), life, peers: OnceLock::new() })
    }

    /// Nobody answers at this node's address any more.
    pub(crate) fn hang_up(&self, name: &str) {
        self.state().served.remove(&address(name));
    }

    /// Cuts one direction.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        let now = Instant::now();
        self.state().cuts.entry((from.to_owned(), to.to_owned())).or_insert(now);
    }

    /// Makes one direction slow.
    pub(crate) fn slow(&self, from: &str, to: &str, more_ms: u64) {
        self.state().slow.insert((from.to_owned(), to.to_owned()), more_ms);
    }

    /// Loses so many of a thousand messages.
    pub(crate) fn lose(&self, per_mille: u32) {
        self.state().lost_per_mille = per_mille;
    }

    /// Every link is as good as new.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.slow.clear();
        state.lost_per_mille = 0;
    }

    /// Messages sent so far.
    pub(crate) fn messages(&self) -> u64 {
        self.state().messages
    }

    fn fate(&self, from: &str, to: &str) -> Fate {
        let mut state = self.state();
        state.messages += 1;
        let link = (from.to_owned(), to.to_owned());
        let now = Instant::now();
        if let Some(since) = state.cuts.get(&link) {
            let noticed = *since + PING;
            return if now < noticed { Fate::Lost(noticed) } else { Fate::NoWay };
        }
        let lost = state.lost_per_mille;
        if lost > 0 && state.rng.random_range(0..1000) < lost {
            return Fate::Lost(now + PING);
        }
        // Most take no time that counts, and then whoever runs next comes first.
        let quick = [0, 0, 0, 1, 1, 1, 2, 3][state.rng.random_range(0..8usize)];
        let more = state.slow.get(&link).copied().unwrap_or(0);
        Fate::Arrives(quick + state.rng.random_range(0..=more))
    }

    /// One message from node to node.
    async fn cross(&self, from: &str, to: &str) -> Result<(), CallError> {
        match self.fate(from, to) {
            Fate::Arrives(0) => tokio::task::yield_now().await,
            Fate::Arrives(ms) => sleep(Duration::from_millis(ms)).await,
            Fate::Lost(noticed) => {
                sleep_until(noticed).await;
                return Err(lost(to));
            }
            Fate::NoWay => {
                sleep(DIAL).await;
                return Err(unreached(to));
            }
        }
        Ok(())
    }

    /// Whether a stream from node to node is cut by now.
    fn is_broken(&self, from: &str, to: &str) -> bool {
        let since = self.state().cuts.get(&(from.to_owned(), to.to_owned())).copied();
        since.is_some_and(|since| Instant::now() >= since + PING)
    }

    fn served(&self, to: &str) -> Option<Served> {
        self.state().served.get(to).cloned().filter(|served| !served.life.is_over())
    }
}

/// Where a node is dialled.
pub(crate) fn address(name: &str) -> String {
    format!("{name}:1")
}

fn name(address: &str) -> String {
    address.trim_end_matches(":1").to_owned()
}

fn lost(to: &str) -> CallError {
    CallError::Lost { to: to.to_owned(), why: "the connection broke".to_owned() }
}

fn unreached(to: &str) -> CallError {
    CallError::Unreached { to: to.to_owned(), why: "nobody answers".to_owned() }
}

/// One life's end of the network.
#[derive(Clone)]
struct Wire {
    net: Arc<Net>,
    name: String,
    life: Life,
    peers: OnceLock<Peers>,
}

/// A task that goes with its caller.
struct Cancelled(Option<AbortHandle>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Wire {
    /// The other node, if it is there and serves this path to us.
    fn find(&self, to: &str, path: &str) -> Result<Served, CallError> {
        let served = self.net.served(to).ok_or_else(|| unreached(to))?;
        let ours = self.peers.get().and_then(Peers::cluster);
        if served.service.is_open(path) || ours.is_some() && ours == served.peers.cluster() {
            return Ok(served);
        }
        Err(CallError::Refused { to: to.to_owned(), why: "of another cluster".to_owned() })
    }

    fn says(&self, to: &str, path: &str, body: &[u8]) {
        let (from, crc) = (&self.name, crc32fast::hash(body));
        self.net.trace.line(format_args!("{from} > {to} {path} {} {crc:08x}", body.len()));
    }

    /// The answer on its way back.
    async fn hear(
        &self,
        to: &str,
        path: &str,
        answer: oneshot::Receiver<Result<Bytes, Failure>>,
    ) -> Result<Bytes, CallError> {
        let answer = answer.await.map_err(|_| lost(to))?;
        let bytes = answer.as_ref().map_or(&b""[..], |bytes| bytes);
        let (crc, good) = (crc32fast::hash(bytes), answer.is_ok());
        self.net.trace.line(format_args!("{} < {to} {path} {good} {} {crc:08x}", self.name, bytes.len()));
        self.net.cross(&name(to), &self.name).await.map_err(|_| lost(to))?;
        answer.map_err(|failure| failed(to, failure))
    }
}

fn failed(to: &str, failure: Failure) -> CallError {
    let to = to.to_owned();
    match failure {
        Failure { code, message } if code == Failure::NO_PATH => CallError::Refused { to, why: message },
        Failure { code, message } => CallError::Failed { to, code, message },
    }
}

impl Carrier for Wire {
    fn serve(&self, peers: Peers, service: Arc<dyn Service>) {
        let _ = self.peers.set(peers.clone());
        let served = Served { peers, service, life: self.life.clone() };
        self.net.state().served.insert(address(&self.name), served);
    }

    fn call(
        &self,
        to: &str,
        path: &'static str,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (wire, to) = (self.clone(), to.to_owned());
        Box::pin(async move {
            wire.says(&to, path, &body);
            wire.net.cross(&wire.name, &name(&to)).await?;
            let served = wire.find(&to, path)?;
            let (told, answer) = oneshot::channel();
            let from = wire.name.clone();
            let task = served.life.spawn(async move {
                // The caller may be gone.
                let _ = told.send(served.service.answer(&from, path, body).await);
            });
            let mut cancelled = Cancelled(Some(task.abort_handle()));
            let heard = wire.hear(&to, path, answer).await;
            cancelled.0 = None;
            heard
        })
    }

    fn upload(
        &self,
        to: &str,
        path: &'static str,
        head: Bytes,
        mut body: ByteStream,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (wire, to) = (self.clone(), to.to_owned());
        Box::pin(async move {
            wire.says(&to, path, &head);
            wire.net.cross(&wire.name, &name(&to)).await?;
            let served = wire.find(&to, path)?;
            let (told, mut answer) = oneshot::channel();
            let (pieces, received) = mpsc::channel(2);
            let from = wire.name.clone();
            served.life.spawn(async move {
                let _ = told.send(served.service.receive(&from, path, head, whole(received)).await);
            });
            loop {
                // An answer may come before the end of what is sent.
                let piece = tokio::select! {
                    biased;
                    piece = body.next() => piece,
                    _ = &mut answer => return Err(lost(&to)),
                };
                wire.net.cross(&wire.name, &name(&to)).await?;
                let last = !matches!(piece, Some(Ok(_)));
                let piece = match piece {
                    None => Piece::End,
                    Some(Ok(bytes)) => Piece::Bytes(bytes),
                    Some(Err(error)) => {
                        drop(pieces);
                        return Err(CallError::Lost { to, why: format!("what was sent broke: {error}") });
                    }
                };
                if pieces.send(piece).await.is_err() || last {
                    break;
                }
            }
            wire.hear(&to, path, answer).await
        })
    }

    fn download(
        &self,
        to: &str,
        path: &'static str,
        body: Bytes,
    ) -> BoxFuture<'static, Result<ByteStream, CallError>> {
        let (wire, to) = (self.clone(), to.to_owned());
        Box::pin(async move {
            wire.says(&to, path, &body);
            wire.net.cross(&wire.name, &name(&to)).await?;
            let served = wire.find(&to, path)?;
            let (told, opened) = oneshot::channel();
            let (pieces, received) = mpsc::channel(2);
            let (net, from, me) = (wire.net.clone(), wire.name.clone(), name(&to));
            served.life.spawn(async move {
                let mut stream = match served.service.stream(&from, path, body).await {
                    Ok(stream) => stream,
                    Err(failure) => return drop(told.send(Err(failure))),
                };
                let _ = told.send(Ok(Bytes::new()));
                loop {
                    let piece = tokio::select! {
                        biased;
                        () = pieces.closed() => return,
                        piece = stream.next() => piece,
                    };
                    let (piece, last) = match piece {
                        Some(Ok(bytes)) => (Piece::Bytes(bytes), false),
                        None => (Piece::End, true),
                        Some(Err(_)) => return,
                    };
                    let arrived = net.cross(&me, &from).await.is_ok();
                    if !arrived || pieces.send(piece).await.is_err() || last {
                        return;
                    }
                }
            });
            wire.hear(&to, path, opened).await?;
            Ok(watched(wire.net.clone(), (name(&to), wire.name.clone()), whole(received)))
        })
    }
}

/// What goes through a stream.
enum Piece {
    Bytes(Bytes),
    End,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke")
}

/// The bytes that come; without an end of its own the stream ends with an error.
fn whole(received: mpsc::Receiver<Piece>) -> ByteStream {
    stream::unfold(Some(received), |received| async {
        let mut received = received?;
        match received.recv().await {
            Some(Piece::Bytes(bytes)) => Some((Ok(bytes), Some(received))),
            Some(Piece::End) => None,
            None => Some((Err(broken()), None)),
        }
    })
    .boxed()
}

/// Ends a stream with an error once its link is cut for long enough to be noticed.
fn watched(net: Arc<Net>, link: (String, String), body: ByteStream) -> BoxStream<'static, io::Result<Bytes>> {
    stream::unfold(Some(body), move |body| {
        let (net, (from, to)) = (net.clone(), link.clone());
        async move {
            let mut body = body?;
            loop {
                tokio::select! {
                    biased;
                    piece = body.next() => {
                        let piece = piece?;
                        let rest = piece.is_ok().then_some(body);
                        return Some((piece, rest));
                    }
                    () = sleep(DIAL) => if net.is_broken(&from, &to) {
                        return Some((Err(broken()), None));
                    }
                }
            }
        }
    })
    .boxed()
}
