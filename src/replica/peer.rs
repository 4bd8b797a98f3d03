//! The way to the other replicas of a group, as openraft wants it, over a [`Network`].
//!
//! Invariants: every call has a deadline, a snapshot one that moves with its progress; what is not answered, or
//! answered by someone else, is an error, never a made-up grant; answers to appends come in the order of the appends,
//! though several are under way.
//! Not here: the bytes (`message`, `snapshot`), the receiving side (`answer`).

use super::{
    entry::{RaftLogId, RaftVote, Types},
    message::{Answer, Append, Ask, Before, Request, Route, SnapshotHead, Transfer, Transferred, Voted},
    network::Network,
    pace::Pace,
    progress::Progress,
    snapshot::{Sent, SnapshotStream},
};
use crate::{
    model::ReplicaId,
    mutant::{self, Mutant},
    world,
};
use annal_wal::LogIndex;
use futures::{Stream, StreamExt, stream};
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{AppendEntriesResponse, SnapshotResponse, StreamAppendResult},
    type_config::alias::{SnapshotOf, VoteOf},
};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

/// Appends on the way to one replica at a time.
const APPENDS_UNDER_WAY: usize = 4;

/// How long an append that only tells of a commit waits for one with entries, which tells of it too. A replica that asks
/// for an index to read at ends the wait.
const COMMIT_WAITS: Duration = Duration::from_millis(3);

/// A snapshot of which nothing was taken for so long is given up.
const SNAPSHOT_STALLS_AFTER: Duration = Duration::from_secs(30);
/// What the receiver of a whole snapshot may take to install it at least,
const INSTALL_WITHIN: Duration = Duration::from_secs(60);
/// and for each so many bytes a second more.
const INSTALL_BYTES_A_SECOND: u64 = 4 << 20;
/// The deadline told to the network with a snapshot, which is minded here.
const FAR_AWAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes [`Peer`]s.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) network: Arc<dyn Network>,
    /// Of the snapshots it sends.
    pub(super) pace: Pace,
    pub(super) replica: ReplicaId,
    /// How long an append may stay unanswered: the other side flushes it first.
    pub(super) append_within: Duration,
    pub(super) progress: Arc<Progress>,
    pub(super) acknowledged: Arc<Acknowledged>,
}

/// How far each replica's log has been acknowledged to this leader.
#[derive(Debug, Default)]
pub(super) struct Acknowledged(Mutex<(Option<RaftVote>, BTreeMap<ReplicaId, RaftLogId>)>);

impl Acknowledged {
    fn note(&self, leader: RaftVote, replica: ReplicaId, upto: Option<RaftLogId>) {
        let Some(upto) = upto else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the next leader a replica may give up what it had acknowledged to this one.
        if known.0 != Some(leader) {
            *known = (Some(leader), BTreeMap::new());
        }
        let most = known.1.entry(replica).or_insert(upto);
        *most = upto.max(*most);
    }

    fn covers(&self, leader: RaftVote, replica: ReplicaId, id: Option<RaftLogId>) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.0 == Some(leader) && known.1.get(&replica).is_some_and(|upto| Some(*upto) >= id)
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &()) -> Peer {
        Peer { peers: self.clone(), to: ReplicaId(target) }
    }
}

impl Peers {
    /// Asks the replica `to`.
    pub(super) async fn call(
        &self,
        to: ReplicaId,
        request: Request,
        within: Duration,
    ) -> Result<Answer, RPCError<Types>> {
        let deadline = Instant::now() + within;
        let route = Route { from: self.replica, to };
        let action = match &request {
            Request::Vote(_) | Request::PreVote(_) => RPCTypes::Vote,
            Request::Transfer(_) => RPCTypes::TransferLeader,
            Request::Append { .. }
            | Request::ReadIndex { .. }
            | Request::Confirm { .. }
            | Request::History { .. } => RPCTypes::AppendEntries,
        };
        let call = self.network.call(to, request.encode(route), deadline);
        let answer = match timeout_at(deadline, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(unreached)) => return Err(Unreachable::new(&unreached).into()),
            Err(_) => return Err(self.late(to, action, within).into()),
        };
        let (from, answer) = Answer::decode(answer).map_err(|e| NetworkError::new(&e))?;
        if from != route.back() {
            return Err(NetworkError::from_string(format!("asked {to}, answered by {from:?}")).into());
        }
        Ok(answer)
    }

    fn late(&self, to: ReplicaId, action: RPCTypes, timeout: Duration) -> Timeout<Types> {
        Timeout { action, id: self.replica.0, target: to.0, timeout }
    }
}

/// The way to one other replica.
#[derive(Clone)]
pub(super) struct Peer {
    peers: Peers,
    to: ReplicaId,
}

impl Peer {
    async fn call(&self, request: Request, within: Duration) -> Result<Answer, RPCError<Types>> {
        self.peers.call(self.to, request, within).await
    }

