"""What the official state dicts of STAR and VAR have in common."""

from __future__ import annotations

import functools
from typing import Any

from star_jax.convert.state_dict import (
  Rule,
  Transform,
  ignore,
  linear,
  squeeze,
)
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.shapes import parameter_tree


def fused(parts: int) -> Transform:
  """(parts * C, in) <-> (in, parts, C): several linear layers in one."""
  return Transform(
    f"fused{parts}",
    lambda x: x.T.reshape(x.shape[1], parts, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
    rank=2,
  )


def parts(count: int) -> Transform:
  """(count * C,) <-> (count, C): the bias of a `fused` map."""
  return Transform(
    f"parts{count}",
    lambda x: x.reshape(count, -1),
    lambda x: x.reshape(-1),
    rank=1,
  )


def block_rules(
  width: int, depth: int, name: str = "blocks"
) -> tuple[Rule, ...]:
  """Self-attention, MLP and the offsets of a shared modulation.

  Args:
    width, depth: of the layers.
    name: of their list on the official side; "blocks" on ours.
  """
  layer = f"{name}.{{layer}}"
  return (
    ignore(f"{layer}.attn.zero_k_bias", (width,), depth),
    *attention_rules("attn", name),
    Rule(f"{layer}.attn.mat_qkv.weight", "blocks/attn/qkv", fused(3)),
    Rule(f"{layer}.attn.v_bias", "blocks/attn/v_bias"),
    *linear(f"{layer}.ffn.fc1", "blocks/mlp/fc1"),
    *linear(f"{layer}.ffn.fc2", "blocks/mlp/fc2"),
    Rule(f"{layer}.ada_gss", "blocks/modulation/ada_gss", squeeze(0, 1)),
  )


def attention_rules(name: str, blocks: str = "blocks") -> tuple[Rule, ...]:
  """What self- and cross-attention have in common."""
  q_bias = "q_bias" if name == "attn" else "q/bias"
  layer = f"{blocks}.{{layer}}.{name}"
  return (
    *linear(f"{layer}.proj", f"blocks/{name}/proj"),
    Rule(f"{layer}.q_bias", f"blocks/{name}/{q_bias}"),
    Rule(
      f"{layer}.scale_mul_1H11",
      f"blocks/{name}/scale_mul",
      squeeze(0, 2, 3),
    ),
  )


@functools.cache
def transformer_template(config: StarConfig) -> dict[str, Any]:
  """The parameter tree as `ShapeDtypeStruct`s; nothing is allocated."""
  return parameter_tree(Star(config))
