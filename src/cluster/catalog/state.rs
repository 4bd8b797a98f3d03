//! The catalog as a pure fold: a state, a command, the next state or a rejection.
//!
//! Invariants: collection ids, group ids and replica ids are never reused; every change of a collection's schema
//! raises `schema.version`, every change of its replicas raises `epoch`; a command that no longer fits is rejected
//! and changes nothing; a replica is given up only while a majority of its group's voters stays.

use super::{
    command::CatalogCommand,
    intents::Intents,
    record::{CollectionRecord, GroupRecord, NodeRecord, NodeState, Phase, ReplicaRecord},
    region::{Follow, Part, RegionChange, RegionRecord},
};
use crate::{
    cluster::{AliasAction, CollectionChange, CollectionSpec, NodeName},
    machine::Rejection,
    model::{CollectionId, Epoch, FieldPath, FieldType, ReplicaId, Schema, VectorParams},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The catalog as it stands at one position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::cluster) struct CatalogState {
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
    /// Group 0.
    pub catalog: GroupRecord,
    /// Collections by name.
    pub collections: BTreeMap<String, Arc<CollectionRecord>>,
    /// Collections, or former groups of them, that are dropped and not all retired yet; by id, or by a number of their
    /// own where that is taken.
    pub dropping: BTreeMap<CollectionId, Arc<CollectionRecord>>,
    /// Names of collections by alias.
    pub aliases: BTreeMap<String, String>,
    pub(super) counters: Counters,
    /// Changes that users asked for by name.
    #[serde(default)]
    pub(super) intents: Intents,
}

/// What is given out next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    collection: u64,
    group: u32,
    replica: u64,
}

impl Default for Counters {
    fn default() -> Self {
        // Group 0 is the catalog's own.
        Counters { collection: 1, group: 1, replica: FOUNDER.0 }
    }
}

/// The first replica of group 0, on the node that founds the cluster.
pub(in crate::cluster) const FOUNDER: ReplicaId = ReplicaId(1);

/// Rejection: the name is taken.
pub(in crate::cluster) const EXISTS: &str = "exists";
/// Rejection: no collection (alias, node, replica) of that name.
pub(in crate::cluster) const MISSING: &str = "missing";
/// Rejection: the field is indexed as another type.
pub(in crate::cluster) const OTHER_TYPE: &str = "other_type";
/// Rejection: the plan was made from an older catalog.
pub(in crate::cluster) const STALE: &str = "stale";
/// Rejection: it would leave a group without a majority of its voters, or a node that still holds something.
pub(in crate::cluster) const NEEDED: &str = "needed";

fn rejection(code: &str, message: String) -> Rejection {
    Rejection::new(code, message)
}

fn missing(what: &str, name: &dyn std::fmt::Display) -> Rejection {
    rejection(MISSING, format!("there is no {what} {name}"))
}

type Result<T> = std::result::Result<T, Rejection>;

