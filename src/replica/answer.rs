//! What a replica answers the others of its group.
//!
//! Invariants: a message for another replica is refused, so that nobody votes or acknowledges in another's name; an
//! append that overtook the one before it waits a moment for it; a replica whose log lacks what it acknowledged to the
//! leader stops, since it may vote twice; a snapshot reaches the state machine only when all
//! of it has come and is whole.
//! Not here: the bytes (`message`, `snapshot`), what an answer is decided by (openraft).

use super::{
    ReadIndex, Replica, ReplicaError,
    entry::{RaftVote, Types},
    message::{Answer, Before, NoReadIndex, Request, Route, SnapshotHead},
    snapshot::SnapshotStream,
};
use crate::{machine::StateMachine, model::ReplicaId};
use annal_wal::LogIndex;
use bytes::Bytes;
use futures::stream::BoxStream;
use openraft::{raft::AppendEntriesResponse, type_config::alias::SnapshotOf};
use std::{io, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long an append waits for the one it overtook. If that is lost, the sender hears of a conflict and starts over.
const OVERTAKEN_WITHIN: Duration = Duration::from_millis(100);

impl<M: StateMachine> Replica<M> {
    /// Answers a message that another replica sent through its [`super::Network::call`].
    ///
    /// Errors: `Misdirected`, `Format` (no effect), `Stopped`.
    pub async fn answer(&self, message: Bytes) -> Result<Bytes, ReplicaError> {
        let (route, request) = Request::decode(message)?;
        self.check_route(route)?;
        self.inner.progress.check_running()?;
        let stopped = |_| self.inner.progress.stopped(false);
        let raft = &self.inner.raft;
        let answer = match request {
            Request::Append { append, before } => {
                if let Some(id) = append.prev_log_id.filter(|_| before == Before::UnderWay) {
                    self.inner.progress.wait_submitted(LogIndex(id.index()), OVERTAKEN_WITHIN).await;
                }
                let appended = raft.append_entries(append).await.map_err(stopped)?;
                if before == Before::Acknowledged && matches!(appended, AppendEntriesResponse::Conflict) {
                    // It may have forgotten votes as well.
                    self.inner.progress.forgets();
                    self.inner.end_raft().await?;
                    return Err(self.inner.progress.stopped(false));
                }
                Answer::Append(appended)
            }
            Request::Vote(ask) => Answer::Vote(raft.vote(ask).await.map_err(stopped)?),
            Request::PreVote(ask) => Answer::Vote(raft.pre_vote(ask).await.map_err(stopped)?),
            Request::Transfer(transfer) => Answer::Transfer(
                raft.handle_transfer_leader(transfer)
                    .await
                    .map_err(|_| self.inner.progress.stopped(false))?,
            ),
            Request::ReadIndex { vote } => {
                Answer::ReadIndex(self.read_index_for_another(route.from, vote).await?)
            }
            Request::Confirm { vote } => Answer::Confirm(self.inner.standing.has_voted(vote)),
            Request::History { from } => Answer::History(self.inner.history_for_another(from).await?),
        };
        Ok(answer.encode(route.back()))
    }

    /// Receives a snapshot that another replica sent through its [`super::Network::send_snapshot`], fetches what that
    /// replica's log has below it, and replaces this replica's state.
    ///
    /// Errors: `Misdirected`, `Format`, `Snapshot` (it was cut or damaged; no effect), `Stopped`.
    pub async fn receive_snapshot(
        &self,
        head: Bytes,
        body: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Bytes, ReplicaError> {
        let (route, SnapshotHead { vote, meta }) = SnapshotHead::decode(head)?;
        self.check_route(route)?;
        self.inner.progress.check_running()?;
        let received = SnapshotStream::receive(self.inner.incoming.clone(), body).await;
        let snapshot = received.map_err(|error| ReplicaError::Snapshot(Arc::new(error)))?;
        self.inner.fetch_history(route.from, meta.last_log_id.as_ref()).await;
        let snapshot = SnapshotOf::<Types, _> { meta, snapshot };
        let installed = self.inner.raft.install_full_snapshot(vote, snapshot).await;
        self.inner.shelf.clear();
        let installed = installed.map_err(|_| self.inner.progress.stopped(false))?;
        Ok(Answer::Snapshot(installed.vote).encode(route.back()))
    }

    fn check_route(&self, Route { to, .. }: Route) -> Result<(), ReplicaError> {
        let here = self.inner.replica;
        if to == here { Ok(()) } else { Err(ReplicaError::Misdirected { to, here }) }
    }

    async fn read_index_for_another(
        &self,
        other: ReplicaId,
        vote: Option<RaftVote>,
    ) -> Result<Result<ReadIndex, NoReadIndex>, ReplicaError> {
        let reads = &self.inner.reads;
        let confirmed = vote.and_then(|vote| self.inner.standing.confirmed_by(other, vote));
        let index = match confirmed {
            Some(index) => Ok(index),
            None => reads.read_index_here(Instant::now() + reads.attempt_within()).await,
        };
        match index {
            Ok(index) => {
                self.inner.progress.commits_wanted.notify_waiters();
                Ok(Ok(index))
            }
            Err(ReplicaError::NotLeader { leader }) => Ok(Err(NoReadIndex::NotLeader(leader))),
            Err(ReplicaError::NoQuorum | ReplicaError::Deadline { .. }) => Ok(Err(NoReadIndex::NoQuorum)),
            Err(error) => Err(error),
        }
    }
}
