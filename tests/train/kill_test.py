"""Runs that are killed again and again repeat an unbroken one bitwise.

Real processes and SIGKILL, at moments drawn from a seed. A few kills as a
rule, many with --long.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from star_jax.train.logging import read_metrics
from tests.train import transformer_task_test

CHILD = Path(__file__).with_name("kill_child.py")
KINDS = ("step", "write", "data")
# What differs from one unbroken run to the next as well.
TIMES = (
  "steps_per_second",
  "images_per_second",
  "gflops_per_second",
  "peak_memory_gib",
)

parts = transformer_task_test.parts


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Runs kill_child.py; compiled programs are kept from one to the next."""
  compiled = str(tmp_path_factory.mktemp("compiled"))

  def start(workdir, plan):
    done = subprocess.run(
      [sys.executable, str(CHILD), str(workdir), json.dumps(plan)],
      env=os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled},
      capture_output=True,
      text=True,
    )
    expected = -signal.SIGKILL if plan["kind"] else 0
    assert done.returncode == expected, done.stderr[-2000:]
    return done.stderr

  return start


def rows(workdir):
  """metrics.jsonl without what was measured with a clock."""
  return [
    {name: value for name, value in row.items() if name not in TIMES}
    for row in read_metrics(workdir)
  ]


def files(folder):
  """Contents by path."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def kills(count, num_steps, kinds=KINDS):
  """Kind, step and delay of each kill, spread over the run."""
  rng = np.random.default_rng(count)
  width = num_steps / count
  for i in range(count):
    kind = kinds[i % len(kinds)]
    # A first kill of each kind comes at once, before anything is saved or as
    # soon as there is half a checkpoint.
    first = i < len(kinds)
    yield {
      "kind": kind,
      "at": int((i + rng.random()) * width),
      "delay": 0.0 if first else float(rng.uniform(0, 0.02)),
    }


def check(start, tmp_path, count, num_steps, asynchronous):
  options = {
    "run": "train",
    "num_steps": num_steps,
    "asynchronous": asynchronous,
  }
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  start(whole, options | {"kind": None})
  said = [start(broken, options | kill) for kill in kills(count, num_steps)]
  said.append(start(broken, options | {"kind": None}))
  assert rows(broken) == rows(whole)
  assert len(rows(whole)) > num_steps / 3
  for name in ("exported.npy", "samples"):
    left, right = tmp_path / "broken" / name, tmp_path / "whole" / name
    if left.is_dir():
      assert files(left) == files(right)
    else:
      assert left.read_bytes() == right.read_bytes()
  kept = [
    sorted(p.name for p in (run / "checkpoints").iterdir())
    for run in (broken, whole)
  ]
  assert kept[0] == kept[1]
  reported = sum(
    "is a half-written checkpoint; it is ignored" in s for s in said
  )
  assert reported >= 1
  return said


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again(start, tmp_path):
  check(start, tmp_path, count=4, num_steps=24, asynchronous=True)


@pytest.mark.long
@pytest.mark.parametrize("asynchronous", [True, False])
def test_many_kills(asynchronous, start, tmp_path):
  check(start, tmp_path, count=12, num_steps=60, asynchronous=asynchronous)


def check_cache(start, tmp_path, parts, count):
  options = {"run": "cache", "tokenizer": parts}
  start(tmp_path / "whole", options | {"kind": None})
  for kill in kills(count, 10, kinds=("encode",)):
    start(tmp_path / "broken", options | kill | {"at": 1 + kill["at"] % 3})
  start(tmp_path / "broken", options | {"kind": None})
  whole = files(tmp_path / "whole")
  assert files(tmp_path / "broken") == whole
  assert len(whole) > 10


@pytest.mark.long
def test_a_token_cache_whose_build_is_killed(start, parts, tmp_path):
  check_cache(start, tmp_path, parts, count=1)


@pytest.mark.long
def test_a_token_cache_whose_build_is_killed_often(start, parts, tmp_path):
  check_cache(start, tmp_path, parts, count=4)
