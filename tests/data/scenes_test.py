import dataclasses
import hashlib
from collections import Counter

import numpy as np
import pytest

from configs import data
from star_jax.data import backgrounds, layouts
from star_jax.data.backgrounds import NAMED, WHITE
from star_jax.data.concepts import is_heldout_pair, is_heldout_triple
from star_jax.data.recolor import COLOURS
from star_jax.data.scene_config import without_defaults
from star_jax.data.scene_text import read_caption
from star_jax.data.scenes import SceneConfig
from tests.data.scene_checks import (
  fact_set,
  generator,
  heldout_in,
)


@pytest.fixture(scope="module")
def train_scenes(art_store):
  make = generator(art_store)
  return [make.scene(i) for i in range(5000)]


@pytest.fixture(scope="module")
def heldout_scenes(art_store):
  make = generator(art_store, split="heldout")
  return [make.scene(i) for i in range(500)]


def fact_line(scene):
  """Everything about a scene but its pixels, as text."""
  objects = [(*o.thing, *map(int, o.box)) for o in scene.objects]
  ground = dataclasses.astuple(scene.background)
  return repr((scene.style, objects, scene.relations, scene.caption, ground))


# Of 40 scenes in each split; whoever changes them changes every token cache
# and every published figure.
PINNED = {
  "free": "b83eb2c3688efc22",
  "tidy": "27980f1e93e39d84",
}
# Mean colours of the quarters of one of them.
QUARTERS = (
  (94.7, 114.9, 187.3),
  (108.8, 93.0, 111.2),
  (200.3, 168.4, 129.5),
  (94.4, 115.5, 189.8),
)


@pytest.mark.parametrize("kind", PINNED)
def test_scenes_of_64_pixels_stay_what_they_were(art_store, kind):
  options = {"seed": 1}
  if kind == "tidy":
    options |= data.options().scenes.to_dict() | {"seed": 1}
  digest = hashlib.sha256()
  for split in ("train", "seen", "heldout"):
    make = generator(art_store, split=split, **options)
    for i in range(40):
      digest.update(fact_line(make.scene(i)).encode())
  assert digest.hexdigest()[:16] == PINNED[kind]


def test_a_picture_of_64_pixels_stays_what_it_was(art_store):
  make = generator(art_store, split="heldout")
  image = make.render(make.scene(4)).astype(float)
  quarters = image.reshape(2, 32, 2, 32, 3).mean((1, 3))
  np.testing.assert_allclose(quarters.reshape(4, 3), QUARTERS, atol=0.5)


def test_nothing_held_out_in_train(train_scenes):
  for scene in train_scenes:
    assert heldout_in(scene) == set() and scene.flags == ()
    # Nor in what the caption says.
    facts = read_caption(scene.caption)
    assert len(facts.things) < 4
    assert not any(is_heldout_pair(t.colour, t.concept) for t in facts.things)
    for i, relation, j in facts.relations:
      assert not is_heldout_triple(
        facts.things[i].concept, relation, facts.things[j].concept
      )


def test_pictures_held_out_by_the_art_store_are_not_drawn(train_scenes):
  assert {s.style for s in train_scenes} == {"twemoji", "openmoji", "noto"}


def test_heldout_scenes_hold_out_what_they_say(heldout_scenes):
  counts = Counter(scene.flags for scene in heldout_scenes)
  assert counts == {("pair",): 200, ("triple",): 200, ("four",): 100}
  for scene in heldout_scenes:
    assert heldout_in(scene) == set(scene.flags)
    if scene.flags == ("triple",):  # told, not only visible
      assert any(
        is_heldout_triple(
          scene.objects[i].concept, relation, scene.objects[j].concept
        )
        for i, relation, j in scene.relations
      )


def test_captions_parse_back_to_the_facts(train_scenes, heldout_scenes):
  for scene in train_scenes[:2000] + heldout_scenes:
    facts = read_caption(scene.caption)
    things = [o.thing for o in scene.objects]
    assert Counter(facts.things) == Counter(things), scene.caption
    told = fact_set(things, scene.relations)
    assert fact_set(facts.things, facts.relations) == told, scene.caption
    assert facts.style == (scene.style if scene.style_named else None)
    assert scene.caption == scene.caption.lower()


