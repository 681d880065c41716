"""Confidence intervals of counted shares."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95% point of the normal distribution


def wilson_interval(
  hits: float, n: int, z: float = Z_95
) -> tuple[float, float]:
  """Wilson score interval of a share, within [0, 1].

  Args:
    hits: number of successes, 0 <= hits <= n.
    n: number of trials, at least 1.
    z: normal quantile; the default gives 95%.

  Raises:
    ValueError: n < 1 or hits outside [0, n].
  """
  if n < 1 or not 0 <= hits <= n:
    raise ValueError(
      f"An interval needs 0 <= hits <= n and n >= 1, got {hits} of {n}."
    )
  p = hits / n
  centre = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclasses.dataclass(frozen=True)
class Share:
  """A counted share with its 95% Wilson interval."""

  hits: int
  n: int

  @classmethod
  def of(cls, outcomes) -> Share:
    """From an array of booleans; an empty one is a share of nothing."""
    outcomes = np.asarray(outcomes, bool).reshape(-1)
    return cls(int(outcomes.sum()), len(outcomes))

  @property
  def value(self) -> float:
    """hits / n, nan for n = 0."""
    return self.hits / self.n if self.n else math.nan

  @property
  def interval(self) -> tuple[float, float]:
    """95% Wilson interval, (0, 1) for n = 0."""
    return wilson_interval(self.hits, self.n) if self.n else (0.0, 1.0)

  def to_dict(self) -> dict:
    """JSON form: value, low, high, hits, n (value None for n = 0)."""
    low, high = self.interval
    value = None if not self.n else round(self.value, 6)
    return {
      "value": value,
      "low": round(low, 6),
      "high": round(high, 6),
      "hits": self.hits,
      "n": self.n,
    }

  def __str__(self) -> str:
    if not self.n:
      return "- (n = 0)"
    low, high = (100 * x for x in self.interval)
    return f"{100 * self.value:.1f}% [{low:.1f}, {high:.1f}] (n = {self.n})"
