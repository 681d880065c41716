"""Token by token: the raster-order and the flattened multi-scale baseline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import testing
from star_jax.model.star import Star
from star_jax.sampling import editing
from star_jax.sampling import sampler as S
from star_jax.sampling.likelihood import build_log_prob
from star_jax.sampling.raster import guidance_ratios
from star_jax.scales import ScaleSchedule
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.tokenizer.vqvae import VQVAE
from tests.cases import long_but

BATCH, TEXT_TOKENS, WIDTH = 4, 5, 12


class Tiny:
  """A random model that predicts token by token, and its tokenizer."""

  def __init__(self, patch_nums, **overrides):
    tokenizer = testing.tiny_tokenizer_config(patch_nums)
    self.vqvae = VQVAE(tokenizer)
    config = testing.tiny_star_config(
      tokenizer, WIDTH, prediction="token", **overrides
    )
    self.star, self.schedule = Star(config), tokenizer.schedule
    self.params = {
      "star": testing.random_params(self.star, seed=1),
      "tokenizer": testing.random_params(self.vqvae, seed=2),
    }
    self.text = testing.random_text(BATCH, TEXT_TOKENS, WIDTH, seed=3)
    self.null = testing.random_text(1, TEXT_TOKENS, WIDTH, seed=4)

  def logits(self, idx_BL, text):
    """Of the training pass."""
    return self._logits(self.params, idx_BL, text)

  @functools.partial(jax.jit, static_argnums=0)
  def _logits(self, params, idx_BL, text):
    x_BLCv = teacher_forcing_input(
      self.star.config, self.vqvae, params["tokenizer"], idx_BL
    )
    return self.star.apply({"params": params["star"]}, x_BLCv, text)

  def run(self, rows=slice(None), **options):
    run = S.build_sampler(self.star, self.vqvae, S.SamplerConfig(**options))
    keys = S.sample_keys(7, np.arange(BATCH)[rows])
    knobs = S.Knobs(cfg_scale=3.0, top_k=20, top_p=0.95)
    return run(self.params, self.text[rows], self.null, keys, knobs)


@pytest.fixture(
  scope="module",
  params=long_but(
    1,
    [
      [(4,), {}],
      [(1, 2, 3), {"adaptive_norm": "block", "position": "absolute"}],
    ],
    ids=["raster", "flattened"],
  ),
)
def tiny(request):
  patch_nums, overrides = request.param
  return Tiny(patch_nums, **overrides)


def test_sampling_reads_what_training_reads(tiny):
  out = tiny.run(return_logits=True)
  cond = tiny.logits(out.idx_BL, tiny.text)
  null = jax.tree.map(lambda x: jnp.repeat(x, BATCH, axis=0), tiny.null)
  t_L = 3.0 * guidance_ratios(tiny.schedule)[:, None]
  expected = (1 + t_L) * cond - t_L * tiny.logits(out.idx_BL, null)
  np.testing.assert_allclose(out.logits_BLV, expected, atol=1e-3)
  h, w = tiny.vqvae.config.image_size
  assert out.image_BHW3.shape == (BATCH, h, w, 3)


def test_a_sample_does_not_depend_on_its_batch(tiny):
  together = tiny.run()
  alone = tiny.run(slice(2, 3))
  np.testing.assert_array_equal(together.idx_BL[2:3], alone.idx_BL)


def test_a_token_sees_all_tokens_before_it_and_none_after(tiny):
  length = tiny.schedule.num_tokens
  idx_BL = jax.random.randint(jax.random.key(0), (1, length), 0, 24)
  x_BLCv = teacher_forcing_input(
    tiny.star.config, tiny.vqvae, tiny.params["tokenizer"], idx_BL
  )
  rng = np.random.default_rng(0)
  x_BLCv = jnp.asarray(rng.normal(size=x_BLCv.shape), jnp.float32)

  def sums(x):
    logits = tiny.star.apply({"params": tiny.params["star"]}, x, tiny.text[:1])
    return jnp.sum(jnp.sin(logits[0]), axis=-1)

  grad_LLCv = jax.jit(jax.jacrev(sums))(x_BLCv)[:, 0]
  # Input i is what token i + 1 and all after it see.
  reach = np.abs(np.asarray(grad_LLCv)).max(-1)
  sees = np.arange(length)[:, None] > np.arange(length - 1)
  np.testing.assert_array_equal(reach[~sees], 0.0)
  assert (reach[sees] > 0).all()


def test_likelihoods_of_both_predictions_share_the_token_stream():
  """The same tokens and scales; only what a token is predicted from differs."""
  flat = Tiny((1, 2, 3))
  scale = Star(testing.tiny_star_config(flat.vqvae.config, WIDTH))
  params = {**flat.params, "star": testing.random_params(scale, seed=1)}
  length = flat.schedule.num_tokens
  idx_BL = jax.random.randint(jax.random.key(1), (BATCH, length), 0, 24)
  one = build_log_prob(flat.star, flat.vqvae)(flat.params, idx_BL, flat.text)
  other = build_log_prob(scale, flat.vqvae)(params, idx_BL, flat.text)
  assert one.shape == other.shape == (BATCH, 3)
  # The first token is predicted from the condition alone in both.
  np.testing.assert_allclose(one[:, 0], other[:, 0], atol=1e-4)
  assert np.abs(one[:, 1:] - other[:, 1:]).min() > 1e-4


def test_what_needs_scales_is_refused():
  tiny = Tiny((4,))
  with pytest.raises(ValueError, match="predicts token by token"):
    tiny.run(gumbel_smooth=True)
  run = S.build_sampler(tiny.star, tiny.vqvae, S.SamplerConfig())
  edit = editing.Edit(jnp.zeros((BATCH, 16), int), jnp.ones((BATCH, 16), bool))
  keys = S.sample_keys(0, np.arange(BATCH))
  with pytest.raises(ValueError, match="editing and Gumbel smoothing need"):
    run(tiny.params, tiny.text, tiny.null, keys, S.Knobs(cfg_scale=1.0), edit)


def test_only_one_after_the_other_starts_with_another_grid_than_1x1():
  schedule = ScaleSchedule.from_patch_nums([4])
  tokenizer = testing.tiny_tokenizer_config((4,))
  assert tokenizer.schedule == schedule
  with pytest.raises(ValueError, match="first grid of the schedule must be"):
    testing.tiny_star_config(tokenizer, WIDTH)
