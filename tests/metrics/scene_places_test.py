"""The best set of places, against trying all of them."""

import itertools

import numpy as np
import pytest

from star_jax.metrics.scene_places import (
  MAX_OVERLAP,
  MIN_EXPLAINED,
  MIN_GAIN,
  Place,
  best_subset,
  erased,
  jaccard,
  shared_area,
)


def _total(group, energy):
  """What a set explains; None when two of it overlap too much."""
  total = sum(p.gain for p in group)
  for a, b in itertools.combinations(group, 2):
    if shared_area(a, b) > MAX_OVERLAP * min(a.side, b.side) ** 2:
      return None
    both = np.zeros_like(energy)
    b.cut(both)[...] = 1
    total -= (a.cut(both) * a.cut(energy)).sum()
  return total


@pytest.mark.parametrize("most", [1, 3, 5])
def test_best_subset_is_the_best_of_all(most):
  rng = np.random.default_rng(most)
  for _ in range(10):
    energy = rng.random((40, 40)) * 0.05
    places = [
      Place(
        int(rng.integers(0, 28)),
        int(rng.integers(0, 28)),
        int(rng.integers(6, 12)),
        float(rng.uniform(1, 6)),
        explained=float(rng.uniform(0.2, 1)),
      )
      for _ in range(9)
    ]
    good = [
      p for p in places if p.gain >= MIN_GAIN and p.explained >= MIN_EXPLAINED
    ]
    totals = [
      _total(group, energy)
      for count in range(most + 1)
      for group in itertools.combinations(good, count)
    ]
    found = best_subset(places, energy, most)
    assert len(found) <= most
    best = max(t for t in totals if t is not None)
    assert _total(found, energy) == pytest.approx(best)


def test_shared_area():
  a = Place(0, 0, 10, 1.0)
  assert shared_area(a, Place(5, 8, 10, 1.0)) == 10
  assert shared_area(a, Place(0, 10, 10, 1.0)) == 0
  assert jaccard(a, Place(0, 5, 10, 1.0)) == pytest.approx(1 / 3)
  assert jaccard(a, a.scaled(2)) == pytest.approx(1 / 4)


def test_erased_leaves_the_rest():
  left = erased(np.ones((6, 8, 3)), [Place(1, 2, 3, 1.0)])
  assert left.sum() == (48 - 9) * 3 and not left[1:4, 2:5].any()
