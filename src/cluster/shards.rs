//! The shards this node holds: opened and closed until they are what the catalog says.
//!
//! Everything kept of a replica is named by its id, which is never used again: the group of the node's log, the
//! keyspaces, the index folder. Invariants: a replica whose log group should be there and is not is never opened
//! again, it is reported lost; what the catalog no longer names is deleted only by a catalog that is known to be
//! current. [`Shards::reconcile`] is idempotent and may be cut off anywhere.
//! Not here: membership (`transfer`), who leads (`router`).

use super::{
    Result,
    catalog::{CatalogCommand, CatalogState, CollectionRecord, GroupRecord, Phase, ReplicaRecord},
    log_group,
    recall::Recalls,
};
use crate::{
    machine::StateMachine,
    model::{CollectionId, Kind, Position, ReplicaId, ShardNumber},
    replica::{Network, Replica, ReplicaOptions},
    shard::{Shard, ShardOptions},
    store::Store,
    world,
};
use annal_wal::Log;
use arc_swap::ArcSwap;
use futures::StreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32},
    time::Duration,
};
use tokio::time::Instant;

/// A replica of a shard, held by this node.
pub(super) struct LocalShard {
    pub(super) id: ReplicaId,
    pub(super) replica: Replica<Shard>,
    pub(super) shard: Arc<Shard>,
    /// How often it was seen without members since it was opened.
    pub(super) looks: AtomicU32,
    /// Since when its schema is older than the catalog's.
    stale_since: Mutex<Option<Instant>>,
    /// When its store was last found to add up, and how many snapshots had been installed by then.
    scrubbed: Mutex<Option<(Instant, u64)>>,
    /// How much of what its searches should find they do find.
    pub(super) recalls: Recalls,
    /// Its group.
    pub(super) group: u32,
}

/// A collection at one version of the catalog.
#[derive(Clone)]
pub(super) struct LiveCollection {
    pub(super) record: Arc<CollectionRecord>,
    /// By number.
    pub(super) shards: Vec<LiveShard>,
}

/// A shard of a collection at one version of the catalog.
#[derive(Clone)]
pub(super) struct LiveShard {
    pub(super) number: ShardNumber,
    pub(super) collection: Arc<CollectionRecord>,
}

impl LiveCollection {
    pub(super) fn of(record: Arc<CollectionRecord>) -> Self {
        let shard = |number| LiveShard { number: ShardNumber(number as u32), collection: record.clone() };
        LiveCollection { shards: (0..record.shards.len()).map(shard).collect(), record }
    }
}

impl LiveShard {
    /// Its group in the catalog.
    pub(super) fn group(&self) -> &GroupRecord {
        &self.collection.shards[self.number.0 as usize]
    }
}

type Open = BTreeMap<ReplicaId, Arc<LocalShard>>;

/// The shards this node holds.
pub(super) struct Shards {
    /// This node's name and incarnation.
    me: (String, String),
    log: Log,
    store: Store,
    index_dir: PathBuf,
    /// Replicas whose log lost entries: they must not vote again.
    lost: BTreeSet<ReplicaId>,
    options: ShardOptions,
    replica: ReplicaOptions,
    network: Arc<dyn Network>,
    open: ArcSwap<Open>,
    /// One reconciliation at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Shards {
    pub(super) fn new(
        me: (String, String),
        lost: BTreeSet<ReplicaId>,
        log: Log,
        store: Store,
        index_dir: PathBuf,
        (options, replica): (ShardOptions, ReplicaOptions),
        network: Arc<dyn Network>,
    ) -> Self {
        let (open, turn) = Default::default();
        Shards { me, lost, log, store, index_dir, options, replica, network, open, turn }
    }

    /// The log all of them share.
    pub(super) fn log_status(&self) -> annal_wal::LogStatus {
        self.log.status()
    }

    /// The replicas that are open.
    pub(super) fn open(&self) -> Arc<Open> {
        self.open.load_full()
    }
}

/// Replicas that are opened at the same time: each reads files.
const OPENING: usize = 4;

