//! Nodes in conversation: who is asked, in which words, and where a node finds its answers.
//!
//! | path | says | bytes |
//! |---|---|---|
//! | `/raft`, `/raft/snapshot` | what replicas say to each other | replica u64 little-endian, then theirs |
//! | `/propose` | commands for a leader's log, several at once | protobuf |
//! | `/read` | a read of one shard | MessagePack |
//! | `/feed` | the commands of a replica and what they did, without an end | MessagePack; frames (`follow/wire`) |
//! | `/ask` | the rest, seldom | MessagePack |
//!
//! Invariants: who keeps a replica is looked up in the catalog for each call, so a call goes to the data folder
//! that has the replica or nowhere; a node answers for the replicas it holds and for no others; an error travels
//! with its effect.
//! Not here: retries and who leads (`router`, `read`), connections (`net`), joining (see [`PeerService`]).

use super::{
    Cluster, ClusterError, NodeName,
    catalog::{CatalogState, GroupRecord, Phase, ReplicaRecord},
    follow::FeedAsk,
    read::{ReadAnswer, ReadAsk},
    report::NodeReport,
    shards::LocalShard,
};
use crate::{
    machine::{Outcome, Rejection, Verdict},
    model::{Position, ReplicaId},
    net::{self, ByteStream, CallError, Failure, Peers},
    replica::{Network, ReplicaError, Unreached},
};
use arc_swap::ArcSwap;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::{BoxFuture, join_all};
use prost::Message;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

const RAFT: &str = "/raft";
const SNAPSHOT: &str = "/raft/snapshot";
const PROPOSE: &str = "/propose";
const READ: &str = "/read";
const FEED: &str = "/feed";
const ASK: &str = "/ask";

/// What is asked seldom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// What does the node hold?
    Report,
    /// Who leads the group of this replica of the node?
    Lead(ReplicaId),
    /// What has this replica of the node applied?
    Position(ReplicaId),
    /// Hand the leadership of its group over to another replica, if this one of the node leads.
    HandOver {
        /// The replica of the node.
        from: ReplicaId,
        /// The one that is to lead.
        to: ReplicaId,
    },
    /// Where is group 0?
    Catalog,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To [`Ask::Report`].
    Report(NodeReport),
    /// To [`Ask::Lead`]: the leader if one is known, and Raft's term.
    Lead(Option<ReplicaId>, u64),
    /// To [`Ask::Position`].
    Position(Position),
    /// To [`Ask::Catalog`]: the replicas of group 0.
    Catalog(Vec<Seed>),
    /// It is under way.
    Done,
    /// The node does not hold the replica, or it is not open.
    NotHere,
}

/// A command on its way to a leader.
#[derive(Clone, Debug)]
pub(super) struct Errand {
    pub(super) command: Bytes,
    pub(super) deadline: Instant,
}

/// Why a replica did not take a command or a read, as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Refusal {
    /// What to tell the caller if nobody else does it; knows the effect.
    pub(super) error: ClusterError,
    pub(super) remedy: Remedy,
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Remedy {
    /// Another replica leads: this one, if known.
    Leader(Option<ReplicaId>),
    /// Try again, here or elsewhere.
    Again,
    /// Nobody else will take it either.
    Never,
}

impl Refusal {
    /// It certainly was not taken; another replica may.
    pub(super) fn unreached(why: impl std::fmt::Display) -> Refusal {
        Refusal { error: ClusterError::Unavailable(why.to_string()), remedy: Remedy::Leader(None) }
    }

    /// It may have been taken.
    pub(super) fn in_doubt(why: impl std::fmt::Display) -> Refusal {
        let effect = crate::model::Effect::Unknown;
        Refusal { error: ClusterError::Timeout { what: why.to_string(), effect }, remedy: Remedy::Again }
    }
}

