"""A continuous autoencoder beside a tokenizer, and measured alone."""

import dataclasses
import types

import numpy as np
import pytest
from PIL import Image

from configs.evaluate import get_config
from star_jax.bundle import load_bundle, save_bundle
from star_jax.metrics import ceiling, scale_quality
from star_jax.metrics import reconstruction as rec
from star_jax.metrics.evaluate import evaluate
from star_jax.testing import random_params, tiny_tokenizer_config
from star_jax.tokenizer.vqvae import VQVAE

TINY = tiny_tokenizer_config((1, 3))
KL = dataclasses.replace(TINY, quantizer="none")


class Halved:
  """A continuous autoencoder that halves what a picture differs from gray."""

  config = types.SimpleNamespace(
    schedule=TINY.schedule, counted_codes=4, image_size=(8, 8), quantizer="none"
  )

  def apply(self, variables, x, method):
    assert method == "reconstruct_scales"
    return x[None] / 2


def test_one_picture_after_all_scales_and_no_codes():
  image = np.zeros((3, 8, 8, 3), np.uint8)
  image[:, ::2] = 255
  pictures = rec.Pictures(image, np.ones(image.shape[:3]), image)
  report = rec.evaluate_reconstruction(
    Halved(), {}, pictures, batch_size=2, num_scale_pictures=2
  ).to_dict()
  assert "codebook" not in report
  # Black and white are a quarter of the range away.
  assert report["psnr"]["whole"] == pytest.approx(12.04, abs=0.05)
  assert report["psnr_art_after_scale"] == pytest.approx([12.04], abs=0.05)
  made, tokens = rec.reconstruct(Halved(), {}, 2)(image)
  assert set(np.unique(made)) == {64, 191} and tokens.shape == (3, 0)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (TINY, "of a continuous autoencoder .* the quantizer 'vq'"),
    (KL, "pictures of 12 x 12 pixels, the tokenizer that is measured 16 x 8"),
  ],
)
def test_bundles_that_are_no_ceiling(monkeypatch, config, message):
  found = types.SimpleNamespace(tokenizer_config=config)
  monkeypatch.setattr(ceiling, "load_bundle", lambda path: found)
  with pytest.raises(ValueError, match=message):
    ceiling.load_ceiling("x", (16, 8))


def bundle(path, config, **notes):
  save_bundle(
    path,
    tokenizer_config=config,
    tokenizer_params=random_params(VQVAE(config)),
    licence="none",
    notes=notes,
  )
  return load_bundle(path)


def distance_to(real, batch_size):
  return lambda made: {"perceptual": float(np.abs(real - 1.0 * made).mean())}


@pytest.mark.long
def test_the_ceiling_is_a_row_of_the_table_and_of_the_picture(
  tmp_path, monkeypatch
):
  makers = {"vgg16-hed": distance_to, "efficientnet": distance_to}
  monkeypatch.setattr(scale_quality, "MAKERS", makers)
  c = get_config()
  c.update(n=3, batch_size=3)
  c.tokenizer.update(data="synthetic", num_scale_pictures=2)
  c.tokenizer.judges = ("vgg16-hed",)

  def measured(found, folder):
    return evaluate("tokenizer", found, c, tmp_path / folder)["tokenizer"]

  kl = bundle(tmp_path / "kl", KL)
  alone = measured(kl, "alone")
  assert "codebook" not in alone["values"]
  assert "bits_per_pixel" not in alone["values"]
  assert len(alone["values"]["after_scale"]["perceptual"]) == 1
  vq = bundle(tmp_path / "vq", TINY)
  plain = measured(vq, "both")
  assert "ceiling" not in plain["values"]
  c.tokenizer.ceiling = str(tmp_path / "kl")
  both = measured(vq, "both")
  assert both["protocol"]["ceiling"] == kl.hash
  got, want = both["values"].pop("ceiling"), alone["values"]
  assert got["bundle"] == kl.hash
  assert got["quality"] == pytest.approx(want["quality"])
  for key in ("art", "whole"):
    assert got["psnr"][key] == pytest.approx(want["psnr"][key])
  assert both["values"] == plain["values"]
  *rest, row = both["table"]
  assert rest == plain["table"] and row[0] == "KL ceiling"
  assert "SSIM" in row[2] and "perceptual" in row[2]
  sheets = [
    np.asarray(Image.open(tmp_path / folder / "scales.png"))
    for folder in ("alone", "both")
  ]
  # Originals, ceiling and two scales of 12 px, with gaps of two.
  assert sheets[1].shape[0] == 4 * 14 - 2
  np.testing.assert_array_equal(sheets[0], sheets[1][:26])
  bundle(tmp_path / "kl", KL, trained_against=["lpips"])
  values = measured(vq, "flattered")["values"]
  assert set(values["ceiling"]["quality"]) == {"ssim"}
