#!/usr/bin/env bash
# Trains on a Cloud TPU slice of several hosts, through their TPU VMs:
#
#   export TPU_NAME=star PROJECT=my-project ZONE=europe-west4-b
#   export ACCELERATOR_TYPE=v5litepod-256
#   bash launch/tpu_pod.sh create
#   bash launch/tpu_pod.sh setup            copies this commit, installs it
#   bash launch/tpu_pod.sh train -- --config=configs/star_1024.py \
#     --workdir=/mnt/shared/runs/star_1024
#   bash launch/tpu_pod.sh stop             SIGTERM: the run saves and ends
#   bash launch/tpu_pod.sh delete
#
# `train` runs on all hosts at once and shows their output until the run ends
# or this terminal does; the same command goes on from the last checkpoint.
# --workdir and the data lie on a file system that all hosts mount. With
# --dry_run, which may stand anywhere before --, the commands are printed and
# nothing is run.
#
# The environment: TPU_NAME, PROJECT, ZONE; for create ACCELERATOR_TYPE
# (v5litepod-N, v5p-N, v6e-N), RUNTIME_VERSION if it is not the usual one of
# that type, and SPOT=1 for capacity that can be taken away. gcloud as of its
# `compute tpus tpu-vm` commands of 2026; jax finds the other hosts by itself.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

action="" dry_run=no
while (($#)); do
  case "$1" in
    --dry_run) dry_run=yes ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    create | setup | train | stop | delete)
      [[ -z "$action" ]] || fail "one action at a time, got '$action $1'."
      action="$1"
      ;;
    *) fail "create, setup, train, stop or delete, got '$1'." ;;
  esac
  shift
done
[[ -n "$action" ]] || fail "which one: create, setup, train, stop, delete?"
required TPU_NAME "the name of the slice"
required PROJECT "the project it belongs to"
required ZONE "the zone it is in"
place=(--project="$PROJECT" --zone="$ZONE")
tpu_vm=(gcloud compute tpus tpu-vm)

# The TPU software that goes with a type of accelerator.
runtime_version() {
  case "$ACCELERATOR_TYPE" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "RUNTIME_VERSION must be set for '$ACCELERATOR_TYPE'." ;;
  esac
}

on_all_hosts() {
  run "${tpu_vm[@]}" ssh "$TPU_NAME" "${place[@]}" --worker=all --command="$1"
}

case "$action" in
  create)
    required ACCELERATOR_TYPE "such as v5litepod-256"
    version="${RUNTIME_VERSION:-$(runtime_version)}"
    create=("${tpu_vm[@]}" create "$TPU_NAME" "${place[@]}"
      --accelerator-type="$ACCELERATOR_TYPE" --version="$version")
    [[ -z "${SPOT:-}" ]] || create+=(--spot)
    run "${create[@]}"
    ;;
  setup)
    archive="star_jax.tar.gz"
    run git -C "$ROOT" archive --format=tar.gz --output="/tmp/$archive" HEAD
    run "${tpu_vm[@]}" scp "/tmp/$archive" "$TPU_NAME:$archive" \
      "${place[@]}" --worker=all
    # The images come with Python 3.10.
    on_all_hosts "sudo apt-get -qq update &&\
 sudo apt-get -qq install -y python3.11-venv && mkdir -p star_jax &&\
 tar -xzf $archive -C star_jax &&\
 STAR_JAX=tpu bash star_jax/launch/setup_env.sh"
    ;;
  train)
    (($#)) || fail "nothing after --, not even --config."
    command="$(quoted .venv/bin/python launch/train.py --distributed "$@")"
    on_all_hosts "cd star_jax && echo \$\$ >train.pid && exec $command"
    ;;
  stop) on_all_hosts "kill -TERM \$(cat star_jax/train.pid)" ;;
  delete) run "${tpu_vm[@]}" delete "$TPU_NAME" "${place[@]}" --quiet ;;
esac
