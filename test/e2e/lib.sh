# shellcheck shell=bash disable=SC2016,SC2154 # inner shells expand what they are given; stage is of who sources this
# Sourced by hosts.sh: test hosts with real systemd as PID 1, without a container engine, and checks that say what they found.
# Everything is in namespaces of its own: h1..hN are 10.77.0.1..N on a bridge that nothing else is on. Functions:
#   up_dir, down           make $run, before all else, and end everything
#   rootfs                 prints the path of a minimal Debian root, made when it is not in the cache yet (half a minute)
#   boot N                 boots h1..hN; /mnt/stage is the directory $stage, read-only
#   on hI CMD...           runs a command in a host
#   poweroff hI            powers a host off as its operator would; pull_plug hI ends it in the midst of everything;
#                          power_on hI... boots hosts again, with what they had on disk
#   check TEXT CMD...      runs a command, prints ok or FAIL and why, counts; never fails itself
#   await TEXT SECONDS CMD...   the same, but tries until it is so; try SECONDS CMD... is the part of it that waits
# Needs root. cgroup2 is mounted afresh for each host: the machine itself may run the hybrid layout.

run=/run/meshagent-e2e
cache=${XDG_CACHE_HOME:-/var/cache}/meshagent-e2e
net=meshe2e # begins the names of the network namespaces and control groups
make_root=(mmdebstrap --quiet --variant=minbase
  --include=systemd,systemd-sysv,dbus,iproute2,libnss-resolve,systemd-resolved,curl,ca-certificates,procps,nftables
  --customize-hook='rm -f "$1/etc/hostname"' # else all hosts have the machine's name
  bookworm)

die() { echo "e2e: $*" >&2; exit 1; }

