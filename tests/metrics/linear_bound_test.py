"""The linear bound on pictures whose number of components is known."""

from __future__ import annotations

import numpy as np

from star_jax.metrics.linear_bound import linear_bound
from star_jax.metrics.reconstruction import Pictures


def _pictures(rng, n: int, basis: np.ndarray) -> Pictures:
  """8 x 8 pictures of two 4 px patches a row, mixed from `basis` [m, 48]."""
  mixed = rng.uniform(0, 255 / len(basis), (n * 4, len(basis))) @ basis
  image = mixed.reshape(n, 2, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
  image = np.round(image.reshape(n, 8, 8, 3)).astype(np.uint8)
  return Pictures(image, np.ones((n, 8, 8), np.float32), np.zeros_like(image))


def test_all_components_are_exact_and_one_too_few_is_not():
  rng = np.random.default_rng(0)
  basis = rng.random((3, 48))
  train, heldout = (_pictures(rng, n, basis) for n in (60, 20))
  enough = linear_bound(train, heldout, side=4, kept=3)
  assert enough > 50  # what rounding to 8 bits leaves
  assert linear_bound(train, heldout, side=4, kept=2) < enough - 20


def test_only_the_art_counts():
  rng = np.random.default_rng(0)
  train = _pictures(rng, 60, rng.random((1, 48)))
  heldout = _pictures(rng, 20, rng.random((1, 48)))
  # The left half cannot be explained, the right half is one flat colour.
  heldout.image[:, :, 4:] = 0
  train.image[:, :, 4:] = 0
  heldout.alpha[:, :, :4] = 0
  assert linear_bound(train, heldout, side=4, kept=2) > 30
