#!/usr/bin/env bash
# Three hosts with real systemd become a mesh by the commands of docs/hosts.md. Agents are restarted and killed, the only server
# loses power, a host with instances is powered off, and both come back. Run as root by `make e2e`, which builds bin/meshagent;
# about a minute, and half a minute more the first time.
# Prints ok or FAIL for each check and fails when one did. KEEP=1 leaves the hosts up when it is done, for looking around.
set -euo pipefail
umask 022
cd "$(dirname "$0")/../.."
# shellcheck source=test/e2e/lib.sh
. test/e2e/lib.sh
needs

finish() {
  local rc=$?
  set +e
  trap '' INT TERM
  if [ $rc != 0 ]; then
    for h in h1 h2 h3; do
      [ -e "$run/$h.leader" ] || continue
      echo "--- the last the agent of $h said"
      on $h journalctl -u meshagent -n 30 --no-pager -o cat
    done
  fi
  if [ "${KEEP:-}" = 1 ]; then echo "Left as it is. A shell in h3: nsenter -t $(cat "$run/h3.leader") -a bash"; else down; fi
  exit $rc
}
trap finish EXIT
trap 'exit 130' INT TERM
down
up_dir

stage=$run/stage
mkdir -p "$stage"
cp bin/meshagent systemd/meshagent.service systemd/meshagent-capture.service systemd/meshagent.sysusers systemd/resolved.conf test/e2e/frontend.sh "$stage"

# --- what the hosts run ---------------------------------------------------------------------------------------------------
for unit in my-service:9080 web:9081; do
  cat >"$stage/${unit%:*}@.service" <<EOF
