//! The one door out of the log: a shard's commands in order, from a position on, for as long as they are kept.
//!
//! ```text
//!   index     6    7    8    9   10   11        entry 8 holds three commands, 7 and 10 hold none
//!   entry    [1]  [ ]  [3]  [1]  [ ]  [2]
//!   position  4        5-7   8        9-10
//!             ^ bookmark_at(6) = (4, index 6): to start at position 7, count on from index 7
//! ```
//!
//! Invariants: positions come out one after the other, without a hole; a command comes out only when it is applied
//! here; the count agrees with the state machine's wherever the two meet. A command of the log that holds several, as a
//! mirror's do, comes out as those; one that has no position does not come out.
//! Not here: what a command does (its effects are read elsewhere), tokens and retention policy (those who follow).

use super::{
    ReplicaError,
    entry::{self, Mark, RaftPayload},
    progress::Progress,
};
use crate::{
    machine::{Counter, StateMachine, Waymark},
    model::Position,
    mutant::{self, Mutant},
    world,
};
use annal_wal::{GroupId, GroupLog, Log, LogIndex};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// Entries are read in pieces of about this size.
const READ_BYTES: usize = 1 << 20;

/// Follows the commands of a group. While it lives, the log keeps what it has not read yet, up to the log's hard cap.
pub struct Tail {
    log: GroupLog,
    machine: Arc<dyn StateMachine>,
    progress: Arc<Progress>,
    /// The next entry to read.
    index: LogIndex,
    /// Has counted all up to `index - 1`.
    counter: Box<dyn Counter>,
    /// Commands below are passed over: they share the way from the last bookmark.
    from: Position,
    ready: VecDeque<(Position, Bytes)>,
    /// What one command of the log holds; empty between two.
    counted: VecDeque<(Position, Bytes)>,
    hold: Hold,
}

impl Tail {
    /// Errors: `Gone`.
    pub(super) async fn start(
        log: GroupLog,
        machine: Arc<dyn StateMachine>,
        progress: Arc<Progress>,
        from: Position,
        hold: Hold,
    ) -> Result<Self, ReplicaError> {
        // The position before `from` is the last one that need not be read.
        let before = Position(from.0.saturating_sub(1));
        let Waymark { bookmark, counter } =
            with(&machine, move |machine| Ok(machine.waymark(before)?)).await?;
        let mark = Mark::of(bookmark.as_ref())?;
        let index = mark.index().map_or(LogIndex(0), |last| LogIndex(last.0 + 1));
        hold.at(index);
        let (ready, counted) = Default::default();
        let tail = Tail { log, machine, progress, index, counter, from, ready, counted, hold };
        match tail.beginning() {
            Some(oldest) if oldest > index => Err(tail.gone(oldest).await),
            _ => Ok(tail),
        }
    }

    /// The first entry that can be read, or that will be the first: after a snapshot the log may be empty.
    fn beginning(&self) -> Option<LogIndex> {
        let state = self.log.state();
        state.oldest.or_else(|| state.purged.map(|purged| LogIndex(purged.index.0 + 1)))
    }

