//! How a replica's messages reach the other replicas of its group.
//!
//! Invariants: a message goes to a [`ReplicaId`], never to an address: who that is, and where, is the implementer's to
//! know; an answer is what [`super::Replica::answer`] (or `receive_snapshot`) gave at the other end, byte for byte.
//! Not here: what a message says (`message`), connections, credentials, addresses (`net/`, `cluster/`).

use crate::model::ReplicaId;
use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use std::io;
use tokio::time::Instant;

/// The way to other replicas. Messages may be lost, repeated and overtake each other; the cluster implements it over
/// its connections, tests in memory.
pub trait Network: Send + Sync + 'static {
    /// Hands `message` to the replica's `answer` and gives what it answered, at the latest at the deadline.
    fn call(
        &self,
        to: ReplicaId,
        message: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>>;

    /// Hands `head` and `body` to the replica's `receive_snapshot`, taking from `body` only what the other end has
    /// room for, and gives what it answered. The deadline is far away: the caller drops the future when nothing
    /// moves. A `body` that ends with an error must not look whole at the other end.
    fn send_snapshot(
        &self,
        to: ReplicaId,
        head: Bytes,
        body: BoxStream<'static, io::Result<Bytes>>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>>;
}

/// There was no answer: the message may have been handled or not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreached(pub String);

/// A network without others: for a replica that is alone in its group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Nobody {
    fn unreached<T>(to: ReplicaId) -> BoxFuture<'static, Result<T, Unreached>>
    where
        T: Send + 'static,
    {
        Box::pin(async move { Err(Unreached(format!("there is no way to replica {to}"))) })
    }
}

impl Network for Nobody {
    fn call(&self, to: ReplicaId, _: Bytes, _: Instant) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        Nobody::unreached(to)
    }

    fn send_snapshot(
        &self,
        to: ReplicaId,
        _: Bytes,
        _: BoxStream<'static, io::Result<Bytes>>,
        _: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        Nobody::unreached(to)
    }
}
