//! The one thread that writes: what waits, of all groups, becomes one frame, one entry, one fsync.
//!
//! Invariants: a batch is bounded in bytes, its size checked before a record enters; waiters are told in order, after
//! the fsync; room for an empty frame is always left; after any error or panic the segment is never called again;
//! when nothing comes, an empty frame confirms the last one, so that its rot can't be taken for a torn end.
//! Not here: ordering (the queue's), bytes (`frame`), the next segment (`opener`).

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    entry::LogIndex,
    error::Error,
    fold::{Fold, Seal},
    frame::{self, FrameBuffer, Link, SegmentKey},
    group::GroupCell,
    host::Tasks,
    log::Shared,
    mutant,
    opener::{self, Opener},
    queue::{Closed, Done, Request},
    record::Event,
    retention::Task,
    segment::{
        Segment, Spot,
        layout::{AFTER, AROUND, BEFORE},
    },
};

/// Bytes an empty frame takes in a segment.
const MARK_BYTES: usize = AROUND + frame::HEADER;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    segment: Box<dyn Segment>,
    opener: Opener,
    fold: Fold,
    /// The last frame written.
    last: Link,
    /// The last frame of the segment before this one.
    before: Link,
    frame: FrameBuffer,
    /// Where the queue puts what waits; empty between turns.
    taken: Vec<Request>,
    /// Taken from the queue, not yet written.
    pending: VecDeque<Request>,
    /// In the frame being written.
    batch: Vec<Request>,
    waiters: Vec<Done>,
    /// Flushed entries in memory, oldest first.
    hot: VecDeque<(Arc<GroupCell>, LogIndex)>,
    /// Whether the last frame was an empty one, or there is none to confirm.
    marked: bool,
}

