"""Rotary tables, initialisation and key names against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.convert.star import star_from_torch, star_to_torch
from star_jax.model.rope import apply_rope, rope_tables
from star_jax.scales import ScaleSchedule
from tests.golden.conftest import cases_of
from tests.golden.star_cases import arrays, model_cases, star_config

ROPE_CASES = cases_of("rotary_tables")
MODEL_CASES = model_cases()
# The official tables are float32 products: an angle of 64 has an error of 4e-6.
ROPE_ATOL = 2e-5


@pytest.mark.parametrize(("name", "case"), ROPE_CASES)
def test_rotary_tables(name, case):
  tensors = arrays(case["tensors"])
  assert case["tables"]
  for table in case["tables"]:
    cos, sin = rope_tables(
      ScaleSchedule.from_patch_nums([table["pn"]]),
      table["dim"],
      table["theta"],
      table["normalize"],
    )
    prefix = f"table_{table['index']}"
    np.testing.assert_allclose(cos, tensors[f"{prefix}.cos"], atol=ROPE_ATOL)
    np.testing.assert_allclose(sin, tensors[f"{prefix}.sin"], atol=ROPE_ATOL)


@pytest.mark.parametrize(("name", "case"), ROPE_CASES)
def test_rotary_application(name, case):
  tensors = arrays(case["tensors"])
  cos, sin = tensors["model.cos"], tensors["model.sin"]
  for x in "qk":
    turned = apply_rope(jnp.asarray(tensors[f"apply.{x}_in"]), cos, sin)
    np.testing.assert_allclose(turned, tensors[f"apply.{x}_out"], atol=1e-5)


@pytest.mark.parametrize(("name", "case"), ROPE_CASES)
def test_rotary_tables_of_a_model(name, case):
  """One table for all scales; the case says in words which model it is of."""
  tensors = arrays(case["tensors"])
  for param in MODEL_CASES:
    if param.values[0] in case["model_table"]:
      config = star_config(param.values[1]["config"], param.values[2])
      break
  else:
    pytest.skip("the model of the table is not in this folder")
  cos, sin = rope_tables(
    config.schedule, config.head_dim, config.rope_theta, config.rope_norm
  )
  np.testing.assert_allclose(cos, tensors["model.cos"], atol=ROPE_ATOL)
  np.testing.assert_allclose(sin, tensors["model.sin"], atol=ROPE_ATOL)


@pytest.mark.parametrize(("name", "case", "mode"), MODEL_CASES)
def test_every_official_key_converts_there_and_back(name, case, mode):
  state = arrays(case["weights"])
  config = star_config(case["config"], mode)
  params = star_from_torch(state, config)
  back = star_to_torch(params, config, len(state["class_emb.weight"]))
  assert back.keys() == state.keys()
  for key, value in state.items():
    assert back[key].shape == value.shape, key
    if key == "class_emb.weight":  # read by nothing, so not kept
      continue
    np.testing.assert_array_equal(back[key], value, err_msg=key)
  again = star_from_torch(back, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)
