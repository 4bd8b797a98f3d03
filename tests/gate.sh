#!/usr/bin/env bash
# The one gate, run alike by hand and by CI; it changes no file of the project.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
if command -v cargo-deny >/dev/null; then cargo deny --log-level error check; else echo "cargo-deny is not installed: skipped"; fi
# One build for all that follows. The planted bugs are in it, and sleep until one is named.
tested=(--workspace --features mutants)
cargo test "${tested[@]}" --no-fail-fast

# The proof in small: real nodes, broken for a while; simulated ones under more seeds; and every planted bug that a
# simulation shows must be found. `docs/CONSISTENCY.md` tells of the long runs.
programs="${CARGO_TARGET_DIR:-target}/debug"
runs="$(mktemp -d)"
trap 'rm -rf "$runs"' EXIT
# Gives the run a second seed if the first one broke too little to say anything (3); a violation (1) is final.
short() {
  local name="$1" seed status=0
  for seed in "$name" "10$name"; do
    "$programs/annal-jepsen" run --nodes 3 --time-limit 20 --net proxy --bin "$programs/annal" \
      --out "$runs/$seed" --seed "$seed" "${@:2}" && return 0 || status=$?
    [ "$status" -eq 3 ] || return "$status"
  done
  return "$status"
}
short 1 --workload register,tail --nemesis kill,partition
short 2 --workload set,batch --nemesis pause,slow
short 3 --workload search,dedup --nemesis snapshot
cargo test --quiet "${tested[@]}" --test simulation -- --seed 1 --seeds 120
cargo test --quiet "${tested[@]}" --test simulation -- --mutant all
