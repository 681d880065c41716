"""Scenes: one to nine repainted objects with an exact caption.

`SceneGenerator.scene(index)` draws the facts (no pixels) as a pure function of
(seed, split, index); `render` paints them. What is held out by hash never
shows up in the split "train": colour x object pairs, object x relation x
object triples (told or merely visible) and all scenes of one number of objects
(`SceneConfig.held_count`; four). The split "heldout" has exactly one of these
in each scene; "seen" has new scenes of the training distribution.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from star_jax.data import backgrounds, layouts, places
from star_jax.data.concepts import (
  CONCEPTS,
  is_heldout_pair,
  is_heldout_triple,
)
from star_jax.data.recolor import COLOURS
from star_jax.data.scene_config import SPLITS, SceneConfig
from star_jax.data.scene_text import COUNT_WORDS, Thing, write_caption
from star_jax.data.sprites import Sprites, blend

__all__ = [
  "COLOURS",
  "CONCEPTS",
  "Scene",
  "SceneConfig",
  "SceneGenerator",
  "SceneObject",
]

# How many objects, and whether they are counted ("three yellow stars"; two of
# them or three): share of the split "train", of scenes with fewer than four.
_KINDS = ((1, False), (2, False), (3, False), (3, True))
_KIND_SHARES = np.cumsum([0.30, 0.36, 0.26, 0.08])
# Of scenes of four objects or more, those that count them.
_COUNTED_SHARE = 0.2
_TRIES = 20_000
Kind = tuple[int, bool | None]


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """colour None: as drawn. box: square (x0, y0, x1, y1) in pixels."""

  concept: str
  colour: str | None
  box: layouts.Box

  @property
  def size(self) -> int:
    """Side of the box in pixels."""
    return self.box[2] - self.box[0]

  @property
  def thing(self) -> Thing:
    """What the caption calls it."""
    return Thing(self.concept, self.colour)


@dataclasses.dataclass(frozen=True)
class Scene:
  """The facts of one scene.

  relations: what the caption tells, (i, "left" or "above" ..., j) on objects.
  flags: which held-out things it contains, among "pair", "triple" and the word
  of the number of objects that is held out ("four").
  style_named: whether the caption names the style.
  """

  index: int
  style: str
  objects: tuple[SceneObject, ...]
  relations: tuple[tuple[int, str, int], ...]
  caption: str
  style_named: bool
  flags: tuple[str, ...]
  background: backgrounds.Background
  size: tuple[int, int]


class SceneGenerator:
  """Draws and paints scenes from an art store.

  Args:
    store: an `ArtStore`; its styles decide which of `config.styles` are used.
    config: see `SceneConfig`.

  Raises:
    ValueError: if the store has none of the styles.
  """

  def __init__(self, store, config: SceneConfig):
    self.store = store
    self.config = config
    self._drawn = {
      style: [
        c.name
        for c in CONCEPTS.values()
        if style in c.styles and _drawable(store, style, c.key)
      ]
      for style in config.styles
    }
    self.styles = tuple(s for s in config.styles if self._drawn[s])
    if not self.styles:
      raise ValueError(
        f"The art store has no pictures in the styles"
        f" {', '.join(config.styles)}; launch/prepare_data.py renders them."
      )
    self._sprites = Sprites(store)

  def with_config(self, **changes) -> SceneGenerator:
    """The same store under another config (split, seed, size, ...)."""
    return SceneGenerator(
      self.store, dataclasses.replace(self.config, **changes)
    )

  def with_seed(self, seed: int) -> SceneGenerator:
    """Other scenes from the same cache of sprites."""
    other = copy.copy(self)
    other.config = dataclasses.replace(self.config, seed=seed)
    return other

  # Facts.

  def scene(self, index: int) -> Scene:
    """The facts of scene `index`; nothing is painted."""
    split = SPLITS.index(self.config.split)
    rng = np.random.default_rng([self.config.seed, split, int(index)])
    kind, want = self._kind(rng, int(index))
    named = bool(rng.random() < self.config.style_share)
    tidy = bool(rng.random() < self.config.tidy)
    for _ in range(_TRIES):
      style = self._style(rng, named)
      drawn = self._draw(rng, kind, style, tidy)
      if drawn is not None and _suits(*drawn[:2], want, self.config.held_count):
        return self._finish(rng, int(index), want, style, named, *drawn)
    raise ValueError(
      f"No scene with {want or 'nothing'} held out was found for index"
      f" {index}; the styles {self.styles} draw too few of the concepts."
    )

  def _kind(self, rng, index: int) -> tuple[Kind, tuple[str, ...]]:
    """(number of objects, whether counted), and what must be held out.

    Not all draws are kept: whether many objects are counted is decided here,
    or counts, which seldom show anything held out, would crowd out the rest.
    Four are counted or not (None) by each draw, as they have always been.
    """
    most, held = self.config.max_objects, self.config.held_count
    if self.config.split != "heldout":
      return self._many(rng) or self._few(rng), ()
    # Cycle, so that any run of indices has its share of each.
    cycle = ["pair", "pair", "triple", "triple", COUNT_WORDS.get(held)]
    if most < 2:
      cycle = ["pair"]
    elif not 0 < held <= most:
      cycle = cycle[:4]
    flag = cycle[index % len(cycle)]
    if flag not in ("pair", "triple"):
      return (held, None if held == 4 else _counted(rng)), (flag,)
    if many := self._many(rng):
      # A count tells no relation.
      return (many[0], many[1] and flag == "pair"), (flag,)
    if flag == "triple":
      three = most > 2 and rng.random() < 0.35
      return (3 if three else 2, False), (flag,)
    return self._few(rng), (flag,)

  def _many(self, rng) -> Kind | None:
    """Four objects or more, where the config has such scenes."""
    counts = self.config.many_counts
    if not counts or rng.random() >= self.config.many_share:
      return None
    return int(counts[rng.integers(len(counts))]), _counted(rng)

  def _few(self, rng) -> Kind:
    """Three objects or fewer."""
    share = np.searchsorted(_KIND_SHARES, rng.random() * 0.999999)
    count, counted = _KINDS[int(share)]
    most = min(self.config.max_objects, 3)
    return min(count, most), counted and most > 1

  def _style(self, rng, named: bool) -> str:
    if not named and self.config.default_style in self.styles:
      return self.config.default_style
    return self.styles[rng.integers(len(self.styles))]

  def _draw(self, rng, kind: Kind, style: str, tidy: bool):
    """One attempt: (objects, told relations, layout) or None."""
    count, counted = kind
    if counted is None:
      counted = _counted(rng)
    if counted:
      return self._draw_counted(rng, style, count, tidy)
    things = self._things(rng, style, count)
    if _alike(things):
      return None
    placed = places.place(rng, count, self.config, tidy)
    if placed is None:
      return None
    return _objects(things, placed.boxes), placed.told, placed.layout

  def _draw_counted(self, rng, style: str, most: int, tidy: bool):
    """ "three yellow stars", "two red cars and a green tree"."""
    total = most
    if most < 4:
      total = 2 if most < 3 or rng.random() < 0.3 else 3
    same = total
    if rng.random() >= 0.5:
      same = total - 1 if total < 5 else int(rng.integers(2, total))
    if same == 1:
      same = total
    first, other = self._things(rng, style, 2)
    if first.concept == other.concept:
      return None
    things = [first] * same + [other] * (total - same)
    boxes = places.place_counted(rng, total, same, self.config, tidy)
    if boxes is None:
      return None
    if tidy:
      # The caption lists them in order; either kind comes first.
      things = things[:: 1 if rng.random() < 0.5 else -1]
    return _objects(things, boxes), (), "count"

  def _things(self, rng, style: str, count: int) -> list[Thing]:
    names, words = self._drawn[style], list(COLOURS)
    things = []
    for _ in range(count):
      name = names[rng.integers(len(names))]
      colour = words[rng.integers(len(words))]
      plain = rng.random() < self.config.plain_share
      things.append(Thing(name, None if plain else colour))
    return things

  def _finish(
    self, rng, index, flags, style, named, objects, told, layout
  ) -> Scene:
    things = [o.thing for o in objects]
    caption = write_caption(rng, things, layout, told, style if named else None)
    avoid = [COLOURS[t.colour] for t in things if t.colour]
    background, told_background = backgrounds.draw_told_or_default(
      rng,
      avoid,
      told_share=self.config.background_share,
      default=self.config.default_background,
      white_share=0.12,
    )
    if told_background:
      caption = backgrounds.with_background(caption, background)
    return Scene(
      index=index,
      style=style,
      objects=objects,
      relations=told,
      caption=caption,
      style_named=named,
      flags=flags,
      background=background,
      size=self.config.size,
    )

  # Pixels.

  def sprite(
    self, concept: str, style: str, colour: str | None, size: int
  ) -> np.ndarray:
    """The object alone, uint8 RGBA [size, size, 4]; see `Sprites.sprite`."""
    return self._sprites.sprite(concept, style, colour, size)

  def render(self, scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 [H, W, 3]."""
    canvas = backgrounds.paint(scene.background, scene.size)
    for item in scene.objects:
      sprite = self.sprite(item.concept, scene.style, item.colour, item.size)
      blend(canvas, sprite, item.box[0], item.box[1])
    return canvas


