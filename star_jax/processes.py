"""One command as several processes on this machine, each with a number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

# In the environment of a process: the one that started it and is to outlive it.
PARENT = "STAR_PARENT"
# Seconds that a process has to end after it was asked to.
_GRACE = 10


def run_together(argv: Sequence[str], count: int) -> int:
  """Runs a script `count` times with --process_id and --num_processes.

  Args:
    argv: of the script; its --processes is set to 1.
    count: of processes.

  Returns:
    The exit status: that of the first process that failed, upon which the
    others are stopped, or 0.
  """
  shared = ["--processes=1", f"--num_processes={count}"]
  children = [
    subprocess.Popen(
      [sys.executable, *argv, *shared, f"--process_id={number}"],
      env=os.environ | {PARENT: str(os.getpid())},
    )
    for number in range(count)
  ]
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  try:
    while True:
      states = [child.poll() for child in children]
      if failed := [state for state in states if state]:
        return abs(failed[0])
      if None not in states:
        return 0
      time.sleep(0.1)
  finally:
    _stop(children)


def end_with_parent() -> None:
  """Ends this process when the one of `run_together` that started it is gone,
  even if that was killed."""
  parent = os.environ.get(PARENT)
  if parent is None:
    return

  def follow():
    while str(os.getppid()) == parent:
      time.sleep(0.5)
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _stop(children: Sequence[subprocess.Popen]) -> None:
  for child in children:
    if child.poll() is None:
      child.terminate()
  for child in children:
    try:
      child.wait(_GRACE)
    except subprocess.TimeoutExpired:
      child.kill()
