"""Held-out pictures: deterministic, in proportion, nothing leaks."""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from star_jax.data.art import names, render, splits
from star_jax.data.art.sources import COLOUR_STYLES
from star_jax.data.art.splits import SplitItem, assign_splits

TONES = tuple(names.TONES)


def things(count=2000, styles=COLOUR_STYLES[:4]):
  """`count` plain concepts in every style."""
  return [
    SplitItem(style, f"{0x20000 + i:x}", f"thing {i}")
    for i in range(count)
    for style in styles
  ]


def by_reason(items, assigned):
  found = defaultdict(list)
  for item, (split, reason) in zip(items, assigned, strict=True):
    assert split == ("heldout" if reason else "train")
    found[reason].append(item)
  return found


def test_proportions_and_whole_concepts():
  items = things()
  found = by_reason(items, assign_splits(items))
  assert len(found["unseen concept"]) == pytest.approx(0.05 * 8000, rel=0.25)
  # One of four styles, of 5% of the 95% that are seen at all.
  expected = 0.95 * 0.05 * 2000
  assert len(found["style x concept"]) == pytest.approx(expected, rel=0.3)
  unseen = {item.key for item in found["unseen concept"]}
  others = {i.key for r in ("", "style x concept") for i in found[r]}
  assert not unseen & others
  held = [item.key for item in found["style x concept"]]
  assert len(held) == len(set(held)), "one style a concept"
  assert {i.style for i in found["style x concept"]} == set(COLOUR_STYLES[:4])


def test_the_decision_is_pinned_and_ignores_order():
  # A value of this code: another machine or Python must find the same.
  assert splits.share("unseen", "1f436") == pytest.approx(0.2824800353)
  items = things(300)
  order = np.random.default_rng(0).permutation(len(items))
  shuffled = assign_splits([items[i] for i in order])
  straight = assign_splits(items)
  assert shuffled == [straight[i] for i in order]


def test_style_is_held_out_only_with_four_styles():
  items = things(500, COLOUR_STYLES[:3])
  assert "style x concept" not in by_reason(items, assign_splits(items))


def test_line_art_follows_openmoji():
  items = things(1500, (*COLOUR_STYLES[:4], "line art"))
  held = defaultdict(set)
  for item in by_reason(items, assign_splits(items))["style x concept"]:
    held[item.key].add(item.style)
  assert {"openmoji", "line art"} in held.values()
  assert all(
    ("openmoji" in styles) == ("line art" in styles) for styles in held.values()
  )


def test_tones_lose_one_and_go_together_when_unseen():
  items = [
    SplitItem(style, key, f"gesture {i}")
    for i in range(400)
    for key in (f"{0x20000 + i:x}",)
    + tuple(f"{0x20000 + i:x}-{tone}" for tone in TONES)
    for style in ("twemoji", "noto")
  ]
  found = by_reason(items, assign_splits(items))
  lost = defaultdict(set)
  for item in found["skin tone x gesture"]:
    lost[names.untoned(item.key)].add(names.tones_of(item.key))
  assert 0.12 * 400 < len(lost) < 0.28 * 400
  assert all(len(tones) == 1 for tones in lost.values())
  # Both styles of the pair are gone.
  assert len(found["skin tone x gesture"]) == 2 * len(lost)
  unseen = {names.untoned(item.key) for item in found["unseen concept"]}
  assert len(found["unseen concept"]) == 12 * len(unseen)


def test_roles_lose_a_man_or_a_woman():
  items = [
    SplitItem("twemoji", f"{person}-200d-{0x20000 + i:x}", f"role {i}")
    for i in range(600)
    for person in ("1f468", "1f469", "1f9d1")
  ]
  held = by_reason(items, assign_splits(items))["gender x role"]
  roles = [names.neutral(item.key) for item in held]
  assert 0.06 * 600 < len(roles) < 0.14 * 600
  assert len(roles) == len(set(roles))
  assert {names.gender_of(item.key) for item in held} == {"man", "woman"}


def test_facing_right_goes_with_its_mirror_picture():
  walkers = [
    SplitItem("noto", "-200d-".join(parts) + right, "walking")
    for i in range(200)
    for tone in TONES
    for parts in ((f"{0x20000 + i:x}-{tone}", "2642"),)
    for right in ("", "-200d-27a1")
  ]
  assigned = assign_splits(walkers)
  assert assigned[::2] == assigned[1::2]
  assert "skin tone x gesture" in {reason for _, reason in assigned}


def test_colours_of_objects():
  colours = ("red", "blue", "light blue", "green", "black")
  objects = [f"thing{i}" for i in range(40)]
  items = [
    SplitItem(style, f"{0x20000 + 16 * o + c:x}", f"{colour} {thing}")
    for o, thing in enumerate(objects)
    for c, colour in enumerate(colours)
    for style in ("twemoji", "line art")
  ]
  found = by_reason(items, assign_splits(items))
  held = found["colour x object"]
  assert {item.style for item in held} == {"twemoji"}, "line art has none"
  things_held = [splits.colour_object(item.name)[1] for item in held]
  assert len(things_held) == len(set(things_held))
  assert len(things_held) > 30  # the rest were unseen concepts already
  assert len({splits.colour_object(i.name)[0] for i in held}) > 2


def test_colour_object():
  assert splits.colour_object("light blue heart") == ("light blue", "heart")
  assert splits.colour_object("red heart") == ("red", "heart")
  assert splits.colour_object("redwood") is None


def test_near_twins_stay_on_one_side():
  items = things()
  twins = [(f"{0x20000 + i:x}", f"{0x20001 + i:x}") for i in range(0, 2000, 2)]
  assigned = assign_splits(items, twins)
  whole = {
    (item.style, item.key): split
    for item, split in zip(items, assigned, strict=True)
  }
  reasons = {reason for _, reason in assigned}
  assert {"unseen concept", "style x concept"} <= reasons
  for left, right in twins:
    for style in COLOUR_STYLES[:4]:
      assert whole[style, left] == whole[style, right]


def test_big_clusters_are_trained_on():
  items = things(500)
  keys = sorted({item.key for item in items})
  chain = list(itertools.pairwise(keys))
  assert {split for split, _ in assign_splits(items, chain)} == {"train"}


def test_clusters_chain():
  clusters = splits.cluster_concepts(
    ("a1", "b2", "c3", "d4"), [("c3", "b2"), ("b2", "a1")]
  )
  assert clusters == {"a1": "a1", "b2": "a1", "c3": "a1", "d4": "d4"}


def test_near_twins_are_found_by_looks():
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (4, 32, 32, 4), dtype=np.uint8)
  pictures[1] = pictures[0]
  pictures[1, 3, 3, :3] ^= 64  # hardly visible
  pictures[3] = pictures[0]  # a tone of the first concept, not a twin
  keys = ["1f436", "1f43a", "1f434", "1f436-1f3fd"]
  thumbs = np.stack([render.thumbnail(p, 16) for p in pictures])
  pairs = splits.near_twins(keys, thumbs, 5000)
  assert pairs == [("1f436", "1f43a"), ("1f43a", "1f436-1f3fd")]


def test_thumbnail_ignores_hidden_colour():
  picture = np.zeros((32, 32, 4), np.uint8)
  hidden = picture.copy()
  hidden[..., :3] = 200
  assert render.pixel_digest(picture) == render.pixel_digest(hidden)
  np.testing.assert_array_equal(
    render.thumbnail(picture, 16), render.thumbnail(hidden, 16)
  )
