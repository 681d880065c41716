"""TensorBoard files, written by the thread that has the figures."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class Board:
  """One event file in `folder`.

  tensorboardX's SummaryWriter gives its events to a thread through a queue, and
  where that thread has died, of a full disk, the run waits for it forever.

  Args:
    folder: created if needed.
    purge_step: what earlier files hold from this step on is not shown.

  Raises:
    OSError: here and in the methods; the file cannot be written.
  """

  def __init__(self, folder: Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    # Their names end with the second they were begun in; a restart may come
    # within it, or the clock may have been set back.
    number = sum(1 for _ in folder.iterdir())
    self._writer = EventsWriter(str(folder / "events"), f".{number}")
    start = SessionLog(status=SessionLog.START)
    self._write(Event(session_log=start), purge_step)
    self.flush()

  def scalar(self, step: int, name: str, value: float) -> None:
    self._write(Event(summary=summary.scalar(name, value)), step)

  def picture(self, step: int, name: str, image: Image.Image) -> None:
    shown = summary.image(name, np.asarray(image), dataformats="HWC")
    self._write(Event(summary=shown), step)

  def _write(self, event: Event, step: int) -> None:
    event.step = step
    event.wall_time = time.time()
    self._writer.write_event(event)

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    # What could not be written was said when it was flushed.
    with contextlib.suppress(OSError):
      self._writer.close()
