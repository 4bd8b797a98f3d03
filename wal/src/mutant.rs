//! Planted bugs of the log: `skip_fsync`, `purge_other_group`, `ignore_eio`, chosen by `ANNAL_MUTANT`.
//!
//! Without the feature `mutants` none is there.

/// Whether this bug is planted in this process.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_: &str) -> bool {
    false
}

/// Whether this bug is planted in this process.
#[cfg(feature = "mutants")]
pub(crate) fn is(name: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("ANNAL_MUTANT").ok()).as_deref() == Some(name)
}
