"""The scales of next-scale prediction: the one static fact of a model.

A `ScaleSchedule` lists the K grids that are predicted one after the other.
Everything static that follows from them (token count, offsets, level ids,
coordinates, guidance ramp) is computed here, once, with numpy; no other file
derives it again. Squares are the common case; rectangles (aspect ratios) and
`1 x w` strips (audio) are legal.

K: number of scales, k: scale index, L: tokens of all scales, h w: grid.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

# Sides of the square maps, VAR arXiv 2404.02905 (256, 512) and STAR
# arXiv 2406.10797 (1024).
OFFICIAL_PATCH_NUMS = {
  "256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
  "512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
  "1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
ROPE_COORDS = ("checkpoint", "paper", "longer_side")
# Width : height of pictures.
ASPECTS = (
  "1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "2:1", "1:2",
)  # fmt: skip
# In place of a ratio: the shape of the schedule at hand.
OWN_ASPECT = "own"
# How much more a wrong area counts than a wrong ratio, both as logarithms.
_AREA_WEIGHT = 2.0


@dataclasses.dataclass(frozen=True)
class ScaleSchedule:
  """K token grids `(h_k, w_k)`, coarse to fine. Frozen and hashable."""

  grids: tuple[tuple[int, int], ...]

  def __post_init__(self):
    if not self.grids:
      raise ValueError("A scale schedule needs at least one grid, got none.")
    for grid in self.grids:
      if len(grid) != 2 or min(grid) < 1:
        raise ValueError(
          f"Every grid is a pair (height, width) of positive integers, got"
          f" {grid!r} in {self.grids!r}."
        )
    last_h, last_w = self.grids[-1]
    for h, w in self.grids:
      if h > last_h or w > last_w:
        raise ValueError(
          f"No grid may be larger than the last one {self.grids[-1]}, got"
          f" {(h, w)}."
        )

  @classmethod
  def from_patch_nums(
    cls, patch_nums: Sequence[int | Sequence[int]]
  ) -> ScaleSchedule:
    """From sides of squares and / or `(h, w)` pairs, as configs write it."""
    grids = []
    for side in patch_nums:
      if isinstance(side, (int, np.integer)):
        grids.append((int(side), int(side)))
      else:
        grids.append(tuple(int(s) for s in side))
    return cls(tuple(grids))

  @classmethod
  def parse(cls, value) -> ScaleSchedule:
    """A schedule from whatever a config says: a name, sides or grids."""
    if isinstance(value, cls):
      return value
    if isinstance(value, str):
      return cls.from_name(value)
    return cls.from_patch_nums(value)

  @classmethod
  def from_name(cls, name: str) -> ScaleSchedule:
    """One of the official schedules: '256', '512' or '1024'."""
    if str(name) not in OFFICIAL_PATCH_NUMS:
      raise ValueError(
        f"Unknown schedule {name!r}; the official ones are"
        f" {', '.join(OFFICIAL_PATCH_NUMS)}."
      )
    return cls.from_patch_nums(OFFICIAL_PATCH_NUMS[str(name)])

  @classmethod
  def from_text(cls, text: str) -> ScaleSchedule:
    """As a command line says it: an official name, or sides with commas, with
    HxW for a rectangle: "512", "1,2,4,8", "1,2x3,4x6".

    Raises:
      ValueError: anything else.
    """
    if text in OFFICIAL_PATCH_NUMS:
      return cls.from_name(text)
    try:
      return cls(
        tuple(
          (int(h), int(w if cross else h))
          for h, cross, w in (side.partition("x") for side in text.split(","))
        )
      )
    except ValueError as error:
      if not str(error).startswith("invalid literal"):
        raise
      raise ValueError(
        f"A schedule is one of {', '.join(OFFICIAL_PATCH_NUMS)} or sides with"
        f" commas, as in 1,2,4,8 or 1,2x3,4x6; got {text!r}."
      ) from error

  def describe(self) -> str:
    """The sides: "1, 2, 4x8"."""
    return ", ".join(str(h) if h == w else f"{h}x{w}" for h, w in self.grids)

  def with_aspect(self, aspect: str) -> ScaleSchedule:
    """The same scales for pictures of another shape.

    Every grid has about the area of the square one that it stands for, so that
    the number of scales and what a level means stay the same.

    Args:
      aspect: width : height, one of ASPECTS; or OWN_ASPECT, which changes
        nothing.

    Raises:
      ValueError: another ratio, with the nearest one of the list; or this
        schedule is not square.
    """
    check_aspect(aspect)
    if aspect == OWN_ASPECT:
      return self
    if any(h != w for h, w in self.grids):
      raise ValueError(
        f"An aspect ratio starts from square grids, got {self.grids}."
      )
    ratio = _ratio(aspect)
    return ScaleSchedule(tuple(_grid_of(h, ratio) for h, _ in self.grids))

  @property
  def num_scales(self) -> int:
    """K."""
    return len(self.grids)

  @property
  def final_grid(self) -> tuple[int, int]:
    """(h, w) of the last map, which is the latent grid of the tokenizer."""
    return self.grids[-1]

  @functools.cached_property
  def lengths(self) -> tuple[int, ...]:
    """Tokens of every scale, h_k * w_k."""
    return tuple(h * w for h, w in self.grids)

  @functools.cached_property
  def num_tokens(self) -> int:
    """L, the tokens of all scales."""
    return sum(self.lengths)

  @functools.cached_property
  def begin_ends(self) -> tuple[tuple[int, int], ...]:
    """K pairs of offsets into the concatenation of all scales."""
    ends = np.cumsum(self.lengths)
    return tuple((int(end) - n, int(end)) for end, n in zip(ends, self.lengths))

  @functools.cached_property
  def level_ids(self) -> np.ndarray:
    """int32 [L]: which scale each token belongs to."""
    return np.repeat(np.arange(self.num_scales, dtype=np.int32), self.lengths)

  def scale_mask(self) -> np.ndarray:
    """bool [L, L], True where a query (row) may see a key: own and coarser."""
    lvl = self.level_ids
    return lvl[:, None] >= lvl[None, :]

  def cfg_ratio(self, k: int) -> float:
    """k / (K - 1), the linear guidance ramp (0 for a single scale)."""
    return k / (self.num_scales - 1) if self.num_scales > 1 else 0.0

  def coordinates(
    self, k: int, rope_norm: float, rope_coords: str = "checkpoint"
  ) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinate of every token of scale k, row by row.

    Args:
      k: scale index.
      rope_norm: common range that each axis is stretched to; -1 leaves the
        integer coordinates as they are (plain RoPE).
      rope_coords: "checkpoint" is the form in the official weights: 0-based,
        divided by the largest coordinate. "paper" is i / h_k * rope_norm,
        1-based (STAR section 3.3, with rope_norm the side of the last map).
        "longer_side" is the first with both axes divided by the largest
        coordinate of the longer one: equal angles for equal distances in the
        picture. On squares these two are the same.

    Returns:
      Two float64 arrays [h_k * w_k]: y (row) and x (column). A side of length
      1 stays at 0 but in the "paper" form.
    """
    if rope_coords not in ROPE_COORDS:
      raise ValueError(
        f"rope_coords is one of {ROPE_COORDS}, got {rope_coords!r}."
      )
    axes, longer = [], max(self.grids[k])
    for n in self.grids[k]:
      i = np.arange(n, dtype=np.float64)
      if rope_norm == -1:
        axis = i
      elif rope_coords == "paper":
        axis = (i + 1) / n * rope_norm
      else:
        side = longer if rope_coords == "longer_side" else n
        axis = i / max(side - 1, 1) * rope_norm
      axes.append(axis)
    y, x = np.meshgrid(*axes, indexing="ij")
    return y.reshape(-1), x.reshape(-1)