# needs checks what the machine has to have, and that no other run is on.
needs() {
  [ "$(id -u)" = 0 ] || die "needs root: it makes namespaces (sudo make e2e)"
  local lacks=() x
  for x in systemd-nspawn:systemd-container mmdebstrap:mmdebstrap ip:iproute2 nsenter:util-linux pgrep:procps flock:util-linux; do
    command -v "${x%%:*}" >/dev/null || lacks+=("${x##*:}")
  done
  [ ${#lacks[@]} = 0 ] || die "the machine lacks programs: apt-get install -y --no-install-recommends ${lacks[*]}"
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock -n 9 || die "another run is on: its names and addresses would be the same"
}

rootfs() {
  local dir; dir=$cache/root-$(echo "${make_root[@]}" | sha256sum | cut -c1-12)
  if [ ! -d "$dir" ]; then
    rm -rf "$dir.new"
    "${make_root[@]}" "$dir.new" >&2
    mv "$dir.new" "$dir"
  fi
  echo "$dir"
}

boot() {
  local i h
  ip netns add $net-sw
  ip -n $net-sw link add br0 type bridge
  ip -n $net-sw link set br0 up
  for i in $(seq 1 "$1"); do
    h=h$i
    ip netns add "$net-$h"
    ip -n "$net-$h" link add host0 type veth peer name "p$i" netns $net-sw
    ip -n $net-sw link set "p$i" master br0 up
    ip -n "$net-$h" link set lo up
    ip -n "$net-$h" addr add "10.77.0.$i/24" dev host0
    ip -n "$net-$h" link set host0 up
    ip -n "$net-$h" route add default via 10.77.0.254 # nobody: the bridge leads nowhere
  done
  # shellcheck disable=SC2046 # words are meant
  power_on $(seq -f h%g 1 "$1")
}

# The disk of a host is an overlay over the root, so it is there again after a loss of power.
power_on() { # HOST...
  local root base=/sys/fs/cgroup h
  root=$(rootfs)
  [ -d /sys/fs/cgroup/unified ] && base=/sys/fs/cgroup/unified
  for h; do
    ip -n $net-sw link set "p${h#h}" up
    mkdir -p "$base/$net-$h" "$run/$h"/{upper,work,root}
    setsid bash -c '
      echo $$ >"$1/cgroup.procs"
      exec unshare -m --propagation private bash -ec '\''
        umount -R /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
        mount -t overlay overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root"
        exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q --register=no --keep-unit -D "$3/root" \
          --bind-ro="$4:/mnt/stage" --network-namespace-path="/run/netns/$5" -M "$5" --hostname="$6" --capability=all \
          --boot --console=read-only
      '\'' bash "$@"' bash "$base/$net-$h" "$root" "$run/$h" "$stage" "$net-$h" "$h" </dev/null >"$run/$h.log" 2>&1 9>&- &
    echo $! >"$run/$h.pid"
    disown # the shell says nothing of its end
  done
  for h; do
    await "$h is up" 60 is_up "$h"
    [ -e "$run/$h.leader" ] || { cat "$run/$h.log" >&2; die "$h did not boot"; }
  done
}

is_up() {
  local p; p=$(pgrep -P "$(cat "$run/$1.pid")" -x systemd) || return 1
  nsenter -t "$p" -a systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded' || return 1
  echo "$p" >"$run/$1.leader"
}

on() { local h=$1; shift; nsenter -t "$(cat "$run/$h.leader")" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }

is_off() { ! kill -0 "$(cat "$run/$1.pid")" 2>/dev/null; }

poweroff() {
  on "$1" systemctl poweroff >/dev/null 2>&1 || true
  for _ in $(seq 1200); do is_off "$1" && break; sleep .05; done
  is_off "$1" || { echo "$1 does not power off" >&2; return 1; }
  rm -f "$run/$1.leader"
}

pull_plug() {
  ip -n $net-sw link set "p${1#h}" down # nobody hears that its connections end
  kill -9 "$(cat "$run/$1.leader")"
  for _ in $(seq 200); do is_off "$1" && break; sleep .05; done
  rm -f "$run/$1.leader"
}

# up_dir makes $run, which holds all that a run writes but the cached root, in memory.
up_dir() { mkdir -p "$run"; mount -t tmpfs -o mode=700 meshagent-e2e "$run"; }

# down ends all hosts and removes what boot made; it can be called at any time, any number of times.
down() (
  set +e
  for d in /sys/fs/cgroup/unified/"$net"-h* /sys/fs/cgroup/"$net"-h*; do
    for _ in $(seq 100); do # the dead take a moment to be gone
      [ -d "$d" ] || break
      find "$d" -name cgroup.procs -exec cat {} + | xargs -r kill -9
      find "$d" -depth -type d -exec rmdir {} + || sleep .05
    done
  done 2>/dev/null
  for n in $(ip netns list 2>/dev/null | awk -v p="^$net-" '$1 ~ p {print $1}'); do ip netns del "$n"; done
  umount -l "$run" 2>/dev/null
  rm -rf "$run"
)

failed=0 checks=0
verdict() { # STATUS TEXT OUTPUT
  checks=$((checks + 1))
  if [ "$1" = 0 ]; then echo "ok    $2"; else
    failed=$((failed + 1)); echo "FAIL  $2"
    sed 's/^/      | /' <<<"$3" | tail -25
  fi
}

check() {
  local text=$1 out rc=0; shift
  out=$("$@" 2>&1) || rc=$?
  verdict $rc "$text" "$out"
}

await() {
  local text=$1 out rc=0; shift
  out=$(try "$@" 2>&1) || rc=$?
  verdict $rc "$text" "$out"
}

# try runs a command until it succeeds, for some seconds at most, and shows what the last time showed.
try() {
  local until=$((SECONDS + $1)) out rc; shift
  while :; do
    rc=0; out=$("$@" 2>&1) || rc=$?
    if [ $rc = 0 ] || [ $SECONDS -ge $until ]; then break; fi
    sleep .1
  done
  printf '%s\n' "$out"
  return $rc
}
