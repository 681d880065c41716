"""Resizing of maps as products with fixed matrices.

The tokenizer shrinks maps by area averaging and grows them by PyTorch's
bicubic interpolation. Both act on each axis alone, so each is a matrix
[n_out, n_in] that is computed once with numpy; on the device a resize is two
matrix products. `jax.image.resize` has another cubic kernel and edge rule.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The a of the cubic convolution kernel that PyTorch uses.
CUBIC_A = -0.75


@functools.cache
def area_matrix(n_in: int, n_out: int) -> np.ndarray:
  """float32 [n_out, n_in] of adaptive average pooling along one axis.

  Row i averages the inputs floor(i * n_in / n_out) up to (not including)
  ceil((i + 1) * n_in / n_out); windows overlap where n_out does not divide
  n_in.
  """
  matrix = np.zeros((n_out, n_in))
  for i in range(n_out):
    start = i * n_in // n_out
    stop = -(-(i + 1) * n_in // n_out)
    matrix[i, start:stop] = 1.0 / (stop - start)
  return _frozen(matrix)


@functools.cache
def bicubic_matrix(n_in: int, n_out: int) -> np.ndarray:
  """float32 [n_out, n_in] of bicubic interpolation along one axis.

  Half-pixel centres, borders clamped, no antialiasing.
  """
  matrix = np.zeros((n_out, n_in))
  for i in range(n_out):
    centre = (i + 0.5) * n_in / n_out - 0.5
    left = int(np.floor(centre))
    for j in range(left - 1, left + 3):
      # Taps beyond the border read the border, so weights add up there.
      matrix[i, min(max(j, 0), n_in - 1)] += _cubic(abs(centre - j))
  return _frozen(matrix)


@functools.cache
def bilinear_matrix(n_in: int, n_out: int) -> np.ndarray:
  """float32 [n_out, n_in] of bilinear interpolation along one axis.

  Half-pixel centres (align_corners False), borders clamped, no antialiasing.
  """
  matrix = np.zeros((n_out, n_in))
  for i in range(n_out):
    centre = max((i + 0.5) * n_in / n_out - 0.5, 0.0)
    left = min(int(centre), n_in - 1)
    weight = min(centre - left, 1.0)
    matrix[i, left] += 1 - weight
    matrix[i, min(left + 1, n_in - 1)] += weight
  return _frozen(matrix)


@functools.cache
def nearest_matrix(n_in: int, n_out: int) -> np.ndarray:
  """float32 [n_out, n_in]: output i repeats input floor(i * n_in / n_out)."""
  return _frozen(np.eye(n_in)[np.arange(n_out) * n_in // n_out])


def _cubic(x: float) -> float:
  """Keys' cubic convolution kernel at distance x >= 0."""
  a = CUBIC_A
  if x <= 1:
    return ((a + 2) * x - (a + 3)) * x * x + 1
  if x < 2:
    return a * (((x - 5) * x + 8) * x - 4)
  return 0.0


def _frozen(matrix: np.ndarray) -> np.ndarray:
  """Read-only, because the cache hands the same array to everybody."""
  matrix = matrix.astype(np.float32)
  matrix.flags.writeable = False
  return matrix


def resize_maps(
  x_BhwC: jax.Array, rows: np.ndarray, cols: np.ndarray
) -> jax.Array:
  """Applies one matrix to each axis: [B, h, w, C] -> [B, h', w', C], float32.

  Args:
    x_BhwC: maps.
    rows: [h', h], e.g. `area_matrix(h, h')`.
    cols: [w', w].
  """
  x = x_BhwC.astype(jnp.float32)
  x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=jax.lax.Precision.HIGHEST)
  return jnp.einsum(
    "jw,biwc->bijc", cols, x, precision=jax.lax.Precision.HIGHEST
  )


def shrink(x_BhwC: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Area averaging to `grid` (h', w'); same size is the identity."""
  h, w = x_BhwC.shape[1:3]
  if (h, w) == tuple(grid):
    return x_BhwC
  return resize_maps(x_BhwC, area_matrix(h, grid[0]), area_matrix(w, grid[1]))


GROWTHS = {"bicubic": bicubic_matrix, "nearest": nearest_matrix}


def grow(
  x_BhwC: jax.Array, grid: tuple[int, int], growth: str = "bicubic"
) -> jax.Array:
  """Interpolation to `grid` (h', w'); same size is the identity."""
  h, w = x_BhwC.shape[1:3]
  if (h, w) == tuple(grid):
    return x_BhwC
  matrix = GROWTHS[growth]
  return resize_maps(x_BhwC, matrix(h, grid[0]), matrix(w, grid[1]))
