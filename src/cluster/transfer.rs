//! Replicas on the move: what people ask for, as plans in the catalog.
//!
//! Each of these may be asked again: what is done already is done at once.

use super::{Cluster, ClusterError, NodeName, Result};
use crate::model::ShardNumber;
use tokio::time::Instant;

impl Cluster {
    /// Moves all shards off a node; `true` once none is left there, `false` if the catalog has it and it was still
    /// under way at the deadline.
    pub async fn drain_node(&self, node: &str, deadline: Instant) -> Result<bool> {
        self.known_node(node, deadline).await?;
        Err(ClusterError::Unimplemented(format!("draining {node}")))
    }

    /// Lets a drained node take replicas again.
    pub async fn undrain_node(&self, node: &str, deadline: Instant) -> Result<()> {
        self.known_node(node, deadline).await?;
        Err(ClusterError::Unimplemented(format!("undraining {node}")))
    }

    /// Moves all off a node and forgets it; `true` once it is forgotten, `false` as for [`Cluster::drain_node`]. A
    /// node that is not known is forgotten.
    pub async fn remove_node(&self, node: &str, deadline: Instant) -> Result<bool> {
        match self.known_node(node, deadline).await {
            Err(ClusterError::NotFound(_)) => Ok(true),
            Err(other) => Err(other),
            Ok(()) => Err(ClusterError::Unimplemented(format!("removing {node}"))),
        }
    }

    /// Moves a shard's replica from one node to another; `true` once it is there and the old one is gone, `false` as
    /// for [`Cluster::drain_node`].
    pub async fn move_shard(
        &self,
        collection: &str,
        shard: ShardNumber,
        from: &NodeName,
        to: &NodeName,
        deadline: Instant,
    ) -> Result<bool> {
        self.known_shard(collection, shard, deadline).await?;
        for node in [from, to] {
            self.known_node(node, deadline).await?;
        }
        Err(ClusterError::Unimplemented(format!("moving shard {shard} of {collection}")))
    }

    /// Makes a node the leader of a shard; `true` once it is, `false` as for [`Cluster::drain_node`].
    pub async fn lead_shard(
        &self,
        collection: &str,
        shard: ShardNumber,
        node: &NodeName,
        deadline: Instant,
    ) -> Result<bool> {
        self.known_shard(collection, shard, deadline).await?;
        self.known_node(node, deadline).await?;
        Err(ClusterError::Unimplemented(format!("leading shard {shard} of {collection}")))
    }

    /// Errors: the current catalog has no such node.
    async fn known_node(&self, node: &str, deadline: Instant) -> Result<()> {
        self.catch_up_with_catalog(deadline).await?;
        match self.inner.catalog.state().nodes.contains_key(node) {
            true => Ok(()),
            false => Err(ClusterError::NotFound(format!("node {node}"))),
        }
    }

    /// Errors: the current catalog has no such collection, or it has no such shard.
    async fn known_shard(&self, collection: &str, shard: ShardNumber, deadline: Instant) -> Result<()> {
        let live = self.lookup(collection, deadline).await?;
        match live.shards.get(shard.0 as usize) {
            Some(_) => Ok(()),
            None => Err(ClusterError::NotFound(format!("shard {shard} of {collection}"))),
        }
    }
}
