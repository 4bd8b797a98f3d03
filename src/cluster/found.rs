//! How a node without data finds its cluster, or founds one.
//!
//! ```text
//! --join A,B,C     every node asks A, B, C who they are (the one that answers with our own incarnation is us)
//!   one knows a cluster      -> join it through that one
//!   none does, we are first  -> found one, once every other has answered that it has none and may not found
//!   none does, we are not    -> ask again
//! ```
//!
//! Invariants: a node founds only if it is the first of its list, or has no list; two nodes that both call
//! themselves first keep each other from founding. A node that joins is taken in under its incarnation only
//! after the one it asked has reached it at the address that others will dial.
//! Not here: what the catalog makes of a newcomer (see [`Admission`]).

use crate::{
    identity::{Identity, IdentityFile, Incarnation},
    model::ReplicaId,
    net::{ByteStream, CallError, Failure, Peers, Service},
    world,
};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Who are you? Open to all who know the secret.
const PROBE: &str = "/found/probe";
/// Take me in. Open to all who know the secret.
const JOIN: &str = "/found/join";

/// Code of a refusal that asking again does not change: the node gives up and says so.
pub const NOT_ADMITTED: &str = "not_admitted";
/// Code of "not now".
const NOT_YET: &str = "not_yet";

/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(250);
/// How long a peer may take to say who it is.
const PROBE_WITHIN: Duration = Duration::from_millis(2_000);
/// How long taking a node in may take: the catalog has to agree on it.
const JOIN_WITHIN: Duration = Duration::from_secs(15);
/// How often a node that waits says what for.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A node as others get to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// Its name.
    pub node: String,
    /// Which filling of its data folder this is.
    pub incarnation: Incarnation,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Where clients reach it.
    pub http: String,
    /// Where peers reach it.
    pub peer: String,
}

/// What a node gets that was taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its replica of group 0.
    pub catalog_replica: ReplicaId,
    /// Addresses of the other nodes.
    pub peers: Vec<String>,
}

/// The catalog, as newcomers meet it.
pub trait Admission: Send + Sync + 'static {
    /// Takes a node in; the same incarnation gets the same seat however often it asks.
    ///
    /// Errors: with code [`NOT_ADMITTED`] the node gives up (its name is that of another node that is alive);
    /// with any other it asks again.
    fn admit(&self, newcomer: Newcomer) -> BoxFuture<'static, Result<Seat, Failure>>;
}

/// What a node says of itself when asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Probed {
    node: String,
    incarnation: Incarnation,
    cluster: Option<String>,
    /// Whether it is the first of its own list; None if it does not know yet.
    first: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct Joined {
    cluster: String,
    seat: Seat,
}

/// What answers peers from the moment the node listens: who it is, and whatever its cluster answers once it has
/// one. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    me: Newcomer,
    peers: Peers,
    first: OnceLock<bool>,
    admission: OnceLock<Arc<dyn Admission>>,
    service: OnceLock<Arc<dyn Service>>,
}

impl Door {
    /// The door of a node that has no cluster yet, or has not opened it.
    pub fn new(me: Newcomer, peers: Peers) -> Door {
        let (first, admission, service) = Default::default();
        Door { inner: Arc::new(Inner { me, peers, first, admission, service }) }
    }

    /// Hands over all that is not about finding the cluster. A second call changes nothing.
    pub fn open(&self, service: Arc<dyn Service>) {
        let _ = self.inner.service.set(service);
    }

    /// Lets newcomers in. A second call changes nothing.
    pub fn admit(&self, admission: Arc<dyn Admission>) {
        let _ = self.inner.admission.set(admission);
    }

    /// The way to the other nodes.
    pub fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// This node.
    pub fn me(&self) -> &Newcomer {
        &self.inner.me
    }

    fn probed(&self) -> Probed {
        let Inner { me, peers, first, .. } = &*self.inner;
        Probed {
            node: me.node.clone(),
            incarnation: me.incarnation.clone(),
            cluster: peers.cluster().map(|id| id.to_string()),
            first: first.get().copied(),
        }
    }

