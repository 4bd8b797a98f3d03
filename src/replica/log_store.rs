//! Raft's log over the node's log: openraft's storage traits on a [`GroupLog`].
//!
//! Invariants: an entry can be read when `append` returns and is on disk when its callback runs; what was appended,
//! truncated and voted reaches the disk in that order (the log has one queue); an entry that cannot be decoded is
//! an error that stops the replica.
//! Not here: batching (the log's writer does it across all groups), caching (the log keeps its tail in memory).

use super::{
    backfill::Shelf,
    entry::{self, RaftEntry, RaftLogId, RaftVote, Types},
    progress::Progress,
};
use crate::mutant::{self, Mutant};
use annal_wal::{GroupLog, LogIndex};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Entries are read in pieces of about this size, to apply or to replicate them.
const READ_BYTES: usize = 4 << 20;

/// How long an append waits before it tries a full disk again.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// How long it waits in silence, at first,
const FULL_TOLD_AFTER: Duration = Duration::from_secs(1);
/// and then each time.
const FULL_TOLD_EVERY: Duration = Duration::from_secs(60);

/// One group's log, as openraft sees it.
#[derive(Clone)]
pub(super) struct LogStore {
    log: GroupLog,
    progress: Arc<Progress>,
    shelf: Arc<Shelf>,
    /// The first entry that was read and is not what was written.
    damage: Arc<OnceLock<annal_wal::Error>>,
}

impl LogStore {
    pub(super) fn new(log: GroupLog, progress: Arc<Progress>, shelf: Arc<Shelf>) -> Self {
        LogStore { log, progress, shelf, damage: Arc::default() }
    }

    /// What was met while entries were read: openraft knows errors by their text alone.
    pub(super) fn damage(&self) -> Option<annal_wal::Error> {
        self.damage.get().cloned()
    }

    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        let range = LogIndex(range.start)..LogIndex(range.end);
        let entries = self.log.read(range, bytes_max).await.map_err(|error| {
            if matches!(error, annal_wal::Error::Corrupt { .. }) {
                self.damage.get_or_init(|| error.clone());
            }
            io::Error::other(error)
        })?;
        entries.into_iter().map(|e| entry::from_log(e).map_err(io::Error::other)).collect()
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<RaftEntry>> {
        self.read(half_open(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.read(start..end, READ_BYTES).await
    }

    async fn entries_stream<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend {
        let store = self.clone();
        stream::try_unfold((store, half_open(&range)), |(store, rest)| async move {
            let entries = store.read(rest.clone(), READ_BYTES).await?;
            let Some(last) = entries.last() else { return Ok(None) };
            let rest = last.log_id.index() + 1..rest.end;
            Ok::<_, io::Error>(Some((stream::iter(entries).map(Ok), (store, rest))))
        })
        .try_flatten()
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.state().vote.map(entry::vote_from_log))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.as_ref().map(entry::id_from_log),
            last_log_id: state.last.as_ref().map(entry::id_from_log),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.progress.votes(*vote);
        if mutant::is(Mutant::VoteNotDurable) {
            return Ok(());
        }
        self.log.save_vote(entry::vote_to_log(vote)).await.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        if let Some(id) = &committed {
            self.progress.committed(LogIndex(id.index()));
        }
        let committed = committed.as_ref().map(entry::id_to_log);
        self.log.save_committed(committed).await.map_err(io::Error::other)
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.log.state().committed.as_ref().map(entry::id_from_log))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(entry::to_log).collect();
        let Some(last) = entries.last().map(|entry| entry.id.index) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let flush =
            Arc::new(Flush { progress: self.progress.clone(), last, callback: Mutex::new(Some(callback)) });
        let mut silent_until = Instant::now() + FULL_TOLD_AFTER;
        loop {
            let told = flush.clone();
            match self.log.append(entries.clone(), move |result| told.done(result)).await {
                // openraft can't take a refusal. New commands are turned away meanwhile, so this ends soon; but not
                // where the disk is full from the start.
                Err(error @ annal_wal::Error::Full { .. }) if self.progress.check_running().is_ok() => {
                    if Instant::now() >= silent_until {
                        silent_until = Instant::now() + FULL_TOLD_EVERY;
                        tracing::warn!(group = self.log.id().0, %error, "the log waits for space");
                    }
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                Ok(()) => {
                    self.progress.submitted(last);
                    return Ok(());
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        let last = last.map(|id| LogIndex(id.index()));
        if last >= self.log.state().last.map(|id| id.index) {
            return Ok(());
        }
        self.log.truncate_after(last).await.map_err(io::Error::other)?;
        self.progress.truncated(last);
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let upto = entry::id_to_log(&upto);
        self.shelf.fill(&self.log, upto).await?;
        self.log.purge(upto).await.map_err(io::Error::other)?;
        self.progress.purged();
        Ok(())
    }
}

/// What is told when an append is on disk.
struct Flush {
    progress: Arc<Progress>,
    last: LogIndex,
    callback: Mutex<Option<IOFlushed<Types>>>,
}

impl Flush {
    fn done(&self, result: Result<(), annal_wal::Error>) {
        match &result {
            Ok(()) => self.progress.flushed(self.last),
            Err(error) => self.progress.stop(format!("log: {error}"), true),
        }
        if let Some(callback) = self.callback.lock().unwrap_or_else(PoisonError::into_inner).take() {
            callback.io_completed(result.map_err(io::Error::other));
        }
    }
}

/// Any range of indexes as `start..end`.
fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}
