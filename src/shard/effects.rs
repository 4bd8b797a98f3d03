//! What each command did to the points: mostly what it says, else what is written beside it.
//!
//! A feed that gives every committed mutation once cannot take commands at their word: a filter deletes what
//! passed at that position, a retry does nothing, a condition may not have held. For each command that is not
//! its own effect, apply writes a record by position, in the batch of the effect.
//!
//! Invariants: for every position from `effects_oldest` to the shard's own, the command there and the record
//! there (if any) give exactly what was changed. An upsert that names an id twice gives both writes, in order;
//! a delete gives each point that was there once.
//! Not here: the log (whoever asks brings the command), order and resumption of the feed.

use super::{
    Shard,
    apply::Fold,
    points::{self, EffectRecord, damaged, decode},
    search::ReadView,
};
use crate::{
    machine::MachineError,
    model::{Body, Command, Invalid, PointId, Position, command::PointWrite},
};
use prost::Message;
use std::sync::atomic::Ordering;

/// One change of one point.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The point is now this; its version is the command's position.
    Upsert(PointWrite),
    /// The point, which was there, is gone.
    Delete(PointId),
}

/// How a command that was applied changed the points.
pub(super) enum Effect {
    /// As it says.
    Own,
    /// It deleted these points and did nothing else.
    Deleted(Vec<PointId>),
}

/// What a command does if it is its own effect; `None` if it never is.
fn own(body: &Body) -> Option<Vec<Change>> {
    match body {
        Body::Configure(_) | Body::Retire => Some(Vec::new()),
        Body::Mirror { .. } | Body::Turn(_) | Body::Seed { .. } => Some(Vec::new()),
        Body::Upsert(writes) => Some(writes.iter().cloned().map(Change::Upsert).collect()),
        Body::Delete(ids) => Some(ids.iter().copied().map(Change::Delete).collect()),
        Body::DeleteMatching(_) => None,
        Body::Cas { point: Some(point), .. } => Some(vec![Change::Upsert(point.clone())]),
        Body::Cas { id, if_version: Some(_), point: None } => Some(vec![Change::Delete(*id)]),
        // What was not there was to go.
        Body::Cas { if_version: None, point: None, .. } => Some(Vec::new()),
    }
}

/// Whether a command changes points if it is carried out.
pub(super) fn may_change_points(body: &Body) -> bool {
    !matches!(
        body,
        Body::Configure(_) | Body::Retire | Body::Mirror { .. } | Body::Turn(_) | Body::Seed { .. }
    )
}

/// Records that one batch forgets while commands are applied.
const FORGET_AT_ONCE: usize = 256;

impl Fold<'_> {
    /// Writes down what the command at `position` did, where it does not say it itself.
    pub(super) fn put_effect(&mut self, position: Position, effect: Effect) {
        if let Effect::Deleted(ids) = effect {
            let record = EffectRecord { deleted: ids.into_iter().map(PointId::to_key).collect() };
            self.put_local(points::position_key(points::EFFECT, position), record.encode_to_vec());
        }
    }

    /// Forgets records below a position, but not too many at once; says whether all are gone.
    pub(super) fn forget_effects(&mut self, below: Position) -> Result<bool, MachineError> {
        let below = below.min(Position(self.state.position + 1));
        if below.0 <= self.state.effects_oldest {
            return Ok(true);
        }
        let key = |position| points::position_key(points::EFFECT, position);
        let from = key(Position(self.state.effects_oldest));
        let rows = self.rows(from, key(below), FORGET_AT_ONCE)?;
        let all = rows.len() < FORGET_AT_ONCE;
        let last = rows.last().map(|(key, _)| points::position_of_key(key)).transpose()?;
        self.state.effects_oldest = last.filter(|_| !all).map_or(below, Position::next).0;
        for (key, value) in rows {
            self.delete_local(key, &value);
        }
        Ok(all)
    }
}

impl ReadView {
    /// What `command`, which the log has at `position`, did to the points, in order.
    ///
    /// Errors: `Forgotten` if the log's beginning has passed the position (see
    /// [`crate::machine::StateMachine::history_starts_at`]); `Invalid` if the position is not applied here yet; `Damaged`.
    pub fn effect_of(&self, position: Position, command: &Command) -> Result<Vec<Change>, MachineError> {
        if position > self.position() {
            let why = format!("{position} is not applied yet, this is {}", self.position());
            return Err(Invalid::new("position", why).into());
        }
        let oldest = Position(self.state.effects_oldest);
        if position < oldest {
            return Err(MachineError::Forgotten { position, oldest });
        }
        let lost = || damaged("effect", format!("there is none of position {position}"));
        match self.store.get(&self.keyspace, points::position_key(points::EFFECT, position))? {
            None => own(&command.body).ok_or_else(lost),
            Some(value) => {
                let record: EffectRecord = decode("effect", value)?;
                let id = |key: &Vec<u8>| PointId::from_key(key).ok_or_else(|| damaged("effect", "an id"));
                record.deleted.iter().map(|key| id(key).map(Change::Delete)).collect()
            }
        }
    }
}

impl Shard {
    /// [`ReadView::effect_of`], on the shard as it stands now.
    pub fn effect_of(&self, position: Position, command: &Command) -> Result<Vec<Change>, MachineError> {
        self.view().effect_of(position, command)
    }

    /// Forgets the effects of positions below `below`, which the log no longer has.
    ///
    /// `history_starts_at` does the same bit by bit, while commands are applied. Nothing else may be applied
    /// meanwhile.
    #[cfg(test)]
    pub(super) fn forget_effects(&self, below: Position) -> Result<(), MachineError> {
        use crate::machine::StateMachine;
        self.history_starts_at(below);
        while self.view().state.effects_oldest < below.0.min(self.position().0 + 1) {
            // A batch without commands, at the same bookmark.
            let Some(bookmark) = self.bookmark() else { return Ok(()) };
            self.apply(Vec::new(), bookmark)?;
        }
        Ok(())
    }

    /// Where the log's history begins, as far as it was told.
    pub(super) fn history(&self) -> Position {
        Position(self.history_starts.load(Ordering::Relaxed))
    }
}
