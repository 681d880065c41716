"""Official STAR key names: nothing unmatched, errors by name."""

import jax
import numpy as np
import pytest

from configs.presets import PRESETS
from star_jax.convert import star
from star_jax.convert.block import transformer_template
from star_jax.model.config import StarConfig
from tests.convert.official_keys import (
  official_refinement_keys,
  official_star_keys,
)


def make_config(**changes) -> StarConfig:
  return StarConfig.from_dict({**PRESETS["test"], **changes})


def random_params(config: StarConfig):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    transformer_template(config),
  )


def official_shapes(config: StarConfig) -> dict[str, tuple[int, ...]]:
  """The authors' names and shapes."""
  return official_star_keys(
    depth=config.depth,
    width=config.width,
    heads=config.num_heads,
    text_dim=config.text_dim,
    patch_nums=[side for side, _ in config.schedule.grids],
    vocab=config.vocab_size,
    code_dim=config.code_dim,
    mlp_ratio=config.mlp_ratio,
    shared_aln=config.adaptive_norm == "level",
    rotary=config.position == "rope",
    cross=config.cross_attention,
  )


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


def test_the_refinement_head_is_left_out_and_named():
  config = make_config()
  params = random_params(config)
  head = official_refinement_keys(
    width=config.width,
    heads=config.num_heads,
    text_dim=config.text_dim,
    scales=config.schedule.num_scales,
    vocab=config.vocab_size,
    code_dim=config.code_dim,
  )
  state = star.star_to_torch(params, config)
  state |= {key: np.ones(shape, np.float32) for key, shape in head.items()}
  assert set(star.refine_keys(state)) == set(head)
  again = star.star_from_torch(state, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)


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
