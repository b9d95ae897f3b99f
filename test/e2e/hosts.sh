#!/usr/bin/env bash
# Three hosts with real systemd become a mesh by the commands of docs/hosts.md, and lose first their only server, then a host
# with instances. Run as root by `make e2e`, which builds bin/meshagent; about a minute, and half a minute more the first time.
# Prints ok or FAIL for each check and fails when one did. KEEP=1 leaves the hosts up when it is done, for looking around.
set -euo pipefail
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
down
mkdir -p "$run"
trap finish EXIT
trap 'exit 130' INT TERM

stage=$run/stage
mkdir -p "$stage"
cp bin/meshagent systemd/meshagent.service systemd/meshagent.sysusers systemd/resolved.conf test/e2e/frontend.sh "$stage"

# --- what the hosts run ---------------------------------------------------------------------------------------------------
cat >"$stage/my-service.service" <<'EOF'
[Service]
EnvironmentFile=/etc/default/my-service
ExecStart=/usr/bin/meshagent demo service --version ${VERSION} --listen 127.0.0.1:9080
DynamicUser=yes
EOF
cat >"$stage/web@.service" <<'EOF'
[Service]
ExecStart=/usr/bin/meshagent demo service --version %i --listen 127.0.0.1:9081
DynamicUser=yes
EOF
for unit in frontend caller@; do
  cat >"$stage/$unit.service" <<'EOF'
[Service]
Type=oneshot
EnvironmentFile=/run/calls.env
ExecStart=/mnt/stage/frontend.sh
StandardOutput=truncate:/run/calls.out
DynamicUser=yes
EOF
done
service() { # NAME PORT VERSION
  printf 'name: %s\nport: %s\nservicePort: 8080\nprotocol: http\nlabels: {version: %s}\n' "$1" "$2" "$3"
  printf 'checks:\n- {name: alive, type: http, http: {path: /}, interval: 1s}\n'
}
cat >"$stage/frontend.yaml" <<'EOF'
name: frontend
port: 9090
protocol: http
callers: {units: [frontend.service]}
---
name: batch
port: 9091
protocol: http
callers: {units: [caller@1.service]}
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
        principals: [e2e.mesh/ns/default/sa/frontend]
EOF

# --- helpers --------------------------------------------------------------------------------------------------------------
# install_on HOST runs the first block of commands of docs/hosts.md, as it stands there.
install_on() { on "$1" sh -euxc "cd /mnt/stage; $(awk '/^```sh$/ {p = 1; next} /^```$/ {if (p) exit} p' docs/hosts.md)"; }
join() { on h1 meshagent token create | on "$1" meshagent join -; }
mesh() { local h=$1; shift; on "$h" meshagent "$@"; }
alive() { [ "$(mesh "$1" members -o json | grep -c '"status": *"alive"')" = "$2" ]; }
declare_service() { # HOST NAME PORT VERSION UNIT
  service "$2" "$3" "$4" | on "$1" sh -c "mkdir -p /etc/meshagent/services.d && cat >/etc/meshagent/services.d/$2.yaml"
  on "$1" sh -c "echo VERSION=$4 >/etc/default/my-service; install -m 644 /mnt/stage/*my-service.service /mnt/stage/web@.service /etc/systemd/system/; systemctl daemon-reload; systemctl start $5"
}
usable() { [ "$(mesh "$1" services show "$2" -o json | grep -c '"usable": *true')" = "$3" ]; }
# calls UNIT N URL [USER] has the unit on h3 make calls and prints how many lines of each kind came of it.
calls() {
  printf 'CALLS=%s\nURL=%s\nAS=%s\n' "$2" "$3" "${4:-}" | on h3 sh -c 'cat >/run/calls.env'
  on h3 systemctl start "$1"
  on h3 cat /run/calls.out
}
# get N STATUS TEXT UNIT URL [USER]: all of N calls have the status and the text.
get() {
  local n=$1 status=$2 text=$3 out; shift 3
  out=$(calls "$1" "$n" "$2" "${3:-}")
  echo "$out" | sort | uniq -c
  [ "$(grep -c "^$status .*$text" <<<"$out")" = "$n" ]
}
last_source() { on "$1" tail -n 1 /var/lib/meshagent/access.log; }
logged() { # HOST DIRECTION SOURCE: the last line of the access log
  local l; l=$(last_source "$1"); echo "$l"
  grep -q "\"direction\":\"$2\"" <<<"$l" && grep -q "\"src\":\"spiffe://e2e.mesh/$3" <<<"$l"
}
is_inactive() { [ "$(on "$1" systemctl is-active "$2")" = inactive ]; }
in_time() { # SECONDS CMD...
  local most=$1 start=$SECONDS; shift
  "$@" && echo "took $((SECONDS - start)) s" && [ $((SECONDS - start)) -le "$most" ]
}
owned() { local others; others=$(on "$1" find /var/lib/meshagent ! -user meshagent); echo "$others"; [ -z "$others" ]; }
url=http://my-service.service.mesh

