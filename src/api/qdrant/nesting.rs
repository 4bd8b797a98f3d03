//! How deep settings that are kept as they are may be nested.

use crate::api::error::{ApiError, Result};
use serde_json::{Map, Value};

/// Levels of lists and objects in a setting: the catalog keeps it some levels deeper, and JSON is read down to 127.
pub(super) const NESTING_MAX: usize = 64;

/// Errors: names the setting that is nested deeper.
pub(super) fn check_nesting(settings: &Map<String, Value>) -> Result<()> {
    fn nesting(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(nesting).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(nesting).max().unwrap_or(0),
            _ => 0,
        }
    }
    match settings
        .iter()
        .map(|(name, value)| (name, nesting(value)))
        .find(|(_, levels)| *levels > NESTING_MAX)
    {
        Some((name, levels)) => {
            let why = format!("is nested {levels} levels deep, at most {NESTING_MAX} are kept");
            Err(ApiError::invalid(name.clone(), why))
        }
        None => Ok(()),
    }
}
