"""The run's directory and the signals that end a run in good order."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from pathlib import Path

STDOUT = 1


class Workdir:
  """Creates the directory and holds its lock while the run lasts.

  Raises:
    ValueError: it cannot be created or written, or another run is using it.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path).expanduser().absolute()
    self._lock = None

  def __enter__(self) -> Path:
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
    self._lock.close()


class StopSignals:
  """Turns the first SIGINT or SIGTERM into a request; the second interrupts.

  `requested` is the signal's name or None. Outside the main thread nothing is
  installed, since Python allows handlers there only.
  """

  def __init__(self):
    self.requested: str | None = None
    self._previous = {}

  def __enter__(self) -> StopSignals:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _on_signal(self, number, frame) -> None:
    del frame
    if self.requested:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
    text = f"{self.requested}: saving after this step, once more stops at once."
    # Not print: the signal may have come in the middle of one, which refuses a
    # second.
    with contextlib.suppress(OSError):
      os.write(STDOUT, f"{text}\n".encode())
