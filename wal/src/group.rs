//! One group's log: what its owner appends to and reads from.
//!
//! ```text
//!             oldest      purged        flushed        last = submitted
//!   ----------|-----------|-------------|--------------|
//!             history     live  (index) |  hot (memory)|
//! ```
//!
//! Invariants: `oldest ≤ purged + 1`, `flushed ≤ submitted`; what was submitted is readable at once, from memory until
//! it is flushed; the owner's view (`hard`, `hot`) changes under the lock under which the record is queued, the disk's
//! view (`index`) is changed by the writer in log order, after the fsync.
//! Not here: which segment is written (see `writer`), what is thrown away (see `retention`).

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use tokio::sync::oneshot;

use crate::{
    entry::{Entry, GroupId, HardState, LogId, LogIndex, Vote},
    error::Error,
    index::{Index, Located},
    log::{Core, Shared},
    mutant,
    queue::{Part, Request},
    reader,
    record::{ENTRY_HEAD, Event},
    segment::{SegmentNo, Spot},
};

/// A group as the writer, the readers and retention share it.
pub(crate) struct GroupCell {
    pub(crate) id: GroupId,
    inner: Mutex<Inner>,
}

/// What is known of a group.
#[derive(Default)]
pub(crate) struct Inner {
    /// As submitted.
    pub(crate) hard: HardState,
    /// The newest entries, up to `hard.last`; every entry not yet flushed is here.
    pub(crate) hot: VecDeque<Entry>,
    /// As flushed.
    pub(crate) index: Index,
    /// The purge as flushed: what lies above it is needed after a crash.
    pub(crate) purged_flushed: Option<LogId>,
    /// The newest segment that holds all of the hard state in one record.
    pub(crate) stated_in: SegmentNo,
    /// A reader of history owes entries from here on.
    pub(crate) history_floor: Option<LogIndex>,
    pub(crate) dropped: bool,
}

