//! The report of a run.

use crate::{history::History, run::Results};

/// One page.
pub fn page(_history: &History, results: &Results) -> Result<String, String> {
    serde_json::to_string(results).map_err(|e| e.to_string())
}
