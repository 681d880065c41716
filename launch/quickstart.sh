#!/usr/bin/env bash
# From a fresh clone to pictures, in one command:
#
#   bash launch/quickstart.sh "a red heart, twemoji style" "a blue car"
#   bash launch/quickstart.sh                 a dozen prompts, some held-out
#
# Makes the environment (.venv), draws with the model that ships with the
# repository, writes PNG files and contact_sheet.png into outputs/. Options of
# launch/sample.py may stand among the prompts:
#
#   bash launch/quickstart.sh --seed=3 --gif "two dogs"
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
begin=$SECONDS

say() { printf '[quickstart] %s\n' "$*"; }

say "1/3 environment"
bash "$ROOT/launch/setup_env.sh"
say "1/3 done after $((SECONDS - begin)) s"

# Without a prompt (and without a place to read prompts from): the demo.
source_of_prompts=no
for argument in "$@"; do
  case "$argument" in
    --prompts_file* | --from* | --demo* | -h | --help) source_of_prompts=yes ;;
    -*) ;;
    *) source_of_prompts=yes ;;
  esac
done
if [[ "$source_of_prompts" == no ]]; then
  say "2/3 drawing the demo prompts; held-out combinations are marked"
  set -- "$@" --demo
else
  say "2/3 drawing"
fi
# From the caller's folder: outputs/ and relative paths in options are there.
"${STAR_VENV:-$ROOT/.venv}/bin/python" "$ROOT/launch/sample.py" "$@"
say "3/3 done in $((SECONDS - begin)) s; the files are listed above"
