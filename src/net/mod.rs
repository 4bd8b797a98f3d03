//! How nodes reach each other: one HTTP/2 connection a peer, over which everything goes.
//!
//! ```text
//! Peers::call ──┐                                                        ┌── Service::answer   (small: `pipe`)
//! Peers::upload ┼─> connection (hello once, then streams, pings) ─> serve ┼── Service::receive
//! Peers::download ┘                                                      └── Service::stream
//! ```
//!
//! Invariants: a connection carries nothing before a *hello* was answered over it, so a peer that is frozen, or
//! is no peer at all, is known before anything is sent; a closed path is served only to a node of the same
//! cluster; a body that breaks half-way is an error on both sides and never a short success (whole bodies carry
//! their length, streams an end mark of their own); [`CallError::never_handled`] is true only if it is certain.
//! A call that its caller gives up (a deadline, a dropped future) is cancelled at the peer too: what must go on
//! there has to be a task of its own. Only who receives an upload is told, and may clear away what came.
//! Not here: retries (but for a message that was never sent), who is where, what is said, encryption: the secret
//! keeps strangers out, it hides nothing from who reads the wire.
//! Source: HTTP/2, RFC 9113 (6.8: which streams a GOAWAY leaves unprocessed; 8.7: what may be tried again).

mod body;
mod carrier;
pub mod frames;
mod hello;
pub mod http;
mod peers;
mod pipe;
mod server;
pub mod socket;
#[cfg(test)]
mod tests;
mod traffic;

pub use carrier::Carrier;
pub use peers::Peers;
pub use server::serve;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use std::{io, time::Duration};

/// What peers prove to each other on every connection.
#[derive(Clone, Default)]
pub struct Credentials {
    /// This node's name.
    pub node: String,
    /// What all nodes of a cluster share; without one, everybody who can connect is trusted.
    pub secret: Option<String>,
}

/// A stream of bytes that may break: an error is always its last item.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was never sent, or the peer said that it did not look at it: certainly not handled.
    #[error("{to} was not reached: {why}")]
    Unreached {
        /// The address.
        to: String,
        /// What went wrong.
        why: String,
    },
    /// The connection broke after it was sent: it may have been handled.
    #[error("{to} was lost during a call: {why}")]
    Lost {
        /// The address.
        to: String,
        /// What went wrong.
        why: String,
    },
    /// The peer does not talk to us about this: another cluster or secret, an unknown path, too large a body.
    /// Certainly not handled.
    #[error("{to} refused: {why}")]
    Refused {
        /// The address.
        to: String,
        /// The peer's words.
        why: String,
    },
    /// The deadline passed.
    #[error("{to} did not answer in time")]
    Deadline {
        /// The address.
        to: String,
        /// Whether it may have been sent, and so handled.
        sent: bool,
    },
    /// The service answered that it failed.
    #[error("{to}: {message}")]
    Failed {
        /// The address.
        to: String,
        /// The kind of failure, for programs.
        code: String,
        /// What went wrong, for people.
        message: String,
    },
}

impl CallError {
    /// Whether the peer's service certainly never saw the call (of [`CallError::Failed`] only the code can tell).
    pub fn never_handled(&self) -> bool {
        matches!(
            self,
            CallError::Unreached { .. } | CallError::Refused { .. } | CallError::Deadline { sent: false, .. }
        )
    }
}

/// A service's failure, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of failure, for programs.
    pub code: String,
    /// What went wrong, for people.
    pub message: String,
}

impl Failure {
    /// Of a path that the service does not know; the caller gets [`CallError::Refused`].
    pub const NO_PATH: &str = "no_path";

    /// A failure of a kind.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure { code: code.into(), message: message.into() }
    }

    fn encode(&self) -> Bytes {
        rmp_serde::to_vec(self).expect("two strings can be written").into()
    }

    /// The failure that a peer's bytes tell of.
    fn into_error(to: &str, bytes: &[u8]) -> CallError {
        let to = to.to_owned();
        match rmp_serde::from_slice(bytes) {
            Ok(Failure { code, message }) => CallError::Failed { to, code, message },
            Err(error) => CallError::Lost { to, why: format!("a failure that cannot be read: {error}") },
        }
    }

    /// There is no such path.
    pub fn no_path(path: &str) -> Failure {
        Failure::new(Failure::NO_PATH, format!("there is no {path}"))
    }
}

/// What a node answers its peers. `from` is the name the peer gave in its hello.
///
/// An answer and a stream are dropped when their caller gives up; an upload's body ends with an error then.
pub trait Service: Send + Sync + 'static {
    /// Whether also a node of no cluster, or of another, may ask for this. The secret is checked all the same.
    fn is_open(&self, path: &str) -> bool {
        let _ = path;
        false
    }

    /// Answers a call.
    fn answer(&self, from: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let _ = (from, body);
        let failure = Failure::no_path(path);
        Box::pin(async { Err(failure) })
    }

    /// Takes an upload. `body` ends with an error if the sender's broke or the sender went away.
    fn receive(
        &self,
        from: &str,
        path: &str,
        head: Bytes,
        body: ByteStream,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let _ = (from, head, body);
        let failure = Failure::no_path(path);
        Box::pin(async { Err(failure) })
    }

    /// Answers with a stream. If it yields an error, the caller's ends with one.
    fn stream(&self, from: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<ByteStream, Failure>> {
        let _ = (from, body);
        let failure = Failure::no_path(path);
        Box::pin(async { Err(failure) })
    }
}

/// Largest body of a call and of its answer, and largest head of an upload; streams have no limit.
pub const CALL_BYTES_MAX: usize = 128 << 20;

/// How long a TCP connection may take.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);
/// How long the answer to a hello may take.
const HELLO_WITHIN: Duration = Duration::from_millis(1_000);
/// After a failed attempt calls fail with its error for this long; then one of them tries again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// A connection on which nothing came for this long is pinged.
const PING_EVERY: Duration = Duration::from_millis(500);
/// A connection whose ping is not answered within this is dropped.
const PING_WITHIN: Duration = Duration::from_millis(1_500);

/// Bytes one stream may have under way; a stream whose reader stands still holds as many.
const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes a connection may have under way: many streams may stand still before they slow the others.
const CONNECTION_WINDOW: u32 = 256 << 20;
/// Bytes of a frame: a batch of 1 MiB costs 1.3 ms of CPU both ways in one frame, 2.1 ms in four, 2.9 ms in 64
/// (`benches/peers.rs`); on a slow wire a heartbeat waits for one.
const FRAME_BYTES: u32 = 1 << 20;
/// Calls under way on one connection; more wait at the caller.
const STREAMS_MAX: u32 = 16_384;
