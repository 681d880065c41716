import numpy as np
import pytest

from star_jax.data import backgrounds
from star_jax.data.scenes import SceneConfig
from star_jax.data.sources import IconSource, SceneSource, SyntheticSource


def icons(store, split="train", size=(64, 64), **changes):
  options = {"styles": (), "white_share": 0.3, "min_scale": 0.8, **changes}
  return IconSource(store, size, split, **options)


def test_icons_of_a_split(art_store):
  train, held = icons(art_store), icons(art_store, "heldout")
  assert len(train) + len(held) == len(art_store)
  assert {train.example(i, 0)[2]["style"] for i in range(0, len(train), 5)} == {
    "twemoji",
    "openmoji",
    "noto",
  }
  assert held.example(0, 0)[2]["style"] == "fluent"
  assert len(icons(art_store, "seen")) == len(train)
  only = icons(art_store, styles=("noto",))
  assert len(only) == len(train) // 3


def test_augmentation_is_pure_and_varies(art_store):
  source = icons(art_store)
  image, caption, _ = source.example(5, 1)
  assert image.shape == (64, 64, 3) and image.dtype == np.uint8
  again = icons(art_store).example(5, 1)
  np.testing.assert_array_equal(image, again[0])
  assert caption == again[1]
  images = [source.example(5, seed)[0] for seed in range(8)]
  assert len({i.tobytes() for i in images}) == 8
  assert len({source.example(5, seed)[1] for seed in range(30)}) > 3


def test_categories_of_icons_as_classes(art_store):
  source, plain = icons(art_store, classes=True), icons(art_store)
  for i in range(0, len(source), 7):
    image, caption, meta = source.example(i, 2)
    assert caption == art_store.records[meta["record"]].category
    np.testing.assert_array_equal(image, plain.example(i, 2)[0])


def test_backgrounds_of_icons(art_store):
  source = icons(art_store, min_scale=0.8)
  corners = [source.example(i, 3)[0][0, 0] for i in range(150)]
  white = sum(tuple(c) == (255, 255, 255) for c in corners)
  assert 25 < white < 70
  # Black outlines need a light ground.
  for i, position in enumerate(source.positions):
    if art_store.records[position].style == "openmoji" and i % 3 == 0:
      assert source.example(i, 3)[0][0, 0].sum() > 250


def test_icons_keep_to_the_lattice(art_store):
  """What is not background fits the same places at every seed."""
  source = icons(art_store, white_share=1.0, lattice=16, min_scale=0.5)
  assert source.step == 16
  tops = set()
  for seed in range(40):
    image = source.example(5, seed)[0].astype(int)
    rows = np.flatnonzero((image != image[0, 0]).any((1, 2)))
    tops.add((rows[0], rows[-1]))
  free = icons(art_store, white_share=1.0, lattice=1, min_scale=0.5)
  drawn = {free.example(5, seed)[0].tobytes() for seed in range(40)}
  assert len(drawn) > 35
  # Sides of 32, 48 and 64 at 3, 2 and 1 heights; dark and other grounds may
  # hide an edge.
  assert 3 <= len(tops) <= 12


def test_canonical_icons_have_no_augmentation(art_store):
  source = icons(art_store, canonical=True)
  one, two = source.example(0, 1), source.example(0, 2)
  np.testing.assert_array_equal(one[0], two[0])
  assert one[1] == two[1] == "a dog, twemoji style"
  assert tuple(one[0][0, 0]) == backgrounds.WHITE


@pytest.mark.parametrize("size", [(32, 80), (44, 92), (84, 48)])
def test_icons_of_every_shape_are_whole_and_on_the_lattice(art_store, size):
  options = {"white_share": 1.0, "lattice": 16, "min_scale": 0.85}
  source = icons(art_store, size=size, **options)
  assert source.step == (12 if size == (32, 80) else 16)
  for index in range(12):
    image, _, _ = source.example(index, 0)
    assert image.shape == (*size, 3)
    drawn = (image.astype(int) != image[-1, -1]).any(-1)
    rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    # The discs of the store fill up to 118 of 128 pixels of their square.
    assert 0 < extent <= min(size) // source.step * source.step


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"styles": ("oil",)}, "has the styles .*, not oil"),
    ({"min_scale": 0.0}, r"min_scale is in \(0, 1\]"),
    ({"split": "dev"}, "one of train, seen, heldout, got 'dev'"),
    ({"styles": ("fluent",)}, "no train pictures in the styles"),
  ],
)
def test_bad_icon_options(art_store, changes, message):
  with pytest.raises(ValueError, match=message):
    icons(art_store, **changes)


def test_scene_source(art_store):
  source = SceneSource(art_store, SceneConfig(size=(48, 64), seed=2))
  image, caption, meta = source.example(9, 5)
  assert image.shape == (48, 64, 3)
  assert caption == meta["scene"].caption
  again = SceneSource(art_store, SceneConfig(size=(48, 64), seed=7))
  np.testing.assert_array_equal(image, again.example(9, 0)[0])
  assert source.example(9, 6)[1] != caption or not np.array_equal(
    source.example(9, 6)[0], image
  )


def test_synthetic_needs_no_data():
  source = SyntheticSource((20, 30), "train")
  image, caption, _ = source.example(0, 0)
  assert image.shape == (20, 30, 3)
  assert caption.split()[-1] in ("square", "circle")
  np.testing.assert_array_equal(image, source.example(0, 0)[0])
  held = SyntheticSource((20, 30), "heldout")
  assert any(
    not np.array_equal(source.example(i, 0)[0], held.example(i, 0)[0])
    for i in range(3)
  )
