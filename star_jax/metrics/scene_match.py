"""Which objects a picture of a scene shows: matching of the known parts.

A picture is explained as a smooth background plus sprites. Laying template t
(colour T, coverage a) over the background B at some place changes the squared
error of the picture I, with D = I - B, from |D|^2 to |D - a (T - B)|^2; the
drop is the score of t there:

  gain = 2 <D, a (T - B)> - |a (T - B)|^2

All templates at all places are one matrix product per size. It is done on a
coarse copy of the picture; the best places are refined on finer copies with
the templates that did best; of the refined candidates the set of disjoint
boxes with the largest total gain is the answer. Nothing of the caption is
used.

The work is done on a copy with the area of 64 x 64 pixels, whatever the size
and shape of the picture; of pictures of 128 x 128 pixels or more what is too
small there is then looked for on a copy twice as large.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage

from star_jax.data.layouts import base_side
from star_jax.data.recolor import rgb_to_oklab
from star_jax.metrics.background import fit_background
from star_jax.metrics.scene_places import (
  MIN_GAIN,
  Place,
  best_subset,
  erased,
  jaccard,
)
from star_jax.metrics.sprite_bank import Entry, SpriteBank, Templates

WORK_SIDE = 64  # side of the square whose area matching works at
FINE_SIDE = 128  # of the copy on which smaller objects are looked for
COARSE, MIDDLE = 4, 2  # shrink factors of the coarser copies
MIN_SIDE, MAX_SIDE = 16, 60  # of an object, in working pixels
FINE_MAX_SIDE = 40  # on the finer copy
# Places that are refined: with up to MAX_OBJECTS, and for each object more.
CANDIDATES, MORE_CANDIDATES = 14, 4
KEEP_MIDDLE, KEEP_FINE = 256, 12  # templates that survive each step
MAX_OBJECTS = 4
# Pixels; the last decision is made on softened pictures and templates, since
# models and tokenizers lose the finest detail first.
BLUR = 1.0
# Places that share more than this of their union count as one.
SAME_PLACE = 0.6
# A match that explains this much is not looked at again. Where objects stand
# close a wrong one over two of them can come near: what is surer goes first.
GOOD_MATCH, SURE_MATCH = 0.8, 0.95
CASUAL = (GOOD_MATCH, GOOD_MATCH)
CAREFUL = (GOOD_MATCH, SURE_MATCH, GOOD_MATCH)


@dataclasses.dataclass(frozen=True)
class Detection:
  """One object found. box: (x0, y0, x1, y1) in pixels of the picture.

  explained: share of the squared error around it that it takes away.
  """

  entry: Entry
  box: tuple[float, float, float, float]
  gain: float
  explained: float

  @property
  def centre(self) -> tuple[float, float]:
    x0, y0, x1, y1 = self.box
    return (x0 + x1) / 2, (y0 + y1) / 2

  @property
  def size(self) -> float:
    return self.box[2] - self.box[0]


def _shrink(x: np.ndarray, factor: int) -> np.ndarray:
  """Box average over factor x factor pixels of [H, W, C]."""
  h, w, c = x.shape
  x = x[: h - h % factor, : w - w % factor]
  return x.reshape(h // factor, factor, w // factor, factor, c).mean((1, 3))


class _Level:
  """The picture at one scale, ready for matching."""

  def __init__(self, difference: np.ndarray, background: np.ndarray):
    self.background = background
    dot = (difference * background).sum(-1, keepdims=True)
    self.planes = np.concatenate([difference, dot], -1)
    self.shape = difference.shape[:2]

  def gains(
    self, templates: Templates, side: int, rows: range, columns: range
  ) -> np.ndarray:
    """Gain of every template with its corner at rows x columns.

    Returns:
      float32 [len(rows), len(columns), N].
    """
    part = self.planes[
      rows.start : rows.stop + side - 1, columns.start : columns.stop + side - 1
    ]
    windows = np.lib.stride_tricks.sliding_window_view(
      part, (side, side), axis=(0, 1)
    )  # [rows, columns, 4, side, side]
    flat = windows.transpose(0, 1, 3, 4, 2).reshape(
      len(rows) * len(columns), -1
    )
    match = flat @ templates.filters.astype(np.float32, copy=False).T
    # The background is smooth: its value in the middle stands for the box.
    half = side // 2
    b = self.background[
      rows.start + half : rows.stop + half,
      columns.start + half : columns.stop + half,
    ].reshape(-1, 3)
    cost = (
      templates.energy
      - 2 * (b @ templates.mixed)
      + (b**2).sum(1, keepdims=True) * templates.coverage
    )
    return (2 * match - cost).reshape(len(rows), len(columns), -1)


def _positions(centre: float, reach: int, side: int, room: int) -> range:
  """Corners within `reach` of the one that centres `side` at `centre`."""
  start = round(centre - side / 2)
  low = min(max(start - reach, 0), room - side)
  high = max(min(start + reach, room - side), 0)
  return range(low, max(high, low) + 1)


class _Copy:
  """The picture at one working size.

  Gains on it are in pixels of the copy of WORK_SIDE, so that they compare.
  """

  def __init__(self, image: np.ndarray, work_side: int, max_side: int):
    work, self.unit = _working_copy(image, work_side)
    self.max_side = max_side
    self.weight = (WORK_SIDE / work_side) ** 2
    # Smaller objects of the same contrast gain less.
    self.min_gain = MIN_GAIN * self.weight
    lab = rgb_to_oklab(work)
    self.background = fit_background(lab)
    self.difference = lab - self.background
    self.levels = self.without([])

  def without(self, places: list[Place]) -> dict[int, _Level]:
    """The levels of what is left when these places are explained."""
    left = erased(self.difference, places)
    soft = ndimage.gaussian_filter(left, (BLUR, BLUR, 0))
    return {
      1: _Level(soft, self.background),
      **{
        f: _Level(_shrink(left, f), _shrink(self.background, f))
        for f in (COARSE, MIDDLE)
      },
    }

  def energy(self, factor: int, levels: dict[int, _Level]) -> np.ndarray:
    """The squared difference that is to be explained, [h, w]."""
    planes = levels[factor].planes[..., :3]
    return self.weight * factor**2 * (planes**2).sum(-1)


class SceneMatcher:
  """Finds the objects of a bank in pictures."""

  def __init__(self, bank: SpriteBank, max_objects: int = MAX_OBJECTS):
    """max_objects: at most so many are found; fewer than 4 count as 4."""
    self.bank = bank
    self.max_objects = max(max_objects, MAX_OBJECTS)
    more = self.max_objects - MAX_OBJECTS
    self._candidates = CANDIDATES + MORE_CANDIDATES * more

  def find(self, image: np.ndarray, style: str | None = None):
    """The objects of a picture, strongest first.

    Args:
      image: uint8 [H, W, 3].
      style: only templates of this style; None for all of them.

    Returns:
      A list of at most `max_objects` `Detection`s.

    Raises:
      ValueError: another kind of picture, or a style without sprites.
    """
    work = _Copy(image, WORK_SIDE, MAX_SIDE)
    allowed = None
    if style is not None:
      allowed = np.flatnonzero(self.bank.styles == style)
      if not len(allowed):
        raise ValueError(
          f"The known sprites have the styles"
          f" {', '.join(sorted(set(self.bank.styles)))}, not {style!r}."
        )
    height, width = image.shape[:2]
    # Squares of a few objects are looked at as they have always been: what was
    # measured on them stays comparable.
    careful = height != width or self.max_objects > MAX_OBJECTS
    best = self._find_at(work, allowed, [], careful)
    if base_side(image.shape[:2]) >= FINE_SIDE:
      factor = FINE_SIDE // WORK_SIDE
      work = _Copy(image, FINE_SIDE, FINE_MAX_SIDE)
      known = [p.scaled(factor) for p in best]
      best = self._find_at(work, allowed, known, careful)
    u = work.unit
    return [
      Detection(
        self.bank.entries[p.template],
        (p.x * u, p.y * u, (p.x + p.side) * u, (p.y + p.side) * u),
        float(p.gain),
        float(p.explained),
      )
      for p in sorted(best, key=lambda p: -p.gain)
    ]

  def _find_at(
    self, work: _Copy, allowed, best: list[Place], careful: bool
  ) -> list[Place]:
    """The best places among `best` and those found on one copy."""
    survivors: dict[int, np.ndarray] = {}
    # What stands out less is hidden among the near-misses of what stands out
    # more: look again at what the good matches leave. Small ones of a coarser
    # copy are not trusted.
    good = [p for p in best if p.side > work.max_side]
    for least in CAREFUL if careful else CASUAL:
      levels = work.without([p for p in good if p.explained >= least])
      if work.energy(COARSE, levels).sum() <= work.min_gain:
        break
      if not careful:
        levels = {**work.levels, COARSE: levels[COARSE]}
      found = self._search(work, levels, allowed, survivors)
      good = best = best_subset(
        [*best, *found],
        work.energy(1, work.levels),
        self.max_objects,
        work.min_gain,
      )
    for place in best:
      if id(place) in survivors:
        levels = work.levels
        if careful:
          levels = work.without(
            [p for p in best if p is not place and p.explained >= GOOD_MATCH]
          )
        self._refine(work, levels, 1, place, survivors[id(place)], 1)
        place.explained = self._explained(work, levels, place)
    return best

  def _search(self, work: _Copy, levels, allowed, survivors) -> list[Place]:
    """Places that may hold an object.

    Fills `survivors` with the templates that did best, by id of the place.
    """
    places = []
    for place, chosen in self._coarse(levels[COARSE], work.max_side, allowed):
      survivors[id(place)] = self._refine(
        work, levels, MIDDLE, place, chosen, KEEP_FINE
      )
      place.explained = self._explained(work, levels, place)
      places.append(place)
    return places

  def _coarse(self, level: _Level, max_side: int, allowed):
    """The best places with the templates that do best around each."""
    room = min(level.shape)
    sides = range(MIN_SIDE // COARSE, min(max_side // COARSE, room) + 1)
    maps, found = {}, []
    for side in sides:
      templates = self.bank.at(side)
      if allowed is not None:
        templates = templates.take(allowed)
      rows = range(level.shape[0] - side + 1)
      columns = range(level.shape[1] - side + 1)
      maps[side] = level.gains(templates, side, rows, columns)
      best = maps[side].max(-1)
      found += [
        Place(y * COARSE, x * COARSE, side * COARSE, best[y, x])
        for y, x in zip(*np.nonzero((best > 0) & (best >= _peaks(best))))
      ]
    found.sort(key=lambda p: -p.gain)
    kept: list[Place] = []
    for place in found:
      if len(kept) == self._candidates:
        break
      if all(jaccard(place, other) < SAME_PLACE for other in kept):
        kept.append(place)
    return [(p, self._top_templates(maps, p, allowed)) for p in kept]

  def _top_templates(self, maps, place: Place, allowed) -> np.ndarray:
    """Numbers of the templates that gain most at or next to a place."""
    best = None
    for side in range(place.side // COARSE - 1, place.side // COARSE + 2):
      if side not in maps:
        continue
      y, x = place.y // COARSE, place.x // COARSE
      shift = (place.side // COARSE - side) // 2
      part = maps[side][
        max(y + shift - 1, 0) : y + shift + 2,
        max(x + shift - 1, 0) : x + shift + 2,
      ]
      if part.size:
        top = part.max((0, 1))
        best = top if best is None else np.maximum(best, top)
    keep = min(KEEP_MIDDLE, len(best))
    chosen = np.argpartition(-best, keep - 1)[:keep]
    return chosen if allowed is None else allowed[chosen]

  def _refine(
    self, work: _Copy, levels, factor: int, place: Place, chosen, keep: int
  ) -> np.ndarray:
    """Moves a place to its best spot at a finer scale.

    Returns:
      The `keep` best of the chosen templates there.
    """
    level = levels[factor]
    room = min(level.shape)
    centre_y = (place.y + place.side / 2) / factor
    centre_x = (place.x + place.side / 2) / factor
    middle = round(place.side / factor)
    reach, grow = (1, 2) if factor == 1 else (2, 2)
    best_gain, total = -np.inf, np.full(len(chosen), -np.inf)
    for side in range(middle - grow, middle + grow + 1):
      if not MIN_SIDE // factor <= side <= min(work.max_side // factor, room):
        continue
      if factor == 1:
        templates = self.bank.build(side, chosen, BLUR)
      else:
        templates = self.bank.at(side).take(chosen)
      rows = _positions(centre_y, reach, side, level.shape[0])
      columns = _positions(centre_x, reach, side, level.shape[1])
      gains = level.gains(templates, side, rows, columns)
      total = np.maximum(total, gains.max((0, 1)))
      if gains.max() > best_gain:
        best_gain = gains.max()
        i, j, t = np.unravel_index(gains.argmax(), gains.shape)
        place.y, place.x = rows[i] * factor, columns[j] * factor
        place.side, place.template = side * factor, int(chosen[t])
    # Finer levels have more pixels: gains are kept in full-size pixels.
    place.gain = best_gain * factor**2 * work.weight
    return chosen[np.argsort(-total)[:keep]]

  def _explained(self, work: _Copy, levels, place: Place) -> float:
    """Gain over the squared error inside the box of a place."""
    part = place.cut(work.energy(1, levels))
    return place.gain / max(float(part.sum()), 1e-9)


def _peaks(gains: np.ndarray) -> np.ndarray:
  """The largest value of each 3 x 3 neighbourhood, [rows, columns]."""
  padded = np.pad(gains, 1, constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
  return windows.max((2, 3))


def _working_copy(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
  """The picture with the area of a square, and original pixels per pixel."""
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(
      f"Scenes are uint8 pictures [H, W, 3], got {image.dtype} {image.shape}."
    )
  unit = base_side(image.shape[:2]) / side
  if unit == 1:
    return image, 1.0
  size = (round(image.shape[1] / unit), round(image.shape[0] / unit))
  resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
  return np.asarray(resized), unit
