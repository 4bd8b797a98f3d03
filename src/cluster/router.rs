//! The way of a command into the log of its group, wherever the leader is and whoever leads next.
//!
//! ```text
//! who leads? -- what the last refusal said, what the replica here says, who took the last command, else: ask all
//!   here          -> propose
//!   elsewhere     -> a lane (`forward`) -> /propose
//! refused         -> certainly not taken: the next leader, at once or after a short wait
//! lost            -> in doubt: the same command again, which the shard knows by its RequestId
//! another leads   -> whatever is under way at the old one is given up: a frozen leader holds nobody
//! the group is gone from the catalog -> nobody will ever take it: said at once
//! ```
//!
//! Invariants: a command that may have been taken is proposed again only if that is harmless
//! ([`Way::safe_twice`]); an error says `effect: none` only if no attempt can have been taken.
//! Not here: what a write is and which shards it goes to (`write`), reads.
//! Source: the client of Raft (Ongaro 2014, sections 6.2 and 6.3).

use super::{
    ClusterError, Result,
    forward::Lanes,
    peers::{Answer, Ask, Errand, PeerCalls, Refusal, Remedy, Seat},
};
use crate::{
    machine::{Outcome, StateMachine},
    model::{Effect, Position, ReplicaId, RequestId},
    replica::{Leadership, Replica},
    world,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all, ready},
    stream::FuturesUnordered,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};

/// How a command is to be proposed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Until when it is tried.
    pub(super) deadline: Instant,
    /// Whether proposing it twice is as good as once: it has a `RequestId`, or comes to the same.
    pub(super) safe_twice: bool,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) outcome: Outcome,
    /// Whether an earlier copy of it may have been taken too.
    pub(super) doubt: bool,
}

/// Shortest and longest wait while a group has no leader.
const PAUSE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];
/// How long the others of a group may take to say who leads.
const LOOK_WITHIN: Duration = Duration::from_millis(300);
/// How long a command may be under way before the others are asked whether its leader still is one: without a
/// replica here that hears of it, and with one (which may be cut off).
const DOUBT_AFTER: [Duration; 2] = [Duration::from_millis(800), Duration::from_secs(3)];
/// How long a position that was heard of is good enough for `born`.
const HEARD_FOR: Duration = Duration::from_secs(5);

/// Finds leaders.
pub(super) struct Router {
    pub(super) calls: PeerCalls,
    lanes: Lanes,
    own: OwnRequests,
    groups: Mutex<HashMap<u32, Arc<Known>>>,
}

/// What the router knows of a group.
#[derive(Default)]
struct Known {
    /// Who took the last command or was said to lead.
    leader: Mutex<Option<ReplicaId>>,
    position: Mutex<Option<(Position, Instant)>>,
    /// The shard was told its schema.
    configured: AtomicBool,
    /// One look for the leader at a time.
    looking: tokio::sync::Mutex<()>,
}

impl Router {
    /// For the node whose data folder is `incarnation`.
    pub(super) fn new(calls: PeerCalls, incarnation: &str) -> Self {
        let groups = Mutex::default();
        Router { lanes: Lanes::over(calls.clone()), calls, own: OwnRequests::new(incarnation), groups }
    }

    /// A name for an intent whose client gave it none.
    pub(super) fn own_request(&self) -> RequestId {
        self.own.next()
    }

    /// Whether a name is one of [`Router::own_request`].
    pub(super) fn is_own(&self, request: &RequestId) -> bool {
        request.client == self.own.client
    }

