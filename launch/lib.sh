# shellcheck shell=bash
# What the launchers of several processes share; they source it.
#
# A launcher sets `dry_run` (yes or no). `run` prints a command as it would be
# typed and, without a dry run, runs it.

NAME="$(basename "${BASH_SOURCE[1]}" .sh)"
# shellcheck disable=SC2034  # read by the launchers
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '[%s] %s\n' "$NAME" "$*"; }

fail() {
  printf '[%s] error: %s\n' "$NAME" "$*" >&2
  exit 2
}

# The comment at the head of the launcher.
usage() {
  sed -n '2,/^[^#]/ { s/^# \{0,1\}//p }' "${BASH_SOURCE[1]}"
}

# The words of a command in one line, quoted where the shell needs it.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ ! "$word" =~ ^[a-zA-Z0-9_.,:=@%+/~-]+$ ]]; then
      word="${word@Q}"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# shellcheck disable=SC2154  # dry_run comes from the launcher
run() {
  quoted "$@"
  [[ "$dry_run" == yes ]] || "$@"
}

# `required NAME WHAT` for variables that the environment must have.
required() {
  [[ -n "${!1:-}" ]] || fail "$1 must be set in the environment: $2."
}

# `positive --option VALUE`
positive() {
  [[ "$2" =~ ^[1-9][0-9]{0,5}$ ]] ||
    fail "$1 is a whole number from 1, got '$2'."
}
