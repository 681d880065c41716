"""One line of progress with the time that is left."""

from __future__ import annotations

import sys
import time


class Progress:
  """Call with (done, total); prints to stderr at most every few seconds."""

  def __init__(self, label: str, every: float = 5.0):
    self._label, self._every = label, every
    self._start = self._last = time.monotonic()
    self._first: int | None = None

  def __call__(self, done: int, total: int) -> None:
    now = time.monotonic()
    if self._first is None:
      # The first report pays for compilation; the rate starts here.
      self._first, self._start = done, now
    if done < total and now - self._last < self._every:
      return
    self._last = now
    rate = (done - self._first) / max(now - self._start, 1e-9)
    left = f"{(total - done) / rate:.0f} s left" if rate > 0 else "..."
    text = f"{self._label}: {done}/{total} ({100 * done / total:.0f}%)"
    print(f"{text}, {left}" if done < total else text, file=sys.stderr)
