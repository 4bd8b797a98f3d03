//! Annal: a distributed vector database whose truth is a log.
//!
//! The house, bottom up (dependencies point down only; `tests/tidy.rs` checks it):
//!
//! ```text
//!  roof  main.rs  node.rs  cli/    opens every floor in order, closes in reverse
//!   6    api/                      tower stack on hyper; the only floor that knows public HTTP and JSON
//!   5    region/  changefeed/      who follows the log from outside
//!   4    cluster/                  who holds what, and how a request gets there
//!   3    replica/                  log + state under Raft; the only floor that names openraft
//!   2    annal-wal (crate) | shard/    okaywal in one file | usearch in one file
//!   1    model/ machine.rs store.rs net/ batch.rs world.rs mutant.rs identity.rs durable.rs config.rs    words and contracts; fjall in one file
//! ```

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

#[allow(clippy::disallowed_methods, reason = "no simulation has HTTP")]
pub mod api;
pub mod batch;
pub mod changefeed;
pub mod cluster;
pub mod config;
pub mod durable;
pub mod identity;
pub mod machine;
pub mod model;
pub mod mutant;
pub mod net;
pub mod node;
pub mod region;
pub mod replica;
pub mod shard;
pub mod store;
pub mod world;