    /// Gets a command into the log of a group. `here` gives the group's replica on this node, if it is open.
    ///
    /// Errors: with effect none, only if no attempt can have been taken; `Missing` if the catalog has no such group
    /// any more.
    pub(super) async fn propose<M: StateMachine>(
        &self,
        group: u32,
        here: impl Fn() -> Option<(ReplicaId, Replica<M>)>,
        command: Bytes,
        way: Way,
    ) -> Result<Carried> {
        let known = self.known(group);
        let mut tries = Tries::default();
        while Instant::now() < way.deadline {
            let here = here();
            let leadership = here.as_ref().map(|(_, replica)| {
                let mut leadership = replica.leadership();
                // News is what comes after this.
                leadership.mark_unchanged();
                leadership
            });
            let Some(leader) =
                self.leader(group, &known, leadership.as_ref(), &mut tries, way.deadline).await
            else {
                if self.is_gone(group) {
                    return Err(tries.of_nobody(group));
                }
                tries.pause(leadership, way.deadline).await;
                continue;
            };
            tries.asked.insert(leader);
            let attempt = match &here {
                Some((id, replica)) if *id == leader => {
                    replica.propose(command.clone(), way.deadline).await.map_err(Refusal::from)
                }
                _ => self.forward(group, leader, command.clone(), leadership, way).await,
            };
            match attempt {
                Ok(outcome) => {
                    known.set_leader(Some(leader));
                    return Ok(Carried { outcome, doubt: tries.doubt });
                }
                Err(refusal) => {
                    known.set_leader(None);
                    tries.refused(refusal, way)?;
                }
            }
        }
        Err(tries.give_up())
    }

    /// Who is to be asked next; none if nobody is known that was not asked since the last pause.
    async fn leader(
        &self,
        group: u32,
        known: &Known,
        leadership: Option<&watch::Receiver<Leadership>>,
        tries: &mut Tries,
        deadline: Instant,
    ) -> Option<ReplicaId> {
        let here = || leadership.and_then(|known| known.borrow().leader);
        let fresh = |leader: &ReplicaId| !tries.asked.contains(leader);
        let believed = tries.hint.filter(fresh).or_else(|| here().filter(fresh));
        tries.hint = None;
        match believed.or_else(|| known.leader().filter(fresh)) {
            Some(leader) => Some(leader),
            None => timeout_at(deadline, self.look(group, known, &tries.asked)).await.ok().flatten(),
        }
    }

    /// Asks the other replicas of a group who leads; the first that names somebody new is believed.
    async fn look(&self, group: u32, known: &Known, but: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
        let _turn = known.looking.lock().await;
        // Whoever looked before may have found it.
        if let Some(found) = known.leader().filter(|leader| !but.contains(leader)) {
            return Some(found);
        }
        if group == 0 && self.calls.seats(group).is_empty() {
            self.calls.find_catalog().await;
        }
        let mut answers = self.leaders(group);
        while let Some(answer) = answers.next().await {
            if let Some((_, leader)) = answer.filter(|(_, leader)| !but.contains(leader)) {
                known.set_leader(Some(leader));
                return Some(leader);
            }
        }
        None
    }

