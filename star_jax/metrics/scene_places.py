"""Squares in a picture that may hold an object, and the best set of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# A detection explains at least this share of the error inside its outline ...
MIN_EXPLAINED = 0.3
# ... and has at least this gain (squared OKLab distance times pixels of a copy
# of 64 x 64 pixels).
MIN_GAIN = 1.5
MAX_OVERLAP = 0.5  # of the smaller box, between two detections


@dataclasses.dataclass
class Place:
  """A square in working pixels with its best template there."""

  y: int
  x: int
  side: int
  gain: float
  template: int = -1
  explained: float = 0.0

  def scaled(self, factor: int) -> Place:
    """The same on a picture `factor` times as large."""
    return dataclasses.replace(
      self, y=self.y * factor, x=self.x * factor, side=self.side * factor
    )

  def cut(self, plane: np.ndarray) -> np.ndarray:
    """The part [side, side, ...] of [H, W, ...] that it covers."""
    return plane[self.y : self.y + self.side, self.x : self.x + self.side]


def shared_area(a: Place, b: Place) -> int:
  """Pixels in both squares."""
  w = min(a.x + a.side, b.x + b.side) - max(a.x, b.x)
  h = min(a.y + a.side, b.y + b.side) - max(a.y, b.y)
  return max(w, 0) * max(h, 0)


def jaccard(a: Place, b: Place) -> float:
  """Shared area over the area of the union."""
  shared = shared_area(a, b)
  return shared / (a.side**2 + b.side**2 - shared)


def best_subset(
  places: Sequence[Place],
  energy: np.ndarray,
  most: int,
  min_gain: float = MIN_GAIN,
) -> list[Place]:
  """Nearly disjoint places with the largest total gain, at most `most`.

  Those with a gain under `min_gain` are left out.
  What two boxes share is explained once: the squared difference there
  (`energy`, [H, W]) is taken off the total. Branch and bound, exact: what a
  place adds only shrinks as others are taken.
  """
  places = sorted(
    (p for p in places if p.gain >= min_gain and p.explained >= MIN_EXPLAINED),
    key=lambda p: -p.gain,
  )
  shared = {
    (i, j): _shared_energy(a, b, energy)
    for i, a in enumerate(places)
    for j, b in enumerate(places[:i])
    if shared_area(a, b) <= MAX_OVERLAP * min(a.side, b.side) ** 2
  }
  best: list[int] = []
  best_gain = 0.0

  def extend(chosen: list[int], total: float, rest: list[tuple[float, int]]):
    """`rest`: what each further place adds to `chosen`."""
    nonlocal best, best_gain
    if total > best_gain:
      best, best_gain = chosen, total
    for k, (added, i) in enumerate(rest):
      room = most - len(chosen)
      bound = sum(sorted((a for a, _ in rest[k:]), reverse=True)[:room])
      if total + bound <= best_gain:
        return
      further = [
        (a - shared[j, i], j)
        for a, j in rest[k + 1 :]
        if a > shared.get((j, i), np.inf)
      ]
      extend([*chosen, i], total + added, further)

  extend([], 0.0, [(float(p.gain), i) for i, p in enumerate(places)])
  return [places[i] for i in best]


def _shared_energy(a: Place, b: Place, energy: np.ndarray) -> float:
  """Squared difference where two boxes overlap."""
  part = energy[
    max(a.y, b.y) : max(min(a.y + a.side, b.y + b.side), 0),
    max(a.x, b.x) : max(min(a.x + a.side, b.x + b.side), 0),
  ]
  return float(part.sum())


def erased(difference: np.ndarray, places: Sequence[Place]) -> np.ndarray:
  """The difference with nothing left in the boxes of the places."""
  out = difference.copy()
  for place in places:
    place.cut(out)[...] = 0
  return out
