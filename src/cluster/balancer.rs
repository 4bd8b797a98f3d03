//! What the cluster lacks, as plans for the catalog: pure functions of the catalog and of who has been silent.
//!
//! Invariants: a group gets at most one new replica at a time; a replica goes only when another takes its place, or
//! when its node is to be removed and others hold the group; a plan made twice is refused by the catalog.
//! Not here: when to look (`steward`), carrying a plan out (`transfer`).

use super::{
    NodeName,
    catalog::{CatalogCommand, CatalogState, GroupRecord, NodeRecord, NodeState, Phase, ReplicaRecord},
    placement::next_node,
};
use std::collections::{BTreeMap, BTreeSet};

/// Most plans that one look gives: each moves a whole shard.
const PLANS_MAX: usize = 4;

/// What to do next.
///
/// `silent`: nodes that have not answered for as long as a replica may be without its node.
pub(super) fn plan(state: &CatalogState, silent: &BTreeSet<NodeName>) -> Vec<CatalogCommand> {
    let mut ground = Ground::of(state, silent);
    let mut plans = Vec::new();
    for collection in state.collections.values() {
        for group in &collection.shards {
            plans.extend(ground.group(group, collection.spec.replication_factor.max(1) as usize));
        }
    }
    plans.truncate(PLANS_MAX);
    plans.extend(catalog(state));
    let gone =
        |n: &&NodeRecord| n.state == NodeState::Removing && state.replicas_of(&n.name).next().is_none();
    plans.extend(state.nodes.values().filter(gone).map(|n| CatalogCommand::Forget { node: n.name.clone() }));
    plans
}

/// The first shard that could not leave a node because no other node can take it: its collection and number.
pub(super) fn stuck_on<'a>(
    state: &'a CatalogState,
    node: &str,
    silent: &BTreeSet<NodeName>,
) -> Option<(&'a str, usize)> {
    let ground = Ground::of(state, silent);
    let leaves = |group: &GroupRecord| {
        let here = group.staying().any(|r| r.node == node);
        !here || ground.target(group, &[node]).is_some()
    };
    let shards =
        state.collections.values().flat_map(|c| c.shards.iter().enumerate().map(move |(n, g)| (c, n, g)));
    shards.into_iter().find(|(_, _, group)| !leaves(group)).map(|(c, n, _)| (c.name.as_str(), n))
}

/// Replicas of group 0 on nodes that are to be removed.
fn catalog(state: &CatalogState) -> Option<CatalogCommand> {
    let removing =
        |r: &&ReplicaRecord| state.nodes.get(&r.node).is_none_or(|n| n.state == NodeState::Removing);
    let goes = state.catalog.staying().find(removing)?;
    let others = state.catalog.staying().filter(|r| !removing(r)).any(|r| r.phase != Phase::Planned);
    others.then_some(CatalogCommand::Plan { group: 0, to: None, instead_of: Some(goes.replica) })
}

/// Which nodes can take what.
struct Ground<'a> {
    state: &'a CatalogState,
    silent: &'a BTreeSet<NodeName>,
    takes: Vec<&'a NodeRecord>,
    load: BTreeMap<&'a str, usize>,
}

impl<'a> Ground<'a> {
    fn of(state: &'a CatalogState, silent: &'a BTreeSet<NodeName>) -> Self {
        let takes = |n: &&NodeRecord| n.state == NodeState::Active && !silent.contains(&n.name);
        let takes: Vec<_> = state.nodes.values().filter(takes).collect();
        let mut load: BTreeMap<&str, usize> = takes.iter().map(|n| (n.name.as_str(), 0)).collect();
        for replica in state.groups().filter(|g| g.group != 0).flat_map(GroupRecord::staying) {
            if let Some(load) = load.get_mut(replica.node.as_str()) {
                *load += 1;
            }
        }
        Ground { state, silent, takes, load }
    }

