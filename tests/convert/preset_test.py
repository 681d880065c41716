"""Which model a checkpoint is: what is accepted, and what is missing."""

import json

import pytest

from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS
from star_jax.convert.preset import read_preset


def read(preset, prefix="star_"):
  tokenizer = TOKENIZERS["vae_ch160"]
  return read_preset(preset, PRESETS, tokenizer, prefix, REFINE_HEADS)


def write(path, more=None, **model):
  found = {"model": model, "tokenizer": {"ch": 8}, **(more or {})}
  path.write_text(json.dumps(found))
  return str(path)


def test_the_tokenizer_has_the_schedule_of_the_model():
  model, tokenizer, _ = read("star_d30_512")
  assert model == PRESETS["star_d30_512"]
  assert tokenizer == {**TOKENIZERS["vae_ch160"], "schedule": "512"}


def test_a_file_states_what_no_shape_tells(tmp_path):
  path = tmp_path / "x.json"
  facts = {"schedule": [1, 2], "rope_norm": 8.0, "rope_theta": 100.0}
  model, tokenizer, refine = read(write(path, **facts))
  assert refine is None
  assert model == facts and tokenizer == {"ch": 8, "schedule": [1, 2]}
  with pytest.raises(ValueError, match="lacks rope_norm and rope_theta, which"):
    read(write(path, schedule=[1, 2]))
  assert read(write(path, schedule=[1]), "var_")[0] == {"schedule": [1]}


def test_no_shape_tells_which_scales_a_head_refines(tmp_path):
  path = tmp_path / "x.json"
  assert read("star_d30_1024").refine == {"first_scale": 9, "depth": 3}
  assert read("star_d16").refine is None
  facts = {"schedule": [1, 2], "rope_norm": 8.0, "rope_theta": 100.0}
  head = {"first_scale": 1, "depth": 2}
  assert read(write(path, {"refine": head}, **facts)).refine == head
  with pytest.raises(ValueError, match="says first_scale and depth, got"):
    read(write(path, {"refine": {"depth": 2}}, **facts))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "is not JSON"),
    ("[]", 'has no "model" and "tokenizer"'),
    ('{"model": {}}', 'has no "model" and "tokenizer"'),
    ('{"model": 1, "tokenizer": {}}', "has no settings under"),
  ],
)
def test_a_file_of_another_kind(tmp_path, text, message):
  path = tmp_path / "x.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    read(str(path))


def test_a_var_is_no_preset_of_a_star():
  with pytest.raises(ValueError, match=r"one of star_d16, .* got 'var_d16'"):
    read("var_d16")