impl CatalogState {
    /// Applies one change, or says why it does not fit.
    pub(in crate::cluster) fn apply(&mut self, command: CatalogCommand) -> Result<()> {
        match command {
            CatalogCommand::Join { node } => self.join(node),
            CatalogCommand::Drain { node, drain } => {
                self.node(&node)?.state = if drain { NodeState::Draining } else { NodeState::Active };
                Ok(())
            }
            CatalogCommand::Remove { node } => self.remove(&node),
            CatalogCommand::Forget { node } => self.forget(&node),
            CatalogCommand::Create { name, spec, placement } => self.create(name, spec, &placement),
            CatalogCommand::Drop { name } => self.drop_collection(&name),
            CatalogCommand::Dropped { id } => {
                self.dropping.remove(&id);
                Ok(())
            }
            CatalogCommand::Follow(follow) => self.follow(follow),
            CatalogCommand::Region { id, change } => self.turn(id, change),
            CatalogCommand::Update { name, change, from } => self.change(&name, |c| {
                if from.is_some_and(|from| from != (c.id, c.revision)) {
                    return Err(rejection(STALE, format!("collection {} was changed meanwhile", c.name)));
                }
                c.spec.change(change);
                c.revision += 1;
                let schema = c.spec.schema(c.schema.version, &c.schema.fields);
                Ok(replace(&mut c.schema, schema))
            }),
            CatalogCommand::CreateField { name, path, of } => {
                self.change(&name, |c| match c.schema.fields.get(&path) {
                    Some(old) if *old == of => Ok(false),
                    Some(old) => {
                        Err(rejection(OTHER_TYPE, format!("field {path} is indexed as {old:?} already")))
                    }
                    None => Ok(c.schema.fields.insert(path, of).is_none()),
                })
            }
            CatalogCommand::DropField { name, path } => {
                self.change(&name, |c| Ok(c.schema.fields.remove(&path).is_some()))
            }
            CatalogCommand::Alias { actions } => self.alias(actions),
            CatalogCommand::Plan { group, to, instead_of } => self.plan(group, to, instead_of),
            CatalogCommand::Opened { replica } => self.opened(replica),
            CatalogCommand::Found { group } => self.with_group(group, |group| {
                if !group.is_founded() {
                    group.found();
                }
                Ok(())
            }),
            CatalogCommand::Joined { replica, voter } => self.with_group_of(replica, |_, group, at| {
                let phase = &mut group.replicas[at].phase;
                if matches!(phase, Phase::Joining | Phase::Learner | Phase::Voter) {
                    *phase = if voter { Phase::Voter } else { Phase::Learner };
                }
                Ok(())
            }),
            CatalogCommand::Left { replica } => self.with_group_of(replica, |_, group, at| {
                if group.replicas[at].phase == Phase::Leaving {
                    group.replicas.remove(at);
                }
                Ok(())
            }),
            CatalogCommand::Lost { replica } => self.lost(replica),
        }
    }

