"""Normalised 2D rotary position embedding (STAR, arXiv 2406.10797, 3.3).

Every scale covers the same picture, so coordinates of all scales are stretched
to one common range before they become angles. The first half of a head's
rotation planes turns with the column x, the second half with the row y; a
plane is a pair of adjacent channels (2j, 2j + 1).

L: tokens, d: head channels, p: rotation planes = d / 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.layers import HIGHEST
from star_jax.scales import ScaleSchedule


def rope_angles(
  schedule: ScaleSchedule,
  head_dim: int,
  theta: float,
  rope_norm: float,
  rope_coords: str = "checkpoint",
) -> np.ndarray:
  """float64 [L, d / 2]: the angle of every rotation plane of every token.

  Plane j of an axis turns with frequency theta ** (-4 j / d), j < d / 4.
  """
  if head_dim % 4:
    raise ValueError(
      f"2D RoPE needs a head width that is a multiple of 4, got {head_dim}."
    )
  freqs = theta ** (-4.0 * np.arange(head_dim // 4) / head_dim)
  rows = []
  for k in range(schedule.num_scales):
    y, x = schedule.coordinates(k, rope_norm, rope_coords)
    rows.append(np.concatenate([np.outer(x, freqs), np.outer(y, freqs)], 1))
  return np.concatenate(rows, 0)


def rope_tables(
  schedule: ScaleSchedule,
  head_dim: int,
  theta: float,
  rope_norm: float,
  rope_coords: str = "checkpoint",
) -> tuple[np.ndarray, np.ndarray]:
  """cos and sin, float32 [L, d / 2].

  Computed on the host in float64 and rounded once, so that no accelerator's
  reduced-precision product or sine touches a position.
  """
  angles = rope_angles(schedule, head_dim, theta, rope_norm, rope_coords)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def apply_rope(
  x_BNLd: jax.Array, cos_Lp: jax.Array, sin_Lp: jax.Array
) -> jax.Array:
  """Turn the planes of every head; float32 in the product, x's dtype out."""
  x = x_BNLd.astype(jnp.float32).reshape(*x_BNLd.shape[:-1], -1, 2)
  even, odd = x[..., 0], x[..., 1]
  turned = jnp.stack(
    [even * cos_Lp - odd * sin_Lp, even * sin_Lp + odd * cos_Lp], axis=-1
  )
  return turned.reshape(x_BNLd.shape).astype(x_BNLd.dtype)


def apply_rope_by_product(
  x_BNLd: jax.Array, cos_Lp: jax.Array, sin_Lp: jax.Array
) -> jax.Array:
  """The same as a product with a matrix of 0, 1 and -1, which is exact.

  A TPU moves no channels about for it.
  """
  channels = x_BNLd.shape[3]
  even = np.arange(0, channels, 2)
  swap = np.zeros((channels, channels), np.float32)
  swap[even + 1, even], swap[even, even + 1] = -1, 1
  swapped = jnp.einsum(
    "bnld,de->bnle",
    x_BNLd,
    jnp.asarray(swap, x_BNLd.dtype),
    precision=HIGHEST if x_BNLd.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
  cos, sin = (jnp.repeat(table, 2, axis=-1) for table in (cos_Lp, sin_Lp))
  turned = x_BNLd.astype(jnp.float32) * cos + swapped * sin
  return turned.astype(x_BNLd.dtype)
