"""Batches of several shapes: which comes when, and where pictures go."""

import numpy as np
import pytest
from PIL import Image

from configs import data
from star_jax.data import pipeline
from star_jax.data.buckets import Buckets

SIZES = [(16, 16), (12, 20), (20, 12)]


class Counter:
  """0, 1, 2 ... with a position."""

  def __init__(self):
    self.next = 0

  def __next__(self):
    self.next += 1
    return self.next - 1

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


def buckets(seed=0, shares=None, names="abc"):
  shares = shares or dict.fromkeys(names, 1.0)
  return Buckets({name: Counter() for name in names}, shares, seed)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def test_every_bucket_is_read_in_its_own_order_and_by_its_share():
  found = take(buckets(shares={"a": 6, "b": 3, "c": 1}), 1000)
  for name, share in (("a", 600), ("b", 300), ("c", 100)):
    items = [item for key, item in found if key == name]
    assert items == list(range(len(items)))
    assert abs(len(items) - share) < 60
  assert found == take(buckets(shares={"a": 6, "b": 3, "c": 1}), 1000)
  assert found != take(buckets(1, shares={"a": 6, "b": 3, "c": 1}), 1000)


def test_a_position_is_that_of_all_buckets():
  unbroken = buckets()
  take(unbroken, 7)
  saved = unbroken.get_state()
  resumed = buckets()
  resumed.set_state(saved)
  assert take(resumed, 20) == take(unbroken, 20)
  with pytest.raises(ValueError, match="saved position is of the shapes a, b"):
    buckets(names="ab").set_state(saved)


def test_shares_of_other_buckets_are_refused():
  with pytest.raises(ValueError, match="Every bucket has a share"):
    buckets(shares={"a": 1.0})


def folder_config(folder, **changes):
  options = data.options()
  options.source = "folder"
  options.folder.update(
    path=str(folder), heldout_share=0.0, crop="centre", **changes
  )
  return options


def add(folder, name, height, width):
  Image.new("RGB", (width, height), (9, 99, 9)).save(folder / f"{name}.png")
  (folder / f"{name}.txt").write_text(name)


def test_pictures_of_a_folder_go_to_the_shape_that_cuts_off_least(tmp_path):
  add(tmp_path, "square", 64, 66)
  add(tmp_path, "wide", 40, 80)
  add(tmp_path, "cinema", 30, 50)
  found = pipeline.build_bucket_sources(folder_config(tmp_path), "train", SIZES)
  names = {
    size: [pair.name for pair in bucket.sources["folder"].source.pairs]
    for size, bucket in found.items()
  }
  # Nothing is upright.
  assert names == {
    (16, 16): ["square.png"],
    (12, 20): ["cinema.png", "wide.png"],
  }
  assert {size: bucket.share for size, bucket in found.items()} == {
    (16, 16): 1,
    (12, 20): 2,
  }
  for size, bucket in found.items():
    image, _, _ = bucket.sources["folder"].source.example(0, 0)
    assert image.shape == (*size, 3)


@pytest.mark.parametrize(
  "name, size, changes, reason",
  [
    ("long", (20, 200), {"max_crop": 0.25}, r"cuts off 83% of its 20 x 200"),
    (
      "tiny",
      (8, 8),
      {"small": "skip"},
      r"8 x 8 pixels are fewer than the crop",
    ),
  ],
)
def test_what_fits_no_bucket_is_named(tmp_path, name, size, changes, reason):
  add(tmp_path, "good", 32, 32)
  add(tmp_path, name, *size)
  config = folder_config(tmp_path, **changes)
  with pytest.raises(
    ValueError, match=rf"1 of 2 pictures .*{name}.png: .*{reason}"
  ):
    pipeline.build_bucket_sources(config, "train", SIZES)


def test_generated_pictures_come_in_every_size():
  options = data.options()
  options.source = "synthetic"
  found = pipeline.build_bucket_sources(options, "train", SIZES)
  assert {bucket.share for bucket in found.values()} == {1.0}
  for size, bucket in found.items():
    image, _, _ = bucket.sources["synthetic"].source.example(0, 0)
    assert np.shape(image) == (*size, 3)
