//! The `annal` binary.
fn main() {}
