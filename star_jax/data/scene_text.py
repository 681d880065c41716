"""Captions of scenes, and the reader that turns a caption back into facts.

`write_caption` states exactly what a scene stores: objects, colours, counts
and the relations it was given. `read_caption` is its inverse; the tests hold
the two together and the evaluation can read prompts with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from star_jax.data import layouts
from star_jax.data.concepts import (
  CONCEPTS,
  OPPOSITE,
  SCENE_STYLES,
  is_heldout_pair,
  is_heldout_triple,
)
from star_jax.data.recolor import COLOURS

COUNT_WORDS = {
  **{2: "two", 3: "three", 4: "four", 5: "five"},
  **{6: "six", 7: "seven", 8: "eight", 9: "nine"},
}
_OF = {
  "left": ("left of", "to the left of"),
  "right": ("right of", "to the right of"),
  "above": ("above",),
  "below": ("below", "under"),
}
_ITS = {
  "left": ("to its left", "on its left"),
  "right": ("to its right", "on its right"),
  "above": ("above it",),
  "below": ("below it", "under it"),
}
_PHRASES = sorted(
  ((words, rel) for rel, all_ in _OF.items() for words in all_),
  key=lambda pair: -len(pair[0]),
)


class Thing(NamedTuple):
  """An object as a caption names it; colour None is "as it is drawn"."""

  concept: str
  colour: str | None


class Facts(NamedTuple):
  """things: every object, in the order of the caption. relations: (i, rel, j)
  on these objects. style, background: what the caption says of them ("noto",
  "striped navy"), or None."""

  things: tuple[Thing, ...]
  relations: tuple[tuple[int, str, int], ...]
  style: str | None
  background: str | None = None


def with_article(words: str) -> str:
  """ "a red car", "an orange car": the article follows the sound."""
  return ("an " if words[0] in "aeiou" else "a ") + words


def noun(thing: Thing, count: int = 1) -> str:
  """ "red car", or "red cars" for count > 1."""
  concept = CONCEPTS[thing.concept]
  words = concept.name if count == 1 else concept.plural
  return f"{thing.colour} {words}" if thing.colour else words


def phrase(thing: Thing, count: int = 1) -> str:
  """ "a red car" or "three red cars"."""
  if count == 1:
    return with_article(noun(thing))
  return f"{COUNT_WORDS[count]} {noun(thing, count)}"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
  return options[rng.integers(len(options))]


def _listing(parts: Sequence[str]) -> str:
  if len(parts) == 1:
    return parts[0]
  return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _again(things: Sequence[Thing], i: int) -> str:
  """How to refer to object i a second time: "the dog", "the blue dog"."""
  same = sum(t.concept == things[i].concept for t in things)
  return f"the {things[i].concept if same == 1 else noun(things[i])}"


def _pair(rng, things, i: int, relation: str, j: int) -> str:
  """One relation, told from either side and in several word orders."""
  if rng.random() < 0.5:
    i, relation, j = j, OPPOSITE[relation], i
  first, second = phrase(things[i]), phrase(things[j])
  way = rng.random()
  if way < 0.7:
    return f"{first} {_pick(rng, _OF[relation])} {second}"
  if way < 0.85:
    return f"{second} with {first} {_pick(rng, _ITS[relation])}"
  return f"{_pick(rng, _OF[relation])} {second} is {first}"


def _told(rng, things, layout: str, relations) -> str:
  """The sentence of a scene whose relations are told."""
  if layout == "row" and len(things) > 2:
    ends = "from left to right"
    if relations[0][1] == "above":
      ends = "from top to bottom"
    listing = _listing([phrase(t) for t in things])
    return f"{listing} {ends}" if rng.random() < 0.6 else f"{ends}, {listing}"
  if layout == "corner":
    (_, first, _), (_, second, anchor) = relations
    a, b, c = (phrase(t) for t in things)
    again = _again(things, anchor)
    first, second = _pick(rng, _OF[first]), _pick(rng, _OF[second])
    return f"{a} {first} {b}, and {c} {second} {again}"
  if layout == "grid":
    rows = _rows_of(len(things), relations)
    if [len(row) for row in rows] == [2, 2]:
      a, b, c, d = (phrase(t) for t in things)
      # The short form keeps four objects and a style within 32 word pieces.
      left = _pick(rng, _OF["left"])
      return f"{a} {left} {b}, and below them {c} left of {d}"
    first, *rest = (_listing([phrase(things[i]) for i in row]) for row in rows)
    order = "from left to right"
    first = f"{first} {order}" if rng.random() < 0.6 else f"{order}, {first}"
    return ", below them ".join([first, *rest])
  return _pair(rng, things, *relations[0])


def _rows_of(count: int, relations) -> list[list[int]]:
  """The rows that objects stand in, by who is told left of its next."""
  rows: list[list[int]] = []
  for i in range(count):
    if rows and (i - 1, "left", i) in relations:
      rows[-1].append(i)
    else:
      rows.append([i])
  return rows


def write_caption(
  rng: np.random.Generator,
  things: Sequence[Thing],
  layout: str,
  relations: Sequence[tuple[int, str, int]],
  style: str | None,
) -> str:
  """The caption of a scene.

  Args:
    rng: picks among wordings; the facts are the same in all of them.
    things: the objects.
    layout: "row", "corner" or "grid" when relations are told; anything else
      lists the objects, equal ones as a count.
    relations: told relations as the layout lists them (see places.py); empty
      for a listing.
    style: named when given.
  """
  if relations:
    text = _told(rng, things, layout, relations)
  else:
    counts: dict[Thing, int] = {}
    for thing in things:
      counts[thing] = counts.get(thing, 0) + 1
    parts = [phrase(t, n) for t, n in counts.items()]
    text = _listing(parts)
  if style is None:
    return text
  ways = (f"{text}, {style} style", f"{text} in {style} style")
  # After a list "in x style" could belong to its last thing only.
  return ways[0] if rng.random() < 0.7 else ways[1]


_NOUNS = {c.name: c.name for c in CONCEPTS.values()}
_PLURALS = {c.plural: c.name for c in CONCEPTS.values()}
_COUNTS = {word: n for n, word in COUNT_WORDS.items()}
_ALL_COUNTS = "|".join(_COUNTS)
_ALL_COLOURS = "|".join(COLOURS)
_ALL_WORDS = "|".join(sorted({*_NOUNS, *_PLURALS}, key=len, reverse=True))
_THING = re.compile(
  rf"\b(an?|the|{_ALL_COUNTS}) (?:({_ALL_COLOURS}) )?({_ALL_WORDS})\b"
)
_BACKGROUND = re.compile(r",? (?:on|against) an? ([a-z ]+) background$")
_STYLE = re.compile(rf"(?:,| in) ({'|'.join(SCENE_STYLES)}) style$")


def read_caption(caption: str) -> Facts:
  """The facts that a caption of `write_caption` states.

  Raises:
    ValueError: if the caption names no object of the scenes.
  """
  text = caption.lower().strip()
  background = style = None
  if match := _BACKGROUND.search(text):
    background, text = match.group(1), text[: match.start()]
  if match := _STYLE.search(text):
    style, text = match.group(1), text[: match.start()]
  things: list[Thing] = []
  slots: list[int] = []  # what each found phrase refers to

  def number(match: re.Match) -> str:
    article, colour, word = match.groups()
    concept = _NOUNS.get(word) or _PLURALS[word]
    if article == "the":
      slots.append(
        next(
          i
          for i, t in enumerate(things)
          if t.concept == concept and colour in (None, t.colour)
        )
      )
    else:
      slots.append(len(things))
      things.extend([Thing(concept, colour)] * _COUNTS.get(article, 1))
    return f"#{slots[-1]}"

  pattern = _THING.sub(number, text)
  if not things:
    raise ValueError(
      f"The caption {caption!r} names no object of the scenes (as in 'a red"
      " car left of a blue dog')."
    )
  relations = _read_relations(pattern, len(things))
  return Facts(tuple(things), relations, style, background)


def heldout_flags(caption: str) -> tuple[str, ...]:
  """What of a prompt was never trained on: "pair", "triple", "four".

  "four" is four or more, as for a model that was trained on up to three. Empty
  for prompts of seen combinations and for those that are not about the objects
  of the scenes.
  """
  try:
    facts = read_caption(caption)
  except ValueError:
    return ()
  things = facts.things
  found = {
    "pair": any(is_heldout_pair(t.colour, t.concept) for t in things),
    "triple": any(
      is_heldout_triple(things[i].concept, relation, things[j].concept)
      for i, relation, j in facts.relations
    ),
    "four": len(things) >= 4,
  }
  return tuple(flag for flag, present in found.items() if present)


def _read_relations(pattern: str, count: int):
  """Relations in a caption whose objects were replaced by "#0", "#1", ..."""
  if "from left to right" in pattern and "below them" in pattern:
    parts = pattern.split("below them")
    starts = [int(n[0]) for part in parts if (n := re.findall(r"#(\d+)", part))]
    starts = np.maximum.accumulate([*starts, count])
    return layouts.told_of_rows(np.diff(starts).tolist())
  if "from left to right" in pattern or "from top to bottom" in pattern:
    relation = "left" if "left" in pattern else "above"
    return tuple(
      (i, relation, j) for i in range(count) for j in range(i + 1, count)
    )
  for words, relation in _PHRASES:
    pattern = re.sub(rf"\b{words}\b(?= #)", f"<{relation}>", pattern)
  for relation, all_ in _ITS.items():
    for words in all_:
      pattern = re.sub(rf"\b{words}\b", f"[{relation}]", pattern)
  found = [
    (int(i), relation, int(j))
    for i, relation, j in re.findall(r"#(\d+) <(\w+)> #(\d+)", pattern)
  ]
  for j, i, relation in re.findall(r"#(\d+) with #(\d+) \[(\w+)\]", pattern):
    found.append((int(i), relation, int(j)))
  for relation, j, i in re.findall(r"^<(\w+)> #(\d+) is #(\d+)", pattern):
    found.append((int(i), relation, int(j)))
  if "below them" in pattern:
    found += [(0, "above", 2), (1, "above", 3)]
  return tuple(found)
