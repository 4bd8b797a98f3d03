//! What every error of every floor answers: what can the caller do, and did it have an effect?
//!
//! Source: the table in `docs/ARCHITECTURE.md`; sorted by remedy, as slatedb sorts its errors.

use serde::{Deserialize, Serialize};

/// What the caller can do about an error. The only map from here to an HTTP status is `api/error.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Fix the request.
    Invalid,
    /// Send less at once: the request or one of its parts passes a limit.
    TooLarge,
    /// Present a key.
    Unauthorized,
    /// Get rights.
    Forbidden,
    /// Create it first.
    NotFound,
    /// Read again: it exists already, or what the caller saw is out of date.
    Conflict,
    /// Read the version in the answer.
    Precondition,
    /// Start anew from a snapshot.
    Expired,
    /// Slow down.
    Limited,
    /// Retry.
    Unavailable,
    /// Read, then retry.
    Timeout,
    /// Add space.
    Full,
    /// Not built yet.
    Unimplemented,
    /// Call us: data does not match its checksum.
    Corrupt,
    /// Call us: a bug, or a component that failed and stopped.
    Internal,
}

/// Whether a failed request may have changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Certainly nothing was changed.
    None,
    /// It may or may not have been applied, now or later.
    Unknown,
}

impl Effect {
    /// The word in the `Annal-Effect` header.
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::None => "none",
            Effect::Unknown => "unknown",
        }
    }
}

/// A request that does not fit: names the field and the limit. Effect: none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{field}: {why}")]
pub struct Invalid {
    /// Path of the field, as the user wrote it (`points[3].vector`).
    pub field: String,
    /// What is wrong with it, with the quantities.
    pub why: String,
}

impl Invalid {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Invalid { field: field.into(), why: why.into() }
    }

    /// The same error seen from one level up: `points[3]` + `vector` becomes `points[3].vector`.
    pub fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field =
            if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        self
    }
}
