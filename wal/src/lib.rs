//! The log wing.
