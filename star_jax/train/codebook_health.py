"""The codebook between steps: how it is used, revival, rates.

B: batch, K: scales, V: codebook size, Cv: code width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from star_jax.tokenizer import codebook as codebook_lib
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train import batches as batches_lib
from star_jax.train.state import TrainState

# A code counts as used from this share of its uniform expectation on, as in
# VAR's usage figure.
USED_SHARE = 0.08
CODEBOOK_PATH = ("quantizer", "codebook_VCv")


def usage_metrics(usage_KV: jax.Array) -> dict[str, jax.Array]:
  """Share of codes in use, over all scales and per scale, and perplexity.

  A code is used from 8% of its uniform expectation on; the perplexity is
  given as a share of V.
  """
  usage_V = jnp.sum(usage_KV, axis=0)
  p_V = usage_V / jnp.maximum(jnp.sum(usage_V), 1e-9)
  entropy = -jnp.sum(p_V * jnp.log(jnp.maximum(p_V, 1e-12)))

  def used(hits):
    floor = USED_SHARE * jnp.mean(hits, axis=-1, keepdims=True)
    return jnp.mean((hits >= floor) & (hits > 0), axis=-1)

  return {
    "codebook_used": used(usage_V),
    "codebook_used_k": used(usage_KV),
    "codebook_perplexity": jnp.exp(entropy) / usage_V.shape[0],
  }


@functools.partial(
  jax.jit, static_argnames=("vqvae", "threshold"), donate_argnames="state"
)
def revive(
  state: TrainState,
  image: jax.Array,
  key: jax.Array,
  expected_KV: jax.Array,
  *,
  vqvae: VQVAE,
  threshold: float,
) -> TrainState:
  """Gives codes with hardly any hits a vector of this batch.

  Args:
    state: donated.
    image: uint8 [B, H, W, 3], the source of new vectors.
    key: the run's training key.
    expected_KV: hits of a uniformly used codebook.
    vqvae: the tokenizer.
    threshold: codes below this share of the expectation are replaced.

  Returns:
    The state with the codes replaced in parameters and average, their moments
    cleared and their usage back at the expectation.
  """
  variables = {"params": state.params}
  f_BhwCv = vqvae.apply(
    variables, batches_lib.to_unit(image), method="features"
  )
  residuals = vqvae.apply(variables, f_BhwCv, method="residuals")
  usage_V = state.extra["usage_KV"].sum(axis=0)
  share_V = usage_V / expected_KV.sum(axis=0)
  # Another stream than the step of the same number draws from.
  draw_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 1)
  module, name = CODEBOOK_PATH
  codes_VCv, dead_V = codebook_lib.revive_codes(
    state.params[module][name],
    share_V,
    residuals.reshape(-1, residuals.shape[-1]),
    draw_key,
    threshold,
  )

  def replaced(tree):
    if tree is None:
      return None
    old = tree[module][name]
    new = jnp.where(dead_V[:, None], codes_VCv, old)
    return {**tree, module: {**tree[module], name: new}}

  def cleared(path, leaf):
    names = tuple(getattr(part, "key", None) for part in path)
    if names[-2:] != CODEBOOK_PATH:
      return leaf
    return jnp.where(dead_V[:, None], 0.0, leaf)

  usage_KV = jnp.where(dead_V, expected_KV, state.extra["usage_KV"])
  return state.replace(
    params=replaced(state.params),
    ema_params=replaced(state.ema_params),
    opt_state=jax.tree_util.tree_map_with_path(cleared, state.opt_state),
    extra={**state.extra, "usage_KV": usage_KV},
  )


def due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def with_rates(state: TrainState, rate_KV: jax.Array) -> TrainState:
  """The state with other rates, in parameters and average."""

  def replaced(tree):
    if tree is None:
      return None
    # A copy: parameters and average are donated as two buffers.
    return {
      **tree,
      "quantizer": {**tree["quantizer"], "rate_KV": jnp.copy(rate_KV)},
    }

  return state.replace(
    params=replaced(state.params), ema_params=replaced(state.ema_params)
  )
