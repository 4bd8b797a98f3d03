//! How a replica is run.
//!
//! openraft has two waits, one after the other: a follower holds itself to its leader for a lease, as long as its
//! longest election timeout, and then waits for a time of chance before it asks for votes. Ours is the sum of both:
//!
//! ```text
//!   last heard        lease over: may vote for others          asks for votes itself
//!   |---- election_ms.end / 2 ----|---- chance: .start - .end/2 .. .end/2 ----|
//!   0                                            election_ms.start .. election_ms.end
//! ```
//!
//! Not here: retries, which are the caller's.

use super::{CheckpointLimits, Pace, ProposeLimits, ReplicaError};
use crate::model::ReplicaId;
use annal_wal::GroupId;
use openraft::{Config, SnapshotPolicy};
use std::{ops::Range, path::PathBuf, time::Duration};

/// How one replica is run.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// This replica's id, unique in the cluster; never reused.
    pub replica: ReplicaId,
    /// A leader says that it lives this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for a time within this range, in milliseconds, asks for an election. The start
    /// must lie above half of the end by more than a heartbeat.
    pub election_ms: Range<u64>,
    /// Bounds of the way into the log.
    pub propose: ProposeLimits,
    /// When state is made durable.
    pub checkpoint: CheckpointLimits,
    /// The folder on whose disk a snapshot is kept while it is received.
    pub incoming: PathBuf,
    /// How fast snapshots are sent, shared by all replicas that have a clone of it, and how fast each is installed.
    pub snapshot_pace: Pace,
}

impl ReplicaOptions {
    /// Defaults for `replica`.
    pub fn new(replica: ReplicaId) -> Self {
        ReplicaOptions {
            replica,
            heartbeat_ms: 100,
            election_ms: 900..1300,
            propose: ProposeLimits::default(),
            checkpoint: CheckpointLimits::default(),
            incoming: std::env::temp_dir(),
            snapshot_pace: Pace::new(0),
        }
    }

    /// How long an append may stay unanswered, and a round of ReadIndex: well above the lease, which is how long a
    /// leader itself waits for its quorum.
    pub(super) fn answer_within(&self) -> Duration {
        Duration::from_millis(self.election_ms.end)
    }

    /// How long a leader takes its last answers of a quorum for a sign that it still leads.
    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.election_ms.end / 2)
    }

    pub(super) fn raft_config(&self, group: GroupId) -> Result<Config, ReplicaError> {
        let lease_ms = self.lease().as_millis() as u64;
        let chance_ms = self.election_ms.start.saturating_sub(lease_ms)..lease_ms;
        let config = Config {
            cluster_name: format!("group {}", group.0),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: chance_ms.start,
            election_timeout_max: chance_ms.end,
            // Checkpoints are ours to time, and so is purging.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(true),
            // A leader that restarts asks for a new term: what it had committed is then certain, and no read can be
            // served from a state older than one it had shown before.
            enable_leader_restore: Some(false),
            // A replica that comes back is fed again within half a second.
            backoff: "50ms 100ms 200ms ..500ms".into(),
            // No clock runs until there are others to hear from, see `mind`.
            enable_tick: false,
            ..Config::default()
        };
        config.validate().map_err(|e| ReplicaError::Options(e.to_string()))
    }
}
