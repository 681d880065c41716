"""Structural similarity (Wang et al. 2004) of two batches of pictures.

B: batch, H W: pixels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, SIGMA = 11, 1.5
# Against division by zero, for values in [0, 1] (K1, K2 of the paper, squared).
C1, C2 = 0.01**2, 0.03**2


@jax.jit
def ssim(x_BHW3: jax.Array, y_BHW3: jax.Array) -> jax.Array:
  """float32 [B], 1 for equal pictures.

  Under a Gaussian window of 11 pixels, places where it fits alone; the mean
  over places and the three colour channels.

  Args:
    x_BHW3, y_BHW3: values in [0, 1], at least 11 pixels a side.

  Raises:
    ValueError: smaller pictures, or two shapes.
  """
  if x_BHW3.shape != y_BHW3.shape or min(x_BHW3.shape[1:3]) < WINDOW:
    raise ValueError(
      f"SSIM compares pictures of one shape and at least {WINDOW} pixels a"
      f" side, got {x_BHW3.shape} and {y_BHW3.shape}."
    )
  place = np.arange(WINDOW) - WINDOW // 2
  window = np.exp(-(place**2) / (2 * SIGMA**2))
  window = (window / window.sum()).astype(np.float32)

  def mean(x):
    for axis in (1, 2):
      length = x.shape[axis] - WINDOW + 1
      x = sum(
        w * jax.lax.slice_in_dim(x, i, i + length, axis=axis)
        for i, w in enumerate(window)
      )
    return x

  mean_x, mean_y = mean(x_BHW3), mean(y_BHW3)
  var_x = mean(x_BHW3**2) - mean_x**2
  var_y = mean(y_BHW3**2) - mean_y**2
  cov = mean(x_BHW3 * y_BHW3) - mean_x * mean_y
  light = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
  rest = (2 * cov + C2) / (var_x + var_y + C2)
  return jnp.mean(light * rest, axis=(1, 2, 3))