impl From<ReplicaError> for Refusal {
    fn from(error: ReplicaError) -> Self {
        let remedy = match &error {
            ReplicaError::NotLeader { leader } => Remedy::Leader(*leader),
            ReplicaError::TooLarge { .. } | ReplicaError::Limited { .. } | ReplicaError::Full(_) => {
                Remedy::Never
            }
            _ => Remedy::Again,
        };
        Refusal { error: error.into(), remedy }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        if error.never_handled() { Refusal::unreached(error) } else { Refusal::in_doubt(error) }
    }
}

/// The other nodes, as the catalog knows them; cheap to clone.
#[derive(Clone)]
pub(super) struct PeerCalls {
    inner: Arc<Calls>,
}

struct Calls {
    me: NodeName,
    peers: Peers,
    catalog: watch::Receiver<Arc<CatalogState>>,
    book: ArcSwap<Book>,
    /// Addresses of some nodes, for a node that has no catalog yet.
    addresses: ArcSwap<Vec<String>>,
    /// What those said of group 0.
    seeds: ArcSwap<Vec<Seed>>,
    /// One such question at a time, and not too often.
    seeding: tokio::sync::Mutex<Option<Instant>>,
}

/// A replica of group 0, as a node that has no catalog yet is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seed {
    pub(super) seat: Seat,
    /// The peer address of its node.
    pub(super) address: String,
}

/// A replica of a group, and the node that keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seat {
    pub(super) replica: ReplicaId,
    pub(super) node: NodeName,
    pub(super) phase: Phase,
}

impl Seat {
    fn of(record: &ReplicaRecord) -> Self {
        Seat { replica: record.replica, node: record.node.clone(), phase: record.phase }
    }
}

/// How long seeds may take to answer, and how often they are asked.
const SEED_WITHIN: Duration = Duration::from_millis(500);
const SEED_EVERY: Duration = Duration::from_millis(500);

/// One state of the catalog, by replica and by group.
#[derive(Default)]
struct Book {
    of: Arc<CatalogState>,
    /// Those that vote first.
    seats: HashMap<u32, Arc<[Seat]>>,
    nodes: HashMap<ReplicaId, NodeName>,
}

impl Book {
    fn of(catalog: Arc<CatalogState>) -> Book {
        let seats = |group: &GroupRecord| {
            let mut seats: Vec<Seat> = group.replicas.iter().map(Seat::of).collect();
            seats.sort_by_key(|seat| seat.phase != Phase::Voter);
            (group.group, seats.into())
        };
        let nodes = catalog.groups().flat_map(|group| &group.replicas);
        Book {
            seats: catalog.groups().map(seats).collect(),
            nodes: nodes.map(|r| (r.replica, r.node.clone())).collect(),
            of: catalog,
        }
    }
}

impl PeerCalls {
    /// The peers of the node `me`, where `catalog` says they are.
    pub(super) fn new(me: NodeName, peers: Peers, catalog: watch::Receiver<Arc<CatalogState>>) -> Self {
        let book = ArcSwap::from_pointee(Book::of(catalog.borrow().clone()));
        let (addresses, seeds, seeding) = Default::default();
        PeerCalls { inner: Arc::new(Calls { me, peers, catalog, book, addresses, seeds, seeding }) }
    }

    /// Names nodes that are asked where group 0 is for as long as there is no catalog here.
    pub(super) fn seed(&self, addresses: Vec<String>) {
        self.inner.addresses.store(Arc::new(addresses));
    }

    /// Asks the seeds where group 0 is, unless the catalog says it.
    pub(super) async fn find_catalog(&self) {
        let addresses = self.inner.addresses.load_full();
        if addresses.is_empty() || !self.book().of.nodes.is_empty() {
            return;
        }
        let mut last = self.inner.seeding.lock().await;
        if last.is_some_and(|at| at.elapsed() < SEED_EVERY) {
            return;
        }
        let deadline = Instant::now() + SEED_WITHIN;
        let asks = addresses.iter().map(|to| self.inner.peers.call(to, ASK, pack(&Ask::Catalog), deadline));
        for answer in join_all(asks).await.into_iter().flatten() {
            if let Ok(Answer::Catalog(seeds)) = unpack(&answer)
                && !seeds.is_empty()
            {
                self.inner.seeds.store(Arc::new(seeds));
            }
        }
        *last = Some(Instant::now());
    }

