"""What the transformer reads when all tokens of a picture are known."""

from __future__ import annotations

from typing import Any

import jax

from star_jax.model.config import StarConfig
from star_jax.sharding import constrain
from star_jax.tokenizer.vqvae import VQVAE


def teacher_forcing_input(
  config: StarConfig, vqvae: VQVAE, params: Any, idx_BL: jax.Array
) -> jax.Array:
  """Tokens int32 [B, L] -> inputs float32 [B, L - 1, Cv] of all but the first.

  Args:
    config: of the transformer; its `prediction` decides. "scale": all coarser
      scales, on the grid of the scale; "token": the code of the token before.
    vqvae, params: the tokenizer, whose quantizer alone is used.
    idx_BL: the tokens.
  """
  by_scale = config.prediction == "scale"
  method = "teacher_forcing_input" if by_scale else "previous_codes"
  x_BLCv = vqvae.apply({"params": params}, idx_BL, method=method)
  return constrain(x_BLCv, "inputs_BLCv")
