import numpy as np
import pytest

from star_jax.data.scene_text import (
  Thing,
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
  ],
)
def test_read_caption(caption, things, relations, style):
  facts = read_caption(caption)
  assert facts.things == things
  assert facts.relations == relations
  assert facts.style == style


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


def test_articles():
  assert with_article("orange car") == "an orange car"
  assert with_article("purple egg") == "a purple egg"
  assert with_article("umbrella") == "an umbrella"


def test_a_caption_without_objects_of_the_scenes():
  with pytest.raises(ValueError, match="'hello' names no object"):
    read_caption("hello")
