"""Official STAR transformer state dicts (`var_drop.VAR`), both ways.

Rotary tables, level ids and attention masks are not in these files. Two
families of keys are, without being used: `class_emb.weight` and the constant
zero bias of the keys. The head of the causal-driven stable sampler
(enable_adaptive_norm, golden README, rule 26) has no counterpart here yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from star_jax.convert.block import (
  attention_rules,
  block_rules,
  fused,
  transformer_template,
)
from star_jax.convert.refine import is_refine_key
from star_jax.convert.state_dict import (
  LINEAR,
  Converted,
  Rule,
  ignore,
  jax_to_torch,
  linear,
  squeeze,
)
from star_jax.model.config import StarConfig

# Rows of the unused class embedding that we write: 1000 classes and the null
# class, the official default.
CLASS_ROWS = 1001


def star_rules(
  config: StarConfig, class_rows: int = CLASS_ROWS
) -> tuple[Rule, ...]:
  """Every key of an official STAR transformer.

  Args:
    config: the model.
    class_rows: rows of the unused class embedding that are written.
  """
  width = config.width
  rules = [
    ignore("class_emb.weight", shape=(class_rows, width)),
    Rule("pos_start", "pos_start", squeeze(0, 1)),
    Rule("pos_1LC", "pos_embed", squeeze(0)),
    Rule("lvl_embed.weight", "lvl_embed"),
    *linear("word_embed", "word_embed"),
    *linear("encoder_proj", "start_proj"),
    *linear("head_logits", "head"),
    *linear("lvl_embed_proj", "lvl_embed_proj"),
    *linear("lvl_embed_adaln.1", "lvl_embed_adaln"),
    *block_rules(config.width, config.depth),
  ]
  if config.cross_attention:
    rules += [
      ignore("blocks.{layer}.cross_attn.zero_k_bias", (width,), config.depth),
      *attention_rules("cross_attn"),
      Rule(
        "blocks.{layer}.cross_attn.mat_q.weight",
        "blocks/cross_attn/q/kernel",
        LINEAR,
      ),
      Rule("blocks.{layer}.cross_attn.mat_kv.weight", "cross/kv", fused(2)),
      Rule("blocks.{layer}.cross_attn.v_bias", "cross/v_bias"),
    ]
  return tuple(rules)


def star_from_torch(
  state: Mapping[str, np.ndarray], config: StarConfig
) -> dict[str, Any]:
  """Our parameters from an official state dict.

  Raises:
    ValueError: unknown or missing keys, or a shape of another configuration,
      by name.
  """
  return converted_star(state, config).tree()


def converted_star(
  state: Mapping[str, np.ndarray], config: StarConfig
) -> Converted:
  """`star_from_torch`, parameter by parameter, without the refinement head."""
  without = set(refine_keys(state))
  state = {key: value for key, value in state.items() if key not in without}
  return Converted(state, star_rules(config), transformer_template(config))


def refine_keys(state: Mapping[str, np.ndarray]) -> tuple[str, ...]:
  """The keys of the refinement head, in order."""
  return tuple(sorted(key for key in state if is_refine_key(key)))


def star_to_torch(
  params: Mapping[str, Any], config: StarConfig, class_rows: int = CLASS_ROWS
) -> dict[str, np.ndarray]:
  """The official state dict; the keys that nothing reads are zeros."""
  return jax_to_torch(params, star_rules(config, class_rows))
