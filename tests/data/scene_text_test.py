import json
from pathlib import Path

import numpy as np
import pytest

import star_jax
from star_jax.data.concepts import (
  CONCEPTS,
  is_heldout_pair,
  is_heldout_triple,
)
from star_jax.data.layouts import told_of_rows
from star_jax.data.recolor import COLOURS
from star_jax.data.scene_text import (
  Thing,
  heldout_flags,
  read_caption,
  with_article,
  write_caption,
)

CAR, DOG = Thing("car", "red"), Thing("dog", "blue")
STAR, TREE = Thing("star", "yellow"), Thing("tree", "green")
APPLE = Thing("apple", None)


@pytest.mark.parametrize(
  "caption, things, relations, style",
  [
    ("a red car", (CAR,), (), None),
    ("an apple", (APPLE,), (), None),
    ("A red car, noto style", (CAR,), (), "noto"),
    ("a red car left of a blue dog", (CAR, DOG), ((0, "left", 1),), None),
    (
      "a blue dog with a red car to its left in fluent style",
      (DOG, CAR),
      ((1, "left", 0),),
      "fluent",
    ),
    ("under a blue dog is an apple", (DOG, APPLE), ((1, "below", 0),), None),
    ("three yellow stars", (STAR, STAR, STAR), (), None),
    ("two red cars and a green tree", (CAR, CAR, TREE), (), None),
    (
      "from top to bottom, a red car, a blue dog and an apple",
      (CAR, DOG, APPLE),
      ((0, "above", 1), (0, "above", 2), (1, "above", 2)),
      None,
    ),
    (
      "a red car left of a blue dog, and a green tree above the car",
      (CAR, DOG, TREE),
      ((0, "left", 1), (2, "above", 0)),
      None,
    ),
    (
      "a red car left of a blue dog, and below them a yellow star to the left"
      " of a green tree",
      (CAR, DOG, STAR, TREE),
      ((0, "left", 1), (2, "left", 3), (0, "above", 2), (1, "above", 3)),
      None,
    ),
    ("nine red cars", (CAR,) * 9, (), None),
    (
      "from left to right, a red car and a blue dog, below them a yellow star",
      (CAR, DOG, STAR),
      ((0, "left", 1),),
      None,
    ),
    (
      "a red car and a blue dog from left to right, below them a yellow star"
      " and a green tree, noto style",
      (CAR, DOG, STAR, TREE),
      ((0, "left", 1), (2, "left", 3), (0, "above", 2), (1, "above", 3)),
      "noto",
    ),
  ],
)
def test_read_caption(caption, things, relations, style):
  facts = read_caption(caption)
  assert facts.things == things
  assert facts.relations == relations
  assert facts.style == style


def test_the_background_is_read_apart_from_objects_and_style():
  plain = "a red car left of a blue dog, noto style"
  facts = read_caption(plain)
  told = read_caption(f"{plain}, on a striped dark green background")
  assert facts.background is None
  assert told == facts._replace(background="striped dark green")
  assert read_caption("a red car on a navy background").background == "navy"


def test_same_object_in_two_colours_is_told_apart():
  other = Thing("dog", "pink")
  rng = np.random.default_rng(0)
  told = ((0, "left", 1), (2, "above", 1))
  caption = write_caption(rng, [DOG, other, CAR], "corner", told, None)
  assert caption.endswith("the pink dog")
  assert read_caption(caption).relations == told


def test_every_wording_of_a_relation_says_the_same():
  said = set()
  for seed in range(200):
    rng = np.random.default_rng(seed)
    caption = write_caption(rng, [CAR, DOG], "row", ((0, "left", 1),), None)
    facts = read_caption(caption)
    ((i, relation, j),) = facts.relations
    if relation == "right":
      i, j = j, i
    assert (facts.things[i], facts.things[j]) == (CAR, DOG), caption
    said.add(caption)
  assert len(said) >= 8


@pytest.mark.parametrize("rows", [(3, 2), (2, 2, 2), (3, 3, 2), (3, 3, 3)])
def test_rows_are_told_and_read(rows):
  things = [Thing(name, "red") for name in list(CONCEPTS)[: sum(rows)]]
  told = told_of_rows(rows)
  said = set()
  for seed in range(10):
    rng = np.random.default_rng(seed)
    caption = write_caption(rng, things, "grid", told, "noto")
    facts = read_caption(caption)
    assert list(facts.things) == things
    assert set(facts.relations) == set(told) and facts.style == "noto"
    said.add(caption)
  assert len(said) > 2


def test_a_row_that_names_nothing_new_adds_nothing():
  caption = "from left to right, a red car and a blue dog, below them the car"
  assert read_caption(caption).relations == ((0, "left", 1),)


def test_articles():
  assert with_article("orange car") == "an orange car"
  assert with_article("purple egg") == "a purple egg"
  assert with_article("umbrella") == "an umbrella"


def test_heldout_flags():
  pairs = [
    with_article(f"{colour} {name}")
    for colour in COLOURS
    for name in CONCEPTS
    if is_heldout_pair(colour, name)
  ]
  assert heldout_flags(pairs[0]) == ("pair",)
  assert "pair" in heldout_flags(f"{pairs[1]} left of {pairs[2]}")
  first, second = next(
    (a, b)
    for a in CONCEPTS
    for b in CONCEPTS
    if is_heldout_triple(a, "left", b)
  )
  a, b = with_article(first), with_article(second)
  assert heldout_flags(f"{b} right of {a}") == ("triple",)
  assert heldout_flags("four red cars") == ("four",)
  assert heldout_flags("a red car") == heldout_flags("a pizza") == ()


def test_demo_prompts_say_rightly_what_is_held_out():
  package = Path(star_jax.__file__).parent
  demos = sorted(package.glob("bundles/*/demo_prompts.json"))
  assert demos
  for file in demos:
    for entry in json.loads(file.read_text()):
      assert entry["heldout"] == bool(heldout_flags(entry["prompt"])), entry


def test_a_caption_without_objects_of_the_scenes():
  with pytest.raises(ValueError, match="'hello' names no object"):
    read_caption("hello")
