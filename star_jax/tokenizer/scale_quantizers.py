"""What the multi-scale quantizer does with the vectors of one scale.

`Quantizer` shrinks, grows, filters and subtracts; which code stands for a
vector is decided here. Four ways:

  vq   the nearest entry of a learned codebook (VAR, arXiv 2404.02905).
  fsq  each channel is rounded to its own few levels (arXiv 2309.15505).
  lfq  each channel is its sign (arXiv 2310.05737).
  bsq  the same on the unit sphere: signs by the square root of the width (arXiv
       2406.07548). As in Infinity (arXiv 2412.04431) the residual of each scale
       is normalised anew.

The last three have no codebook. Their codes have a fixed size, while residuals
shrink from scale to scale: with `learned_gains` a scale multiplies them by its
own factors.

N: vectors, V: codes, Cv: code width, k: scale, K: scales, n: bits of a code, g:
bits of a group, G: groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax import bits as bit_ops
from star_jax.reductions import argmax_last, argmin_last
from star_jax.tokenizer.config import VQVAEConfig

HIGHEST = jax.lax.Precision.HIGHEST
NORMALIZE_EPS = 1e-12
# `flax.linen.Module.param`: (name, initializer, shape) -> array.
ParamFn = Callable[[str, Any, tuple[int, ...]], jax.Array]


class ScaleQuantizer(Protocol):
  """Vectors to tokens and back; everything float32 but the tokens."""

  def bounded(self, f_BhwCv: jax.Array) -> jax.Array:
    """The features that the scales explain, once before the first of them."""

  def nearest(self, z_NCv: jax.Array, k: int) -> jax.Array:
    """Tokens int32 [N] of vectors of scale k."""

  def codes(self, idx: jax.Array, k: int | None = None) -> jax.Array:
    """Tokens [...] -> vectors [..., Cv] of scale k; None: without its gain."""

  def mixture(self, weights_BlV: jax.Array, k: int) -> jax.Array:
    """Weights over all codes -> vectors [B, l, Cv] (Gumbel smoothing)."""

  def loss_terms(self, z_NCv: jax.Array, k: int) -> dict[str, jax.Array]:
    """Losses of scale k beside those of f_hat, by name, not weighted; asked
    for where there is an `entropy_weight`."""


def scale_quantizer(config: VQVAEConfig, param: ParamFn) -> ScaleQuantizer:
  """The one that `config.quantizer` names; `param` declares its parameters."""
  return _BY_NAME[config.quantizer](config, param)


class VectorQuantizer:
  """The nearest entry of a codebook."""

  def __init__(self, config: VQVAEConfig, param: ParamFn):
    self.config = c = config
    self.codebook_VCv = param(
      "codebook_VCv", _init_codebook, (c.vocab_size, c.code_dim)
    )
    if c.rate_weight:
      # Weighted length of each code, set by `codebook.code_rates`; it has no
      # gradient.
      shape = (c.schedule.num_scales, c.vocab_size)
      self.rate_KV = param("rate_KV", nn.initializers.zeros, shape)

  def bounded(self, f_BhwCv: jax.Array) -> jax.Array:
    return f_BhwCv

  def nearest(self, z_NCv: jax.Array, k: int) -> jax.Array:
    """By distance, by distance plus rate (`rate_weight`), or by cosine."""
    codes = jax.lax.stop_gradient(self.codebook_VCv)
    if self.config.using_znorm:
      # Only the choice is by cosine; the entry is used as it is stored.
      return argmax_last(_dot(normalize(z_NCv), normalize(codes)))
    distance = (
      jnp.sum(jnp.square(z_NCv), axis=-1, keepdims=True)
      + jnp.sum(jnp.square(codes), axis=-1)
      - 2 * _dot(z_NCv, codes)
    )
    if self.config.rate_weight:
      distance += jax.lax.stop_gradient(self.rate_KV[k])
    return argmin_last(distance)

  def codes(self, idx: jax.Array, k: int | None = None) -> jax.Array:
    del k
    return self.codebook_VCv[idx]

  def mixture(self, weights_BlV: jax.Array, k: int) -> jax.Array:
    del k
    return _mixed(weights_BlV, self.codebook_VCv)

  def loss_terms(self, z_NCv: jax.Array, k: int) -> dict[str, jax.Array]:
    del z_NCv, k
    return {}


class _Lattice:
  """Codes that follow from their number; subclasses say how."""

  def __init__(self, config: VQVAEConfig, param: ParamFn):
    self.config = c = config
    self._log_gain_KCv = None
    if c.learned_gains:
      # On the sphere all channels share one.
      width = 1 if c.quantizer == "bsq" else c.code_dim
      self._log_gain_KCv = param(
        "log_gain_KCv", nn.initializers.zeros, (c.schedule.num_scales, width)
      )

  def gain(self, k: int) -> jax.Array | float:
    """What multiplies the codes of scale k: [Cv], [1] or 1."""
    if self._log_gain_KCv is None:
      return 1.0
    return jnp.exp(self._log_gain_KCv[k])

  def bounded(self, f_BhwCv: jax.Array) -> jax.Array:
    return f_BhwCv

  def nearest(self, z_NCv: jax.Array, k: int) -> jax.Array:
    return self._index(z_NCv / self.gain(k))

  def codes(self, idx: jax.Array, k: int | None = None) -> jax.Array:
    unit = self._unit(idx)
    return unit if k is None else unit * self.gain(k)

  def mixture(self, weights_BlV: jax.Array, k: int) -> jax.Array:
    return _mixed(weights_BlV, self.codes(jnp.arange(weights_BlV.shape[-1]), k))

  def loss_terms(self, z_NCv: jax.Array, k: int) -> dict[str, jax.Array]:
    del z_NCv, k
    return {}


class FiniteScalarQuantizer(_Lattice):
  """Channel i takes `levels[i]` values, from -1 on in steps of 1 / (levels[i]
  // 2); 0 is one of them.

  Features are squeezed into that range by tanh once, before the first scale,
  and residuals rounded: with a single scale that is the paper's FSQ. With
  learned gains the range follows the residuals instead.
  """

  def __init__(self, config: VQVAEConfig, param: ParamFn):
    super().__init__(config, param)
    self._levels = np.asarray(config.levels)
    self._half = self._levels // 2
    self._basis = np.cumprod([1, *config.levels[:-1]]).astype(np.int32)

  def bounded(self, f_BhwCv: jax.Array) -> jax.Array:
    if self.config.learned_gains:
      return f_BhwCv
    reach = (self._levels - 1) / 2
    # An even number of levels has one more below 0 than above.
    offset = np.where(self._levels % 2, 0.0, 0.5)
    # A feature of 0 stays 0.
    shift = np.arctanh(offset / reach).astype(np.float32)
    squeezed = jnp.tanh(f_BhwCv + shift)
    bound = squeezed * reach.astype(np.float32) - offset.astype(np.float32)
    return bound / self._half.astype(np.float32)

  def _index(self, z_NCv: jax.Array) -> jax.Array:
    digit = jnp.round(z_NCv * self._half.astype(np.float32)) + self._half
    digit = jnp.clip(digit, 0, self._levels - 1).astype(jnp.int32)
    return jnp.sum(digit * self._basis, axis=-1, dtype=jnp.int32)

  def _unit(self, idx: jax.Array) -> jax.Array:
    digit = jnp.asarray(idx)[..., None] // self._basis % self._levels
    return (digit - self._half) / self._half.astype(np.float32)


class BinaryQuantizer(_Lattice):
  """One bit a channel: `lfq` has codes of +-1, `bsq` of length 1."""

  @property
  def _size(self) -> float:
    c = self.config
    return c.code_dim**-0.5 if c.quantizer == "bsq" else 1.0

  def _index(self, z_NCv: jax.Array) -> jax.Array:
    # Signs know no length: the normalisation of bsq would not change them.
    return bit_ops.pack(z_NCv > 0)

  def _unit(self, idx: jax.Array) -> jax.Array:
    bits = bit_ops.unpack(idx, self.config.code_dim)
    return (2 * bits - 1) * jnp.float32(self._size)

  def loss_terms(self, z_NCv: jax.Array, k: int) -> dict[str, jax.Array]:
    """The entropy loss of LFQ and BSQ, see `entropy_loss`.

    A vector chooses codes by softmax(-|z - code|^2 / entropy_temperature), each
    bit independently of the others.
    """
    c = self.config
    z_NCv = z_NCv / jax.lax.stop_gradient(self.gain(k))
    if c.quantizer == "bsq":
      z_NCv = normalize(z_NCv)
    logits = 4 * self._size / c.entropy_temperature * z_NCv
    return {"entropy": entropy_loss(logits, c.entropy_group, c.entropy_gamma)}


def entropy_loss(logits_Nn: jax.Array, group: int, gamma: float) -> jax.Array:
  """E[H(q)] - gamma * H(E[q]) in nats: sure of each vector, all codes in use.

  LFQ, arXiv 2310.05737, section 3. The first term is exact, since bits are
  independent given the vector. The second is that of groups of bits, summed
  over the groups: all bits as one group are LFQ's own term, groups of one the
  factorised approximation of BSQ (arXiv 2406.07548), an upper
  bound whose cost grows with the bits and not with the codes.

  Args:
    logits_Nn: log-odds of every bit of every vector.
    group: bits of a group, a divisor of n.
    gamma: weight of the second term.
  """
  logits_NGg = logits_Nn.reshape(len(logits_Nn), -1, group)
  bits_cg = bit_ops.unpack(jnp.arange(2**group), group)
  # log p(bit) = log_sigmoid(-logit) + bit * logit, summed over the group.
  none_NG1 = jnp.sum(nn.log_sigmoid(-logits_NGg), axis=-1, keepdims=True)
  log_p_NGc = none_NG1 + jnp.einsum(
    "NGg,cg->NGc",
    logits_NGg,
    bits_cg.astype(jnp.float32),
    precision=HIGHEST,
  )
  p_NGc = jnp.exp(log_p_NGc)
  each = -jnp.sum(p_NGc * log_p_NGc, axis=(1, 2))
  mean_Gc = jnp.mean(p_NGc, axis=0)
  together = -jnp.sum(mean_Gc * jnp.log(jnp.maximum(mean_Gc, 1e-12)))
  return jnp.mean(each) - gamma * together


def normalize(x_NCv: jax.Array) -> jax.Array:
  """Rows of length 1; rows of zeros stay, with a gradient of 0."""
  square = jnp.sum(jnp.square(x_NCv), axis=-1, keepdims=True)
  norm = jnp.sqrt(jnp.maximum(square, NORMALIZE_EPS**2))
  return x_NCv / jnp.maximum(norm, NORMALIZE_EPS)


def _init_codebook(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Uniform in +-1/V, the official choice."""
  bound = 1 / shape[0]
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _dot(z_NCv: jax.Array, codes_VCv: jax.Array) -> jax.Array:
  return jnp.einsum("nc,vc->nv", z_NCv, codes_VCv, precision=HIGHEST)


def _mixed(weights_BlV: jax.Array, codes_VCv: jax.Array) -> jax.Array:
  return jnp.einsum("blv,vc->blc", weights_BlV, codes_VCv, precision=HIGHEST)


_BY_NAME = {
  "vq": VectorQuantizer,
  "fsq": FiniteScalarQuantizer,
  "lfq": BinaryQuantizer,
  "bsq": BinaryQuantizer,
}
