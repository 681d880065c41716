"""Checks of the model settings and their way through JSON."""

import json

import pytest

from configs.presets import PRESETS
from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule


def make(**changes) -> StarConfig:
  return StarConfig.from_dict({**PRESETS["test"], **changes})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_json_round_trip(preset):
  config = StarConfig.from_dict(PRESETS[preset])
  assert (
    StarConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
  )


def test_schedule_may_be_rectangles():
  config = make(schedule=[1, [2, 3], [3, 5]])
  assert config.schedule == ScaleSchedule(((1, 1), (2, 3), (3, 5)))
  assert config.cache_length == 7


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"width": 33}, "multiple of num_heads, got 33 and 2"),
    ({"width": 12}, "multiple of 4, got 6"),
    ({"position": "learned"}, "position is one of .* got 'learned'"),
    ({"rope_coords": "pixel"}, "rope_coords is one of .* got 'pixel'"),
    ({"rope_norm": 0.0}, "rope_norm is positive, or -1 .* got 0.0"),
    ({"dtype": "int8"}, "dtype is one of .* got 'int8'"),
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate is in \[0, 1\), got 1.0"),
    ({"schedule": [2, 3]}, r"must be 1x1 .* got \(2, 2\)"),
    ({"lvl_embed": False, "adaptive_norm": "level"}, "needs lvl_embed=True"),
    ({"adaptive_norm": "batch"}, "adaptive_norm is one of .* got .batch."),
    ({"num_classes": 3}, "text_dim or num_classes above 0, got 24 and 3"),
    ({"text_dim": 0, "num_classes": 3}, "Cross-attention needs a text"),
    ({"heads": 3}, r"Unknown model settings \['heads'\]"),
  ],
)
def test_wrong_settings_are_one_sentence(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)


def test_missing_settings_are_named():
  settings = dict(PRESETS["test"])
  del settings["depth"], settings["rope_norm"]
  with pytest.raises(ValueError, match=r"lack \['depth', 'rope_norm'\]"):
    StarConfig.from_dict(settings)


def test_fields_that_came_later_leave_older_files_as_they_are():
  settings = StarConfig.from_dict(PRESETS["test"]).to_dict()
  assert "prediction" not in settings
  one_by_one = StarConfig.from_dict({**settings, "prediction": "token"})
  assert one_by_one.to_dict() == {**settings, "prediction": "token"}
  assert StarConfig.from_dict(one_by_one.to_dict()) == one_by_one


def test_files_of_before_remat_had_names_are_read_and_still_written():
  for flag, name in ((True, "layer"), (False, "none")):
    config = make(remat=flag)
    assert config == make(remat=name) and config.remat == name
    assert config.to_dict()["remat"] is flag
  assert make(remat="dots").to_dict()["remat"] == "dots"
  with pytest.raises(ValueError, match=r"remat is one of .*'all'"):
    make(remat="all")