def check_aspect(aspect: str) -> None:
  """ValueError unless it is OWN_ASPECT or one of ASPECTS; names the nearest."""
  if aspect in (OWN_ASPECT, *ASPECTS):
    return
  near = nearest_aspect(aspect)
  raise ValueError(
    f"An aspect ratio is one of {', '.join(ASPECTS)}, got {aspect!r}"
    + (f"; the nearest is {near}." if near else ".")
  )


def rows_by_side(old: ScaleSchedule, new: ScaleSchedule) -> np.ndarray:
  """What each scale of `new` takes over from those of `old`, by size.

  A scale takes from the old one with as many tokens, the second of two such
  from the second; a size between two old ones from both, in proportion to its
  logarithm; one beyond them from the end.

  Returns:
    float64 [K of new, K of old], rows sum to 1.
  """
  areas = np.asarray(old.lengths)
  rows = np.zeros((new.num_scales, old.num_scales))
  for k, area in enumerate(new.lengths):
    same = np.flatnonzero(areas == area)
    if len(same):
      rank = new.lengths[:k].count(area)
      rows[k, same[min(rank, len(same) - 1)]] = 1.0
      continue
    smaller, larger = areas[areas < area], areas[areas > area]
    share = 1.0
    if len(smaller) and len(larger):
      low, high = np.log(smaller.max()), np.log(larger.min())
      share = (high - np.log(area)) / (high - low)
    if len(smaller):
      last = np.flatnonzero(areas == smaller.max())[-1]
      rows[k, last] = share
    if len(larger):
      first = np.flatnonzero(areas == larger.min())[0]
      rows[k, first] = 1 - share if len(smaller) else 1.0
  return rows


def nearest_aspect(aspect: str) -> str | None:
  """The supported ratio that is nearest, None if `aspect` is no ratio."""
  try:
    wanted = math.log(_ratio(aspect))
  except (ValueError, ZeroDivisionError):
    return None
  return min(ASPECTS, key=lambda a: abs(math.log(_ratio(a)) - wanted))


def _ratio(aspect: str) -> float:
  """Width over height of "16:9"."""
  width, height = (float(side) for side in str(aspect).split(":"))
  if width <= 0 or height <= 0:
    raise ValueError(f"{aspect!r} is no ratio of two sides.")
  return width / height


def _grid_of(side: int, ratio: float) -> tuple[int, int]:
  """(h, w) for a square grid of `side`: nearest in area, then in shape."""
  reach = range(1, 2 * side + 1)

  def misfit(grid: tuple[int, int]) -> tuple[float, int]:
    h, w = grid
    area = abs(math.log(h * w / side**2))
    shape = abs(math.log(w / h / ratio))
    # Of equal ones the squarer, so that 2:1 and 1:2 mirror each other.
    return round(_AREA_WEIGHT * area + shape, 9), abs(h - w)

  return min(((h, w) for h in reach for w in reach), key=misfit)
