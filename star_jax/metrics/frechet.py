"""Frechet distance between two sets of picture features.

The formula of FID (arXiv 1706.08500, equation 6). The name FID goes with
InceptionV3 features; elsewhere the network is said beside it.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
  """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of the covariances A and B.

  It is larger for smaller sets: compare equal numbers only.

  Args:
    x_ND, y_MD: float features of N and M pictures.

  Raises:
    ValueError: fewer than two pictures on a side, or two widths.
  """
  x, y = (np.asarray(f, np.float64) for f in (x_ND, y_MD))
  if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:]:
    raise ValueError(
      "The distance compares features [N, D] of one width, got the shapes"
      f" {x.shape} and {y.shape}."
    )
  if min(len(x), len(y)) < 2:
    raise ValueError(
      "The distance needs at least 2 pictures on each side, got"
      f" {len(x)} and {len(y)}."
    )
  apart = np.sum((x.mean(0) - y.mean(0)) ** 2)
  # A = X'X and B = Y'Y: the trace of the root of A B is the sum of the singular
  # values of X Y', a matrix of N x M instead of D x D.
  a, b = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (x, y))
  root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
  return float(apart + np.sum(a**2) + np.sum(b**2) - 2 * root)
