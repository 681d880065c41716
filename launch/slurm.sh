#!/usr/bin/env bash
# Trains on several GPU nodes of a Slurm cluster, one process per GPU:
#
#   bash launch/slurm.sh --nodes=2 --gpus_per_node=8 --time=24:00:00 -- \
#     --config=configs/star_1024.py --workdir=/shared/runs/star_1024
#
# What stands behind -- goes to launch/train.py. The repository, its .venv
# (STAR_JAX=cuda13 bash launch/setup_env.sh) and --workdir lie on a file system
# that all nodes see. SAVE_TIME seconds before the time limit every process
# gets SIGTERM, saves and ends, and the job is put back into the queue; a lost
# node puts it back as well. A job that fails otherwise stays ended.
#
#   --nodes=1 --gpus_per_node=8 --cpus_per_gpu=8
#   --time=24:00:00     time limit, as sbatch takes it
#   --save_time=300     seconds
#   --partition=NAME --account=NAME --job_name=star_jax
#   --dry_run           print the commands, run nothing
#
# The environment: sbatch, srun, scancel and scontrol (written for Slurm 24.11;
# nothing here is newer than 20.11), and STAR_VENV if the environment is not in
# .venv. jax reads SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS,
# SLURM_PROCID and SLURM_LOCALID, which srun sets.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PYTHON="${STAR_VENV:-$ROOT/.venv}/bin/python"
train=("$PYTHON" "$ROOT/launch/train.py" --distributed)

nodes=1 gpus=8 cpus=8 time=24:00:00 save_time=300 job_name=star_jax
partition="" account="" dry_run=no inside=no
while (($#)); do
  case "$1" in
    --nodes=*) nodes="${1#*=}" && positive --nodes "$nodes" ;;
    --gpus_per_node=*) gpus="${1#*=}" && positive --gpus_per_node "$gpus" ;;
    --cpus_per_gpu=*) cpus="${1#*=}" && positive --cpus_per_gpu "$cpus" ;;
    --time=*) time="${1#*=}" ;;
    --save_time=*) save_time="${1#*=}" && positive --save_time "$save_time" ;;
    --partition=*) partition="${1#*=}" ;;
    --account=*) account="${1#*=}" ;;
    --job_name=*) job_name="${1#*=}" ;;
    --inside_job) inside=yes ;;
    --dry_run) dry_run=yes ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; what train.py gets comes after --." ;;
  esac
  shift
done
(($#)) || fail "nothing after --, not even --config."

# A lost process takes its whole step along, so that the job ends at once.
step=(srun --kill-on-bad-exit=1 "${train[@]}" "$@")

if [[ "$inside" == no ]]; then
  # --signal with B: tells this script alone. srun would turn a SIGTERM of its
  # own into SIGKILL for the processes; scancel gives it to them as it is.
  job=(bash "$ROOT/launch/slurm.sh" --inside_job -- "$@")
  submit=(sbatch --job-name="$job_name" --nodes="$nodes"
    --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --cpus-per-task="$cpus"
    --time="$time" --signal="B:USR1@$save_time" --requeue --open-mode=append
    --chdir="$ROOT" --output="slurm-$job_name-%j.log")
  [[ -z "$partition" ]] || submit+=(--partition="$partition")
  [[ -z "$account" ]] || submit+=(--account="$account")
  run "${submit[@]}" --wrap="exec $(quoted "${job[@]}")"
  [[ "$dry_run" == no ]] || quoted "${step[@]}"
  exit
fi

required SLURM_JOB_ID "the job this runs in; --inside_job is for sbatch alone"
out_of_time=no
# shellcheck disable=SC2329  # the trap calls it
save() {
  out_of_time=yes
  say "the time is nearly up; all processes save and end."
  run scancel --signal=TERM "$SLURM_JOB_ID" || true
}
trap save USR1
quoted "${step[@]}"
[[ "$dry_run" == no ]] || exit 0
"${step[@]}" &
pid=$!
status=0
wait "$pid" || status=$?
# A wait that USR1 interrupts comes back before the processes have ended.
while kill -0 "$pid" 2>/dev/null; do
  status=0
  wait "$pid" || status=$?
done
if [[ "$out_of_time" == yes ]] && ((status == 0)); then
  run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
