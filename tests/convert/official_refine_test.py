"""Official STAR files that hold a refinement head, to bundles and back."""

import numpy as np
import pytest

import star_jax
from star_jax import testing
from star_jax.bundle import load_bundle
from star_jax.convert.export import export_official
from star_jax.convert.refine import refine_to_torch
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.tensor_file import read_tensors
from tests.convert import official_test as made
from tests.convert.official_keys import official_refinement_keys

states = made.states


def test_the_refinement_head_is_named_and_the_rest_comes_back(states, tmp_path):
  head = official_refinement_keys(
    width=16, heads=2, text_dim=384, scales=3, vocab=1200, code_dim=4
  )
  more = {key: np.ones(shape, np.float32) for key, shape in head.items()}
  folder, done = made.convert(
    states, tmp_path, "star", star={**states["star"], **more}
  )
  assert done.remark().startswith(
    f"{len(head)} tensors of the refinement head are left out (encoder_proj2,"
  )
  assert load_bundle(folder).notes["left_out"] == sorted(head)
  written = export_official(folder, tmp_path / "out")
  assert read_tensors(written[1]).keys() == states["star"].keys()


def test_a_refinement_head_comes_along_and_back(states, tmp_path):
  config = StarConfig.from_dict(made.MODELS["star"])
  refine = {"first_scale": 1, "depth": 3}
  head = testing.random_params(RefineHead(config, RefineConfig(**refine)), 3)
  head = refine_to_torch(head, config, RefineConfig(**refine))
  whole = {**states["star"], **head}
  folder, done = made.convert(
    states, tmp_path, "star", options={"refine": refine}, star=whole
  )
  assert done.remark() == ""
  star = star_jax.load(folder)
  assert star.bundle.refine_config == RefineConfig(**refine)
  # As published: the head is there, and is used when asked for.
  assert star.bundle.sampling["refine"] == "off"
  found = read_tensors(export_official(folder, tmp_path / "out")[1])
  assert found.keys() == whole.keys()
  for key, value in whole.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)
  del whole["head_proj.bias"]
  with pytest.raises(ValueError, match=r"missing.*head_proj\.bias"):
    made.convert(
      states, tmp_path, "star", options={"refine": refine}, star=whole
    )
