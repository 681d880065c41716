"""Zero-shot editing against the authors' notebook."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.model.star import Star
from star_jax.sampling.editing import Edit, box_mask, keep_tokens
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from tests.golden.conftest import cases_of
from tests.golden.quantizer_test import nhwc
from tests.golden.star_cases import QUICK, arrays, tokenizer_of
from tests.golden.var_cases import var_cases, var_config, var_params

CASES = cases_of("var_zero_shot_edit")


def model_of(case):
  """The class-conditional case whose weights are edited with."""
  for param in var_cases():
    if param.values[1]["weights"] == case["weights"]:
      return param.values[1]
  pytest.skip("the folder does not say how the model is configured")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_edits(name, case):
  config = var_config(model_of(case)["config"])
  schedule, params = config.schedule, var_params(case, config)
  vqvae, vqvae_params = tokenizer_of(case, config)
  tensors = arrays(case["tensors"])
  assert case["top_k"] == 1 and not case["more_smooth"], case
  assert config.num_classes == case["null_class"]
  sampler = build_sampler(
    Star(config), vqvae, SamplerConfig(guided=True, return_logits=True)
  )
  batch = len(tensors["labels"])
  program = None
  for box_name, box in case["boxes"].items():
    keep_hw = box_mask(
      schedule.final_grid, (box["y0"], box["x0"], box["y1"], box["x1"])
    )
    if box["inpainting"]:
      keep_hw = ~keep_hw
    np.testing.assert_array_equal(keep_hw, tensors[f"{box_name}.edit_mask"])
    keep_L = keep_tokens(schedule, keep_hw)
    np.testing.assert_array_equal(
      np.stack([keep_L] * batch), tensors[f"{box_name}.keep_mask"]
    )
    arguments = (
      {"star": params, "tokenizer": vqvae_params},
      jnp.asarray(tensors["labels"], jnp.int32),
      jnp.array([config.num_classes], jnp.int32),
      sample_keys(0, jnp.arange(batch)),
      Knobs(cfg_scale=jnp.float32(case["cfg"]), top_k=1),
      Edit(
        jnp.asarray(tensors["input_tokens"], jnp.int32),
        jnp.asarray(np.stack([keep_L] * batch)),
      ),
    )
    if program is None:
      program = sampler.lower(*arguments).compile(compiler_options=QUICK)
    out = program(*arguments)
    np.testing.assert_array_equal(
      out.drawn_BL, tensors[f"{box_name}.sampled_tokens"]
    )
    np.testing.assert_array_equal(
      out.idx_BL, tensors[f"{box_name}.output_tokens"]
    )
    np.testing.assert_allclose(
      out.logits_BLV, tensors[f"{box_name}.logits"], atol=1e-3
    )
    np.testing.assert_allclose(
      out.f_hat_BhwCv, nhwc(tensors[f"{box_name}.fhat"]), atol=1e-3
    )
    if f"{box_name}.image_b0" in tensors:
      image_b0 = (np.asarray(out.image_BHW3[:1]) + 1) / 2
      np.testing.assert_allclose(
        image_b0, nhwc(tensors[f"{box_name}.image_b0"]), atol=1e-3
      )
