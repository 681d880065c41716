"""Scores of detections against captions, on hand-made detections."""

import numpy as np
import pytest

from star_jax.data.scene_text import read_caption
from star_jax.metrics.scene_match import Detection
from star_jax.metrics.scene_score import (
  derangement,
  holds,
  score_scene,
  shares,
)
from star_jax.metrics.sprite_bank import Entry


def found(concept, colour, x, y, size=20):
  entry = Entry(concept, "twemoji", colour)
  box = (x - size / 2, y - size / 2, x + size / 2, y + size / 2)
  return Detection(entry, box, gain=1.0, explained=1.0)


def test_right_picture_has_everything():
  facts = read_caption("a red car to the left of a blue dog")
  score = score_scene(
    facts, [found("dog", "blue", 48, 30), found("car", "red", 16, 32)]
  )
  assert score.objects == (True, True) and score.colours == (True, True)
  assert score.relations == (True,) and score.count and score.everything


@pytest.mark.parametrize(
  "second, objects, colours, relations",
  [
    (("dog", "green", 48, 30), 2, 1, 1),
    (("cat", "blue", 48, 30), 1, 1, 0),
    (("dog", "blue", 4, 30), 2, 2, 0),
    (("dog", "blue", 24, 60), 2, 2, 0),  # below rather than right
  ],
)
def test_each_fact_counts_on_its_own(second, objects, colours, relations):
  facts = read_caption("a red car to the left of a blue dog")
  score = score_scene(facts, [found("car", "red", 16, 32), found(*second)])
  assert sum(score.objects) == objects
  assert sum(score.colours) == colours
  assert sum(score.relations) == relations
  assert not score.everything


def test_nothing_found():
  score = score_scene(read_caption("a red car above a dog"), [])
  assert score.objects == (False, False) and score.relations == (False,)
  # The colour of the dog is not stated, so it is not judged.
  assert score.colours == (False,) and not score.count


def test_equal_kinds_are_told_apart_by_colour_and_place():
  facts = read_caption("a red dog to the left of a blue dog")
  left, right = found("dog", "red", 16, 30), found("dog", "blue", 48, 30)
  assert score_scene(facts, [right, left]).everything
  swapped = score_scene(
    facts, [found("dog", "blue", 16, 30), found("dog", "red", 48, 30)]
  )
  # Either the colours or the place can be right, not both.
  assert sum(swapped.colours) + sum(swapped.relations) == 2


def test_one_detection_serves_one_object():
  facts = read_caption("three yellow stars")
  stars = [found("star", "yellow", x, 30) for x in (10, 50)]
  score = score_scene(facts, stars)
  assert sum(score.objects) == 2 and not score.count


def test_nine_equal_things_are_counted_and_coloured():
  """9! ways to claim them: only one is tried."""
  facts = read_caption("nine yellow stars")
  stars = [found("star", "yellow", 20 * i, 30) for i in range(8)]
  score = score_scene(facts, [*stars, found("star", "red", 200, 30)])
  assert sum(score.objects) == 9 and sum(score.colours) == 8
  assert score.count and not score.everything
  two = read_caption("five yellow stars and four red dogs")
  score = score_scene(two, stars)
  assert sum(score.objects) == 5 and sum(score.colours) == 5


def test_a_colour_is_not_bought_with_an_object():
  facts = read_caption("a red dog, a dog and a cat")
  red, blue = found("dog", "red", 10, 30), found("dog", "blue", 40, 30)
  score = score_scene(facts, [blue, red])
  assert score.objects == (True, True, False) and score.colours == (True,)


def test_a_grid_of_nine():
  names = ["dog", "cat", "car", "star", "tree", "sun", "key", "bell", "hat"]
  rows = [", ".join(f"a {n}" for n in names[i : i + 3]) for i in (0, 3, 6)]
  facts = read_caption("from left to right, " + ", below them ".join(rows))
  assert len(facts.relations) == 18
  grid = [
    found(name, None, 40 * (i % 3), 40 * (i // 3))
    for i, name in enumerate(names)
  ]
  assert score_scene(facts, grid[::-1]).everything
  swapped = [*grid[1:], found("dog", None, 0, 120)]
  score = score_scene(facts, swapped)
  assert all(score.objects) and sum(score.relations) == 14


@pytest.mark.parametrize(
  "relation, x, y",
  [("left", 40, 30), ("right", 0, 30), ("above", 20, 60), ("below", 20, 0)],
)
def test_directions(relation, x, y):
  a, b = found("dog", None, 20, 30), found("cat", None, x, y)
  assert holds(a, relation, b) and not holds(b, relation, a)


def test_too_close_or_diagonal_is_no_relation():
  a = found("dog", None, 20, 30)
  assert not holds(a, "left", found("cat", None, 24, 30))
  assert not holds(a, "left", found("cat", None, 40, 52))


def test_shares_count_facts():
  facts = read_caption("a red car to the left of a blue dog")
  right = [found("dog", "blue", 48, 30), found("car", "red", 16, 32)]
  out = shares([score_scene(facts, right), score_scene(facts, right[:1])])
  assert (out["objects"].hits, out["objects"].n) == (3, 4)
  assert (out["relations"].hits, out["relations"].n) == (1, 2)
  assert (out["everything"].hits, out["everything"].n) == (1, 2)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_derangement_moves_everything(n):
  other = derangement(n, 0)
  assert sorted(other) == list(range(n))
  assert not np.any(other == np.arange(n))


def test_derangement_of_one():
  with pytest.raises(ValueError, match="at least 2"):
    derangement(1, 0)
