"""What the scene generator may draw, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from star_jax.data import layouts
from star_jax.data.backgrounds import check_background
from star_jax.data.concepts import SCENE_STYLES

SPLITS = ("train", "seen", "heldout")
# Pixels a side that each of more than four objects has room for at least.
ROOMY = 24
MOST_OBJECTS = max(layouts.SIZES)


@dataclasses.dataclass(frozen=True)
class SceneConfig:
  """What scenes are drawn.

  size: (H, W) in pixels. seed: another seed, other scenes. split: see above.
  max_objects: at most this many, 1 to 9; more than 4 only where the picture has
  room for so many boxes of 24 pixels. held_count: scenes of so many objects,
  4 to 9, are never in "train"; 0 holds none of the numbers out. many_share: how
  often a scene has four objects or more, as far as the two before allow any.
  styles: art sets that may be used. style_share: how often the caption names
  the style. plain_share: how often an object keeps its own colours, and none
  is named. lattice: places and sizes of objects are multiples of so many 64ths
  of the shorter side (in whole pixels); 1 leaves them free. Objects that lie on
  the lattice of the tokens have the same tokens wherever they lie, which a
  model learns many times sooner. tidy: share of the scenes whose objects stand
  at fixed places of one size each, so that the caption decides where everything
  is; the others are laid out at random. default_style: of scenes whose caption
  names none; empty: any. background_share: how often the caption names the
  background. default_background: of the others; empty: any.
  """

  size: tuple[int, int] = (64, 64)
  seed: int = 0
  split: str = "train"
  max_objects: int = 4
  styles: tuple[str, ...] = SCENE_STYLES
  style_share: float = 0.35
  plain_share: float = 0.1
  lattice: int = 1
  tidy: float = 0.0
  default_style: str = ""
  background_share: float = 0.0
  default_background: str = ""
  held_count: int = 4
  many_share: float = 0.5

  def __post_init__(self):
    if self.split not in SPLITS:
      raise ValueError(
        f"A split of the scenes is one of {', '.join(SPLITS)}, got"
        f" {self.split!r}."
      )
    if min(self.size) < 16:
      raise ValueError(
        f"Scenes are at least 16 pixels high and wide, got {self.size!r}."
      )
    if not 1 <= self.lattice <= 16:
      raise ValueError(
        f"lattice is 1 to 16 64ths of the side, got {self.lattice!r}."
      )
    if self.step > min(self.size):
      raise ValueError(
        f"A lattice of {self.lattice} 64ths is {self.step} pixels here; a"
        f" picture is at least as high and wide, got {self.size!r}."
      )
    self._check_counts()
    if not 0 <= self.tidy <= 1:
      raise ValueError(f"tidy is a share in [0, 1], got {self.tidy!r}.")
    if self.default_style not in ("", *self.styles):
      raise ValueError(
        f"default_style is empty or one of {', '.join(self.styles)}, got"
        f" {self.default_style!r}."
      )
    check_background(self.background_share, self.default_background)
    unknown = set(self.styles) - set(SCENE_STYLES)
    if unknown or not self.styles:
      raise ValueError(
        f"styles of scenes are among {', '.join(SCENE_STYLES)}, got"
        f" {tuple(self.styles)!r}."
      )

  def _check_counts(self) -> None:
    most, held = self.max_objects, self.held_count
    if not 1 <= most <= MOST_OBJECTS:
      raise ValueError(f"max_objects is 1 to {MOST_OBJECTS}, got {most!r}.")
    rows = layouts.best_rows(most, self.size)
    side = layouts.fixed_side(rows, self.size)
    if not side:
      raise ValueError(
        f"A picture of {self.size[0]} x {self.size[1]} pixels is too narrow for"
        f" {most} objects."
      )
    if most > 4 and side < ROOMY:
      raise ValueError(
        f"max_objects over 4 needs room for so many boxes of {ROOMY} pixels:"
        f" {most} on a picture of {self.size[0]} x {self.size[1]} pixels have"
        f" {side}. Take fewer objects or a larger picture."
      )
    if held and not 4 <= held <= MOST_OBJECTS:
      raise ValueError(
        f"held_count is 4 to {MOST_OBJECTS}, or 0 for none, got {held!r}."
      )
    if not 0 <= self.many_share <= 1:
      raise ValueError(
        f"many_share is a share in [0, 1], got {self.many_share!r}."
      )

  @property
  def many_counts(self) -> tuple[int, ...]:
    """The numbers of objects, from four on, that scenes for training have."""
    counts = range(4, self.max_objects + 1)
    return tuple(n for n in counts if n != self.held_count)

  @property
  def step(self) -> int:
    """The lattice in pixels."""
    return layouts.lattice_step(self.lattice, self.size)


def without_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
  """`options` less the newer ones at their defaults, which change nothing.

  What was made before there were these options was made with the same ones.
  """
  newer = {
    field.name: field.default
    for field in dataclasses.fields(SceneConfig)
    if field.name in ("held_count", "many_share")
  }
  return {
    name: value
    for name, value in options.items()
    if name not in newer or value != newer[name]
  }
