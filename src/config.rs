//! A node's settings.
