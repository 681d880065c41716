"""Official VAR key names: nothing unmatched, for every published size."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.presets import PRESETS
from star_jax.convert import var
from star_jax.convert.block import transformer_template
from star_jax.model.config import StarConfig
from tests.convert.official_keys import official_var_keys


def official_shapes(config: StarConfig) -> dict[str, tuple[int, ...]]:
  """The authors' names and shapes."""
  return official_var_keys(
    depth=config.depth,
    width=config.width,
    heads=config.num_heads,
    num_classes=config.num_classes,
    patch_nums=[side for side, _ in config.schedule.grids],
    vocab=config.vocab_size,
    code_dim=config.code_dim,
    shared_aln=config.adaptive_norm == "shared",
    l2_norm=config.attn_l2_norm,
  )


def small(preset: str) -> StarConfig:
  """The published model at one layer, so that nothing large is allocated."""
  return dataclasses.replace(StarConfig.from_dict(PRESETS[preset]), depth=1)


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
