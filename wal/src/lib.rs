//! The log wing: many groups, one writer, one fsync.
//!
//! Every Raft group of a node appends to the same log. What waits is written as one frame, made durable by one fsync,
//! and told to all who wait. The log is a row of segments; a full one is sealed and stays where it is: it is the
//! archive from which history is read, until retention removes it whole.
//!
//! ```text
//!   groups        append, vote, truncate, purge            read, history
//!                    | (one queue, a budget of bytes)         ^        ^
//!   writer           v                                        |memory  |pread
//!   segments   | 4 sealed | 5 sealed | 6 sealed | 7 written ..........| 8 opened ahead
//!                ^ anchor: below it everything is gone
//! ```
//!
//! Invariants:
//! - What was acknowledged is on the disk, and is found again after any crash; what is found was written, by this log,
//!   at this place: frames are numbered, chained and seeded with the log's own number and their offset.
//! - Nothing is ever appended to a segment after a restart, nothing is overwritten, and nothing is recycled.
//! - The first failed write is the last: the log is poisoned, everybody who waits is told, the node stops.
//! - A torn end is told from damage; damage is reported as (segment, offset, group, index), never skipped.
//!
//! Deliberately absent: points, commands and positions (the payload is opaque), Raft's rules beyond the order of a
//! group's log, compression, encryption.
//!
//! Byte formats: `docs/FORMATS.md`.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod anchor;
mod entry;
mod error;
mod failure;
mod fold;
mod frame;
mod group;
mod host;
mod index;
mod log;
mod mutant;
mod opener;
mod options;
mod queue;
mod reader;
mod record;
mod recovery;
mod retention;
mod scan;
mod scrub;
mod seal;
mod segment;
mod status;
mod verify;
mod wire;
mod writer;

pub use crate::{
    entry::{Entry, GroupId, HardState, LogId, LogIndex, Term, Vote},
    error::{Effect, Error, ErrorKind},
    group::{GroupLog, GroupState},
    host::Tasks,
    log::Log,
    options::Options,
    record::Event,
    recovery::Recovery,
    scan::Damage,
    segment::memory::{Fault, MemoryDisk},
    status::{Histogram, LogStatus},
    verify::{DumpedRecord, VerifyReport, dump, verify, verify_in_memory},
};
