//! The log in the order it was written, folded into what a segment's seal says.
//!
//! Invariants: the writer and recovery fold the same events and so get the same seal; folding is pure.
//! Not here: the groups as their owners see them, which run ahead of the disk (see `group`).

use std::collections::BTreeMap;

use crate::{
    entry::{GroupId, HardState, LogId},
    frame::Link,
    index::Index,
    record::Event,
    segment::{SegmentNo, Spot},
};

/// What one segment says of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chapter {
    /// The group was created here: what older segments hold under its id is not its own.
    pub(crate) born: bool,
    /// A create or state record lies here: older segments are not needed for the hard state.
    pub(crate) stated: bool,
    /// The group's creation is known, and with it all of the hard state.
    pub(crate) known: bool,
    /// At the end of the segment.
    pub(crate) hard: HardState,
    /// The entries that lie in this segment and were not truncated by its end.
    pub(crate) index: Index,
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
            Event::Truncate(last) => chapter.hard.last = *last,
            Event::Purge(id) => {
                chapter.hard.purged = Some(*id);
                chapter.hard.last = chapter.hard.last.max_by_index(*id);
            }
            Event::Committed(committed) => chapter.hard.committed = *committed,
            Event::Create => {
                *chapter = Chapter { born: true, stated: true, known: true, ..Chapter::default() };
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

/// The later of what is there and an id, by index.
trait MaxByIndex {
    fn max_by_index(self, other: LogId) -> Self;
}

impl MaxByIndex for Option<LogId> {
    fn max_by_index(self, other: LogId) -> Option<LogId> {
        Some(self.filter(|id| id.index > other.index).unwrap_or(other))
    }
}

impl HardState {
    /// Notes a purge; the last entry is never below it.
    pub(crate) fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        self.last = self.last.max_by_index(upto);
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

    /// Forgets everything if it does not reach the last entry: a snapshot took the group past it.
    pub(crate) fn drop_before_hole(&mut self, hard: &HardState) {
        let last = hard.last.map(|id| id.index);
        self.cut_above(last);
        if self.last() != last {
            self.runs.clear();
        }
    }
}
