#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that was made with xpk:
#
#   export CLUSTER=my-cluster PROJECT=my-project ZONE=europe-west4-b
#   export TPU_TYPE=v5litepod-256
#   bash launch/gke_xpk.sh --name=star-1024 -- \
#     --config=configs/star_1024.py --workdir=/mnt/shared/runs/star_1024
#
# xpk builds an image of the tracked files of this repository on BASE_IMAGE and
# starts it on every host; the environment is installed at the start. After a
# lost host all of them start again, at most MAX_RESTARTS times, from the last
# checkpoint; a wrong flag or config is not tried again. When the hosts are
# taken away, the run has SAVE_TIME seconds to save.
#
#   --name=NAME           of the workload
#   --num_slices=1
#   --storage=NAME        an xpk storage that holds --workdir and the data
#   --max_restarts=50
#   --save_time=300       seconds
#   --dry_run             print the command, run nothing
#
# The environment: CLUSTER, PROJECT, ZONE, TPU_TYPE; BASE_IMAGE if another
# than python:3.12 is wanted. Written for xpk 1.9 (`xpk workload create`), which
# needs docker. Logs: `xpk workload list`, and the console it links to; the end:
# `xpk workload delete --workload=NAME --cluster=CLUSTER`.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name="" slices=1 storage="" max_restarts=50 save_time=300 dry_run=no
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --num_slices=*) slices="${1#*=}" && positive --num_slices "$slices" ;;
    --storage=*) storage="${1#*=}" ;;
    --max_restarts=*)
      max_restarts="${1#*=}" && positive --max_restarts "$max_restarts"
      ;;
    --save_time=*) save_time="${1#*=}" && positive --save_time "$save_time" ;;
    --dry_run) dry_run=yes ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; what train.py gets comes after --." ;;
  esac
  shift
done
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "--name is small letters, digits and dashes, got '$name'."
(($#)) || fail "nothing after --, not even --config."
required CLUSTER "the cluster's name"
required PROJECT "the project it belongs to"
required ZONE "the zone it is in"
required TPU_TYPE "such as v5litepod-256"

source_dir="${TMPDIR:-/tmp}/star_jax_$name"
# exec: signals are for train.py, not for the shell around it.
command="STAR_JAX=tpu bash launch/setup_env.sh && exec $(
  quoted .venv/bin/python launch/train.py --distributed "$@"
)"
create=(xpk workload create --workload="$name" --cluster="$CLUSTER"
  --project="$PROJECT" --zone="$ZONE" --tpu-type="$TPU_TYPE"
  --num-slices="$slices" --base-docker-image="${BASE_IMAGE:-python:3.12}"
  --script-dir="$source_dir" --max-restarts="$max_restarts"
  --termination-grace-period-seconds="$save_time")
[[ -z "$storage" ]] || create+=(--storage="$storage")
run git -C "$ROOT" checkout-index --all --force --prefix="$source_dir/"
run "${create[@]}" --command="$command"
