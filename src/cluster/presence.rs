//! A node in its cluster: it opens what it has, becomes ready, stays at what the catalog says, takes others in, and
//! leaves in order.
//!
//! Invariants: peers are answered as soon as the catalog's replica is open, before anything needs a majority;
//! `node.json` always names where the others were last; a name has one living node.
//! Not here: finding a cluster (`found`), what is to be opened (`shards`).

use super::{
    Cluster, ClusterError, ClusterOptions, Inner, Result,
    catalog::{Catalog, CatalogCommand, CatalogState, NodeRecord, NodeState, Phase},
    found::{Admission, NOT_ADMITTED, Newcomer, Seat, Standing},
    internal, log_error, log_group,
    peers::{Ask, PeerCalls},
    recall::RecallMeter,
    regions::{Asking, Heard, Leases},
    router::Router,
    shards::{LocalShard, Shards},
};
use crate::{
    machine::StateMachine,
    model::ReplicaId,
    net::Failure,
    replica::{Network, Replica, ReplicaOptions, Role, check_reaches},
    store::Store,
    world,
};
use annal_wal::Log;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long founding may take: this node is alone then.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
/// How long the catalog may take to hear one piece of news; it is told again by the next look.
const SAY_WITHIN: Duration = Duration::from_secs(2);
/// How long a look at the catalog waits to be certain that it is the last one; if not, it deletes nothing.
const CURRENT_WITHIN: Duration = Duration::from_millis(500);
/// How often a node compares what it holds with the catalog, changes apart.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a node that is not ready looks whether it is.
const READY_EVERY: Duration = Duration::from_millis(50);
/// How long taking a node in may take.
const ADMIT_WITHIN: Duration = Duration::from_secs(10);
/// How long a node of the same name may take to show that it is alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);
/// How long handing one group over may take when the node stops.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

/// Whether what a node has of the catalog in its store can be brought on from its log.
///
/// Errors: the catalog is damaged, or the log does not reach back to it.
pub fn check_catalog(log: &Log, store: &Store, replica: ReplicaId) -> Result<()> {
    let Some(group) = log.group(log_group(replica)) else { return Ok(()) };
    let catalog = Catalog::open(store.clone())?;
    Ok(check_reaches(&group, catalog.bookmark().as_ref())?)
}

