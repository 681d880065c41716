"""Scenes: one to four repainted objects with an exact caption.

`SceneGenerator.scene(index)` draws the facts (no pixels) as a pure function of
(seed, split, index); `render` paints them. What is held out by hash never
shows up in the split "train": colour x object pairs, object x relation x
object triples (told or merely visible) and all scenes of four objects. The
split "heldout" has exactly one of these in each scene; "seen" has new scenes
of the training distribution.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from star_jax.data import backgrounds, layouts
from star_jax.data.concepts import (
  CONCEPTS,
  is_heldout_pair,
  is_heldout_triple,
)
from star_jax.data.recolor import COLOURS
from star_jax.data.scene_config import SPLITS, SceneConfig
from star_jax.data.scene_text import Thing, write_caption
from star_jax.data.sprites import Sprites, blend

__all__ = [
  "COLOURS",
  "CONCEPTS",
  "Scene",
  "SceneConfig",
  "SceneGenerator",
  "SceneObject",
]

FLAGS = ("pair", "triple", "four")
# What a scene consists of: share of the split "train".
_KINDS = ("one", "two", "three", "count")
_KIND_SHARES = np.cumsum([0.30, 0.36, 0.26, 0.08])
_TRIES = 20_000


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
  flags: which held-out things it contains, among "pair", "triple", "four".
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
      if drawn is not None and _suits(drawn[0], drawn[1], want):
        return self._finish(rng, int(index), want, style, named, *drawn)
    raise ValueError(
      f"No scene with {want or 'nothing'} held out was found for index"
      f" {index}; the styles {self.styles} draw too few of the concepts."
    )

  def _kind(self, rng, index: int) -> tuple[str, tuple[str, ...]]:
    """Number of objects, and what the scene must hold out."""
    most = self.config.max_objects
    if self.config.split == "heldout":
      # Cycle, so that any run of indices has its share of each.
      cycle = ["pair", "pair", "triple", "triple", "four"]
      if most < 2:
        cycle = ["pair"]
      elif most < 4:
        cycle = cycle[:4]
      flag = cycle[index % len(cycle)]
      if flag == "four":
        return "four", (flag,)
      if flag == "triple":
        three = most > 2 and rng.random() < 0.35
        return "three" if three else "two", (flag,)
      return _limit(_KINDS[_draw_share(rng)], most), (flag,)
    return _limit(_KINDS[_draw_share(rng)], most), ()

  def _style(self, rng, named: bool) -> str:
    if not named and self.config.default_style in self.styles:
      return self.config.default_style
    return self.styles[rng.integers(len(self.styles))]

  def _draw(self, rng, kind: str, style: str, tidy: bool):
    """One attempt: (objects, told relations, layout) or None."""
    if kind == "count" or (kind == "four" and rng.random() < 0.2):
      total = 4 if kind == "four" else None
      return self._draw_counted(rng, style, total, tidy)
    count = {"one": 1, "two": 2, "three": 3, "four": 4}[kind]
    things = self._things(rng, style, count)
    if _alike(things):
      return None
    placed = self._place(rng, count, tidy)
    if placed is None:
      return None
    layout, boxes, told = placed
    if any(relation_of(boxes, i, j) != relation for i, relation, j in told):
      return None
    return _objects(things, boxes), told, layout

  def _draw_counted(self, rng, style: str, total: int | None, tidy: bool):
    """ "three yellow stars", "two red cars and a green tree"."""
    most = min(self.config.max_objects, 3)
    total = total or (2 if most < 3 or rng.random() < 0.3 else 3)
    same = total if rng.random() < 0.5 else total - 1
    if same == 1:
      same = total
    first, other = self._things(rng, style, 2)
    if first.concept == other.concept:
      return None
    canvas, step = self.config.size, self.config.step
    things = [first] * same + [other] * (total - same)
    if tidy:
      boxes = layouts.fixed_list(total, canvas)
      # The caption lists them in order; either kind comes first.
      things = things[:: 1 if rng.random() < 0.5 else -1]
      return _objects(things, boxes), (), "count"
    sizes = layouts.draw_sizes(rng, total, canvas, step)
    # Equal things are drawn about equally large.
    sizes[1:same] = [sizes[0]] * (same - 1)
    boxes = layouts.scatter(rng, sizes, canvas, step)
    if boxes is None:
      return None
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

  def _place(self, rng, count: int, tidy: bool):
    """(layout, boxes, told relations), or None if there was no room."""
    canvas, step = self.config.size, self.config.step
    sizes = layouts.draw_sizes(rng, count, canvas, step)
    way = rng.random()
    vertical = rng.random() < 0.5
    ahead = "above" if vertical else "left"
    if count == 1 or (way < 0.25 and count < 4):
      if tidy:
        return "list", layouts.fixed_list(count, canvas), ()
      boxes = layouts.scatter(rng, sizes, canvas, step)
      return boxes and ("list", boxes, ())

    def grid(cells):
      if tidy:
        return layouts.fixed_grid(cells, canvas)
      return layouts.grid(rng, cells, sizes, canvas, step)

    if count == 2 or (count == 3 and way < 0.5):
      boxes = (
        layouts.fixed_row(count, canvas, vertical)
        if tidy
        else layouts.row(rng, sizes, canvas, vertical, step)
      )
      told = tuple(
        (i, ahead, j) for i in range(count) for j in range(i + 1, count)
      )
      return "row", boxes, told
    if count == 4:
      boxes = grid([(0, 0), (0, 1), (1, 0), (1, 1)])
      if way < 0.2:
        return "list", boxes, ()
      told = ((0, "left", 1), (2, "left", 3), (0, "above", 2), (1, "above", 3))
      return "grid", boxes, told
    # Three at a corner: 1 beside 0 in the row (or column), 2 off one of them.
    first = [(0, 0), (0, 1)] if rng.random() < 0.5 else [(0, 1), (0, 0)]
    anchor = int(rng.integers(2))
    third = (1, first[anchor][1])
    cells = [*first, third]
    if rng.random() < 0.5:  # upside down
      cells = [(1 - r, c) for r, c in cells]
    if vertical:
      cells = [(c, r) for r, c in cells]
    boxes = grid(cells)
    told = (
      (0, relation_of(boxes, 0, 1), 1),
      (2, relation_of(boxes, 2, anchor), anchor),
    )
    if None in (told[0][1], told[1][1]):
      return None
    return "corner", boxes, told

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


def _draw_share(rng) -> int:
  return int(np.searchsorted(_KIND_SHARES, rng.random() * 0.999999))


def _limit(kind: str, most: int) -> str:
  """The kind, cut to at most `most` objects."""
  if most == 1:
    return "one"
  return "two" if most == 2 and kind == "three" else kind


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


def relation_of(boxes: Sequence[layouts.Box], i: int, j: int) -> str | None:
  """The relation of object i to object j, None when open to doubt."""
  return layouts.relation_between(boxes[i], boxes[j])


def _suits(objects, told, want: tuple[str, ...]) -> bool:
  """Whether a drawn scene holds out exactly `want`, and tells so."""
  if _flags(objects) != want:
    return False
  return "triple" not in want or any(
    is_heldout_triple(objects[i].concept, relation, objects[j].concept)
    for i, relation, j in told
  )


def _flags(objects: Sequence[SceneObject]) -> tuple[str, ...]:
  """Which held-out things a scene has, visible relations included."""
  flags = []
  if any(is_heldout_pair(o.colour, o.concept) for o in objects):
    flags.append("pair")
  boxes = [o.box for o in objects]
  for i in range(len(objects)):
    for j in range(i + 1, len(objects)):
      relation = relation_of(boxes, i, j)
      if relation and is_heldout_triple(
        objects[i].concept, relation, objects[j].concept
      ):
        flags.append("triple")
  if len(objects) >= 4:
    flags.append("four")
  return tuple(f for f in FLAGS if f in flags)
