//! The log in the order it was written, folded into what a segment's seal says.
//!
//! Invariants: the writer and recovery fold the same events and so get the same seal; folding is pure.
//! Not here: the groups as their owners see them, which run ahead of the disk (see `group`).

use std::collections::BTreeMap;

use crate::{
    entry::{GroupId, HardState, LogId, LogIndex},
    frame::Link,
    index::Index,
    record::Event,
    segment::{SegmentNo, Spot},
};

/// What one segment says of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chapter {
    /// What older segments hold from this index on was truncated, cut off by a snapshot, or another group's.
    pub(crate) older_below: LogIndex,
    /// A create or state record lies here: older segments are not needed for the hard state.
    pub(crate) stated: bool,
    /// The group's creation is known, and with it all of the hard state.
    pub(crate) known: bool,
    /// At the end of the segment.
    pub(crate) hard: HardState,
    /// The entries that lie in this segment and were not truncated by its end.
    pub(crate) index: Index,
}

impl Default for Chapter {
    fn default() -> Chapter {
        let hard = HardState::default();
        let index = Index::default();
        Chapter { older_below: LogIndex(u64::MAX), stated: false, known: false, hard, index }
    }
}

/// What a segment's side file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) segment: SegmentNo,
    /// The frame before the segment's first.
    pub(crate) before: Link,
    /// The segment's last frame.
    pub(crate) last: Link,
    /// Where the entries end.
    pub(crate) end: u64,
    /// When it was sealed, in milliseconds since 1970.
    pub(crate) sealed_unix_ms: u64,
    /// Every group alive at the end.
    pub(crate) groups: BTreeMap<GroupId, Chapter>,
}

/// An entry that does not follow the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutOfOrder {
    pub(crate) last: Option<LogId>,
    pub(crate) got: LogId,
}

/// All groups, as far as the log has been read or written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fold {
    groups: BTreeMap<GroupId, Chapter>,
}

impl Fold {
    /// Folds one record in.
    pub(crate) fn apply(
        &mut self,
        group: GroupId,
        event: &Event,
        segment: SegmentNo,
        spot: Spot,
    ) -> Result<(), OutOfOrder> {
        if let Event::Drop = event {
            self.groups.remove(&group);
            return Ok(());
        }
        let chapter = self.groups.entry(group).or_default();
        match event {
            Event::Entry(id) => {
                let expected = chapter.hard.last.map(|last| last.index.next());
                if chapter.known && expected.is_some_and(|expected| expected != id.index) {
                    return Err(OutOfOrder { last: chapter.hard.last, got: *id });
                }
                chapter.hard.last = Some(*id);
            }
            Event::Again(_) => {}
            Event::Vote(vote) => chapter.hard.vote = Some(*vote),
            Event::Truncate(last) => {
                chapter.hard.last = *last;
                let cut = last.map_or(LogIndex(0), |last| last.index.next());
                chapter.older_below = chapter.older_below.min(cut);
            }
            Event::Purge(id) => {
                if chapter.hard.purge(*id) {
                    chapter.older_below = LogIndex(0);
                    chapter.index.runs.clear();
                }
            }
            Event::Committed(committed) => chapter.hard.committed = *committed,
            Event::Create => {
                *chapter =
                    Chapter { older_below: LogIndex(0), stated: true, known: true, ..Chapter::default() };
            }
            Event::State(hard) => {
                chapter.hard = **hard;
                chapter.stated = true;
                chapter.known = true;
            }
            Event::Drop => unreachable!("handled above"),
        }
        chapter.index.apply(event, segment, spot);
        Ok(())
    }

    /// Ends a segment: gives what it said of each group and starts the next.
    pub(crate) fn seal(&mut self) -> BTreeMap<GroupId, Chapter> {
        let next = self.groups.iter().map(|(group, chapter)| {
            (*group, Chapter { hard: chapter.hard, known: chapter.known, ..Chapter::default() })
        });
        let next = next.collect();
        std::mem::replace(&mut self.groups, next)
    }

    /// Takes the state at the end of a segment from its seal.
    pub(crate) fn resume(&mut self, seal: &Seal) {
        self.groups = seal.groups.clone();
        self.seal();
    }
}

impl HardState {
    /// Notes a purge; true if it lies beyond the last entry, so that no history spans the hole.
    pub(crate) fn purge(&mut self, upto: LogId) -> bool {
        let beyond = self.last.is_none_or(|last| last.index < upto.index);
        self.purged = Some(upto);
        if beyond {
            self.last = Some(upto);
        }
        beyond
    }
}

impl Index {
    /// Applies an event in log order.
    pub(crate) fn apply(&mut self, event: &Event, segment: SegmentNo, spot: Spot) {
        match event {
            Event::Entry(id) | Event::Again(id) => self.put(segment, *id, spot),
            Event::Truncate(last) => self.cut_above(last.map(|id| id.index)),
            Event::Vote(_) | Event::Purge(_) | Event::Committed(_) => {}
            Event::Create | Event::Drop | Event::State(_) => {}
        }
    }
}