    /// The collection of this name or alias.
    pub(in crate::cluster) fn collection(&self, name: &str) -> Option<&Arc<CollectionRecord>> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.collections.get(name)
    }

    /// Every group: the catalog's, those of collections, those of collections that go.
    pub(in crate::cluster) fn groups(&self) -> impl Iterator<Item = &GroupRecord> {
        let collections = self.collections.values().chain(self.dropping.values());
        std::iter::once(&self.catalog).chain(collections.flat_map(|c| &c.shards))
    }

    // --- nodes ---

    fn node(&mut self, name: &str) -> Result<&mut NodeRecord> {
        self.nodes.get_mut(name).ok_or_else(|| missing("node", &name))
    }

    fn join(&mut self, node: NodeRecord) -> Result<()> {
        let (name, incarnation) = (node.name.clone(), node.incarnation.clone());
        let first = self.nodes.is_empty();
        let before = self.nodes.insert(name.clone(), node);
        if let Some(before) = before {
            if before.incarnation == incarnation {
                self.nodes.get_mut(&name).expect("just inserted").state = before.state;
                return Ok(());
            }
            // One that leaves has been replaced before: its node may have lost its data twice.
            let stays = |r: &&ReplicaRecord| r.phase != Phase::Leaving;
            let lost: Vec<ReplicaId> = self.replicas_of(&name).filter(stays).map(|r| r.replica).collect();
            for replica in lost {
                self.bury(replica);
            }
        }
        // `node.json` binds a replica of group 0 to its folder before it is opened: it need not say Opened.
        let phase = if first { Phase::Voter } else { Phase::Joining };
        let replica = self.next_replica(&name, phase);
        if first {
            self.catalog.founders = BTreeSet::from([replica.replica]);
            self.counters.collection = first_collection(&incarnation);
        }
        self.catalog.replicas.push(replica);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.node(name)?.state = NodeState::Removing;
        Ok(())
    }

    fn forget(&mut self, name: &str) -> Result<()> {
        match self.nodes.get(name) {
            Some(node) if node.state == NodeState::Removing && self.replicas_of(name).next().is_none() => {
                self.nodes.remove(name);
                Ok(())
            }
            Some(_) => Err(rejection(NEEDED, format!("node {name} still holds replicas"))),
            None => Ok(()),
        }
    }

    /// Every replica that is bound to a node.
    pub(in crate::cluster) fn replicas_of<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = &'a ReplicaRecord> {
        self.groups().flat_map(|g| &g.replicas).filter(move |r| r.node == node)
    }

    // --- replicas ---

    fn next_replica(&mut self, node: &str, phase: Phase) -> ReplicaRecord {
        let replica = ReplicaId(self.counters.replica);
        self.counters.replica += 1;
        let incarnation = self.nodes.get(node).map(|n| n.incarnation.clone()).unwrap_or_default();
        ReplicaRecord { replica, node: node.to_owned(), incarnation, phase }
    }

    fn with_group(&mut self, number: u32, change: impl FnOnce(&mut GroupRecord) -> Result<()>) -> Result<()> {
        if number == 0 {
            let mut changed = self.catalog.clone();
            change(&mut changed)?;
            self.catalog = changed;
            return Ok(());
        }
        let of = |c: &Arc<CollectionRecord>| c.shards.iter().position(|s| s.group == number);
        let mut collections = self.collections.values_mut().chain(self.dropping.values_mut());
        let found = collections.find_map(|c| of(c).map(|at| (c, at)));
        let (record, at) = found.ok_or_else(|| missing("group", &number))?;
        let mut changed = CollectionRecord::clone(record);
        change(&mut changed.shards[at])?;
        if changed.shards != record.shards {
            changed.epoch = Epoch(changed.epoch.0 + 1);
            *record = Arc::new(changed);
        }
        Ok(())
    }

    /// Changes the group of a replica; a replica that is gone changes nothing.
    fn with_group_of(
        &mut self,
        replica: ReplicaId,
        change: impl FnOnce(ReplicaId, &mut GroupRecord, usize) -> Result<()>,
    ) -> Result<()> {
        let Some(group) = self.groups().find(|g| g.replica(replica).is_some()).map(|g| g.group) else {
            return Ok(());
        };
        self.with_group(group, |group| {
            let at = group.replicas.iter().position(|r| r.replica == replica).expect("found above");
            change(replica, group, at)
        })
    }

    fn plan(&mut self, number: u32, to: Option<NodeName>, instead_of: Option<ReplicaId>) -> Result<()> {
        if let Some(to) = &to
            && self.nodes.get(to).is_none_or(|n| n.state != NodeState::Active)
        {
            return Err(rejection(STALE, format!("node {to} takes no replicas")));
        }
        let has_one = |to: &NodeName| {
            let group = self.groups().find(|g| g.group == number);
            group.is_some_and(|g| g.staying().any(|r| r.node == *to))
        };
        if let Some(to) = to.as_ref().filter(|to| has_one(to)) {
            return Err(rejection(STALE, format!("node {to} has a replica of group {number}")));
        }
        // A number is spent also by a plan that is rejected below: numbers need not be dense.
        let new = to.map(|to| self.next_replica(&to, Phase::Planned));
        self.with_group(number, |group| {
            if let Some(old) = instead_of {
                let old = group.replicas.iter_mut().find(|r| r.replica == old);
                let old = old.ok_or_else(|| missing("replica", &instead_of.unwrap_or_default()))?;
                old.phase = Phase::Leaving;
            }
            group.replicas.extend(new);
            group
                .staying()
                .next()
                .map(|_| ())
                .ok_or_else(|| rejection(NEEDED, format!("group {number} would be left without a replica")))
        })
    }

    fn opened(&mut self, replica: ReplicaId) -> Result<()> {
        self.with_group_of(replica, |_, group, at| {
            if group.replicas[at].phase == Phase::Planned {
                group.replicas[at].phase = if group.is_founded() { Phase::Joining } else { Phase::Opened };
            }
            if !group.is_founded() && group.staying().all(|r| r.phase == Phase::Opened) {
                group.found();
            }
            Ok(())
        })
    }

    /// A replica whose node must not let it vote again: another one is planned on the same node.
    fn lost(&mut self, replica: ReplicaId) -> Result<()> {
        let group = self.groups().find(|g| g.replica(replica).is_some());
        let Some(group) = group else { return Ok(()) };
        let lost = group.replica(replica).expect("found above");
        if lost.phase == Phase::Leaving || group.group == 0 {
            return Ok(());
        }
        let voters = group.founded_voters().count();
        let left = group.in_phase(Phase::Voter).filter(|r| r.replica != replica).count();
        if lost.phase == Phase::Voter && left * 2 <= voters {
            let message = format!("of {voters} voters of group {} only {left} would be left", group.group);
            return Err(rejection(NEEDED, message));
        }
        self.bury(replica);
        Ok(())
    }

    /// Takes a replica whose data is gone out, and plans one in its place on the same node if the node takes any.
    fn bury(&mut self, replica: ReplicaId) {
        let node =
            self.groups().flat_map(|g| &g.replicas).find(|r| r.replica == replica).map(|r| r.node.clone());
        let Some(node) = node else { return };
        let takes = self.nodes.get(&node).is_some_and(|n| n.state == NodeState::Active);
        let new = takes.then(|| self.next_replica(&node, Phase::Planned));
        let change = |_: ReplicaId, group: &mut GroupRecord, at: usize| {
            match group.is_founded() {
                true => group.replicas[at].phase = Phase::Leaving,
                // Nobody has heard of it yet.
                false => drop(group.replicas.remove(at)),
            }
            // The catalog's own replica is planned by whoever joins.
            group.replicas.extend(new.filter(|_| group.group != 0));
            Ok(())
        };
        self.with_group_of(replica, change).expect("it is there");
    }

    // --- collections ---

    fn create(&mut self, name: String, spec: CollectionSpec, placement: &[Vec<NodeName>]) -> Result<()> {
        if self.collections.contains_key(&name) || self.aliases.contains_key(&name) {
            return Err(rejection(EXISTS, format!("collection {name} exists already")));
        }
        let fits = |nodes: &Vec<NodeName>| {
            let distinct: BTreeSet<_> = nodes.iter().collect();
            !nodes.is_empty()
                && distinct.len() == nodes.len()
                && nodes.iter().all(|n| self.nodes.contains_key(n))
        };
        if placement.len() != spec.shard_number as usize || !placement.iter().all(fits) {
            return Err(rejection(STALE, "the placement names nodes that are not there".to_owned()));
        }
        let id = self.next_id();
        let shards = self.next_groups(placement);
        let schema = spec.schema(1, &BTreeMap::new());
        let record = CollectionRecord {
            id,
            name: name.clone(),
            spec,
            schema,
            epoch: Epoch(1),
            shards,
            region: RegionRecord::default(),
            revision: 0,
        };
        self.collections.insert(name, Arc::new(record));
        Ok(())
    }

    fn next_id(&mut self) -> CollectionId {
        let id = CollectionId(self.counters.collection);
        self.counters.collection += 1;
        id
    }

    /// New groups of a collection, by shard.
    fn next_groups(&mut self, placement: &[Vec<NodeName>]) -> Vec<GroupRecord> {
        let shards = placement.iter().map(|nodes| {
            let group = self.counters.group;
            self.counters.group += 1;
            let replicas = nodes.iter().map(|node| self.next_replica(node, Phase::Planned)).collect();
            GroupRecord { group, founders: BTreeSet::new(), replicas }
        });
        shards.collect()
    }

    fn drop_collection(&mut self, name: &str) -> Result<()> {
        let record = self.collections.remove(name).ok_or_else(|| missing("collection", &name))?;
        self.aliases.retain(|_, of| of != name);
        self.set_aside(record);
        Ok(())
    }

    /// A record whose groups are to be retired.
    fn set_aside(&mut self, record: Arc<CollectionRecord>) {
        let number = if self.dropping.contains_key(&record.id) { self.next_id() } else { record.id };
        self.dropping.insert(number, record);
    }

    // --- regions ---

    fn follow(&mut self, follow: Follow) -> Result<()> {
        let Follow { name, id, spec, schema, homes, home, placement } = follow;
        if self.collections.contains_key(&name) || self.aliases.contains_key(&name) {
            return Err(rejection(EXISTS, format!("collection {name} exists already")));
        }
        if let Some(other) = self.collections.values().find(|c| c.id == id) {
            let why = format!("collection {} has the id {id} here that {name} has at its home", other.name);
            return Err(rejection(EXISTS, why));
        }
        let shards = self.next_groups(&placement);
        let region = RegionRecord { homes, part: Part::Follower { home }, ..RegionRecord::default() };
        let epoch = Epoch(1);
        let record =
            CollectionRecord { id, name: name.clone(), spec, schema, epoch, shards, region, revision: 0 };
        self.collections.insert(name, Arc::new(record));
        Ok(())
    }

    fn turn(&mut self, id: CollectionId, change: RegionChange) -> Result<()> {
        let record = self.collections.values().find(|c| c.id == id).cloned();
        let record = record.ok_or_else(|| missing("collection of id", &id))?;
        let mut changed = CollectionRecord::clone(&record);
        if let Some(old) = changed.turn(change, |placement| self.next_groups(placement))? {
            let aside = CollectionRecord { shards: old, ..CollectionRecord::clone(&record) };
            self.set_aside(Arc::new(aside));
        }
        self.collections.insert(record.name.clone(), Arc::new(changed));
        Ok(())
    }

    /// Changes one collection; `how` tells whether the schema is another one now.
    fn change(&mut self, name: &str, how: impl FnOnce(&mut CollectionRecord) -> Result<bool>) -> Result<()> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        let record = self.collections.get_mut(name).ok_or_else(|| missing("collection", &name))?;
        if !record.region.is_home() {
            return Err(rejection(STALE, format!("collection {name} is changed where it has its home")));
        }
        let mut changed = CollectionRecord::clone(record);
        if how(&mut changed)? {
            changed.schema.version += 1;
        }
        *record = Arc::new(changed);
        Ok(())
    }

    /// Words and cases as Qdrant has them: deleting an alias that is not there changes nothing.
    fn alias(&mut self, actions: Vec<AliasAction>) -> Result<()> {
        let taken = |name: &String| match self.collections.contains_key(name) {
            true => Err(rejection(EXISTS, format!("Collection `{name}` already exists!"))),
            false => Ok(()),
        };
        let mut aliases = self.aliases.clone();
        for action in actions {
            match action {
                AliasAction::Create { alias, collection } => {
                    if !self.collections.contains_key(&collection) {
                        return Err(rejection(MISSING, format!("Collection `{collection}` doesn't exist!")));
                    }
                    taken(&alias)?;
                    aliases.insert(alias, collection);
                }
                AliasAction::Delete { alias } => {
                    aliases.remove(&alias);
                }
                AliasAction::Rename { from, to } => {
                    taken(&to)?;
                    let of = aliases.remove(&from);
                    let of =
                        of.ok_or_else(|| rejection(MISSING, format!("Alias {from} does not exists!")))?;
                    aliases.insert(to, of);
                }
            }
        }
        self.aliases = aliases;
        Ok(())
    }
}

