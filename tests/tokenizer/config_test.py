"""Settings of the tokenizer: derived sizes, JSON, refusals."""

import dataclasses
import json

import pytest

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig

CONFIG = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, (2, 3), (4, 6)]),
  vocab_size=16,
  code_dim=4,
  ch=8,
  ch_mult=(1, 2, 2),
  num_res_blocks=1,
  patch_size=2,
)


def test_sizes():
  assert CONFIG.downsample == 8
  assert CONFIG.image_size == (32, 48)


def test_json_round_trip_is_hashable():
  text = json.dumps(CONFIG.to_dict())
  again = VQVAEConfig.from_dict(json.loads(text))
  assert again == CONFIG
  assert hash(again) == hash(CONFIG)
  rated = dataclasses.replace(CONFIG, rate_weight=(0.1, 0.0, 0.2))
  again = VQVAEConfig.from_dict(json.loads(json.dumps(rated.to_dict())))
  assert again == rated


def test_from_dict_names_unknown_and_missing_keys():
  values = CONFIG.to_dict()
  with pytest.raises(ValueError, match="widht"):
    VQVAEConfig.from_dict(values | {"widht": 3})
  del values["code_dim"]
  with pytest.raises(ValueError, match="code_dim"):
    VQVAEConfig.from_dict(values)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("vocab_size", 0),
    ("ch_mult", ()),
    ("share_quant_resi", -1),
    ("quant_conv_ks", 2),
    ("vq_loss_reduction", "max"),
    ("dtype", "float8"),
    ("patch_size", 0),
    ("rate_weight", (0.1, 0.1)),
    ("rate_weight", (0.1, -0.1, 0.1)),
  ],
)
def test_refusals_name_the_setting(name, value):
  with pytest.raises(ValueError, match=name):
    dataclasses.replace(CONFIG, **{name: value})


def test_rates_do_not_go_with_cosines():
  with pytest.raises(ValueError, match="does not go with using_znorm"):
    dataclasses.replace(CONFIG, rate_weight=(0, 1, 1), using_znorm=True)
