"""The refinement head of STAR against the official code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.convert.refine import (
  is_refine_key,
  refine_from_torch,
  refine_to_torch,
)
from star_jax.convert.star import star_from_torch
from star_jax.model.refine import RefineConfig, RefineHead, refine_loss
from star_jax.model.star import Star
from tests.golden.conftest import cases_of
from tests.golden.star_cases import (
  QUICK,
  arrays,
  star_config,
  text_states,
  tokenizer_of,
)

# Golden README, section 5.
TEACHER_ATOL = 1e-4

KIND = "star_causal_driven_stable_sampler"
CASES = [
  pytest.param(*p.values, mode, id=f"{p.id}-{mode}", marks=p.marks)
  for p in cases_of(KIND)
  for mode in ("persample", "official")
]


def setup(case, mode):
  """Both configs, parameters of the transformer and of the head, tensors."""
  config = star_config(case["config"], mode)
  refine = RefineConfig(case["config"]["sample_from_idx"], head_depth(case))
  state = weights(case)
  backbone = {k: x for k, x in state.items() if not is_refine_key(k)}
  return (
    config,
    refine,
    star_from_torch(backbone, config),
    refine_from_torch(state, config, refine),
    arrays(case["tensors"]),
  )


def weights(case):
  """The official state dict of a case."""
  state = dict(arrays(case["weights"]))
  if case.get("weights_override"):
    state |= arrays(case["weights_override"])
  return state


def head_depth(case):
  """Layers of the head in the file of a case."""
  name = "feat_extract_blocks."
  return 1 + max(
    int(key.split(".")[1]) for key in weights(case) if key.startswith(name)
  )


def teacher_forced(case, mode):
  """A function of the head's parameters, their value, and what it needs."""
  config, refine, star_params, params, tensors = setup(case, mode)
  vqvae, vqvae_params = tokenizer_of(case, config)
  text, _ = text_states(case)
  schedule, begin = config.schedule, case["bg_last"]
  scales = tuple(range(refine.first_scale, schedule.num_scales))
  assert sum(schedule.lengths[k] for k in scales) == (
    schedule.num_tokens - begin
  )
  idx_BL = jnp.asarray(tensors["gt_tokens"][:, begin:])
  visible_BL = jnp.asarray(tensors["train_mask"] > 0)
  codes_BLCv = vqvae.apply({"params": vqvae_params}, idx_BL, method="codes")

  def run(params):
    _, features_BLC = Star(config).apply(
      {"params": star_params},
      tensors["x_BLCv_wo_first_l"],
      text,
      return_features=True,
    )
    return RefineHead(config, refine).apply(
      {"params": params},
      jnp.where(visible_BL[..., None], codes_BLCv, 0.0),
      jax.lax.stop_gradient(features_BLC[:, begin:]),
      text.pooled_BD,
      scales,
    )

  def loss(params):
    return refine_loss(run(params), idx_BL, visible_BL, schedule.num_tokens)

  return run, loss, params, (config, refine, tensors)


@pytest.mark.parametrize(("name", "case", "mode"), CASES)
def test_logits_on_a_given_mask(name, case, mode):
  run, _, params, (_, _, tensors) = teacher_forced(case, mode)
  if f"sampler_tf_{mode}.logits" not in tensors:
    pytest.skip("the case has no logits of this mode")
  logits_BLV = jax.jit(run, compiler_options=QUICK)(params)
  np.testing.assert_allclose(
    logits_BLV, tensors[f"sampler_tf_{mode}.logits"], atol=TEACHER_ATOL
  )


@pytest.mark.parametrize(("name", "case", "mode"), CASES)
def test_training_loss_and_gradients(name, case, mode):
  _, loss, params, (config, refine, tensors) = teacher_forced(case, mode)
  expected = case["train_sampler_masked"][mode]
  (value, metrics), grads = jax.jit(
    jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK
  )(params)
  np.testing.assert_allclose(value, expected["loss"], atol=1e-5)
  np.testing.assert_allclose(
    value, tensors[f"sampler_train_{mode}.loss"][0], atol=1e-5
  )
  np.testing.assert_allclose(
    metrics["loss"], expected["metrics"]["Lm"], rtol=1e-5
  )
  state = refine_to_torch(grads, config, refine)
  norms = {key: np.linalg.norm(value.ravel()) for key, value in state.items()}
  for key, norm in expected["grad_norms"].items():
    np.testing.assert_allclose(norms[key], norm, 1e-3, 2e-5, err_msg=key)
  total = np.sqrt(sum(norm**2 for norm in norms.values()))
  np.testing.assert_allclose(total, expected["metrics"]["tnm"], rtol=1e-4)
  prefix = f"sampler_train_{mode}.grad."
  for key in (key for key in tensors if key.startswith(prefix)):
    np.testing.assert_allclose(
      state[key.removeprefix(prefix)], tensors[key], 1e-4, 2e-5, err_msg=key
    )


@pytest.mark.parametrize(("name", "case", "mode"), CASES[:2])
def test_names_go_there_and_back(name, case, mode):
  config, refine, _, params, _ = setup(case, mode)
  back = refine_to_torch(params, config, refine)
  state = weights(case)
  assert set(back) == {k for k in state if is_refine_key(k)}
  for key, value in back.items():
    np.testing.assert_array_equal(value, state[key], err_msg=key)
  deeper = dataclasses.replace(refine, depth=refine.depth + 1)
  with pytest.raises(ValueError, match=r"feat_extract_blocks\.\d"):
    refine_from_torch(state, config, deeper)
