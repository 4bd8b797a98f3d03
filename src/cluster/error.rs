//! Why a request could not be served, sorted by what the caller can do next.

use super::catalog;
use crate::{
    machine::{MachineError, Rejection},
    model::{CollectionId, Effect, Invalid, Kind, PointId, Position, region::NOT_HOME},
    mutant::{self, Mutant},
    replica::ReplicaError,
    store::StoreError,
};
use serde::{Deserialize, Serialize};

/// Why a request could not be served. It travels between nodes as it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum ClusterError {
    /// The request does not fit.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such collection.
    #[error("Not found: Collection `{0}` doesn't exist!")]
    NoCollection(String),
    /// The collection of this id was dropped while the request was on its way; its name may be another's by now.
    #[error("Not found: collection {0} was dropped meanwhile")]
    Gone(CollectionId),
    /// No such point.
    #[error("Not found: No point with id {0} found")]
    NoPoint(PointId),
    /// The collection is there already.
    #[error("Wrong input: Collection `{0}` already exists!")]
    CollectionExists(String),
    /// No such alias, node, or shard.
    #[error("Not found: {0}")]
    NotFound(String),
    /// The catalog has no such thing; the caller says what was looked for.
    #[error("Not found: {0}")]
    Missing(String),
    /// The catalog has such a thing already; the caller says what was to be made.
    #[error("Wrong input: {0}")]
    Exists(String),
    /// The catalog has changed since the request was planned; it may be planned again.
    #[error("{0}")]
    Stale(String),
    /// The point is at another version than the request names.
    #[error("{message}")]
    Precondition {
        /// What was expected and what is there.
        message: String,
        /// The version it is at; `None` if it does not exist.
        version: Option<Position>,
    },
    /// A request was applied with other content under the same id, or a stale view was used.
    #[error("{0}")]
    Conflict(String),
    /// The token's log suffix is gone, or it is older than what is kept.
    #[error("{0}")]
    Expired(String),
    /// No replica's log reaches back to where a feed was to go on.
    #[error("{message}")]
    TooOld {
        /// Which shard, and how far it reaches.
        message: String,
        /// The oldest token that can be resumed.
        oldest: String,
    },
    /// Nothing was proposed.
    #[error("{0}")]
    Unavailable(String),
    /// The collection has its home in another region, or is on its way there; nothing was proposed.
    #[error("{0}")]
    NotHome(String),
    /// Too much is under way; nothing was proposed.
    #[error("{0}")]
    Limited(String),
    /// The deadline passed.
    #[error("{what} did not finish in time")]
    Timeout {
        /// What was waited for.
        what: String,
        /// Whether it may still take effect.
        effect: Effect,
    },
    /// The disk's floor is reached.
    #[error("{0}")]
    Full(String),
    /// Not built yet.
    #[error("{0} is not implemented yet")]
    Unimplemented(String),
    /// A component failed.
    #[error("{message}")]
    Internal {
        /// What failed.
        message: String,
        /// Damaged data, or anything else.
        corrupt: bool,
        /// Whether the request may have taken effect.
        effect: Effect,
    },
}

impl ClusterError {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            ClusterError::Invalid(_) => Kind::Invalid,
            ClusterError::NoCollection(_)
            | ClusterError::Gone(_)
            | ClusterError::NoPoint(_)
            | ClusterError::NotFound(_)
            | ClusterError::Missing(_) => Kind::NotFound,
            ClusterError::CollectionExists(_)
            | ClusterError::Conflict(_)
            | ClusterError::Exists(_)
            | ClusterError::Stale(_) => Kind::Conflict,
            ClusterError::Precondition { .. } => Kind::Precondition,
            ClusterError::Expired(_) | ClusterError::TooOld { .. } => Kind::Expired,
            ClusterError::Unavailable(_) | ClusterError::NotHome(_) => Kind::Unavailable,
            ClusterError::Limited(_) => Kind::Limited,
            ClusterError::Timeout { .. } => Kind::Timeout,
            ClusterError::Full(_) => Kind::Full,
            ClusterError::Unimplemented(_) => Kind::Unimplemented,
            ClusterError::Internal { corrupt: true, .. } => Kind::Corrupt,
            ClusterError::Internal { .. } => Kind::Internal,
        }
    }

    /// Whether the request may have changed something.
    pub fn effect(&self) -> Effect {
        match self {
            ClusterError::Timeout { .. } if mutant::is(Mutant::InfoAsFail) => Effect::None,
            ClusterError::Timeout { effect, .. } | ClusterError::Internal { effect, .. } => *effect,
            _ => Effect::None,
        }
    }
}

