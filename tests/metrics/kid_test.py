"""The kernel distance against its definition."""

import numpy as np
import pytest

from star_jax.metrics import kid


def by_definition(x, y):
  def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3

  def within(z):
    pairs = [
      kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j
    ]
    return np.mean(pairs)

  across = np.mean([kernel(a, b) for a in x for b in y])
  return within(x) + within(y) - 2 * across


def test_is_the_unbiased_estimate(monkeypatch):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(7, 4)), rng.normal(0.5, 1, size=(5, 4))
  monkeypatch.setattr(kid, "ROWS", 3)
  np.testing.assert_allclose(kid.kernel_distance(x, y), by_definition(x, y))


def test_tells_one_distribution_from_two():
  rng = np.random.default_rng(1)
  same = [kid.kernel_distance(*rng.normal(size=(2, 300, 8))) for _ in range(20)]
  # Unbiased: both signs occur, the mean is within its own noise of zero.
  assert min(same) < 0 < max(same)
  assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
  x, y = rng.normal(size=(300, 8)), rng.normal(0.5, 1, size=(300, 8))
  assert kid.kernel_distance(x, y) > 10 * np.std(same)


@pytest.mark.parametrize(
  "x, y, match",
  [
    (np.zeros((1, 4)), np.zeros((5, 4)), "at least 2 pictures on each side"),
    (np.zeros((3, 4)), np.zeros((5, 3)), "features .N, D. of one width"),
    (np.full((3, 4), np.nan), np.zeros((5, 4)), "not finite"),
  ],
)
def test_bad_features_are_refused(x, y, match):
  with pytest.raises(ValueError, match=match):
    kid.kernel_distance(x, y)
