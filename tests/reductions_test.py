"""The fast index of an extreme against numpy's, ties and infinities too."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from star_jax.reductions import argmax_last, argmin_last


@pytest.mark.parametrize(
  ("ours", "numpys"), [(argmin_last, np.argmin), (argmax_last, np.argmax)]
)
def test_equals_numpy_and_takes_the_first_of_ties(ours, numpys):
  rng = np.random.default_rng(0)
  for x in (
    rng.normal(size=(5, 7, 300)),
    # Few distinct values: every row has ties.
    rng.integers(0, 4, (64, 50)),
    np.where(rng.random((64, 50)) < 0.9, -np.inf, rng.normal(size=(64, 50))),
    np.where(rng.random((64, 50)) < 0.9, np.inf, rng.normal(size=(64, 50))),
    np.full((2, 9), -np.inf),
  ):
    x = x.astype(np.float32)
    np.testing.assert_array_equal(jax.jit(ours)(x), numpys(x, axis=-1))
