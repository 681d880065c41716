"""Official STAR transformer state dicts (`var_drop.VAR`), both ways.

Rotary tables, level ids and attention masks are not in these files. Two
families of keys are, without being used: `class_emb.weight` and the constant
zero bias of the keys.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.convert.state_dict import (
  COPY,
  LINEAR,
  Rule,
  Transform,
  ignore,
  jax_to_torch,
  squeeze,
  torch_to_jax,
)
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.text.states import TextStates

# Rows of the unused class embedding that we write: 1000 classes and the null
# class, the official default.
CLASS_ROWS = 1001


def fused(parts: int) -> Transform:
  """(parts * C, in) <-> (in, parts, C): several linear layers in one."""
  return Transform(
    f"fused{parts}",
    lambda x: x.T.reshape(x.shape[1], parts, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
    rank=2,
  )


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
    ignore("blocks.{layer}.attn.zero_k_bias", (width,), config.depth),
    Rule("pos_start", "pos_start", squeeze(0, 1)),
    Rule("pos_1LC", "pos_embed", squeeze(0)),
    Rule("lvl_embed.weight", "lvl_embed"),
    *_linear("word_embed", "word_embed"),
    *_linear("encoder_proj", "start_proj"),
    *_linear("head_logits", "head"),
    *_linear("lvl_embed_proj", "lvl_embed_proj"),
    *_linear("lvl_embed_adaln.1", "lvl_embed_adaln"),
    *_attention_rules("attn"),
    Rule("blocks.{layer}.attn.mat_qkv.weight", "blocks/attn/qkv", fused(3)),
    Rule("blocks.{layer}.attn.v_bias", "blocks/attn/v_bias"),
    *_linear("blocks.{layer}.ffn.fc1", "blocks/mlp/fc1"),
    *_linear("blocks.{layer}.ffn.fc2", "blocks/mlp/fc2"),
    Rule("blocks.{layer}.ada_gss", "blocks/modulation/ada_gss", squeeze(0, 1)),
  ]
  if config.cross_attention:
    rules += [
      ignore("blocks.{layer}.cross_attn.zero_k_bias", (width,), config.depth),
      *_attention_rules("cross_attn"),
      Rule(
        "blocks.{layer}.cross_attn.mat_q.weight",
        "blocks/cross_attn/q/kernel",
        LINEAR,
      ),
      Rule("blocks.{layer}.cross_attn.mat_kv.weight", "cross/kv", fused(2)),
      Rule("blocks.{layer}.cross_attn.v_bias", "cross/v_bias"),
    ]
  return tuple(rules)


def _linear(key: str, path: str) -> tuple[Rule, Rule]:
  return (
    Rule(f"{key}.weight", f"{path}/kernel", LINEAR),
    Rule(f"{key}.bias", f"{path}/bias", COPY),
  )


def _attention_rules(name: str) -> tuple[Rule, ...]:
  """What self- and cross-attention have in common."""
  q_bias = "q_bias" if name == "attn" else "q/bias"
  return (
    *_linear(f"blocks.{{layer}}.{name}.proj", f"blocks/{name}/proj"),
    Rule(f"blocks.{{layer}}.{name}.q_bias", f"blocks/{name}/{q_bias}"),
    Rule(
      f"blocks.{{layer}}.{name}.scale_mul_1H11",
      f"blocks/{name}/scale_mul",
      squeeze(0, 2, 3),
    ),
  )


@functools.cache
def star_template(config: StarConfig) -> dict[str, Any]:
  """The parameter tree as `ShapeDtypeStruct`s; nothing is allocated."""
  schedule = config.schedule
  tokens = jax.ShapeDtypeStruct(
    (1, schedule.num_tokens - 1, config.code_dim), jnp.float32
  )
  text = TextStates(
    text_BTD=jax.ShapeDtypeStruct((1, 1, config.text_dim), jnp.float32),
    text_mask_BT=jax.ShapeDtypeStruct((1, 1), bool),
    pooled_BD=jax.ShapeDtypeStruct((1, config.text_dim), jnp.float32),
  )
  return jax.eval_shape(Star(config).init, jax.random.key(0), tokens, text)[
    "params"
  ]


def star_from_torch(
  state: Mapping[str, np.ndarray], config: StarConfig
) -> dict[str, Any]:
  """Our parameters from an official state dict.

  Raises:
    ValueError: unknown or missing keys, or a shape of another configuration,
      by name.
  """
  return torch_to_jax(state, star_rules(config), star_template(config))


def star_to_torch(
  params: Mapping[str, Any], config: StarConfig, class_rows: int = CLASS_ROWS
) -> dict[str, np.ndarray]:
  """The official state dict; the keys that nothing reads are zeros."""
  return jax_to_torch(params, star_rules(config, class_rows))
