"""The schedule of grids and everything static that follows from it."""

import numpy as np
import pytest

from star_jax.scales import ScaleSchedule

MIXED = ScaleSchedule.from_patch_nums([1, (1, 2), (3, 4)])


@pytest.mark.parametrize(
  ("name", "scales", "tokens"),
  [("256", 10, 680), ("512", 10, 2240), ("1024", 14, 9451)],
)
def test_official_schedules(name, scales, tokens):
  schedule = ScaleSchedule.from_name(name)
  assert (schedule.num_scales, schedule.num_tokens) == (scales, tokens)
  side = int(name) // 16
  assert schedule.grids[0] == (1, 1) and schedule.final_grid == (side, side)


def test_offsets_levels_and_mask_of_rectangles():
  assert MIXED.lengths == (1, 2, 12) and MIXED.num_tokens == 15
  assert MIXED.begin_ends == ((0, 1), (1, 3), (3, 15))
  np.testing.assert_array_equal(MIXED.level_ids, [0] + [1] * 2 + [2] * 12)
  mask = MIXED.scale_mask()
  assert mask[0].sum() == 1 and mask[2].sum() == 3 and mask[3].all()


def test_the_guidance_ramp_goes_from_zero_to_one():
  np.testing.assert_allclose(
    [MIXED.cfg_ratio(k) for k in range(3)], [0, 0.5, 1]
  )
  assert ScaleSchedule.from_patch_nums([1]).cfg_ratio(0) == 0


def test_coordinates_by_both_formulas():
  y, x = MIXED.coordinates(2, 16.0)
  np.testing.assert_allclose(y.reshape(3, 4)[:, 0], [0, 8, 16])
  np.testing.assert_allclose(x[:4], [0, 16 / 3, 32 / 3, 16])
  y, x = MIXED.coordinates(2, 16.0, "paper")
  np.testing.assert_allclose(y.reshape(3, 4)[:, 0], [16 / 3, 32 / 3, 16])
  np.testing.assert_allclose(x[:4], [4, 8, 12, 16])
  # A side of length one stays at zero; -1 keeps the indices.
  assert not MIXED.coordinates(1, 16.0)[0].any()
  np.testing.assert_array_equal(MIXED.coordinates(2, -1)[1][:4], range(4))


def test_a_config_may_say_it_in_three_ways():
  sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
  named = ScaleSchedule.parse("256")
  assert named == ScaleSchedule.parse(sides) == ScaleSchedule.parse(named)
  assert hash(named) == hash(ScaleSchedule.parse([(n, n) for n in sides]))


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([], "at least one grid, got none"),
    ([1, 0], r"positive integers, got \(0, 0\)"),
    ([1, (2, 3, 4)], r"positive integers, got \(2, 3, 4\)"),
    ([1, 4, 3], r"larger than the last one \(3, 3\), got \(4, 4\)"),
    ("128", "Unknown schedule '128'; the official ones are 256, 512, 1024"),
  ],
)
def test_what_is_no_schedule(value, message):
  with pytest.raises(ValueError, match=message):
    ScaleSchedule.parse(value)


def test_unknown_coordinates():
  with pytest.raises(ValueError, match=r"rope_coords is one of .* got 'pixel'"):
    MIXED.coordinates(1, 16.0, "pixel")
