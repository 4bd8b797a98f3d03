#!/usr/bin/env bash
# The one gate, run alike by hand and by CI; it changes no file of the project.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
if command -v cargo-deny >/dev/null; then cargo deny --log-level error check; else echo "cargo-deny is not installed: skipped"; fi
cargo test --workspace --no-fail-fast
