//! Linearizable reads on any replica: rounds of ReadIndex, each shared by all reads that were waiting when it started.
//!
//! The leader asks others whether they still have its vote, as many as make a quorum with it; every other replica asks
//! the leader, one message for all who wait, and says what its own vote is. Where the two of them are a quorum, that is
//! confirmation enough; a leader that is a quorum by itself asks nobody. Neither asks openraft: what counts is what each
//! has told its log.
//!
//! Invariants: a round confirms with a quorum that the leader still leads (never by the lease, which trusts clocks); a
//! read takes part only in rounds that start after the read arrived, so it sees everything that anyone was told before
//! it; a round is let go when another leader is heard of, or when it takes too long, and its readers take part in the
//! next one. A round starts while the last one is under way, so that nobody waits for two; more wait.
//! Not here: the read itself, which waits for the index to be applied and then looks at the state machine.
//! Source: Ongaro's dissertation (2014), section 6.4.

use super::{
    Leadership, ReplicaError,
    message::{Answer, NoReadIndex, Request},
    peer::Peers,
    progress::Progress,
    standing::{Lead, Standing},
};
use crate::{
    model::ReplicaId,
    mutant::{self, Mutant},
    world,
};
use annal_wal::LogIndex;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

/// What must be applied before a linearizable read may look, at the replica that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadIndex(pub LogIndex);

/// Rounds under way at a time.
const ROUNDS: usize = 2;

/// A replica that has not answered for so long is not waited for alone: the next one is asked too.
const SLOW_AFTER: Duration = Duration::from_millis(10);

/// How long a round that failed waits for news of a leader before the next one.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The end of the rounds that readers hold.
pub(super) struct Reads {
    waiting: mpsc::UnboundedSender<Reader>,
    rounds: Arc<AtomicU64>,
    attempt_within: Duration,
    standing: Standing,
}

/// Someone who waits for an index.
struct Reader {
    answer: oneshot::Sender<Result<ReadIndex, ReplicaError>>,
    /// Another replica that asks: it is not sent on to a third.
    here_only: bool,
    /// It took part in a round that was let go: it waits for the next leader.
    tried: bool,
}

impl Reads {
    /// Starts the task that runs the rounds; it ends when this end is dropped.
    pub(super) fn start(
        standing: Standing,
        peers: Peers,
        leadership: watch::Receiver<Leadership>,
        attempt_within: Duration,
    ) -> Self {
        let (waiting, queue) = mpsc::unbounded_channel();
        let rounds = Arc::new(AtomicU64::new(0));
        let running = Rounds {
            standing: standing.clone(),
            quick: Arc::default(),
            peers,
            leadership,
            attempt_within,
            progress: standing.progress.clone(),
            queue,
            readers: Vec::new(),
            under_way: FuturesUnordered::new(),
            rounds: rounds.clone(),
        };
        world::spawn(running.run());
        Reads { waiting, rounds, attempt_within, standing }
    }

    /// See [`super::Replica::read_index`].
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<ReadIndex, ReplicaError> {
        self.wait(false, deadline).await
    }

    /// The same, but only if this replica leads.
    pub(super) async fn read_index_here(&self, deadline: Instant) -> Result<ReadIndex, ReplicaError> {
        self.wait(true, deadline).await
    }

    async fn wait(&self, here_only: bool, deadline: Instant) -> Result<ReadIndex, ReplicaError> {
        let progress = &self.standing.progress;
        progress.check_running()?;
        if let Some(lead) = self.standing.alone() {
            return Ok(if here_only { lead.index } else { self.standing.index_here(&lead) });
        }
        let (answer, answered) = oneshot::channel();
        let reader = Reader { answer, here_only, tried: false };
        self.waiting.send(reader).map_err(|_| progress.stopped(false))?;
        timeout_at(deadline, answered)
            .await
            .map_err(|_| ReplicaError::Deadline { proposed: false })?
            .map_err(|_| progress.stopped(false))?
    }

