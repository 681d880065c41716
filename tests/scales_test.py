"""The schedule of grids and everything static that follows from it."""

import numpy as np
import pytest

from star_jax.scales import (
  ASPECTS,
  OFFICIAL_PATCH_NUMS,
  ScaleSchedule,
  rows_by_side,
)

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


@pytest.mark.parametrize("name", OFFICIAL_PATCH_NUMS)
@pytest.mark.parametrize("aspect", ASPECTS)
def test_other_shapes_keep_area_and_levels(name, aspect):
  square = ScaleSchedule.from_name(name)
  shaped = square.with_aspect(aspect)
  width, height = map(int, aspect.split(":"))
  assert shaped.num_scales == square.num_scales
  for (h, w), (side, _) in zip(shaped.grids, square.grids):
    assert h * w == pytest.approx(side**2, rel=0.25 if side < 8 else 0.05)
    if side >= 9:
      assert w / h == pytest.approx(width / height, rel=0.13)
  assert shaped.num_tokens == pytest.approx(square.num_tokens, rel=0.05)
  turned = square.with_aspect(f"{height}:{width}")
  assert turned.grids == tuple((w, h) for h, w in shaped.grids)


def test_a_ratio_outside_of_the_list_names_the_nearest():
  square = ScaleSchedule.from_name("256")
  assert square.with_aspect("1:1") == square
  with pytest.raises(ValueError, match="got '21:9'; the nearest is 2:1"):
    square.with_aspect("21:9")
  with pytest.raises(ValueError, match=r"one of 1:1, .*, got 'wide'\.$"):
    square.with_aspect("wide")
  with pytest.raises(ValueError, match="starts from square grids"):
    square.with_aspect("16:9").with_aspect("16:9")


def test_coordinates_of_a_rectangle():
  wide = ScaleSchedule(((1, 1), (1, 3), (3, 5)))
  y, x = wide.coordinates(1, 8.0, "longer_side")
  np.testing.assert_array_equal(y, [0, 0, 0])
  np.testing.assert_array_equal(x, [0, 4, 8])
  y, x = wide.coordinates(2, 8.0, "longer_side")
  # One step is as far down as it is to the right.
  np.testing.assert_array_equal(np.unique(x), [0, 2, 4, 6, 8])
  np.testing.assert_array_equal(np.unique(y), [0, 2, 4])
  y, _ = wide.coordinates(2, 8.0, "checkpoint")
  np.testing.assert_array_equal(np.unique(y), [0, 4, 8])
  square = ScaleSchedule.from_patch_nums([1, 4])
  for k in range(2):
    np.testing.assert_array_equal(
      square.coordinates(k, 8.0, "longer_side"), square.coordinates(k, 8.0)
    )


@pytest.mark.parametrize("text", ["512", "1,2,4,8", "1,2x3,4x6"])
def test_a_schedule_as_text(text):
  schedule = ScaleSchedule.from_text(text)
  assert ScaleSchedule.parse(schedule.grids) == schedule
  if "," in text:
    assert schedule.describe() == text.replace(",", ", ")
  else:
    assert schedule == ScaleSchedule.from_name(text)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1,2,x", r"1,2,4,8 or 1,2x3,4x6; got '1,2,x'"),
    ("", "sides with commas"),
    ("300x", "sides with commas"),
    ("1,0", "positive integers"),
    ("4,2", "No grid may be larger than the last one"),
  ],
)
def test_text_that_is_no_schedule(text, message):
  with pytest.raises(ValueError, match=message):
    ScaleSchedule.from_text(text)


def test_rows_by_side():
  old, new = (
    ScaleSchedule.from_patch_nums(sides)
    for sides in ([2, 4, 16, 16], [1, 2, 8, 16, 16, 16, 32])
  )
  rows = rows_by_side(old, new)
  np.testing.assert_allclose(
    rows,
    [
      [1, 0, 0, 0],
      [1, 0, 0, 0],
      [0, 0.5, 0.5, 0],
      [0, 0, 1, 0],
      [0, 0, 0, 1],
      [0, 0, 0, 1],
      [0, 0, 0, 1],
    ],
    atol=1e-12,
  )
  # Between two of a size and a larger one: from the second of the two.
  old = ScaleSchedule.from_patch_nums([2, 2, 8])
  new = ScaleSchedule.from_patch_nums([4, 8])
  np.testing.assert_allclose(rows_by_side(old, new)[0], [0, 0.5, 0.5])