def test_captions_fit_the_text_window(train_scenes, heldout_scenes):
  minilm = pytest.importorskip("star_jax.text.minilm")
  prompts = pytest.importorskip("star_jax.text.prompts")
  try:
    folder = minilm.package_folder()
  except ValueError as error:
    pytest.skip(str(error))
  tokenizer = prompts.PromptTokenizer(folder / "tokenizer.json", 32)
  for scene in train_scenes[:2000] + heldout_scenes:
    assert tokenizer.truncated(scene.caption) is None


def test_told_relations_are_true_and_clear(train_scenes, heldout_scenes):
  told = 0
  for scene in train_scenes + heldout_scenes:
    boxes = [o.box for o in scene.objects]
    for i, relation, j in scene.relations:
      assert layouts.relation_between(boxes[i], boxes[j]) == relation
      told += 1
    for i, a in enumerate(boxes):
      assert min(a) >= 0 and max(a) <= 64
      assert not any(layouts.overlap(a, b) for b in boxes[i + 1 :])
  assert told > 2000


def test_distribution_of_train(train_scenes):
  count = Counter(len(s.objects) for s in train_scenes)
  assert 0.27 < count[1] / 5000 < 0.34
  assert 0.34 < count[2] / 5000 < 0.44
  assert 0.25 < count[3] / 5000 < 0.35
  counted = sum(
    len(set(o.thing for o in s.objects)) < len(s.objects) for s in train_scenes
  )
  assert 0.05 < counted / 5000 < 0.10
  named = sum(s.style_named for s in train_scenes)
  assert 0.3 < named / 5000 < 0.4
  colours = Counter(o.colour for s in train_scenes for o in s.objects)
  assert set(colours) == {None, *COLOURS}
  sizes = [
    o.size for s in train_scenes for o in s.objects if len(s.objects) == 1
  ]
  assert min(sizes) >= 28 and max(sizes) <= 56


def test_backgrounds_differ_from_the_objects(train_scenes):
  for scene in train_scenes[:1000]:
    for item in scene.objects:
      if item.colour:
        apart = backgrounds.distance(
          scene.background.first, COLOURS[item.colour]
        )
        assert apart > 0.1, scene


def test_pure_in_seed_and_index(art_store):
  one, two = generator(art_store), generator(art_store)
  ahead = [one.scene(i) for i in (7, 3, 11)]
  again = [two.scene(i) for i in (11, 7, 3)]
  assert ahead[0] == again[1] and ahead[2] == again[0]
  np.testing.assert_array_equal(one.render(ahead[0]), two.render(again[1]))
  other = generator(art_store, seed=4).scene(7)
  assert other != ahead[0]
  assert generator(art_store, split="seen").scene(7) != ahead[0]


@pytest.mark.parametrize("size", [(64, 64), (48, 144), (192, 96), (256, 256)])
def test_any_size_and_aspect_ratio(art_store, size):
  make = generator(art_store, size=size)
  for index in range(20):
    scene = make.scene(index)
    image = make.render(scene)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    for item in scene.objects:
      x0, y0, x1, y1 = item.box
      middle = image[y0:y1, x0:x1].reshape(-1, 3).astype(int)
      plain = backgrounds.paint(scene.background, size)[y0:y1, x0:x1]
      changed = np.abs(middle - plain.reshape(-1, 3)).max(-1) > 20
      assert changed.mean() > 0.3  # the object is there


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_max_objects(art_store, most, split):
  make = generator(art_store, max_objects=most, split=split)
  found = [make.scene(i) for i in range(30)]
  assert max(len(s.objects) for s in found) <= most


@pytest.mark.parametrize("lattice, step", [(8, 18), (4, 9), (1, 2)])
def test_objects_lie_on_the_lattice(art_store, lattice, step):
  # 128 x 160 has the area of a square of 143 pixels: of 144, in sixteens.
  make = generator(art_store, size=(128, 160), lattice=lattice)
  boxes = [o.box for i in range(30) for o in make.scene(i).objects]
  assert not np.any(np.asarray(boxes) % step)
  assert np.any(np.asarray(boxes) % (2 * step))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tidy_scenes_of_one_kind_have_one_layout(art_store, split):
  make = generator(art_store, tidy=1.0, split=split)
  places = {}
  for i in range(400):
    scene = make.scene(i)
    assert heldout_in(scene) == set(scene.flags)
    relations = tuple(sorted(scene.relations))
    boxes = tuple(o.box for o in scene.objects)
    places.setdefault((len(boxes), relations), set()).add(boxes)
    facts = read_caption(scene.caption)
    told = {o.thing for o in scene.objects}
    assert set(facts.things) == told
  # One layout for every number of objects and set of told relations.
  assert len(places) > 5 and all(len(found) == 1 for found in places.values())