    /// The next command and its position; waits for it to be applied.
    ///
    /// Errors: `Gone` (read from a later position, or from a snapshot), `Hole` (damage), `Stopped`. After an error
    /// the tail gives nothing more but errors. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<(Position, Bytes), ReplicaError> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(next);
            }
            if let Err(error) = self.read().await {
                // Retention may take entries while they are being read, however that then fails.
                return Err(match self.beginning() {
                    Some(oldest) if oldest > self.index => self.gone(oldest).await,
                    _ => error,
                });
            }
        }
    }

    /// Reads on, at least one entry.
    async fn read(&mut self) -> Result<(), ReplicaError> {
        let first = self.index;
        let applied = self.progress.wait(|applied| applied.index() >= Some(first), None).await?;
        // A snapshot may have taken the machine further than the log is yet.
        self.progress.wait_logged(first).await?;
        let entries = self.log.history(first, READ_BYTES).await?;
        for log_entry in entries.into_iter().take_while(|e| Some(e.id.index) <= applied.index()) {
            self.take(log_entry)?;
            let (counted, index) = (self.counter.position(), LogIndex(self.index.0 - 1));
            if Some(index) == applied.index() && counted != applied.position {
                let why = format!("counted up to {counted}, the state machine up to {}", applied.position);
                return Err(ReplicaError::Hole { index, why });
            }
        }
        if self.index == first {
            return Err(ReplicaError::Hole {
                index: first,
                why: "an applied entry is not in the log".into(),
            });
        }
        self.hold.at(self.index);
        Ok(())
    }

    fn take(&mut self, log_entry: annal_wal::Entry) -> Result<(), ReplicaError> {
        let index = log_entry.id.index;
        if index != self.index {
            return Err(ReplicaError::Hole {
                index: self.index,
                why: format!("the next entry is {index:?}"),
            });
        }
        if let RaftPayload::Normal(commands) = entry::from_log(log_entry)?.payload {
            for command in commands.iter() {
                self.count(command)?;
            }
        }
        self.index = LogIndex(index.0 + 1);
        Ok(())
    }

    fn count(&mut self, command: Bytes) -> Result<(), ReplicaError> {
        let before = self.counter.position();
        self.counter.take(command, &mut self.counted)?;
        let after = self.counter.position();
        if after > before && self.counted.is_empty() && self.from <= after {
            // What was copied from elsewhere was never a command here.
            return Err(ReplicaError::Gone { oldest: after.next() });
        }
        for (position, command) in self.counted.drain(..) {
            let dropped = mutant::is(Mutant::DropTailEntry) && position.0.is_multiple_of(32);
            if position >= self.from && !dropped {
                self.ready.push_back((position, command));
            }
        }
        Ok(())
    }

    /// The error of a reader that came too late, with the first position that can be read.
    async fn gone(&self, oldest: LogIndex) -> ReplicaError {
        with(&self.machine, move |machine| first_from(machine, oldest))
            .await
            .map_or_else(|error| error, |oldest| ReplicaError::Gone { oldest })
    }
}

/// The newest mark at or below `position`: the start of the log if there is none.
fn mark_at(machine: &dyn StateMachine, position: Position) -> Result<(Position, Mark), ReplicaError> {
    match machine.bookmark_at(position)? {
        Some((position, bookmark)) => Ok((position, Mark::from_bookmark(&bookmark)?)),
        None => Ok((Position(0), Mark::default())),
    }
}

/// The first position that can be counted when the log starts at `oldest`: marks only move up with positions, so the
/// lowest one whose next entry is still there is found by halving.
pub(super) fn first_from(machine: &dyn StateMachine, oldest: LogIndex) -> Result<Position, ReplicaError> {
    let (mut low, mut high) = (0, machine.position().0);
    while low < high {
        let middle = low + (high - low) / 2;
        let (_, mark) = mark_at(machine, Position(middle))?;
        if mark.index().map_or(0, |index| index.0 + 1) >= oldest.0 { high = middle } else { low = middle + 1 }
    }
    Ok(mark_at(machine, Position(low))?.0.next())
}

/// Asks the state machine, which may read files.
pub(super) async fn with<T: Send + 'static>(
    machine: &Arc<dyn StateMachine>,
    ask: impl FnOnce(&dyn StateMachine) -> Result<T, ReplicaError> + Send + 'static,
) -> Result<T, ReplicaError> {
    let machine = machine.clone();
    let asked = world::blocking(move || ask(machine.as_ref())).await;
    asked.unwrap_or_else(|lost| Err(ReplicaError::Raft(lost.to_string().into())))
}

/// What the followers of one group still owe themselves to read: the log keeps it.
pub(super) struct Holds {
    log: Log,
    group: GroupId,
    /// By follower: the next entry it reads.
    held: Mutex<(u64, BTreeMap<u64, LogIndex>)>,
}

impl Holds {
    pub(super) fn new(log: Log, group: GroupId) -> Arc<Self> {
        Arc::new(Holds { log, group, held: Mutex::default() })
    }

    /// A new follower, which holds nothing yet.
    pub(super) fn follow(self: &Arc<Self>) -> Hold {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 += 1;
        Hold { holds: self.clone(), follower: held.0 }
    }

    fn update(&self, follower: u64, index: Option<LogIndex>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match index {
            Some(index) => held.1.insert(follower, index),
            None => held.1.remove(&follower),
        };
        // Under the lock, so that an older floor never overtakes a newer one.
        self.log.set_history_floor(self.group, held.1.values().min().copied());
    }
}

/// One follower's part of [`Holds`]; released when dropped.
pub(super) struct Hold {
    holds: Arc<Holds>,
    follower: u64,
}

impl Hold {
    fn at(&self, index: LogIndex) {
        self.holds.update(self.follower, Some(index));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.update(self.follower, None);
    }
}
