# A node of its own for the benches beside this file, which source it: `$annal` at `$url`, with `$work/data`; `$pid` once it serves.
# It ends, and its folder goes, when the bench does. `group`: a control group that it is to be in.
annal="${ANNAL:-target/release/annal}"
url=http://127.0.0.1:16333
work="$(mktemp -d -p "${TMPDIR:-/tmp}")"
group=""
pid=""

stop() {
  kill "$pid" && wait "$pid" || true
  pid=""
}

finish() {
  if [ -n "$pid" ]; then stop; fi
  if [ -n "$group" ]; then rmdir "$group"; fi
  rm -rf "$work"
}
trap finish EXIT

serve() {
  (
    if [ -n "$group" ]; then echo "$BASHPID" > "$group/cgroup.procs"; fi
    exec "$annal" serve --data-dir "$work/data" --http 127.0.0.1:16333 --peer 127.0.0.1:16335 --grpc off --node n1
  ) > "$work/log" 2>&1 &
  pid=$!
  for _ in $(seq 600); do
    if curl -sf "$url/readyz" > "$work/ready"; then return; fi
    sleep 0.1
  done
  cat "$work/log" >&2
  exit 1
}