    /// Who leads, as each of the other replicas of a group says it, by term.
    fn leaders(&self, group: u32) -> FuturesUnordered<BoxFuture<'static, Option<(u64, ReplicaId)>>> {
        let (seats, deadline) = (self.calls.seats(group), Instant::now() + LOOK_WITHIN);
        let others = seats.iter().filter(|seat| seat.node != *self.calls.me());
        others
            .map(|seat| {
                let (calls, seat) = (self.calls.clone(), seat.clone());
                let ask = async move {
                    match calls.ask(&seat.node, &Ask::Lead(seat.replica), deadline).await {
                        Ok(Answer::Lead(Some(leader), term)) => Some((term, leader)),
                        _ => None,
                    }
                };
                ask.boxed()
            })
            .collect()
    }

    /// One attempt at another node. It lasts until it is answered, another leader is heard of, or the deadline.
    async fn forward(
        &self,
        group: u32,
        to: ReplicaId,
        command: Bytes,
        leadership: Option<watch::Receiver<Leadership>>,
        way: Way,
    ) -> std::result::Result<Outcome, Refusal> {
        let mut sent = self.lanes.send(to, Errand { command, deadline: way.deadline });
        let (why, remedy) = tokio::select! {
            biased;
            done = sent.answer() => return done,
            next = self.another_leader(group, to, leadership) => match next {
                Some(_) => ("another leader took over from the one that was asked", Remedy::Leader(next)),
                None => ("the group was given up", Remedy::Again),
            },
            () = sleep_until(way.deadline) => ("the leader's answer", Remedy::Again),
        };
        Err(sent.give_up(why, remedy))
    }

    /// Resolves when somebody else is heard to lead; to none once nobody ever will.
    async fn another_leader(
        &self,
        group: u32,
        than: ReplicaId,
        leadership: Option<watch::Receiver<Leadership>>,
    ) -> Option<ReplicaId> {
        let [alone, with_replica] = DOUBT_AFTER;
        let patience = if leadership.is_some() { with_replica } else { alone };
        let heard_here = async {
            match leadership {
                Some(leadership) => next_leader(leadership, than).await,
                None => std::future::pending().await,
            }
        };
        let heard_elsewhere = async {
            sleep(patience).await;
            loop {
                if self.is_gone(group) {
                    return None;
                }
                // The one that is asked is among them, and so is one that slept through an election.
                let said: Vec<_> = self.leaders(group).filter_map(ready).collect().await;
                match said.into_iter().max() {
                    Some((_, leader)) if leader != than => return Some(leader),
                    _ => sleep(LOOK_WITHIN).await,
                }
            }
        };
        tokio::select! { leader = heard_here => Some(leader), leader = heard_elsewhere => leader }
    }

    /// Whether the catalog has a group no more. That of the catalog itself is always there, known or not.
    pub(super) fn is_gone(&self, group: u32) -> bool {
        group != 0 && self.calls.seats(group).is_empty()
    }

    fn known(&self, group: u32) -> Arc<Known> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).entry(group).or_default().clone()
    }

    /// Who is believed to lead a group, from here.
    pub(super) fn believed_leader(&self, group: u32) -> Option<ReplicaId> {
        self.known(group).leader()
    }

    /// Whether a shard is known to have been told its schema.
    pub(super) fn is_configured(&self, group: u32) -> bool {
        self.known(group).configured.load(Ordering::Relaxed)
    }

    /// Notes that a shard was told its schema.
    pub(super) fn set_configured(&self, group: u32) {
        self.known(group).configured.store(true, Ordering::Relaxed);
    }

    /// Notes where a shard's log has come.
    pub(super) fn hear(&self, group: u32, position: Position) {
        let known = self.known(group);
        let mut heard = known.position.lock().unwrap_or_else(PoisonError::into_inner);
        let highest = heard.map_or(position, |(before, _)| before.max(position));
        *heard = Some((highest, Instant::now()));
    }

    /// Where a shard's log had come when it was heard of last, or is said to have come when it is asked now.
    pub(super) async fn heard(&self, group: u32, deadline: Instant) -> Position {
        let known = self.known(group);
        let heard = *known.position.lock().unwrap_or_else(PoisonError::into_inner);
        match heard {
            Some((position, at)) if at.elapsed() < HEARD_FOR => position,
            _ => self.ask_position(group, deadline).await,
        }
    }

    /// Asks the replicas of a shard where its log has come; the highest answer, and what was heard before.
    pub(super) async fn ask_position(&self, group: u32, deadline: Instant) -> Position {
        let seats = self.calls.seats(group);
        let deadline = deadline.min(Instant::now() + LOOK_WITHIN);
        let others = seats.iter().filter(|seat| seat.node != *self.calls.me());
        let ask =
            async |seat: &Seat| self.calls.ask(&seat.node, &Ask::Position(seat.replica), deadline).await;
        for answer in join_all(others.map(ask)).await {
            if let Ok(Answer::Position(position)) = answer {
                self.hear(group, position);
            }
        }
        self.last_heard(group)
    }

    /// Where a shard's log had come when it was heard of last; 0 if it never was.
    pub(super) fn last_heard(&self, group: u32) -> Position {
        let known = self.known(group);
        let heard = *known.position.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map_or(Position(0), |(position, _)| position)
    }
}

