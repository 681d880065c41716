"""Official STAR key names: nothing unmatched, errors by name."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.presets import PRESETS
from star_jax.convert import star
from star_jax.convert.block import transformer_template
from star_jax.model.config import StarConfig


def make_config(**changes) -> StarConfig:
  return StarConfig.from_dict({**PRESETS["test"], **changes})


def random_params(config: StarConfig):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    transformer_template(config),
  )


def official_shapes(config: StarConfig) -> dict[str, tuple[int, ...]]:
  """Keys and shapes as the official code lists them, written out here."""
  c, d, n = config.width, config.text_dim, config.num_heads
  hidden, tokens = config.mlp_width, config.schedule.num_tokens
  shapes = {
    "pos_start": (1, 1, c),
    "class_emb.weight": (1001, c),
    "word_embed.weight": (c, config.code_dim),
    "word_embed.bias": (c,),
    "encoder_proj.weight": (c, d),
    "encoder_proj.bias": (c,),
    "lvl_embed.weight": (config.schedule.num_scales, c),
    "head_logits.weight": (config.vocab_size, c),
    "head_logits.bias": (config.vocab_size,),
  }
  if config.position == "absolute":
    shapes["pos_1LC"] = (1, tokens, c)
  if config.adaptive_norm == "level":
    shapes |= {
      "lvl_embed_proj.weight": (c, 2 * c),
      "lvl_embed_proj.bias": (c,),
      "lvl_embed_adaln.1.weight": (6 * c, c),
      "lvl_embed_adaln.1.bias": (6 * c,),
    }
  attention = {
    "proj.weight": (c, c),
    "proj.bias": (c,),
    "q_bias": (c,),
    "v_bias": (c,),
    "zero_k_bias": (c,),
    "scale_mul_1H11": (1, n, 1, 1),
  }
  for i in range(config.depth):
    block = {f"attn.{key}": shape for key, shape in attention.items()}
    block["attn.mat_qkv.weight"] = (3 * c, c)
    if config.cross_attention:
      block |= {f"cross_attn.{key}": shape for key, shape in attention.items()}
      block["cross_attn.mat_q.weight"] = (c, c)
      block["cross_attn.mat_kv.weight"] = (2 * c, d)
    block |= {
      "ffn.fc1.weight": (hidden, c),
      "ffn.fc1.bias": (hidden,),
      "ffn.fc2.weight": (c, hidden),
      "ffn.fc2.bias": (c,),
    }
    if config.adaptive_norm == "level":
      block["ada_gss"] = (1, 1, 6, c)
    shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
  return shapes


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"adaptive_norm": "level", "mlp_ratio": 2.0},
    {"position": "absolute", "cross_attention": False},
  ],
)
def test_the_official_list_of_keys_and_back(changes):
  config = make_config(**changes)
  params = random_params(config)
  state = star.star_to_torch(params, config)
  assert {k: v.shape for k, v in state.items()} == official_shapes(config)
  assert not state["class_emb.weight"].any()
  assert not state["blocks.1.attn.zero_k_bias"].any()
  again = star.star_from_torch(state, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("preset", ["star_d16", "star_d30"])
def test_no_key_of_the_published_sizes_is_unmatched(preset):
  """Shapes only: views of one number stand for the weights."""
  config = StarConfig.from_dict(PRESETS[preset])
  state = {
    key: np.broadcast_to(np.float32(0), shape)
    for key, shape in official_shapes(config).items()
  }
  config_of_one_layer = dataclasses.replace(config, depth=1)
  rest = {
    key: value
    for key, value in state.items()
    if not key.startswith("blocks.") or key.startswith("blocks.0.")
  }
  params = star.star_from_torch(rest, config_of_one_layer)
  template = transformer_template(config_of_one_layer)
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, template)
  with pytest.raises(ValueError, match="unknown key"):
    star.star_from_torch(state, config_of_one_layer)


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (
      lambda s: s.pop("blocks.1.ffn.fc2.bias"),
      "missing.*blocks.1.ffn.fc2.bias",
    ),
    (
      lambda s: s.update({"blocks.2.attn.q_bias": s["pos_start"]}),
      r"unknown.*blocks.2.attn.q_bias",
    ),
    (
      lambda s: s.update({"head_logits.bias": np.zeros(31, np.float32)}),
      r"'head_logits.bias' has shape \(31,\), this model needs \(32,\)",
    ),
  ],
)
def test_what_does_not_fit_is_named(spoil, message):
  config = make_config()
  state = star.star_to_torch(random_params(config), config)
  spoil(state)
  with pytest.raises(ValueError, match=message):
    star.star_from_torch(state, config)
