"""The tokens of a step: probabilities, exactness of sums, rare ones first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from star_jax.scales import ScaleSchedule
from star_jax.train import kept_tokens
from star_jax.train.token_drop import TokenDrop

SCHEDULE = ScaleSchedule.from_patch_nums([1, 2, 4])
RARITY = TokenDrop(
  **common.token_drop().to_dict() | dict(way="rarity", tail=(2, 5))
)


def tokens(batch=3):
  """Last scale: ten tokens of one code and six of their own."""
  idx_BL = np.tile(np.arange(21), (batch, 1))
  idx_BL[:, 5:15] = 7
  idx_BL[-1, 5:] = 3  # nothing but ground
  return jnp.asarray(idx_BL, jnp.int32)


@pytest.mark.parametrize("count", [1, 5, 9, 15, 16])
def test_probabilities_sum_to_the_count(count):
  share_Bl = kept_tokens.keep_probabilities(tokens()[:, 5:], count)
  np.testing.assert_allclose(share_Bl.sum(axis=1), count, rtol=1e-5)
  assert (share_Bl > 0).all() and (share_Bl <= 1).all()
  np.testing.assert_allclose(share_Bl[-1], count / 16, rtol=1e-5)
  if count < 9:
    ratio = share_Bl[0, -1] / share_Bl[0, 0]
    np.testing.assert_allclose(ratio, 10**kept_tokens.RARITY, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 13, 16])
def test_each_token_is_kept_with_its_probability(count):
  share_Bl = kept_tokens.keep_probabilities(tokens()[:, 5:], count)
  rows = jnp.repeat(share_Bl[:1], 20_000, axis=0)
  place_Bm = kept_tokens.systematic_sample(rows, count, jax.random.key(0))
  assert (np.diff(place_Bm, axis=1) > 0).all()  # all different, in order
  seen = np.bincount(np.ravel(place_Bm), minlength=16) / 20_000
  np.testing.assert_allclose(seen, share_Bl[0], atol=0.015)


def test_only_the_scale_before_decides():
  idx_BL = tokens()
  run = jax.jit(lambda idx_BL: RARITY.draw(SCHEDULE, idx_BL, jax.random.key(3)))
  kept = run(idx_BL)
  other = run(idx_BL.at[:, 5:].set(0))
  np.testing.assert_array_equal(kept.index_BL, other.index_BL)
  np.testing.assert_array_equal(kept.weight_BL, other.weight_BL)
  other = run(idx_BL.at[:, 1:4].set(0))
  assert np.any(kept.weight_BL != other.weight_BL)


def test_the_token_above_is_the_one_a_place_lies_in():
  schedule = ScaleSchedule.from_patch_nums([1, (1, 2), (2, 4)])
  idx_BL = jnp.arange(11)[None]
  above = kept_tokens.token_above(schedule, 2, idx_BL)
  np.testing.assert_array_equal(above, [[1, 1, 2, 2, 1, 1, 2, 2]])
  np.testing.assert_array_equal(
    kept_tokens.token_above(schedule, 1, idx_BL), [[0, 0]]
  )


def test_weighted_sums_are_those_of_all_tokens_in_the_mean():
  idx_BL = tokens()
  values_BL = jax.random.normal(jax.random.key(1), idx_BL.shape)

  @jax.jit
  def sums(key):
    kept = RARITY.draw(SCHEDULE, idx_BL, key)
    values = jnp.take_along_axis(values_BL, kept.index_BL, axis=1)
    return values * kept.weight_BL

  drawn = jax.vmap(sums)(jax.random.split(jax.random.key(2), 8000))
  assert drawn.shape[1:] == (3, 1 + 2 + 5)
  got = drawn[..., 1:3].sum(-1).mean(0)
  np.testing.assert_allclose(got, values_BL[:, 1:5].sum(1), atol=0.12)
  got = drawn[..., 3:].sum(-1).mean(0)
  np.testing.assert_allclose(got, values_BL[:, 5:].sum(1), atol=0.3)


def test_whole_scales_are_kept_as_they_are():
  whole = dataclasses.replace(RARITY, tail=(16,))
  kept = whole.draw(SCHEDULE, tokens(), jax.random.key(0))
  np.testing.assert_array_equal(kept.index_BL, np.tile(np.arange(21), (3, 1)))
  np.testing.assert_allclose(kept.weight_BL, 1.0, rtol=1e-5)
  assert kept.lengths == SCHEDULE.lengths
