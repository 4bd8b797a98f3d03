//! The shards this node holds: opened and closed until they are what the catalog says.
//!
//! Invariants: a collection is in the live map only when every one of its shards is open and has applied the
//! catalog's schema; what the catalog no longer names is closed, then deleted. [`Shards::reconcile`] is
//! idempotent and may be cut off anywhere.

use super::{
    Result,
    catalog::{CatalogState, CollectionRecord, ShardRecord},
};
use crate::{
    machine::{Outcome, StateMachine, Verdict},
    model::{Body, Command, Position, ReplicaId, ShardNumber},
    replica::{Nobody, Proposed, Replica, ReplicaOptions, Wait},
    shard::{Shard, ShardOptions},
    store::Store,
};
use annal_wal::{GroupId, Log};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A shard held by this node.
pub(super) struct LocalShard {
    pub(super) number: ShardNumber,
    pub(super) group: GroupId,
    pub(super) replica: Replica<Shard>,
    pub(super) shard: Arc<Shard>,
}

/// A collection whose shards are open.
pub(super) struct LiveCollection {
    pub(super) record: Arc<CollectionRecord>,
    pub(super) shards: Vec<Arc<LocalShard>>,
}

/// All live collections by name.
pub(super) type Live = BTreeMap<String, Arc<LiveCollection>>;

/// Opens and closes this node's shards.
pub(super) struct Shards {
    pub(super) log: Log,
    pub(super) store: Store,
    pub(super) index_dir: PathBuf,
    pub(super) options: ShardOptions,
    live: ArcSwap<Live>,
    /// One reconciliation at a time.
    turn: tokio::sync::Mutex<()>,
}

/// How long a shard may take to apply its own schema before the reconciliation is given up (and tried again
/// by the next one).
const CONFIGURE_WITHIN: Duration = Duration::from_secs(30);

impl Shards {
    pub(super) fn new(log: Log, store: Store, index_dir: PathBuf, options: ShardOptions) -> Self {
        Shards { log, store, index_dir, options, live: ArcSwap::default(), turn: Default::default() }
    }

    pub(super) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Opens, configures and closes until the live map is what `catalog` gives.
    pub(super) async fn reconcile(&self, catalog: impl Fn() -> Arc<CatalogState>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let wanted = catalog();
        let before = self.live();
        let mut live = Live::new();
        for (name, record) in &wanted.collections {
            let open = before.get(name).filter(|c| c.record.id == record.id);
            let collection = match open {
                Some(open) if open.record == *record => open.clone(),
                open => Arc::new(self.bring_up(record, open).await?),
            };
            live.insert(name.clone(), collection);
        }
        let kept: BTreeSet<GroupId> = live.values().flat_map(|c| &c.shards).map(|s| s.group).collect();
        self.live.store(Arc::new(live));
        for dropped in before.values().flat_map(|c| &c.shards).filter(|s| !kept.contains(&s.group)) {
            dropped.close().await;
        }
        self.delete_others(&kept).await
    }

    /// A collection with all its shards open and configured; those of `open` are kept.
    async fn bring_up(
        &self,
        record: &Arc<CollectionRecord>,
        open: Option<&Arc<LiveCollection>>,
    ) -> Result<LiveCollection> {
        let mut shards = Vec::with_capacity(record.shards.len());
        for (number, shard) in record.shards.iter().enumerate() {
            let shard = match open.and_then(|c| c.shards.get(number)) {
                Some(open) => open.clone(),
                None => Arc::new(self.open_shard(record, ShardNumber(number as u32), shard).await?),
            };
            shard.configure(record).await?;
            shards.push(shard);
        }
        Ok(LiveCollection { record: record.clone(), shards })
    }

    async fn open_shard(
        &self,
        record: &CollectionRecord,
        number: ShardNumber,
        of: &ShardRecord,
    ) -> Result<LocalShard> {
        let group = GroupId(of.group);
        let log = match self.log.group(group) {
            Some(log) => log,
            None => self.log.create_group(group).await.map_err(super::log_error)?,
        };
        let (store, dir, options) = (self.store.clone(), self.index_dir(group), self.options.clone());
        let (name, collection) = (keyspaces_of(group), record.id);
        let shard = tokio::task::spawn_blocking(move || Shard::open(store, &name, &dir, collection, options))
            .await
            .map_err(super::task_error)??;
        let replica_id = of.replicas.first().copied().unwrap_or(ReplicaId(0));
        let options = ReplicaOptions::new(replica_id);
        let replica = Replica::open(options, &self.log, log, shard.clone(), Arc::new(Nobody)).await?;
        replica.found([replica_id].into()).await?;
        Ok(LocalShard { number, group, replica, shard })
    }

    fn index_dir(&self, group: GroupId) -> PathBuf {
        self.index_dir.join(group.0.to_string())
    }

    /// Deletes what groups hold that the catalog does not name: in the index folder, the store, the log.
    async fn delete_others(&self, kept: &BTreeSet<GroupId>) -> Result<()> {
        let stale: Vec<GroupId> =
            self.log.groups().into_iter().filter(|g| g.0 != 0 && !kept.contains(g)).collect();
        for group in stale {
            let (store, dir) = (self.store.clone(), self.index_dir(group));
            tokio::task::spawn_blocking(move || Shard::drop_files(&store, &keyspaces_of(group), &dir))
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
        let live = self.live.swap(Arc::default());
        for shard in live.values().flat_map(|c| &c.shards) {
            shard.close().await;
        }
    }
}

fn keyspaces_of(group: GroupId) -> String {
    format!("shard{}", group.0)
}

impl LocalShard {
    /// Tells the shard the catalog's schema through its own log, unless it has it already.
    async fn configure(&self, record: &CollectionRecord) -> Result<()> {
        let deadline = Instant::now() + CONFIGURE_WITHIN;
        let index = self.replica.read_index(deadline).await?;
        self.replica.wait_applied(index, deadline).await?;
        if self.shard.view().schema().version >= record.schema.version {
            return Ok(());
        }
        let command = Command {
            collection: record.id,
            schema_version: record.schema.version,
            epoch: record.epoch,
            request: None,
            born: self.position(),
            body: Body::Configure(record.schema.clone()),
        };
        match self.replica.propose(command.encode(), deadline, Wait::Applied).await? {
            Proposed::Applied(Outcome { verdict: Verdict::Rejected(rejection), .. }) => Err(rejection.into()),
            Proposed::Applied(_) | Proposed::Committed(_) => Ok(()),
        }
    }

    /// Closes the replica, then the shard. What fails is logged: nothing is lost by it, the log has it all.
    async fn close(&self) {
        if let Err(error) = self.replica.shutdown().await {
            tracing::warn!(group = self.group.0, %error, "a replica did not close in order");
        }
        self.shard.close();
    }

    pub(super) fn position(&self) -> Position {
        StateMachine::position(&*self.shard)
    }
}
