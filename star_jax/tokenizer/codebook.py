"""Codes that fit the data: data-dependent start, revival of dead codes.

The official start (uniform in +-1/V) leaves most entries far from any feature
vector, and entries that are never chosen never learn. Short trainings cannot
wait for that to resolve itself. Both helpers are pure functions that a
training task calls between steps; `VQVAE.residuals` gives the candidates.

Quantizers without a codebook start with the gains of their scales, where these
are learned.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.reductions import argmin_last
from star_jax.tokenizer import resize
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import Quantizer
from star_jax.tokenizer.scale_quantizers import HIGHEST, NORMALIZE_EPS

# Noise on copied vectors, relative to their spread, so that no two codes are
# equal (the first of two equal codes would take every hit).
JITTER = 0.01
# Share of all hits that is spread evenly before rates are taken, so that a code
# that was not seen is long, not impossible.
RATE_FLOOR = 0.02
# Vectors that are compared with the whole codebook at once.
ROWS_AT_ONCE = 2**15
# Gains that are tried, as multiples of the root mean square of the residuals.
GAINS = np.geomspace(0.25, 8.0, 41)


def init_codes_from_features(
  params: Mapping[str, Any],
  f_BhwCv: jax.Array,
  key: jax.Array,
  config: VQVAEConfig,
  iterations: int = 0,
) -> dict[str, Any]:
  """What the quantizer of `config` takes from the first features: a codebook,
  gains, or nothing. Arguments as of `init_codebook_from_features`."""
  if config.quantizer == "vq":
    return init_codebook_from_features(params, f_BhwCv, key, config, iterations)
  if config.learned_gains:
    return init_gains_from_features(params, f_BhwCv, config)
  return dict(params)


def init_gains_from_features(
  params: Mapping[str, Any], f_BhwCv: jax.Array, config: VQVAEConfig
) -> dict[str, Any]:
  """Parameters whose gains lose least of the residuals, scale by scale.

  Args:
    params: parameters of a `VQVAE` with `learned_gains`.
    f_BhwCv: features of some images, float32.
    config: of the same tokenizer.

  Returns:
    A copy of `params` with another "quantizer/log_gain_KCv".
  """
  quantizer = Quantizer(config)
  quantizer_params = dict(params["quantizer"])
  f_rest = jnp.asarray(f_BhwCv, jnp.float32)
  for k, grid in enumerate(config.schedule.grids):
    z_BhwCv = resize.shrink(f_rest, grid)
    z_NCv = einops.rearrange(z_BhwCv, "b h w c -> (b h w) c")
    best_Cv = _best_log_gain(quantizer, quantizer_params, k, z_NCv)
    gains_KCv = jnp.asarray(quantizer_params["log_gain_KCv"])
    quantizer_params["log_gain_KCv"] = gains_KCv.at[k].set(best_Cv)
    f_rest = f_rest - _approximation(quantizer, quantizer_params, k, z_NCv)
  return {**params, "quantizer": quantizer_params}


@functools.partial(jax.jit, static_argnames=("quantizer", "k"))
def _best_log_gain(
  quantizer: Quantizer, params: Mapping[str, Any], k: int, z_NCv: jax.Array
) -> jax.Array:
  """Logarithm [Cv] of the best gain of each channel, [1] of all together."""
  start_KCv = jnp.asarray(params["log_gain_KCv"])
  width = start_KCv.shape[1]
  square_Cv = jnp.mean(jnp.square(z_NCv), axis=0)
  if width == 1:
    square_Cv = jnp.sum(square_Cv, keepdims=True)
  # A channel that is always 0 has no best gain.
  rms_Cv = jnp.sqrt(jnp.maximum(square_Cv, 1e-12))
  tried_MCv = jnp.log(jnp.asarray(GAINS, jnp.float32))[:, None] + jnp.log(
    rms_Cv
  )

  def error(log_gain_Cv):
    gains_KCv = start_KCv.at[k].set(log_gain_Cv)
    variables = {"params": {**params, "log_gain_KCv": gains_KCv}}
    idx_N = quantizer.apply(variables, z_NCv, k, method="nearest")
    codes_NCv = quantizer.apply(variables, idx_N, k, method="codes")
    error_Cv = jnp.mean(jnp.square(z_NCv - codes_NCv), axis=0)
    return jnp.sum(error_Cv, keepdims=True) if width == 1 else error_Cv

  error_MCv = jax.lax.map(error, tried_MCv)
  return jnp.take_along_axis(
    tried_MCv, jnp.argmin(error_MCv, axis=0)[None], axis=0
  )[0]


def init_codebook_from_features(
  params: Mapping[str, Any],
  f_BhwCv: jax.Array,
  key: jax.Array,
  config: VQVAEConfig,
  iterations: int = 0,
) -> dict[str, Any]:
  """Parameters whose codebook is made of the data's own residuals.

  Scale by scale, a share of the codebook (in proportion to the square root of
  the tokens of the scale) is drawn from the residual vectors of that scale and
  refined by k-means; the residuals are then quantized with the codes so far.

  Args:
    params: parameters of a `VQVAE`.
    f_BhwCv: features of some images (`VQVAE.features`), float32; of the order
      of V / h / w images or more.
    key: PRNG key.
    config: of the same tokenizer.
    iterations: of k-means (Lloyd's) over the vectors of each scale.

  Returns:
    A copy of `params` with another "quantizer/codebook_VCv".
  """
  quantizer = Quantizer(config)
  quantizer_params = dict(params["quantizer"])
  schedule = config.schedule
  weights = np.sqrt(np.asarray(schedule.lengths, np.float64))
  ends = np.round(
    np.cumsum(weights) / weights.sum() * config.vocab_size
  ).astype(int)
  f_rest = jnp.asarray(f_BhwCv, jnp.float32)
  codes_VCv = jnp.zeros((0, config.code_dim), jnp.float32)
  for k, grid in enumerate(schedule.grids):
    z_BhwCv = resize.shrink(f_rest, grid)
    z_NCv = einops.rearrange(z_BhwCv, "b h w c -> (b h w) c")
    wanted = int(ends[k]) - codes_VCv.shape[0]
    fresh = draw_candidates(z_NCv, wanted, jax.random.fold_in(key, k))
    for _ in range(iterations):
      fresh = _lloyd(fresh, z_NCv, config.using_znorm)
    codes_VCv = jnp.concatenate([codes_VCv, fresh])
    # Not yet drawn entries repeat drawn ones, so that they change nothing.
    filled = jnp.resize(codes_VCv, (config.vocab_size, config.code_dim))
    quantizer_params["codebook_VCv"] = filled
    f_rest = f_rest - _approximation(quantizer, quantizer_params, k, z_NCv)
  return {**params, "quantizer": quantizer_params}


def revive_codes(
  codebook_VCv: jax.Array,
  usage_V: jax.Array,
  candidates_NCv: jax.Array,
  key: jax.Array,
  threshold: float,
) -> tuple[jax.Array, jax.Array]:
  """Replaces hardly used codes by vectors that the codebook should explain.

  Args:
    codebook_VCv: codebook.
    usage_V: running mean of each code's hits, in any unit.
    candidates_NCv: recent residual vectors (`VQVAE.residuals`, flattened).
    key: PRNG key.
    threshold: codes with usage below it are replaced, same unit as usage.

  Returns:
    The codebook and a bool [V], True where a code was replaced: the caller
    resets the usage (and the optimizer's moments) there, or the code dies
    again before it had a chance.
  """
  dead_V = usage_V < threshold
  fresh_VCv = draw_candidates(candidates_NCv, codebook_VCv.shape[0], key)
  return jnp.where(dead_V[:, None], fresh_VCv, codebook_VCv), dead_V


def code_rates(usage_KV: jax.Array, rate_weight: Sequence[float]) -> jax.Array:
  """What each code costs at each scale beside its distance.

  Args:
    usage_KV: hits of each code, in any unit.
    rate_weight: `VQVAEConfig.rate_weight`.

  Returns:
    float32 [K, V], rate_weight times the length of the code in nats.
  """
  total_K1 = jnp.maximum(usage_KV.sum(axis=-1, keepdims=True), RATE_FLOOR)
  share_KV = usage_KV / total_K1
  share_KV = (1 - RATE_FLOOR) * share_KV + RATE_FLOOR / usage_KV.shape[-1]
  return -jnp.asarray(rate_weight, jnp.float32)[:, None] * jnp.log(share_KV)


def draw_candidates(
  candidates_NCv: jax.Array, count: int, key: jax.Array
) -> jax.Array:
  """[count, Cv]: distinct candidates first, repeats only when they run out."""
  order_key, noise_key = jax.random.split(key)
  order_N = jax.random.permutation(order_key, candidates_NCv.shape[0])
  drawn = candidates_NCv[jnp.resize(order_N, count)]
  noise = jax.random.normal(noise_key, drawn.shape)
  return drawn + JITTER * jnp.std(candidates_NCv) * noise


def entropy_loss(
  z_NCv: jax.Array, codes_VCv: jax.Array, temperature: float, cosine: bool
) -> jax.Array:
  """Low where each vector is sure of its code and all codes are used alike
  (MaskGIT's tokenizer, arXiv 2202.04200; MAGVIT-v2, 2310.05737, section 3.1).

  Vectors choose softly, by the softmax of minus the squared distance over
  `temperature`; the loss is the mean entropy of the choices less the entropy
  of the mean choice, in nats.

  Args:
    z_NCv: what is looked up; without a gradient.
    codes_VCv: codebook, which the gradient goes to.
    temperature: in units of the mean squared distance between the two.
    cosine: of unit vectors, as `using_znorm` compares.
  """
  if cosine:
    z_NCv, codes_VCv = _unit(z_NCv), _unit(codes_VCv)
  distance_NV = (
    jnp.sum(jnp.square(z_NCv), axis=-1, keepdims=True)
    + jnp.sum(jnp.square(codes_VCv), axis=-1)
    - 2 * jnp.einsum("nc,vc->nv", z_NCv, codes_VCv, precision=HIGHEST)
  )
  unit = jax.lax.stop_gradient(jnp.mean(distance_NV))
  log_p_NV = jax.nn.log_softmax(-distance_NV / (temperature * unit + 1e-12))
  p_NV = jnp.exp(log_p_NV)
  sure = -jnp.mean(jnp.sum(p_NV * log_p_NV, axis=-1))
  mean_V = jnp.mean(p_NV, axis=0)
  even = -jnp.sum(mean_V * jnp.log(jnp.maximum(mean_V, 1e-12)))
  return sure - even


def _lloyd(codes_VCv: jax.Array, z_NCv: jax.Array, cosine: bool) -> jax.Array:
  """Each code becomes the mean of the vectors that are nearest to it."""

  def nearest(z_NCv):
    if cosine:
      # Codes of one direction would share the hits of a single one.
      return _nearest(_unit(codes_VCv), _unit(z_NCv))
    return _nearest(codes_VCv, z_NCv)

  nearest_N = _in_parts(nearest, z_NCv)
  count_V = jnp.zeros(len(codes_VCv)).at[nearest_N].add(1.0)
  total_VCv = jnp.zeros_like(codes_VCv).at[nearest_N].add(z_NCv)
  mean_VCv = total_VCv / jnp.maximum(count_V, 1.0)[:, None]
  return jnp.where(count_V[:, None] > 0, mean_VCv, codes_VCv)


@jax.jit
def _nearest(codes_VCv: jax.Array, z_NCv: jax.Array) -> jax.Array:
  """int32 [N], by distance."""
  distance_NV = jnp.sum(jnp.square(codes_VCv), -1) - 2 * jnp.einsum(
    "nc,vc->nv", z_NCv, codes_VCv, precision=HIGHEST
  )
  return argmin_last(distance_NV)


def _unit(x_NCv: jax.Array) -> jax.Array:
  """Unit vectors; zeros stay zeros, with a gradient of zero."""
  squared_N1 = jnp.sum(jnp.square(x_NCv), axis=-1, keepdims=True)
  return x_NCv / jnp.sqrt(jnp.maximum(squared_N1, NORMALIZE_EPS**2))


def _in_parts(function, z_NCv: jax.Array) -> jax.Array:
  """`function` of so many rows at a time that N x V distances fit."""
  starts = range(0, z_NCv.shape[0], ROWS_AT_ONCE)
  return jnp.concatenate(
    [function(z_NCv[i : i + ROWS_AT_ONCE]) for i in starts]
  )


def _approximation(
  quantizer: Quantizer, params: Mapping[str, Any], k: int, z_NCv: jax.Array
) -> jax.Array:
  """What scale k subtracts from the residual, [B, h, w, Cv]."""
  idx_N = _in_parts(
    lambda z: quantizer.apply({"params": params}, z, k, method="nearest"),
    z_NCv,
  )
  length = quantizer.config.schedule.lengths[k]
  idx_Bl = einops.rearrange(idx_N, "(b l) -> b l", l=length)
  return quantizer.apply({"params": params}, k, idx_Bl, method="contribution")