[Service]
ExecStart=/usr/bin/meshagent demo service --version %i --listen 127.0.0.1:${unit#*:}
DynamicUser=yes
EOF
done
for unit in frontend caller@ timer; do
  cat >"$stage/$unit.service" <<'EOF'
[Service]
Type=oneshot
EnvironmentFile=/run/calls.env
ExecStart=/mnt/stage/frontend.sh
StandardOutput=truncate:/run/calls.out
KillMode=mixed
DynamicUser=yes
EOF
done
cat >>"$stage/timer.service" <<'EOF'
DynamicUser=no
User=games
Slice=background.slice
EOF
service() { # NAME PORT VERSION
  printf 'name: %s\nport: %s\nservicePort: 8080\nprotocol: http\nlabels: {version: %s}\n' "$1" "$2" "$3"
  printf 'checks:\n- {name: alive, type: http, http: {path: /}, interval: 1s}\n'
}
# block LANGUAGE N [PAGE] prints the Nth block of a language of docs/hosts.md, or of another page.
block() { awk -v l="^\`\`\`$1\$" -v n="$2" '$0 ~ l {i++; p = i == n; next} /^```$/ {p = 0} p' "docs/${3:-hosts}.md"; }
{ block yaml 1; cat <<'EOF'; } >"$stage/frontend.yaml"
---
name: batch
port: 9091
protocol: http
callers: {units: [caller@1.service]}
---
name: report
port: 9092
protocol: http
callers: {users: [games]}
EOF
cat >"$stage/policy.yaml" <<'EOF'
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: my-service
spec:
  hosts:
  - my-service
  http:
  - match:
    - headers:
        end-user:
          exact: jason
    route:
    - destination:
        host: my-service
        subset: v2
  - route:
    - destination:
        host: my-service
        subset: v1
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: my-service
spec:
  host: my-service
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: my-service
spec:
  selector:
    matchLabels:
      app: my-service
  action: ALLOW
  rules:
  - from:
    - source:
        principals: [example.mesh/ns/default/sa/frontend]
EOF

block yaml 1 capture >"$stage/capture.yaml"
cat >"$stage/edge.yaml" <<'EOF'
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: edge
spec:
  selector:
    istio: ingressgateway
  servers:
  - port: {number: 8088, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: edge
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
  - route:
    - destination:
        host: web
EOF

# --- helpers --------------------------------------------------------------------------------------------------------------
install_on() { on "$1" sh -euxc "cd /mnt/stage; $(block sh 1)"; }
# operator SECOND BLOCK runs a block as the operator does whose ssh reaches the hosts.
operator() (
  second=$1
  ssh() { if [ "$1" = root@first ]; then on h1 "${@:2}"; else on "$second" "${@:2}"; fi; }
  eval "$2"
)
found() { operator none "$(block sh 2)"; }
join() { operator "$1" "$(block sh 3)"; }
mesh() { local h=$1; shift; on "$h" meshagent "$@"; }
alive() { [ "$(mesh "$1" members -o json | grep -c '"status": *"alive"')" = "$2" ]; }
declare_service() { # HOST NAME PORT VERSION
  service "$2" "$3" "$4" | on "$1" sh -euc "
    mkdir -p /etc/meshagent/services.d; cat >/etc/meshagent/services.d/$2.yaml
    install -m 644 /mnt/stage/$2@.service /etc/systemd/system/; systemctl daemon-reload; systemctl start $2@$4"
}
usable() { [ "$(mesh "$1" services show "$2" -o json | grep -c '"usable": *true')" = "$3" ]; }
prepare() { printf 'CALLS=%s\nURL=%s\nAS=%s\n' "$1" "$2" "${3:-}" | on h3 sh -c 'rm -f /run/calls.out; cat >/run/calls.env'; }
# get N STATUS TEXT UNIT URL [USER]: the unit on h3 makes N calls, and all of them have the status and the text.
get() {
  prepare "$1" "$5" "${6:-}"
  on h3 systemctl start "$4"
  sum_up
  [ "$(on h3 grep -c "^$2 .*$3" /run/calls.out)" = "$1" ]
}
# under_load URL CMD...: frontend.service calls one after the other from before CMD begins until 50 calls after its end.
under_load() {
  local rc=0
  prepare 1000000 "$1"
  on h3 systemctl start --no-block frontend
  try 10 more_calls_than 20 || { echo "there are no calls"; rc=1; }
  "${@:2}" || rc=$?
  try 30 more_calls_than $(($(on h3 sh -c 'wc -l </run/calls.out') + 50)) || { echo "the calls do not go on"; rc=1; }
  on h3 systemctl stop frontend
  return $rc
}
main_pid() { on "$1" systemctl show -P MainPID meshagent; }
restarts() { on "$1" systemctl show -P NRestarts meshagent; }
replaced() { # HOST: its agent hands over, and systemd knows the one that goes on
  local old n; old=$(main_pid "$1") n=$(restarts "$1")
  on "$1" systemctl reload meshagent
  try 20 is_another "$1" "$old" && on "$1" systemctl is-active meshagent && [ "$(restarts "$1")" = "$n" ]
}
is_another() { [ "$(main_pid "$1")" != "$2" ] && mesh "$1" status -o json | grep -q "\"pid\": *$(main_pid "$1"),"; }
more_calls_than() { [ "$(on h3 sh -c 'wc -l </run/calls.out')" -gt "$1" ]; }
# sum_up prints how many calls of each kind there were, how long the slowest took, and for how long calls failed.
sum_up() {
  on h3 awk '
    {if (match($0, /"version":"[^"]*"/)) what = substr($0, RSTART + 11, RLENGTH - 12); else {what = $0; sub(/^[^ ]* [^ ]* [^ ]* /, "", what)}
     n[$1 " " what]++; if ($3 > slowest) slowest = $3; if ($1 != 200) {if (!from) from = $2; to = $2}}
    END {for (k in n) print n[k] " x " k; print "slowest " slowest " s"; if (to) printf "failed for %.1f s\n", to - from}' /run/calls.out
}
# cut_once: of the calls under way when the agent was killed one may have been cut, and none was refused.
cut_once() { sum_up; [ "$(on h3 grep -cv '^200 ' /run/calls.out)" -le 1 ] && ! on h3 grep -i refused /run/calls.out; }
all_ok() { sum_up; ! on h3 grep -qv '^200 ' /run/calls.out; }
last_source() { on "$1" tail -n 1 /var/lib/meshagent/access.log; }
logged() { # HOST DIRECTION SOURCE: the last line of the access log
  local l; l=$(last_source "$1"); echo "$l"
  grep -q "\"direction\":\"$2\"" <<<"$l" && grep -q "\"src\":\"spiffe://example.mesh/$3" <<<"$l"
}
is_inactive() { [ "$(on "$1" systemctl is-active "$2")" = inactive ]; }
in_time() { # SECONDS CMD...
  local most=$1 start=$SECONDS; shift
  "$@" && echo "took $((SECONDS - start)) s" && [ $((SECONDS - start)) -le "$most" ]
}
owned() {
  local others; others=$(on "$1" find /var/lib/meshagent ! -user meshagent); echo "$others"
  [ -z "$others" ] && on "$1" test -s /var/lib/meshagent/membership.json
}
url=http://my-service.service.mesh web=http://web.service.mesh gateway=http://10.77.0.2:8088/

# rules prints all that nftables holds on h3, without what changes by itself.
rules() { on h3 nft list ruleset | sed -E 's/ expires [0-9msu]+//g'; }
theirs() { on h3 nft 'add table ip theirs; add chain ip theirs out { type nat hook output priority -100; }; add rule ip theirs out tcp dport 9 drop'; }
captures() { [ "$(on h3 nft list map inet meshagent targets | grep -c '10.99.0.1 . 80 .*: 127\.')" = "$1" ]; }
same() { diff <(echo "$1") <(echo "$2"); }

# discreet HOST: neither a join token nor a private key is in the whole journal or in the access log, where there is something in both.
discreet() { on "$1" sh -c 'journalctl -o cat >/run/all; cat /var/lib/meshagent/access.log* >>/run/all; grep -q msg=ready /run/all && ! grep -aE "mesh1\.[a-z]+\.|PRIVATE KEY" /run/all'; }
unbroken() { on "$1" sh -c 'journalctl -u meshagent -o cat >/run/said; grep -c msg=ready /run/said && ! grep -E "^panic|level=ERROR" /run/said'; }

# --- the run --------------------------------------------------------------------------------------------------------------
echo "== three hosts"
boot 3
for h in h1 h2 h3; do check "$h has the agent" install_on $h; done

echo "== one mesh"
check "h2, no member yet, may be told to start its agent" on h2 systemctl start meshagent
check "which does not run" is_inactive h2 meshagent
check "h1: meshagent init" found
check "h1: the agent runs" on h1 systemctl is-active meshagent
check "h2: meshagent join" join h2
check "h3: meshagent join" join h3
for h in h1 h2 h3; do
  await "$h sees three members" 20 alive $h 3
  check "$h: the agent's files are its own" owned $h
done
check "the agent is not root and may do one thing" on h3 sh -c '
  p=$(systemctl show -P MainPID meshagent)
  [ "$(stat -c %U /proc/$p)" = meshagent ] && grep -q "^CapEff:.*0000000000000400$" /proc/$p/status'

echo "== services"
check "h2: my-service v1" declare_service h2 my-service 9080 v1
check "h3: my-service v2" declare_service h3 my-service 9080 v2
for h in h1 h2 h3; do check "$h: web" declare_service $h web 9081 $h; done
check "h3: who calls as what" on h3 sh -c '
  install -m 644 /mnt/stage/frontend.yaml /etc/meshagent/services.d/
  install -m 644 /mnt/stage/frontend.service /mnt/stage/caller@.service /mnt/stage/timer.service /etc/systemd/system/; systemctl daemon-reload'
await "h3: my-service has two instances to call" 20 usable h3 my-service 2
await "h3: web has three instances to call" 20 usable h3 web 3

echo "== names"
check "systemd-resolved asks the agent" on h3 resolvectl query my-service.service.mesh
check "every program resolves the name" on h3 sh -c 'getent ahostsv4 my-service.service.mesh | grep -E "^127\.(6[4-9]|[7-9].|1[01].|12[0-7])\."'
check "a node has a name" on h3 sh -c 'getent ahostsv4 h2.node.mesh | grep "^10\.77\.0\.2 "'

echo "== calls and policy"
check "frontend.service calls my-service" get 10 200 '"version":"v[12]"' frontend $url
check "h3 logs the unit's identity" logged h3 outbound ns/default/sa/frontend
check "h1: meshagent apply" mesh h1 apply -f - --wait <"$stage/policy.yaml"
check "jason is served by v2, on the same host" get 20 200 '"version":"v2"' frontend $url jason
check "all others by v1, on h2" get 20 200 '"version":"v1"' frontend $url
check "h2 logs the identity that the certificate proved" logged h2 inbound ns/default/sa/frontend
check "caller@1.service is batch, and refused" get 5 403 . caller@1 $url
check "h3 logs who was refused" logged h3 outbound ns/default/sa/batch
check "caller@2.service is claimed by no service, and refused" get 5 403 . caller@2 $url
check "h3 logs that the host called" logged h3 outbound node/
check "timer.service, outside system.slice, is refused" get 5 403 . timer $url
check "h3 logs that it was known by its user" logged h3 outbound ns/default/sa/report

echo "== calls of an address of before the mesh"
theirs
before=$(rules)
check "h1: the address is declared" mesh h1 apply -f - --wait <"$stage/capture.yaml"
check "without capture nobody is there" get 1 000 . frontend http://10.99.0.1/
check "h3: calls to it are captured" on h3 sh -euxc "cd /mnt/stage; $(block sh 1 capture | grep -v apt-get)"
await "h3: the address leads to the agent" 10 captures 1
check "h3: meshagent capture list" on h3 sh -c 'meshagent capture list | grep -E "^10\.99\.0\.1:80 +old\.example\.com +127\."'
check "frontend.service calls the old address" get 10 200 '"version":"h[123]"' frontend http://10.99.0.1/
check "h3 logs the unit's identity" logged h3 outbound ns/default/sa/frontend
check "caller@1.service is batch there, too" get 1 200 . caller@1 http://10.99.0.1/
check "h3 logs it" logged h3 outbound ns/default/sa/batch
check "another port goes its own way" get 1 000 . frontend http://10.99.0.1:81/
installed=$(rules)
check "h3: the unit is restarted" on h3 systemctl restart meshagent-capture
await "h3: the address leads to the agent again" 10 captures 1
check "installed again, the rules are the same" same "$installed" "$(rules)"
check "h3: somebody flushes all rules" on h3 nft flush ruleset
await "they are there again" 10 captures 1
check "h3: the helper hangs" on h3 systemctl kill -s STOP meshagent-capture
await "the helper hangs: the kernel forgets" 20 captures 0
check "h3: it goes on" on h3 systemctl kill -s CONT meshagent-capture
await "h3: the address leads to the agent once more" 10 captures 1
check "h3: the agent hangs" on h3 systemctl kill -s STOP meshagent
await "the agent is dead for others: nothing is captured" 10 captures 0
check "h3: the agent goes on" on h3 systemctl kill -s CONT meshagent
await "h3: what it says counts again" 10 captures 1
theirs
check "h3: capture is stopped" on h3 systemctl disable --now meshagent-capture
check "stopped, the rules are as before" same "$before" "$(rules)"
check "h3: capture uninstall, where nothing is" on h3 meshagent capture uninstall
check "the rules are as before" same "$before" "$(rules)"

echo "== a host leaves and comes back; agents are killed, hang, and are restarted under load"
check "h3: meshagent leave" mesh h3 leave --yes
await "its agent has ended, and is not started again" 10 is_inactive h3 meshagent
check "h3: meshagent join" join h3
check "h3: the agent's files are its own" owned h3
check "h3: kill -9 of the agent" on h3 systemctl kill -s KILL meshagent
await "jason is served again" 20 get 5 200 '"version":"v2"' frontend $url jason
await "all others too" 20 get 5 200 '"version":"v1"' frontend $url
check "h2: a watchdog of 2 s" on h2 sh -euc '
  mkdir -p /run/systemd/system/meshagent.service.d; cd /run/systemd/system/meshagent.service.d
  printf "[Service]\nWatchdogSec=2\n" >watchdog.conf; systemctl daemon-reload; systemctl restart meshagent'
check "h2: the agent hangs" on h2 systemctl kill -s STOP meshagent
await "h2: systemd starts it anew" 15 on h2 sh -c '[ "$(systemctl show -P NRestarts meshagent)" = 1 ] && systemctl is-active meshagent'
for h in h1 h2 h3; do await "$h sees three members" 20 alive $h 3; done
await "h3: web has three instances to call" 20 usable h3 web 3
check "h3: systemctl reload meshagent: another process takes over" under_load $web replaced h3
check "no call of this host failed while the process changed" all_ok
sum_up | sed "s/^/      /"
check "h3: systemd has it as its own child" on h3 sh -c '! journalctl -u meshagent -o cat | grep "not our child"'
check "h2: systemctl reload meshagent" under_load $web replaced h2
check "no call from another host failed while the process changed" all_ok
sum_up | sed "s/^/      /"
check "h2: kill -9 of the process that took over" on h2 systemctl kill -s KILL meshagent
await "h2: systemd starts it anew" 15 on h2 sh -c '[ "$(systemctl show -P NRestarts meshagent)" = 2 ] && systemctl is-active meshagent'
await "h3: web has three instances to call" 20 usable h3 web 3
check "h2: systemctl restart meshagent" under_load $web on h2 systemctl restart meshagent
check "no call from another host failed" all_ok
sum_up | sed "s/^/      /"
check "h3: systemctl restart meshagent" under_load $web on h3 systemctl restart meshagent
check "no call of this host failed: those that came meanwhile waited" all_ok
sum_up | sed "s/^/      /"
await "h3: web has three instances to call" 20 usable h3 web 3

echo "== a gateway's agent is restarted and killed under load: systemd keeps its port"
check "h2 is a gateway" on h2 sh -c '
  printf "name: ingressgateway\nprotocol: gateway\nlabels: {istio: ingressgateway}\n" >/etc/meshagent/services.d/gateway.yaml'
check "h1: what it serves" mesh h1 apply -f - --wait <"$stage/edge.yaml"
await "clients outside of the mesh are served" 20 get 5 200 . frontend $gateway
check "h2: systemctl restart meshagent, with a gateway" under_load $gateway on h2 systemctl restart meshagent
check "no call of a client outside failed: those that came meanwhile waited" all_ok
sum_up | sed "s/^/      /"
check "h2: kill -9 of the agent, with a gateway" under_load $gateway on h2 systemctl kill -s KILL meshagent
check "no call of a client outside was refused, and one at most was cut" cut_once
sum_up | sed "s/^/      /"
for h in h2 h3; do await "$h sees three members" 20 alive $h 3; done

echo "== h1, the only server, loses power, with an instance of web"
check "the plug is pulled" under_load $web pull_plug h1
check "no call failed" all_ok
sum_up | sed "s/^/      /"
check "names resolve" on h3 sh -c 'resolvectl flush-caches; getent ahostsv4 my-service.service.mesh'
check "jason is served" get 100 200 '"version":"v2"' frontend $url jason
check "all others too" get 100 200 '"version":"v1"' frontend $url
await "h3 knows that h1 failed" 30 alive h3 2
check "policy still holds" get 5 403 . caller@1 $url

echo "== without a server an agent starts anew, and a host with instances is powered off"
check "h3: restart of the agent" on h3 systemctl restart meshagent
check "jason, right after" get 20 200 '"version":"v2"' frontend $url jason
await "others, as soon as h3 is in touch" 15 get 5 200 '"version":"v1"' frontend $url
for h in h2 h3; do await "$h sees the other of the two" 5 alive $h 2; done
check "h2 powers off" under_load $web poweroff h2
check "no call failed" all_ok
sum_up | sed "s/^/      /"
check "web is served by h3 alone" get 50 200 '"version":"h3"' frontend $web
check "v1 of my-service is gone: refused with its reason, not left hanging" get 3 503 . frontend $url
check "jason has v2, still" get 20 200 '"version":"v2"' frontend $url jason
check "with all others off, the agent ends in a few seconds" in_time 5 on h3 systemctl stop meshagent

echo "== the others come back"
power_on h1 h2
for h in h1 h2; do await "$h: the agent runs" 20 on $h systemctl is-active meshagent; done
check "h3: the agent is started" on h3 systemctl start meshagent
for h in h1 h2 h3; do await "$h sees three members" 30 alive $h 3; done
check "h2: its services run" on h2 systemctl start my-service@v1 web@h2
await "all others than jason are served by v1 again" 20 get 5 200 '"version":"v1"' frontend $url
check "h1: policy can be changed again" mesh h1 delete VirtualService my-service
await "and is live" 5 get 10 200 . frontend $url jason
for h in h1 h2 h3; do check "$h: no agent said that it broke" unbroken $h; check "$h: no secret was logged (SECURITY 65)" discreet $h; done

echo "== $((checks - failed)) of $checks checks hold, $SECONDS s"
[ "$failed" = 0 ]