impl GroupCell {
    pub(crate) fn new(id: GroupId, inner: Inner) -> Arc<GroupCell> {
        Arc::new(GroupCell { id, inner: Mutex::new(inner) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes, in log order, what a commit made durable.
    pub(crate) fn flushed(&self, parts: &[Part], segment: SegmentNo, mut spot: impl FnMut(&Part) -> Spot) {
        let mut inner = self.lock();
        for part in parts {
            let spot = spot(part);
            inner.index.apply(&part.event, segment, spot);
            match &part.event {
                Event::Create | Event::State(_) => inner.stated_in = segment,
                Event::Purge(id) => {
                    inner.purged_flushed = Some(*id);
                    // A purge past the end leaves a hole that no history spans.
                    if inner.index.last() < Some(id.index) {
                        inner.index.runs.clear();
                    }
                }
                _ => {}
            }
        }
    }

    /// Forgets hot entries up to `upto` that are flushed; returns their bytes.
    pub(crate) fn cool(&self, upto: LogIndex) -> usize {
        let mut inner = self.lock();
        let mut bytes = 0;
        while let Some(entry) = inner.hot.front().filter(|entry| entry.id.index <= upto) {
            if !inner.on_disk(entry) {
                break;
            }
            bytes += hot_bytes(entry);
            inner.hot.pop_front();
        }
        bytes
    }
}

/// Bytes an entry is counted with in the hot tail.
pub(crate) fn hot_bytes(entry: &Entry) -> usize {
    entry.payload.len() + ENTRY_HEAD
}

/// Where an entry is read from.
pub(crate) enum Source {
    Hot(Entry),
    Cold(Located),
}

impl Inner {
    fn hot_first(&self) -> Option<LogIndex> {
        self.hot.front().map(|entry| entry.id.index)
    }

    fn hot_at(&self, index: LogIndex) -> Option<&Entry> {
        let first = self.hot_first()?;
        self.hot.get(usize::try_from(index.0.checked_sub(first.0)?).ok()?)
    }

    /// The first index that is needed after a crash.
    pub(crate) fn needed_from(&self) -> LogIndex {
        self.purged_flushed.map_or(LogIndex(0), |id| id.index.next())
    }

    /// Whether this very entry is live.
    pub(crate) fn is_live(&self, id: LogId) -> bool {
        let live =
            self.hard.live_from() <= id.index && Some(id.index) <= self.hard.last.map(|last| last.index);
        live && self.id_at(id.index) == Some(id)
    }

    /// The id of an entry that is live or history.
    pub(crate) fn id_at(&self, index: LogIndex) -> Option<LogId> {
        let purged = self.hard.purged.filter(|id| id.index == index);
        let hot = || self.hot_at(index).map(|entry| entry.id);
        purged.or_else(hot).or_else(|| self.index.id_at(index))
    }

    /// The first entry that can be read, live or not.
    pub(crate) fn oldest(&self) -> Option<LogIndex> {
        // The disk's view may still hold what was truncated, or not yet know of a hole.
        let joined = self.hot_first().or(self.hard.last.map(|id| id.index.next()))?;
        let reaches = self.index.last().is_some_and(|last| last.next() >= joined);
        self.index.first().filter(|_| reaches).map(|first| first.min(joined)).or(self.hot_first())
    }

    /// Whether a hot entry was flushed.
    ///
    /// The disk's view may still hold entries that were truncated since; ids tell them apart. And retention makes
    /// it forget purged entries that are still hot; those were flushed.
    fn on_disk(&self, entry: &Entry) -> bool {
        let purged = self.purged_flushed.map(|id| id.index);
        Some(entry.id.index) <= purged || self.index.id_at(entry.id.index) == Some(entry.id)
    }

    /// The last submitted entry that is on the disk, and every one before it.
    fn flushed(&self) -> Option<LogIndex> {
        let Some(first) = self.hot_first() else { return self.hard.last.map(|id| id.index) };
        let count = self.hot.partition_point(|entry| self.on_disk(entry)) as u64;
        let last = LogIndex((first.0 + count).checked_sub(1)?);
        (count > 0 || self.id_at(last).is_some()).then_some(last)
    }

    fn state(&self) -> GroupState {
        GroupState {
            vote: self.hard.vote,
            purged: self.hard.purged,
            last: self.hard.last,
            committed: self.hard.committed,
            oldest: self.oldest(),
            submitted: self.hard.last.map(|id| id.index),
            flushed: self.flushed(),
        }
    }

    /// Where the entries from `from` to `upto` are read, at least one if there is one, then within `bytes_max`.
    fn sources(&self, from: LogIndex, upto: LogIndex, bytes_max: usize) -> Vec<Source> {
        let (mut sources, mut bytes) = (Vec::new(), 0);
        let mut fits = |more: usize| {
            bytes += more;
            bytes <= bytes_max || bytes == more
        };
        let hot_first = self.hot_first();
        let cold_upto = match hot_first {
            Some(first) if first <= from => None,
            Some(first) => Some(upto.min(LogIndex(first.0 - 1))),
            None => Some(upto),
        };
        if let Some(cold_upto) = cold_upto {
            for located in self.index.walk(from, cold_upto) {
                if !fits(located.spot.bytes as usize) {
                    return sources;
                }
                sources.push(Source::Cold(located));
            }
            if sources.len() as u64 != (cold_upto.next().0).saturating_sub(from.0) {
                return sources;
            }
        }
        let Some(first) = hot_first else { return sources };
        let skip = from.0.saturating_sub(first.0) as usize;
        for entry in self.hot.iter().skip(skip).take_while(|entry| entry.id.index <= upto) {
            if !fits(hot_bytes(entry)) {
                break;
            }
            sources.push(Source::Hot(entry.clone()));
        }
        sources
    }
}

/// A group's pointers at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The last vote given.
    pub vote: Option<Vote>,
    /// Up to here entries are history.
    pub purged: Option<LogId>,
    /// The last entry, or the purged one if that lies beyond it.
    pub last: Option<LogId>,
    /// The last saved commit.
    pub committed: Option<LogId>,
    /// The first entry that can still be read, live or history.
    pub oldest: Option<LogIndex>,
    /// The last entry submitted, durable or not.
    pub submitted: Option<LogIndex>,
    /// The last entry on the disk.
    pub flushed: Option<LogIndex>,
}

/// A handle to one group's log; clones are the same log.
#[derive(Clone)]
pub struct GroupLog {
    pub(crate) cell: Arc<GroupCell>,
    pub(crate) core: Arc<Core>,
}

impl GroupLog {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.cell.id
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.core.shared
    }

    /// Whether an append would be turned away now, for owners that can't take a refusal once they have begun.
    ///
    /// Errors: `Full`.
    pub fn check_space(&self) -> Result<(), Error> {
        self.shared().check_space()
    }

    /// Bytes of the largest payload an entry can have.
    pub fn payload_bytes_max(&self) -> usize {
        self.shared().options.record_bytes_max() - ENTRY_HEAD
    }

    fn live(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.cell.lock();
        if inner.dropped { Err(Error::UnknownGroup(self.id())) } else { Ok(inner) }
    }

    /// Appends entries that follow the last one; readable on return. Awaits only while the queue's budget is spent.
    ///
    /// `done` is called exactly once, on the writer's thread in log order, after the fsync or with the failure; if
    /// this returns an error nothing was queued and `done` is not called.
    /// Errors: `Gap`, `TooLarge`, `Full`, `UnknownGroup`, `Closed`, `Poisoned` (this append: no effect).
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let Some(first) = entries.first().map(|entry| entry.id.index) else {
            done(Ok(()));
            return Ok(());
        };
        self.shared().check_space()?;
        let mut requests = self.encode(&entries)?;
        let bytes = requests.iter().map(|request| request.bytes).sum();
        let permits = self.shared().queue.reserve(bytes).await?;

        let mut inner = self.live()?;
        if let Some(last) = inner.hard.last.filter(|last| last.index.next() != first) {
            return Err(Error::Gap { group: self.id(), last: Some(last), got: first });
        }
        if let Some(last) = requests.last_mut() {
            last.done = Some(Box::new(done));
            last.permits = permits.spend();
        }
        self.shared().queue.push_all(requests)?;
        self.shared().hot_bytes.fetch_add(entries.iter().map(hot_bytes).sum(), Relaxed);
        inner.hard.last = entries.last().map(|entry| entry.id);
        inner.hot.extend(entries);
        Ok(())
    }

