"""Alarms of the log."""

import pytest

from star_jax.train.alarms import Alarms

BANDS = {"used": (0.1, 1.0), "absent": (0.0, 1.0)}


def test_only_what_leaves_its_band_is_cried_out():
  alarms = Alarms(BANDS, patience=0)
  assert alarms.lines(5, {"used": 0.1, "loss": 9.0}) == []
  assert alarms.lines(5, {"used": 0.04}) == [
    "ALARM at step 5: used is 0.04, outside of 0.1 to 1 (config.alarms.used)."
  ]
  # Not a number is in no band.
  assert len(alarms.lines(5, {"used": float("nan")})) == 1


def test_a_metric_has_some_steps_from_its_first_row_on():
  alarms, bad = Alarms(BANDS, patience=10), {"used": 0.0}
  assert alarms.lines(100, {}) == []
  assert [bool(alarms.lines(step, bad)) for step in (105, 110, 115)] == [
    False, False, True,
  ]  # fmt: skip


@pytest.mark.parametrize("band", [(1.0, 0.0), (1.0,)])
def test_a_band_has_two_ends(band):
  with pytest.raises(
    ValueError, match=r"config.alarms.used is \(least, most\)"
  ):
    Alarms({"used": band}, patience=0)
