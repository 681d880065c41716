"""Every part of the evaluation once, on a tiny random model and drawn art."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from configs.evaluate import get_config
from star_jax.bundle import load_bundle, save_bundle
from star_jax.data.art.store import ArtRecord
from star_jax.data.concepts import CONCEPTS
from star_jax.metrics import context, efficientnet
from star_jax.metrics.evaluate import PARTS, evaluate
from star_jax.metrics.parts import refinement
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.testing import (
  SAMPLING,
  random_params,
  tiny_star_config,
  tiny_tokenizer_config,
)
from star_jax.text.encoder import load_text_encoder
from star_jax.text.settings import TextSettings
from star_jax.tokenizer.vqvae import VQVAE


class Store:
  """Coloured discs with a bite taken out, one for each concept."""

  size = 128

  def __init__(self, folder):
    self.folder = folder
    (folder / "manifest.json").write_text("{}")
    fields = {f.name: "" for f in dataclasses.fields(ArtRecord)}
    fields |= {"keywords": ("thing",), "position": 0, "category": "objects"}
    self.records = []
    for i, concept in enumerate(CONCEPTS.values()):
      for style in concept.styles[:2]:
        facts = {
          "key": concept.key,
          "name": concept.name,
          "style": style,
          "split": "heldout" if i % 5 == 0 else "train",
        }
        self.records.append(ArtRecord(**{**fields, **facts}))
    self._by_key = {(r.style, r.key): i for i, r in enumerate(self.records)}

  def __len__(self):
    return len(self.records)

  def __contains__(self, style_and_key):
    return style_and_key in self._by_key

  def index(self, style, key):
    return self._by_key[style, key]

  def select(self, keep):
    return np.array([i for i, r in enumerate(self.records) if keep(r)])

  def rgba(self, i):
    record = self.records[i]
    seed = zlib.crc32(f"{record.style} {record.key}".encode())
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128] - 63.5
    turn = rng.uniform(0, 2 * np.pi)
    bitten = np.hypot(y - 40 * np.sin(turn), x - 40 * np.cos(turn)) < 25
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., :3] = rng.integers(40, 230, 3)
    rgba[(np.hypot(y, x) < 60) & ~bitten, 3] = 255
    return rgba


def tiny_bundle(tmp_path, sides, head=None):
  encoder = load_text_encoder("minilm-l6", 48)
  tokenizer = tiny_tokenizer_config(sides)
  star = tiny_star_config(tokenizer, text_dim=encoder.width)
  save_bundle(
    tmp_path / "bundle",
    tokenizer_config=tokenizer,
    tokenizer_params=random_params(VQVAE(tokenizer)),
    star_config=star,
    star_params=random_params(Star(star)),
    refine_config=head,
    refine_params=random_params(RefineHead(star, head)) if head else None,
    text=TextSettings.of(encoder),
    sampling=SAMPLING,
    licence="none: random weights",
    storage="float32",
  )
  return load_bundle(tmp_path / "bundle")


@pytest.fixture
def bundle(tmp_path):
  return tiny_bundle(tmp_path, (1, 2, 4))


@pytest.fixture
def art(tmp_path, monkeypatch):
  (tmp_path / "art").mkdir()
  store = Store(tmp_path / "art")
  monkeypatch.setattr(context, "load_art", lambda folder: store)


@pytest.mark.long
def test_all_parts(tmp_path, art, bundle):
  try:
    efficientnet.default_weights()
  except FileNotFoundError as error:
    pytest.skip(str(error))
  config = get_config()
  config.n = 4
  config.batch_size = 2
  out, lines = tmp_path / "out", []
  results = evaluate("all", bundle, config, out, print_line=lines.append)
  assert tuple(results) == PARTS
  json.dumps(results)
  for part in PARTS:
    assert (out / f"{part}.json").exists()
  values = {part: results[part]["values"] for part in PARTS}
  # A random model draws noise; the generator's own pictures are understood.
  for split in ("heldout", "seen"):
    shares = values["scenes"][split]
    assert shares["render"]["objects"]["value"] > 0.5
    assert shares["model"]["objects"]["n"] >= 4
  icons = values["icons"]["softening 2"]
  assert icons["model"]["strict"]["n"] == 4
  assert icons["groups"]["split: heldout"]["strict"]["n"] == 2
  assert values["ranking"]["n"] == 4
  assert values["copy"]["copies"]["generated_heldout"]["n"] == 2
  for name in ("reconstructions", "scenes_heldout", "icons", "copy"):
    assert (out / f"{name}.png").exists()
  again = evaluate("all", bundle, config, out, print_line=lines.append)
  assert again == results
  assert sum("kept from" in line for line in lines) == len(PARTS)


@pytest.mark.long
def test_shapes(tmp_path, art):
  config = get_config()
  config.batch_size = 2
  config.data_options.scenes.max_objects = 1
  config.shapes.update(n=3, scored=2, aspects=("1:1", "16:9"))
  bundle = tiny_bundle(tmp_path, (1, 2, 8))
  found = {}
  for coords in ("", "longer_side"):
    config.shapes.rope_coords = coords
    results = evaluate("shapes", bundle, config, tmp_path / "out")
    found[coords] = results["shapes"]["values"]
  for values in found.values():
    assert values["1:1"]["size"] == [32, 32] and values["1:1"]["tokens"] == 69
    assert values["16:9"]["size"] == [24, 44]
    assert values["16:9"]["model"]["objects"]["n"] == 2
  nats = {
    coords: [values[aspect]["nats_per_token"] for aspect in ("1:1", "16:9")]
    for coords, values in found.items()
  }
  # Coordinates along the longer side are another model off the square alone.
  assert nats[""][0] == pytest.approx(nats["longer_side"][0], rel=1e-6)
  assert abs(nats[""][1] - nats["longer_side"][1]) > 1e-4
  assert (tmp_path / "out" / "shapes.png").exists()


@pytest.mark.long
def test_refinement(tmp_path, art, monkeypatch):
  # Features without the network: what a picture looks like on the whole.
  monkeypatch.setattr(
    refinement, "default_network", lambda: lambda image: image.mean((1, 2))
  )
  config = get_config()
  config.n = config.batch_size = 4
  config.data_options.scenes.max_objects = 1
  config.refinement.update(real=4, scored=2, timed=1, seeds=(1, 2))
  with pytest.raises(ValueError, match="no refinement head to measure"):
    evaluate(
      "refinement", tiny_bundle(tmp_path, (1, 2, 8)), config, tmp_path / "out"
    )
  bundle = tiny_bundle(tmp_path, (1, 2, 8), RefineConfig(first_scale=2))
  results = evaluate("refinement", bundle, config, tmp_path / "out")
  found = results["refinement"]["values"]
  kids = [
    found[way]["seeds"][seed]["kid"]
    for way in ("off", "head")
    for seed in ("1", "2")
  ]
  # Other ways and other seeds draw other pictures.
  assert len(set(kids)) == 4
  assert min(found[way]["seconds_a_batch"] for way in ("off", "head")) > 0
  assert (tmp_path / "out" / "refinement.png").exists()


@pytest.mark.long
def test_likelihood_alignment_and_distribution(tmp_path, art, bundle):
  try:
    efficientnet.default_weights()
  except FileNotFoundError as error:
    pytest.skip(str(error))
  config = get_config()
  config.n, config.batch_size = 6, 4
  config.likelihood.n = config.alignment.n = 4
  config.alignment.seeds = (1, 2)
  config.distribution.references = 9
  config.pictures.update(batch_size=8, class_splits=2)
  parts = "likelihood,alignment,distribution"
  run = lambda: evaluate(parts, bundle, config, tmp_path / "out")  # noqa: E731
  values = {part: result["values"] for part, result in run().items()}

  bits = values["likelihood"]["heldout"]["caption"]
  assert bits["bits"] == pytest.approx(sum(bits["bits_per_scale"]))
  # A random model of 24 tokens is about as good as a uniform one.
  assert 15 * np.log2(24) < bits["bits"] < 3 * 21 * np.log2(24)
  less = values["likelihood"]["heldout"]["less_than_empty"]["bits"]
  empty = values["likelihood"]["heldout"]["empty"]["bits"]
  assert less == pytest.approx(empty - bits["bits"])

  objects = values["alignment"]["heldout"]["model"]["objects"]
  assert len(objects["by_seed"]) == 2
  assert objects["value"] == pytest.approx(np.mean(objects["by_seed"]))
  assert objects["low"] <= objects["value"] <= objects["high"]

  found = values["distribution"]
  assert found["generated"] == 6 and found["sample"] == [6, 9]
  assert found["frechet"] > 0 and found["seconds_per_image"] > 0
  assert found["steps"] == 3 and found["pixels"] == 16
  assert found["comparison"]["network"] == "efficientnet-lite0"
  # Of scenes that no model knows all score 0, and the first candidate stays;
  # but they are other samples than those of one candidate.
  config.best_of.n = 2
  before = set((tmp_path / "out" / "samples").iterdir())
  again = evaluate("distribution", bundle, config, tmp_path / "out")
  assert again["distribution"]["protocol"]["best_of"]["score"] == "scene"
  assert len(set((tmp_path / "out" / "samples").iterdir()) - before) == 1
  assert again["distribution"]["values"]["frechet"] > 0
