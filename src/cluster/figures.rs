//! What this node tells those who watch it: its log, and each replica it holds.
//!
//! Not here: the whole cluster (see `report`), how figures are written (see `api/`).

use super::{Cluster, RecallFigures, shards::LiveCollection};
use crate::{model::ShardNumber, replica::ReplicaStatus, shard::ShardStats};
use annal_wal::LogStatus;
use std::time::Duration;

/// Figures of one node, taken when asked for.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The log all replicas share.
    pub log: LogStatus,
    /// The catalog's replica, then those of shards by collection and number.
    pub replicas: Vec<ReplicaFigures>,
}

/// Figures of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaFigures {
    /// The collection; `None` for the catalog.
    pub collection: Option<String>,
    /// The shard's number in it.
    pub shard: ShardNumber,
    /// How far it has come.
    pub status: ReplicaStatus,
    /// What is in it; `None` for the catalog.
    pub stats: Option<ShardStats>,
    /// What is known of the recall of its searches since it was opened; `None` for the catalog.
    pub recall: Option<RecallFigures>,
    /// How far behind its home it is, if it follows one that was heard of.
    pub home: Option<HomeFigures>,
}

/// How far a replica is behind its home in another region.
#[derive(Clone, Copy, Debug)]
pub struct HomeFigures {
    /// In commands.
    pub entries: u64,
    /// Since when the home may have had something that is not here; `None`: since before anything was heard.
    pub age: Option<Duration>,
}

impl Cluster {
    /// Figures of this node. Cost: a few counters for each replica; never waits.
    pub fn figures(&self) -> Figures {
        let catalog = ReplicaFigures {
            collection: None,
            shard: ShardNumber(0),
            status: self.inner.catalog_replica.status(),
            stats: None,
            recall: None,
            home: None,
        };
        let state = self.inner.catalog.state();
        let shards = state.collections.values().flat_map(|c| LiveCollection::of(c.clone()).shards);
        let held = shards.filter_map(|shard| {
            let local = self.replica_here(shard.group().group)?;
            Some(ReplicaFigures {
                collection: Some(shard.collection.name.clone()),
                shard: shard.number,
                status: local.replica.status(),
                stats: Some(local.shard.stats()),
                recall: Some(local.recalls.figures()),
                home: local.shard.view().follows().then(|| self.behind_home(&local)).flatten(),
            })
        });
        Figures { log: self.inner.shards.log_status(), replicas: [catalog].into_iter().chain(held).collect() }
    }
}
