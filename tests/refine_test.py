"""Stable sampling from a bundle, and the training of its head."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import star_jax
from configs import refine_scenes64
from star_jax import bundle as B
from star_jax import testing
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.sampling import rounds
from star_jax.shapes import parameter_tree
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.frozen import SyntheticText
from star_jax.train.optimizer import build_optimizer
from star_jax.train.refine_task import RefineTask
from tests.train import quick

REFINE = RefineConfig(first_scale=2, depth=1)
SCHEDULE = (1, 2, 4)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
  """One model, without a refinement head and with a random one."""
  folder = tmp_path_factory.mktemp("refine")
  tokenizer = testing.tiny_tokenizer_config(SCHEDULE)
  config = testing.tiny_star_config(tokenizer)
  encoder = SyntheticText(config.text_dim, 6)
  parts = dict(
    tokenizer_config=tokenizer,
    tokenizer_params=testing.random_params(VQVAE(tokenizer)),
    star_config=config,
    star_params=testing.random_params(Star(config)),
    text=B.TextSettings.of(encoder),
    sampling=testing.SAMPLING,
    licence="none: random weights",
  )
  B.save_bundle(folder / "plain", **parts)
  B.save_bundle(
    folder / "refined",
    **parts,
    refine_config=REFINE,
    refine_params=random_head(config),
  )
  return folder, encoder


def random_head(config):
  rng = np.random.default_rng(5)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    parameter_tree(RefineHead(config, REFINE)),
  )


@pytest.fixture(scope="module")
def star(bundles):
  folder, encoder = bundles
  return star_jax.StarPipeline(B.load_bundle(folder / "refined"), encoder)


def tokens(star, prompts, **options):
  return star.sample_all(prompts, seed=3, **options).tokens_BL


@pytest.mark.long
@pytest.mark.parametrize("kind", ["head", "transformer_first"])
def test_the_head_draws_the_last_scales_and_no_others(star, kind):
  prompts = ["a", "b c", "d"]
  plain = tokens(star, prompts)
  refined = tokens(star, prompts, refine=kind)
  np.testing.assert_array_equal(refined[:, :5], plain[:, :5])
  assert (refined[:, 5:] != plain[:, 5:]).any()
  np.testing.assert_array_equal(tokens(star, prompts, refine=kind), refined)


@pytest.mark.long
def test_a_refined_sample_does_not_see_its_batch(star):
  together = tokens(star, ["a", "b c", "d"], refine="head", batch=4)
  one_by_one = tokens(star, ["a", "b c", "d"], refine="head", batch=1)
  np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.long
def test_a_bundle_without_a_head_says_so_and_draws(bundles):
  folder, encoder = bundles
  star = star_jax.StarPipeline(B.load_bundle(folder / "plain"), encoder)
  with pytest.warns(UserWarning, match="has no refinement head; it samples"):
    found = tokens(star, ["a"], refine="head")
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(found, tokens(star, ["a"]))


def test_bad_refinements_are_refused(star):
  with pytest.raises(ValueError, match="refine is one of off, head, transf"):
    star.sample("a", refine="twice")
  config = star.bundle.star_config
  head = RefineHead(config, REFINE)
  many = rounds.RefineSampling(rounds=16)
  with pytest.raises(ValueError, match="16 rounds of refinement are too many"):
    rounds.check_refine(config, many, head)
  with pytest.raises(ValueError, match="has no refinement head"):
    rounds.check_refine(config, rounds.HEAD, None)
  for first in (0, 3):
    with pytest.raises(ValueError, match=f"1 to 2, got {first}"):
      RefineConfig(first).check(config)
  absolute = dataclasses.replace(config, position="absolute")
  with pytest.raises(ValueError, match="with rotary positions, got position"):
    REFINE.check(absolute)


def test_the_head_is_part_of_the_bundle(bundles):
  folder, _ = bundles
  plain, refined = (B.load_bundle(folder / n) for n in ("plain", "refined"))
  assert plain.refine_config is None and refined.refine_config == REFINE
  assert plain.hash != refined.hash
  (folder / "refined" / "refine.safetensors").rename(folder / "away")
  with pytest.raises(ValueError, match=r"incomplete: no refine.safetensors"):
    B.load_bundle(folder / "refined")
  (folder / "away").rename(folder / "refined" / "refine.safetensors")


@pytest.fixture(scope="module")
def task(bundles):
  folder, encoder = bundles
  c = refine_scenes64.get_config("runlocal")
  c.bundle = str(folder / "plain")
  c.refine.update(first_scale=2, depth=1)
  c.text.max_tokens = encoder.max_tokens
  return RefineTask(c)


@pytest.mark.long
def test_training_moves_the_head_alone(task, bundles, tmp_path):
  folder, _ = bundles
  optimizer = build_optimizer(task.config.optimizer, 10)
  state = quick.init_state(task, optimizer)
  batch = next(task.train_batches())
  key, losses = jax.random.key(0), []
  step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
  params = state.params
  for _ in range(8):
    # One batch and one mask again and again: the loss has to fall.
    (loss, _), grads = step(params, {}, task.frozen, batch, key, jnp.array(0))
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    losses.append(float(loss))
  assert losses[-1] < losses[0]
  made = task.export(state.replace(params=params, ema_params=None), tmp_path)
  made, old = B.load_bundle(made), B.load_bundle(folder / "plain")
  assert made.sampling["refine"] == "head" and made.text == old.text
  jax.tree.map(
    np.testing.assert_array_equal, made.params["star"], old.params["star"]
  )


def test_another_codebook_is_refused(bundles, tmp_path):
  folder, _ = bundles
  tokenizer = testing.tiny_tokenizer_config(SCHEDULE)
  other = testing.random_params(VQVAE(tokenizer), seed=9)
  B.save_bundle(
    tmp_path / "other",
    tokenizer_config=tokenizer,
    tokenizer_params=other,
    licence="",
  )
  c = refine_scenes64.get_config("runlocal")
  c.data, c.bundle = "cache", str(folder / "plain")
  c.tokenizer_path = str(tmp_path / "other")
  c.refine.first_scale = 2
  with pytest.raises(ValueError, match="is not that of the bundle"):
    RefineTask(c)
  c.bundle = str(tmp_path / "other")
  with pytest.raises(ValueError, match="needs the transformer that it refines"):
    RefineTask(c)
