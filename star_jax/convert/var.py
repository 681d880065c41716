"""Official VAR transformer state dicts (`models.var.VAR`), both ways.

Level ids and the attention mask are in these files; we compute them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from star_jax.convert.block import (
  block_rules,
  fused,
  parts,
  transformer_template,
)
from star_jax.convert.state_dict import (
  Converted,
  Rule,
  derived,
  jax_to_torch,
  linear,
  squeeze,
)
from star_jax.model.config import StarConfig


def var_rules(config: StarConfig) -> tuple[Rule, ...]:
  """Every key of an official VAR transformer."""
  lvl_L = config.schedule.level_ids

  def mask() -> np.ndarray:
    hidden_LL = lvl_L[:, None] < lvl_L[None, :]
    return np.where(hidden_LL, -np.inf, 0.0).astype(np.float32)[None, None]

  prefix = "shared_ada_lin.1"
  if config.adaptive_norm == "block":
    prefix = "blocks.{layer}.ada_lin.1"
  return (
    derived("lvl_1L", lambda: lvl_L[None].astype(np.int64)),
    derived("attn_bias_for_masking", mask),
    Rule("class_emb.weight", "class_embed/embedding"),
    Rule("pos_start", "pos_start", squeeze(0, 1)),
    Rule("pos_1LC", "pos_embed", squeeze(0)),
    Rule("lvl_embed.weight", "lvl_embed"),
    *linear("word_embed", "word_embed"),
    *block_rules(config.width, config.depth),
    Rule(f"{prefix}.weight", "adaptive_norm/kernel", fused(6)),
    Rule(f"{prefix}.bias", "adaptive_norm/bias", parts(6)),
    Rule("head_nm.ada_lin.1.weight", "head_norm/kernel", fused(2)),
    Rule("head_nm.ada_lin.1.bias", "head_norm/bias", parts(2)),
    *linear("head", "head"),
  )


def var_from_torch(
  state: Mapping[str, np.ndarray], config: StarConfig
) -> dict[str, Any]:
  """Our parameters from an official state dict.

  Raises:
    ValueError: unknown or missing keys, or a shape of another configuration,
      by name.
  """
  return converted_var(state, config).tree()


def converted_var(
  state: Mapping[str, np.ndarray], config: StarConfig
) -> Converted:
  """`var_from_torch`, parameter by parameter."""
  return Converted(state, var_rules(config), transformer_template(config))


def var_to_torch(
  params: Mapping[str, Any], config: StarConfig
) -> dict[str, np.ndarray]:
  """The official state dict."""
  return jax_to_torch(params, var_rules(config))