impl Shards {
    /// Opens and closes until what is open is what `catalog` names; gives what the catalog is to be told.
    ///
    /// `current`: the catalog has all that was acknowledged before this call, so that what it does not name can
    /// be deleted. A replica that cannot be opened does not keep the others from it.
    pub(super) async fn reconcile(
        &self,
        catalog: &CatalogState,
        current: bool,
    ) -> Result<Vec<CatalogCommand>> {
        let _turn = self.turn.lock().await;
        let wanted = self.wanted(catalog);
        let before = self.open();
        let opening = wanted.values().cloned().map(|wish| {
            let open = before.get(&wish.of.replica).cloned();
            async move {
                match open {
                    Some(open) => Ok(open),
                    None => self.open_replica(&wish).await.map_err(|e| (wish, e)),
                }
            }
        });
        let opened: Vec<_> = futures::stream::iter(opening).buffer_unordered(OPENING).collect().await;
        let (mut open, mut to_say) = (Open::new(), Vec::new());
        for opened in opened {
            match opened {
                Ok(local) => {
                    to_say.extend(wanted[&local.id].news_of(&local));
                    open.insert(local.id, local);
                }
                Err((wish, OpenError::Lost(why))) => {
                    tracing::error!(replica = wish.of.replica.0, group = wish.group, why, "replica lost");
                    to_say.push(CatalogCommand::Lost { replica: wish.of.replica });
                }
                Err((_, OpenError::NotNow)) => {}
                Err((wish, OpenError::Failed(error))) => {
                    tracing::error!(replica = wish.of.replica.0, %error, "a replica cannot be opened");
                }
            }
        }
        let closing: Vec<_> = before.iter().filter(|(id, _)| !open.contains_key(*id)).collect();
        self.open.store(Arc::new(open));
        for (_, dropped) in closing {
            dropped.close().await;
        }
        if current {
            self.delete_others(&wanted.keys().copied().collect(), catalog).await?;
        }
        Ok(to_say)
    }

    /// What the catalog names of this node's data folder.
    fn wanted(&self, catalog: &CatalogState) -> BTreeMap<ReplicaId, Wish> {
        let mut wanted = BTreeMap::new();
        for record in catalog.collections.values().chain(catalog.dropping.values()) {
            for group in &record.shards {
                let mine = |r: &&ReplicaRecord| (&r.node, &r.incarnation) == (&self.me.0, &self.me.1);
                for of in group.replicas.iter().filter(mine) {
                    let wish = Wish { collection: record.id, group: group.group, of: of.clone() };
                    wanted.insert(of.replica, wish);
                }
            }
        }
        wanted
    }

    async fn open_replica(&self, wish: &Wish) -> std::result::Result<Arc<LocalShard>, OpenError> {
        let id = wish.of.replica;
        if self.lost.contains(&id) {
            return Err(OpenError::Lost("its log lost entries".to_owned()));
        }
        let log = match (self.log.group(log_group(id)), wish.of.phase) {
            (Some(log), _) => log,
            (None, Phase::Planned) => self.log.create_group(log_group(id)).await.map_err(failed)?,
            (None, Phase::Leaving) => return Err(OpenError::NotNow),
            (None, _) => return Err(OpenError::Lost("its log is not there".to_owned())),
        };
        let (store, dir, options) = (self.store.clone(), self.index_dir(id), self.options.clone());
        let collection = wish.collection;
        let open = move || Shard::open(store, &keyspaces_of(id), &dir, collection, options);
        let shard = world::blocking(open).await.map_err(failed)?;
        let shard = shard.map_err(|e| lost_if_corrupt(e.kind(), e.to_string()))?;
        let options = ReplicaOptions { replica: id, ..self.replica.clone() };
        let opened = Replica::open(options, &self.log, log, shard.clone(), self.network.clone()).await;
        let replica = opened.map_err(|e| lost_if_corrupt(e.kind(), e.to_string()))?;
        let (looks, scrubbed, stale_since, recalls) = Default::default();
        let group = wish.group;
        Ok(Arc::new(LocalShard { id, replica, shard, looks, stale_since, scrubbed, recalls, group }))
    }

