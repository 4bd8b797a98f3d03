//! The replica floor.
