#!/usr/bin/env bash
# A collection on disk that is larger than the memory a node may use: recall and latency (docs/BENCHMARKS.md).
#
#   benches/on_disk.sh BASE.fbin|.npy QUERY TRUTH [DISTANCE]     (as root, for the control group)
#
# The vectors are loaded without a limit, at rest in one graph; then the node is started again in a control group whose
# memory is limited to a quarter of the vectors' bytes (f32), page cache included, and searched. `MEMORY`: another limit in
# bytes. `CODES_IN_MEMORY=true`: only links and vectors are read from the disk.
set -euo pipefail
base="$1" query="$2" truth="$3" distance="${4:-cosine}"
source "$(dirname "$0")/node.sh"

# Caches, a delta and segments of the log (which are read whole) of a size that fits; the same for both halves.
export ANNAL__STORE__CACHE_BYTES=$((2 << 20)) ANNAL__STORE__MEMTABLE_BYTES=$((1 << 20)) ANNAL__LOG__MEMORY_BYTES=$((1 << 20))
export ANNAL__INDEX__SEAL_BYTES=$((2 << 20)) ANNAL__SEARCH__RECALL_SAMPLE=0
export ANNAL__LOG__SEGMENT_BYTES=$((4 << 20)) ANNAL__LIMITS__REQUEST_BYTES_MAX=$((2 << 20))

serve
read -r rows dim < <(python3 - "$base" <<'PY'
import struct, sys
file = open(sys.argv[1], "rb")
if sys.argv[1].endswith(".fbin"):
    print(*struct.unpack("<II", file.read(8)))
else:
    import ast
    file.seek(8)
    print(*ast.literal_eval(file.read(struct.unpack("<H", file.read(2))[0]).decode())["shape"])
PY
)
curl -sf -X PUT "$url/collections/c" -H 'content-type: application/json' -d \
  "{\"vectors\":{\"size\":$dim,\"distance\":\"$(tr '[:lower:]' '[:upper:]' <<< "${distance:0:1}")${distance:1}\",\"on_disk\":true,\"quantization_config\":{\"scalar\":{\"type\":\"int8\",\"always_ram\":${CODES_IN_MEMORY:-false}}}},\"shard_number\":1,\"replication_factor\":1}" > "$work/made"
"$annal" bench ingest --url "$url" --collection c --vectors "$base" --distance "$distance" --batch 50 --clients 2 --until-green --pid "$pid"
sleep 8 # At rest the last delta joins the graph.
echo "at rest, without a limit: $(grep RssAnon "/proc/$pid/status" | tr -s '\t ' ' ')"
stop

limit="${MEMORY:-$((rows * dim))}" # A quarter of four bytes a number.
if [ -d /sys/fs/cgroup/memory ]; then
  group=/sys/fs/cgroup/memory/annal-on-disk limit_file=memory.limit_in_bytes peak_file=memory.max_usage_in_bytes
else
  group=/sys/fs/cgroup/annal-on-disk limit_file=memory.max peak_file=memory.peak
fi
mkdir "$group"
echo "$limit" > "$group/$limit_file"
serve
echo "limit $((limit >> 20)) MiB, for $((rows * dim * 4 >> 20)) MiB of vectors"
for ef in 64 128 256; do
  echo "ef $ef, one client"
  "$annal" bench search --url "$url" --collection c --queries "$query" --truth "$truth" --ef "$ef" --clients 1 --count 2000 --pid "$pid"
done
"$annal" bench search --url "$url" --collection c --queries "$query" --truth "$truth" --ef 128 --clients 4 --count 4000 --pid "$pid"
echo "peak $(($(cat "$group/$peak_file") >> 20)) MiB; $(grep RssAnon "/proc/$pid/status" | tr -s '\t ' ' ')"
