"""The VAR transformer and its greedy samples against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.convert.var import var_from_torch, var_to_torch
from star_jax.model.star import Star
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from star_jax.train.losses import next_scale_loss, token_losses
from star_jax.train.optimizer import decay_mask
from star_jax.train.progressive import Stages
from tests.cases import long_but
from tests.golden.quantizer_test import nhwc
from tests.golden.star_cases import QUICK, arrays, tokenizer_of
from tests.golden.var_cases import var_cases, var_config, var_params

# Golden README, section 5.
TEACHER_ATOL, GUIDED_ATOL = 1e-4, 1e-3

CASES = var_cases()


def setup(case):
  config = var_config(case["config"])
  return config, var_params(case, config), arrays(case["tensors"])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_official_key_converts_there_and_back(name, case):
  state = arrays(case["weights"])
  config, params, _ = setup(case)
  back = var_to_torch(params, config)
  assert back.keys() == state.keys()
  for key, value in state.items():
    assert back[key].dtype == value.dtype, key
    np.testing.assert_array_equal(back[key], value, err_msg=key)
  again = var_from_torch(back, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_teacher_forcing_of_classes_and_of_the_null_class(name, case):
  config, params, tensors = setup(case)

  def run(params, x_BLCv, label_B):
    return Star(config).apply(
      {"params": params}, x_BLCv, label_B, return_features=True
    )

  run = jax.jit(run, compiler_options=QUICK)
  x_BLCv, label_B = tensors["x_BLCv_wo_first_l"], tensors["labels"]
  logits_BLV, features_BLC = run(params, x_BLCv, label_B)
  np.testing.assert_allclose(
    logits_BLV, tensors["tf_logits"], atol=TEACHER_ATOL, rtol=1e-5
  )
  last = f"dbg.block_{config.depth - 1}"
  if last in tensors:
    np.testing.assert_allclose(
      features_BLC, tensors[last], atol=TEACHER_ATOL, rtol=1e-5
    )
  null_B = np.full_like(label_B, config.num_classes)
  np.testing.assert_allclose(
    run(params, x_BLCv, null_B)[0],
    tensors["tf_logits_null"],
    atol=TEACHER_ATOL,
    rtol=1e-5,
  )


@pytest.mark.parametrize(("name", "case"), long_but(1, CASES))
def test_training_loss_gradients_and_the_first_step(name, case):
  config, params, tensors = setup(case)
  expected = case["train"]["full"]

  def loss_fn(params):
    logits_BLV = Star(config).apply(
      {"params": params},
      tensors["x_BLCv_wo_first_l"],
      tensors["labels"],
      deterministic=False,
    )
    return next_scale_loss(
      logits_BLV, tensors["gt_tokens"], config.schedule.lengths
    )

  (loss, metrics), grads = jax.jit(
    jax.value_and_grad(loss_fn, has_aux=True), compiler_options=QUICK
  )(params)
  theirs = expected["metrics"]
  np.testing.assert_allclose(loss, expected["loss"], atol=1e-5)
  np.testing.assert_allclose(metrics["loss_tail"], theirs["Lt"], atol=1e-5)
  np.testing.assert_allclose(100 * metrics["acc"], theirs["Accm"], atol=1e-3)

  state = var_to_torch(grads, config)
  for key, norm in expected["grad_norms_before_clip"].items():
    ours = np.linalg.norm(state[key].ravel())
    np.testing.assert_allclose(ours, norm, 1e-3, 2e-5, err_msg=key)
  for key in tensors:
    if key.startswith("train.grad."):
      np.testing.assert_allclose(
        state[key.removeprefix("train.grad.")],
        tensors[key],
        1e-4,
        2e-5,
        err_msg=key,
      )
  total = optax.global_norm(grads)
  np.testing.assert_allclose(total, theirs["tnm"], rtol=1e-4)

  settings = expected["optimizer"]
  step = optax.chain(
    optax.clip_by_global_norm(settings["grad_clip"]),
    optax.adamw(
      settings["resulting"]["max_lr"],
      *settings["betas"],
      eps=settings["eps"],
      weight_decay=settings["resulting"]["max_wd"],
      mask=decay_mask(params),
    ),
  )

  @jax.jit
  def first_step(params, grads):
    updates, _ = step.update(grads, step.init(params), params)
    return optax.apply_updates(params, updates)

  after = var_to_torch(first_step(params, grads), config)
  rate = settings["resulting"]["max_lr"]
  for key in tensors:
    if key.startswith("train.after_step."):
      name = key.removeprefix("train.after_step.")
      # The first step of Adam is the rate times the sign of the gradient: of
      # gradients that are zero up to rounding the sign is a matter of chance.
      sure = np.abs(state[name]) > 1e-5
      error = np.abs(after[name] - tensors[key])
      assert error[sure].max(initial=0) < 1e-5, key
      assert error.max() < 2.1 * rate, key


@pytest.mark.long
@pytest.mark.parametrize(("name", "case"), CASES)
def test_losses_of_progressive_stages(name, case):
  config, params, tensors = setup(case)
  idx_BL, schedule = tensors["gt_tokens"], config.schedule
  x_BLCv = tensors["x_BLCv_wo_first_l"]
  stages = Stages((1, 2, 3), (0, 1, 5), warmup_steps=4)

  def run(params, stage, step, whole):
    """Loss and logits; `whole`: all tokens are looked at, then weighed."""
    end = schedule.begin_ends[stage][1]
    seen = schedule.num_tokens if whole else end
    logits_BLV = Star(config).apply(
      {"params": params}, x_BLCv[:, : seen - 1], tensors["labels"]
    )
    newest = stages.newest_weight(stage, step)
    if not whole:
      loss, _ = next_scale_loss(
        logits_BLV, idx_BL[:, :end], schedule.lengths, newest_weight=newest
      )
      return loss, logits_BLV
    weight_L = np.where(np.arange(seen) < end, 1.0, 0.0) / seen
    weight_L = weight_L * jnp.where(schedule.level_ids == stage, newest, 1.0)
    return jnp.sum(token_losses(logits_BLV, idx_BL)[0].mean(0) * weight_L), None

  grad = jax.jit(
    jax.value_and_grad(run, has_aux=True),
    static_argnums=(1, 3),
    compiler_options=QUICK,
  )
  (first, logits_BLV), _ = grad(params, 1, 0, False)
  np.testing.assert_allclose(
    first, tensors["train_prog.loss_si1_first"][0], atol=1e-5
  )
  np.testing.assert_allclose(
    logits_BLV, tensors["train_prog.logits_si1"], atol=TEACHER_ATOL
  )
  np.testing.assert_allclose(
    x_BLCv[:, :4], tensors["train_prog.var_input_si1"], atol=1e-6
  )
  (second, _), grads = grad(params, 2, 1, False)
  np.testing.assert_allclose(
    second, tensors["train_prog.loss_si2_prog_it1_of4"][0], atol=1e-5
  )
  # The tokens that are not looked at would not change the gradients.
  (same, _), expected = grad(params, 2, 1, True)
  np.testing.assert_allclose(second, same, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, expected
  )


@pytest.mark.parametrize(("name", "case"), long_but([1], CASES))
def test_greedy_samples(name, case):
  config, params, tensors = setup(case)
  vqvae, vqvae_params = tokenizer_of(case, config)
  sampler = build_sampler(
    Star(config), vqvae, SamplerConfig(guided=True, return_logits=True)
  )
  null = jnp.array([config.num_classes], jnp.int32)
  program = None

  def draw(label_B, cfg):
    nonlocal program
    arguments = (
      {"star": params, "tokenizer": vqvae_params},
      jnp.asarray(label_B, jnp.int32),
      null,
      sample_keys(0, jnp.arange(case["batch"])),
      Knobs(cfg_scale=jnp.float32(cfg), top_k=1),
    )
    if program is None:
      program = sampler.lower(*arguments).compile(compiler_options=QUICK)
    return program(*arguments)

  for cfg in case["greedy"]["cfgs"]:
    out, prefix = draw(tensors["labels"], cfg), f"ar_cfg{cfg:g}."
    np.testing.assert_array_equal(out.idx_BL, tensors[f"{prefix}tokens"])
    np.testing.assert_allclose(
      out.logits_BLV, tensors[f"{prefix}logits"], atol=GUIDED_ATOL
    )
    np.testing.assert_allclose(
      out.f_hat_BhwCv, nhwc(tensors[f"{prefix}fhat"]), atol=GUIDED_ATOL
    )
    if f"{prefix}image_b0" in tensors:
      # Official images are in [0, 1].
      image_b0 = (np.asarray(out.image_BHW3[:1]) + 1) / 2
      np.testing.assert_allclose(
        image_b0, nhwc(tensors[f"{prefix}image_b0"]), atol=GUIDED_ATOL
      )
  if "ar_label_int_minus1.tokens" in tensors:
    # What the integer -1 stands for: the null class, for every sample.
    nulls = np.full_like(tensors["labels"], config.num_classes)
    np.testing.assert_array_equal(
      draw(nulls, 4.0).idx_BL, tensors["ar_label_int_minus1.tokens"]
    )
