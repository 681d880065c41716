"""Scenes of every shape, and larger ones of many objects."""

from collections import Counter

import numpy as np
import pytest

from star_jax.data import backgrounds, sprites
from star_jax.data.scenes import SceneConfig
from star_jax.scales import ASPECTS, ScaleSchedule
from tests.data.scene_checks import check_scene, generator, heldout_in


def sizes_of(side, token):
  """The nine shapes that stand for a square of `side` pixels."""
  square = ScaleSchedule.from_patch_nums([side // token])
  grids = [square.with_aspect(a).final_grid for a in ASPECTS]
  return [(h * token, w * token) for h, w in grids]


@pytest.mark.parametrize(
  "side, token, most", [(64, 4, 4), (128, 4, 9), (128, 8, 8), (256, 16, 9)]
)
@pytest.mark.parametrize("tidy", [0.0, 1.0])
def test_scenes_of_every_shape(art_store, side, token, most, tidy):
  for size in sizes_of(side, token):
    assert SceneConfig(size=size, lattice=16).step == side // 4
    for split in ("train", "heldout"):
      options = {"size": size, "max_objects": most, "split": split}
      make = generator(art_store, tidy=tidy, lattice=4, many_share=1, **options)
      # A 16th of the square's side, of which the tokens' side is a part.
      assert make.config.step == side // 16 and side // 16 % token == 0
      scenes = [make.scene(i) for i in range(10)]
      for scene in scenes:
        check_scene(scene)
        assert heldout_in(scene) == set(scene.flags)
        assert not np.any(np.asarray([o.box for o in scene.objects]) % token)
      if split == "train":
        assert all(not s.flags and len(s.objects) != 4 for s in scenes)
        assert most == 4 or all(len(s.objects) > 4 for s in scenes)


def test_wide_pictures_use_their_width(art_store):
  boxes = []
  for size in ((48, 84), (84, 48)):
    make = generator(art_store, size=size, tidy=1.0)
    boxes.append([o.box for i in range(60) for o in make.scene(i).objects])
  wide, tall = (np.asarray(b) for b in boxes)
  assert wide[:, 0].min() == 0 and wide[:, 2].max() == 84
  assert tall[:, 1].min() == 0 and tall[:, 3].max() == 84


def test_every_number_of_objects_but_the_held_out_one(art_store):
  options = {"size": (128, 128), "max_objects": 8, "tidy": 1.0}
  for held in (0, 4, 8):
    make = generator(art_store, held_count=held, many_share=0.7, **options)
    scenes = [make.scene(i) for i in range(250)]
    counts = Counter(len(s.objects) for s in scenes)
    assert set(counts) == set(range(1, 9)) - {held}
    assert 0.6 < sum(n for c, n in counts.items() if c > 3) / 250 < 0.8
    held_out = make.with_config(split="heldout")
    flags = Counter(held_out.scene(i).flags for i in range(10))
    words = {("pair",): 4, ("triple",): 4, ("four",): 2}
    if held == 8:
      words[("eight",)] = words.pop(("four",))
    elif not held:
      words = {("pair",): 5, ("triple",): 5}
    if held:
      assert flags == words
      assert len(held_out.scene(4).objects) == held
    else:
      assert set(flags) == {("pair",), ("triple",)}


def test_many_objects_come_in_rows_grids_lists_and_counts(art_store):
  options = {"size": (128, 128), "many_share": 1.0}
  fives = generator(art_store, max_objects=5, **options)
  scenes = [fives.scene(i) for i in range(100)]
  assert {len(s.objects) for s in scenes} == {5}
  rows = [s for s in scenes if len(s.relations) == 10]
  assert {s.relations[0][1] for s in rows} == {"left", "above"}
  lists = [s for s in scenes if not s.relations]
  counted = [s for s in lists if len({o.thing for o in s.objects}) < 3]
  assert 8 < len(counted) < 35 and len(lists) > len(counted) + 5
  nines = generator(art_store, max_objects=9, **options)
  scenes = [nines.scene(i) for i in range(100)]
  full = [s for s in scenes if len(s.objects) == 9 and len(s.relations) == 18]
  assert len(full) > 2


def test_many_large_scenes_are_pure_and_painted(art_store):
  options = {"size": (512, 512), "max_objects": 9, "many_share": 1.0}
  one, two = (generator(art_store, **options) for _ in range(2))
  scene = one.scene(3)
  assert scene == two.scene(3) and len(scene.objects) > 4
  image = one.render(scene)
  np.testing.assert_array_equal(image, two.render(scene))
  plain = backgrounds.paint(scene.background, scene.size).astype(int)
  changed = np.abs(image - plain).max(-1) > 20
  for x0, y0, x1, y1 in (o.box for o in scene.objects):
    assert changed[y0:y1, x0:x1].mean() > 0.3
    changed[y0:y1, x0:x1] = False
  assert not changed.any()  # nothing beside the boxes


def test_few_large_sprites_are_kept(art_store, monkeypatch):
  monkeypatch.setattr(sprites, "_LARGE_BYTES", 3 * 4 * art_store.size**2)
  known = sprites.Sprites(art_store)
  names = ("car", "dog", "cat", "tree", "car")
  drawn = [known.sprite(name, "noto", None, 100) for name in names]
  np.testing.assert_array_equal(drawn[0], drawn[-1])
  assert len(known._large) == 3 and not known._small
