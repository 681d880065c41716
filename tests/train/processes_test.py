"""Training by several real processes on this machine."""

import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from star_jax.bundle import load_bundle
from star_jax.train.logging import read_metrics
from star_jax.train.loop import train_and_evaluate
from tests.distributed_test import clean_environment
from tests.train import fake

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = "tests/train/process.py"
STEPS = 8


def start(command, count):
  launcher = ["bash", "launch/local_processes.sh", str(count), "--"]
  return subprocess.run(
    [*launcher, *command] if count > 1 else command,
    cwd=ROOT,
    env=clean_environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )


def run(workdir, count, *flags):
  return start([sys.executable, SCRIPT, str(workdir), *flags], count)


def losses(workdir, split="train"):
  rows = [row for row in read_metrics(workdir) if row["split"] == split]
  return [(row["step"], row["loss"]) for row in rows]


def assert_close(found, expected):
  assert [step for step, _ in found] == [step for step, _ in expected]
  np.testing.assert_allclose(
    [loss for _, loss in found], [loss for _, loss in expected], rtol=1e-5
  )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone")
  config = fake.config(num_steps=STEPS)
  train_and_evaluate(config, workdir, task=fake.FakeTask(config))
  return workdir


def assert_whole(workdir, alone):
  """A run like that of one process, each figure of it once."""
  for split in ("train", "heldout"):
    assert_close(losses(workdir, split), losses(alone, split))
  np.testing.assert_allclose(
    np.load(workdir / "exported.npy"),
    np.load(alone / "exported.npy"),
    rtol=1e-5,
  )


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_and_one_alone_goes_on(
  alone, tmp_path
):
  ended = run(tmp_path, 2, "--at=4:1:TERM")
  assert ended.returncode == 0, ended.stderr
  # The first alone speaks; it was the second that was told.
  assert ended.stdout.count("Stopped by SIGTERM at step") == 1
  stopped = losses(tmp_path)[-1][0]
  assert 4 <= stopped < STEPS
  assert f"at step {stopped};" in ended.stdout
  ended = run(tmp_path, 1)
  assert ended.returncode == 0, ended.stderr
  assert f"Restored step {stopped}" in ended.stdout
  assert_whole(tmp_path, alone)


@pytest.mark.long
@pytest.mark.parametrize(
  "count,mesh", [(2, "data=1,tensor=2"), (4, "data=2,fsdp=2")]
)
def test_a_killed_process_ends_the_others_and_the_restart_is_exact(
  count, mesh, alone, tmp_path
):
  flags = [f"--mesh={mesh}", "--heartbeat_timeout=3"]
  unbroken = run(tmp_path / "unbroken", count, *flags)
  assert unbroken.returncode == 0, unbroken.stderr
  assert_whole(tmp_path / "unbroken", alone)
  begin = time.monotonic()
  killed = run(tmp_path / "killed", count, *flags, "--at=5:1:KILL")
  assert time.monotonic() - begin < 120  # the bound, not a measurement
  assert killed.returncode != 0
  assert "process 1" in killed.stderr.lower()
  again = run(tmp_path / "killed", count, *flags)
  assert again.returncode == 0, again.stderr
  assert "Restored step 3" in again.stdout
  # Bitwise: the same number of processes adds in the same order.
  for split in ("train", "heldout"):
    ours = losses(tmp_path / "killed", split)
    assert ours == losses(tmp_path / "unbroken", split)


@pytest.mark.long
def test_the_small_model_trains_the_same_on_four_processes(tmp_path):
  found = []
  for count, axes in ((1, {}), (4, {"fsdp": 2, "tensor": 2})):
    workdir = tmp_path / str(count)
    flags = [f"--config.mesh.{name}={size}" for name, size in axes.items()]
    ended = start(
      [
        sys.executable,
        "launch/train.py",
        "--config=configs/star_scenes64.py:runlocal",
        f"--workdir={workdir}",
        "--config.num_steps=4",
        "--config.log_every=1",
        "--config.eval_every=4",
        "--config.sample_every=0",  # four processes take long to compile
        *flags,
      ],
      count,
    )
    assert ended.returncode == 0, ended.stderr
    assert load_bundle(workdir / "bundle").star_config is not None
    found.append([losses(workdir), losses(workdir, "heldout")])
  for ours, theirs in zip(*found):
    assert_close(ours, theirs)


@pytest.mark.long
def test_a_mesh_that_leaves_a_process_without_a_device_is_refused(tmp_path):
  ended = run(tmp_path, 2, "--mesh=data=1")
  assert ended.returncode != 0
  assert "leaves process 1 without one; give an axis -1" in ended.stderr