impl GroupRecord {
    /// Those that are there become the first voters.
    fn found(&mut self) {
        for replica in self.replicas.iter_mut().filter(|r| r.phase == Phase::Opened) {
            replica.phase = Phase::Voter;
            self.founders.insert(replica.replica);
        }
    }

    /// Voters, those that are on their way out included.
    fn founded_voters(&self) -> impl Iterator<Item = &ReplicaRecord> {
        self.replicas.iter().filter(|r| matches!(r.phase, Phase::Voter | Phase::Leaving))
    }
}

/// The first collection of a cluster: far from those of others, since an id is the same in all regions.
fn first_collection(founder: &str) -> u64 {
    let place = xxhash_rust::xxh3::xxh3_64(founder.as_bytes()) >> 40;
    place << 16 | 1
}

/// Puts `new` in the place of `old`; whether they differ.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differ = *old != new;
    *old = new;
    differ
}

impl CollectionSpec {
    /// The schema that follows from the spec, with these indexed fields.
    fn schema(&self, version: u64, fields: &BTreeMap<FieldPath, FieldType>) -> Schema {
        Schema { version, vectors: self.vectors.clone(), sparse: self.sparse.clone(), fields: fields.clone() }
    }

    fn change(&mut self, change: CollectionChange) {
        if let Some(hnsw) = change.hnsw {
            // Vectors that follow the collection's default follow its change too.
            for params in self.vectors.values_mut().filter(|p| p.hnsw == self.hnsw) {
                params.hnsw = hnsw;
            }
            self.hnsw = hnsw;
        }
        for (name, hnsw) in change.hnsw_by_vector {
            if let Some(params) = self.vectors.get_mut(&name) {
                *params = VectorParams { hnsw, ..*params };
            }
        }
        for (name, quantization) in change.quantization_by_vector {
            if let Some(params) = self.vectors.get_mut(&name) {
                params.quantization = quantization;
            }
        }
        for (name, residence) in change.residence_by_vector {
            if let Some(params) = self.vectors.get_mut(&name) {
                params.residence = residence;
            }
        }
        self.passthrough.extend(change.passthrough);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HnswParams;

    fn node(name: &str, incarnation: &str) -> NodeRecord {
        NodeRecord {
            name: name.to_owned(),
            incarnation: incarnation.to_owned(),
            region: "r".to_owned(),
            zone: name.to_owned(),
            http: String::new(),
            peer: String::new(),
            state: NodeState::Active,
        }
    }

    fn state(nodes: &[&str]) -> CatalogState {
        let mut state = CatalogState::default();
        for name in nodes {
            state.apply(CatalogCommand::Join { node: node(name, "1") }).expect("fits");
        }
        state
    }

    fn create(state: &mut CatalogState, name: &str, placement: &[&[&str]]) -> Result<()> {
        let spec = CollectionSpec {
            shard_number: placement.len() as u32,
            replication_factor: 1,
            ..CollectionSpec::default()
        };
        let placement =
            placement.iter().map(|nodes| nodes.iter().map(|n| (*n).to_owned()).collect()).collect();
        state.apply(CatalogCommand::Create { name: name.into(), spec, placement })
    }

    fn phases(group: &GroupRecord) -> Vec<(u64, &str, Phase)> {
        group.replicas.iter().map(|r| (r.replica.0, r.node.as_str(), r.phase)).collect()
    }

    fn shard(state: &CatalogState, name: &str) -> GroupRecord {
        state.collections[name].shards[0].clone()
    }

    #[test]
    fn ids_are_never_reused() {
        let mut state = state(&["a"]);
        create(&mut state, "c", &[&["a"], &["a"]]).expect("fits");
        let first = state.collections["c"].clone();
        assert_eq!(create(&mut state, "c", &[&["a"]]).expect_err("taken").code, EXISTS);
        state.apply(CatalogCommand::Drop { name: "c".into() }).expect("fits");
        assert_eq!(state.apply(CatalogCommand::Drop { name: "c".into() }).expect_err("gone").code, MISSING);
        create(&mut state, "c", &[&["a"]]).expect("fits");
        let second = &state.collections["c"];
        assert!(second.id > first.id);
        assert!(first.shards.iter().all(|s| s.group < second.shards[0].group));
        assert!(first.shards.iter().all(|s| s.replicas[0].replica < second.shards[0].replicas[0].replica));
    }

    #[test]
    fn the_schema_version_rises_only_when_the_schema_changes() {
        let mut state = state(&["a"]);
        create(&mut state, "a", &[&["a"]]).expect("fits");
        let path: FieldPath = "pos".parse().expect("a path");
        let field = |of| CatalogCommand::CreateField { name: "a".into(), path: path.clone(), of };
        state.apply(field(FieldType::Keyword)).expect("fits");
        state.apply(field(FieldType::Keyword)).expect("again is fine");
        assert_eq!(state.collections["a"].schema.version, 2);
        assert_eq!(state.apply(field(FieldType::Integer)).expect_err("another type").code, OTHER_TYPE);
        state.apply(CatalogCommand::DropField { name: "a".into(), path: path.clone() }).expect("fits");
        state.apply(CatalogCommand::DropField { name: "a".into(), path }).expect("again is fine");
        assert_eq!(state.collections["a"].schema.version, 3);
    }

    #[test]
    fn a_change_made_from_what_is_no_more_is_refused() {
        let mut state = state(&["a"]);
        create(&mut state, "c", &[&["a"]]).expect("fits");
        let first = state.collections["c"].clone();
        let change = |ef_construct: u32| {
            let hnsw = HnswParams { ef_construct, ..HnswParams::default() };
            CollectionChange { hnsw: Some(hnsw), ..CollectionChange::default() }
        };
        let update = |ef_construct, from: &CollectionRecord| CatalogCommand::Update {
            name: "c".into(),
            change: change(ef_construct),
            from: Some((from.id, from.revision)),
        };
        state.apply(update(100, &first)).expect("fits");
        let changed = state.clone();
        assert_eq!(state.apply(update(200, &first)).expect_err("of before").code, STALE);
        assert_eq!(state, changed);
        let now = state.collections["c"].clone();
        state.apply(update(200, &now)).expect("fits");
        // Another collection of the name has the revisions of the first.
        state.apply(CatalogCommand::Drop { name: "c".into() }).expect("fits");
        create(&mut state, "c", &[&["a"]]).expect("fits");
        assert_eq!(state.apply(update(300, &first)).expect_err("of another").code, STALE);
    }

    #[test]
    fn a_group_is_founded_once_by_those_that_are_there() {
        let mut state = state(&["a", "b", "c"]);
        create(&mut state, "x", &[&["a", "b", "c"]]).expect("fits");
        let ids: Vec<ReplicaId> = shard(&state, "x").replicas.iter().map(|r| r.replica).collect();
        state.apply(CatalogCommand::Opened { replica: ids[0] }).expect("fits");
        assert!(!shard(&state, "x").is_founded());
        let group = shard(&state, "x").group;
        state.apply(CatalogCommand::Opened { replica: ids[1] }).expect("fits");
        state.apply(CatalogCommand::Found { group }).expect("fits");
        assert_eq!(shard(&state, "x").founders, BTreeSet::from([ids[0], ids[1]]));
        state.apply(CatalogCommand::Opened { replica: ids[2] }).expect("fits");
        state.apply(CatalogCommand::Found { group }).expect("late");
        assert_eq!(shard(&state, "x").replica(ids[2]).expect("there").phase, Phase::Joining);
        state.apply(CatalogCommand::Joined { replica: ids[2], voter: true }).expect("fits");
        assert_eq!(shard(&state, "x").in_phase(Phase::Voter).count(), 3);
    }

    #[test]
    fn a_wiped_node_comes_back_as_new_replicas() {
        let mut state = state(&["a", "b", "c"]);
        create(&mut state, "x", &[&["a", "b", "c"]]).expect("fits");
        for replica in shard(&state, "x").replicas {
            state.apply(CatalogCommand::Opened { replica: replica.replica }).expect("fits");
        }
        let before = shard(&state, "x").replicas[1].replica;
        state.apply(CatalogCommand::Join { node: node("b", "2") }).expect("fits");
        let after = shard(&state, "x");
        assert_eq!(after.replica(before).expect("there").phase, Phase::Leaving);
        let new = after.replicas.last().expect("there");
        assert_eq!((new.node.as_str(), new.incarnation.as_str(), new.phase), ("b", "2", Phase::Planned));
        assert_eq!(phases(&state.catalog).len(), 4, "{:?}", state.catalog);
        // It may lose its data again before the old replica is out: still one new replica, not two.
        state.apply(CatalogCommand::Join { node: node("b", "3") }).expect("fits");
        let after = shard(&state, "x");
        let staying: Vec<_> = after.staying().map(|r| (r.node.as_str(), r.incarnation.as_str())).collect();
        assert_eq!(staying, [("a", "1"), ("c", "1"), ("b", "3")], "{after:?}");
        // The other two voters cannot both be given up.
        let others: Vec<ReplicaId> = after.in_phase(Phase::Voter).map(|r| r.replica).collect();
        let lost = state.apply(CatalogCommand::Lost { replica: others[0] });
        assert_eq!(lost.expect_err("needed").code, NEEDED);
        state.apply(CatalogCommand::Left { replica: before }).expect("fits");
        assert!(shard(&state, "x").replica(before).is_none());
    }

    #[test]
    fn a_move_names_the_new_and_the_old() {
        let mut state = state(&["a", "b"]);
        create(&mut state, "x", &[&["a"]]).expect("fits");
        let (group, old) = (shard(&state, "x").group, shard(&state, "x").replicas[0].replica);
        state.apply(CatalogCommand::Opened { replica: old }).expect("fits");
        let plan = |to: &str| CatalogCommand::Plan { group, to: Some(to.into()), instead_of: Some(old) };
        assert_eq!(state.apply(plan("a")).expect_err("has one").code, STALE);
        assert_eq!(state.apply(plan("z")).expect_err("unknown").code, STALE);
        let epoch = state.collections["x"].epoch;
        state.apply(plan("b")).expect("fits");
        assert_eq!(
            shard(&state, "x").replicas.iter().map(|r| r.phase).collect::<Vec<_>>(),
            [Phase::Leaving, Phase::Planned]
        );
        assert!(state.collections["x"].epoch > epoch);
    }

    #[test]
    fn aliases_change_together_or_not_at_all() {
        let mut state = state(&["a"]);
        for name in ["x", "y"] {
            create(&mut state, name, &[&["a"]]).expect("fits");
        }
        let create =
            |alias: &str, of: &str| AliasAction::Create { alias: alias.into(), collection: of.into() };
        state.apply(CatalogCommand::Alias { actions: vec![create("now", "x")] }).expect("fits");
        assert_eq!(state.collection("now").expect("there").name, "x");
        let switch = vec![AliasAction::Delete { alias: "now".into() }, create("now", "y")];
        state.apply(CatalogCommand::Alias { actions: switch }).expect("fits");
        assert_eq!(state.collection("now").expect("there").name, "y");
        let half = vec![AliasAction::Delete { alias: "now".into() }, create("now", "z")];
        assert_eq!(state.apply(CatalogCommand::Alias { actions: half }).expect_err("no z").code, MISSING);
        assert_eq!(state.collection("now").expect("still there").name, "y");
        state.apply(CatalogCommand::Drop { name: "y".into() }).expect("fits");
        assert!(state.collection("now").is_none());
    }
}
