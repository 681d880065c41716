"""What the scene generator may draw, checked."""

from __future__ import annotations

import dataclasses

from star_jax.data.backgrounds import check_background
from star_jax.data.concepts import SCENE_STYLES

SPLITS = ("train", "seen", "heldout")


@dataclasses.dataclass(frozen=True)
class SceneConfig:
  """What scenes are drawn.

  size: (H, W) in pixels. seed: another seed, other scenes. split: see above.
  max_objects: at most this many (1 to 4; 4 only matters for "heldout").
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

  def __post_init__(self):
    if self.split not in SPLITS:
      raise ValueError(
        f"A split of the scenes is one of {', '.join(SPLITS)}, got"
        f" {self.split!r}."
      )
    if not 1 <= self.max_objects <= 4:
      raise ValueError(
        f"max_objects is 1, 2, 3 or 4, got {self.max_objects!r}."
      )
    if min(self.size) < 16:
      raise ValueError(
        f"Scenes are at least 16 pixels high and wide, got {self.size!r}."
      )
    if not 1 <= self.lattice <= 16:
      raise ValueError(
        f"lattice is 1 to 16 64ths of the side, got {self.lattice!r}."
      )
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

  @property
  def step(self) -> int:
    """The lattice in pixels."""
    return max(self.lattice * min(self.size) // 64, 1)