    async fn append(
        self,
        append: Append,
        before: Before,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        if let Some(committed) = &append.leader_commit {
            self.peers.progress.tells(LogIndex(committed.index()));
        }
        // A group that is being founded would not get far.
        let planted = mutant::is(Mutant::AckBeforeQuorum)
            && append.leader_commit.is_some_and(|id| id.index() > 20)
            && world::chance().is_multiple_of(4);
        let (vote, last) = (append.vote, last_of(&append));
        match self.call(Request::Append { append, before }, self.peers.append_within).await {
            Err(_) if planted => Ok(AppendEntriesResponse::Success),
            Err(error) => Err(error),
            Ok(Answer::Append(appended)) => {
                let upto = match &appended {
                    AppendEntriesResponse::Success => last,
                    AppendEntriesResponse::PartialSuccess(upto) => *upto,
                    AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
                };
                self.peers.acknowledged.note(vote, self.to, upto);
                Ok(appended)
            }
            Ok(other) => Err(unexpected(&other)),
        }
    }

    /// Sends an append again that met a conflict at an entry which the replica has acknowledged, all before it being
    /// answered. Either it overtook the one before it by more than the other side waits, and is taken now; or the
    /// replica's log lacks what it had, and it stops. openraft would go on as if it had never had it.
    async fn again_if_acknowledged(
        &self,
        append: Append,
        answer: Result<AppendEntriesResponse<Types>, RPCError<Types>>,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let conflict = matches!(answer, Ok(AppendEntriesResponse::Conflict));
        if !conflict || !self.peers.acknowledged.covers(append.vote, self.to, append.prev_log_id) {
            return answer;
        }
        tracing::debug!(replica = %self.to, before = ?append.prev_log_id, "conflicts with what it has acknowledged");
        self.clone().append(append, Before::Acknowledged).await
    }
}

/// The last entry that a replica has if it takes all of an append.
fn last_of(append: &Append) -> Option<RaftLogId> {
    append.entries.last().map_or(append.prev_log_id, |entry| Some(entry.log_id))
}

/// Leaves out each append that only tells of a commit, if another one comes soon: under load that is every second
/// message to a follower. An answer to the one that is sent proves what one to the other would have proved.
fn in_company<S>(input: S, progress: Arc<Progress>) -> impl Stream<Item = Append> + OptionalSend
where
    S: Stream<Item = Append> + OptionalSend + Unpin + 'static,
{
    stream::unfold((input.fuse(), progress), |(mut input, progress)| async move {
        let mut append = input.next().await?;
        if append.entries.is_empty() {
            tokio::select! {
                biased;
                next = input.next() => append = next.unwrap_or(append),
                () = progress.commits_wanted.notified() => {}
                () = sleep(COMMIT_WAITS) => {}
            }
        }
        Some((append, (input, progress)))
    })
}

