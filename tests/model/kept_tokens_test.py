"""The model on a part of the tokens of its last scale."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.model.kept_tokens import KeptTokens
from star_jax.model.star import Star
from tests.cases import long_but
from tests.model.star_test import (
  QUICK,
  VARIANTS,
  forward,
  make_config,
  make_inputs,
  make_params,
)


@pytest.mark.parametrize("variant", long_but(1, ["blocked", "absolute"]))
def test_a_part_of_the_last_scale(variant):
  config = make_config(**VARIANTS[variant])
  x, text = make_inputs(config)
  params = make_params(config)
  begin, end = config.schedule.begin_ends[-1]

  @functools.partial(jax.jit, compiler_options=QUICK)
  def some(kept_l, last=None):
    """Of all samples; of the last one `last`, where given."""
    index_L = jnp.concatenate([jnp.arange(begin), begin + kept_l])
    index_BL = jnp.tile(index_L, (len(x), 1))
    if last is not None:
      index_BL = index_BL.at[-1, begin:].set(begin + last)
    weight_BL = jnp.ones(index_BL.shape)
    weight_BL = weight_BL.at[:, begin:].mul((end - begin) / len(kept_l))
    lengths = (*config.schedule.lengths[:-1], len(kept_l))
    kept = KeptTokens(index_BL, weight_BL, lengths)
    return Star(config).apply({"params": params}, x, text, kept=kept)

  full = forward(config, params, x, text)
  everything = jnp.arange(end - begin)
  np.testing.assert_allclose(some(everything), full, atol=1e-5)
  part = some(everything[1::2])
  # Coarser scales do not see the last one; the tokens kept are at their place.
  np.testing.assert_allclose(part[:, :begin], full[:, :begin], atol=1e-5)
  assert part.shape[1] == begin + (end - begin) // 2
  other = some(everything[1::2].at[0].set(0))
  assert jnp.abs(other[:, begin] - part[:, begin]).max() > 1e-3
  # Every sample has tokens of its own.
  mixed = some(everything[1::2], last=everything[1::2].at[0].set(0))
  np.testing.assert_allclose(mixed[:-1], part[:-1], atol=1e-5)
  np.testing.assert_allclose(mixed[-1], other[-1], atol=1e-5)
