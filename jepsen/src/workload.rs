//! What clients do while things break.
//!
//! ```text
//! Workload (what to do next) -> Session (one process: asks a node, records) -> HTTP
//! ```
//!
//! Invariants: an operation is sent once and recorded as `observe` tells; a value is written once for its point; a
//! session whose operation is *info* goes on as a new process.
//! Not here: faults; what must hold.

mod batch;
mod collections;
mod dedup;
mod feed;
mod keys;
mod last;
mod membership;
mod region;
mod register;
mod search;
mod session;
mod set;
mod tail;
mod view;

pub use last::{Look, finish, replicas_of};
pub use region::REGION;
pub use session::{Session, Shared};

use crate::cluster::Cluster;
use serde_json::{Value, json};
use std::time::Duration;

/// What one kind of clients does, over a collection of its own.
pub trait Workload: Send + Sync {
    /// Its name, which is its collection's.
    fn name(&self) -> &'static str;

    /// How many regions its collection is in. With more than one it runs alone: clients of another workload would take
    /// their collection for one in every region.
    fn regions(&self) -> usize {
        1
    }

    /// How many shards its collection has.
    fn shards(&self) -> u32 {
        2
    }

    /// What more it needs before it starts; `ask` sends a request until it is answered well.
    fn prepare(&self, _ask: &dyn Fn(&str, &str, Value)) {}

    /// One operation.
    fn step(&self, session: &mut Session);

    /// What runs beside its sessions until told to stop, if anything does.
    fn beside(&self, _session: &mut Session) -> bool {
        false
    }

    /// Checkers that must have had something to look at.
    fn proves(&self) -> &'static [&'static str];

    /// Looks at all that the nodes hold, when nothing is written any more.
    fn look(&self, look: Look<'_>) {
        last::look(self.name(), look);
    }

    /// The operation by which each node shows all it holds then.
    fn shows(&self) -> &'static str {
        "final"
    }
}

/// Names of all workloads.
pub const NAMES: &[&str] =
    &["register", "read-view", "set", "search", "batch", "tail", "dedup", "membership", REGION];

/// Names of those in one region, which may run side by side.
pub fn of_one_region() -> impl Iterator<Item = &'static str> {
    NAMES.iter().copied().filter(|name| *name != REGION)
}

/// A workload by its name.
pub fn by_name(name: &str) -> Option<Box<dyn Workload>> {
    Some(match name {
        "register" => Box::new(register::Register::default()),
        "read-view" => Box::new(view::ReadView::default()),
        "set" => Box::new(set::Set::default()),
        "search" => Box::new(search::Search::default()),
        "batch" => Box::new(batch::Batch::default()),
        "tail" => Box::new(tail::Tail::default()),
        "dedup" => Box::new(dedup::Dedup::default()),
        "membership" => Box::new(membership::Membership::default()),
        REGION => Box::new(region::Region::default()),
        _ => return None,
    })
}

/// Makes a workload's collection, in a cluster that nothing is wrong with yet; the other regions follow the first.
pub fn prepare(workload: &dyn Workload, cluster: &mut Cluster) -> Result<(), String> {
    let within = Duration::from_secs(20);
    let collection = json!({
        "vectors": {"size": crate::point::DIM, "distance": "Euclid"},
        "shard_number": workload.shards(),
        "replication_factor": replicas_of(cluster),
    });
    let path = format!("/collections/{}", workload.name());
    let made = cluster.ask("PUT", &path, Some(&collection), within);
    made.ok_or_else(|| format!("collection {} was not made", workload.name()))?;
    workload.prepare(&|method, path, body| drop(cluster.ask(method, path, Some(&body), within)));
    cluster.wait_whole(within)?;
    for region in 1..cluster.regions.len() {
        let follow = json!({"collection": workload.name(), "home": cluster.regions[0].url});
        let asked = ("POST", "/annal/v1/regions/follow", Some(&follow));
        let told = cluster.ask_in(region, asked, within);
        told.ok_or_else(|| format!("{} was not followed", workload.name()))?;
    }
    match cluster.regions.len() {
        1 => Ok(()),
        _ => cluster.wait_settled(workload.name(), within).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_workload_that_proves_something_a_checker_knows() {
        for name in NAMES {
            let workload = by_name(name).unwrap();
            assert_eq!(workload.name(), *name);
            assert!(!workload.proves().is_empty());
            assert_eq!(workload.regions() == 1, of_one_region().any(|one| one == *name));
            for checker in workload.proves() {
                assert!(crate::checker::CHECKS.iter().any(|(known, _)| known == checker), "{checker}");
            }
        }
    }
}
