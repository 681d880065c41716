"""From logits to a draw: guidance, temperature, top-k, top-p, the draw itself.

Pure functions, arrays in and arrays out, float32. A removed token is -inf.
Every knob may be a traced scalar, so that changing it compiles nothing.

The two filters never sort. Both keep what lies at or above a threshold, and
the threshold is found by bisection on the bits of the float: 32 comparisons
with V numbers, which is many times faster than a sort on a CPU and exact.

B: samples, l: tokens of one scale, V: vocabulary, n: bits of a token.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from star_jax.reductions import argmax_last

# VAR's schedule of the temperature of Gumbel smoothing (its `more_smooth`).
_SMOOTH_TAU, _SMOOTH_DECAY, _SMOOTH_TAU_MIN = 0.27, 0.95, 0.005


def guide(
  cond_BlV: jax.Array, uncond_BlV: jax.Array, t: jax.Array | float
) -> jax.Array:
  """Classifier-free guidance, (1 + t) cond - t uncond; t = 0 is off."""
  return (1 + t) * cond_BlV - t * uncond_BlV


def apply_temperature(
  logits_BlV: jax.Array, temperature: jax.Array | float
) -> jax.Array:
  """logits / temperature; below 1 sharpens, above 1 flattens."""
  return logits_BlV / temperature


def filter_top_k(logits_BlV: jax.Array, top_k: jax.Array | int) -> jax.Array:
  """Removes what is smaller than the k-th largest; ties at it survive.

  Args:
    logits_BlV: float32 [..., V].
    top_k: how many to keep; 0 keeps all.
  """
  keys = _ordered_bits(logits_BlV)
  vocab_size = logits_BlV.shape[-1]
  wanted = jnp.where(top_k > 0, top_k, vocab_size)

  def enough(threshold):
    return jnp.sum(keys >= threshold[..., None], axis=-1) >= wanted

  threshold = _largest_where(enough, keys.shape[:-1])
  return jnp.where(keys >= threshold[..., None], logits_BlV, -jnp.inf)


def filter_top_p(logits_BlV: jax.Array, top_p: jax.Array | float) -> jax.Array:
  """Nucleus: removes the smallest while their sum stays <= 1 - top_p.

  Golden rule 17: on the (already top-k filtered) distribution, in ascending
  order of probability; the largest is never removed. Equal probabilities are
  kept or removed together, so that the result does not depend on their order.

  Args:
    logits_BlV: float32 [..., V].
    top_p: in (0, 1]; 1 removes nothing but zeros, 0 (as in the official code)
      switches the filter off.
  """
  probs_BlV = jax.nn.softmax(logits_BlV, axis=-1)
  keys = _ordered_bits(probs_BlV)
  budget = 1 - jnp.asarray(top_p, jnp.float32)

  def removable(threshold):
    below = jnp.where(keys < threshold[..., None], probs_BlV, 0.0)
    return jnp.sum(below, axis=-1) <= budget

  threshold = _largest_where(removable, keys.shape[:-1])
  # Rounding may let the whole sum fit into the budget of a tiny top_p.
  threshold = jnp.minimum(threshold, jnp.max(keys, axis=-1))
  keep = (keys >= threshold[..., None]) | jnp.asarray(top_p <= 0)
  return jnp.where(keep, logits_BlV, -jnp.inf)


def gumbel_noise(keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """float32 [B, *shape]; row b depends on keys_B[b] and on nothing else."""
  return jax.vmap(lambda key: jax.random.gumbel(key, shape, jnp.float32))(
    keys_B
  )


def draw(logits_BlV: jax.Array, noise_BlV: jax.Array) -> jax.Array:
  """int32 [...] of [..., V], a categorical draw by the Gumbel-max trick."""
  return argmax_last(logits_BlV + noise_BlV)


def bit_pairs(logits_Bln: jax.Array) -> jax.Array:
  """Logits of bits -> of the two values of each, [B, l, n, 2]: what the filters
  and the draw above then do, they do to every bit on its own, as in Infinity
  (arXiv 2412.04431). So top_k = 1 takes the likelier value of a bit, and top_p
  removes the other one where its probability is at most 1 - top_p."""
  return jnp.stack([jnp.zeros_like(logits_Bln), logits_Bln], axis=-1)


def smooth_weights(
  logits_BlV: jax.Array, noise_BlV: jax.Array, ratio: float
) -> jax.Array:
  """Gumbel smoothing: soft weights over the codebook instead of one token.

  VAR's `more_smooth`, for looks only and never for measurements: the map of a
  scale becomes a mixture of code vectors, sharper from scale to scale.

  Args:
    logits_BlV: guided logits, -inf where a token is not to be mixed in.
    noise_BlV: standard Gumbel noise, independent of the draw's.
    ratio: k / (K - 1).

  Returns:
    float32 [B, l, V], rows sum to 1.
  """
  tau = max(_SMOOTH_TAU * (1 - _SMOOTH_DECAY * ratio), _SMOOTH_TAU_MIN)
  return jax.nn.softmax((logits_BlV * (1 + ratio) + noise_BlV) / tau, axis=-1)


def _ordered_bits(x: jax.Array) -> jax.Array:
  """int32 of the same order as the floats (-0 counts as 0)."""
  # Not `x + 0.0`, which the compiler simplifies away.
  bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _largest_where(holds, shape: tuple[int, ...]) -> jax.Array:
  """The largest int32 for which `holds`, true for small and false for large.

  Args:
    holds: int32 [*shape] -> bool [*shape], monotone in each entry.
    shape: of the result; every entry is searched on its own.
  """

  def halve(_, bounds):
    low, high = bounds
    # The mean rounded up, without overflow of the sum.
    middle = (low | high) - ((low ^ high) >> 1)
    ok = holds(middle)
    return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

  low = jnp.full(shape, jnp.iinfo(jnp.int32).min, jnp.int32)
  high = jnp.full(shape, jnp.iinfo(jnp.int32).max, jnp.int32)
  return jax.lax.fori_loop(0, 32, halve, (low, high))[0]
