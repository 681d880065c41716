"""The smooth background behind the objects of a picture."""

from __future__ import annotations

import numpy as np


def fit_background(lab: np.ndarray) -> np.ndarray:
  """The smooth background as a plane per channel, float32 [H, W, 3].

  Robust: planes are fitted from several starts, pixels reweighted by their
  distance so that objects do not count. The one that explains the border and
  the corners best is taken, since objects seldom reach there.
  """
  height, width, _ = lab.shape
  y, x = np.meshgrid(
    np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"
  )
  design = np.stack([np.ones_like(x), x, y], -1).reshape(-1, 3)
  values = lab.reshape(-1, 3).astype(np.float64)
  border = (np.maximum(np.abs(x), np.abs(y)) == 1).reshape(-1)
  corners = (np.minimum(np.abs(x), np.abs(y)) > 1 - 4 / width).reshape(-1)
  best, best_score = None, -1.0
  starts = (
    np.median(values[border], 0),
    np.median(values[corners], 0),
    _commonest(values),
  )
  for start in starts:
    fitted = np.broadcast_to(start, values.shape)
    for scale in (0.15, 0.1, 0.06, 0.05):
      error = ((values - fitted) ** 2).sum(1)
      weight = (1 + border + corners) / (1 + error / scale**2) ** 2
      weighted = design * weight[:, None]
      plane = np.linalg.solve(
        design.T @ weighted + 1e-6 * np.eye(3), weighted.T @ values
      )
      fitted = design @ plane
    near = ((values - fitted) ** 2).sum(1) < 0.05**2
    score = near[border].mean() + near[corners].mean() + near.mean() / 4
    if score > best_score:
      best, best_score = fitted, score
  return best.reshape(lab.shape).astype(np.float32)


def _commonest(values: np.ndarray) -> np.ndarray:
  """Mean colour of the fullest cell of a coarse colour histogram."""
  cells = np.floor(values / 0.08).astype(int)
  _, inverse, counts = np.unique(
    cells, axis=0, return_inverse=True, return_counts=True
  )
  return values[inverse.reshape(-1) == counts.argmax()].mean(0)
