#!/usr/bin/env bash
# Sets up the environment, then runs the tests. Arguments go to pytest:
#
#   bash launch/test.sh                        everything but the slow checks
#   bash launch/test.sh --long                 the slow checks as well
#   bash launch/test.sh tests/golden -k greedy
#   bash launch/test.sh -n 0                   in one process instead of two
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$ROOT/launch/setup_env.sh"
cd "$ROOT"
exec "${STAR_VENV:-$ROOT/.venv}/bin/python" -m pytest \
  --numprocesses=2 --dist=loadfile "$@"
