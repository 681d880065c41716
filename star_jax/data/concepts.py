"""What scenes are made of: nameable objects, styles, and what is held out.

Every concept is one clearly drawn thing whose fill can be repainted; the list
was chosen by looking at each of them in every style and colour. A style whose
drawing of a concept does not repaint, or shows something else, is left out
for that concept; at least three remain for each.
"""

from __future__ import annotations

import dataclasses
import hashlib

from star_jax.data.recolor import COLOURS

SCENE_STYLES = ("twemoji", "openmoji", "noto", "fluent")
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {
  "left": "right",
  "right": "left",
  "above": "below",
  "below": "above",
}
HELDOUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Concept:
  """A nameable object: its words and its code point in the art store."""

  name: str
  plural: str
  key: str
  styles: tuple[str, ...]


# name[/irregular plural]  code point  [-style left out ...]
_TABLE = """
dog 1f415
cat 1f408
fish/fish 1f41f
bird 1f426
rabbit 1f407 -openmoji
horse 1f40e
pig 1f416
sheep/sheep 1f411 -fluent
elephant 1f418
turtle 1f422
crab 1f980
octopus/octopuses 1f419
whale 1f433
mouse/mice 1f401
frog 1f438
bear 1f43b
dinosaur 1f995
car 1f697
tree 1f333
cactus/cactuses 1f335
flower 1f338
mushroom 1f344
leaf/leaves 1f341
cloud 2601
moon 1f319
sun 2600
star 2b50
snowflake 2744 -openmoji
drop 1f4a7
flame 1f525
apple 1f34e
banana 1f34c
pear 1f350
strawberry/strawberries 1f353
lemon 1f34b
carrot 1f955
pumpkin 1f383
cake 1f382
egg 1f95a
cup 2615
teapot 1fad6
heart 2764
house 1f3e0
key 1f511
umbrella 2602
hat 1f452 -fluent
shoe 1f45f
boot 1f462
dress/dresses 1f457
shirt 1f455
crown 1f451
gift 1f381
balloon 1f388
bell 1f514
book 1f4d5
pencil 270f
guitar 1f3b8
anchor 2693
magnet 1f9f2
basketball 1f3c0
door 1f6aa
chair 1fa91
backpack 1f392
shell 1f41a
trophy/trophies 1f3c6
flag 1f6a9
envelope 2709
lock 1f512
bone 1f9b4
ghost 1f47b
robot 1f916
skull 1f480
tent 26fa
bucket 1faa3
scarf/scarves 1f9e3
diamond 1f48e -noto
hand 270b
circle 1f534
"""


def _read_table(table: str) -> dict[str, Concept]:
  concepts = {}
  for line in table.split("\n"):
    if not line:
      continue
    words, key, *left_out = line.split()
    name, _, plural = words.partition("/")
    styles = tuple(s for s in SCENE_STYLES if f"-{s}" not in left_out)
    concepts[name] = Concept(name, plural or name + "s", key, styles)
  return concepts


CONCEPTS: dict[str, Concept] = _read_table(_TABLE)


# Colours in which the art itself draws an object, or names an icon ("green
# apple"). They are seen in training without repainting, so holding such a
# pair out of the scenes would test nothing.
_USUAL = """
dog orange yellow brown
cat orange yellow black
fish blue gray
bird brown red blue black
rabbit gray
horse brown orange
pig pink
elephant gray
turtle green
crab orange red
octopus orange purple red
whale blue gray
mouse pink gray
frog green yellow
bear brown
dinosaur gray green
car red
tree green
cactus green
flower pink
mushroom orange red brown
leaf orange red
moon yellow
sun orange yellow
star orange yellow
snowflake gray blue
drop gray blue
flame orange yellow
apple orange red green
banana yellow
pear yellow green
strawberry red
lemon yellow
carrot green orange
pumpkin orange
cake orange red yellow
egg orange yellow
teapot blue red
heart red orange yellow green blue purple pink brown gray black
house yellow
key orange yellow
umbrella gray purple
hat yellow
shoe blue gray red
boot gray orange red brown
dress blue gray
shirt blue gray green
crown yellow
gift red yellow
balloon red
bell orange yellow
book red green blue orange
pencil orange yellow
guitar red
anchor blue gray
magnet red
basketball orange
door brown orange
chair brown orange yellow
backpack red
shell pink gray
trophy yellow orange
flag red black
envelope red gray
lock orange yellow
bone yellow
robot gray blue
tent orange yellow
bucket blue gray
scarf red
diamond blue orange
hand yellow
circle red orange yellow green blue purple brown black
"""
_USUAL_PAIRS = frozenset(
  (colour, line.split()[0])
  for line in _USUAL.strip().split("\n")
  for colour in line.split()[1:]
)


def _held_out(*words: str, share: float) -> bool:
  """A share of all word tuples, the same on every machine and for ever."""
  digest = hashlib.sha256(" ".join(("scenes", *words)).encode()).digest()
  return int.from_bytes(digest[:8], "big") < share * 2**64


# A tenth of all pairs, taken from the unusual ones.
_PAIR_SHARE = HELDOUT_SHARE / (
  1 - len(_USUAL_PAIRS) / (len(COLOURS) * len(CONCEPTS))
)
_HELDOUT_PAIRS = frozenset(
  (colour, name)
  for colour in COLOURS
  for name in CONCEPTS
  if (colour, name) not in _USUAL_PAIRS
  and _held_out("pair", colour, name, share=_PAIR_SHARE)
)
_HELDOUT_TRIPLES = frozenset(
  (first, relation, second)
  for first in CONCEPTS
  for relation in ("left", "above")
  for second in CONCEPTS
  if first != second
  and _held_out("triple", first, relation, second, share=HELDOUT_SHARE)
)


def is_heldout_pair(colour: str | None, concept: str) -> bool:
  """Whether this colour x object is kept for the test; None never is."""
  return (colour, concept) in _HELDOUT_PAIRS


def is_heldout_triple(first: str, relation: str, second: str) -> bool:
  """Whether object x relation x object is kept for the test.

  "A right of B" is the same fact as "B left of A" and shares its fate. Two of
  the same object are never held out: counted objects stand beside each other.
  """
  if relation in ("right", "below"):
    first, relation, second = second, OPPOSITE[relation], first
  return (first, relation, second) in _HELDOUT_TRIPLES
