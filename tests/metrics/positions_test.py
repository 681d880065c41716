import numpy as np
import pytest

from star_jax.metrics import positions


@pytest.mark.parametrize("kind", positions.KINDS)
def test_a_point_is_most_like_itself(kind):
  found = positions.similarity(kind, 16)
  assert np.unravel_index(found.argmax(), found.shape) == positions.POINT
  assert found.max() == pytest.approx(1.0)


def test_only_normalised_positions_find_the_point_on_other_grids():
  there = [(p + 0.5) / 16 for p in positions.POINT]

  def off(kind, side):
    return np.abs(np.subtract(positions.peak(kind, side), there)).max()

  assert off("normalised RoPE", 32) < 1 / 16
  assert off("plain RoPE", 32) > 0.25 and off("sinusoidal", 32) > 0.25