    /// The node for one more replica of a group; those `beside` hold it now and will not.
    fn target(&self, group: &GroupRecord, beside: &[&str]) -> Option<&'a NodeRecord> {
        let all: Vec<&NodeRecord> = group.staying().filter_map(|r| self.state.nodes.get(&r.node)).collect();
        let free: Vec<&NodeRecord> =
            self.takes.iter().copied().filter(|n| all.iter().all(|held| held.name != n.name)).collect();
        let stay: Vec<&NodeRecord> = all.into_iter().filter(|n| !beside.contains(&n.name.as_str())).collect();
        next_node(&free, &stay, &self.load)
    }

    /// The replica that a group with too many gives up: one beside another on its node, else one of a full node.
    fn surplus(&self, group: &'a GroupRecord) -> Option<&'a ReplicaRecord> {
        let beside = |r: &ReplicaRecord| group.staying().filter(|other| other.node == r.node).count();
        let load = |r: &ReplicaRecord| self.load.get(r.node.as_str()).copied();
        group.staying().max_by_key(|r| (beside(r), load(r), r.replica))
    }

    fn group(&mut self, group: &'a GroupRecord, wanted: usize) -> Option<CatalogCommand> {
        let number = group.group;
        if !group.is_founded() {
            return None;
        }
        let pending = group.staying().find(|r| r.phase != Phase::Voter);
        if let Some(pending) = pending {
            let dead = self.silent.contains(&pending.node) || !self.state.nodes.contains_key(&pending.node);
            let others = group.staying().count() > 1;
            return (dead && others).then_some(CatalogCommand::Plan {
                group: number,
                to: None,
                instead_of: Some(pending.replica),
            });
        }
        let leaves = |r: &&ReplicaRecord| {
            let node = self.state.nodes.get(&r.node);
            node.is_none_or(|n| n.state != NodeState::Active) || self.silent.contains(&r.node)
        };
        let leaving = group.staying().find(leaves);
        let to = match leaving {
            Some(r) => self.target(group, &[&r.node]),
            None if group.staying().count() < wanted => self.target(group, &[]),
            None if group.staying().count() > wanted => {
                let instead_of = Some(self.surplus(group)?.replica);
                return Some(CatalogCommand::Plan { group: number, to: None, instead_of });
            }
            None => return None,
        };
        if let Some(to) = to {
            *self.load.entry(&to.name).or_default() += 1;
        }
        let removed =
            |r: &&ReplicaRecord| self.state.nodes.get(&r.node).is_none_or(|n| n.state == NodeState::Removing);
        // Without a place to go to, only a node that is to be removed gives its copy up.
        let goes = to.is_some() || leaving.filter(removed).is_some() && group.staying().count() > 1;
        goes.then(|| CatalogCommand::Plan {
            group: number,
            to: to.map(|n| n.name.clone()),
            instead_of: leaving.map(|r| r.replica),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{CollectionSpec, catalog::CollectionRecord, placement::place},
        model::ReplicaId,
    };
    use std::sync::Arc;

    fn cluster(nodes: u32, replication_factor: u32) -> CatalogState {
        let mut state = CatalogState::default();
        for n in 1..=nodes {
            let node = NodeRecord {
                name: format!("n{n}"),
                incarnation: "1".into(),
                region: "r".into(),
                zone: format!("z{}", n % 3),
                http: String::new(),
                peer: String::new(),
                state: NodeState::Active,
            };
            state.apply(CatalogCommand::Join { node }).expect("fits");
        }
        let spec = CollectionSpec { shard_number: 3, replication_factor, ..CollectionSpec::default() };
        let placement = place(&state, &spec, &BTreeSet::new());
        state.apply(CatalogCommand::Create { name: "c".into(), spec, placement }).expect("fits");
        settle(&mut state);
        state
    }

    /// Everything that is to open opens, joins and leaves.
    fn settle(state: &mut CatalogState) {
        for _ in 0..3 {
            let replicas: Vec<_> = state.groups().flat_map(|g| g.replicas.clone()).collect();
            for ReplicaRecord { replica, phase, .. } in replicas {
                let command = match phase {
                    Phase::Planned => CatalogCommand::Opened { replica },
                    Phase::Joining => CatalogCommand::Joined { replica, voter: true },
                    Phase::Leaving => CatalogCommand::Left { replica },
                    _ => continue,
                };
                state.apply(command).expect("fits");
            }
        }
    }

    /// Plans and settles until there is nothing left to plan; gives how often.
    fn run(state: &mut CatalogState, silent: &BTreeSet<NodeName>) -> usize {
        for round in 0..20 {
            let plans = plan(state, silent);
            if plans.is_empty() {
                return round;
            }
            for plan in plans {
                state.apply(plan).expect("a plan of this very state");
            }
            settle(state);
        }
        panic!("it goes on for ever: {state:?}");
    }

    fn nodes(state: &CatalogState, shard: usize) -> BTreeSet<&str> {
        state.collections["c"].shards[shard].replicas.iter().map(|r| r.node.as_str()).collect()
    }

    #[test]
    fn replicas_stand_in_different_zones_and_evenly() {
        let state = cluster(6, 3);
        for shard in &state.collections["c"].shards {
            let zones: BTreeSet<_> = shard.replicas.iter().map(|r| &state.nodes[&r.node].zone).collect();
            assert_eq!(zones.len(), 3);
        }
        let load = |node: &str| state.replicas_of(node).count();
        assert!(state.nodes.keys().all(|n| (2..=3).contains(&load(n))), "{state:?}");
        assert!(plan(&state, &BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_collection_is_completed_when_nodes_join() {
        let mut state = cluster(1, 3);
        assert_eq!(nodes(&state, 0).len(), 1);
        for n in ["n2", "n3"] {
            let node = NodeRecord { name: n.into(), ..state.nodes["n1"].clone() };
            state.apply(CatalogCommand::Join { node }).expect("fits");
        }
        run(&mut state, &BTreeSet::new());
        assert!((0..3).all(|shard| nodes(&state, shard).len() == 3), "{state:?}");
    }

    #[test]
    fn what_is_too_much_is_given_up() {
        let mut state = cluster(4, 3);
        let record = state.collections["c"].clone();
        let mut more = CollectionRecord::clone(&record);
        let twice = ReplicaRecord { replica: ReplicaId(1_000), ..more.shards[0].replicas[0].clone() };
        more.shards[0].replicas.push(twice);
        more.spec.replication_factor = 3;
        state.collections.insert("c".into(), Arc::new(more));
        assert_eq!(run(&mut state, &BTreeSet::new()), 1);
        assert_eq!(state.collections["c"].shards, record.shards, "the later of two on a node goes");
        let mut fewer = CollectionRecord::clone(&record);
        fewer.spec.replication_factor = 2;
        state.collections.insert("c".into(), Arc::new(fewer));
        run(&mut state, &BTreeSet::new());
        assert!((0..3).all(|shard| nodes(&state, shard).len() == 2), "{state:?}");
    }

    #[test]
    fn a_drained_node_is_emptied_and_a_removed_one_forgotten() {
        let mut state = cluster(4, 2);
        state.apply(CatalogCommand::Drain { node: "n1".into(), drain: true }).expect("fits");
        run(&mut state, &BTreeSet::new());
        assert!((0..3).all(|shard| nodes(&state, shard).len() == 2 && !nodes(&state, shard).contains("n1")));
        state.apply(CatalogCommand::Remove { node: "n1".into() }).expect("fits");
        run(&mut state, &BTreeSet::new());
        assert!(!state.nodes.contains_key("n1") && state.catalog.replicas.iter().all(|r| r.node != "n1"));
    }

    #[test]
    fn what_has_no_place_to_go_stays_unless_its_node_is_removed() {
        let mut state = cluster(3, 3);
        assert_eq!(stuck_on(&state, "n1", &BTreeSet::new()), Some(("c", 0)));
        state.apply(CatalogCommand::Drain { node: "n1".into(), drain: true }).expect("fits");
        assert!(plan(&state, &BTreeSet::new()).is_empty());
        state.apply(CatalogCommand::Remove { node: "n1".into() }).expect("fits");
        run(&mut state, &BTreeSet::new());
        assert!((0..3).all(|shard| nodes(&state, shard) == BTreeSet::from(["n2", "n3"])), "{state:?}");
    }

    #[test]
    fn a_silent_node_is_replaced_and_the_last_copy_is_never_given_up() {
        let mut state = cluster(4, 3);
        let silent = BTreeSet::from(["n2".to_owned()]);
        run(&mut state, &silent);
        assert!((0..3).all(|shard| nodes(&state, shard).len() == 3 && !nodes(&state, shard).contains("n2")));
        let mut state = cluster(1, 1);
        state.apply(CatalogCommand::Remove { node: "n1".into() }).expect("fits");
        assert!(plan(&state, &BTreeSet::new()).is_empty());
    }
}
