"""Distances between two sets of features.

Frechet distance: arXiv 1706.08500, equation 6. Kernel distance by subsets: as
torch-fidelity draws and reports them (arXiv 1801.01401). Precision and recall:
arXiv 1904.06991, equations 1 to 3. All are of any feature network; FID, KID
and so on are their names with InceptionV3 alone.

N, M: pictures, D: feature width.
"""

from __future__ import annotations

import numpy as np

from star_jax.evaluation.moments import Moments
from star_jax.metrics.kid import kernel_distance

# Rows of a distance matrix held at once.
ROWS = 1024


def frechet_distance(a: Moments, b: Moments) -> float:
  """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)).

  The trace of (A B)^(1/2) is taken from the eigenvalues of the symmetric
  A^(1/2) B A^(1/2), which are real whatever the rank.

  Raises:
    ValueError: features of different widths, fewer than two pictures.
  """
  if a.sum_D.shape != b.sum_D.shape:
    raise ValueError(
      "The statistics are of different feature networks: their widths are"
      f" {len(a.sum_D)} and {len(b.sum_D)}."
    )
  if min(a.count, b.count) < 2:
    raise ValueError(
      "The Frechet distance needs at least 2 pictures on each side, got"
      f" {a.count} and {b.count}."
    )
  cov_a, cov_b = a.covariance, b.covariance
  values, vectors = np.linalg.eigh(cov_a)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  inner = root @ cov_b @ root
  eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
  cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
  shift = a.mean - b.mean
  return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kernel_subsets(
  x_ND: np.ndarray, y_MD: np.ndarray, subsets: int, size: int, seed: int
) -> tuple[float, float]:
  """Mean and standard deviation of the kernel distance of random subsets.

  Raises:
    ValueError: fewer than `size` pictures on a side.
  """
  if min(len(x_ND), len(y_MD)) < size:
    raise ValueError(
      f"The kernel distance takes subsets of {size} pictures, got"
      f" {len(x_ND)} and {len(y_MD)}."
    )
  rng = np.random.RandomState(seed)
  values = []
  for _ in range(subsets):
    x = x_ND[rng.choice(len(x_ND), size, replace=False)]
    y = y_MD[rng.choice(len(y_MD), size, replace=False)]
    values.append(kernel_distance(x, y))
  return float(np.mean(values)), float(np.std(values))


def precision_recall(
  real_MD: np.ndarray, generated_ND: np.ndarray, neighbours: int
) -> tuple[float, float]:
  """Shares of one set within the other's manifold.

  Precision: generated pictures that are no farther from some real picture than
  that one's k-th nearest real neighbour. Recall: the same with the sets
  exchanged.

  Raises:
    ValueError: a side has no k-th neighbour.
  """
  if min(len(real_MD), len(generated_ND)) <= neighbours:
    raise ValueError(
      f"Precision and recall with {neighbours} neighbours need at least"
      f" {neighbours + 1} pictures on each side, got {len(real_MD)} real and"
      f" {len(generated_ND)} generated ones."
    )
  precision = _share_within(generated_ND, real_MD, neighbours)
  recall = _share_within(real_MD, generated_ND, neighbours)
  return precision, recall


def _share_within(x_ND, manifold_MD, neighbours: int) -> float:
  radius_M = np.concatenate(
    [
      # The nearest one is the picture itself.
      np.partition(rows, neighbours, axis=1)[:, neighbours]
      for rows in _squared(manifold_MD, manifold_MD)
    ]
  )
  inside = [
    (rows <= radius_M[None]).any(1) for rows in _squared(x_ND, manifold_MD)
  ]
  return float(np.concatenate(inside).mean())


def _squared(x_ND, y_MD):
  """Squared distances to all of y, a block of rows of x at a time."""
  x, y = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)
  norms = np.square(y).sum(1)
  for begin in range(0, len(x), ROWS):
    rows = x[begin : begin + ROWS]
    out = np.square(rows).sum(1)[:, None] + norms - 2 * rows @ y.T
    yield np.maximum(out, 0)
