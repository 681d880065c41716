"""The small functions that all parts of the transformer are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from star_jax.sharding import axis_size

# What must not be rounded to bfloat16 or TF32 by the hardware: embeddings of
# codes, conditions and the head (DESIGN, precision policy).
HIGHEST = jax.lax.Precision.HIGHEST


def weight_init(std: float):
  """Normal cut at absolute values of 2, the official initialiser."""

  def init(key, shape, dtype=jnp.float32):
    drawn = jax.random.truncated_normal(key, -2.0 / std, 2.0 / std, shape)
    return (std * drawn).astype(dtype)

  return init


def layer_norm(x_BLC: jax.Array, eps: float) -> jax.Array:
  """Without affine; float32 inside and out."""
  x = x_BLC.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def l2_normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
  """Unit length along the last axis; float32 inside, x's dtype out."""
  y = x.astype(jnp.float32)
  norm2 = jnp.square(y).sum(-1, keepdims=True)
  return (y * jax.lax.rsqrt(jnp.maximum(norm2, eps**2))).astype(x.dtype)


def drop_path(x_BLC: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
  """Drops whole samples of a residual branch and rescales the others."""
  keep = 1.0 - rate
  kept = jax.random.bernoulli(key, keep, (x_BLC.shape[0], 1, 1))
  return x_BLC * (kept / keep).astype(x_BLC.dtype)


def flat_tokens(x_BLC: jax.Array) -> jax.Array:
  """[B, L, C] -> [B L, C], for products with weights.

  With two leading axes XLA for CPU writes transposed copies of the activations
  for the gradients of the weights. Where devices share the tokens of a picture
  it stays as it is: one axis cannot be cut both ways.
  """
  if axis_size("sequence") > 1:
    return x_BLC
  return x_BLC.reshape(-1, x_BLC.shape[-1])
