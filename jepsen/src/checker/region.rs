//! A collection in several regions: what follows is a prefix of its home and as old as it says, a home that was taken over
//! loses exactly what is named, and nothing else is ever lost.
//!
//! | f | key | input | output | version |
//! |---|---|---|---|---|
//! | `put`, `remove` | point | `{request, v, again}` | `{seen}` | written |
//! | `get` | point | `{consistency, bound_ms?, token?}` | `{v, seen, age_ms}` | seen, if told |
//! | `follow`, `held` | | | `{hits, seen, age_ms}` | |
//! | `change` | point | | `{shard, position, n, of, op, v, fed}` | told |
//! | `changes`, `changes-end`, `changes-refused`, `changes-too-old` | | | `{fed: {shard: {generation, position}}}` | |
//! | `links` | | | `{generation, part}` | |
//! | `takeover`, `handover` | | | `{generation, …}` | |
//! | `settle` | | | `{home, generation, loss?, files?}` | |
//! | `rest` | | | the same, and `{regions: {name: [{shard, position, replicas}]}}` | |
//!
//! `seen` is what the answer's token says: the home (`generation`) and the position of each shard.
//!
//! ```text
//!   generation   1 1 1 1 1 1 | 1 1 1      the old home goes on, cut off: these are lost
//!                            | 2 2 2 2    the manifest of 2 says where it begins (`from`)
//!   position     1 2 3 4 5 6   7 8 9 10
//! ```
//!
//! Invariants, each a room: what is seen at a position is what the home's acknowledged writes come to there (`prefix`);
//! positions agree with real time, declared ages and tokens (`order`); the change feed tells each change once, or refuses a
//! token (`feed`); a loss names what was lost, and the file holds it (`loss`); a home that has heard of the next one
//! acknowledges nothing (`homes`), and regions settle, and hold the same at the end (`homes`).
//! Not here: how operations are read (`told`), which positions count in which home (`lineage`).

mod feed;
mod homes;
mod lineage;
mod loss;
mod order;
mod prefix;
mod told;

use super::Verdict;
use crate::history::Op;
use told::Told;

/// Checks all operations on a collection in several regions.
pub fn check(ops: &[Op]) -> Verdict {
    let mut verdict = Verdict::default();
    let told = Told::of(ops, &mut verdict);
    prefix::check(&told, &mut verdict);
    order::check(&told, &mut verdict);
    feed::check(&told, &mut verdict);
    loss::check(&told, &mut verdict);
    homes::check(&told, &mut verdict);
    verdict
}
