"""Sweeps over the knobs of sampling: points, what is kept, tables, figure."""

import types

import pytest

from configs import knobs as knobs_config
from star_jax.metrics import knobs

BUNDLE = types.SimpleNamespace(
  hash="abc",
  sampling={"cfg_scale": 2.0, "top_k": 0, "top_p": 0.9, "temperature": 0.5},
)


class Meter:
  def __init__(self):
    self.asked = []

  def __call__(self, settings, label):
    self.asked.append(settings)
    kid = 1 / (1 + settings["cfg_scale"])
    return {"kid": kid, "objects": settings["top_p"], "everything": None}


def test_one_knob_changes_at_a_time(tmp_path):
  config, meter = knobs_config.get_config("runlocal"), Meter()
  whole = knobs.run(BUNDLE, config, tmp_path, meter)
  for settings in meter.asked:
    different = {k for k in settings if settings[k] != BUNDLE.sampling[k]}
    assert len(different) <= 1
  guided = whole["lines"]["cfg_scale"]
  assert [p["value"] for p in guided] == [0.0, 3.0]
  assert guided[1]["kid"] == pytest.approx(0.25)
  text = (tmp_path / "tables.md").read_text()
  assert "with top_k 0, top_p 0.9, temperature 0.5" in text
  assert "icons" not in text and "| 0.250 " in text
  assert (tmp_path / "knobs.png").stat().st_size > 1000


def test_points_are_kept_and_of_other_settings_drawn_again(tmp_path):
  config = knobs_config.get_config("runlocal")
  knobs.run(BUNDLE, config, tmp_path, Meter())
  config.lines.cfg_scale = (0.0, 3.0, 5.0)
  again = Meter()
  knobs.run(BUNDLE, config, tmp_path, again)
  assert [s["cfg_scale"] for s in again.asked] == [5.0]
  config.base.temperature = 1.0
  other = Meter()
  knobs.run(BUNDLE, config, tmp_path, other)
  assert len(other.asked) == 5


@pytest.mark.parametrize(
  "lines, match",
  [
    ({}, "at least two values to at least one knob; too few for any"),
    ({"top_p": (0.5,)}, "too few for top_p"),
    ({"heat": (0.5, 1.0)}, "Unknown knobs heat; those of sampling are cfg"),
  ],
)
def test_lines_that_make_no_sense_are_refused(lines, match):
  config = knobs_config.get_config("runlocal")
  with config.unlocked():
    config.lines = type(config.base)(lines)
  with pytest.raises(ValueError, match=match):
    knobs.plan_lines(config, BUNDLE.sampling)
