#!/usr/bin/env bash
# Runs a command as N processes of one run, on the CPU of this machine:
#
#   bash launch/local_processes.sh 4 -- \
#     .venv/bin/python launch/train.py --config=configs/star_scenes64.py
#
# Process 0 writes to this terminal, the others into LOG_DIR/process_I.log.
# Ctrl-C and SIGTERM go to all of them. When one fails, what it wrote last is
# shown, the others get GRACE seconds to end by themselves, and the exit status
# is that of the first which failed.
#
#   --log_dir=DIR   where the logs go; by default a fresh temporary folder
#   --port=PORT     of the coordinator, by default a free one
#   --grace=10      seconds between a failure and the end of the others
#   --dry_run       print the commands, run nothing
#
# The processes get JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
# and JAX_PLATFORMS=cpu. For Linux (setsid, coreutils 8.31, bash 4.4).
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

log_dir="" port="" grace=10 dry_run=no count=""
while (($#)); do
  case "$1" in
    --log_dir=*) log_dir="${1#*=}" ;;
    --port=*) port="${1#*=}" && positive --port "$port" ;;
    --grace=*) grace="${1#*=}" && positive --grace "$grace" ;;
    --dry_run) dry_run=yes ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    -*) fail "unknown option '$1'; see --help." ;;
    *)
      [[ -z "$count" ]] || fail "the command comes after --, got '$1' before."
      count="$1"
      ;;
  esac
  shift
done
[[ -n "$count" ]] || fail "how many processes? As in: $NAME.sh 4 -- command."
positive "the number of processes" "$count"
(($#)) || fail "no command after --."

free_port() {
  python3 -c 'import socket
with socket.socket() as s:
  s.bind(("127.0.0.1", 0))
  print(s.getsockname()[1])'
}

# The environment of process $1, as words for env.
environment() {
  printf '%s\n' "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" \
    "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$1" "JAX_PLATFORMS=cpu"
}

[[ -n "$port" ]] || port="$(free_port)"
if [[ "$dry_run" == yes ]]; then
  for ((i = 0; i < count; i++)); do
    mapfile -t words < <(environment "$i")
    run env "${words[@]}" "$@"
  done
  exit
fi
[[ -n "$log_dir" ]] || log_dir="$(mktemp -d -t star_processes.XXXXXX)"
mkdir -p "$log_dir"
say "$count processes; the logs of all but process 0 are in $log_dir"

# Each in a session of its own: Ctrl-C reaches them once, from here, and the
# end of one takes its worker processes along. A shell script starts background
# commands deaf to Ctrl-C; env gives them their hearing back.
exec 3>&2
running=()
for ((i = 0; i < count; i++)); do
  mapfile -t words < <(environment "$i")
  start=(setsid env --default-signal=INT "${words[@]}" "$@")
  if ((i == 0)); then
    "${start[@]}" </dev/null &
  else
    "${start[@]}" </dev/null >"$log_dir/process_$i.log" 2>&1 &
  fi
  running[i]=$!
done
# bash would tell of every process that a signal ended, in its own words.
exec 2>/dev/null

# shellcheck disable=SC2329  # the traps call it
forward() { kill -s "$1" "${running[@]}" || true; }
end_all() {
  local pid
  for pid in "${running[@]}"; do
    kill -s KILL -- "-$pid"
  done
}
trap 'forward INT' INT
trap 'forward TERM' TERM
trap 'end_all || true' EXIT

signal_name() { (($1 <= 128)) || printf ' (SIG%s)' "$(kill -l "$1")"; }

# Process $1 ended with status $2: the first that fails is told of.
status=0 deadline=""
collect() {
  unset "running[$1]"
  (($2)) && ((status == 0)) || return 0
  status="$2" deadline=$((SECONDS + grace))
  say "process $1 of $count ended with status $2$(signal_name "$2")." >&3
  (($1 == 0)) || tail -n 5 "$log_dir/process_$1.log" >&3
  ((${#running[@]} == 0)) ||
    say "the others have $grace s to end by themselves." >&3
}

while ((${#running[@]})); do
  for i in "${!running[@]}"; do
    if ! kill -0 "${running[i]}"; then
      code=0
      wait "${running[i]}" || code=$?
      collect "$i" "$code"
    fi
  done
  if [[ -n "$deadline" ]] && ((SECONDS >= deadline)); then
    end_all || true
  fi
  sleep 0.2 || true
done
exit "$status"
