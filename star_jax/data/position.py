"""Where a run is in its data: how many batches have been drawn."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import grain

# More examples than any run reads; the length of what is generated. What grain
# repeats to, sys.maxsize, cannot be cut into batches of one.
ENDLESS = 2**40
# What a process that is alone reads of a batch.
ALL_ROWS = slice(None)
Batches = grain.DatasetIterator | Generator


class NumberedBatches:
  """Endless batches; the position is how many of them were drawn.

  A batch is counted once, however many processes share its examples, so that
  a position means the same for any number of processes, threads and workers.

  Args:
    start: this process's share of the batches from number n on; called before
      the first batch and again after `set_state`.
  """

  def __init__(self, start: Callable[[int], Batches]):
    self._start = start
    self._batches: Batches | None = None
    self._next = 0

  def __iter__(self) -> NumberedBatches:
    return self

  def __next__(self) -> dict[str, Any]:
    if self._batches is None:
      self._batches = self._start(self._next)
    batch = next(self._batches)
    self._next += 1
    return batch

  def get_state(self) -> int:
    return self._next

  def set_state(self, state: int) -> None:
    """Goes on with batch number `state`.

    Raises:
      ValueError: it is no such number, as in files of earlier versions.
    """
    if not isinstance(state, int) or state < 0:
      raise ValueError(
        f"The saved data position is {state!r}, not a number of batches: it"
        " was written by an earlier version and cannot be continued."
      )
    self.close()
    self._next = state

  def close(self) -> None:
    """Ends threads and workers; the position stays."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None


def rows_of(
  examples: grain.MapDataset, batch_size: int, rows: slice, first: int
) -> grain.MapDataset:
  """These rows of every batch from number `first` on, one after the other.

  Batch n is the examples n B to (n + 1) B - 1, whatever rows a process reads of
  it, and row i is the same example for any number of processes.

  Args:
    examples: in the order of the run.
    batch_size: B, over all processes.
    rows: from `start` to `stop` of the B; a step is ignored.
    first: number of the first batch.
  """
  start, stop, _ = rows.indices(batch_size)
  if (start, stop) == (0, batch_size):
    return examples[first * batch_size :][:ENDLESS]

  def read(number: int) -> Any:
    batch, row = divmod(number, stop - start)
    return examples[(first + batch) * batch_size + start + row]

  return grain.MapDataset.range(ENDLESS).map(read)
