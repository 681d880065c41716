"""How likely the model finds given tokens, by one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.model.condition import Given
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
    log_p_BLV = jax.nn.log_softmax(logits_BLV)
    log_p_BL = jnp.take_along_axis(log_p_BLV, idx_BL[..., None], axis=-1)[
      ..., 0
    ]
    return jnp.stack(
      [
        log_p_BL[:, begin:end].sum(axis=1)
        for begin, end in star.config.schedule.begin_ends
      ],
      axis=1,
    )

  return jax.jit(log_prob)
