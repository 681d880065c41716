"""How likely the model finds given tokens, by one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax import bits as bit_ops
from star_jax.inputs import bucket
from star_jax.model.condition import Given
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.sampling.sampler import check_pair
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.tokenizer.vqvae import VQVAE

LogProbFn = Callable[[Any, jax.Array, Given], jax.Array]


def build_log_prob(star: Star, vqvae: VQVAE) -> LogProbFn:
  """The jitted fn(params, idx_BL, given) -> float32 [B, K].

  Entry (b, k) is log p(tokens of scale k | coarser scales, text or class b) in
  nats, summed over the tokens, without guidance and at temperature 1.
  """
  check_pair(star, vqvae)

  def log_prob(params, idx_BL: jax.Array, given: Given) -> jax.Array:
    x_BLCv = teacher_forcing_input(
      star.config, vqvae, params["tokenizer"], idx_BL
    )
    logits_BLV = star.apply({"params": params["star"]}, x_BLCv, given)
    log_p_BL = _token_log_prob(star.config, logits_BLV, idx_BL)
    return jnp.stack(
      [
        log_p_BL[:, begin:end].sum(axis=1)
        for begin, end in star.config.schedule.begin_ends
      ],
      axis=1,
    )

  return jax.jit(log_prob)


def _token_log_prob(
  config: StarConfig, logits_BLV: jax.Array, idx_BL: jax.Array
) -> jax.Array:
  """float32 [B, L]."""
  if config.head == "bits":
    bits_BLn = bit_ops.unpack(idx_BL, config.num_logits)
    odds_BLn = (2 * bits_BLn - 1) * logits_BLV
    return jnp.sum(jax.nn.log_sigmoid(odds_BLn), axis=-1)
  log_p_BLV = jax.nn.log_softmax(logits_BLV)
  return jnp.take_along_axis(log_p_BLV, idx_BL[..., None], axis=-1)[..., 0]


def log_prob_in_batches(
  log_prob: Callable[[jax.Array, Given], jax.Array],
  tokens_BL: np.ndarray,
  prompts: Sequence[str],
  encode: Callable[[Sequence[str]], Given],
  batch: int,
) -> np.ndarray:
  """float64 [B, K] of B rows of tokens, each under its own prompt.

  Args:
    log_prob: of one batch, see `build_log_prob`.
    tokens_BL, prompts: B of each.
    encode: turns prompts into what the model is conditioned on; a prompt that
      comes several times is encoded once.
    batch: most rows at once; fewer are padded to a power of two.
  """
  unique = list(dict.fromkeys(prompts))
  given = encode(unique)
  place = {prompt: i for i, prompt in enumerate(unique)}
  rows, out = np.asarray([place[prompt] for prompt in prompts]), []
  for begin in range(0, len(rows), batch):
    part = np.arange(begin, min(begin + batch, len(rows)))
    padded = np.resize(part, bucket(len(part)))
    log_p_BK = log_prob(tokens_BL[padded], given[rows[padded]])
    out.append(np.asarray(log_p_BK, np.float64)[: len(part)])
  return np.concatenate(out)
