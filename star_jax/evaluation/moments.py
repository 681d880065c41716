"""Mean and covariance of features that are never held together.

Sums are kept in float64. Features of the networks here are of order one, so
that a million pictures lose about 1e-10 of the covariance to rounding.

N: pictures, D: feature width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Rows that wait for one product: small batches would spend their time on
# reading and writing the [D, D] sum.
_ROWS = 512


class Moments:
  """Running sums.

  Attributes:
    count: pictures so far.
    sum_D: float64 sum of the features.
  """

  def __init__(self, count: int, sum_D: np.ndarray, outer_DD: np.ndarray):
    """Args: `outer_DD` the float64 sum of the outer products."""
    self.count, self.sum_D, self._outer_DD = count, sum_D, outer_DD
    self._waiting: list[np.ndarray] = []

  @property
  def outer_DD(self) -> np.ndarray:
    """float64 sum of the outer products of all features."""
    self._settle()
    return self._outer_DD

  def _settle(self) -> None:
    if self._waiting:
      x_ND = np.concatenate(self._waiting)
      self._outer_DD += x_ND.T @ x_ND
      self._waiting = []

  @classmethod
  def empty(cls, width: int) -> Moments:
    return cls(0, np.zeros(width), np.zeros((width, width)))

  @classmethod
  def of(cls, x_ND: np.ndarray) -> Moments:
    """Of all features at once."""
    out = cls.empty(x_ND.shape[1])
    out.add(x_ND)
    return out

  @classmethod
  def from_statistics(cls, mean_D, covariance_DD, count: int = 2) -> Moments:
    """Whose `mean` and `covariance` are those given.

    Args:
      count: of pictures behind them; published statistics do not say it, and
        neither property depends on it.
    """
    mean_D = np.asarray(mean_D, np.float64)
    outer = np.asarray(covariance_DD, np.float64) * (count - 1)
    outer = outer + count * np.outer(mean_D, mean_D)
    return cls(count, count * mean_D, outer)

  def add(self, x_ND: np.ndarray) -> None:
    """Adds features [N, D].

    Raises:
      ValueError: some are not finite; nothing is added then.
    """
    x_ND = np.asarray(x_ND, np.float64)
    if not np.isfinite(x_ND).all():
      bad = int((~np.isfinite(x_ND).all(1)).sum())
      raise ValueError(
        f"The features of {bad} of {len(x_ND)} pictures are not finite: the"
        " weights of the feature network are damaged, or its precision is too"
        " low."
      )
    self.count += len(x_ND)
    self.sum_D = self.sum_D + x_ND.sum(0)
    self._waiting.append(x_ND)
    if sum(map(len, self._waiting)) >= _ROWS:
      self._settle()

  def merged(self, other: Moments) -> Moments:
    """Of the pictures of both."""
    return Moments(
      self.count + other.count,
      self.sum_D + other.sum_D,
      self.outer_DD + other.outer_DD,
    )

  @property
  def mean(self) -> np.ndarray:
    """float64 [D]."""
    return self.sum_D / self.count

  @property
  def covariance(self) -> np.ndarray:
    """Unbiased, float64 [D, D]; of at least two pictures."""
    centred = self.outer_DD - self.count * np.outer(self.mean, self.mean)
    return centred / (self.count - 1)

  def arrays(self, prefix: str) -> dict[str, np.ndarray]:
    """For a .npz; `from_arrays` reads them back."""
    return {
      f"{prefix}_count": np.int64(self.count),
      f"{prefix}_sum": self.sum_D,
      f"{prefix}_outer": self.outer_DD,
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping, prefix: str) -> Moments:
    return cls(
      int(arrays[f"{prefix}_count"]),
      np.array(arrays[f"{prefix}_sum"]),
      np.array(arrays[f"{prefix}_outer"]),
    )
