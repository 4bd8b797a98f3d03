//! Another way to peers than sockets: what a simulation carries calls over.
//!
//! Invariants: what a [`Carrier`] gives is what a connection could have given, errors included; the hello is its own
//! business, and so is the rule that a closed path is served only to a node of the same cluster.
//! Not here: deadlines, which the caller keeps.

use super::{ByteStream, CallError, Peers, Service};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Carries one node's calls, and hands it those of others.
pub trait Carrier: Send + Sync + 'static {
    /// Answers others from now on.
    fn serve(&self, peers: Peers, service: Arc<dyn Service>);

    /// See [`Peers::call`].
    fn call(&self, to: &str, path: &'static str, body: Bytes)
    -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// See [`Peers::upload`].
    fn upload(
        &self,
        to: &str,
        path: &'static str,
        head: Bytes,
        body: ByteStream,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// See [`Peers::download`].
    fn download(
        &self,
        to: &str,
        path: &'static str,
        body: Bytes,
    ) -> BoxFuture<'static, Result<ByteStream, CallError>>;
}