    async fn join(self, newcomer: Newcomer) -> Result<Bytes, Failure> {
        let not_yet = |why: String| Failure::new(NOT_YET, why);
        let inner = &*self.inner;
        let (Some(cluster), Some(admission)) = (inner.peers.cluster(), inner.admission.get()) else {
            return Err(not_yet(format!("{} cannot take nodes in yet", inner.me.node)));
        };
        // An address that nobody can dial would be found out only when something depends on it.
        let Newcomer { node, incarnation, peer, .. } = &newcomer;
        match ask::<Probed>(&inner.peers, peer, PROBE, &(), PROBE_WITHIN).await {
            Ok(probed) if probed.incarnation == *incarnation => {}
            Ok(probed) => {
                let why = format!("{node} says it is reached at {peer}, but there {} answers", probed.node);
                return Err(not_yet(why));
            }
            Err(error) => return Err(not_yet(format!("{node} says it is reached at {peer}: {error}"))),
        }
        let seat = admission.admit(newcomer).await?;
        Ok(encode(&Joined { cluster: cluster.to_string(), seat }))
    }

    fn inside(&self) -> Result<&Arc<dyn Service>, Failure> {
        let me = &self.inner.me.node;
        self.inner.service.get().ok_or_else(|| Failure::new(NOT_YET, format!("{me} is starting")))
    }
}

impl Service for Door {
    fn is_open(&self, path: &str) -> bool {
        matches!(path, PROBE | JOIN) || self.inner.service.get().is_some_and(|inside| inside.is_open(path))
    }

    fn answer(&self, from: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
        match path {
            PROBE => {
                let probed = encode(&self.probed());
                Box::pin(async { Ok(probed) })
            }
            JOIN => {
                let door = self.clone();
                Box::pin(async move {
                    let newcomer = decode(&body).map_err(|why| Failure::new(NOT_ADMITTED, why))?;
                    door.join(newcomer).await
                })
            }
            _ => match self.inside() {
                Ok(inside) => inside.answer(from, path, body),
                Err(failure) => Box::pin(async { Err(failure) }),
            },
        }
    }

    fn receive(
        &self,
        from: &str,
        path: &str,
        head: Bytes,
        body: ByteStream,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        match self.inside() {
            Ok(inside) => inside.receive(from, path, head, body),
            Err(failure) => Box::pin(async { Err(failure) }),
        }
    }