/// Waits until a replica hears news that somebody else leads.
async fn next_leader(mut leadership: watch::Receiver<Leadership>, than: ReplicaId) -> ReplicaId {
    loop {
        if leadership.changed().await.is_err() {
            // The replica has stopped: it hears of nobody any more.
            std::future::pending::<()>().await;
        }
        if let Some(leader) = leadership.borrow_and_update().leader.filter(|leader| *leader != than) {
            return leader;
        }
    }
}

impl Known {
    fn leader(&self) -> Option<ReplicaId> {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_leader(&self, leader: Option<ReplicaId>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }
}

/// What came of the attempts so far.
#[derive(Default)]
struct Tries {
    /// Who was asked since the last pause.
    asked: BTreeSet<ReplicaId>,
    hint: Option<ReplicaId>,
    /// Whether one may have been taken.
    doubt: bool,
    last: Option<ClusterError>,
    pauses: u32,
}

impl Tries {
    /// Notes a refusal. Errors: there is no use, or harm, in another attempt.
    fn refused(&mut self, refusal: Refusal, way: Way) -> Result<()> {
        let Refusal { error, remedy } = refusal;
        self.doubt |= error.effect() == Effect::Unknown;
        if remedy == Remedy::Never || self.doubt && !way.safe_twice {
            return Err(self.doubted(error));
        }
        if let Remedy::Leader(next) = remedy {
            self.hint = next;
        }
        self.last = Some(error);
        Ok(())
    }

    /// Waits a moment, or until the replica here has news; then everybody may be asked again.
    async fn pause(&mut self, leadership: Option<watch::Receiver<Leadership>>, deadline: Instant) {
        self.asked.clear();
        self.last.get_or_insert_with(|| ClusterError::Unavailable("nobody is known to lead".to_owned()));
        let news = async {
            if let Some(mut leadership) = leadership
                && leadership.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        let wait = jittered((PAUSE[0] * 2u32.saturating_pow(self.pauses)).min(PAUSE[1]));
        self.pauses = (self.pauses + 1).min(8);
        tokio::select! {
            () = sleep_until(deadline.min(Instant::now() + wait)) => {}
            () = news => {}
        }
    }

    /// An error of no effect, and what the attempts before it may have done.
    fn doubted(&self, error: ClusterError) -> ClusterError {
        match self.doubt {
            true => error.in_doubt("an earlier copy may have been taken"),
            false => error,
        }
    }

    /// There is nobody left to ask.
    fn of_nobody(self, group: u32) -> ClusterError {
        self.doubted(ClusterError::Missing(format!("group {group}, which the catalog has no more")))
    }

    fn give_up(self) -> ClusterError {
        let last = self.last.map(|error| format!(": {error}")).unwrap_or_default();
        match self.doubt {
            true => ClusterError::Timeout { what: format!("the write{last}"), effect: Effect::Unknown },
            false => ClusterError::Unavailable(format!("no leader took the write in time{last}")),
        }
    }
}

/// Between half of a time and all of it.
pub(super) fn jittered(of: Duration) -> Duration {
    of.mul_f64(0.5 + (world::chance() % 1024) as f64 / 2048.0)
}

/// Names for the intents of clients that give them none.
struct OwnRequests {
    client: String,
    next: AtomicU64,
}

impl OwnRequests {
    /// The name holds the data folder and the time of this start, so it is never used again; and it begins with a
    /// space, so that no client can give it.
    fn new(incarnation: &str) -> Self {
        let start = world::since_1970();
        let seed = format!("{incarnation} {} {}", start.as_nanos(), world::chance());
        let name = xxhash_rust::xxh3::xxh3_64(seed.as_bytes()).to_be_bytes();
        OwnRequests { client: format!(" {}", URL_SAFE_NO_PAD.encode(name)), next: AtomicU64::new(1) }
    }

