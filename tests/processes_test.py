"""One command as several processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from star_jax.processes import run_together

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = """
import pathlib, sys, time
flags = dict(arg[2:].split("=") for arg in sys.argv[1:])
place = pathlib.Path(flags["place"])
(place / flags["process_id"]).write_text(repr(sys.argv[1:]))
if flags["process_id"] == flags["fails"]:
  sys.exit(2)
if flags["fails"]:
  time.sleep(600)
"""


@pytest.fixture
def script(tmp_path):
  path = tmp_path / "script.py"
  path.write_text(SCRIPT)
  return [str(path), f"--place={tmp_path}", "--processes=3"]


def test_every_process_has_its_number(script, tmp_path):
  assert run_together([*script, "--fails="], 3) == 0
  for number in range(3):
    args = (tmp_path / str(number)).read_text()
    assert f"--num_processes=3', '--process_id={number}'" in args
    # Flags that come later count: none starts others.
    assert args.index("--processes=3") < args.index("--processes=1")


def test_one_that_fails_stops_the_others(script):
  assert run_together([*script, "--fails=1"], 3) == 2


def test_none_outlives_a_parent_that_was_killed(tmp_path):
  (tmp_path / "child.py").write_text(
    "import os, pathlib, time\n"
    "from star_jax.processes import end_with_parent\n"
    "end_with_parent()\n"
    f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
    "time.sleep(600)\n"
  )
  parent = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "from star_jax.processes import run_together\n"
      f"run_together([{str(tmp_path / 'child.py')!r}], 2)",
    ],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  deadline = time.monotonic() + 60
  while len(children := list(tmp_path.glob("[0-9]*"))) < 2:
    assert time.monotonic() < deadline and parent.poll() is None
    time.sleep(0.05)
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  while any(_runs(int(child.name)) for child in children):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def _runs(pid):
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2]
  except FileNotFoundError:
    return False
  return state != "Z"  # ended, and nobody has asked how
