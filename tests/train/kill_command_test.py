"""The command, killed from outside or on a full disk, goes on exactly."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from star_jax.train.logging import read_metrics
from tests.train.kill_test import files, rows

ROOT = Path(__file__).resolve().parents[2]
STEPS = 16


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """The arguments and the environment of a transformer run."""
  compiled = str(tmp_path_factory.mktemp("compiled"))
  changes = {
    "data": "synthetic",
    "num_steps": STEPS,
    "log_every": 3,
    "eval_every": 4,
    "sample_every": 0,
    "checkpoint_every": 4,
    "keep_best": 1,
    "batch_size": 2,
    "optimizer.ema_decay": 0.9,
  }
  arguments = [
    sys.executable,
    str(ROOT / "launch" / "train.py"),
    "--config=configs/star_scenes64.py:runlocal",
    *(f"--config.{name}={value}" for name, value in changes.items()),
  ]
  environment = {
    "JAX_COMPILATION_CACHE_DIR": compiled,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
  }
  return arguments, os.environ | environment


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  finish(command, workdir)
  return workdir


def start(command, workdir, **options):
  arguments, environment = command
  return subprocess.Popen(
    [*arguments, f"--workdir={workdir}"],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def finish(command, workdir):
  run = start(command, workdir)
  _, said = run.communicate()
  assert run.returncode == 0, said[-2000:]


def wait_for_step(run, workdir, step):
  """Until a row of this step or a later one is in metrics.jsonl."""
  while run.poll() is None:
    if any(row["step"] >= step for row in read_metrics(workdir)):
      return
    time.sleep(0.002)
  raise AssertionError(run.stderr.read()[-2000:])


def check(workdir, unbroken):
  assert rows(workdir) == rows(unbroken)
  assert files(workdir / "bundle") == files(unbroken / "bundle")


@pytest.mark.long
def test_a_transformer_run_killed_from_outside(command, unbroken, tmp_path):
  rng = np.random.default_rng(0)
  for step in (0, 3, 6, 12):
    run = start(command, tmp_path)
    wait_for_step(run, tmp_path, step)
    time.sleep(rng.uniform(0, 0.05))
    run.kill()
    assert run.wait() == -signal.SIGKILL
  finish(command, tmp_path)
  check(tmp_path, unbroken)


@pytest.mark.long
def test_a_second_run_in_one_workdir_is_told_of_the_first(command, tmp_path):
  first = start(command, tmp_path)
  wait_for_step(first, tmp_path, 0)
  second = start(command, tmp_path)
  assert second.wait() == 2
  (line,) = second.stderr.read().splitlines()
  assert f"is in use by another run (process {first.pid})" in line
  first.kill()
  first.wait()


@pytest.mark.long
def test_a_full_disk_ends_a_run_in_one_sentence(command, unbroken, tmp_path):
  """A limit on file size makes writes fail, as a full disk does."""

  def limit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

  arguments, environment = command
  # Programs are not stored here: those files are too large as well.
  environment = environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
  run = start((arguments, environment), tmp_path, preexec_fn=limit)
  assert run.wait() == 2
  (line,) = run.stderr.read().splitlines()
  assert "could not be written to" in line and "(File too large)" in line, line
  finish(command, tmp_path)
  check(tmp_path, unbroken)
