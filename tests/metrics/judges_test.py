"""Who may measure what, and the measures themselves."""

import types

import numpy as np
import pytest

from configs.evaluate import get_config
from star_jax.bundle import load_bundle, save_bundle
from star_jax.metrics import judges, scale_quality
from star_jax.metrics.evaluate import evaluate
from star_jax.metrics.ssim import ssim
from star_jax.testing import random_params, tiny_tokenizer_config
from star_jax.tokenizer.vqvae import VQVAE


def test_who_was_in_a_loss_never_judges():
  against = {"trained_against": ["lpips"]}
  assert judges.choose_judges((), {}) == {"vgg16-hed": "", "efficientnet": ""}
  chosen = judges.choose_judges((), against)
  assert chosen["vgg16-hed"] == "trained against lpips"
  assert chosen["efficientnet"] == ""
  with pytest.raises(ValueError, match="vgg16-hed does not judge this bundle"):
    judges.choose_judges(("vgg16-hed",), against)
  with pytest.raises(ValueError, match="got inception"):
    judges.choose_judges(("inception",), {})
  rival = {"trained_against": ["efficientnet"]}
  assert "--what=icons asks efficientnet" in judges.refusal("icons", rival)
  assert not judges.refusal("icons", against)
  assert not judges.refusal("scenes", rival)


def test_parts_of_a_judge_that_may_not_are_refused_or_left_out(tmp_path):
  bundle = types.SimpleNamespace(
    notes={"trained_against": ["efficientnet"]},
    star_config=object(), hash="", sampling={}, path=tmp_path,
  )  # fmt: skip
  with pytest.raises(ValueError, match="copy asks efficientnet"):
    evaluate("copy", bundle, get_config(), tmp_path)


def test_ssim_against_its_definition():
  rng = np.random.default_rng(0)
  x = rng.random((2, 13, 12, 3)).astype(np.float32)
  y = np.clip(x + 0.2 * rng.standard_normal(x.shape), 0, 1).astype(np.float32)
  place = np.arange(11) - 5
  window = np.exp(-(place**2) / (2 * 1.5**2))
  window = np.outer(window, window) / np.sum(np.outer(window, window))
  want = []
  for a, b in zip(x.astype(np.float64), y.astype(np.float64)):
    values = []
    for i in range(3):
      for j in range(2):
        for c in range(3):
          p, q = (z[i : i + 11, j : j + 11, c] for z in (a, b))
          mean_p, mean_q = (window * p).sum(), (window * q).sum()
          var_p = (window * (p - mean_p) ** 2).sum()
          var_q = (window * (q - mean_q) ** 2).sum()
          cov = (window * (p - mean_p) * (q - mean_q)).sum()
          values.append(
            (2 * mean_p * mean_q + 1e-4) * (2 * cov + 9e-4)
            / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4))
          )  # fmt: skip
    want.append(np.mean(values))
  np.testing.assert_allclose(ssim(x, y), want, rtol=1e-4)
  with pytest.raises(ValueError, match="at least 11 pixels"):
    ssim(x[:, :10], y[:, :10])


def test_bits_of_a_pixel():
  # 20 tokens of 8 bits on 64 pixels; the second scale always has one code.
  found = scale_quality.bits((4, 16), (np.log(2), 0.0), 256, 64)
  assert found == pytest.approx({"plain": 2.5, "coded": 4 / 64})


@pytest.mark.long
def test_a_tokenizer_is_measured_on_any_pictures(tmp_path, monkeypatch):
  def judge(real, batch_size):
    return lambda made: {
      "perceptual": float(np.mean(np.abs(real - 1.0 * made)))
    }

  def absent(real, batch_size):
    raise FileNotFoundError("no weights")

  makers = {"vgg16-hed": judge, "efficientnet": absent}
  monkeypatch.setattr(scale_quality, "MAKERS", makers)
  config = tiny_tokenizer_config((1, 3))
  save_bundle(
    tmp_path / "bundle",
    tokenizer_config=config,
    tokenizer_params=random_params(VQVAE(config)),
    licence="none",
  )
  c = get_config()
  c.update(n=5, batch_size=2)
  c.tokenizer.update(data="synthetic", num_scale_pictures=3)
  bundle = load_bundle(tmp_path / "bundle")
  found = evaluate("tokenizer", bundle, c, tmp_path / "out")["tokenizer"]
  values = found["values"]
  assert values["n"] == 5
  assert {len(x) for x in values["after_scale"].values()} == {2}
  assert set(values["quality"]) == {"ssim", "perceptual"}
  assert values["not_measured"] == {"efficientnet": "no weights"}
  assert (tmp_path / "out" / "scales.png").exists()
  titles = [row[0] for row in found["table"]]
  assert "VGG16-HED perceptual distance" in titles
