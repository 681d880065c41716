"""Alarms of the log."""

import pytest

from star_jax.train.alarms import alarms, check_bands

BANDS = {"used": (0.1, 1.0), "absent": (0.0, 1.0)}


def test_only_what_leaves_its_band_is_cried_out():
  assert alarms(5, {"used": 0.1, "loss": 9.0}, BANDS) == []
  assert alarms(5, {"used": 0.04}, BANDS) == [
    "ALARM at step 5: used is 0.04, outside of 0.1 to 1 (config.alarms.used)."
  ]
  # Not a number is in no band.
  assert len(alarms(5, {"used": float("nan")}, BANDS)) == 1


@pytest.mark.parametrize("band", [(1.0, 0.0), (1.0,)])
def test_a_band_has_two_ends(band):
  with pytest.raises(
    ValueError, match=r"config.alarms.used is \(least, most\)"
  ):
    check_bands({"used": band})
