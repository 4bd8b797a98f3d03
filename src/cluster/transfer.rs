//! Replicas on the move: what people ask for, as plans in the catalog.

use super::{Cluster, ClusterError, NodeName, Result};
use crate::model::ShardNumber;
use tokio::time::Instant;

impl Cluster {
    /// Moves all shards off a node (or lets it take some again); returns once none is left there.
    pub async fn drain_node(&self, node: &str, _deadline: Instant) -> Result<()> {
        Err(ClusterError::Unimplemented(format!("draining {node}")))
    }

    /// Moves all off a node and forgets it; returns once it is forgotten. Idempotent.
    pub async fn remove_node(&self, node: &str, _deadline: Instant) -> Result<()> {
        Err(ClusterError::Unimplemented(format!("removing {node}")))
    }

    /// Moves a shard's replica from one node to another; returns once it is there.
    pub async fn move_shard(
        &self,
        collection: &str,
        shard: ShardNumber,
        _from: &NodeName,
        _to: &NodeName,
        _deadline: Instant,
    ) -> Result<()> {
        Err(ClusterError::Unimplemented(format!("moving shard {shard} of {collection}")))
    }

    /// Makes a node the leader of a shard; returns once it is.
    pub async fn lead_shard(
        &self,
        collection: &str,
        shard: ShardNumber,
        _node: &NodeName,
        _deadline: Instant,
    ) -> Result<()> {
        Err(ClusterError::Unimplemented(format!("leading shard {shard} of {collection}")))
    }
}
