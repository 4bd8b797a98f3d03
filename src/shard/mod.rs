//! The shard floor.
