"""Kernel distance between two sets of picture features (KID).

Demystifying MMD GANs, arXiv 1801.01401: the squared maximum mean discrepancy
under the kernel (x . y / d + 1)^3, by the unbiased estimator. The name KID goes
with InceptionV3 features; elsewhere the network is said beside it.
"""

from __future__ import annotations

import numpy as np

DEGREE = 3
# Rows of the kernel matrix held at once.
ROWS = 1024


def kernel_distance(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
  """Unbiased squared MMD; about 0 (possibly below) for one distribution.

  Args:
    x_ND, y_MD: float features of N and M pictures.

  Raises:
    ValueError: fewer than two pictures on a side, features of different
      widths or ones that are not finite.
  """
  x, y = (np.asarray(f, np.float64) for f in (x_ND, y_MD))
  if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
    raise ValueError(
      "The distance compares features [N, D] of one width, got the shapes"
      f" {x.shape} and {y.shape}."
    )
  if min(len(x), len(y)) < 2:
    raise ValueError(
      "The distance needs at least 2 pictures on each side, got"
      f" {len(x)} and {len(y)}."
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError("Some features are not finite.")
  within = sum(_sum(a, a, True) / (len(a) * (len(a) - 1)) for a in (x, y))
  return float(within - 2 * _sum(x, y, False) / (len(x) * len(y)))


def _sum(a: np.ndarray, b: np.ndarray, same: bool) -> float:
  """The kernel summed over all pairs, or over pairs of different pictures."""
  width, total = a.shape[1], 0.0
  for begin in range(0, len(a), ROWS):
    rows = a[begin : begin + ROWS]
    total += ((rows @ b.T / width + 1) ** DEGREE).sum()
  if same:
    total -= ((np.square(a).sum(1) / width + 1) ** DEGREE).sum()
  return total
