//! A state machine that lies behind what Raft still has: brought on from the history below `purged`.
//!
//! Invariant: only entries at or below `purged` are folded here. They were applied by this replica before they were
//! purged, so they are committed, and their order is that of the log.
//! Not here: entries above `purged` (openraft applies them), a log that does not reach back far enough (`Gap`).

use super::{
    ReplicaError,
    entry::{self, Mark, RaftPayload, StoredMembership},
};
use crate::{
    machine::{Bookmark, MachineError, StateMachine},
    world,
};
use annal_wal::{GroupLog, LogIndex};
use std::sync::Arc;

/// History read at once.
const READ_BYTES: usize = 4 << 20;

/// Whether the log reaches back to where a state machine stands, so that a replica can be opened on the two.
///
/// Errors: `Gap`, `Format`.
pub fn check_reaches(group: &GroupLog, bookmark: Option<&Bookmark>) -> Result<(), ReplicaError> {
    owed(group, &Mark::of(bookmark)?).map(drop)
}

/// The entries a machine has yet to fold that openraft will not give it: from where it stands up to `purged`.
///
/// Errors: `Gap`: the log does not have them any more.
fn owed(group: &GroupLog, mark: &Mark) -> Result<Option<LogIndex>, ReplicaError> {
    let state = group.state();
    let Some(purged) = state.purged.map(|id| id.index).filter(|purged| next(mark) <= *purged) else {
        return Ok(None);
    };
    match state.oldest {
        Some(oldest) if oldest <= next(mark) => Ok(Some(purged)),
        oldest => {
            Err(ReplicaError::Gap { applied: mark.index(), oldest: oldest.unwrap_or(LogIndex(purged.0 + 1)) })
        }
    }
}

/// The index after where a machine stands.
fn next(mark: &Mark) -> LogIndex {
    LogIndex(mark.index().map_or(0, |applied| applied.0 + 1))
}

/// Folds history into the machine until it stands at `purged` at least.
///
/// Errors: `Gap`, `Log`, `Format`, `Machine`; what was folded stays folded.
pub(super) async fn catch_up(group: &GroupLog, machine: &Arc<dyn StateMachine>) -> Result<(), ReplicaError> {
    let mut mark = Mark::of(machine.bookmark().as_ref())?;
    let Some(purged) = owed(group, &mark)? else { return Ok(()) };
    tracing::info!(group = group.id().0, from = next(&mark).0, to = purged.0, "applying history again");
    while next(&mark) <= purged {
        let entries = group.history(next(&mark), READ_BYTES).await?;
        let mut commands = Vec::new();
        for log_entry in entries.into_iter().take_while(|e| e.id.index <= purged) {
            if log_entry.id.index != next(&mark) {
                let why = format!("the next entry of the history is {:?}", log_entry.id.index);
                return Err(ReplicaError::Hole { index: next(&mark), why });
            }
            let entry = entry::from_log(log_entry)?;
            mark.applied = Some(entry.log_id);
            match entry.payload {
                RaftPayload::Blank => {}
                RaftPayload::Normal(gathered) => commands.extend(gathered.iter()),
                RaftPayload::Membership(membership) => {
                    mark.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
        }
        let (machine, bookmark) = (machine.clone(), mark.to_bookmark());
        world::blocking(move || machine.apply(commands, bookmark))
            .await
            .unwrap_or_else(|lost| Err(MachineError::Poisoned(lost.to_string())))?;
    }
    Ok(())
}