fn unexpected(answer: &Answer) -> RPCError<Types> {
    NetworkError::from_string(format!("an answer to something else: {answer:?}")).into()
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotStream;

    async fn append_entries(
        &mut self,
        append: Append,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer = self.clone().append(append.clone(), Before::Unknown).await;
        self.again_if_acknowledged(append, answer).await
    }

    /// Several appends are under way at once, so that a follower writes one while the next is on its way; the
    /// receiving side puts in order what overtook. The first that is not taken whole ends the stream.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = Append> + OptionalSend + Unpin + 'static,
    {
        let under_way = Arc::new(AtomicUsize::new(0));
        let answered = under_way.clone();
        let (peer, again) = (self.clone(), self.clone());
        let answers = in_company(input, self.peers.progress.clone())
            .map(move |append| {
                let alone = under_way.fetch_add(1, Ordering::Relaxed) == 0;
                let before = if alone { Before::Unknown } else { Before::UnderWay };
                let answer = peer.clone().append(append.clone(), before);
                async move { (answer.await, append) }
            })
            .buffered(APPENDS_UNDER_WAY);
        let in_order = stream::unfold(Some(Box::pin(answers)), move |answers| {
            let (answered, again) = (answered.clone(), again.clone());
            async move {
                let mut answers = answers?;
                let (answer, append) = answers.next().await?;
                answered.fetch_sub(1, Ordering::Relaxed);
                let (before, last) = (append.prev_log_id, last_of(&append));
                let result = match again.again_if_acknowledged(append, answer).await {
                    Ok(appended) => appended.into_stream_result(before, last),
                    Err(error) => return Some((Err(error), None)),
                };
                let whole = matches!(&result, Ok(upto) if *upto == last);
                Some((Ok(result), whole.then_some(answers)))
            }
        });
        let in_order: BoxStream<'s, _> = Box::pin(in_order);
        Box::pin(async move { Ok(in_order) })
    }

    async fn vote(&mut self, ask: Ask, option: RPCOption) -> Result<Voted, RPCError<Types>> {
        match self.call(Request::Vote(ask), option.soft_ttl()).await? {
            Answer::Vote(voted) => Ok(voted),
            other => Err(unexpected(&other)),
        }
    }

    async fn pre_vote(&mut self, ask: Ask, option: RPCOption) -> Result<Voted, RPCError<Types>> {
        match self.call(Request::PreVote(ask), option.soft_ttl()).await? {
            Answer::Vote(voted) => Ok(voted),
            other => Err(unexpected(&other)),
        }
    }

    async fn transfer_leader(
        &mut self,
        transfer: Transfer,
        option: RPCOption,
    ) -> Result<Transferred, RPCError<Types>> {
        match self.call(Request::Transfer(transfer), option.soft_ttl()).await? {
            Answer::Transfer(transferred) => Ok(transferred),
            other => Err(unexpected(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotStream>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let Peer { peers, to } = self;
        let covered = snapshot.meta.last_log_id.map(|id| LogIndex(id.index()));
        // Entries after the snapshot are needed once it is installed.
        let _kept = peers.progress.keep_after(covered);
        let (sent, seen) = watch::channel(Sent::default());
        let head = SnapshotHead { vote, meta: snapshot.meta };
        let head = head.encode(Route { from: peers.replica, to: *to });
        let frames = snapshot.snapshot.into_frames(sent, peers.pace.clone());
        let answer = tokio::select! {
            answer = peers.network.send_snapshot(*to, head, frames, Instant::now() + FAR_AWAY) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
            waited = stalls(seen, &peers.progress.history_asked) => {
                return Err(peers.late(*to, RPCTypes::InstallSnapshot, waited).into());
            }
        };
        let answer = answer.map_err(|unreached| Unreachable::new(&unreached))?;
        match Answer::decode(answer).map_err(|e| NetworkError::new(&e))? {
            (from, Answer::Snapshot(vote)) if from.from == *to => Ok(SnapshotResponse::new(vote)),
            (_, other) => Err(unexpected(&other).into()),
        }
    }
}

/// Ends when nothing was taken of a snapshot for too long, or when a whole one is not installed in the end; while the
/// history below it is fetched, that is not yet begun.
async fn stalls(mut sent: watch::Receiver<Sent>, history_asked: &Notify) -> Duration {
    loop {
        let Sent { bytes, whole } = *sent.borrow_and_update();
        if whole {
            let within = INSTALL_WITHIN + Duration::from_secs(bytes / INSTALL_BYTES_A_SECOND);
            tokio::select! {
                () = sleep(within) => return within,
                () = history_asked.notified() => continue,
            }
        }
        match timeout(SNAPSHOT_STALLS_AFTER, sent.changed()).await {
            Ok(Ok(())) => {}
            // The network let go of the stream: its answer says why.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return SNAPSHOT_STALLS_AFTER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::entry::{RaftEntry, RaftLeaderId, RaftLogId, RaftPayload, RaftVote};
    use futures::FutureExt;
    use tokio::sync::mpsc;

    /// An append behind entry `before`, with one entry or none.
    fn append(before: u64, committed: u64, has_entry: bool) -> Append {
        let leader_id = RaftLeaderId { term: 1, node_id: 1 };
        let id = |index| RaftLogId::new(leader_id, index);
        let entry = RaftEntry { log_id: id(before + 1), payload: RaftPayload::Blank };
        Append {
            vote: RaftVote { leader_id, committed: true },
            prev_log_id: Some(id(before)),
            leader_commit: Some(id(committed)),
            entries: has_entry.then_some(entry).into_iter().collect(),
        }
    }

    fn committed(append: &Append) -> u64 {
        append.leader_commit.map_or(0, |id| id.index())
    }

    #[tokio::test]
    async fn news_of_a_commit_travels_with_entries_if_they_come_soon() {
        let (send, input) = mpsc::unbounded_channel();
        let input = stream::unfold(input, |mut input| async { Some((input.recv().await?, input)) });
        let progress = Arc::new(Progress::apart());
        let mut sent = Box::pin(in_company(Box::pin(input), progress.clone()));
        // With entries: at once.
        send.send(append(4, 3, true)).unwrap();
        assert_eq!(committed(&sent.next().now_or_never().flatten().expect("at once")), 3);
        // Without: together with what comes next,
        send.send(append(5, 4, false)).unwrap();
        assert!(sent.next().now_or_never().is_none());
        send.send(append(5, 5, true)).unwrap();
        let next = sent.next().now_or_never().flatten().expect("at once");
        assert_eq!((committed(&next), next.entries.len()), (5, 1));
        // or alone after a while,
        send.send(append(6, 6, false)).unwrap();
        assert!(sent.next().now_or_never().is_none());
        assert_eq!(committed(&sent.next().await.unwrap()), 6);
        // or as soon as somebody waits for it.
        send.send(append(6, 7, false)).unwrap();
        assert!(sent.next().now_or_never().is_none());
        progress.commits_wanted.notify_waiters();
        assert_eq!(committed(&sent.next().now_or_never().flatten().expect("at once")), 7);
        // The last one is not lost with the end.
        send.send(append(6, 8, false)).unwrap();
        drop(send);
        assert_eq!(committed(&sent.next().await.unwrap()), 8);
        assert!(sent.next().await.is_none());
    }
}
