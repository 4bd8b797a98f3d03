//! What nodes say of the cluster (`GET /annal/v1/cluster`), and whether that is whole.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The answer.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    /// Replicas, by shard.
    #[serde(default)]
    pub shards: Vec<ShardStatus>,
}

/// A shard, or the catalog.
#[derive(Clone, Debug, Deserialize)]
pub struct ShardStatus {
    /// None for the catalog.
    pub collection: Option<String>,
    /// Its number.
    pub shard: u32,
    /// The version of its placement.
    pub epoch: u64,
    /// The node that leads it.
    pub leader: Option<String>,
    /// Who holds it.
    pub replicas: Vec<ReplicaStatus>,
}

/// A replica.
#[derive(Clone, Debug, Deserialize)]
pub struct ReplicaStatus {
    /// Where it is.
    pub node: String,
    /// `leader`, `follower`, `learner` …
    pub role: String,
    /// `ok`, or what is wrong.
    pub state: String,
    /// Its term.
    #[serde(default)]
    pub term: Option<u64>,
    /// How far it knows the log to be committed.
    #[serde(default)]
    pub committed: Option<u64>,
    /// How far it has applied it.
    #[serde(default)]
    pub applied: Option<u64>,
    /// Who votes, as far as it knows.
    #[serde(default)]
    pub voters: Vec<u64>,
}

/// Entries a replica may be behind under load and count as whole.
const BEHIND_MAX: u64 = 200;

impl Status {
    /// Of each shard the row that knows most.
    pub fn newest(answers: impl Iterator<Item = Status>) -> Self {
        let mut rows: BTreeMap<(Option<String>, u32), ShardStatus> = BTreeMap::new();
        for row in answers.flat_map(|status| status.shards) {
            let newer = |old: &ShardStatus| row.knows() > old.knows();
            if rows.get(&(row.collection.clone(), row.shard)).is_none_or(newer) {
                rows.insert((row.collection.clone(), row.shard), row);
            }
        }
        Status { shards: rows.into_values().collect() }
    }

    /// A shard of a collection.
    pub fn shard(&self, collection: Option<&str>, shard: u32) -> Option<&ShardStatus> {
        self.shards.iter().find(|row| row.collection.as_deref() == collection && row.shard == shard)
    }

    /// What is missing for every shard to be led and every replica to be in order; none if nothing is.
    pub fn why_not_whole(&self) -> Option<String> {
        if self.shards.is_empty() {
            return Some("no node knows of any shard".to_owned());
        }
        self.shards.iter().find_map(ShardStatus::why_not_whole)
    }
}

impl ShardStatus {
    fn knows(&self) -> (u64, bool, u64) {
        let term = self.replicas.iter().filter_map(|replica| replica.term).max();
        (self.epoch, self.leader.is_some(), term.unwrap_or(0))
    }

    fn why_not_whole(&self) -> Option<String> {
        let shown = format!("{}/{}", self.collection.as_deref().unwrap_or("catalog"), self.shard);
        let leader = self.replicas.iter().find(|replica| Some(&replica.node) == self.leader.as_ref());
        let Some(leader) = leader else { return Some(format!("{shown} has no leader")) };
        let ill = self.replicas.iter().find(|replica| {
            let votes = ["leader", "follower"].contains(&replica.role.as_str());
            // Only the catalog has replicas that are to stay without a vote.
            let stands = votes || self.collection.is_none() && replica.role == "learner";
            let near = replica.applied.unwrap_or(0) + BEHIND_MAX >= leader.committed.unwrap_or(0);
            !(stands && replica.state == "ok" && near)
        });
        let elsewhere = self.replicas.iter().find(|replica| replica.voters != leader.voters);
        let disagree =
            |replica: &ReplicaStatus| format!("{shown}: {replica:?} and {leader:?} disagree on who votes");
        ill.map(|replica| format!("{shown}: {replica:?}")).or_else(|| elsewhere.map(disagree))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(leader: Option<&str>, state: &str, applied: u64) -> Status {
        let replica = |node: &str, role: &str, state: &str, applied: u64| {
            json!({"node": node, "role": role,
            "state": state, "term": 3, "committed": 1000, "applied": applied})
        };
        let shard = json!({"collection": "c", "shard": 0, "epoch": 1, "leader": leader,
            "replicas": [replica("n1", "leader", "ok", 1000), replica("n2", "follower", state, applied)]});
        serde_json::from_value(json!({"nodes": [], "shards": [shard]})).unwrap()
    }

    #[test]
    fn whole_is_led_in_order_and_near() {
        assert_eq!(status(Some("n1"), "ok", 990).why_not_whole(), None);
        assert!(status(None, "ok", 990).why_not_whole().unwrap().contains("no leader"));
        assert!(status(Some("n1"), "seeding", 990).why_not_whole().unwrap().contains("seeding"));
        assert!(status(Some("n1"), "ok", 10).why_not_whole().is_some());
        assert!(Status::default().why_not_whole().is_some());
    }

    #[test]
    fn replicas_that_disagree_on_who_votes_are_not_whole() {
        let mut status = status(Some("n1"), "ok", 990);
        let voters = |status: &mut Status, at: usize, ids: &[u64]| {
            status.shards[0].replicas[at].voters = ids.to_vec();
        };
        voters(&mut status, 0, &[1, 2]);
        voters(&mut status, 1, &[1, 3]);
        assert!(status.why_not_whole().unwrap().contains("who votes"));
        voters(&mut status, 1, &[1, 2]);
        assert_eq!(status.why_not_whole(), None);
    }

    #[test]
    fn the_row_that_knows_a_leader_counts() {
        let rows = [status(None, "ok", 1), status(Some("n1"), "ok", 2), status(None, "ok", 3)];
        let newest = Status::newest(rows.into_iter());
        assert_eq!(newest.shard(Some("c"), 0).unwrap().leader.as_deref(), Some("n1"));
    }
}
