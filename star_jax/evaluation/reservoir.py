"""A bounded random sample of the features of a stream.

Kernel distance, precision and recall compare pairs of pictures. They see the
`capacity` pictures whose numbers hash lowest, so the sample does not depend on
batches, devices or interruptions, and that of two parts of a stream is merged
exactly. Up to `capacity` pictures all are kept, in their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass
class Reservoir:
  """The sample.

  Attributes:
    capacity: most rows that are kept.
    seed: of the hash.
    index_R: int64 numbers of the pictures kept, rising.
    rows_RD: their float32 features.
  """

  capacity: int
  seed: int
  index_R: np.ndarray
  rows_RD: np.ndarray

  @classmethod
  def empty(cls, capacity: int, seed: int, width: int) -> Reservoir:
    return cls(
      capacity, seed, np.zeros(0, np.int64), np.zeros((0, width), np.float32)
    )

  def add(self, index_N: np.ndarray, x_ND: np.ndarray) -> None:
    """Offers features [N, D] of the pictures with these numbers."""
    index = np.concatenate([self.index_R, np.asarray(index_N, np.int64)])
    rows = np.concatenate([self.rows_RD, np.asarray(x_ND, np.float32)])
    if len(index) > self.capacity:
      keep = np.argsort(hashed(index, self.seed), kind="stable")
      keep = keep[: self.capacity]
      index, rows = index[keep], rows[keep]
    order = np.argsort(index, kind="stable")
    self.index_R, self.rows_RD = index[order], rows[order]

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
    x = index_N.astype(np.uint64) + np.uint64(seed) * np.uint64(
      0x632BE59BD9B4E019
    )
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
