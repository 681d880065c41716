"""The refinement head of STAR against the official code."""

import dataclasses
import functools

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
from star_jax.sampling import loops, rounds
from star_jax.sampling import sampler as sampler_lib
from tests.cases import long_but
from tests.golden.conftest import cases_of
from tests.golden.quantizer_test import nhwc
from tests.golden.star_cases import (
  QUICK,
  arrays,
  star_config,
  text_states,
  tokenizer_of,
)

# Golden README, section 5.
TEACHER_ATOL, GUIDED_ATOL = 1e-4, 1e-3

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
  return (
    config,
    refine,
    star_from_torch(state, config),
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


@pytest.mark.parametrize(("name", "case", "mode"), long_but(1, CASES))
def test_logits_on_a_given_mask(name, case, mode):
  run, _, params, (_, _, tensors) = teacher_forced(case, mode)
  if f"sampler_tf_{mode}.logits" not in tensors:
    pytest.skip("the case has no logits of this mode")
  logits_BLV = jax.jit(run, compiler_options=QUICK)(params)
  np.testing.assert_allclose(
    logits_BLV, tensors[f"sampler_tf_{mode}.logits"], atol=TEACHER_ATOL
  )


@pytest.mark.parametrize(("name", "case", "mode"), long_but(1, CASES))
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


RUNS = [
  pytest.param(p.values[0], p.values[1], run, id=f"{p.id}-{run}", marks=p.marks)
  for p in cases_of(KIND)
  for run in p.values[1].get("inference", {"absent": None})
]


QUICK_RUNS = ("star_sampler-ar_persample_new_argmax",)


@functools.cache
def greedy_sampler(name, mode, version):
  """fn(params, keys_B, uniforms, knobs) -> outputs, and what the rounds of
  every refined scale did. One program for all runs that differ in numbers."""
  case = dict(p.values for p in cases_of(KIND))[name]
  config, refine, *_ = setup(case, mode)
  vqvae, _ = tokenizer_of(case, config)
  models = loops.Models(Star(config), vqvae, RefineHead(config, refine))
  sampler_config = sampler_lib.SamplerConfig(
    return_logits=True,
    refine=rounds.TRANSFORMER_FIRST if version == "1024" else rounds.HEAD,
  )

  def sample(params, keys_B, uniforms, knobs):
    # The body of the sampler: given confidences, no noise in the draws.
    seen, given = [], iter(uniforms)

    def draw_and_tell(*args):
      idx_Bl, *every = rounds.draw_in_rounds(*args, return_rounds=True)
      seen.append(every)
      return idx_Bl

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loops, "draw_in_rounds", draw_and_tell)
      patch.setattr(loops, "random_confidence", lambda *_: next(given))
      patch.setattr(loops, "_noise", lambda k, s, shape: jnp.zeros((1, *shape)))
      out = loops.draw_all_scales(
        models, sampler_config, params, *text_states(case), keys_B, knobs, None
      )
    return sampler_lib.SampleOutput(**out), seen

  return jax.jit(sample, compiler_options=QUICK)


@pytest.mark.parametrize(
  ("name", "case", "run"),
  long_but([i for i, p in enumerate(RUNS) if p.id in QUICK_RUNS], RUNS),
)
def test_greedy_samples_with_given_random_numbers(name, case, run):
  """All rounds of all scales: who is fixed when, and with which token."""
  _, mode, version, draw = run.split("_")
  options, prefix = case["inference"][run], run
  config, refine, star_params, params, tensors = setup(case, mode)
  # The official-mode runs have the random numbers of the per-sample ones.
  source = f"ar_persample_{version}_{draw}"
  scales = range(refine.first_scale, config.schedule.num_scales)
  _, vqvae_params = tokenizer_of(case, config)
  out, seen = greedy_sampler(name, mode, version)(
    {"star": star_params, "tokenizer": vqvae_params, "refine": params},
    sampler_lib.sample_keys(0, jnp.arange(case["batch"])),
    [jnp.asarray(tensors[f"{source}.s{k}.rand"]) for k in scales],
    sampler_lib.Knobs(
      cfg_scale=float(options["cfg"]), top_k=int(options["top_k"])
    ),
  )
  np.testing.assert_array_equal(out.idx_BL, tensors[f"{prefix}.tokens"])
  if f"{prefix}.fhat" in tensors:
    np.testing.assert_allclose(
      out.f_hat_BhwCv, nhwc(tensors[f"{prefix}.fhat"]), atol=GUIDED_ATOL
    )
  plain = f"{prefix}.logits_before_from_idx"
  if plain in tensors:
    np.testing.assert_allclose(
      out.logits_BLV[:, : case["bg_last"]], tensors[plain], atol=GUIDED_ATOL
    )
  for k, (early, late) in zip(scales, seen, strict=True):
    check_rounds(early, late, tensors, f"{prefix}.s{k}")


def check_rounds(early, late, tensors, name):
  """Masks and confidences after every round of one scale."""
  if f"{name}.step_mask" not in tensors:
    return
  for ours, theirs in (("visible", "mask"), ("confidence", "conf")):
    found = np.concatenate([early[ours], late[ours]])
    np.testing.assert_allclose(
      found, tensors[f"{name}.step_{theirs}"], atol=GUIDED_ATOL, err_msg=name
    )
  if f"{name}.step_mask_mid" in tensors:
    np.testing.assert_array_equal(
      early["middle"], tensors[f"{name}.step_mask_mid"] > 0
    )


@pytest.mark.parametrize(("name", "case"), cases_of("table"))
def test_tokens_of_every_round(name, case):
  if name != "star_mask_schedule":
    pytest.skip("another table")
  for row in case["table"]:
    length = row["patch_size"] ** 2
    if row.get("invalid_for_sampling"):
      with pytest.raises(ValueError, match="too many for a scale of"):
        rounds.tokens_per_round(length, row["step"])
    elif row["mode"] == "arccos":
      np.testing.assert_array_equal(
        rounds.tokens_per_round(length, row["step"]), row["tokens_per_step"]
      )