    /// Rounds run so far.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// The longest that a round may take.
    pub(super) fn attempt_within(&self) -> Duration {
        self.attempt_within
    }
}

/// The task's own state.
struct Rounds {
    standing: Standing,
    /// The replica that confirmed last: it is asked first.
    quick: Arc<AtomicU64>,
    peers: Peers,
    leadership: watch::Receiver<Leadership>,
    attempt_within: Duration,
    progress: Arc<Progress>,
    queue: mpsc::UnboundedReceiver<Reader>,
    /// Those of the next round.
    readers: Vec<Reader>,
    under_way: FuturesUnordered<BoxFuture<'static, (Vec<Reader>, Round)>>,
    rounds: Arc<AtomicU64>,
}

/// What a round came to.
enum Round {
    /// For all who took part.
    Settled(Result<ReadIndex, ReplicaError>),
    /// Whoever was asked does not lead, was not reached, or did not answer in time.
    Failed,
    /// Another leader was heard of.
    LetGo,
}

impl Rounds {
    /// Runs rounds until nobody can ask any more; readers left then learn that the replica stopped.
    async fn run(mut self) {
        while self.gather().await {
            if self.progress.check_running().is_err() {
                answer(std::mem::take(&mut self.readers), &Err(self.progress.stopped(false)));
                continue;
            }
            let Leadership { leader, .. } = *self.leadership.borrow_and_update();
            let here = leader == Some(self.peers.replica);
            self.turn_away(|reader| !here && (reader.here_only || leader.is_none() && !reader.tried), leader);
            if self.readers.is_empty() {
                continue;
            }
            let Some(leader) = leader else {
                self.wait_for_news().await;
                continue;
            };
            self.rounds.fetch_add(1, Ordering::Relaxed);
            self.begin(leader);
        }
    }

    /// Waits until a round may start, and somebody takes part: everyone who asked before it starts. False when nobody
    /// can ask any more.
    async fn gather(&mut self) -> bool {
        loop {
            while let Ok(reader) = self.queue.try_recv() {
                self.readers.push(reader);
            }
            self.readers.retain(|reader| !reader.answer.is_closed());
            let room = self.under_way.len() < ROUNDS;
            if room && !self.readers.is_empty() {
                return true;
            }
            tokio::select! {
                Some((readers, round)) = self.under_way.next() => self.end(readers, round).await,
                reader = self.queue.recv(), if room => match reader {
                    Some(reader) => self.readers.push(reader),
                    None => return false,
                },
            }
        }
    }

    /// Starts a round for all who are there.
    fn begin(&mut self, leader: ReplicaId) {
        let (standing, peers) = (self.standing.clone(), self.peers.clone());
        let (quick, within) = (self.quick.clone(), self.attempt_within);
        let (readers, mut leadership) = (std::mem::take(&mut self.readers), self.leadership.clone());
        let ask = async move {
            if leader == peers.replica {
                here(&standing, &peers, &quick, within).await
            } else {
                there(&standing, &peers, leader, within).await
            }
        };
        let round = async move {
            let round = tokio::select! {
                biased;
                round = timeout(within, ask) => round.unwrap_or(Round::Failed),
                // The end of Raft counts as news too: `run` then finds that it stopped.
                _ = leadership.changed() => Round::LetGo,
            };
            (readers, round)
        };
        self.under_way.push(round.boxed());
    }

    async fn end(&mut self, mut readers: Vec<Reader>, round: Round) {
        if let Round::Settled(result) = round {
            return answer(readers, &result);
        }
        readers.iter_mut().for_each(|reader| reader.tried = true);
        self.readers.append(&mut readers);
        if matches!(round, Round::Failed) {
            // Another replica that asks knows better whom to ask next.
            self.turn_away(|reader| reader.here_only, None);
            self.wait_for_news().await;
        }
    }

    async fn wait_for_news(&mut self) {
        // Nothing new is an answer as well, and so is the end.
        let _ = timeout(RETRY_AFTER, self.leadership.changed()).await;
    }

