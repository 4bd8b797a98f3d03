//! Where a group's entries lie: `LogIndex -> (segment, offset)`.
//!
//! ```text
//!            oldest          purged   live                         last
//!   history  |---------------|--------------------------------------|
//!   runs     [  segment 4    ][ segment 5   ][ segment 5, term 8    ]
//! ```
//!
//! Invariants: runs are disjoint and sorted by index; a run lies in one segment and has one term and leader, so an
//! entry's id is known without reading it. Events are applied in log order, after their fsync.
//! Deliberately absent: payloads (see `group`), what is live (see `HardState`).

use std::{collections::VecDeque, ops::RangeInclusive};

use crate::{
    entry::{LogId, LogIndex, Term},
    segment::{SegmentNo, Spot},
};

/// Neighbouring entries in one segment, of one term and leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) segment: SegmentNo,
    pub(crate) first: LogIndex,
    pub(crate) term: Term,
    pub(crate) leader: u64,
    pub(crate) spots: VecDeque<Spot>,
}

impl Run {
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.first.0 + self.spots.len() as u64 - 1)
    }

    fn after(&self) -> u64 {
        self.first.0 + self.spots.len() as u64
    }

    fn id(&self, index: LogIndex) -> LogId {
        LogId { term: self.term, leader: self.leader, index }
    }

    fn spot(&self, index: LogIndex) -> Spot {
        self.spots[(index.0 - self.first.0) as usize]
    }

    /// Bytes of the entries within `from..=upto`.
    fn bytes_within(&self, from: LogIndex, upto: LogIndex) -> u64 {
        let from = from.max(self.first).0 - self.first.0;
        let count = (upto.next().0.min(self.after()) - self.first.0).saturating_sub(from);
        self.spots.iter().skip(from as usize).take(count as usize).map(|spot| u64::from(spot.bytes)).sum()
    }
}

/// An entry on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) segment: SegmentNo,
    pub(crate) spot: Spot,
    pub(crate) id: LogId,
}

/// The places of one group's entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) runs: VecDeque<Run>,
}

impl Index {
    pub(crate) fn first(&self) -> Option<LogIndex> {
        self.runs.front().map(|run| run.first)
    }

    pub(crate) fn last(&self) -> Option<LogIndex> {
        self.runs.back().map(Run::last)
    }

    /// The position in `runs` of the first one that ends at or after `index`.
    fn reach(&self, index: LogIndex) -> usize {
        self.runs.partition_point(|run| run.last() < index)
    }

    fn run_of(&self, index: LogIndex) -> Option<&Run> {
        self.runs.get(self.reach(index)).filter(|run| run.first <= index)
    }

    pub(crate) fn id_at(&self, index: LogIndex) -> Option<LogId> {
        self.run_of(index).map(|run| run.id(index))
    }

