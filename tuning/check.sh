#!/bin/sh
# What would stop this host from holding N connections. The same as `ringcable --check N`, in the same words, for a host
# that ringcable is not on yet. POSIX sh, coreutils and /proc; nothing is changed.
#
#   tuning/check.sh N [PID]    with PID: the limits and the cgroup of that process, for example of a running ringcable
#
# A line per finding: OK, WARN (holds, but slowly or not under a burst) or FAIL; what is there, what is needed, how to get
# it. Exit code 0 without a FAIL, 1 with one, 2 for a wrong call. ANYCABLE_CORES, ANYCABLE_DRIVER, ANYCABLE_MAX_CONN,
# ANYCABLE_RPC_CONCURRENCY and ANYCABLE_PING_INTERVAL are read as ringcable reads them.
#
# One thing differs: a shell cannot try io_uring, so it asks the sysctl, and says so when a seccomp profile is in force.
set -uf

# The same figures stand in src/check/host.rs, which says what they are.
USER_BYTES=400
TEXT_BYTES=512
SOCKET_BYTES=3630
POLL_BYTES=260
CONNECTION_BYTES=$((USER_BYTES + TEXT_BYTES + SOCKET_BYTES + POLL_BYTES))
DESCRIPTORS_RESERVED=128
DESCRIPTORS_PER_SHARD=17
SHARD_RINGS_KIB=224
PROBE_RING_KIB=96
PING_NANOS=9700
HEADROOM_DIVISOR=4
ACCEPT_QUEUE_DIVISOR=16
ACCEPT_QUEUE_MIN=4096
ACCEPT_QUEUE_MAX=65535
PORTS_PER_CALL=2
CHECKED_MAX=100000000
CAP_IPC_LOCK=14
# Where a cgroup v1 without a limit begins.
UNLIMITED_BYTES=4611686018427387904

usage() {
  echo "usage: $0 N [PID]: N is a number of connections from 1 to $CHECKED_MAX" >&2
  exit 2
}

is_number() {
  case $1 in '' | *[!0-9]*) return 1 ;; esac
}

if [ $# -lt 1 ] || [ $# -gt 2 ] || ! is_number "$1" || [ ${#1} -gt 9 ]; then usage; fi
connections=$1
# A leading zero would mean octal in arithmetic.
while [ "${connections#0}" != "$connections" ]; do connections=${connections#0}; done
if [ -z "$connections" ] || [ "$connections" -gt $CHECKED_MAX ]; then usage; fi
process=/proc/${2:-self}
[ -r "$process/limits" ] || { echo "$0: cannot read $process/limits" >&2 && exit 2; }

fails=0
warns=0

# finding <verdict> <name> <current> <needed> <change>
finding() {
  case $1 in FAIL) fails=$((fails + 1)) ;; WARN) warns=$((warns + 1)) ;; esac
  if [ "$1" = OK ]; then
    printf '%-4s %-30s %s, needs %s\n' "$1" "$2" "$3" "$4"
  else
    printf '%-4s %-30s %s, needs %s; %s\n' "$1" "$2" "$3" "$4" "$5"
  fi
}

# at_least <name> <current, may be empty> <needed> <verdict otherwise> <needed in words> <change>
at_least() {
  if [ -z "$2" ]; then
    finding WARN "$1" unknown "$5" "$6"
  elif [ "$2" -ge "$3" ]; then
    finding OK "$1" "$2" "$5" "$6"
  else
    finding "$4" "$1" "$2" "$5" "$6"
  fi
}

# word <number> <file>: that word of the file, or nothing. By cat and not by `read`, which dash does byte by byte: the
# files of /proc/sys give one byte and end then.
word() {
  # shellcheck disable=SC2046 # the words are wanted
  set -- "$1" $(cat "$2" 2>/dev/null)
  shift "$1" 2>/dev/null || return 0
  echo "${1:-}"
}

