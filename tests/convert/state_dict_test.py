"""The conversion mechanism: nothing is dropped or reshaped in silence."""

import jax
import numpy as np
import pytest

from star_jax.convert import state_dict as sd

RULES = (
  sd.Rule("blocks.{layer}.fc.weight", "blocks/fc/kernel", sd.LINEAR),
  sd.Rule("blocks.{layer}.scale_1H11", "blocks/scale", sd.squeeze(0, 2, 3)),
  sd.Rule("down.{i}.conv.weight", "down_{i}/conv/kernel", sd.CONV),
  sd.Rule("proj.weight", "proj/kernel", sd.CONV_1X1),
  sd.Rule("{name}.bias", "{name}/bias"),
  sd.ignore("blocks.{layer}.zeros", shape=(5,), layers=3),
  sd.ignore("counts", shape=(2,), dtype="int64"),
  sd.ignore("unused.{x}"),
)


def _params():
  rng = np.random.default_rng(0)
  shapes = {
    "blocks": {"fc": {"kernel": (3, 2, 5)}, "scale": (3, 4)},
    "down_0": {"conv": {"kernel": (3, 3, 2, 4)}},
    "down_1": {"conv": {"kernel": (1, 1, 4, 2)}},
    "proj": {"kernel": (4, 6), "bias": (6,)},
  }
  return jax.tree.map(
    lambda s: rng.normal(size=s).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _template(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def test_layouts_and_stacking():
  params = _params()
  state = sd.jax_to_torch(params, RULES)
  kernel = params["blocks"]["fc"]["kernel"]
  np.testing.assert_array_equal(state["blocks.2.fc.weight"], kernel[2].T)
  assert state["blocks.1.scale_1H11"].shape == (1, 4, 1, 1)
  assert state["proj.weight"].shape == (6, 4, 1, 1)
  conv = params["down_0"]["conv"]["kernel"]
  assert state["down.0.conv.weight"][3, 1, 2, 0] == conv[2, 0, 1, 3]
  # Ignored keys with a shape are written, so that strict loading succeeds.
  assert state["blocks.2.zeros"].shape == (5,)
  assert state["counts"].dtype == np.int64
  assert not any(key.startswith("unused") for key in state)


def test_round_trip_is_exact():
  params = _params()
  state = sd.jax_to_torch(params, RULES) | {"unused.thing": np.ones(3)}
  again = sd.torch_to_jax(state, RULES, _template(params))
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert jax.tree.structure(again) == jax.tree.structure(params)


def test_values_take_the_dtype_of_the_template():
  params = _params()
  state = sd.jax_to_torch(params, RULES)
  half = {key: value.astype(np.float16) for key, value in state.items()}
  again = sd.torch_to_jax(half, RULES, _template(params))
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(again))


def test_unknown_and_missing_keys_are_named():
  params = _params()
  state = sd.jax_to_torch(params, RULES)
  value = state.pop("blocks.1.fc.weight")
  state["blocks.3.fc.weight"] = value
  with pytest.raises(ValueError) as error:
    sd.torch_to_jax(state, RULES, _template(params))
  message = str(error.value)
  assert "1 unknown key(s): blocks.3.fc.weight" in message
  assert "1 missing key(s): blocks.1.fc.weight" in message


@pytest.mark.parametrize("key", ["blocks.0.fc.weight", "proj.bias"])
def test_shape_errors_name_the_key_and_both_shapes(key):
  params = _params()
  state = sd.jax_to_torch(params, RULES)
  wanted = state[key].shape
  state[key] = np.zeros((7, 7, 7), np.float32)
  with pytest.raises(ValueError, match=key.replace(".", r"\.")) as error:
    sd.torch_to_jax(state, RULES, _template(params))
  assert "(7, 7, 7)" in str(error.value) and str(wanted) in str(error.value)


def test_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="extra/kernel"):
    sd.jax_to_torch({"extra": {"kernel": np.zeros(2)}}, RULES)


def test_two_parameters_for_one_key_are_an_error():
  rules = (sd.Rule("a", "x"), sd.Rule("a", "y"))
  with pytest.raises(ValueError, match="'a'"):
    sd.jax_to_torch({"x": np.zeros(2), "y": np.zeros(2)}, rules)


def test_first_matching_rule_wins():
  rules = (sd.Rule("special", "a/bias"), sd.Rule("{n}.bias", "{n}/bias"))
  params = {"a": {"bias": np.zeros(1)}, "b": {"bias": np.ones(1)}}
  assert set(sd.jax_to_torch(params, rules)) == {"special", "b.bias"}
