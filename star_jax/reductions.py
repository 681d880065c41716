"""Index of the extreme element, fast on every backend.

XLA's CPU code for argmin and argmax walks element by element with a pair of
accumulators: 36 ms for float32 [4096, 1024] on two cores. Two plain minima,
which do vectorise, give the same index in about 3 ms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Positions are carried as float32, which is exact up to here.
MAX_LENGTH = 1 << 24


def argmin_last(x: jax.Array) -> jax.Array:
  """First index of the minimum over the last axis: [..., n] -> int32 [...].

  Rows that hold NaN have no defined index, as nothing compares with NaN; they
  give n - 1.
  """
  n = x.shape[-1]
  assert n <= MAX_LENGTH, n
  # The barrier keeps XLA from computing the minimum again for every element.
  least = jax.lax.optimization_barrier(jnp.min(x, axis=-1, keepdims=True))
  position = jnp.arange(n, dtype=jnp.float32)
  first = jnp.min(jnp.where(x <= least, position, jnp.float32(n - 1)), axis=-1)
  return first.astype(jnp.int32)


def argmax_last(x: jax.Array) -> jax.Array:
  """First index of the maximum over the last axis; see `argmin_last`."""
  return argmin_last(-x)