# field <file> <prefix>: the first word behind the prefix, or nothing.
field() {
  while read -r name value _; do
    [ "$name" = "$2" ] && echo "$value" && return
  done <"$1"
}

# limit <name in /proc/PID/limits>: soft and hard, or nothing.
limit() {
  while read -r line; do
    case $line in
      "$1"*)
        # shellcheck disable=SC2086 # the words are wanted
        set -- ${line#"$1"}
        echo "$1 $2"
        return
        ;;
    esac
  done <"$process/limits"
}

# cgroup_directories <controller>: the group of the process and those above it, v2 and v1, the innermost first.
cgroup_directories() {
  while IFS=: read -r _ controllers path; do
    case ",$controllers," in
      ,,) mount=/sys/fs/cgroup ;;
      *",$1,"*) mount=/sys/fs/cgroup/$1 ;;
      *) continue ;;
    esac
    group=${path%/}
    while :; do
      echo "$mount$group"
      case $group in */*) group=${group%/*} ;; *) break ;; esac
    done
  done <"$process/cgroup"
}

# smaller <a, may be empty> <b>
smaller() {
  if [ -z "$1" ] || [ "$2" -lt "$1" ]; then echo "$2"; else echo "$1"; fi
}

cgroup_memory_bytes() {
  least=
  for directory in $(cgroup_directories memory); do
    bytes=$(word 1 "$directory/memory.max")
    [ -n "$bytes" ] || bytes=$(word 1 "$directory/memory.limit_in_bytes")
    is_number "$bytes" && [ "$bytes" -lt $UNLIMITED_BYTES ] && least=$(smaller "$least" "$bytes")
  done
  echo "$least"
}

# Whole CPUs that the cgroup grants, rounded down, or nothing.
cgroup_cpus() {
  least=
  for directory in $(cgroup_directories cpu); do
    if [ -r "$directory/cpu.max" ]; then
      quota=$(word 1 "$directory/cpu.max") period=$(word 2 "$directory/cpu.max")
    else
      quota=$(word 1 "$directory/cpu.cfs_quota_us") period=$(word 1 "$directory/cpu.cfs_period_us")
    fi
    is_number "$quota" && is_number "$period" && [ "$period" -gt 0 ] &&
      least=$(smaller "$least" $((quota / period)))
  done
  echo "$least"
}

# The CPUs of the affinity mask, such as 0-3,8, cut to the quota.
cpus() {
  count=0
  for range in $(field "$process/status" Cpus_allowed_list: | tr , ' '); do
    count=$((count + ${range#*-} - ${range%-*} + 1))
  done
  quota=$(cgroup_cpus)
  [ -n "$quota" ] && [ "$quota" -lt "$count" ] && count=$quota
  [ "$count" -ge 1 ] || count=1
  echo "$count"
}

# option <value, may be empty> <default>
option() {
  if is_number "$1"; then echo "$1"; else echo "$2"; fi
}

queue=$((connections / ACCEPT_QUEUE_DIVISOR))
[ $queue -ge $ACCEPT_QUEUE_MIN ] || queue=$ACCEPT_QUEUE_MIN
[ $queue -le $ACCEPT_QUEUE_MAX ] || queue=$ACCEPT_QUEUE_MAX
cpus=$(cpus)
cores=$(option "${ANYCABLE_CORES:-}" 0)
shards=$cores
[ "$shards" -gt 0 ] || shards=$cpus
calls=$(option "${ANYCABLE_RPC_CONCURRENCY:-}" 28)
[ "$calls" -gt 0 ] || calls=28
files=$((connections + DESCRIPTORS_RESERVED + shards * (DESCRIPTORS_PER_SHARD + calls)))
driver=${ANYCABLE_DRIVER:-auto}
# Without io_uring the server runs on epoll, unless it was told not to.
if [ "$driver" = io_uring ]; then refusal=FAIL; else refusal=WARN; fi

check_connections_max() {
  max=$(option "${ANYCABLE_MAX_CONN:-}" 0)
  if [ "$max" -eq 0 ]; then verdict=OK max=off; elif [ "$max" -ge "$connections" ]; then verdict=OK; else verdict=FAIL; fi
  finding $verdict max-conn "$max" "off or $connections" "--max-conn=$connections"
}

check_open_files() {
  change="LimitNOFILE=$files in the systemd unit, or docker run --ulimit nofile=$files:$files"
  soft_hard=$(limit 'Max open files')
  soft=${soft_hard% *} hard=${soft_hard#* }
  if [ -z "$soft_hard" ]; then
    finding WARN nofile unknown "$files hard" "$change"
  elif [ "$hard" = unlimited ] || [ "$hard" -ge $files ]; then
    finding OK nofile "$soft soft, $hard hard" "$files hard" "$change"
  else
    finding FAIL nofile "$soft soft, $hard hard" "$files hard" "$change"
  fi
  nr_open=$files
  [ $nr_open -ge 2097152 ] || nr_open=2097152
  at_least fs.nr_open "$(word 1 /proc/sys/fs/nr_open)" $files FAIL $files "sysctl -w fs.nr_open=$nr_open"
  free=$(word 1 /proc/sys/fs/file-max)
  [ -z "$free" ] || free=$((free - $(word 1 /proc/sys/fs/file-nr)))
  at_least fs.file-max "$free" $files FAIL "$files free" "sysctl -w fs.file-max=$((files * 2))"
}

# memory_finding <name> <bytes> <change>
memory_finding() {
  needed=$((connections * CONNECTION_BYTES))
  words="$(((needed + 1048575) / 1048576)) MiB ($CONNECTION_BYTES bytes each)"
  if [ "$2" = unknown ]; then
    verdict=WARN current=unknown
  elif [ "$2" = unlimited ]; then
    verdict=OK current=unlimited
  else
    current="$(($2 / 1048576)) MiB" verdict=OK
    [ "$2" -ge $((needed + needed / HEADROOM_DIVISOR)) ] || verdict=WARN
    [ "$2" -ge $needed ] || verdict=FAIL
  fi
  finding $verdict "$1" "$current" "$words" "$3"
}

check_memory() {
  kib=$(field /proc/meminfo MemAvailable:)
  if [ -n "$kib" ]; then bytes=$((kib * 1024)); else bytes=unknown; fi
  memory_finding memory $bytes "more memory or fewer connections"
  bytes=$(cgroup_memory_bytes)
  memory_finding 'cgroup memory' "${bytes:-unlimited}" \
    "MemoryMax= in the systemd unit, or docker run --memory: sockets count against it"
}

check_tcp() {
  at_least net.ipv4.tcp_mem "$(word 3 /proc/sys/net/ipv4/tcp_mem)" "$connections" WARN "$connections pages" \
    "sysctl -w net.ipv4.tcp_mem='$((connections * 3 / 4)) $connections $((connections + connections / 2))'"
  at_least net.core.somaxconn "$(word 1 /proc/sys/net/core/somaxconn)" $queue WARN $queue \
    "sysctl -w net.core.somaxconn=$queue"
  backlog=$(word 1 /proc/sys/net/ipv4/tcp_max_syn_backlog)
  cookies=$(word 1 /proc/sys/net/ipv4/tcp_syncookies)
  if [ -n "$cookies" ] && [ "$cookies" -ne 0 ]; then
    finding OK net.ipv4.tcp_max_syn_backlog "${backlog:-unknown} with SYN cookies" "$queue or SYN cookies" ""
  else
    at_least net.ipv4.tcp_max_syn_backlog "$backlog" $queue WARN "$queue or SYN cookies" \
      "sysctl -w net.ipv4.tcp_syncookies=1"
  fi
  first=$(word 1 /proc/sys/net/ipv4/ip_local_port_range)
  last=$(word 2 /proc/sys/net/ipv4/ip_local_port_range)
  ports=
  [ -z "$last" ] || ports=$((last - first + 1))
  needed=$((shards * calls * PORTS_PER_CALL))
  at_least net.ipv4.ip_local_port_range "$ports" $needed WARN $needed \
    "sysctl -w net.ipv4.ip_local_port_range='10240 65535'"
}

# A table that nobody uses yet stops nothing, but the first NAT rule would.
check_tracking() {
  max=$(word 1 /proc/sys/net/netfilter/nf_conntrack_max)
  if [ -z "$max" ]; then
    verdict=OK current='not loaded'
  elif [ "$max" -ge "$connections" ]; then
    verdict=OK current=$max
  elif [ "$(word 1 /proc/sys/net/netfilter/nf_conntrack_count)" = 0 ]; then
    verdict=WARN current="$max, unused"
  else
    verdict=FAIL current=$max
  fi
  finding $verdict net.netfilter.nf_conntrack_max "$current" "$connections" \
    "sysctl -w net.netfilter.nf_conntrack_max=$((connections * 2)), or do without NAT (docker run --network host)"
}

check_io_uring() {
  verdict=OK
  disabled=$(word 1 /proc/sys/kernel/io_uring_disabled)
  if [ "$driver" = epoll ]; then
    current='not used'
  elif [ "${disabled:-0}" -ge 2 ]; then
    verdict=$refusal current="refused (kernel.io_uring_disabled=$disabled)"
  elif [ "${disabled:-0}" -eq 1 ] && ! has_capability 21; then
    verdict=$refusal current='refused (kernel.io_uring_disabled=1, without CAP_SYS_ADMIN)'
  elif [ "$(field "$process/status" Seccomp:)" = 2 ]; then
    verdict=WARN current='unknown behind a seccomp profile: ask ringcable --check'
  else
    current=allowed
  fi
  finding $verdict io_uring "$current" allowed \
    "epoll takes its place; allow it with tuning/seccomp/ringcable.json and sysctl -w kernel.io_uring_disabled=0"
}

# has_capability <number>
has_capability() {
  mask=$(field "$process/status" CapEff:)
  [ -n "$mask" ] && [ $((0x$mask >> $1 & 1)) -eq 1 ]
}

check_locked_memory() {
  needed=$((shards * SHARD_RINGS_KIB + PROBE_RING_KIB))
  soft_hard=$(limit 'Max locked memory')
  soft=${soft_hard% *}
  verdict=OK
  if [ "$driver" = epoll ]; then
    current='not used'
  elif has_capability $CAP_IPC_LOCK; then
    current='unlimited (CAP_IPC_LOCK)'
  elif [ -z "$soft" ]; then
    verdict=WARN current=unknown
  elif [ "$soft" = unlimited ]; then
    current=unlimited
  else
    current="$((soft / 1024)) KiB"
    [ "$soft" -ge $((needed * 1024)) ] || verdict=$refusal
  fi
  finding $verdict memlock "$current" "$needed KiB ($shards shards)" \
    "LimitMEMLOCK=infinity in the systemd unit, or docker run --ulimit memlock=-1:-1"
}

# Pings alone: the CPU time that N of them take in one interval.
check_cpus() {
  interval=$(($(option "${ANYCABLE_PING_INTERVAL:-}" 3) * 1000000000))
  pings=1
  [ $interval -eq 0 ] || pings=$(((connections * PING_NANOS + interval - 1) / interval))
  needed=$pings
  [ "$needed" -ge "$cores" ] || needed=$cores
  at_least cpus "$cpus" "$needed" WARN "$needed" \
    "more CPUs or quota, fewer --cores, or a longer --ping_interval (pings take $pings)"
}

check_connections_max
check_open_files
check_memory
check_tcp
check_tracking
check_io_uring
check_locked_memory
check_cpus

if [ $fails -eq 0 ]; then
  echo "$connections connections: nothing stands in the way (WARN $warns)"
else
  echo "$connections connections: not on this host as it is (FAIL $fails, WARN $warns)"
  exit 1
fi
