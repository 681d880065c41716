"""The scripts refuse what they cannot do in one sentence, status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def script(name, *args, cwd):
  command = [sys.executable, str(LAUNCH / name), *args]
  return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
  "name, args, message",
  [
    ("evaluate.py", ["--config.scenes.fuo=3"], "no key 'fuo'"),
    ("evaluate.py", ["--n=many"], "--n"),
    ("evaluate.py", ["--ckpt=nowhere"], "no bundle at nowhere"),
    ("evaluate.py", ["scenes"], "Unknown arguments: scenes"),
    ("benchmark.py", ["--batches=1,x"], "got 'x'"),
    ("grow_tokenizer.py", ["--schedule=1,2"], "--out is needed"),
    ("grow_tokenizer.py", ["--schedule=1,y", "--out=z"], "got '1,y'"),
  ],
)
def test_mistakes(tmp_path, name, args, message):
  done = script(name, *args, cwd=tmp_path)
  assert done.returncode == 2
  assert message in done.stderr and "Traceback" not in done.stderr
  assert len(done.stderr.strip().split("\n")) <= 2