# --- the run --------------------------------------------------------------------------------------------------------------
echo "== three hosts"
boot 3
for h in h1 h2 h3; do check "$h has the agent" install_on $h; done

echo "== one mesh"
check "h2, no member yet, may be told to start its agent" on h2 systemctl start meshagent
check "which does not run" is_inactive h2 meshagent
check "h1: meshagent init" mesh h1 init --trust-domain e2e.mesh
check "h1: the agent runs" on h1 systemctl is-active meshagent
check "h2: meshagent join" join h2
check "h3: meshagent join" join h3
for h in h1 h2 h3; do
  await "$h sees three members" 20 alive $h 3
  check "$h: the agent's files are its own" owned $h
done
check "the agent is not root and may do one thing" on h3 sh -c '
  p=$(systemctl show -P MainPID meshagent); [ "$(ps -o user= -p $p)" = meshagen+ ] || [ "$(ps -o user= -p $p)" = meshagent ] || exit 1
  grep -q "^CapEff:.*0000000000000400$" /proc/$p/status'

echo "== services"
check "h2: my-service v1" declare_service h2 my-service 9080 v1 my-service
check "h3: my-service v2" declare_service h3 my-service 9080 v2 my-service
check "h2: web" declare_service h2 web 9081 v1 web@v1
check "h3: web" declare_service h3 web 9081 v2 web@v2
check "h3: frontend and batch" on h3 sh -c 'install -m 644 /mnt/stage/frontend.yaml /etc/meshagent/services.d/; install -m 644 /mnt/stage/frontend.service /mnt/stage/caller@.service /etc/systemd/system/; systemctl daemon-reload'
await "h3: my-service has two instances to call" 20 usable h3 my-service 2
await "h3: web has two instances to call" 20 usable h3 web 2

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
check "h2 or h3 logs who was refused" logged h3 outbound ns/default/sa/batch
check "caller@2.service is the host, and refused" get 5 403 . caller@2 $url
check "h3 logs the host's identity" logged h3 outbound node/

echo "== a host leaves and comes back; an agent is killed"
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

echo "== h1, the only server, loses power"
pull_plug h1
check "the name resolves" on h3 sh -c 'resolvectl flush-caches; getent ahostsv4 my-service.service.mesh'
check "jason: 100 calls" get 100 200 '"version":"v2"' frontend $url jason
check "others: 100 calls" get 100 200 '"version":"v1"' frontend $url
await "h3 knows that h1 failed" 30 alive h3 2
check "policy still holds" get 5 403 . caller@1 $url

echo "== without a server an agent starts anew, and a host with instances is powered off"
check "h3: restart of the agent" on h3 systemctl restart meshagent
check "jason, right after" get 20 200 '"version":"v2"' frontend $url jason
await "others, as soon as h3 is in touch" 15 get 5 200 '"version":"v1"' frontend $url
for h in h2 h3; do await "$h sees the other of the two" 5 alive $h 2; done
printf 'CALLS=400\nURL=http://web.service.mesh\nAS=\n' | on h3 sh -c 'cat >/run/calls.env'
on h3 systemctl start --no-block frontend
check "h2 powers off under load" poweroff h2
await "the calls are done" 60 is_inactive h3 frontend
check "web: none of 400 calls failed" on h3 sh -c 'cut -c-20 /run/calls.out | sort | uniq -c; [ "$(grep -c "^200 " /run/calls.out)" = 400 ]'
check "web: 50 more calls are all served by h3" get 50 200 '"version":"v2"' frontend http://web.service.mesh
check "v1 of my-service is gone: refused with its reason, not left hanging" get 3 503 . frontend $url
check "jason has v2, still" get 20 200 '"version":"v2"' frontend $url jason
check "with all others off, the agent ends in a few seconds" in_time 5 on h3 systemctl stop meshagent

echo "== $((checks - failed)) of $checks checks hold"
[ "$failed" = 0 ]
