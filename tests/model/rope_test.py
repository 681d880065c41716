"""The rotary tables against the written formulas, and their application."""

import numpy as np
import pytest

from star_jax.model.rope import apply_rope, rope_angles, rope_tables
from star_jax.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(((1, 1), (2, 3), (4, 4)))


def angle(position: float, j: int, head_dim: int, theta: float) -> float:
  return position * theta ** (-4 * j / head_dim)


@pytest.mark.parametrize("rope_coords", ["checkpoint", "paper"])
def test_angles_follow_the_formula_token_by_token(rope_coords):
  head_dim, theta, norm = 8, 100.0, 16.0
  angles = rope_angles(SCHEDULE, head_dim, theta, norm, rope_coords)
  assert angles.shape == (SCHEDULE.num_tokens, 4)
  token = 0
  for h, w in SCHEDULE.grids:
    for row in range(h):
      for column in range(w):
        if rope_coords == "paper":  # i / h_k * H, counted from 1
          x, y = (column + 1) / w * norm, (row + 1) / h * norm
        else:  # counted from 0, over the largest coordinate
          x = column / (w - 1) * norm if w > 1 else 0.0
          y = row / (h - 1) * norm if h > 1 else 0.0
        expected = [
          angle(p, j, head_dim, theta) for p in (x, y) for j in (0, 1)
        ]
        np.testing.assert_allclose(angles[token], expected, rtol=1e-12)
        token += 1


def test_plain_rope_counts_in_tokens():
  angles = rope_angles(SCHEDULE, 4, 100.0, -1)
  # One frequency, theta ** 0: plane 0 is the column, plane 1 the row.
  np.testing.assert_array_equal(angles[1:7, 0], [0, 1, 2, 0, 1, 2])
  np.testing.assert_array_equal(angles[1:7, 1], [0, 0, 0, 1, 1, 1])


def test_tables_are_float32_roundings_of_float64():
  cos, sin = rope_tables(SCHEDULE, 8, 1e4, 64.0)
  angles = rope_angles(SCHEDULE, 8, 1e4, 64.0)
  assert cos.dtype == sin.dtype == np.float32
  np.testing.assert_array_equal(cos, np.cos(angles).astype(np.float32))
  np.testing.assert_array_equal(sin, np.sin(angles).astype(np.float32))


def test_adjacent_channels_turn_as_complex_numbers():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, SCHEDULE.num_tokens, 8)).astype(np.float32)
  cos, sin = rope_tables(SCHEDULE, 8, 100.0, 16.0)
  turned = np.asarray(apply_rope(x, cos, sin))
  expected = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)
  np.testing.assert_allclose(turned[..., 0::2], expected.real, atol=1e-6)
  np.testing.assert_allclose(turned[..., 1::2], expected.imag, atol=1e-6)


def test_head_width_must_hold_two_axes_of_pairs():
  with pytest.raises(ValueError, match="multiple of 4, got 6"):
    rope_angles(SCHEDULE, 6, 100.0, 16.0)
