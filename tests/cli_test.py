"""`run_main`: one sentence and exit status 2 instead of a traceback."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from star_jax import cli

SCRIPT = """
  \"\"\"Draws nothing.\"\"\"
  import warnings
  from absl import flags
  from star_jax.cli import run_main

  COUNT = flags.DEFINE_integer("count", 3, "How many.", lower_bound=0)

  def main(argv):
    warnings.warn("cut off: 'tail'")
    if COUNT.value == 7:
      raise ValueError("count is at most\\n  6, got 7.")
    if COUNT.value == 8:
      open("/nowhere/at/all")
    print("drawn", COUNT.value, argv[1:])

  if __name__ == "__main__":
    run_main(main)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
  path = tmp_path_factory.mktemp("cli") / "draw.py"
  path.write_text(textwrap.dedent(SCRIPT))

  env = dict(os.environ, PYTHONPATH=str(Path(cli.__file__).parents[1]))

  def run(*args):
    command = [sys.executable, str(path), *args]
    return subprocess.run(command, capture_output=True, text=True, env=env)

  return run


def test_runs_main_with_arguments_and_shows_warnings_as_sentences(script):
  done = script("a heart", "--count=2")
  assert done.returncode == 0
  assert done.stdout == "drawn 2 ['a heart']\n"
  assert done.stderr == "Warning: cut off: 'tail'\n"


@pytest.mark.parametrize(
  "argument, expected",
  [
    ("--count=7", "count is at most 6, got 7."),
    ("--count=8", "No such file or directory: /nowhere/at/all"),
    ("--cuont=1", "Unknown command line flag 'cuont'"),
    ("--count=-1", "count"),
  ],
)
def test_bad_input_is_one_sentence_and_status_2(script, argument, expected):
  done = script(argument)
  assert done.returncode == cli.EXIT_BAD_INPUT
  assert "Traceback" not in done.stderr
  assert expected in done.stderr.splitlines()[-1]


def test_help_shows_the_docstring_and_the_flags(script):
  done = script("--help")
  assert done.returncode == 0
  assert done.stdout.startswith("Draws nothing.")
  assert "--count" in done.stdout
  assert "How many. [default: 3]" in done.stdout
