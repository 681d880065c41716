"""The run's directory and the signals that end a run in good order.

In a run of several processes the first one owns the directory, and all of them
stop at the same step.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from pathlib import Path

import jax
from jax.experimental import multihost_utils

STDOUT = 1


class Workdir:
  """Creates the directory and holds its lock while the run lasts.

  Processes beside the first neither create nor lock it.

  Raises:
    ValueError: it cannot be created or written, or another run is using it.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path).expanduser().absolute()
    self._lock = None

  def __enter__(self) -> Path:
    if jax.process_index():
      return self.path
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = (self.path / "lock").open("a+")
    except OSError as error:
      raise ValueError(
        f"The workdir {self.path} cannot be written"
        f" ({error.strerror or error}); give a --workdir that can."
      ) from error
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      self._lock.seek(0)
      owner = self._lock.read().strip() or "unknown"
      self._lock.close()
      raise ValueError(
        f"The workdir {self.path} is in use by another run (process {owner});"
        " wait for it or give another --workdir."
      ) from error
    self._lock.truncate(0)
    self._lock.write(str(os.getpid()))
    self._lock.flush()
    return self.path

  def __exit__(self, *exc) -> None:
    # The lock goes with the file; it also goes when the process is killed.
    if self._lock is not None:
      self._lock.close()


class StopSignals:
  """Turns the first SIGINT or SIGTERM into a request; the second interrupts.

  Of several processes one may be told alone. jax then has the handler of
  SIGTERM, tells the others, and agrees with them on a step to stop at.

  `requested` is the signal's name or None. Outside the main thread nothing is
  installed, since Python allows handlers there only.
  """

  def __init__(self):
    self.requested: str | None = None
    self._previous = {}

  def __enter__(self) -> StopSignals:
    numbers = (signal.SIGINT, signal.SIGTERM)
    if jax.process_count() > 1:
      numbers = (signal.SIGINT,)
    if threading.current_thread() is threading.main_thread():
      for number in numbers:
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def stop_before(self, step: int) -> bool:
    """Whether the run ends before this step; every process has to ask."""
    if jax.process_count() > 1:
      if not multihost_utils.reached_preemption_sync_point(step):
        return False
      self.requested = "SIGTERM"
      self._tell()
    return self.requested is not None

  def _on_signal(self, number, frame) -> None:
    del frame
    if self.requested:
      raise KeyboardInterrupt
    if jax.process_count() > 1:
      # Twice in a row interrupts here as well.
      signal.signal(signal.SIGINT, signal.default_int_handler)
      os.kill(os.getpid(), signal.SIGTERM)
      return
    self.requested = signal.Signals(number).name
    self._tell()

  def _tell(self) -> None:
    if jax.process_index():
      return
    text = f"{self.requested}: saving after this step, once more stops at once."
    # Not print: the signal may have come in the middle of one, which refuses a
    # second.
    with contextlib.suppress(OSError):
      os.write(STDOUT, f"{text}\n".encode())
