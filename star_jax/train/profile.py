"""What the devices do in a few steps of a run, as a trace of jax.profiler."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"


class Profiler:
  """Traces the steps that `--profile_steps` names.

  Args:
    steps: "10:15", the steps 10 to 15 as the log counts them; "": none.
    num_steps: of the run.
    workdir: of the run; the trace lies in its folder "profile".

  Raises:
    ValueError: anything else, or steps that the run does not have.
  """

  def __init__(self, steps: str, num_steps: int, workdir: Path):
    self.directory = workdir / FOLDER
    self._text, self._running, self._done = steps, False, 0
    self._first = self._last = 0
    if not steps:
      return
    found = re.fullmatch(r"(\d+):(\d+)", steps)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= num_steps:
      raise ValueError(
        "--profile_steps is the first and the last step to trace, such as"
        f" 10:15, from 1 to {num_steps} in this run, got {steps!r}."
      )
    self._first, self._last = first, last

  def check_start(self, done: int) -> None:
    """ValueError where the run goes on after some of the steps."""
    if self._first and done >= self._first:
      raise ValueError(
        f"--profile_steps={self._text} begins with step {self._first}, but"
        f" this run goes on after step {done}; name later steps."
      )

  def before(self, step: int, state: Any) -> contextlib.AbstractContextManager:
    """Context of the step; the trace begins here if it is the first."""
    if step == self._first:
      # Nothing of the steps before is left to be seen.
      jax.block_until_ready(state)
      self.directory.mkdir(exist_ok=True)
      jax.profiler.start_trace(self.directory)
      self._running = True
    if not self._running:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def after(self, step: int, state: Any) -> float:
    """Ends the trace if that was the last step; seconds that this took."""
    self._done = step
    if not self._running or step < self._last:
      return 0.0
    jax.block_until_ready(state)
    start = time.perf_counter()
    self.close()
    return time.perf_counter() - start

  def close(self) -> None:
    """Ends the trace, whatever its last step is, and says where it lies."""
    if not self._running:
      return
    jax.profiler.stop_trace()
    self._running = False
    print(
      f"Profile of steps {self._first} to {self._done}: {self.directory}; to"
      f" look at it: pip install xprof && xprof --logdir={self.directory}, or"
      " open its *.trace.json.gz in https://ui.perfetto.dev.",
      flush=True,
    )
