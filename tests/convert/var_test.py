"""Official VAR key names: nothing unmatched, for every published size."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.presets import PRESETS
from star_jax.convert import var
from star_jax.convert.block import transformer_template
from star_jax.model.config import StarConfig

PUBLISHED = [name for name in PRESETS if name.startswith("var_")]


def official_shapes(config: StarConfig) -> dict[str, tuple[int, ...]]:
  """Keys and shapes as the official code lists them, written out here."""
  c, n, tokens = config.width, config.num_heads, config.schedule.num_tokens
  shapes = {
    "pos_start": (1, 1, c),
    "pos_1LC": (1, tokens, c),
    "lvl_1L": (1, tokens),
    "attn_bias_for_masking": (1, 1, tokens, tokens),
    "class_emb.weight": (config.num_classes + 1, c),
    "word_embed.weight": (c, config.code_dim),
    "word_embed.bias": (c,),
    "lvl_embed.weight": (config.schedule.num_scales, c),
    "head_nm.ada_lin.1.weight": (2 * c, c),
    "head_nm.ada_lin.1.bias": (2 * c,),
    "head.weight": (config.vocab_size, c),
    "head.bias": (config.vocab_size,),
  }
  shared = config.adaptive_norm == "shared"
  if shared:
    shapes |= {
      "shared_ada_lin.1.weight": (6 * c, c),
      "shared_ada_lin.1.bias": (6 * c,),
    }
  block = {
    "attn.proj.weight": (c, c),
    "attn.proj.bias": (c,),
    "attn.q_bias": (c,),
    "attn.v_bias": (c,),
    "attn.zero_k_bias": (c,),
    "attn.mat_qkv.weight": (3 * c, c),
    "ffn.fc1.weight": (4 * c, c),
    "ffn.fc1.bias": (4 * c,),
    "ffn.fc2.weight": (c, 4 * c),
    "ffn.fc2.bias": (c,),
  }
  if config.attn_l2_norm:
    block["attn.scale_mul_1H11"] = (1, n, 1, 1)
  if shared:
    block["ada_gss"] = (1, 1, 6, c)
  else:
    block |= {"ada_lin.1.weight": (6 * c, c), "ada_lin.1.bias": (6 * c,)}
  for i in range(config.depth):
    shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
  return shapes


def small(preset: str) -> StarConfig:
  """The published model at one layer, so that nothing large is allocated."""
  return dataclasses.replace(StarConfig.from_dict(PRESETS[preset]), depth=1)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_no_key_of_the_published_sizes_is_unmatched(preset):
  config = small(preset)
  # Views of one number stand for the weights.
  state = {
    key: np.broadcast_to(np.float32(0), shape)
    for key, shape in official_shapes(config).items()
  }
  params = var.var_from_torch(state, config)
  template = transformer_template(config)
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, template)


@pytest.mark.parametrize(
  "changes",
  [{}, {"adaptive_norm": "shared", "attn_l2_norm": False}],
)
def test_the_official_list_of_keys_and_back(changes):
  config = StarConfig.from_dict(
    {
      **PRESETS["var_d16"],
      "schedule": [1, 2, 3],
      **dict(depth=2, width=32, num_heads=2, num_classes=5, vocab_size=16),
      **changes,
    }
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    transformer_template(config),
  )
  state = var.var_to_torch(params, config)
  assert {k: v.shape for k, v in state.items()} == official_shapes(config)
  np.testing.assert_array_equal(state["lvl_1L"][0], [0] + [1] * 4 + [2] * 9)
  hidden = np.isneginf(state["attn_bias_for_masking"][0, 0])
  np.testing.assert_array_equal(hidden, ~config.schedule.scale_mask())
  assert not state["blocks.1.attn.zero_k_bias"].any()
  again = var.var_from_torch(state, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_star_is_no_var():
  config = small("var_d16")
  state = {
    key: np.broadcast_to(np.float32(0), shape)
    for key, shape in official_shapes(config).items()
  }
  state["encoder_proj.bias"] = np.zeros(1024, np.float32)
  with pytest.raises(ValueError, match=r"unknown key.*encoder_proj.bias"):
    var.var_from_torch(state, config)
