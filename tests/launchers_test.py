"""The launchers of several processes: what they run, refuse and forward.

What would need a cluster is compared with the commands of a dry run, or run
with stand-ins for the cluster's programs.
"""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
CLOUD = {"PROJECT": "my-project", "ZONE": "europe-west4-b"}
TRAIN = f"{ROOT}/.venv/bin/python {ROOT}/launch/train.py --distributed"


def script(name, *args, **variables):
  env = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("STAR_", "JAX_", "SLURM_", "TPU_"))
  }
  return subprocess.run(
    ["bash", LAUNCH / f"{name}.sh", *args],
    env=env | variables,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )


def dry_run(name, *args, **variables) -> list[str]:
  """The printed commands, without the quotes that shells need."""
  done = script(name, "--dry_run", *args, **variables)
  assert done.returncode == 0, done.stderr
  return [" ".join(shlex.split(line)) for line in done.stdout.splitlines()]


def test_dry_run_of_local_processes():
  command = "python launch/train.py --config=a.py"
  assert dry_run(
    "local_processes", "--port=4000", "2", "--", *command.split()
  ) == [
    "env JAX_COORDINATOR_ADDRESS=127.0.0.1:4000 JAX_NUM_PROCESSES=2"
    f" JAX_PROCESS_ID={i} JAX_PLATFORMS=cpu {command}"
    for i in (0, 1)
  ]


def test_dry_run_of_slurm():
  submit, step = dry_run(
    "slurm", "--nodes=2", "--gpus_per_node=4", "--time=2:00:00",
    "--partition=gpu", "--", "--config=a.py", "--workdir=/runs/a b",
  )  # fmt: skip
  assert submit == (
    "sbatch --job-name=star_jax --nodes=2 --ntasks-per-node=4"
    " --gpus-per-node=4 --cpus-per-task=8 --time=2:00:00 --signal=B:USR1@300"
    f" --requeue --open-mode=append --chdir={ROOT}"
    " --output=slurm-star_jax-%j.log --partition=gpu"
    f" --wrap=exec bash {LAUNCH}/slurm.sh --inside_job --"
    " --config=a.py '--workdir=/runs/a b'"
  )
  assert step == (
    f"srun --kill-on-bad-exit=1 {TRAIN} --config=a.py --workdir=/runs/a b"
  )


