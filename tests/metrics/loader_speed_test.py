"""Rates of building and of reading a token cache."""

import pytest

from configs import star_scenes64
from star_jax import bundle, testing
from star_jax.data.token_cache import TokenCache
from star_jax.metrics import loader_speed
from star_jax.train import build_cache
from star_jax.train.frozen import SyntheticText


@pytest.mark.long
def test_rates_of_a_small_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(
    build_cache, "load_text_encoder", lambda name, n, path: SyntheticText(4, n)
  )
  testing.save_tiny_bundle(tmp_path / "bundle")
  config = star_scenes64.get_config()
  config.tokenizer_path = str(tmp_path / "bundle")
  made = bundle.load_bundle(config.tokenizer_path).tokenizer_config
  config.data_options.size = made.image_size
  config.cache.update(source="synthetic", directory=str(tmp_path / "cache"))
  # Synthetic pictures have too few captions for three files of 64.
  monkeypatch.setattr(loader_speed, "_FILE", 5)
  rates = loader_speed.time_build(config, 30)
  assert set(rates) == {"pictures", "captions"} and min(rates.values()) > 0
  cache = TokenCache(tmp_path / "cache" / "train", 40)
  assert len(cache) == 30
  assert loader_speed.time_loader(cache, 4, 5) > 0


def test_the_table_says_how_often_the_loader_is_faster():
  found = dict(
    pictures=60.0, captions=185.0, loader=166.0, examples=512, batch=32,
    step=0.5, ratio=332.0,
  )  # fmt: skip
  lines = loader_speed.to_markdown(found).splitlines()
  cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
  assert ["loader / step", "332", "10 asked for"] in cells
  assert cells[4] == [
    "loader, batch 32, 512 examples",
    "166 batches/s",
    "5312 pictures/s",
  ]


def test_batches_that_are_no_number(capsys):
  with pytest.raises(SystemExit, match="--batches takes positive whole"):
    loader_speed.main(["--batches=many"])
