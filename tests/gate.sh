#!/usr/bin/env bash
# The one gate, run alike by hand and by CI; it changes no file of the project.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
if command -v cargo-deny >/dev/null; then cargo deny --log-level error check; else echo "cargo-deny is not installed: skipped"; fi
cargo test --workspace --no-fail-fast

# The proof in small: real nodes, broken for a while; simulated ones under more seeds; and every planted bug that a
# simulation shows must be found. `docs/CONSISTENCY.md` tells of the long runs.
programs="${CARGO_TARGET_DIR:-target}/debug"
runs="$(mktemp -d)"
trap 'rm -rf "$runs"' EXIT
short() { "$programs/annal-jepsen" run --nodes 3 --time-limit 20 --net proxy --bin "$programs/annal" --out "$runs/$1" "${@:2}"; }
short 1 --workload register,tail --nemesis kill,partition --seed 1
short 2 --workload set,batch --nemesis pause,slow --seed 2
short 3 --workload search,dedup --nemesis kill,snapshot,wipe --seed 3
cargo sim --seed 1 --seeds 120
cargo test --quiet --workspace --features mutants --test simulation -- --mutant all
