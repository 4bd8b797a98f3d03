#!/usr/bin/env bash
# Searches beside a writer, against the same before it starts and after it has ended (docs/BENCHMARKS.md).
#
#   benches/beside_writer.sh BASE.fbin|.npy QUERY REST RATE EF [DISTANCE]
#
# The first REST points are loaded and left until they are at rest; then searches run alone, beside a writer of all that
# follows at RATE points a second for 20 s, and alone again once all graphs are built. `ROUNDS`: each with a server of its
# own (3). `BATCH`: points of a request of the writer (50). `CLIENTS`: searches under way at once (4). `SEARCHES`: how many
# a second, their times counted from when they were due; as fast as answers come if not given. Server and load share all
# processors.
set -euo pipefail
base="$1" query="$2" rest="$3" rate="$4" ef="$5" distance="${6:-cosine}"
rounds="${ROUNDS:-3}" clients="${CLIENTS:-4}" batch="${BATCH:-50}" held=(${SEARCHES:+--rate "$SEARCHES"})
source "$(dirname "$0")/node.sh"

# The first and the last points as files of their own: a point that equals one that is there is less work than a new one.
python3 - "$base" "$work/first" "$work/last" "$rest" <<'PY'
import ast, pathlib, struct, sys
source, first, last, rest = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
data = pathlib.Path(source).read_bytes()
if source.endswith(".fbin"):
    suffix, (rows, dim), begin = ".fbin", struct.unpack("<II", data[:8]), 8
    head = lambda n: struct.pack("<II", n, dim)
else:
    suffix, size = ".npy", struct.unpack("<H", data[8:10])[0]
    shape, begin = ast.literal_eval(data[10 : 10 + size].decode()), 10 + size
    rows, dim = shape["shape"]
    head = lambda n: data[:10] + repr(shape | {"shape": (n, dim)}).encode().ljust(size - 1) + b"\n"
width = (len(data) - begin) // rows
cut = begin + rest * width
pathlib.Path(first + suffix).write_bytes(head(rest) + data[begin:cut])
pathlib.Path(last + suffix).write_bytes(head(rows - rest) + data[cut:])
PY
first="$(echo "$work"/first.*)" last="$(echo "$work"/last.*)"

is_green() { curl -sf "$url/collections/c" | grep -q '"status":"green"'; }
search() {
  "$annal" bench search --url "$url" --collection c --queries "$query" --ef "$ef" --clients "$clients" "${held[@]}" --truth-sample 0 \
    --seconds 15 --pid "$pid" --json
}

for round in $(seq "$rounds"); do
  serve
  "$annal" bench ingest --url "$url" --collection c --vectors "$first" --distance "$distance" --batch 200 --until-green > "$work/loaded"
  sleep 45 # Deltas at rest join the graph, and the store has been read through once.
  search > "$work/before"
  "$annal" bench mixed --url "$url" --collection c --queries "$query" --vectors "$last" --id-offset "$rest" --ef "$ef" \
    --clients "$clients" "${held[@]}" --batch "$batch" --write-rate $((rate / batch)) --seconds 20 --pid "$pid" --json > "$work/beside"
  for _ in $(seq 240); do
    if is_green; then break; fi
    sleep 0.5
  done
  is_green
  sleep 10
  search > "$work/after"
  python3 - "$round" "$work/before" "$work/beside" "$work/after" <<'PY'
import json, sys
before, beside, after = (json.load(open(name)) for name in sys.argv[2:])
p99 = lambda report, what="search": report[what]["latency_ms"]["p99"]
alone = (p99(before) + p99(after)) / 2
print(
    f"round {sys.argv[1]}: p99 {p99(before):.2f} ms before, {p99(beside):.2f} beside, {p99(after):.2f} after:"
    f" {p99(beside) / alone:.2f} times what it is alone; {before['search']['operations_per_second']:.0f},"
    f" {beside['search']['operations_per_second']:.0f}, {after['search']['operations_per_second']:.0f} searches/s,"
    f" {beside['write']['operations_per_second']:.0f} points/s, upserts' p99 {p99(beside, 'write'):.1f} ms,"
    f" recall {beside['recall']:.4f}"
)
PY
  stop
  rm -rf "$work/data"
done
