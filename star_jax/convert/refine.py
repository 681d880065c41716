"""STAR's refinement head, official state dict keys to ours and back.

The keys lie in the same file as those of the transformer
(`enable_adaptive_norm=True`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from star_jax.convert.block import block_rules, linear
from star_jax.convert.state_dict import (
  Converted,
  Rule,
  jax_to_torch,
  squeeze,
)
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.shapes import parameter_tree

# Beginnings of the keys of the head.
PREFIXES = (
  "encoder_proj2.",
  "feat_extract_blocks.",
  "head_logits2.",
  "head_proj.",
  "lvl_embed_2.",
  "pos_start_last",
  "word_embed_head.",
)


def is_refine_key(key: str) -> bool:
  """Whether a key of an official STAR file belongs to the head."""
  return key.startswith(PREFIXES)


def refine_rules(config: StarConfig, refine: RefineConfig) -> tuple[Rule, ...]:
  """Every key of the head."""
  return (
    Rule("pos_start_last", "pos_start", squeeze(0, 1)),
    Rule("lvl_embed_2.weight", "lvl_embed"),
    *linear("encoder_proj2", "text_proj"),
    *linear("word_embed_head", "word_embed"),
    *linear("head_proj", "proj"),
    *linear("head_logits2", "head"),
    *block_rules(config.width, refine.depth, "feat_extract_blocks"),
  )


def refine_from_torch(
  state: Mapping[str, np.ndarray], config: StarConfig, refine: RefineConfig
) -> dict[str, Any]:
  """Parameters of the head from an official state dict; the keys of the
  transformer beside them are not looked at.

  Raises:
    ValueError: a missing key or another shape, by name.
  """
  return converted_refine(state, config, refine).tree()


def converted_refine(
  state: Mapping[str, np.ndarray], config: StarConfig, refine: RefineConfig
) -> Converted:
  """`refine_from_torch`, parameter by parameter."""
  state = {key: x for key, x in state.items() if is_refine_key(key)}
  template = parameter_tree(RefineHead(config, refine))
  return Converted(state, refine_rules(config, refine), template)


def refine_to_torch(
  params: Mapping[str, Any], config: StarConfig, refine: RefineConfig
) -> dict[str, np.ndarray]:
  """The official keys of the head."""
  return jax_to_torch(params, refine_rules(config, refine))