    fn turn_away(&mut self, whom: impl Fn(&Reader) -> bool, leader: Option<ReplicaId>) {
        for reader in self.readers.extract_if(.., |reader| whom(reader)) {
            // A reader that gave up is no longer there.
            let _ = reader.answer.send(Err(ReplicaError::NotLeader { leader }));
        }
    }
}

fn answer(readers: Vec<Reader>, result: &Result<ReadIndex, ReplicaError>) {
    for reader in readers {
        // A reader that gave up is no longer there.
        let _ = reader.answer.send(result.clone());
    }
}

/// A round of the leader: asks as many others as make a quorum with it, and one more whenever one fails or is slow.
async fn here(standing: &Standing, peers: &Peers, quick: &AtomicU64, within: Duration) -> Round {
    let Some(lead) = standing.lead().await else { return Round::Failed };
    let settled = Round::Settled(Ok(lead.index));
    if mutant::is(Mutant::LeaseReadSkew) {
        return settled;
    }
    let mut others: Vec<ReplicaId> = lead.others(peers.replica).into_iter().collect();
    let first = quick.load(Ordering::Relaxed);
    others.sort_by_key(|other| other.0 != first);
    let mut others = others.into_iter();
    // Those with its vote, and those who may turn out to have it.
    let (mut same, mut hoped) = (vec![peers.replica], vec![peers.replica]);
    let mut asked = FuturesUnordered::new();
    let mut deposed = false;
    while !lead.is_quorum(&same) {
        while !lead.is_quorum(&hoped) {
            let Some(other) = others.next() else {
                return if deposed { Round::Failed } else { Round::Settled(Err(ReplicaError::NoQuorum)) };
            };
            hoped.push(other);
            asked.push(confirm(peers, other, &lead, within));
        }
        tokio::select! {
            biased;
            Some((other, confirmed)) = asked.next() => match confirmed {
                Some(true) => {
                    quick.store(other.0, Ordering::Relaxed);
                    same.push(other);
                }
                refused => {
                    deposed |= refused.is_some();
                    hoped.retain(|hoped| *hoped != other);
                }
            },
            () = sleep(SLOW_AFTER), if others.len() > 0 => {
                let other = others.next().expect("looked at just now");
                hoped.push(other);
                asked.push(confirm(peers, other, &lead, within));
            }
        }
    }
    settled
}

/// Asks another replica whether its vote is the leader's; none: it did not say.
async fn confirm(
    peers: &Peers,
    other: ReplicaId,
    lead: &Lead,
    within: Duration,
) -> (ReplicaId, Option<bool>) {
    // All of them can fail within the round, which then says that there is no quorum.
    let confirmed = match peers.call(other, Request::Confirm { vote: lead.vote }, within / 2).await {
        Ok(Answer::Confirm(same)) => Some(same),
        Ok(unasked) => {
            tracing::warn!(replica = peers.replica.0, %other, ?unasked, "an answer to something else than Confirm");
            None
        }
        Err(error) => {
            tracing::debug!(replica = peers.replica.0, %other, %error, "no answer to Confirm");
            None
        }
    };
    (other, confirmed)
}

/// A round that the leader runs for us.
async fn there(standing: &Standing, peers: &Peers, leader: ReplicaId, within: Duration) -> Round {
    let vote = standing.vote();
    match peers.call(leader, Request::ReadIndex { vote }, within).await {
        Ok(Answer::ReadIndex(Ok(index))) => Round::Settled(Ok(index)),
        Ok(Answer::ReadIndex(Err(NoReadIndex::NoQuorum))) => Round::Settled(Err(ReplicaError::NoQuorum)),
        Ok(Answer::ReadIndex(Err(NoReadIndex::NotLeader(_)))) => Round::Failed,
        Ok(other) => {
            tracing::warn!(replica = peers.replica.0, %leader, ?other, "an answer to something else than ReadIndex");
            Round::Failed
        }
        Err(error) => {
            tracing::debug!(replica = peers.replica.0, %leader, %error, "the leader did not answer ReadIndex");
            Round::Failed
        }
    }
}
