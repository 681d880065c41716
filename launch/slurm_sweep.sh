#!/usr/bin/env bash
# Runs a scaling sweep on a Slurm cluster: one job for what all share, then an
# array with a task for every size and seed.
#
#   python launch/sweep.py --config=configs/scaling_law.py --plan
#   bash launch/slurm_sweep.sh --array=0-11 --gpus=1 --time=8:00:00 -- \
#     --config=configs/scaling_law.py --out=/shared/runs/scaling
#
# --array takes the numbers that --plan prints. What stands behind -- goes to
# launch/sweep.py. SAVE_TIME seconds before its time limit a task gets SIGTERM,
# saves, ends, and is put back into the queue; so is that of a lost node. The
# same command goes on with what failed otherwise; finished tasks end at once.
#
#   --array=0-11        as sbatch takes it; 0-11%4 runs four at a time
#   --gpus=1            of a task; 0: none
#   --cpus=8            of a task
#   --time=24:00:00     of a task
#   --save_time=300     seconds
#   --partition=NAME --account=NAME --job_name=star_sweep
#   --dry_run           print the commands, run nothing
#
# The environment: sbatch and scontrol, and STAR_VENV if the environment is not
# in .venv.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PYTHON="${STAR_VENV:-$ROOT/.venv}/bin/python"

array="" gpus=1 cpus=8 time=24:00:00 save_time=300 job_name=star_sweep
partition="" account="" dry_run=no inside=""
while (($#)); do
  case "$1" in
    --array=*) array="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --cpus=*) cpus="${1#*=}" && positive --cpus "$cpus" ;;
    --time=*) time="${1#*=}" ;;
    --save_time=*) save_time="${1#*=}" && positive --save_time "$save_time" ;;
    --partition=*) partition="${1#*=}" ;;
    --account=*) account="${1#*=}" ;;
    --job_name=*) job_name="${1#*=}" ;;
    --inside_job=*) inside="${1#*=}" ;;
    --dry_run) dry_run=yes ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; what sweep.py gets comes after --." ;;
  esac
  shift
done
(($#)) || fail "nothing after --, not even --config."
[[ "$gpus" =~ ^[0-9]{1,3}$ ]] || fail "--gpus is a whole number, got '$gpus'."

if [[ -z "$inside" ]]; then
  [[ "$array" =~ ^[0-9][0-9,:%-]*$ ]] ||
    fail "--array is the numbers of the jobs, such as 0-11, got '$array'."
  submit=(sbatch --parsable --nodes=1 --ntasks=1 --cpus-per-task="$cpus"
    --time="$time" --signal="B:USR1@$save_time" --requeue --open-mode=append
    --chdir="$ROOT")
  [[ "$gpus" == 0 ]] || submit+=(--gpus="$gpus")
  [[ -z "$partition" ]] || submit+=(--partition="$partition")
  [[ -z "$account" ]] || submit+=(--account="$account")
  # `inner KIND ARGUMENTS...`: this script as the job runs it.
  inner() {
    quoted bash "$ROOT/launch/slurm_sweep.sh" "--inside_job=$1" -- "${@:2}"
  }
  first=("${submit[@]}" --job-name="$job_name-prepare"
    --output="slurm-$job_name-prepare-%j.log"
    --wrap="exec $(inner prepare "$@")")
  quoted "${first[@]}"
  before=PREPARE
  [[ "$dry_run" == yes ]] || before="$("${first[@]}")"
  run "${submit[@]}" --job-name="$job_name" --array="$array" \
    --dependency="afterok:${before%%;*}" \
    --output="slurm-$job_name-%A-%a.log" --wrap="exec $(inner job "$@")"
  exit
fi

case "$inside" in
  prepare) command=("$PYTHON" "$ROOT/launch/sweep.py" "$@" --prepare) ;;
  job)
    required SLURM_ARRAY_TASK_ID "the number of the task, which sbatch sets"
    command=("$PYTHON" "$ROOT/launch/sweep.py" "$@"
      "--only=$SLURM_ARRAY_TASK_ID")
    ;;
  *) fail "--inside_job is for sbatch alone." ;;
esac
required SLURM_JOB_ID "the job this runs in"
quoted "${command[@]}"
[[ "$dry_run" == no ]] || exit 0
"${command[@]}" &
pid=$! out_of_time=no status=0
# shellcheck disable=SC2329  # the trap calls it
save() {
  out_of_time=yes
  say "the time is nearly up; the run saves and ends."
  kill -TERM "$pid" 2>/dev/null || true
}
trap save USR1
wait "$pid" || status=$?
# A wait that USR1 interrupts comes back before the process has ended.
while kill -0 "$pid" 2>/dev/null; do
  status=0
  wait "$pid" || status=$?
done
if [[ "$out_of_time" == yes ]] && ((status <= 1)); then
  # Of an array, the id of this task alone.
  run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