    /// The entries as requests, none larger than a batch unless a single record is.
    fn encode(&self, entries: &[Entry]) -> Result<Vec<Request>, Error> {
        let options = &self.shared().options;
        let max = options.record_bytes_max();
        let mut requests = vec![Request::new(self.cell.clone())];
        let mut expected = entries.first().map(|entry| entry.id.index);
        let mut last = None;
        for entry in entries {
            if expected != Some(entry.id.index) {
                return Err(Error::Gap { group: self.id(), last, got: entry.id.index });
            }
            let bytes = entry.payload.len().saturating_add(ENTRY_HEAD);
            if bytes > max {
                return Err(Error::TooLarge { bytes, max });
            }
            let full = requests.last().is_some_and(|request| {
                request.bytes > 0 && request.bytes + bytes > options.batch_bytes_max.min(max)
            });
            if full {
                requests.push(Request::new(self.cell.clone()));
            }
            let request = requests.last_mut().expect("starts with one");
            request.push(Event::Entry(entry.id), entry.payload.clone());
            last = Some(entry.id);
            expected = Some(entry.id.index.next());
        }
        Ok(requests)
    }

    /// Queues one small record; `event` changes the owner's view under the same lock. Gives what tells its fsync.
    fn write(
        &self,
        event: impl FnOnce(&mut Inner) -> Result<Event, Error>,
    ) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
        let (told, outcome) = oneshot::channel();
        let mut inner = self.live()?;
        if let Some(error) = self.shared().queue.closed() {
            return Err(error);
        }
        let event = event(&mut inner)?;
        let done = Box::new(move |outcome| drop(told.send(outcome)));
        self.shared().queue.push(Request::single(self.cell.clone(), event, Some(done)))?;
        Ok(outcome)
    }

    /// Saves a vote; durable on return.
    ///
    /// Errors: `UnknownGroup`, `Closed` (no effect), `Poisoned` (effect unknown).
    pub async fn save_vote(&self, vote: Vote) -> Result<(), Error> {
        let outcome = self.write(|inner| {
            inner.hard.vote = Some(vote);
            Ok(Event::Vote(vote))
        })?;
        settled(outcome).await
    }

    /// Notes how far the group is committed; queued, it rides along with the next frame.
    ///
    /// Errors: `UnknownGroup`, `Closed`, `Poisoned` (no effect).
    pub async fn save_committed(&self, committed: Option<LogId>) -> Result<(), Error> {
        let mut inner = self.live()?;
        let request = Request::single(self.cell.clone(), Event::Committed(committed), None);
        self.shared().queue.push_lazily(request)?;
        inner.hard.committed = committed;
        Ok(())
    }

    /// Forgets every entry after `last`; ordered before any later append, not yet durable on return.
    ///
    /// Errors: `Gap` if `last` is purged or unknown, `UnknownGroup`, `Closed`, `Poisoned` (no effect).
    pub async fn truncate_after(&self, last: Option<LogIndex>) -> Result<(), Error> {
        let mut inner = self.live()?;
        let purged = inner.hard.purged.map(|id| id.index);
        let end = inner.hard.last.map(|id| id.index);
        let kept = last.and_then(|index| inner.id_at(index));
        let known = last.is_none() || kept.is_some();
        if !known || last < purged || last > end {
            let got = last.unwrap_or_default();
            return Err(Error::Gap { group: self.id(), last: inner.hard.last, got });
        }
        let request = Request::single(self.cell.clone(), Event::Truncate(kept), None);
        self.shared().queue.push(request)?;
        inner.hard.last = kept;
        let mut bytes = 0;
        while let Some(entry) = inner.hot.pop_back_if(|entry| Some(entry.id.index) > last) {
            bytes += hot_bytes(&entry);
        }
        self.shared().hot_bytes.fetch_sub(bytes, Relaxed);
        Ok(())
    }

    /// Makes the entries up to `upto` history; durable on return. Their bytes stay until retention takes them.
    /// `upto` may lie beyond the last entry: a snapshot has taken the group there.
    ///
    /// Errors: `Gap` if already purged further, `UnknownGroup`, `Closed` (no effect), `Poisoned` (effect unknown).
    pub async fn purge(&self, upto: LogId) -> Result<(), Error> {
        let shared = self.shared();
        let outcome = self.write(|inner| {
            if inner.hard.purged.is_some_and(|purged| purged.index > upto.index) {
                return Err(Error::Gap { group: self.id(), last: inner.hard.purged, got: upto.index });
            }
            if inner.hard.purge(upto) {
                let bytes = inner.hot.drain(..).map(|entry| hot_bytes(&entry)).sum();
                shared.hot_bytes.fetch_sub(bytes, Relaxed);
            }
            Ok(Event::Purge(upto))
        })?;
        settled(outcome).await?;
        if mutant::is("purge_other_group") {
            self.purge_others(upto.index).await?;
        }
        shared.nudge_retention();
        Ok(())
    }

    /// A planted bug: as far as they go, entries of all other groups are purged too.
    async fn purge_others(&self, upto: LogIndex) -> Result<(), Error> {
        for cell in self.shared().cells().into_iter().filter(|cell| cell.id != self.id()) {
            let other = GroupLog { cell, core: self.core.clone() };
            let last = other.state().last.map_or(upto, |last| last.index.min(upto));
            let Some(id) = other.cell.lock().id_at(last) else { continue };
            let outcome = other.write(|inner| {
                inner.hard.purge(id);
                Ok(Event::Purge(id))
            })?;
            settled(outcome).await?;
        }
        Ok(())
    }

    /// Live entries within `range`, in order and without a hole, at least one if there is any, then as many as fit
    /// into `bytes_max`.
    ///
    /// Errors: `Corrupt` (the entry's bytes are damaged), `Io`.
    pub async fn read(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let Some(upto) = range.end.0.checked_sub(1) else { return Ok(Vec::new()) };
        self.read_sources(bytes_max, |inner| {
            let Some(last) = inner.hard.last else { return Ok(None) };
            // Without a purge all there is is live; if there should be some and is none, it is lost.
            let first = inner.oldest().unwrap_or(last.index);
            let live_from = inner.hard.purged.map_or(first, |id| id.index.next());
            Ok(Some((range.start.max(live_from), LogIndex(upto).min(last.index))))
        })
        .await
    }

    /// Entries from `from` on, live or history, at least one if there is any, then as many as fit into `bytes_max`.
    ///
    /// Errors: `Gone` if `from` lies below `oldest`, `Corrupt`, `Io`.
    pub async fn history(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        // Checked under the lock of each look-up: retention may move `oldest` at any time.
        self.read_sources(bytes_max, |inner| {
            let Some(last) = inner.hard.last else { return Ok(None) };
            let oldest = inner.oldest();
            if from < oldest.unwrap_or(last.index.next()) {
                return Err(Error::Gone { oldest });
            }
            Ok(Some((from, last.index)))
        })
        .await
    }

    async fn read_sources(
        &self,
        bytes_max: usize,
        range: impl Fn(&Inner) -> Result<Option<(LogIndex, LogIndex)>, Error>,
    ) -> Result<Vec<Entry>, Error> {
        let mut gone = None;
        loop {
            let sources = {
                let inner = self.live()?;
                let Some((from, upto)) = range(&inner)?.filter(|(from, upto)| from <= upto) else {
                    return Ok(Vec::new());
                };
                let sources = inner.sources(from, upto, bytes_max);
                if sources.is_empty() {
                    let why = "the entry lies in no readable segment".to_string();
                    let (group, index) = (Some(self.id()), Some(from));
                    return Err(Error::Corrupt { segment: 0, offset: 0, group, index, why });
                }
                sources
            };
            match reader::read(self.shared(), self.id(), sources).await {
                // Retention may have moved an entry between the look-up and the read; it is elsewhere now, and may be moved
                // again.
                Err(reader::Failed::SegmentGone(number)) if gone < Some(number) => gone = Some(number),
                outcome => return outcome.map_err(reader::Failed::into_error),
            }
        }
    }

    /// The group's pointers now.
    pub fn state(&self) -> GroupState {
        self.cell.lock().state()
    }
}

/// What the writer said; if it is gone without a word, the log is shut down.
pub(crate) async fn settled(outcome: oneshot::Receiver<Result<(), Error>>) -> Result<(), Error> {
    outcome.await.unwrap_or(Err(Error::Closed))
}
