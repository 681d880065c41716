"""Wilson intervals against their defining equation."""

import math

import numpy as np
import pytest

from star_jax.metrics.wilson import Z_95, Share, wilson_interval


@pytest.mark.parametrize("hits, n", [(0, 5), (1, 10), (37, 50), (600, 1000)])
def test_bounds_solve_the_score_equation(hits, n):
  # The bounds are the p at which |hits/n - p| is z standard errors of p.
  for p in wilson_interval(hits, n):
    if 0 < p < 1:
      error = math.sqrt(p * (1 - p) / n)
      assert abs(hits / n - p) == pytest.approx(Z_95 * error, rel=1e-9)


def test_ends_and_symmetry():
  assert wilson_interval(0, 20)[0] == 0 and wilson_interval(20, 20)[1] == 1
  low, high = wilson_interval(3, 20)
  assert wilson_interval(17, 20) == pytest.approx((1 - high, 1 - low))


def test_covers_the_true_share():
  rng = np.random.default_rng(0)
  covered = [
    low <= 0.2 <= high
    for low, high in (
      wilson_interval(h, 50) for h in rng.binomial(50, 0.2, 2000)
    )
  ]
  assert 0.93 < np.mean(covered) < 0.97


@pytest.mark.parametrize("hits, n", [(1, 0), (-1, 5), (6, 5)])
def test_bad_counts(hits, n):
  with pytest.raises(ValueError, match="0 <= hits <= n"):
    wilson_interval(hits, n)


def test_share():
  share = Share.of([True, False, True, True])
  assert (share.hits, share.n, share.value) == (3, 4, 0.75)
  assert "75.0%" in str(share) and share.to_dict()["value"] == 0.75
  empty = Share.of([])
  assert math.isnan(empty.value) and empty.to_dict()["value"] is None
