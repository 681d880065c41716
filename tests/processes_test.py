"""One command as several processes."""

import pytest

from star_jax.processes import run_together

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