    fn index_dir(&self, replica: ReplicaId) -> PathBuf {
        self.index_dir.join(replica.0.to_string())
    }

    /// Deletes what replicas hold that the catalog does not name: in the index folder, the store, the log.
    async fn delete_others(&self, kept: &BTreeSet<ReplicaId>, catalog: &CatalogState) -> Result<()> {
        let kept: BTreeSet<_> =
            kept.iter().chain(catalog.catalog.replicas.iter().map(|r| &r.replica)).collect();
        for group in self.log.groups() {
            let id = ReplicaId(u64::from(group.0));
            if kept.contains(&id) {
                continue;
            }
            let (store, dir) = (self.store.clone(), self.index_dir(id));
            world::blocking(move || Shard::drop_files(&store, &keyspaces_of(id), &dir))
                .await
                .map_err(super::task_error)??;
            // Last, so that a crash before it leaves a name by which the rest is found again.
            self.log.drop_group(group).await.map_err(super::log_error)?;
        }
        Ok(())
    }

    /// Closes every shard.
    pub(super) async fn close(&self) {
        let _turn = self.turn.lock().await;
        let open = self.open.swap(Arc::default());
        futures::future::join_all(open.values().map(|shard| shard.close())).await;
    }
}

/// A replica the catalog names of this node.
#[derive(Clone)]
struct Wish {
    collection: CollectionId,
    group: u32,
    of: ReplicaRecord,
}

impl Wish {
    /// What the catalog is to hear of a replica that is open.
    fn news_of(&self, local: &LocalShard) -> Option<CatalogCommand> {
        let replica = local.id;
        match self.of.phase {
            Phase::Planned => Some(CatalogCommand::Opened { replica }),
            Phase::Leaving => None,
            _ if local.replica.status().failure.is_some() => Some(CatalogCommand::Lost { replica }),
            _ => None,
        }
    }
}

/// Why a replica is not open.
enum OpenError {
    /// It must not come back under its id.
    Lost(String),
    /// It is on its way out.
    NotNow,
    /// It may work later.
    Failed(String),
}

fn failed(error: impl std::fmt::Display) -> OpenError {
    OpenError::Failed(error.to_string())
}

fn lost_if_corrupt(kind: Kind, why: String) -> OpenError {
    match kind {
        Kind::Corrupt => OpenError::Lost(why),
        _ => OpenError::Failed(why),
    }
}

fn keyspaces_of(replica: ReplicaId) -> String {
    format!("shard{replica}")
}

impl LocalShard {
    /// Closes the replica, then the shard. What fails is logged: nothing is lost by it, the log has it all.
    async fn close(&self) {
        if let Err(error) = self.replica.shutdown().await {
            tracing::warn!(replica = self.id.0, %error, "a replica did not close in order");
        }
        // It waits for what is being built there.
        let shard = self.shard.clone();
        if let Err(error) = world::blocking(move || shard.close()).await {
            tracing::error!(replica = self.id.0, %error, "a shard did not close");
        }
    }

    /// For how long its schema has been older than the catalog's, which it is now if `stale`.
    pub(super) fn is_stale_for(&self, stale: bool) -> Duration {
        let mut since = self.stale_since.lock().unwrap_or_else(PoisonError::into_inner);
        match stale {
            true => since.get_or_insert_with(Instant::now).elapsed(),
            false => {
                *since = None;
                Duration::ZERO
            }
        }
    }

    /// Whether it is time to read all it has, to see whether it adds up.
    pub(super) fn wants_scrub(&self, every: Duration) -> bool {
        let scrubbed = *self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            |(at, installs): (Instant, u64)| at.elapsed() < every && installs == self.shard.installs();
        !scrubbed.is_some_and(fresh) && self.replica.status().failure.is_none()
    }

    /// What it stores adds up, all of it, when so many snapshots had been installed.
    pub(super) fn scrubbed(&self, installs: u64) {
        *self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), installs));
    }

    pub(super) fn position(&self) -> Position {
        StateMachine::position(&*self.shard)
    }
}
