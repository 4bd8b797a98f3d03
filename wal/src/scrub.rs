//! The slow second look at segments that were taken from their seals.
//!
//! Invariants: it only reads; one segment at a time, when nothing else is asked of its thread.

use std::collections::VecDeque;

use crate::{
    frame::SegmentKey,
    log::Shared,
    scan::{Damage, scan},
    seal,
    segment::{SegmentNo, SideFile},
};

/// The segments whose bytes have not been looked at since the log was opened.
pub(crate) struct Scrub {
    left: VecDeque<SegmentNo>,
}

impl Scrub {
    pub(crate) fn new(unread: Vec<SegmentNo>) -> Scrub {
        Scrub { left: unread.into() }
    }

    /// Looks at one more segment.
    pub(crate) fn step(&mut self, shared: &Shared) {
        let Some(number) = self.left.pop_front() else { return };
        let key = SegmentKey { store: shared.store, segment: number };
        // A segment that retention has removed meanwhile needs no look.
        let Ok(bytes) = shared.disk.open(number).and_then(|file| file.read_all()) else { return };
        let seal = shared.disk.get(SideFile::Seal(number)).ok().flatten();
        let seal = seal.and_then(|bytes| seal::decode(&bytes, key));
        let found: Vec<Damage> = match scan(&bytes, key, |_| Ok(())) {
            Ok(found) => {
                let short = seal.as_ref().and_then(|seal| found.short_of(seal));
                found.damage.into_iter().chain(short).map(|span| span.named_by(seal.as_ref())).collect()
            }
            Err(error) => vec![Damage::at(number, 0, error.to_string())],
        };
        if !found.is_empty() {
            for damage in &found {
                tracing::error!(?damage, "a sealed segment is damaged");
            }
            shared.damage.send_modify(|known| known.extend(found));
        }
    }
}
