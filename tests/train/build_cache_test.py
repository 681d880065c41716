"""Token caches of pictures of one's own, as a config describes them."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import star_scenes64
from star_jax.bundle import save_bundle
from star_jax.data import pipeline
from star_jax.data.token_cache import TokenCache
from star_jax.scales import ScaleSchedule
from star_jax.train import build_cache as builder
from star_jax.train import frozen as frozen_lib
from star_jax.train.batches import data_config

SIZE = (4, 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  schedule = ScaleSchedule.from_patch_nums((1, 2, 4))
  made = frozen_lib.random_tokenizer(schedule, 64, 8)
  params = jax.tree.map(np.array, made.params)
  params["quantizer"]["codebook_VCv"] *= 100  # so that tokens differ
  path = tmp_path_factory.mktemp("tokenizer")
  save_bundle(
    path,
    tokenizer_config=made.config,
    tokenizer_params=params,
    licence="none",
    storage="float32",
  )
  return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Seven upright pictures of noise; some captions have a side in them."""
  folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  for i in range(7):
    pixels = rng.integers(0, 256, (20, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    side = "left of a wall" if i % 2 else "beside a wall"
    (folder / f"{i}.txt").write_text(f"Noise {i} {side}")
  return folder


@pytest.fixture
def config(tokenizer, photos, tmp_path, monkeypatch):
  monkeypatch.setattr(
    builder,
    "load_text_encoder",
    lambda name, tokens, path: frozen_lib.SyntheticText(8, tokens),
  )
  c = star_scenes64.get_config("runlocal")
  c.tokenizer_path = tokenizer
  c.text.max_tokens = 6
  c.data_options.size = SIZE
  c.data_options.folder.update(path=str(photos), heldout_share=0.3)
  c.cache.update(
    source="folder",
    directory=str(tmp_path / "cache"),
    examples=12,
    heldout_examples=2,
    shard_examples=5,
    batch_size=4,
  )
  return c


def cache_of(config, split="train"):
  return TokenCache(f"{config.cache.directory}/{split}", 6)


@pytest.mark.long
def test_variants_are_crops_of_one_original(config):
  config.cache.variants = 3
  path = builder.build_cache(config)
  cache = cache_of(config)
  manifest = json.loads((path / "train" / "manifest.json").read_text())
  assert manifest["tokenizer_hash"] == cache.identity["tokenizer"]
  options = data_config(config)
  options.source = "folder"
  source = pipeline.build_sources(options, "train")["folder"].source
  places = {pair.name: i for i, pair in enumerate(source.pairs)}
  encode = frozen_lib.load_tokenizer(config.tokenizer_path).encoder()
  crops = 0
  for i in range(len(cache)):
    record = cache.record(i)
    epoch = i // len(source)
    every = [
      source.example(
        places[record.original],
        pipeline.epoch_seed(config.seed, 3 * epoch + variant),
      )
      for variant in range(3)
    ]
    idx_VL = encode(np.stack([image for image, _, _ in every]))
    np.testing.assert_array_equal(record.idx_VL, idx_VL)
    crops += len(np.unique(record.idx_VL, axis=0))
  assert len(cache) == 12 and crops > 24
  held = cache_of(config, "heldout")
  assert held.num_variants == 1
  assert not set(places) & {held.record(i).original for i in range(len(held))}


@pytest.mark.long
def test_flips_are_counted_and_never_where_a_side_is_named(config, capsys):
  config.cache.update(flip=True, variants=4)
  builder.build_cache(config)
  cache = cache_of(config)
  for i in range(12):
    record = cache.record(i)
    if int(record.original[0]) % 2:
      assert not record.flipped_V.any()
  assert cache.counts["flipped"] > 4 and cache.counts["spatial"] > 4
  told = f"{cache.counts['flipped']} of 48 pictures are mirrored"
  assert told in capsys.readouterr().out
  assert cache_of(config, "heldout").counts["flipped"] == 0


def test_other_pictures_in_the_folder_are_another_cache(config, tmp_path):
  builder.build_cache(config)
  builder.build_cache(config)
  config.data_options.threads = 5
  config.data_options.parquet.path = "elsewhere"
  builder.build_cache(config, ["train"])
  config.data_options.folder.heldout_share = 0.0
  with pytest.raises(ValueError, match=r"pictures is '\w+' there and"):
    builder.build_cache(config, ["train"])


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(source="synthetic", variants=2), r"variants = 2 has no meaning for"),
    (dict(variants=0), r"config.cache.variants is at least 1, got 0"),
    (dict(shard_captions=0), r"config.cache.shard_captions is at least 1"),
  ],
)
def test_what_cannot_be_built(config, changes, message):
  config.cache.update(changes)
  with pytest.raises(ValueError, match=message):
    builder.build_cache(config)


def test_flips_of_the_folder_are_not_those_of_a_cache(config):
  config.data_options.folder.flip = True
  with pytest.raises(ValueError, match=r"of a cache it is config.cache.flip"):
    builder.build_cache(config)
  with pytest.raises(ValueError, match="numbered from 0 to 1, got 2"):
    builder.build_cache(config, process=2, processes=2)
