"""How a process that reads pictures for a run lives and ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection


def live_as_worker(index: int, count: int) -> None:
  """Called first in a worker: it ends with the run, neither before nor after.

  Ctrl-C and clusters send their signal to all processes at once, while the run
  may need one more batch before it saves. A run that was killed cannot tell its
  workers to stop.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