    /// Every entry, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = Located> + '_ {
        self.runs.iter().flat_map(|run| {
            let ids = (run.first.0..).map(|index| run.id(LogIndex(index)));
            run.spots.iter().zip(ids).map(|(spot, id)| Located { segment: run.segment, spot: *spot, id })
        })
    }

    #[cfg(test)]
    fn locate(&self, index: LogIndex) -> Option<Located> {
        let run = self.run_of(index)?;
        Some(Located { segment: run.segment, spot: run.spot(index), id: run.id(index) })
    }

    /// The entries from `from` on without a hole, up to `upto`.
    pub(crate) fn walk(&self, from: LogIndex, upto: LogIndex) -> impl Iterator<Item = Located> + '_ {
        let mut at = self.reach(from);
        let mut index = from;
        std::iter::from_fn(move || {
            if index > upto {
                return None;
            }
            if self.runs.get(at).is_some_and(|run| run.last() < index) {
                at += 1;
            }
            let run = self.runs.get(at).filter(|run| run.first <= index)?;
            let found = Located { segment: run.segment, spot: run.spot(index), id: run.id(index) };
            index = index.next();
            Some(found)
        })
    }

    /// Notes where an entry lies, in place of an earlier place.
    pub(crate) fn put(&mut self, segment: SegmentNo, id: LogId, spot: Spot) {
        if let Some(run) = self.runs.back_mut()
            && run.after() == id.index.0
            && (run.segment, run.term, run.leader) == (segment, id.term, id.leader)
        {
            run.spots.push_back(spot);
            return;
        }
        let spots = VecDeque::from([spot]);
        self.put_run(Run { segment, first: id.index, term: id.term, leader: id.leader, spots });
    }

    /// Lays a run over whatever lies there.
    fn put_run(&mut self, run: Run) {
        self.clear_range(run.first..=run.last());
        let at = self.reach(run.first);
        if let Some(before) = at.checked_sub(1).and_then(|before| self.runs.get_mut(before))
            && before.after() == run.first.0
            && (before.segment, before.term, before.leader) == (run.segment, run.term, run.leader)
        {
            before.spots.extend(run.spots);
        } else {
            self.runs.insert(at, run);
        }
    }

    fn clear_range(&mut self, range: RangeInclusive<LogIndex>) {
        let (from, upto) = (*range.start(), *range.end());
        let mut at = self.reach(from);
        while let Some(run) = self.runs.get_mut(at).filter(|run| run.first <= upto) {
            let keep_before = from.0.saturating_sub(run.first.0) as usize;
            let keep_after = run.last().0.saturating_sub(upto.0) as usize;
            let mut after = run.clone();
            run.spots.truncate(keep_before);
            after.spots.drain(..after.spots.len() - keep_after);
            after.first = upto.next();
            if run.spots.is_empty() {
                self.runs.remove(at);
            } else {
                at += 1;
            }
            if !after.spots.is_empty() {
                self.runs.insert(at, after);
                break;
            }
        }
    }

    /// Forgets everything above `last`.
    pub(crate) fn cut_above(&mut self, last: Option<LogIndex>) {
        while let Some(run) = self.runs.back_mut() {
            match last {
                Some(last) if run.last() <= last => return,
                Some(last) if run.first <= last => {
                    run.spots.truncate((last.0 - run.first.0) as usize + 1);
                    return;
                }
                _ => drop(self.runs.pop_back()),
            }
        }
    }

    /// Lays what a later segment holds over this.
    pub(crate) fn overlay(&mut self, part: &Index) {
        for run in &part.runs {
            self.put_run(run.clone());
        }
    }

    /// Forgets what lies in a segment that goes, and whatever is then cut off from the end of the log.
    pub(crate) fn forget_segment(&mut self, segment: SegmentNo) {
        self.runs.retain(|run| run.segment != segment);
        self.keep_suffix();
    }

    /// Keeps only the entries that reach the last one without a hole.
    pub(crate) fn keep_suffix(&mut self) {
        let holes = (1..self.runs.len()).rev();
        let hole = holes.into_iter().find(|&at| self.runs[at - 1].after() != self.runs[at].first.0);
        self.runs.drain(..hole.unwrap_or(0));
    }

    /// The highest index within `from..` that lies in `segment`, and the bytes of all that do.
    pub(crate) fn within(&self, segment: SegmentNo, from: LogIndex) -> Option<(LogIndex, u64)> {
        let runs = self.runs.iter().filter(|run| run.segment == segment && run.last() >= from);
        runs.fold(None, |sum, run| {
            let bytes = sum.map_or(0, |(_, bytes)| bytes) + run.bytes_within(from, run.last());
            Some((run.last(), bytes))
        })
    }

    /// The ids within `from..` that lie in `segment`, each with its place.
    pub(crate) fn located_in(&self, segment: SegmentNo, from: LogIndex) -> Vec<Located> {
        let runs = self.runs.iter().filter(|run| run.segment == segment && run.last() >= from);
        runs.flat_map(|run| self.walk(run.first.max(from), run.last())).collect()
    }

    /// Bytes of all entries from `from` on.
    pub(crate) fn bytes_from(&self, from: LogIndex) -> u64 {
        let runs = self.runs.iter().filter(|run| run.last() >= from);
        runs.map(|run| run.bytes_within(from, run.last())).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Put { segment: u64, first: u64, count: u64, term: u64 },
        Cut(Option<u64>),
        Forget(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u64, 0..30u64, 1..9u64, 0..2u64)
                .prop_map(|(segment, first, count, term)| Step::Put { segment, first, count, term }),
            1 => proptest::option::of(0..30u64).prop_map(Step::Cut),
            1 => (0..4u64).prop_map(Step::Forget),
        ]
    }

    proptest! {
        /// The index against a plain map of every entry.
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec(step(), 1..40)) {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            let mut offset = 0;
            for step in steps {
                match step {
                    Step::Put { segment, first, count, term } => for at in first..first + count {
                        let id = LogId { term: Term(term), leader: 1, index: LogIndex(at) };
                        offset += 1;
                        let spot = Spot { offset, bytes: 7 };
                        index.put(SegmentNo(segment), id, spot);
                        model.insert(LogIndex(at), Located { segment: SegmentNo(segment), spot, id });
                    },
                    Step::Cut(last) => {
                        index.cut_above(last.map(LogIndex));
                        model.retain(|at, _| last.is_some_and(|last| at.0 <= last));
                    }
                    Step::Forget(segment) => {
                        index.forget_segment(SegmentNo(segment));
                        model.retain(|_, found: &mut Located| found.segment != SegmentNo(segment));
                        let mut keep = model.keys().next_back().copied();
                        while let Some(at) = keep.filter(|at| at.0 > 0 && model.contains_key(&LogIndex(at.0 - 1))) {
                            keep = Some(LogIndex(at.0 - 1));
                        }
                        model.retain(|at, _| Some(*at) >= keep);
                    }
                }
                for at in 0..45 {
                    prop_assert_eq!(index.locate(LogIndex(at)), model.get(&LogIndex(at)).copied());
                }
                for segment in 0..4 {
                    let expected: Vec<Located> =
                        model.range(LogIndex(5)..).map(|(_, found)| *found)
                            .filter(|found| found.segment == SegmentNo(segment)).collect();
                    prop_assert_eq!(
                        index.within(SegmentNo(segment), LogIndex(5)),
                        expected.last().map(|last| (last.id.index, 7 * expected.len() as u64))
                    );
                    prop_assert_eq!(index.located_in(SegmentNo(segment), LogIndex(5)), expected);
                }
            }
        }
    }
}
