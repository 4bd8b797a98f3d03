//! The consistency harness, not built yet: every command exits 2 and says so.
fn main() {}
