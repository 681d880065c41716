"""Confidence intervals of means over things that were drawn several times."""

from __future__ import annotations

import numpy as np


def ratio_interval(
  hits_GN: np.ndarray, counts_N: np.ndarray, resamples: int, seed: int
) -> tuple[float, float, float]:
  """A share of facts with its 95% interval, scenes being what is resampled.

  Facts of one scene, and pictures of one scene by several seeds, are not
  independent; scenes are.

  Args:
    hits_GN: true facts of scene n in drawing g.
    counts_N: facts that scene n states.
    resamples: bootstrap draws.
    seed: of them.

  Returns:
    (value, low, high); nan without any fact.
  """
  hits_GN = np.asarray(hits_GN, np.float64)
  counts_N = np.asarray(counts_N, np.float64)
  if not counts_N.sum():
    return float("nan"), float("nan"), float("nan")
  mean_N = hits_GN.mean(0)
  rng = np.random.default_rng(seed)
  rows = rng.integers(0, len(counts_N), (resamples, len(counts_N)))
  below = counts_N[rows].sum(1)
  drawn = mean_N[rows].sum(1)[below > 0] / below[below > 0]
  low, high = np.quantile(drawn, (0.025, 0.975))
  return float(mean_N.sum() / counts_N.sum()), float(low), float(high)


def mean_interval(x_N: np.ndarray) -> tuple[float, float]:
  """Mean and the half width of its 95% interval (normal, one value: nan)."""
  x_N = np.asarray(x_N, np.float64)
  if len(x_N) < 2:
    return float(x_N.mean()), float("nan")
  half = 1.959963984540054 * x_N.std(ddof=1) / np.sqrt(len(x_N))
  return float(x_N.mean()), float(half)