    /// This node's name.
    pub(super) fn me(&self) -> &NodeName {
        &self.inner.me
    }

    /// The replicas of a group, those that vote first; none if there is no such group.
    pub(super) fn seats(&self, group: u32) -> Arc<[Seat]> {
        match self.book().seats.get(&group) {
            Some(seats) if !seats.is_empty() => seats.clone(),
            _ if group == 0 => self.inner.seeds.load().iter().map(|seed| seed.seat.clone()).collect(),
            _ => Arc::default(),
        }
    }

    /// The node that keeps a replica.
    pub(super) fn node_of(&self, replica: ReplicaId) -> Option<NodeName> {
        let seeds = self.inner.seeds.load();
        let seed = || seeds.iter().find(|s| s.seat.replica == replica).map(|s| s.seat.node.clone());
        self.book().nodes.get(&replica).cloned().or_else(seed)
    }

    fn book(&self) -> Arc<Book> {
        let (catalog, book) = (self.inner.catalog.borrow().clone(), self.inner.book.load_full());
        if Arc::ptr_eq(&book.of, &catalog) {
            return book;
        }
        let book = Arc::new(Book::of(catalog));
        self.inner.book.store(book.clone());
        book
    }

    fn address(&self, node: &str) -> Result<String, CallError> {
        let seeds = self.inner.seeds.load();
        let seed = || seeds.iter().find(|s| s.seat.node == node).map(|s| s.address.clone());
        let known = self.book().of.nodes.get(node).map(|record| record.peer.clone());
        let unknown = || unreached(node, "the catalog knows no such node");
        known.or_else(seed).ok_or_else(unknown)
    }

    async fn address_of(&self, replica: ReplicaId) -> Result<String, CallError> {
        let mut node = self.node_of(replica);
        if node.is_none() {
            self.find_catalog().await;
            node = self.node_of(replica);
        }
        self.address(
            &node.ok_or_else(|| unreached(&format!("replica {replica}"), "no node is known to keep it"))?,
        )
    }

    /// Asks a node; no error is known to be without effect but those of [`CallError::never_handled`].
    pub(super) async fn ask(&self, node: &str, ask: &Ask, deadline: Instant) -> Result<Answer, CallError> {
        let to = self.address(node)?;
        let answer = self.inner.peers.call(&to, ASK, pack(ask), deadline).await?;
        unpack(&answer).map_err(|e| failed(to, e))
    }

    /// Gives a replica commands for its log; one answer each, in order.
    pub(super) async fn propose(
        &self,
        to: ReplicaId,
        errands: &[Errand],
    ) -> Result<Vec<Result<Outcome, Refusal>>, CallError> {
        let address = self.address_of(to).await?;
        let deadline = errands.iter().map(|errand| errand.deadline).max().unwrap_or_else(Instant::now);
        let body = wire::Propose::of(to, errands).encode_to_vec().into();
        let answer = self.inner.peers.call(&address, PROPOSE, body, deadline).await?;
        let done = wire::Done::decode(answer).map_err(|e| e.to_string()).and_then(wire::Done::into_results);
        match done {
            Ok(done) if done.len() == errands.len() => Ok(done),
            Ok(done) => Err(failed(address, format!("{} answers to {} commands", done.len(), errands.len()))),
            Err(e) => Err(failed(address, e)),
        }
    }

    /// Follows a replica; the deadline is for the beginning of the answer.
    pub(super) async fn feed(&self, ask: &FeedAsk, deadline: Instant) -> Result<ByteStream, CallError> {
        let to = self.address_of(ask.replica).await?;
        self.inner.peers.download(&to, FEED, pack(ask), deadline).await
    }