    fn stream(&self, from: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<ByteStream, Failure>> {
        match self.inside() {
            Ok(inside) => inside.stream(from, path, body),
            Err(failure) => Box::pin(async { Err(failure) }),
        }
    }
}

/// What a node is when it opens its cluster.
pub struct Standing {
    /// Who it is; `founding` until the catalog has been founded.
    pub identity: IdentityFile,
    /// What answers its peers, and the way to them.
    pub door: Door,
    /// Replicas of which live log entries are lost: they must not vote, and are made anew.
    pub lost: BTreeSet<ReplicaId>,
}

/// Why a node stays without a cluster.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The cluster does not take it in.
    #[error("{by} does not take this node in: {why}")]
    NotAdmitted {
        /// The address that was asked.
        by: String,
        /// Its words.
        why: String,
    },
    /// The addresses to join belong to several clusters.
    #[error("the addresses to join belong to several clusters: {0}")]
    SeveralClusters(String),
    /// `node.json` cannot be written.
    #[error("node.json: {0}")]
    File(#[from] io::Error),
}

/// Gives the node behind `door` a cluster: the one `known` names, else one that `join` knows, else a new one.
/// Afterwards `node.json` (at `path`) says so, and the door's [`Peers`] name it.
///
/// With data (`known` has a replica of group 0) nobody is asked. Waits as long as it takes; may be dropped.
/// Errors: see [`FoundError`]; the node has to stop.
pub async fn settle(
    door: &Door,
    known: Option<IdentityFile>,
    path: &Path,
    join: &[String],
) -> Result<IdentityFile, FoundError> {
    let me = door.me();
    let Some(file) = known else {
        let identity = match seek(door, join, None).await? {
            Some(Joined { cluster, seat }) => {
                tracing::info!(cluster, node = me.node, "joined a cluster");
                let Seat { catalog_replica, peers } = seat;
                Identity::member(cluster, me.node.clone(), me.incarnation.clone(), catalog_replica, peers)
            }
            None => {
                let cluster = world::unique().to_string();
                tracing::info!(cluster, node = me.node, "founds a cluster");
                Identity::founder(cluster, me.node.clone(), me.incarnation.clone())
            }
        };
        // Nobody hears of a cluster before this node would know of it after a crash.
        let file = IdentityFile::create(path, identity)?;
        door.peers().set_cluster(file.get().cluster_id);
        return Ok(file);
    };
    let identity = file.get();
    door.peers().set_cluster(identity.cluster_id.clone());
    if identity.catalog_replica.is_none() {
        let Some(Joined { seat, .. }) = seek(door, &identity.peers, Some(&identity.cluster_id)).await? else {
            unreachable!("a node that had a cluster founds none");
        };
        tracing::info!(cluster = identity.cluster_id, node = me.node, "taken in again");
        file.set_taken_in(seat.catalog_replica, seat.peers)?;
    }
    Ok(file)
}

/// Asks round after round until a cluster took this node in (of `only` this id, if given) or it may found one:
/// None.
async fn seek(door: &Door, join: &[String], only: Option<&str>) -> Result<Option<Joined>, FoundError> {
    if join.is_empty() && only.is_none() {
        let _ = door.inner.first.set(true);
        return Ok(None);
    }
    let mut said = None;
    loop {
        let mut round = Round::ask(door, join).await;
        if let Some(first) = round.first {
            let _ = door.inner.first.set(first && only.is_none());
        }
        round.others.retain(|to, probed| match (&probed.cluster, only) {
            (Some(theirs), Some(only)) if theirs != only => {
                round.waits.push(format!("{to} belongs to cluster {theirs}, this node to {only}"));
                false
            }
            _ => true,
        });
        let clusters: BTreeSet<&String> =
            round.others.values().filter_map(|probed| probed.cluster.as_ref()).collect();
        if clusters.len() > 1 {
            let belongs = |(to, p): (&String, &Probed)| Some(format!("{to} to {}", p.cluster.as_ref()?));
            let all: Vec<String> = round.others.iter().filter_map(belongs).collect();
            return Err(FoundError::SeveralClusters(all.join(", ")));
        }
        for (to, _) in round.others.iter().filter(|(_, probed)| probed.cluster.is_some()) {
            match ask::<Joined>(door.peers(), to, JOIN, door.me(), JOIN_WITHIN).await {
                Ok(joined) => return Ok(Some(joined)),
                Err(CallError::Failed { code, message, .. }) if code == NOT_ADMITTED => {
                    return Err(FoundError::NotAdmitted { by: to.clone(), why: message });
                }
                Err(error) => round.waits.push(error.to_string()),
            }
        }
        if round.may_found() && only.is_none() && door.inner.first.get() == Some(&true) {
            return Ok(None);
        }
        if said.is_none_or(|at: Instant| at.elapsed() >= SAY_EVERY) {
            tracing::info!(waits_for = round.waits.join("; "), "has no cluster yet");
            said = Some(Instant::now());
        }
        sleep(ROUND).await;
    }
}

/// What one round of asking gave.
struct Round {
    /// Whether the first of the list is this node; None if it did not answer.
    first: Option<bool>,
    /// Who answered and is another node.
    others: BTreeMap<String, Probed>,
    /// Why there is no cluster yet.
    waits: Vec<String>,
}

impl Round {
    async fn ask(door: &Door, join: &[String]) -> Round {
        let probes = join.iter().map(|to| ask::<Probed>(door.peers(), to, PROBE, &(), PROBE_WITHIN));
        let mut round = Round { first: None, others: BTreeMap::new(), waits: Vec::new() };
        for (at, (to, answer)) in join.iter().zip(join_all(probes).await).enumerate() {
            match answer {
                Ok(probed) => {
                    let ourselves = probed.incarnation == door.me().incarnation;
                    if at == 0 {
                        round.first = Some(ourselves);
                    }
                    if ourselves {
                        continue;
                    }
                    match (&probed.cluster, probed.first) {
                        (Some(_), _) => {}
                        (None, Some(false)) => {}
                        (None, Some(true)) => round.waits.push(format!("{to} names itself first too")),
                        (None, None) => round.waits.push(format!("{to} does not know yet who is first")),
                    }
                    round.others.insert(to.clone(), probed);
                }
                Err(error) => round.waits.push(error.to_string()),
            }
        }
        if round.first == Some(false) && round.waits.is_empty() {
            round.waits.push(format!("{} has to found", join[0]));
        }
        round
    }

    /// Whether everybody else said that it has no cluster and will not found one.
    fn may_found(&self) -> bool {
        self.waits.is_empty() && self.others.values().all(|probed| probed.cluster.is_none())
    }
}

async fn ask<T: DeserializeOwned>(
    peers: &Peers,
    to: &str,
    path: &'static str,
    what: &impl Serialize,
    within: Duration,
) -> Result<T, CallError> {
    let answer = peers.call(to, path, encode(what), Instant::now() + within).await?;
    decode(&answer).map_err(|why| CallError::Lost { to: to.to_owned(), why })
}

fn encode(what: &impl Serialize) -> Bytes {
    rmp_serde::to_vec_named(what).expect("names, numbers and lists can be written").into()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    rmp_serde::from_slice(bytes).map_err(|e| format!("cannot be read: {e}"))
}

#[cfg(test)]
mod tests;
