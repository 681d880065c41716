"""The sampler draws from the model: V = 3 on the grids 1x1 and 1x2.

All 27 outcomes are listed with their teacher-forced probabilities, mixed here
in float64, and compared with 100,000 samples of every batch slot.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from star_jax import testing
from star_jax.model.star import Star
from star_jax.sampling import sampler as S
from star_jax.tokenizer.vqvae import VQVAE
from tests.cases import long_but

SLOTS, ROUNDS, T, D = 3, 100_000, 5, 12
OUTCOMES = np.asarray(list(itertools.product(range(3), repeat=3)))


class Tiny:
  """The model, a prompt for each slot, and its exact distributions."""

  def __init__(self):
    tokenizer = testing.tiny_tokenizer_config(((1, 1), (1, 2)), 3)
    self.vqvae = VQVAE(tokenizer)
    self.star = Star(testing.tiny_star_config(tokenizer, D))
    self.params = jax.device_put(
      {
        "star": testing.random_params(self.star, seed=1),
        "tokenizer": testing.random_params(self.vqvae, seed=2),
      }
    )
    self.text = testing.random_text(SLOTS, T, D, seed=3)
    self.null = testing.random_text(1, T, D, seed=4)
    # Every outcome for every slot, then for the null prompt.
    rows = np.repeat(np.arange(SLOTS + 1), len(OUTCOMES))
    text = jax.tree.map(
      lambda a, b: np.concatenate([a, b])[rows], self.text, self.null
    )
    idx_BL = jnp.asarray(np.tile(OUTCOMES, (SLOTS + 1, 1)))
    logits = jax.jit(self._teacher_forced)(idx_BL, text)
    self.logits = np.asarray(logits, np.float64).reshape(SLOTS + 1, 27, 3, 3)

  def _teacher_forced(self, idx_BL, text):
    x_BLCv = self.vqvae.apply(
      {"params": self.params["tokenizer"]},
      idx_BL,
      method="teacher_forcing_input",
    )
    return self.star.apply({"params": self.params["star"]}, x_BLCv, text)

  def joint(self, cfg_scale, top_k=3, top_p=1.0):
    """Probability of each outcome for the prompt of each slot, [SLOTS, 27]."""
    t_L1 = cfg_scale * np.asarray([0.0, 1.0, 1.0])[:, None]
    logits = (1 + t_L1) * self.logits[:-1] - t_L1 * self.logits[-1:]
    probs = np.exp(logits)
    # Both filters remove the beginning of the ascending order.
    order = probs.argsort(-1)
    ascending = np.take_along_axis(probs, order, -1)
    ascending[..., : 3 - top_k] = 0
    ascending /= ascending.sum(-1, keepdims=True)
    removed = ascending.cumsum(-1) <= 1 - top_p
    removed[..., -1] = False
    ascending[removed] = 0
    np.put_along_axis(probs, order, ascending, -1)
    probs /= probs.sum(-1, keepdims=True)
    index = np.broadcast_to(OUTCOMES[None, ..., None], (SLOTS, 27, 3, 1))
    probs = np.take_along_axis(probs, index, -1).prod((2, 3))
    # The logits are float32: the exact sum is 1 up to their rounding.
    np.testing.assert_allclose(probs.sum(1), 1.0, atol=1e-5)
    return probs / probs.sum(1, keepdims=True)

  def draws(self, guided):
    """Function (cfg_scale, top_k, top_p) -> outcome numbers [ROUNDS, SLOTS]."""
    config = S.SamplerConfig(guided=guided, return_image=False)
    run = S.build_sampler(self.star, self.vqvae, config)

    @jax.jit
    def draw(keys, cfg_scale, top_k, top_p):
      def batch(keys_B):
        knobs = S.Knobs(cfg_scale, top_k=top_k, top_p=top_p)
        return run(self.params, self.text, self.null, keys_B, knobs).idx_BL

      return jax.lax.map(batch, keys, batch_size=ROUNDS // 20)

    keys = jax.random.split(jax.random.key(11), (ROUNDS, SLOTS))
    return functools.cache(
      lambda cfg_scale, top_k=0, top_p=1.0: (
        np.asarray(draw(keys, cfg_scale, top_k, top_p)) @ [9, 3, 1]
      )
    )


@pytest.fixture(scope="module")
def tiny():
  return Tiny()


@pytest.fixture(scope="module")
def unguided(tiny):
  return tiny.draws(guided=False)(1.5)


@pytest.fixture(scope="module")
def guided(tiny):
  return tiny.draws(guided=True)


def p_value(drawn_R, probs):
  counts = np.bincount(drawn_R, minlength=27)
  live = probs > 0
  if counts[~live].any():
    return 0.0
  return stats.chisquare(counts[live], ROUNDS * probs[live]).pvalue


@pytest.mark.parametrize("slot", range(SLOTS))
def test_unguided_samples_match_the_joint_distribution(tiny, unguided, slot):
  probs = tiny.joint(0.0)
  assert p_value(unguided[:, slot], probs[slot]) > 1e-3
  # The test has the power to tell one prompt from another.
  assert p_value(unguided[:, slot], probs[(slot + 1) % SLOTS]) < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("slot", range(SLOTS))
def test_guided_samples_match_the_mixed_distribution(tiny, guided, slot):
  drawn = guided(1.5)
  assert p_value(drawn[:, slot], tiny.joint(1.5)[slot]) > 1e-3
  assert p_value(drawn[:, slot], tiny.joint(1.3)[slot]) < 1e-6


@pytest.mark.parametrize(
  ("top_k", "top_p"), long_but(1, [(3, 0.7), (2, 1.0), (2, 0.6)])
)
def test_filtered_samples_match_the_filtered_distribution(
  tiny, guided, top_k, top_p
):
  drawn, probs = guided(1.5, top_k, top_p), tiny.joint(1.5, top_k, top_p)
  for slot in range(SLOTS):
    assert 1 < np.sum(probs[slot] > 0) < 27
    assert p_value(drawn[:, slot], probs[slot]) > 1e-3
    assert p_value(drawn[:, slot], tiny.joint(1.5)[slot]) < 1e-6


@pytest.mark.long
def test_guidance_of_scale_zero_draws_what_the_unguided_sampler_draws(
  unguided, guided
):
  # Not bitwise: the guided batch has twice the rows and rounds differently.
  assert np.mean(guided(0.0) != unguided) < 1e-4