    /// Asks a replica for a read of its shard.
    pub(super) async fn read(&self, ask: &ReadAsk, deadline: Instant) -> ReadAnswer {
        let unreached = |e: CallError| ClusterError::Unavailable(e.to_string());
        let to = self.address_of(ask.replica).await.map_err(unreached)?;
        let answer = self.inner.peers.call(&to, READ, pack(ask), deadline).await.map_err(unreached)?;
        unpack(&answer).unwrap_or_else(|e| Err(unreached(failed(to, e))))
    }
}

fn unreached(to: &str, why: &str) -> CallError {
    CallError::Unreached { to: to.to_owned(), why: why.to_owned() }
}

fn failed(to: String, message: String) -> CallError {
    CallError::Failed { to, code: "bad_answer".to_owned(), message }
}

impl Network for PeerCalls {
    fn call(
        &self,
        to: ReplicaId,
        message: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let calls = self.clone();
        Box::pin(async move {
            let address = calls.address_of(to).await.map_err(|e| Unreached(e.to_string()))?;
            let answer = calls.inner.peers.call(&address, RAFT, addressed(to, &message), deadline).await;
            answer.map_err(|e| Unreached(e.to_string()))
        })
    }

    fn send_snapshot(
        &self,
        to: ReplicaId,
        head: Bytes,
        body: ByteStream,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let calls = self.clone();
        Box::pin(async move {
            let address = calls.address_of(to).await.map_err(|e| Unreached(e.to_string()))?;
            let head = addressed(to, &head);
            let answer = calls.inner.peers.upload(&address, SNAPSHOT, head, body, deadline).await;
            answer.map_err(|e| Unreached(e.to_string()))
        })
    }
}

/// A message behind the replica it is for.
fn addressed(to: ReplicaId, message: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + message.len());
    out.put_u64_le(to.0);
    out.extend_from_slice(message);
    out.freeze()
}

pub(super) fn pack(value: &impl Serialize) -> Bytes {
    rmp_serde::to_vec_named(value).expect("what peers say has a form in MessagePack").into()
}

pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(bytes).map_err(|e| e.to_string())
}

/// What a node answers its peers, behind its [`super::found::Door`].
struct PeerService {
    cluster: Cluster,
}

impl net::Service for PeerService {
    fn answer(&self, _from: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let cluster = self.cluster.clone();
        match path {
            RAFT => Box::pin(async move { cluster.answer_raft(body).await }),
            PROPOSE => Box::pin(async move { cluster.answer_propose(body).await }),
            READ => Box::pin(async move {
                let ask = unpack(&body).map_err(unreadable)?;
                Ok(pack(&cluster.answer_read(ask).await))
            }),
            ASK => Box::pin(async move {
                let ask = unpack(&body).map_err(unreadable)?;
                Ok(pack(&cluster.answer_ask(ask)))
            }),
            path => refuse(path),
        }
    }

    fn receive(
        &self,
        _from: &str,
        path: &str,
        head: Bytes,
        body: ByteStream,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let cluster = self.cluster.clone();
        match path {
            SNAPSHOT => Box::pin(async move { cluster.receive_snapshot(head, body).await }),
            path => refuse(path),
        }
    }

    fn stream(
        &self,
        _from: &str,
        path: &str,
        body: Bytes,
    ) -> BoxFuture<'static, Result<ByteStream, Failure>> {
        let cluster = self.cluster.clone();
        match path {
            FEED => Box::pin(async move { Ok(cluster.answer_feed(unpack(&body).map_err(unreadable)?)) }),
            path => refuse(path),
        }
    }
}

fn refuse<T: Send + 'static>(path: &str) -> BoxFuture<'static, Result<T, Failure>> {
    let failure = Failure::no_path(path);
    Box::pin(async { Err(failure) })
}

fn unreadable(why: String) -> Failure {
    Failure::new("unreadable", why)
}

fn not_here(replica: ReplicaId) -> Failure {
    Failure::new("not_here", format!("replica {replica} is not open here"))
}

