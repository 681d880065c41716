"""A conversion streams: it holds a layer, not the file."""

import json

import numpy as np
import pytest

from configs.presets import PRESETS, TOKENIZERS
from star_jax.metrics.convert_memory import measure
from star_jax.tensor_file import read_tensors, write_tensors

TOKENIZER = {**TOKENIZERS["vae_ch160"], "ch": 32}


def peaks(folder, depth):
  model = {**PRESETS["var_d16"], "depth": depth, "width": 512, "num_heads": 8}
  folder.mkdir()
  preset = folder / "preset.json"
  preset.write_text(json.dumps({"model": model, "tokenizer": TOKENIZER}))
  return measure(str(preset), model, TOKENIZER, "float32", folder)


@pytest.mark.long
def test_a_longer_file_takes_no_more_memory(tmp_path):
  """30 layers of 512: 0.6 GB more than one layer."""
  small, large = peaks(tmp_path / "1", 1), peaks(tmp_path / "31", 31)
  for one, many in zip(small, large):
    more = many.files - one.files
    assert more > 5e8
    assert many.resident - one.resident < 0.3 * more
    assert many.allocated - one.allocated < 0.3 * more


def test_pieces_are_written_as_the_whole(tmp_path):
  x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
  facts = {"x": (x.shape, "float32")}
  whole = write_tensors(tmp_path / "a", facts, lambda _: x)
  pieces = write_tensors(tmp_path / "b", facts, lambda _: iter(x))
  assert whole == pieces
  np.testing.assert_array_equal(read_tensors(tmp_path / "b")["x"], x)
  with pytest.raises(AssertionError):
    write_tensors(tmp_path / "c", facts, lambda _: iter(x[1:]))
