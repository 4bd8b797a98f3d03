//! The LSM store under every state machine: fjall, named in this file only.

/// The store failed: an I/O error or damage below it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);