/// Why the writer stops.
enum Stop {
    Drained,
    Failed(String),
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        segment: Box<dyn Segment>,
        opener: Opener,
        fold: Fold,
        last: Link,
    ) -> Writer {
        Writer {
            shared,
            segment,
            opener,
            fold,
            last,
            before: last,
            frame: FrameBuffer::default(),
            taken: Vec::new(),
            pending: VecDeque::new(),
            batch: Vec::new(),
            waiters: Vec::new(),
            hot: VecDeque::new(),
            marked: true,
        }
    }

    /// Writes until the queue is closed and drained, or something fails.
    pub(crate) fn run(mut self) {
        let stop = loop {
            if let Err(stop) = self.turn() {
                break stop;
            }
        };
        self.end(stop);
    }

    /// As `run`, on a simulation's clock: what takes time is awaited, and may be cut off there.
    pub(crate) async fn run_as_task(mut self, tasks: &dyn Tasks) {
        let stop = loop {
            if let Err(stop) = self.turn_as_task(tasks).await {
                break stop;
            }
        };
        self.end(stop);
    }

    fn end(self, stop: Stop) {
        let Writer { shared, segment, opener, batch, pending, .. } = self;
        match stop {
            Stop::Drained => {
                opener.close(segment);
                opener.finish();
            }
            Stop::Failed(why) => {
                // Whatever state it is in, it must not run again, not even to close.
                std::mem::forget(segment);
                let why = shared.failure.poison(&why);
                for done in batch.into_iter().chain(pending).filter_map(|request| request.done) {
                    done(Err(Error::Poisoned { why: why.clone() }));
                }
            }
        }
    }

    /// One turn: take, fill a frame, commit it, tell.
    fn turn(&mut self) -> Result<(), Stop> {
        let patience = if self.pending.is_empty() { self.shared.options.idle_mark } else { Duration::ZERO };
        self.take(patience)?;
        if self.pending.is_empty() {
            return self.mark();
        }
        self.fill();
        if self.batch.is_empty() {
            return self.roll();
        }
        if mutant::is("skip_fsync") && self.is_unlucky() {
            self.tell_early();
            std::thread::sleep(Duration::from_millis(50));
        }
        self.commit()?;
        self.publish()?;
        self.cool();
        Ok(())
    }

    async fn turn_as_task(&mut self, tasks: &dyn Tasks) -> Result<(), Stop> {
        if self.pending.is_empty() {
            self.shared.queue.rest(self.shared.options.idle_mark).await;
            self.opener.try_again();
        }
        self.take(Duration::ZERO)?;
        if self.pending.is_empty() {
            return self.mark();
        }
        self.fill();
        if self.batch.is_empty() {
            let since = tokio::time::Instant::now();
            while !self.opener.try_again() && since.elapsed() < self.shared.options.watchdog {
                tokio::time::sleep(opener::RETRY).await;
            }
            return self.roll();
        }
        let [mut until_durable, until_told] = tasks.commit_takes();
        if mutant::is("skip_fsync") && self.is_unlucky() {
            self.tell_early();
            until_durable *= 32;
        }
        tokio::time::sleep(until_durable).await;
        self.commit()?;
        tokio::time::sleep(until_told).await;
        self.publish()?;
        self.cool();
        Ok(())
    }

    fn take(&mut self, patience: Duration) -> Result<(), Stop> {
        let outcome = self.shared.queue.take(&mut self.taken, patience);
        self.pending.extend(self.taken.drain(..));
        match outcome {
            Err(Closed::Poisoned(why)) => Err(Stop::Failed(why.to_string())),
            Err(Closed::ShutDown) if self.pending.is_empty() => {
                self.mark()?;
                Err(Stop::Drained)
            }
            _ => Ok(()),
        }
    }

    /// Moves requests from `pending` into a frame as long as they fit the batch and the segment.
    fn fill(&mut self) {
        let room = (self.segment.capacity() - self.segment.end()) as usize;
        let room = room.saturating_sub(MARK_BYTES + AROUND);
        self.frame.begin();
        while let Some(request) = self.pending.front() {
            let bytes = self.frame.len() + request.bytes;
            let over_batch = bytes > self.shared.options.batch_bytes_max && !self.batch.is_empty();
            if bytes > room || over_batch {
                break;
            }
            let request = self.pending.pop_front().expect("looked at above");
            let mut heads = &request.heads[..];
            for part in &request.parts {
                let (head, rest) = heads.split_at(part.head_bytes);
                self.frame.push(head, &part.payload, part.crc);
                heads = rest;
            }
            self.batch.push(request);
        }
    }

    /// Every eighth frame: with each one no cluster would come up.
    fn is_unlucky(&self) -> bool {
        self.last.sequence.0 % 8 == 7
    }

    /// A planted bug: who waits is told before the write.
    fn tell_early(&mut self) {
        self.batch.iter_mut().filter_map(|request| request.done.take()).for_each(|done| done(Ok(())));
    }

    /// Writes the frame, durably. Those who wait are in the failure's hands meanwhile.
    fn commit(&mut self) -> Result<(), Stop> {
        let key = SegmentKey { store: self.shared.store, segment: self.segment.number() };
        let offset = self.segment.end() + BEFORE as u64;
        let (bytes, link) = self.frame.finish(key, offset, self.last);
        let frame_bytes = bytes.len() as u64;
        self.waiters.extend(self.batch.iter_mut().filter_map(|request| request.done.take()));
        self.shared.failure.begin(&mut self.waiters);
        let started = Instant::now();
        let segment = &mut self.segment;
        let outcome = catch_unwind(AssertUnwindSafe(|| segment.commit(bytes)));
        let took = started.elapsed();
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(_)) if mutant::is("ignore_eio") => {}
            Ok(Err(error)) => return Err(Stop::Failed(format!("a commit failed: {error}"))),
            Err(_) => return Err(Stop::Failed("a commit panicked".into())),
        }
        if self.shared.failure.end(&mut self.waiters).is_none() {
            return Err(Stop::Failed("a commit returned after the log was poisoned".into()));
        }
        self.last = link;
        self.marked = self.batch.is_empty();
        let meters = &self.shared.meters;
        meters.commits.fetch_add(1, Relaxed);
        meters.fsync_micros.add_micros(took);
        meters.batch_bytes.add(frame_bytes);
        Ok(())
    }

    /// Lets the groups know where their records lie, and tells those who wait.
    fn publish(&mut self) -> Result<(), Stop> {
        let segment = self.segment.number();
        // The frame's records end where the entry's last bytes begin.
        let mut offset = (self.segment.end() as usize - AFTER) as u32;
        offset -= (self.frame.len() - frame::HEADER) as u32;
        let (mut records, mut permits) = (0, 0);
        for request in self.batch.drain(..) {
            let group = request.group();
            let fold = &mut self.fold;
            request.cell.flushed(&request.parts, segment, |part| {
                let bytes = (part.head_bytes + part.payload.len()) as u32;
                let spot = Spot { offset, bytes };
                offset += bytes;
                fold.apply(group, &part.event, segment, spot).expect("a group's entries are queued in order");
                spot
            });
            records += request.parts.len() as u64;
            permits += request.permits;
            if let Some(Event::Entry(id)) = request.parts.last().map(|part| &part.event) {
                self.hot.push_back((request.cell, id.index));
            }
        }
        let meters = &self.shared.meters;
        meters.records.fetch_add(records, Relaxed);
        meters.record_bytes.fetch_add((self.frame.len() - frame::HEADER) as u64, Relaxed);
        meters.batch_records.add(records);
        let waiters = &mut self.waiters;
        let told = catch_unwind(AssertUnwindSafe(|| waiters.drain(..).for_each(|done| done(Ok(())))));
        self.shared.queue.release(permits);
        told.map_err(|_| Stop::Failed("one who waited for a commit panicked when told".into()))
    }

    /// Keeps the hot tail within its bound, in log order over all groups.
    fn cool(&mut self) {
        let max = self.shared.options.hot_bytes_max;
        while self.shared.hot_bytes.load(Relaxed) > max {
            let Some((cell, upto)) = self.hot.pop_front() else { return };
            self.shared.hot_bytes.fetch_sub(cell.cool(upto), Relaxed);
        }
    }

    /// Writes an empty frame, if the last one is not confirmed yet.
    fn mark(&mut self) -> Result<(), Stop> {
        if self.marked {
            return Ok(());
        }
        self.frame.begin();
        self.commit()?;
        self.shared.meters.marks.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Seals the segment and goes on in the next.
    fn roll(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        let Some(next) = self.opener.next(self.shared.options.watchdog) else {
            return Err(Stop::Failed("the next segment could not be made in time".into()));
        };
        let full = std::mem::replace(&mut self.segment, next);
        let seal = Seal {
            segment: full.number(),
            before: self.before,
            last: self.last,
            end: full.end(),
            sealed_unix_ms: self.shared.host.unix_ms(),
            groups: self.fold.seal(),
        };
        self.before = self.last;
        self.opener.close(full);
        self.shared.segments.started(self.segment.number(), self.segment.capacity());
        self.shared.tell_retention(Task::Sealed(Box::new(seal)));
        self.shared.meters.rolls.fetch_add(1, Relaxed);
        self.shared.meters.roll_micros.add_micros(started.elapsed());
        Ok(())
    }
}