    fn next(&self) -> RequestId {
        RequestId { client: self.client.clone(), seq: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    fn way(safe_twice: bool) -> Way {
        Way { deadline: Instant::now() + Duration::from_secs(10), safe_twice }
    }

    fn superseded() -> Refusal {
        crate::replica::ReplicaError::Superseded.into()
    }

    fn not_leader(leader: u64) -> Refusal {
        crate::replica::ReplicaError::NotLeader { leader: Some(ReplicaId(leader)) }.into()
    }

    #[test]
    fn what_was_never_taken_has_no_effect_however_often_it_was_tried() {
        let mut tries = Tries::default();
        for refusal in [not_leader(2), Refusal::unreached("n2"), not_leader(3)] {
            tries.refused(refusal, way(false)).expect("it may be tried again");
        }
        assert_eq!(tries.hint, Some(ReplicaId(3)));
        let error = tries.give_up();
        assert_eq!((error.kind(), error.effect()), (Kind::Unavailable, Effect::None), "{error}");
    }

    #[test]
    fn one_doubt_stays_whatever_comes_after_it() {
        let mut tries = Tries::default();
        tries.refused(superseded(), way(true)).expect("it has a name, so it may be tried again");
        tries.refused(not_leader(2), way(true)).expect("and again");
        let error = tries.give_up();
        assert_eq!((error.kind(), error.effect()), (Kind::Timeout, Effect::Unknown), "{error}");

        let mut tries = Tries { doubt: true, ..Tries::default() };
        let too_large = crate::replica::ReplicaError::TooLarge { bytes: 2, max: 1 };
        let error = tries.refused(too_large.into(), way(true)).unwrap_err();
        assert_eq!(error.effect(), Effect::Unknown, "{error}");
    }

    #[test]
    fn what_would_harm_twice_is_not_tried_after_a_doubt() {
        let mut tries = Tries::default();
        tries.refused(not_leader(2), way(false)).expect("certainly not taken");
        let error = tries.refused(Refusal::in_doubt("n2"), way(false)).unwrap_err();
        assert_eq!(error.effect(), Effect::Unknown, "{error}");
    }

    #[test]
    fn what_nobody_will_take_is_said_at_once() {
        let mut tries = Tries::default();
        let too_large = crate::replica::ReplicaError::TooLarge { bytes: 2, max: 1 };
        let error = tries.refused(too_large.into(), way(true)).unwrap_err();
        assert_eq!((error.kind(), error.effect()), (Kind::Invalid, Effect::None), "{error}");
    }

    #[tokio::test]
    async fn only_news_of_somebody_else_ends_an_attempt() {
        let leads = |leader: Option<u64>, term| Leadership {
            leader: leader.map(ReplicaId),
            term: crate::replica::Term(term),
        };
        let (tell, mut heard) = watch::channel(leads(Some(3), 1));
        heard.mark_unchanged();
        let waiting = tokio::spawn(next_leader(heard, ReplicaId(2)));
        // What was known before counts for nothing, nor does an election, nor the one that is asked already.
        for news in [leads(None, 2), leads(Some(2), 2), leads(None, 3)] {
            tell.send_replace(news);
            sleep(Duration::from_millis(5)).await;
            assert!(!waiting.is_finished(), "{news:?}");
        }
        tell.send_replace(leads(Some(1), 3));
        assert_eq!(waiting.await.expect("it ends"), ReplicaId(1));
    }

    #[test]
    fn names_of_our_own_are_never_given_twice_nor_by_a_client() {
        let (one, other) = (OwnRequests::new("a"), OwnRequests::new("a"));
        let names: BTreeSet<RequestId> = [one.next(), one.next(), other.next()].into();
        assert_eq!(names.len(), 3);
        for name in names {
            assert!(name.client.len() <= 12 && name.to_string().parse::<RequestId>().is_err(), "{name}");
        }
    }

    #[test]
    fn waits_differ_and_stay_within_bounds() {
        let of = Duration::from_millis(40);
        let waits: BTreeSet<Duration> = (0..100).map(|_| jittered(of)).collect();
        assert!(waits.len() > 50 && waits.iter().all(|wait| *wait >= of / 2 && *wait <= of));
    }
}
