from collections import Counter

import numpy as np
import pytest

from configs import data as data_config
from star_jax.data import pipeline


@pytest.fixture
def config(art_store, monkeypatch):
  """Options as a training config has them, over the drawn store."""
  monkeypatch.setattr(pipeline, "load_art", lambda folder: art_store)
  options = data_config.options()
  options.source = "mixture"
  options.size = (32, 48)
  return options


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def same(one, two):
  return np.array_equal(one["image"], two["image"]) and list(
    one["caption"]
  ) == list(two["caption"])


@pytest.mark.parametrize("source", ["icons", "scenes", "mixture", "synthetic"])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_batches(config, source, split):
  config.source = source
  if (source, split) == ("scenes", "heldout"):
    config.scenes.max_objects = 2
  batch = next(pipeline.build_dataset(config, split, 5, 0))
  assert batch["image"].shape == (5, 32, 48, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["caption"].shape == (5,)
  assert all(isinstance(c, str) and c for c in batch["caption"])


@pytest.mark.parametrize("source", ["icons", "mixture"])
def test_restored_state_continues_exactly(config, source):
  config.source = source
  unbroken = pipeline.build_dataset(config, "train", 4, 7)
  take(unbroken, 3)
  state = unbroken.get_state()
  expected = take(unbroken, 3)
  again = pipeline.build_dataset(config, "train", 4, 7)
  again.set_state(state)
  assert all(same(a, b) for a, b in zip(expected, take(again, 3)))


def test_seed_decides_and_threads_do_not(config):
  one = take(pipeline.build_dataset(config, "train", 4, 1), 3)
  config.threads = 5
  two = take(pipeline.build_dataset(config, "train", 4, 1), 3)
  assert all(same(a, b) for a, b in zip(one, two))
  other = next(pipeline.build_dataset(config, "train", 4, 2))
  assert not same(one[0], other)


def test_processes_share_the_examples(config):
  whole = take(pipeline.build_dataset(config, "train", 6, 1), 2)
  parts = [
    take(pipeline.build_dataset(config, "train", 6, 1, rows=rows), 2)
    for rows in (slice(0, 2), slice(2, 6))
  ]
  for step in range(2):
    np.testing.assert_array_equal(
      np.concatenate([part[step]["image"] for part in parts]),
      whole[step]["image"],
    )


def test_an_epoch_shows_every_icon_once_and_the_next_one_anew(config):
  config.source = "icons"
  config.icons.styles = ("noto",)
  (weighted,) = pipeline.build_sources(config, "train").values()
  seen = []
  example = weighted.source.example

  def spy(index, seed):
    seen.append((index, seed))
    return example(index, seed)

  weighted.source.example = spy
  dataset = pipeline.source_dataset(weighted.source, 3)
  count = len(weighted.source)
  for i in range(2 * count):
    dataset[i]
  first, second = seen[:count], seen[count:]
  assert sorted(i for i, _ in first) == list(range(count))
  assert sorted(i for i, _ in second) == list(range(count))
  assert {s for _, s in first} == {3} and {s for _, s in second} != {3}
  assert [i for i, _ in first] != [i for i, _ in second]


def test_shares_of_the_mixture(config):
  config.mixture.icons, config.mixture.scenes = 0.25, 0.75
  datasets = pipeline.build_sources(config, "train")
  assert {n: w.weight for n, w in datasets.items()} == {
    "icons": 0.25,
    "scenes": 0.75,
  }
  for name, weighted in datasets.items():
    weighted.source.example = lambda i, s, name=name: (
      np.zeros((1, 1, 3), np.uint8),
      name,
      {"id": name},
    )
  mixed = pipeline.mix(datasets, 0)
  names = Counter(mixed[i]["caption"] for i in range(400))
  assert names == {"icons": 100, "scenes": 300}


def test_folder_through_the_same_door(config, tmp_path):
  from PIL import Image

  for i in range(4):
    Image.new("RGB", (50, 50), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / f"{i}.txt").write_text(f"number {i}")
  config.source = "folder"
  config.folder.path = str(tmp_path)
  config.folder.heldout_share = 0.0
  batch = next(pipeline.build_dataset(config, "train", 4, 0))
  assert sorted(batch["caption"]) == [f"number {i}" for i in range(4)]
  for image, caption in zip(batch["image"], batch["caption"]):
    assert (image == int(caption[-1])).all()


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("source", "emoji", "one of icons, scenes, .*, got 'emoji'"),
    ("size", (64,), r"size is \(height, width\)"),
    ("mixture", {"icons": 0.0, "scenes": 0.0}, "gives shares to icons and"),
    ("mixture", {"photos": 1.0}, "gives shares to icons and"),
  ],
)
def test_bad_options(config, key, value, message):
  with config.unlocked():
    config[key] = value
  with pytest.raises(ValueError, match=message):
    pipeline.build_dataset(config, "train", 4, 0)


def test_bad_batch_size_and_split(config):
  with pytest.raises(ValueError, match="at least one example, got 0"):
    pipeline.build_dataset(config, "train", 0, 0)
  with pytest.raises(ValueError, match="one of train, seen, heldout"):
    pipeline.build_dataset(config, "test", 4, 0)