impl From<MachineError> for ClusterError {
    fn from(e: MachineError) -> Self {
        if let MachineError::Invalid(invalid) = e {
            return invalid.into();
        }
        if e.kind() == Kind::Expired {
            return ClusterError::Expired(e.to_string());
        }
        let corrupt = e.kind() == Kind::Corrupt;
        ClusterError::Internal { message: e.to_string(), corrupt, effect: Effect::Unknown }
    }
}

impl From<StoreError> for ClusterError {
    fn from(e: StoreError) -> Self {
        MachineError::from(e).into()
    }
}

impl From<ReplicaError> for ClusterError {
    fn from(e: ReplicaError) -> Self {
        let (message, effect) = (e.to_string(), e.effect());
        match e.kind() {
            Kind::Timeout => ClusterError::Timeout { what: message, effect },
            Kind::Full => ClusterError::Full(message),
            Kind::Expired => ClusterError::Expired(message),
            Kind::Limited => ClusterError::Limited(message),
            Kind::TooLarge => ClusterError::Invalid(Invalid::new("request", message)),
            Kind::Unavailable if effect == Effect::None => ClusterError::Unavailable(message),
            kind => ClusterError::Internal { message, corrupt: kind == Kind::Corrupt, effect },
        }
    }
}

impl From<Rejection> for ClusterError {
    /// A rejected command changed nothing, on every replica and for ever.
    fn from(rejection: Rejection) -> Self {
        let Rejection { code, message, version } = rejection;
        match code.as_str() {
            "expired" => ClusterError::Expired(message),
            NOT_HOME => ClusterError::NotHome(message),
            "version_mismatch" => ClusterError::Precondition { message, version },
            catalog::EXISTS => ClusterError::Exists(message),
            catalog::MISSING => ClusterError::Missing(message),
            catalog::STALE => ClusterError::Stale(message),
            _ => ClusterError::Conflict(message),
        }
    }
}

impl ClusterError {
    /// The same error, with the effect of a request of which other parts went through or may have.
    pub(super) fn in_part(self) -> Self {
        self.in_doubt("some shards took the request, one did not")
    }

    /// The same error, with an effect that is unknown for a reason the error does not know.
    pub(super) fn in_doubt(self, why: &str) -> Self {
        let effect = Effect::Unknown;
        match self {
            ClusterError::Timeout { what, .. } => ClusterError::Timeout { what, effect },
            ClusterError::Internal { message, corrupt, .. } => {
                ClusterError::Internal { message, corrupt, effect }
            }
            other => ClusterError::Internal { message: format!("{why}: {other}"), corrupt: false, effect },
        }
    }

    /// The same error of a read, which never has an effect.
    pub(super) fn of_read(self) -> Self {
        let effect = Effect::None;
        match self {
            ClusterError::Timeout { what, .. } => ClusterError::Timeout { what, effect },
            ClusterError::Internal { message, corrupt, .. } => {
                ClusterError::Internal { message, corrupt, effect }
            }
            other => other,
        }
    }

    /// Whether the same may succeed at another replica, or later.
    pub(super) fn may_pass(&self) -> bool {
        let kinds = [Kind::Unavailable, Kind::Timeout, Kind::Limited, Kind::Internal, Kind::Corrupt];
        kinds.contains(&self.kind()) && !matches!(self, ClusterError::NotHome(_))
    }
}