def test_dry_run_of_a_sweep_on_slurm():
  first, array = dry_run(
    "slurm_sweep", "--array=0-11%4", "--gpus=0", "--time=2:00:00", "--",
    "--config=a.py", "--out=/runs/a b",
  )  # fmt: skip
  common = (
    "sbatch --parsable --nodes=1 --ntasks=1 --cpus-per-task=8 --time=2:00:00"
    f" --signal=B:USR1@300 --requeue --open-mode=append --chdir={ROOT}"
  )
  inner = f"exec bash {LAUNCH}/slurm_sweep.sh --inside_job="
  given = "-- --config=a.py '--out=/runs/a b'"
  assert first == (
    f"{common} --job-name=star_sweep-prepare"
    " --output=slurm-star_sweep-prepare-%j.log"
    f" --wrap={inner}prepare {given}"
  )
  assert array == (
    f"{common} --job-name=star_sweep --array=0-11%4"
    " --dependency=afterok:PREPARE --output=slurm-star_sweep-%A-%a.log"
    f" --wrap={inner}job {given}"
  )
  sweep = f"{ROOT}/.venv/bin/python {LAUNCH}/sweep.py --config=a.py"
  task = dict(SLURM_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
  for inside, last in (("prepare", "--prepare"), ("job", "--only=3")):
    assert dry_run(
      "slurm_sweep", f"--inside_job={inside}", "--", "--config=a.py", **task
    ) == [f"{sweep} {last}"]


def test_a_sweep_on_slurm_needs_its_numbers():
  done = script("slurm_sweep", "--dry_run", "--", "--config=a.py")
  assert done.returncode == 2 and "--array is the numbers" in done.stderr


@pytest.mark.parametrize(
  "action,commands",
  [
    (
      "create",
      [
        "create star {place} --accelerator-type=v5p-64 --version=v2-alpha-tpuv5"
      ],
    ),
    (
      "setup",
      [
        f"git -C {ROOT} archive --format=tar.gz --output=/tmp/star_jax.tar.gz"
        " HEAD",
        "scp /tmp/star_jax.tar.gz star:star_jax.tar.gz {place} --worker=all",
        "ssh star {place} --worker=all --command=sudo apt-get -qq update &&"
        " sudo apt-get -qq install -y python3.11-venv && mkdir -p star_jax &&"
        " tar -xzf star_jax.tar.gz -C star_jax &&"
        " STAR_JAX=tpu bash star_jax/launch/setup_env.sh",
      ],
    ),
    (
      "train -- --config=a.py",
      [
        "ssh star {place} --worker=all --command=cd star_jax &&"
        " echo $$ >train.pid && exec .venv/bin/python launch/train.py"
        " --distributed --config=a.py"
      ],
    ),
    (
      "stop",
      [
        "ssh star {place} --worker=all"
        " --command=kill -TERM $(cat star_jax/train.pid)"
      ],
    ),
    ("delete", ["delete star {place} --quiet"]),
  ],
)
def test_dry_run_of_a_tpu_pod(action, commands):
  place = "--project=my-project --zone=europe-west4-b"
  expected = [
    command
    if command.startswith("git")
    else f"gcloud compute tpus tpu-vm {command.replace('{place}', place)}"
    for command in commands
  ]
  variables = CLOUD | {"TPU_NAME": "star", "ACCELERATOR_TYPE": "v5p-64"}
  assert dry_run("tpu_pod", *action.split(), **variables) == expected


def test_dry_run_of_gke():
  variables = CLOUD | {"CLUSTER": "pods", "TPU_TYPE": "v5litepod-256"}
  export, create = dry_run(
    "gke_xpk", "--name=star-1024", "--num_slices=2", "--storage=runs",
    "--", "--config=a.py", TMPDIR="/scratch", **variables,
  )  # fmt: skip
  source = "/scratch/star_jax_star-1024"
  assert export == (
    f"git -C {ROOT} checkout-index --all --force --prefix={source}/"
  )
  assert create == (
    "xpk workload create --workload=star-1024 --cluster=pods"
    " --project=my-project --zone=europe-west4-b --tpu-type=v5litepod-256"
    f" --num-slices=2 --base-docker-image=python:3.12 --script-dir={source}"
    " --max-restarts=50 --termination-grace-period-seconds=300 --storage=runs"
    " --command=STAR_JAX=tpu bash launch/setup_env.sh &&"
    " exec .venv/bin/python launch/train.py --distributed --config=a.py"
  )


@pytest.mark.parametrize(
  "command,message",
  [
    ("local_processes", "how many processes?"),
    ("local_processes 0 -- true", "a whole number from 1, got '0'"),
    ("local_processes 2", "no command after --"),
    ("local_processes 2 true", "got 'true' before"),
    ("local_processes --logs=a 2 -- true", "unknown option '--logs=a'"),
    ("slurm --nodes=two -- --config=a", "--nodes is a whole number"),
    ("slurm --node=2 -- --config=a", "unknown option '--node=2'"),
    ("slurm --nodes=2", "not even --config"),
    ("slurm --inside_job -- --config=a", "SLURM_JOB_ID must be set"),
    ("tpu_pod", "which one: create, setup, train, stop, delete?"),
    ("tpu_pod launch", "got 'launch'"),
    ("tpu_pod create delete", "one action at a time"),
    ("tpu_pod stop", "TPU_NAME must be set"),
    ("gke_xpk --name=Star -- --config=a", "got 'Star'"),
    ("gke_xpk --name=star", "not even --config"),
    ("gke_xpk --name=star -- --config=a", "CLUSTER must be set"),
    ("gke_xpk --config=a", "unknown option '--config=a'"),
  ],
)
def test_bad_input_is_one_sentence(command, message):
  done = script(*command.split())
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_accelerator_of_unknown_software_needs_its_version():
  variables = CLOUD | {"TPU_NAME": "star", "ACCELERATOR_TYPE": "v9-8"}
  done = script("tpu_pod", "create", "--dry_run", **variables)
  assert done.returncode == 2
  assert "RUNTIME_VERSION must be set for 'v9-8'" in done.stderr
  (create,) = dry_run("tpu_pod", "create", RUNTIME_VERSION="new", **variables)
  assert create.endswith("--accelerator-type=v9-8 --version=new")


@pytest.mark.parametrize(
  "name", ["local_processes", "slurm", "tpu_pod", "gke_xpk"]
)
def test_help_is_the_head_of_the_script(name):
  done = script(name, "--help")
  head, _ = (LAUNCH / f"{name}.sh").read_text().split("set -euo")
  lines = [line.removeprefix("#").removeprefix(" ") for line in
           head.splitlines()[1:]]  # fmt: skip
  assert done.returncode == 0 and done.stdout.splitlines() == lines


def shell(body: str) -> list[str]:
  return ["--", "bash", "-c", body]


def test_local_processes_have_their_places(tmp_path):
  done = script(
    "local_processes", f"--log_dir={tmp_path}", "3",
    *shell('echo "I am $JAX_PROCESS_ID of $JAX_NUM_PROCESSES"'),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "I am 0 of 3" in done.stdout and "I am 1" not in done.stdout
  assert (tmp_path / "process_2.log").read_text() == "I am 2 of 3\n"


@pytest.mark.parametrize(
  "end,status,told",
  [("exit 7", 7, "status 7."), ("kill -9 $$", 137, "status 137 (SIGKILL).")],
)
def test_one_failed_process_ends_the_others(tmp_path, end, status, told):
  """They would take 10 minutes, and hear no SIGTERM."""
  done = script(
    "local_processes", f"--log_dir={tmp_path}", "--grace=1", "3",
    *shell(
      f'if [[ $JAX_PROCESS_ID == 1 ]]; then echo "no disk"; {end}; fi;'
      ' trap "" TERM; sleep 600; echo survived'
    ),
  )  # fmt: skip
  assert done.returncode == status
  assert f"process 1 of 3 ended with {told}" in done.stderr
  assert "no disk" in done.stderr
  assert "survived" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(tmp_path, number):
  body = (
    "import os, signal, time\n"
    "heard = []\n"
    f"signal.signal({number}, lambda *_: heard.append(1))\n"
    "open(f'ready_{os.environ[\"JAX_PROCESS_ID\"]}', 'w').close()\n"
    "while not heard: time.sleep(0.05)\n"
    "time.sleep(0.5)\n"
    "print('heard', len(heard))\n"
  )
  process = subprocess.Popen(
    [
      # Tests that run in the background are deaf to Ctrl-C.
      "env", "--default-signal=INT",
      "bash", LAUNCH / "local_processes.sh", f"--log_dir={tmp_path}", "2",
      "--", "python3", "-c", body,
    ],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  while len(list(tmp_path.glob("ready_*"))) < 2:
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(number)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert out.splitlines()[-1] == "heard 1"
  assert (tmp_path / "process_1.log").read_text() == "heard 1\n"


def stand_in(folder: Path, name: str, body: str) -> None:
  """A program for PATH that notes how it was called."""
  path = folder / name
  path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{folder}/calls"\n{body}\n')
  path.chmod(0o755)


@pytest.mark.parametrize("saved", [True, False])
def test_a_slurm_job_out_of_time_saves_and_queues_again(tmp_path, saved):
  """srun runs until scancel; not saved means a status other than 0."""
  stand_in(
    tmp_path, "srun",
    f"while [[ ! -e {tmp_path}/told ]]; do sleep 0.05; done\n"
    f"exit {0 if saved else 3}",
  )  # fmt: skip
  stand_in(tmp_path, "scancel", f"touch {tmp_path}/told")
  stand_in(tmp_path, "scontrol", "")
  job = subprocess.Popen(
    ["bash", LAUNCH / "slurm.sh", "--inside_job", "--", "--config=a.py"],
    env=os.environ
    | {"SLURM_JOB_ID": "12", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    stdout=subprocess.DEVNULL,
  )
  calls = tmp_path / "calls"
  while not calls.exists():
    assert job.poll() is None
    time.sleep(0.05)
  job.send_signal(signal.SIGUSR1)
  assert job.wait(timeout=60) == (0 if saved else 3)
  _, *after = calls.read_text().splitlines()
  requeue = ["scontrol requeue 12"] if saved else []
  assert after == ["scancel --signal=TERM 12", *requeue]
