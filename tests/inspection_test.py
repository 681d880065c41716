import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import data as data_config
from star_jax import inspection, testing
from star_jax.bundle import load_bundle
from star_jax.scales import ScaleSchedule


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle") / "tiny"
  testing.save_tiny_bundle(folder)
  return str(folder)


def training_config(size):
  options = data_config.options()
  options.size = tuple(size)
  return ConfigDict(dict(data="synthetic", data_options=options))


def test_crops_alone():
  sheet, lines = inspection.inspect(
    training_config((16, 24)), "train", 6, "", 0
  )
  assert lines == ["synthetic: endless, share 1"]
  assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 6


def test_reconstructions_and_tokens(bundle):
  size = load_bundle(bundle).tokenizer_config.image_size
  sheet, lines = inspection.inspect(
    training_config(size), "train", 3, bundle, 0
  )
  assert "crop, reconstruction" in lines[-1]
  assert sheet.height > 3 * inspection._SIDE


def test_tokenizer_of_another_size(bundle):
  with pytest.raises(ValueError, match=r"data_options.size gives \(16, 24\)"):
    inspection.inspect(training_config((16, 24)), "train", 2, bundle, 0)


def test_equal_tokens_have_equal_colours():
  schedule = ScaleSchedule.from_patch_nums((1, 2))
  idx_L = np.array([5, 1, 2, 2, 1])
  coarse, fine = inspection.token_maps(idx_L, schedule)
  assert coarse.size == (1, 1) and fine.size == (2, 2)
  pixels = np.asarray(fine)
  np.testing.assert_array_equal(pixels[0, 0], pixels[1, 1])
  np.testing.assert_array_equal(pixels[0, 1], pixels[1, 0])
  assert not np.array_equal(pixels[0, 0], pixels[0, 1])


def test_a_config_on_cached_tokens_shows_its_source():
  config = training_config((16, 16))
  config.data = "cache"
  config.cache = ConfigDict(dict(source="synthetic"))
  assert inspection.data_options(config).source == "synthetic"


def test_no_examples():
  with pytest.raises(ValueError, match="at least one example, got 0"):
    inspection.inspect(training_config((16, 16)), "train", 0, "", 0)