def _drawable(store, style: str, key: str) -> bool:
  """Pictures that the art store holds out are not shown in scenes either."""
  if (style, key) not in store:
    return False
  return store.records[store.index(style, key)].split == "train"


def _counted(rng) -> bool:
  return bool(rng.random() < _COUNTED_SHARE)


def _alike(things: Sequence[Thing]) -> bool:
  """Equal things, or two dogs of which one has no colour to tell it by."""
  plain = {t.concept for t in things if t.colour is None}
  concepts = [t.concept for t in things]
  return len(set(things)) < len(things) or any(
    concepts.count(name) > 1 for name in plain
  )


def _objects(
  things: Sequence[Thing], boxes: Sequence[layouts.Box]
) -> tuple[SceneObject, ...]:
  return tuple(
    SceneObject(t.concept, t.colour, box) for t, box in zip(things, boxes)
  )


def _suits(objects, told, want: tuple[str, ...], held: int) -> bool:
  """Whether a drawn scene holds out exactly `want`, and tells so."""
  if _flags(objects, held) != want:
    return False
  return "triple" not in want or any(
    is_heldout_triple(objects[i].concept, relation, objects[j].concept)
    for i, relation, j in told
  )


def _flags(objects: Sequence[SceneObject], held: int) -> tuple[str, ...]:
  """Which held-out things a scene has, visible relations included."""
  found = {
    "pair": any(is_heldout_pair(o.colour, o.concept) for o in objects),
    "triple": any(
      (relation := layouts.relation_between(a.box, b.box))
      and is_heldout_triple(a.concept, relation, b.concept)
      for a, b in itertools.combinations(objects, 2)
    ),
    COUNT_WORDS.get(held, ""): len(objects) == held,
  }
  return tuple(flag for flag, present in found.items() if present)
