//! What the catalog knows: nodes, groups and their replicas, collections, aliases. Pure data.
//!
//! The life of a replica:
//!
//! ```text
//!            its node made an       the leader of the group         the leader made
//!            empty log group        was told of it                  it a member
//!   Planned ─────────────── Opened ─ (founding) ──────────────────▶ Voter ──▶ Leaving ──▶ gone
//!           ─────────────── Joining ─ (a group that is founded) ──▶ Voter | Learner
//! ```
//!
//! Invariants: a replica is bound to one data folder (`incarnation`) of one node; from `Opened` on, its log
//! group is on that folder's disk, so one that is missing there is lost and never voted in again.

use super::region::RegionRecord;
use crate::{
    cluster::{CollectionSpec, NodeName},
    model::{CollectionId, Epoch, Generation, ReplicaId, Schema},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A node, as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Which of its data folders: another one for each time it came back empty.
    pub incarnation: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Where others reach its HTTP service.
    pub http: String,
    /// Where its peers reach it.
    pub peer: String,
    /// What is to become of it.
    pub state: NodeState,
}

/// What is to become of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cluster) enum NodeState {
    /// It takes replicas.
    Active,
    /// Its shards are moved to others; it stays a member.
    Draining,
    /// All it has is moved to others, then it is forgotten.
    Removing,
}

/// A Raft group: the catalog's own, or a shard's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) struct GroupRecord {
    /// Its number in the cluster; 0 is the catalog's.
    pub group: u32,
    /// Its first voters, once it is founded.
    pub founders: BTreeSet<ReplicaId>,
    /// Its replicas.
    pub replicas: Vec<ReplicaRecord>,
}

/// One replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) struct ReplicaRecord {
    /// Its id, never reused.
    pub replica: ReplicaId,
    /// The node that keeps it.
    pub node: NodeName,
    /// The data folder it is bound to.
    pub incarnation: String,
    /// How far it has come.
    pub phase: Phase,
}

/// How far a replica has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cluster) enum Phase {
    /// Nothing is known to be on its node's disk yet.
    Planned,
    /// Its log group is there; its group is not founded yet.
    Opened,
    /// Its log group is there; it is being caught up.
    Joining,
    /// It votes.
    Voter,
    /// It follows without a vote (of group 0 only).
    Learner,
    /// It is being taken out.
    Leaving,
}

impl GroupRecord {
    /// Whether it has its first voters.
    pub(in crate::cluster) fn is_founded(&self) -> bool {
        !self.founders.is_empty()
    }

    /// Its replica of this id.
    pub(in crate::cluster) fn replica(&self, id: ReplicaId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|r| r.replica == id)
    }

    /// Replicas that stay or are to come.
    pub(in crate::cluster) fn staying(&self) -> impl Iterator<Item = &ReplicaRecord> {
        self.replicas.iter().filter(|r| r.phase != Phase::Leaving)
    }

    /// Replicas in a phase.
    pub(in crate::cluster) fn in_phase(&self, phase: Phase) -> impl Iterator<Item = &ReplicaRecord> {
        self.replicas.iter().filter(move |r| r.phase == phase)
    }
}

/// A collection, as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cluster) struct CollectionRecord {
    /// Its id.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// What its creator said, with later changes.
    pub spec: CollectionSpec,
    /// What every shard is told.
    pub schema: Schema,
    /// Version of the placement below.
    pub epoch: Epoch,
    /// Its shards, by number.
    pub shards: Vec<GroupRecord>,
    /// What it is in this region.
    #[serde(default, skip_serializing_if = "is_default")]
    pub region: RegionRecord,
    /// How often its spec was changed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revision: u64,
}

impl CollectionRecord {
    /// The home its positions count in.
    pub(in crate::cluster) fn generation(&self) -> Generation {
        self.region.generation()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
