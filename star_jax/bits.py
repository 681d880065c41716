"""Tokens of binary codes: packing, unpacking, random flips.

Bit i of a token, counted from the least significant, belongs to channel i of
its code and is 1 where that channel is positive. Both sides read it here: the
tokenizer (tokenizer/scale_quantizers.py) and the transformer's head of bits.

B: batch, l: tokens, n: bits of a token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Tokens are int32.
MOST_BITS = 30


def unpack(idx: jax.Array, bits: int) -> jax.Array:
  """Tokens int32 [...] -> their bits, int32 [..., n] of 0 and 1."""
  return (jnp.asarray(idx)[..., None] >> jnp.arange(bits)) & 1


def pack(bits: jax.Array) -> jax.Array:
  """Bits [..., n], 0 and 1 or bool -> tokens int32 [...]."""
  places = jnp.arange(bits.shape[-1], dtype=jnp.int32)
  return jnp.sum(bits.astype(jnp.int32) << places, axis=-1, dtype=jnp.int32)


def flip(
  idx_Bl: jax.Array, keys_B: jax.Array, rate: jax.Array | float, bits: int
) -> jax.Array:
  """Tokens with random bits the other way round (Infinity, arXiv 2412.04431,
  bitwise self-correction).

  Each sample draws its own share of wrong bits, uniform in [0, rate], and then
  each bit on its own.

  Args:
    idx_Bl: tokens.
    keys_B: a key a sample; row b depends on its own alone.
    rate: the largest share; 0 flips nothing.
    bits: n.
  """

  def wrong(key):
    share_key, bit_key = jax.random.split(key)
    share = rate * jax.random.uniform(share_key)
    shape = (*idx_Bl.shape[1:], bits)
    return pack(jax.random.uniform(bit_key, shape) < share)

  return idx_Bl ^ jax.vmap(wrong)(keys_B)