def test_captions_of_tidy_lists_go_from_left_to_right(art_store):
  make = generator(art_store, tidy=1.0, plain_share=0.0)
  scenes = [make.scene(i) for i in range(200)]
  lists = [s for s in scenes if len(s.objects) == 2 and not s.relations]
  assert len(lists) > 5
  for scene in lists:
    things = read_caption(scene.caption).things
    assert things == tuple(o.thing for o in scene.objects)
    assert scene.objects[0].box[0] < scene.objects[1].box[0]


def test_a_default_style_is_not_named(art_store):
  make = generator(art_store, default_style="noto", style_share=0.5)
  scenes = [make.scene(i) for i in range(200)]
  assert {s.style for s in scenes if not s.style_named} == {"noto"}
  assert len({s.style for s in scenes if s.style_named}) > 1


def test_a_default_background_is_not_named_and_others_are(art_store):
  make = generator(art_store, background_share=0.5, default_background="white")
  named = 0
  for i in range(200):
    scene = make.scene(i)
    told = read_caption(scene.caption).background
    ground = scene.background
    if told is None:
      assert (ground.kind, ground.first) == ("plain", WHITE)
      continue
    named += 1
    words = {"stripes": "striped ", "checker": "checkered "}
    assert told.startswith(words.get(ground.kind, ""))
    base = told.removeprefix(words.get(ground.kind, "")).split(" to ")[0]
    assert NAMED[base] == ground.first
  assert 70 < named < 130


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"background_share": 1.5}, "background_share is in .0, 1., got 1.5"),
    ({"default_background": "plaid"}, "one of white, cream, .* got 'plaid'"),
  ],
)
def test_impossible_backgrounds_are_refused(art_store, options, message):
  with pytest.raises(ValueError, match=message):
    generator(art_store, **options)


def test_sprite(art_store):
  make = generator(art_store)
  sprite = make.sprite("car", "twemoji", "green", 30)
  assert sprite.shape == (30, 30, 4)
  solid = sprite[..., 3] > 200
  red, green, blue = np.median(sprite[solid][:, :3], axis=0)
  assert green > red + 50 and green > blue + 50
  # The object fills its square.
  assert solid[:2].any() and solid[-2:].any()
  assert make.sprite("car", "noto", None, 100).shape == (100, 100, 4)
  with pytest.raises(ValueError, match="'line art' has no picture of 'car'"):
    make.sprite("car", "line art", None, 30)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"split": "test"}, "one of train, seen, heldout, got 'test'"),
    ({"max_objects": 0}, "max_objects is 1 to 9, got 0"),
    ({"max_objects": 10}, "max_objects is 1 to 9, got 10"),
    ({"max_objects": 5}, "24 pixels: 5 on a picture of 64 x 64 pixels have 20"),
    (
      {"max_objects": 9, "size": (64, 96)},
      "9 on a picture of 64 x 96 pixels have 20",
    ),
    ({"size": (16, 900)}, "16 x 900 pixels is too narrow for 4 objects"),
    (
      {"size": (16, 400), "lattice": 16},
      "A lattice of 16 64ths is 20 pixels here",
    ),
    ({"held_count": 3}, "held_count is 4 to 9, or 0 for none, got 3"),
    ({"many_share": -1}, r"many_share is a share in \[0, 1\], got -1"),
    ({"size": (8, 64)}, "at least 16 pixels"),
    ({"lattice": 0}, "lattice is 1 to 16 64ths of the side, got 0"),
    ({"styles": ("oil",)}, "among twemoji, openmoji, noto, fluent"),
    ({"styles": ()}, "among twemoji"),
    ({"default_style": "oil"}, "one of twemoji, .*, got 'oil'"),
    ({"tidy": 1.5}, r"tidy is a share in \[0, 1\], got 1.5"),
  ],
)
def test_bad_config(changes, message):
  with pytest.raises(ValueError, match=message):
    SceneConfig(**changes)


def test_newer_options_at_their_defaults_do_not_change_an_identity():
  options = data.options().scenes.to_dict()
  plain = without_defaults(options)
  assert set(options) - set(plain) == {"held_count", "many_share"}
  assert without_defaults(plain) == plain
  changed = without_defaults(options | {"held_count": 8})
  assert changed == plain | {"held_count": 8}


def test_store_without_the_styles(art_store):
  with pytest.raises(ValueError, match="no pictures in the styles fluent"):
    generator(art_store, styles=("fluent",))
