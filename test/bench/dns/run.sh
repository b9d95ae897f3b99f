#!/bin/sh
# Puts the same load on meshagent's DNS server and on unbound, both serving the same 1,000 names from memory, one after the
# other on this machine, and prints a table. Needs Debian or a machine that has dnsperf and unbound already.
# Environment: SECONDS_EACH (10) of load per run, CLIENTS (20) sockets of the load tool.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
each=${SECONDS_EACH:-10} clients=${CLIENTS:-20}
missing=
command -v dnsperf >/dev/null || missing="$missing dnsperf"
command -v unbound >/dev/null || missing="$missing unbound"
if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || { echo "install$missing and run this again" >&2; exit 1; }
	apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >&2
fi
tmp=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || :; fi; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

(cd "$here" && go build -o "$tmp/meshdns" .)
"$tmp/meshdns" -names dnsperf >"$tmp/names"
cpus=$(nproc)
{
	printf 'server:\n interface: 127.0.0.1\n port: 8602\n do-daemonize: no\n username: ""\n chroot: ""\n directory: "%s"\n' "$tmp"
	printf ' pidfile: ""\n use-syslog: no\n logfile: "%s/unbound.log"\n num-threads: %s\n so-reuseport: yes\n' "$tmp" "$cpus"
	printf ' access-control: 127.0.0.0/8 allow\n local-zone: "mesh." static\n'
	"$tmp/meshdns" -names unbound | sed 's/^/ /'
	printf 'remote-control:\n control-enable: no\n'
} >"$tmp/unbound.conf"

# measure NAME PORT MODE: the server of that name runs as $pid.
measure() {
	i=0
	until dnsperf -s 127.0.0.1 -p "$2" -d "$tmp/names" -m "$3" -n 1 -c 1 -l 2 2>/dev/null | grep -q 'NOERROR'; do
		i=$((i + 1))
		[ $i -lt 20 ] && kill -0 "$pid" || { echo "$1 does not answer; its log:" >&2; cat "$tmp"/*.log >&2; exit 1; }
	done
	dnsperf -s 127.0.0.1 -p "$2" -d "$tmp/names" -m "$3" -l "$each" -c "$clients" -T 1 >"$tmp/out" 2>&1
	awk -v name="$1" -v mode="$3" -v rss="$(awk '/VmRSS/ { print $2 }' "/proc/$pid/status")" '
		/Queries per second/ { qps = $4 }
		/Queries lost/ { lost = $3 }
		/Response codes/ { codes = $3 " " $5 }
		/Average Latency/ { avg = $4 * 1e6; max = $0; sub(/.*max /, "", max); sub(/\).*/, "", max) }
		/Latency StdDev/ { dev = $4 * 1e6 }
		END { printf "| %-9s | %s | %9.0f | %7.0f | %7.0f | %7.1f | %4d | %6.1f | %s |\n", name, mode, qps, avg, dev, max * 1e3, lost, rss / 1024, codes }' "$tmp/out"
}

echo "$(nproc) CPUs shared with dnsperf, $(dpkg-query -W -f "dnsperf \${Version}" dnsperf 2>/dev/null || echo dnsperf), $(unbound -V | sed -n 's/^Version/unbound/p'), $(go version | cut -d' ' -f3), load of $each s from $clients sockets"
echo '| server    | mode | queries/s | mean µs | stddev µs | max ms | lost | RSS MiB | answers |'
echo '|---|---|---|---|---|---|---|---|---|'
for mode in udp tcp; do
	"$tmp/meshdns" -addr 127.0.0.1:8601 2>"$tmp/meshdns.log" & pid=$!
	measure meshagent 8601 $mode
	kill "$pid"; wait "$pid" || :
	unbound -c "$tmp/unbound.conf" 2>"$tmp/unbound-err.log" & pid=$!
	measure unbound 8602 $mode
	kill "$pid"; wait "$pid" || :
	pid=
done
