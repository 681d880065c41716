"""Schedules and weight decay groups against the official tables."""

import jax
import numpy as np
import pytest

from star_jax.convert import star as star_convert
from star_jax.model.config import StarConfig
from star_jax.train import optimizer
from tests.golden.conftest import cases_of

TABLES = cases_of("table")
# Keys that our model has no parameter for.
UNUSED = ("class_emb.weight", "zero_k_bias")


def tables_with(*fields):
  """Tables are told apart by their fields, never by their names."""
  chosen = [
    param
    for param in TABLES
    if param.marks or all(field in param.values[1] for field in fields)
  ]
  return chosen or [
    pytest.param("absent", {}, marks=pytest.mark.skip(reason="no such table"))
  ]


def _is_schedule(case):
  return "peak_lr" in case.get("config", {})


@pytest.mark.parametrize("name,case", tables_with("config", "table"))
def test_learning_rate_and_weight_decay(name, case):
  if not _is_schedule(case):
    pytest.skip("another kind of table")
  config = case["config"]
  decay = optimizer.weight_decay_schedule(
    start=config["wd"], end=config["wd_end"], num_steps=config["max_it"]
  )
  for kind, rows in case["table"].items():
    rate = optimizer.learning_rate_schedule(
      kind,
      peak=config["peak_lr"],
      num_steps=config["max_it"],
      warmup_steps=config["wp_it"],
      warmup_start=config["wp0"],
      final_ratio=config["wpe"],
    )
    steps = np.array([row["it"] for row in rows])
    # float32: six digits.
    np.testing.assert_allclose(
      rate(steps), [row["max_lr"] for row in rows], rtol=1e-5, err_msg=kind
    )
    np.testing.assert_allclose(
      decay(steps), [row["max_wd"] for row in rows], rtol=1e-5, atol=1e-8
    )


def _star_config(config):
  return StarConfig.from_dict(
    dict(
      schedule=config["patch_nums"],
      vocab_size=config.get("vocab_size", 64),
      code_dim=config.get("Cvae", 8),
      depth=config["depth"],
      width=config["embed_dim"],
      num_heads=config["num_heads"],
      text_dim=config["in_dim_cross"],
      rope_norm=config.get("rope_norm", 16),
      drop_path_rate=0.0,
      position="rope" if config["rotary_pos_emb"] else "absolute",
      lvl_embed=config["absolute_lvl_emb"],
      shared_aln=config["shared_aln"],
      cross_attention=config["enable_cross"],
      attn_l2_norm=config["attn_l2_norm"],
    )
  )


@pytest.mark.parametrize("name,case", tables_with("groups", "nowd_keys"))
def test_weight_decay_groups(name, case):
  models = dict(
    param.values for param in cases_of("star_transformer") if not param.marks
  )
  groups = {n: g for n, g in case["groups"].items() if n in models}
  if not groups:
    pytest.skip("no STAR transformer in this table")
  for model, group in groups.items():
    config = _star_config(models[model]["config"])
    template = star_convert.star_template(config)
    mask = optimizer.decay_mask(template, case["nowd_keys"])
    # Every weight is 1 where decay applies; under the official names each
    # tensor must then be all ones or all zeros.
    marked = jax.tree.map(
      lambda leaf, on: np.full(leaf.shape, float(on), np.float32),
      template,
      mask,
    )
    state = star_convert.star_to_torch(marked, config)
    for expected, keys in ((0.0, group["no_decay"]), (1.0, group["decay"])):
      for key in keys:
        if not key.endswith(UNUSED):
          assert (state[key] == expected).all(), (model, key)
