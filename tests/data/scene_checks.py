"""What tests of scenes share."""

from collections import Counter

from star_jax.data import layouts
from star_jax.data.concepts import is_heldout_pair, is_heldout_triple
from star_jax.data.scene_text import COUNT_WORDS, read_caption
from star_jax.data.scenes import SceneConfig, SceneGenerator

CANONICAL = {"right": "left", "below": "above"}


def generator(store, **changes):
  return SceneGenerator(store, SceneConfig(**{"seed": 3, **changes}))


def heldout_in(scene, held=4):
  """Recomputed from objects and boxes, not from the scene's own flags."""
  flags = set()
  for i, a in enumerate(scene.objects):
    if is_heldout_pair(a.colour, a.concept):
      flags.add("pair")
    for b in scene.objects[i + 1 :]:
      relation = layouts.relation_between(a.box, b.box)
      if relation and is_heldout_triple(a.concept, relation, b.concept):
        flags.add("triple")
  if len(scene.objects) == held:
    flags.add(COUNT_WORDS[held])
  return flags


def check_scene(scene):
  """Boxes apart and inside, told relations true and as the caption says."""
  height, width = scene.size
  boxes = [o.box for o in scene.objects]
  for x0, y0, x1, y1 in boxes:
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert x1 - x0 == y1 - y0
  assert not layouts.any_overlap(boxes), scene
  for i, relation, j in scene.relations:
    assert layouts.relation_between(boxes[i], boxes[j]) == relation
  facts = read_caption(scene.caption)
  things = [o.thing for o in scene.objects]
  assert Counter(facts.things) == Counter(things), scene.caption
  told = fact_set(things, scene.relations)
  assert fact_set(facts.things, facts.relations) == told, scene.caption


def fact_set(things, relations):
  """Relations as a set that does not depend on who is named first."""
  facts = set()
  for i, relation, j in relations:
    if relation in CANONICAL:
      i, relation, j = j, CANONICAL[relation], i
    facts.add((things[i], relation, things[j]))
  return facts