fn of_replica(error: ReplicaError) -> Failure {
    Failure::new("replica", error.to_string())
}

impl Cluster {
    /// What this node answers its peers.
    pub(super) fn peer_service(&self) -> Arc<dyn net::Service> {
        Arc::new(PeerService { cluster: self.clone() })
    }

    /// The replica of a shard that is open here.
    pub(super) fn held(&self, replica: ReplicaId) -> Option<Arc<LocalShard>> {
        self.inner.shards.open().get(&replica).cloned()
    }

    fn is_catalog(&self, replica: ReplicaId) -> bool {
        self.inner.catalog_replica.status().replica == replica
    }

    async fn answer_raft(&self, mut body: Bytes) -> Result<Bytes, Failure> {
        let to = addressee(&mut body)?;
        match self.held(to) {
            Some(shard) => shard.replica.answer(body).await.map_err(of_replica),
            None if self.is_catalog(to) => self.inner.catalog_replica.answer(body).await.map_err(of_replica),
            None => Err(not_here(to)),
        }
    }

    async fn receive_snapshot(&self, mut head: Bytes, body: ByteStream) -> Result<Bytes, Failure> {
        let to = addressee(&mut head)?;
        match self.held(to) {
            Some(shard) => shard.replica.receive_snapshot(head, body).await.map_err(of_replica),
            None if self.is_catalog(to) => {
                self.inner.catalog_replica.receive_snapshot(head, body).await.map_err(of_replica)
            }
            None => Err(not_here(to)),
        }
    }

    async fn answer_propose(&self, body: Bytes) -> Result<Bytes, Failure> {
        let (to, errands) =
            wire::Propose::decode(body).map_err(|e| unreadable(e.to_string()))?.into_errands();
        let results: Vec<Result<Outcome, Refusal>> = match self.held(to) {
            Some(shard) => join_all(errands.into_iter().map(|e| propose(&shard.replica, e))).await,
            None if self.is_catalog(to) => {
                join_all(errands.into_iter().map(|e| propose(&self.inner.catalog_replica, e))).await
            }
            None => errands.iter().map(|_| Err(Refusal::unreached(not_here(to)))).collect(),
        };
        Ok(wire::Done::of(results).encode_to_vec().into())
    }

    fn answer_ask(&self, ask: Ask) -> Answer {
        match ask {
            Ask::Report => Answer::Report(self.report()),
            Ask::Catalog => {
                let state = self.inner.catalog.state();
                let seed = |r: &ReplicaRecord| {
                    let address = state.nodes.get(&r.node)?.peer.clone();
                    Some(Seed { seat: Seat::of(r), address })
                };
                Answer::Catalog(state.catalog.replicas.iter().filter_map(seed).collect())
            }
            Ask::Lead(replica) => {
                let leadership = match self.held(replica) {
                    Some(shard) => shard.replica.leadership(),
                    None if self.is_catalog(replica) => self.inner.catalog_replica.leadership(),
                    None => return Answer::NotHere,
                };
                let known = *leadership.borrow();
                Answer::Lead(known.leader, known.term.0)
            }
            Ask::HandOver { from, to } => {
                self.hand_over_here(from, to);
                Answer::Done
            }
            Ask::Position(replica) => match self.held(replica) {
                Some(shard) => Answer::Position(shard.position()),
                None => Answer::NotHere,
            },
        }
    }
}

async fn propose<M: crate::machine::StateMachine>(
    replica: &crate::replica::Replica<M>,
    errand: Errand,
) -> Result<Outcome, Refusal> {
    Ok(replica.propose(errand.command, errand.deadline).await?)
}

fn addressee(body: &mut Bytes) -> Result<ReplicaId, Failure> {
    body.try_get_u64_le().map(ReplicaId).map_err(|e| unreadable(e.to_string()))
}

