"""Fixed sine and cosine positions (arXiv 1706.03762, section 3.5), in 2D.

Half of the channels tell the row, half the column, in integer coordinates of
the scale's own grid.
"""

from __future__ import annotations

import numpy as np

from star_jax.scales import ScaleSchedule

BASE = 10_000.0


def sinusoidal_grid(grid: tuple[int, int], width: int) -> np.ndarray:
  """float64 [h, w, width], entries in [-1, 1]; width a multiple of 4."""
  rate = BASE ** -(np.arange(width // 4) / (width // 4))

  def axis(length: int) -> np.ndarray:
    angle = np.arange(length)[:, None] * rate
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

  (h, w), shape = grid, (*grid, width // 2)
  rows = np.broadcast_to(axis(h)[:, None], shape)
  columns = np.broadcast_to(axis(w)[None], shape)
  return np.concatenate([rows, columns], axis=-1)


def sinusoidal_table(
  schedule: ScaleSchedule, width: int, std: float
) -> np.ndarray:
  """float32 [L, width] of all tokens, scaled to the root mean square `std`.

  That of freshly drawn embeddings: unscaled, positions would drown the codes
  they are added to.
  """
  rows = [
    sinusoidal_grid(grid, width).reshape(-1, width) for grid in schedule.grids
  ]
  # The mean of a squared sine and the squared cosine beside it is one half.
  return (np.concatenate(rows) * std * np.sqrt(2)).astype(np.float32)
