"""Schedules and weight decay groups against the official tables."""

import jax
import numpy as np
import pytest

from star_jax.convert.block import transformer_template
from star_jax.convert.star import star_to_torch
from star_jax.convert.var import var_to_torch
from star_jax.train import optimizer
from tests.golden.conftest import cases_of
from tests.golden.star_cases import star_config
from tests.golden.var_cases import var_config

TABLES = cases_of("table")
# Never read, so that our models have no parameter for it.
UNUSED = "zero_k_bias"


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


def _models():
  """{name: (config, parameters to official names)} of all transformers."""
  out = {}
  for param in cases_of("star_transformer", "var_class_conditional"):
    if param.marks:
      continue
    name, case = param.values
    if case["kind"] == "star_transformer":
      out[name] = (star_config(case["config"], "persample"), star_to_torch)
    else:
      out[name] = (var_config(case["config"]), var_to_torch)
  return out


@pytest.mark.parametrize("name,case", tables_with("groups", "nowd_keys"))
def test_weight_decay_groups(name, case):
  models = _models()
  groups = {n: g for n, g in case["groups"].items() if n in models}
  if not groups:
    pytest.skip("no known transformer in this table")
  for model, group in groups.items():
    config, to_torch = models[model]
    template = transformer_template(config)
    mask = optimizer.decay_mask(template, case["nowd_keys"])
    # Every weight is 1 where decay applies; under the official names each
    # tensor must then be all ones or all zeros.
    marked = jax.tree.map(
      lambda leaf, on: np.full(leaf.shape, float(on), np.float32),
      template,
      mask,
    )
    state = to_torch(marked, config)
    for expected, keys in ((0.0, group["no_decay"]), (1.0, group["decay"])):
      for key in keys:
        unused = key.endswith(UNUSED)
        if key == "class_emb.weight":
          unused = not config.num_classes
        if not unused:
          assert (state[key] == expected).all(), (model, key)
