"""Two schedules on the same pictures: agreement, PSNR, the bundle written."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from star_jax import testing
from star_jax.bundle import load_bundle, save_bundle
from star_jax.data.scene_config import SceneConfig
from star_jax.metrics import growth
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.growth import grow_tokenizer
from star_jax.tokenizer.vqvae import VQVAE


def tokenizer(sides):
  config = testing.tiny_tokenizer_config(sides)
  return config, testing.random_params(VQVAE(config))


def pictures(size, n=3):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)


def test_scales_of_one_grid_are_paired_in_order():
  old, new = (
    ScaleSchedule.from_patch_nums(sides)
    for sides in ([1, 2, 4, 4, 4], [1, (2, 4), 4, 4, 8])
  )
  assert growth.equal_scales(old, new) == [(0, 0), (2, 2), (3, 3)]


@pytest.mark.long
def test_a_tokenizer_agrees_with_itself():
  old = tokenizer((1, 2))
  report = growth.measure_growth(old, old, pictures((8, 8)))
  assert report.pairs == ((0, 0, 1.0), (1, 1, 1.0)) and report.agreement == 1
  np.testing.assert_array_equal(report.psnr["old"], report.psnr["new"])


@pytest.mark.long
def test_agreement_and_psnr_are_those_of_the_tokens_and_pictures():
  old = tokenizer((1, 2, 3))
  schedule = ScaleSchedule.from_patch_nums((1, 3, 6))
  grown = grow_tokenizer(*old, schedule)
  large = pictures((24, 24))
  report = growth.measure_growth(old, (grown.config, grown.params), large)
  small = large.reshape(3, 12, 2, 12, 2, 3).mean((2, 4)).round()

  def run(config, params, image):
    apply = jax.jit(VQVAE(config).apply, static_argnames="method")
    image = (image / 127.5 - 1).astype(np.float32)
    idx_BL = apply({"params": params}, image, method="encode")
    shown = apply({"params": params}, idx_BL, method="tokens_to_image")
    return np.asarray(idx_BL), np.asarray(shown), image

  low, shown, image = run(*old, small)
  high, _, _ = run(grown.config, grown.params, large)
  expected = [
    (0, 0, np.mean(low[:, :1] == high[:, :1])),
    (2, 1, np.mean(low[:, 5:] == high[:, 1:10])),
  ]
  np.testing.assert_allclose(report.pairs, expected)
  equal = [low[:, :1] == high[:, :1], low[:, 5:] == high[:, 1:10]]
  share = np.concatenate(equal, axis=1).mean()
  np.testing.assert_allclose(report.agreement, share)
  psnr = -10 * np.log10(np.mean((shown - image) ** 2, axis=(1, 2, 3)) / 4)
  np.testing.assert_allclose(report.psnr["old"], psnr, atol=0.05)
  assert report.psnr["new"].shape == (3,)
  text = report.describe(old[0], grown.config)
  assert "PSNR at 24 x 24 px" in text and "tokens of 3 x 3" in text


def test_pictures_of_two_shapes_are_not_compared():
  old = tokenizer((1, 2))
  new = ScaleSchedule.from_patch_nums((1, (2, 4)))
  grown = grow_tokenizer(*old, new)
  with pytest.raises(ValueError, match="8 x 8 and 8 x 16 px differ in shape"):
    growth.check_aspects(old[0], grown.config)


@pytest.mark.long
def test_the_bundle_that_is_written_is_the_grown_tokenizer(tmp_path, capsys):
  config, params = tokenizer((1, 2))
  save_bundle(
    tmp_path / "old",
    tokenizer_config=config,
    tokenizer_params=params,
    licence="none",
    storage="float32",
  )
  Image.fromarray(pictures((20, 20))[0]).save(tmp_path / "a.png")
  out = tmp_path / "new"
  grown = growth.grow_bundle(
    str(tmp_path / "old"),
    ScaleSchedule.from_text("1,2,4"),
    "side",
    out,
    n=0,
    images=[str(tmp_path / "a.png")],
    scenes=SceneConfig(),
  )
  bundle = load_bundle(out)
  assert bundle.tokenizer_config == grown.config
  assert bundle.star_config is None
  assert bundle.notes["phi_new"] == list(grown.phi_new) == [0, 3, 3]
  written = json.loads((out / growth.REPORT_FILE).read_text())
  assert written["n"] == 1 and set(written["psnr"]) == {"old", "new"}
  said = capsys.readouterr().out
  assert "new, K = 3 (1, 2, 4): 0, 3 x2" in said and "PSNR at 16 x 16" in said