/// How long from now, for a clock that is not ours.
pub(super) fn within(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The messages of `/propose`.
pub(super) mod wire {
    use super::{
        Bytes, Duration, Errand, Instant, Message, Outcome, Position, Refusal, Rejection, ReplicaId, Verdict,
        pack, unpack, within,
    };

    #[derive(Clone, PartialEq, Message)]
    pub(in crate::cluster) struct Propose {
        #[prost(uint64, tag = "1")]
        to: u64,
        #[prost(message, repeated, tag = "2")]
        errands: Vec<One>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct One {
        #[prost(bytes = "bytes", tag = "1")]
        command: Bytes,
        #[prost(uint64, tag = "3")]
        within_ms: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(in crate::cluster) struct Done {
        #[prost(message, repeated, tag = "1")]
        results: Vec<Fate>,
    }

    /// Applied if it has a position, else refused.
    #[derive(Clone, PartialEq, Message)]
    struct Fate {
        #[prost(uint64, optional, tag = "1")]
        position: Option<u64>,
        /// Position of the first copy, of a retry.
        #[prost(uint64, optional, tag = "2")]
        first: Option<u64>,
        #[prost(message, optional, tag = "3")]
        rejection: Option<Rejected>,
        /// A [`Refusal`] in MessagePack.
        #[prost(bytes = "bytes", tag = "5")]
        refusal: Bytes,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Rejected {
        #[prost(string, tag = "1")]
        code: String,
        #[prost(string, tag = "2")]
        message: String,
        #[prost(uint64, optional, tag = "3")]
        version: Option<u64>,
    }

    impl Propose {
        pub(in crate::cluster) fn of(to: ReplicaId, errands: &[Errand]) -> Self {
            let one = |errand: &Errand| One {
                command: errand.command.clone(),
                within_ms: within(errand.deadline).as_millis() as u64,
            };
            Propose { to: to.0, errands: errands.iter().map(one).collect() }
        }

        pub(in crate::cluster) fn into_errands(self) -> (ReplicaId, Vec<Errand>) {
            let now = Instant::now();
            let errand = |one: One| Errand {
                command: one.command,
                deadline: now + Duration::from_millis(one.within_ms),
            };
            (ReplicaId(self.to), self.errands.into_iter().map(errand).collect())
        }
    }

    impl Done {
        pub(in crate::cluster) fn of(results: Vec<Result<Outcome, Refusal>>) -> Self {
            Done { results: results.into_iter().map(Fate::of).collect() }
        }

        pub(in crate::cluster) fn into_results(self) -> Result<Vec<Result<Outcome, Refusal>>, String> {
            self.results.into_iter().map(Fate::into_result).collect()
        }
    }

    impl Fate {
        fn of(result: Result<Outcome, Refusal>) -> Self {
            match result {
                Ok(Outcome { position, verdict }) => {
                    let (first, verdict) = match verdict {
                        Verdict::Duplicate { first } => (Some(first.position.0), first.verdict),
                        own => (None, own),
                    };
                    let rejection = match verdict {
                        Verdict::Rejected(rejection) => Some(Rejected {
                            code: rejection.code,
                            message: rejection.message,
                            version: rejection.version.map(|version| version.0),
                        }),
                        Verdict::Applied | Verdict::Duplicate { .. } => None,
                    };
                    Fate { position: Some(position.0), first, rejection, ..Fate::default() }
                }
                Err(refusal) => Fate { refusal: pack(&refusal), ..Fate::default() },
            }
        }

        fn into_result(self) -> Result<Result<Outcome, Refusal>, String> {
            let Some(position) = self.position else { return unpack(&self.refusal).map(Err) };
            let own = match self.rejection {
                Some(Rejected { code, message, version }) => {
                    Verdict::Rejected(Rejection { code, message, version: version.map(Position) })
                }
                None => Verdict::Applied,
            };
            let verdict = match self.first {
                Some(first) => Verdict::Duplicate {
                    first: Box::new(Outcome { position: Position(first), verdict: own }),
                },
                None => own,
            };
            Ok(Ok(Outcome { position: Position(position), verdict }))
        }
    }
}
