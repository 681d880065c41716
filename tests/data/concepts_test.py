import pytest

from star_jax.data import concepts
from star_jax.data.concepts import (
  CONCEPTS,
  RELATIONS,
  is_heldout_pair,
  is_heldout_triple,
)
from star_jax.data.recolor import COLOURS


def test_at_least_sixty_concepts_in_three_styles():
  assert len(CONCEPTS) >= 60
  assert len({c.key for c in CONCEPTS.values()}) == len(CONCEPTS)
  for concept in CONCEPTS.values():
    assert len(concept.styles) >= 3, concept


def test_no_word_means_two_things():
  words = [w for c in CONCEPTS.values() for w in {c.name, c.plural}]
  assert len(set(words)) == len(words)
  assert not set(words) & set(COLOURS)


def test_a_tenth_of_the_pairs_is_held_out():
  held = sum(is_heldout_pair(k, c) for k in COLOURS for c in CONCEPTS)
  assert 0.07 < held / (len(COLOURS) * len(CONCEPTS)) < 0.13
  assert not any(is_heldout_pair(None, c) for c in CONCEPTS)


def test_colours_that_the_art_has_are_not_held_out():
  for colour, name in concepts._USUAL_PAIRS:
    assert colour in COLOURS and name in CONCEPTS
    assert not is_heldout_pair(colour, name)
  assert {("red", "car"), ("green", "apple")} <= concepts._USUAL_PAIRS


def test_every_colour_and_every_concept_is_mostly_seen():
  for colour in COLOURS:
    held = sum(is_heldout_pair(colour, c) for c in CONCEPTS)
    assert 0 < held < len(CONCEPTS) / 3
  for concept in CONCEPTS:
    assert sum(is_heldout_pair(k, concept) for k in COLOURS) <= 5


def test_a_tenth_of_the_triples_is_held_out():
  triples = [
    is_heldout_triple(a, relation, b)
    for a in CONCEPTS
    for b in CONCEPTS
    for relation in RELATIONS
    if a != b
  ]
  assert 0.09 < sum(triples) / len(triples) < 0.11


def test_a_relation_told_from_the_other_side_is_the_same_fact():
  for a in list(CONCEPTS)[:20]:
    for b in CONCEPTS:
      assert is_heldout_triple(a, "left", b) == is_heldout_triple(b, "right", a)
      assert is_heldout_triple(a, "above", b) == is_heldout_triple(
        b, "below", a
      )


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_of_the_same_object_are_never_held_out(relation):
  assert not any(is_heldout_triple(c, relation, c) for c in CONCEPTS)
