"""A bounded random sample of the features of a stream.

Kernel distance, precision and recall compare pairs of pictures. They see the
`capacity` pictures whose numbers hash lowest, so the sample does not depend on
batches, devices or interruptions, and that of two parts of a stream is merged
exactly. Up to `capacity` pictures all are kept, in their order.

N: pictures, R: those that are kept, D: feature width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Rows that wait before the sample is written anew.
_ROWS = 2048


class Reservoir:
  """The sample.

  Attributes:
    capacity: most rows that are kept.
    seed: of the hash.
  """

  def __init__(
    self, capacity: int, seed: int, index_R: np.ndarray, rows_RD: np.ndarray
  ):
    """Args: numbers and float32 features of the pictures kept so far."""
    self.capacity, self.seed = capacity, seed
    self._index, self._rows = index_R, rows_RD
    self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

  @property
  def index_R(self) -> np.ndarray:
    """int64 numbers of the pictures kept, rising."""
    self._settle()
    return self._index

  @property
  def rows_RD(self) -> np.ndarray:
    """Their float32 features."""
    self._settle()
    return self._rows

  @classmethod
  def empty(cls, capacity: int, seed: int, width: int) -> Reservoir:
    return cls(
      capacity, seed, np.zeros(0, np.int64), np.zeros((0, width), np.float32)
    )

  def add(self, index_N: np.ndarray, x_ND: np.ndarray) -> None:
    """Offers features [N, D] of the pictures with these numbers."""
    pair = np.asarray(index_N, np.int64), np.asarray(x_ND, np.float32)
    self._waiting.append(pair)
    if sum(len(index) for index, _ in self._waiting) >= _ROWS:
      self._settle()

  def _settle(self) -> None:
    """Keeps the best of what is kept and what waits."""
    if not self._waiting:
      return
    pairs = [(self._index, self._rows), *self._waiting]
    self._waiting = []
    index, rows = (np.concatenate(parts) for parts in zip(*pairs))
    keep = np.argsort(index, kind="stable")
    if len(index) > self.capacity:
      keep = np.argsort(hashed(index, self.seed), kind="stable")
      keep = keep[: self.capacity]
      keep = keep[np.argsort(index[keep], kind="stable")]
    self._index, self._rows = index[keep], rows[keep]

  def arrays(self, prefix: str) -> dict[str, np.ndarray]:
    """For a .npz; `from_arrays` reads them back."""
    return {
      f"{prefix}_capacity": np.int64(self.capacity),
      f"{prefix}_seed": np.int64(self.seed),
      f"{prefix}_index": self.index_R,
      f"{prefix}_rows": self.rows_RD,
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping, prefix: str) -> Reservoir:
    return cls(
      int(arrays[f"{prefix}_capacity"]),
      int(arrays[f"{prefix}_seed"]),
      np.array(arrays[f"{prefix}_index"]),
      np.array(arrays[f"{prefix}_rows"]),
    )


def hashed(index_N: np.ndarray, seed: int) -> np.ndarray:
  """uint64 [N]: splitmix64 of the number and the seed."""
  with np.errstate(over="ignore"):
    x = index_N.astype(np.uint64)
    x = x + np.uint64(seed) * np.uint64(0x632BE59BD9B4E019)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
