"""A trained tokenizer as the start of a run: parts of it, more scales."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer_256
from star_jax.bundle import save_bundle
from star_jax.scales import ScaleSchedule
from star_jax.testing import random_params
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.growth import grow_tokenizer
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.optimizer import run_optimizer
from star_jax.train.tokenizer_start import FREE, inherit_tokenizer
from star_jax.train.tokenizer_task import TokenizerTask
from tests.train import quick, tokenizer_task_test


def config(**changes):
  c = tokenizer_task_test.config()
  c.tokenizer.update(rate_weight=(), deep_encoder=True)
  c.update(changes)
  return c


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  """A trained tokenizer of two scales, and its parameters."""
  path = tmp_path_factory.mktemp("trained")
  vqvae = VQVAEConfig.from_dict(config().tokenizer.to_dict())
  params = random_params(VQVAE(vqvae))
  save_bundle(
    path, tokenizer_config=vqvae, tokenizer_params=params, licence="none",
    storage="float32",
  )  # fmt: skip
  return str(path), vqvae, params


def test_a_bundle_is_taken_over(bundle):
  path, vqvae, params = bundle
  other = dataclasses.replace(vqvae, beta=1.0, rate_weight=(0.1, 0.1))
  fresh = {"quantizer": {"rate_KV": np.zeros((2, 16), np.float32)}}
  found = inherit_tokenizer(path, other, fresh, "")
  assert found["quantizer"].pop("rate_KV") is fresh["quantizer"]["rate_KV"]
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_more_scales_need_a_way_and_other_sizes_are_refused(bundle):
  path, vqvae, params = bundle
  longer = dataclasses.replace(
    vqvae, schedule=ScaleSchedule.from_patch_nums((1, 2, 4))
  )
  with pytest.raises(ValueError, match=r"config.grow takes it there, one of"):
    inherit_tokenizer(path, longer, {}, "")
  found = inherit_tokenizer(path, longer, {}, "position")
  jax.tree.map(np.testing.assert_array_equal, found, params)
  wider = dataclasses.replace(vqvae, ch=64)
  with pytest.raises(ValueError, match=r"another one: ch is 32 there and 64"):
    inherit_tokenizer(path, wider, {}, "")


@pytest.mark.parametrize("size", ["512", "1024"])
def test_configs_of_larger_pictures_take_the_official_tokenizer(size):
  c = tokenizer_256.get_config(size)
  new = VQVAEConfig.from_dict(c.tokenizer.to_dict())
  old = VQVAEConfig.from_dict(tokenizer_256.get_config().tokenizer.to_dict())
  # Growing only looks at the phi.
  phi = {f"phi_{j}": {"kernel": np.full(1, j)} for j in range(4)}
  grown = grow_tokenizer(old, {"quantizer": phi}, new.schedule, c.grow)
  ours, theirs = new.to_dict(), grown.config.to_dict()
  assert {k for k in ours if ours[k] != theirs[k]} <= set(FREE)


@pytest.mark.long
@pytest.mark.parametrize("part", ["decoder", "quantizer"])
def test_a_part_is_trained_and_the_rest_has_no_moments(part):
  c = config(train_only=part)
  task, optimizer = TokenizerTask(c), run_optimizer(c)
  state = quick.init_state(task, optimizer)
  before = jax.tree.map(np.array, state.params)
  # Usage of a dead code: it is revived where the quantizer is trained alone.
  after, metrics = quick.train_step(
    jax.tree.map(jnp.copy, state), {}, next(task.train_batches()),
    jax.random.key(0), loss_fn=task.loss_at(0), optimizer=optimizer,
  )  # fmt: skip
  assert metrics["grad_norm"] > 0
  moved = {
    name
    for name in before
    if any(
      np.any(a != b)
      for a, b in zip(
        jax.tree.leaves(before[name]), jax.tree.leaves(after.params[name])
      )
    )
  }
  expected = {
    "decoder": {"decoder", "linear_path", "post_quant_conv"},
    "quantizer": {"quantizer"},
  }[part]
  assert moved <= expected and moved
  np.testing.assert_array_equal(
    before["linear_path"]["into"]["kernel"],
    after.params["linear_path"]["into"]["kernel"],
  )
  moments = {
    path[2].key if hasattr(path[2], "key") else path[3].key
    for path, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if np.ndim(x)
  }
  assert moments == expected
  assert (task.maintain_every == 0) == (part == "decoder")


def test_losses_that_would_teach_nothing_are_refused():
  c = config(train_only="quantizer")
  c.loss.adversarial = 0.5
  with pytest.raises(
    ValueError, match=r"'quantizer' learns from config.loss.vq"
  ):
    TokenizerTask(c)
  with pytest.raises(ValueError, match="all, decoder, quantizer, got 'phi'"):
    TokenizerTask(config(train_only="phi"))


def test_pictures_that_positions_do_not_divide():
  c = config()
  c.data_options.size = (10, 8)
  with pytest.raises(ValueError, match=r"\(10, 8\) is not a multiple of 4"):
    TokenizerTask(c)
