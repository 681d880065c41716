"""rFID: the Frechet distance of a tokenizer's pictures by InceptionV3."""

import types

import jax
import numpy as np
import pytest

from configs.evaluate import get_config
from star_jax.bundle import load_bundle, save_bundle
from star_jax.evaluation import inception, networks
from star_jax.evaluation.collect import Extractor
from star_jax.evaluation.distances import frechet_distance
from star_jax.evaluation.moments import Moments
from star_jax.metrics import context, scale_quality
from star_jax.metrics.evaluate import evaluate
from star_jax.testing import random_params, tiny_tokenizer_config
from star_jax.tokenizer.vqvae import VQVAE
from tests.evaluation.inception_test import random_params as inception_params


def network(params, apply, widths) -> networks.Network:
  return networks.Network(
    "inception", "0" * 16, "none", widths, {}, params, apply
  )


def test_the_distance_is_that_of_the_features():
  """Over batches that the last one does not fill."""

  def apply(params, image_BHW3):
    x_BD = image_BHW3.reshape(len(image_BHW3), -1) / 255.0 @ params
    return dict.fromkeys(("pool", "spatial", "logits"), x_BD)

  rng = np.random.default_rng(0)
  params = rng.standard_normal((12, 5)).astype(np.float32)
  real, made = rng.integers(0, 256, (2, 7, 2, 2, 3)).astype(np.uint8)
  one = jax.devices()[:1]
  extractor = Extractor(network(params, apply, {"pool": 5}), 3, one)
  judge = scale_quality.inception_judge(extractor)(real, 2)
  moments = [
    Moments.of(x.reshape(7, -1) / 255.0 @ params) for x in (made, real)
  ]
  want = frechet_distance(*moments)
  assert judge(made) == pytest.approx({"rfid": want}, rel=1e-4)
  assert judge(real)["rfid"] == pytest.approx(0, abs=1e-6)


def test_weights_that_are_missing_end_the_measurement_before_it_starts(
  tmp_path,
):
  c = get_config()
  c.pictures.network = "inception"
  bundle = types.SimpleNamespace(hash="", notes={})
  with pytest.raises(ValueError, match="weights of InceptionV3 are missing"):
    evaluate("tokenizer", bundle, c, tmp_path)


def few_features(params, image_BHW3):
  """The root of a matrix of all 2048 x 2048 takes a quarter of a minute."""
  found = inception.features(params, image_BHW3, "tf1")
  return {name: x_BD[:, :16] for name, x_BD in found.items()}


@pytest.mark.long
def test_rfid_stands_in_the_table_only_with_inception(tmp_path, monkeypatch):
  monkeypatch.setattr(scale_quality, "MAKERS", {})
  monkeypatch.setattr(
    context,
    "load_network",
    lambda name, weights: network(
      inception_params(), few_features, {"pool": 16}
    ),
  )
  monkeypatch.setattr("star_jax.metrics.judges.JUDGES", {})
  config = tiny_tokenizer_config((1, 3))
  save_bundle(
    tmp_path / "bundle",
    tokenizer_config=config,
    tokenizer_params=random_params(VQVAE(config)),
    licence="none",
  )
  bundle = load_bundle(tmp_path / "bundle")
  c = get_config()
  c.update(n=4, batch_size=4)
  c.tokenizer.update(data="synthetic", num_scale_pictures=2)
  c.pictures.batch_size = 2
  measure = lambda: evaluate("tokenizer", bundle, c, tmp_path)["tokenizer"]  # noqa: E731
  plain = measure()
  assert not any("rFID" in row[0] for row in plain["table"])
  c.pictures.network = "inception"
  found = measure()
  values = found["values"]
  assert values["quality"]["rfid"] > 0 and values["floor"]["rfid"] > 0
  assert len(values["after_scale"]["rfid"]) == 2
  assert found["protocol"]["rfid"]["network"] == "inception"
  titles = [row[0] for row in found["table"]]
  assert titles[-2:] == ["rFID", "  after each scale, rFID"]
  assert found["table"][:-2] == plain["table"]