impl Cluster {
    /// Opens the catalog and answers peers from then on; what the catalog names is opened in the background, see
    /// [`Cluster::unready`]. A founder has founded the cluster when this returns.
    ///
    /// Errors: see [`ClusterError`]; nothing that was acknowledged is changed by a failed start.
    pub async fn open(
        options: ClusterOptions,
        standing: Standing,
        log: Log,
        store: Store,
    ) -> Result<Cluster> {
        let Standing { identity, door, lost } = standing;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.search_threads)
            .thread_name(|i| format!("search-{i}"))
            .build()
            .map_err(|e| internal(format!("search threads: {e}")))?;
        let who = identity.get();
        let no_seat = || internal("this node has no replica of group 0".to_owned());
        let id = who.catalog_replica.ok_or_else(no_seat)?;
        let catalog_log = match log.group(log_group(id)) {
            Some(group) => group,
            None => log.create_group(log_group(id)).await.map_err(log_error)?,
        };
        let catalog = Arc::new(Catalog::open(store.clone())?);
        let calls = PeerCalls::new(who.node.clone(), door.peers().clone(), catalog.watch());
        // For as long as there is no catalog here to look them up in.
        calls.seed(who.peers.clone());
        let network: Arc<dyn Network> = Arc::new(calls.clone());
        let replica = ReplicaOptions { replica: id, ..options.replica.clone() };
        let catalog_replica =
            Replica::open(replica, &log, catalog_log, catalog.clone(), network.clone()).await?;
        let incarnation = who.incarnation.to_string();
        let router = Router::new(calls, &incarnation);
        let me = (who.node, incarnation);
        let (dir, of_shards) = (options.index_dir.clone(), (options.shard.clone(), options.replica.clone()));
        let shards = Shards::new(me, lost, log, store, dir, of_shards, network);
        let recall = RecallMeter::new(options.recall_sample);
        let cluster = Cluster {
            inner: Arc::new(Inner {
                options,
                identity,
                catalog,
                catalog_replica,
                shards,
                router,
                reads: Arc::default(),
                heard: Heard::default(),
                asking: Asking::default(),
                leases: Leases::default(),
                recall,
                pool,
                ready: AtomicBool::new(false),
                closing: CancellationToken::new(),
            }),
        };
        door.open(cluster.peer_service());
        if who.founding {
            cluster.inner.catalog_replica.found(BTreeSet::from([id])).await?;
            let found = CatalogCommand::Join { node: cluster.own_record() };
            cluster.propose_catalog(found, Instant::now() + FOUND_WITHIN).await?;
        }
        door.admit(Arc::new(cluster.clone()));
        for work in [
            cluster.clone().follow_catalog().boxed(),
            cluster.clone().drive_groups().boxed(),
            cluster.clone().steward().boxed(),
            cluster.clone().audit().boxed(),
            cluster.clone().become_ready().boxed(),
        ] {
            world::spawn(work);
        }
        Ok(cluster)
    }

    /// This node, as the catalog is to know it.
    fn own_record(&self) -> NodeRecord {
        let (options, who) = (&self.inner.options, self.inner.identity.get());
        NodeRecord {
            name: who.node,
            incarnation: who.incarnation.to_string(),
            region: options.region.clone(),
            zone: options.zone.clone(),
            http: options.http.clone(),
            peer: options.peer.clone(),
            state: NodeState::Active,
        }
    }

    /// Keeps what this node holds at what the catalog says, until the node closes.
    async fn follow_catalog(self) {
        let mut catalog = self.inner.catalog.watch();
        loop {
            let current = self.catch_up_with_catalog(Instant::now() + CURRENT_WITHIN).await.is_ok();
            let state = catalog.borrow_and_update().clone();
            self.remember_peers(&state).await;
            match self.inner.shards.reconcile(&state, current).await {
                Ok(to_say) => {
                    let say = |news| self.propose_catalog(news, Instant::now() + SAY_WITHIN);
                    for error in
                        join_all(to_say.into_iter().map(say)).await.into_iter().filter_map(Result::err)
                    {
                        tracing::debug!(%error, "the catalog could not be told");
                    }
                }
                Err(error) => tracing::warn!(%error, "the shards could not be brought to the catalog"),
            }
            tokio::select! {
                changed = catalog.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.inner.closing.cancelled() => return,
            }
        }
    }

    /// Notes where the others are, for a start that finds nothing else.
    async fn remember_peers(&self, state: &CatalogState) {
        let me = self.inner.identity.get().node;
        let peers: Vec<String> =
            state.nodes.values().filter(|n| n.name != me).map(|n| n.peer.clone()).collect();
        if peers.is_empty() {
            return;
        }
        let identity = self.inner.identity.clone();
        match world::blocking(move || identity.set_peers(peers)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "node.json could not be written"),
            Err(lost) => tracing::warn!(%lost, "node.json could not be written"),
        }
    }

    /// Waits until all that was committed when the node started is applied here, and says so.
    async fn become_ready(self) {
        while let Err(error) = self.try_ready().await {
            tracing::debug!(%error, "not ready yet");
            tokio::select! {
                () = tokio::time::sleep(READY_EVERY) => {}
                () = self.inner.closing.cancelled() => return,
            }
        }
        self.inner.ready.store(true, Ordering::Release);
        tracing::info!("ready");
    }

    async fn try_ready(&self) -> Result<()> {
        let deadline = Instant::now() + SAY_WITHIN;
        self.catch_up_with_catalog(deadline).await?;
        let state = self.inner.catalog.state();
        let own = self.own_record();
        let known = state.nodes.get(&own.name).filter(|known| known.incarnation == own.incarnation);
        let known =
            known.ok_or_else(|| ClusterError::Unavailable("the catalog does not know this node".into()))?;
        if (NodeRecord { state: known.state, ..own.clone() }) != *known {
            self.propose_catalog(CatalogCommand::Join { node: own.clone() }, deadline).await?;
        }
        let open = self.inner.shards.open();
        // One that is being seeded does not hold the node back.
        let votes = |g: &super::catalog::GroupRecord| {
            g.in_phase(Phase::Voter)
                .find(|r| (&r.node, &r.incarnation) == (&own.name, &own.incarnation))
                .cloned()
        };
        let mine = state.groups().filter(|g| g.group != 0).filter_map(votes);
        let ready = mine.map(async |r| match open.get(&r.replica) {
            Some(local) => local.caught_up(deadline).await,
            None => Err(ClusterError::Unavailable(format!("replica {} is not open yet", r.replica))),
        });
        join_all(ready).await.into_iter().collect()
    }

    /// Why this node cannot serve; `None` when it can.
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = self.inner.catalog_replica.status().failure {
            return Some(format!("the replica of the catalog stopped: {why}"));
        }
        let ready = self.inner.ready.load(Ordering::Acquire);
        (!ready).then(|| "still applying what was committed before the start".to_owned())
    }

    /// Returns once the catalog's log is found to lack what this node has acknowledged, and noted for the next start,
    /// which takes the node in anew.
    pub async fn forgot(&self) {
        self.inner.catalog_replica.forgot().await;
        if let Err(error) = self.inner.identity.set_lost() {
            // At the next start its leader tells it again, as long as that leads.
            tracing::error!(%error, "node.json could not be written: the next start knows nothing of it");
        }
    }

    /// Hands leadership over before this node stops, as far as there is somebody to take it.
    pub async fn drain(&self) {
        let deadline = Instant::now() + HAND_OVER_WITHIN;
        let open = self.inner.shards.open();
        let leads = open.values().filter(|local| local.replica.status().role == Role::Leader);
        let shards = leads.map(|local| local.replica.transfer_leadership(None, deadline));
        let catalog = self.inner.catalog_replica.transfer_leadership(None, deadline);
        let (shards, catalog) = tokio::join!(join_all(shards), catalog);
        for error in shards.into_iter().chain([catalog]).filter_map(std::result::Result::err) {
            tracing::debug!(%error, "leadership was not handed over");
        }
    }

    /// Closes every shard, then the catalog. What fails is logged: nothing is lost by it, the log has it all.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.shards.close().await;
        if let Err(error) = self.inner.catalog_replica.shutdown().await {
            tracing::warn!(%error, "the catalog did not close in order");
        }
    }

    async fn take_in(&self, newcomer: Newcomer) -> std::result::Result<Seat, Failure> {
        let deadline = Instant::now() + ADMIT_WITHIN;
        let not_now = |e: ClusterError| Failure::new("unavailable", e.to_string());
        self.catch_up_with_catalog(deadline).await.map_err(not_now)?;
        let incarnation = newcomer.incarnation.to_string();
        let before = self.inner.catalog.state().nodes.get(&newcomer.node).cloned();
        if let Some(before) = before.filter(|n| n.incarnation != incarnation && n.peer != newcomer.peer) {
            let alive =
                self.inner.router.calls.ask(&before.name, &Ask::Report, Instant::now() + ALIVE_WITHIN);
            if alive.await.is_ok() {
                let why = format!("a node of the name {} is alive at {}", before.name, before.peer);
                return Err(Failure::new(NOT_ADMITTED, why));
            }
        }
        let node = NodeRecord {
            name: newcomer.node.clone(),
            incarnation: incarnation.clone(),
            region: newcomer.region,
            zone: newcomer.zone,
            http: newcomer.http,
            peer: newcomer.peer,
            state: NodeState::Active,
        };
        self.propose_catalog(CatalogCommand::Join { node }, deadline).await.map_err(not_now)?;
        self.catch_up_with_catalog(deadline).await.map_err(not_now)?;
        let state = self.inner.catalog.state();
        let seat = state.catalog.replicas.iter().find(|r| r.incarnation == incarnation);
        let seat = seat.ok_or_else(|| Failure::new("unavailable", "the catalog has no seat for it yet"))?;
        let others = state.nodes.values().filter(|n| n.name != newcomer.node);
        Ok(Seat { catalog_replica: seat.replica, peers: others.map(|n| n.peer.clone()).collect() })
    }
}

impl Admission for Cluster {
    fn admit(&self, newcomer: Newcomer) -> BoxFuture<'static, std::result::Result<Seat, Failure>> {
        let cluster = self.clone();
        Box::pin(async move { cluster.take_in(newcomer).await })
    }
}

impl LocalShard {
    /// Waits until all that was acknowledged before this call is applied here.
    async fn caught_up(&self, deadline: Instant) -> Result<()> {
        let index = self.replica.read_index(deadline).await?;
        Ok(self.replica.wait_applied(index, deadline).await?)
    }
}
