//! The consistency harness: it breaks a cluster of real nodes in many ways, writes down what clients were told, and
//! checks whether that can be.
//!
//! ```text
//! run      cluster (processes, network, disks) <- nemesis
//!          workload -> HTTP -> cluster
//!               \-> history.jsonl -> checker -> results.json -> report (index.html)
//! ```
//!
//! ```sh
//! cargo build --release
//! cargo jepsen run --workload register,search --nemesis kill,partition --time-limit 60 --seed 1 --out DIR
//! cargo jepsen check DIR       # reads history.jsonl again
//! cargo jepsen report DIR      # writes index.html again
//! cargo jepsen suite ci
//! ```
//!
//! Invariants: it speaks HTTP alone and links nothing of the database; a run passes only if it is *valid*: no checker
//! found anything, every one came to its end, and there were enough operations and faults to say something.
//! Not here: the simulation, which lives with the database.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod disk;
pub mod history;
pub mod nemesis;
pub mod net;
pub mod point;
pub mod report;
pub mod run;
pub mod selftest;
mod shell;
pub mod suite;
pub mod token;
pub mod workload;
