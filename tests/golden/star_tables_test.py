"""Rotary tables, initialisation and key names against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.convert.star import star_from_torch, star_to_torch
from star_jax.model.config import StarConfig
from star_jax.model.rope import apply_rope, rope_tables
from star_jax.model.star import Star
from star_jax.scales import ScaleSchedule
from star_jax.text.states import TextStates
from tests.golden.conftest import cases_of
from tests.golden.star_cases import QUICK, arrays, model_cases, star_config

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


def init_tables():
  """Every model of the tables of initial weights that is a STAR."""
  out = []
  for param in cases_of("table"):
    name, case = param.values
    if param.marks:
      return [pytest.param(name, {}, marks=param.marks)]
    for model, stats in case.get("stats", {}).items():
      if "in_dim_cross" in stats["build"]:
        out.append(pytest.param(name, stats, id=model))
  return out


def _fresh_state(build: dict):
  """Official names and layouts of freshly drawn parameters."""
  config = StarConfig(
    schedule=ScaleSchedule.from_patch_nums(build["patch_nums"]),
    vocab_size=build["V"],
    code_dim=build["Cvae"],
    depth=build["depth"],
    width=build["width"],
    num_heads=build["heads"],
    text_dim=build["in_dim_cross"],
    attn_l2_norm=build["attn_l2_norm"],
    shared_aln=build["shared_aln"],
    init_std=float(build["init_std"]),
    init_head=build["init_head"],
    init_adaln=build["init_adaln"],
    init_adaln_gamma=build.get("init_adaln_gamma", 1e-5),
    rope_norm=16.0,
    drop_path_rate=0.0,
  )
  if "init_std_resolved" in build:
    np.testing.assert_allclose(config.weight_std, build["init_std_resolved"])
  x = jnp.zeros((1, config.schedule.num_tokens - 1, config.code_dim))
  text = TextStates(
    text_BTD=jnp.zeros((1, 1, config.text_dim)),
    text_mask_BT=jnp.ones((1, 1), bool),
    pooled_BD=jnp.zeros((1, config.text_dim)),
  )
  init = jax.jit(Star(config).init, compiler_options=QUICK)
  return star_to_torch(init(jax.random.key(0), x, text)["params"], config)


@pytest.mark.parametrize(("name", "stats"), init_tables())
def test_initial_weights_have_the_official_statistics(name, stats):
  state = _fresh_state(stats["build"])
  if not stats["build"].get("enable_adaptive_norm"):
    assert stats["params"].keys() <= state.keys()
  for key, theirs in stats["params"].items():
    if key == "class_emb.weight" or key not in state:
      continue  # unused, or a part of the refinement head
    ours = state[key]
    assert list(ours.shape) == theirs["shape"], key
    if theirs["std"] == 0:
      np.testing.assert_allclose(ours, theirs["mean"], rtol=1e-6, err_msg=key)
    else:
      # Two draws of n numbers: five standard errors of their difference.
      # ada_gss is a mixture of two widths, hence the wider margin.
      n = ours.size / (2 if "ada_gss" in key else 1)
      error = 5 * np.sqrt(2 / n)
      np.testing.assert_allclose(
        ours.std(), theirs["std"], rtol=error / np.sqrt(2), err_msg=key
      )
      assert abs(ours.mean() - theirs["mean"]) < error * theirs["std"], key
