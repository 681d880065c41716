"""The whole command on the real compiler of a TPU, where there is libtpu."""

import importlib.util
import json

import pytest
from ml_collections import ConfigDict

from configs import star_256
from configs.presets import PRESETS
from star_jax.compile_check import commands

pytestmark = [
  pytest.mark.long,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the package libtpu, TPU's compiler",
  ),
]


def test_a_training_step_on_a_slice(tmp_path, capsys):
  config = star_256.get_config("runlocal")
  config.model = ConfigDict({**PRESETS["test"], "remat": True})
  request = commands.Request.of(
    "v5e:2x2", ["4"], "test", dict(data=1, fsdp=2, tensor=2), str(tmp_path)
  )
  commands.check_training(request, config)
  out = capsys.readouterr().out
  assert "mesh fsdp=2, tensor=2" in out and "Roofline of TPU v5e" in out
  (path,) = tmp_path.glob("*.json")
  record = json.loads(path.read_text())
  bounds = record["bounds"]
  # What is counted in the text of the program is what was traced, but for the
  # teacher forcing input, of which each device makes more than its part.
  assert 0.9 < bounds["flops"] / bounds["traced_flops"] < 1.5
  assert bounds["bytes_sent"]["all-gather"] > 0
  assert bounds["padded_flops"] > bounds["flops"]
  assert bounds["largest_all_gather"]["size"] > 0
