"""Where the objects of a scene stand, and which relations hold there.

Positions are drawn so that a told relation is beyond doubt: the objects do not
overlap along its axis and are nearly level on the other one. Objects stand in
square boxes; lengths are pixels, `unit` is a 64th of the shorter side, `step`
the lattice that boxes keep to: their places and sides are multiples of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Side of an object's box at 64 px, by the number of objects.
SIZES = {1: (28, 56), 2: (24, 34), 3: (22, 30), 4: (22, 30)}
# A relation holds when the centres are this far apart along its axis and at
# most this far across, in mean box sides.
ALONG, ACROSS = 0.9, 0.35

# Fixed places, (x, y, side) in 64ths of the middle square.
_ONE = ((8, 8, 48),)
_ROW = {
  2: ((0, 16, 32), (32, 16, 32)),
  3: ((0, 24, 16), (24, 24, 16), (48, 24, 16)),
}
_CELL = 32
_LIST = {
  1: _ONE,
  2: _ROW[2],
  3: ((0, 0, 32), (32, 0, 32), (16, 32, 32)),
  4: ((0, 0, 32), (32, 0, 32), (0, 32, 32), (32, 32, 32)),
}

Box = tuple[int, int, int, int]  # x0, y0, x1, y1


def draw_sizes(
  rng: np.random.Generator, count: int, canvas: tuple[int, int], step: int = 1
) -> list[int]:
  """Sides of `count` boxes on an H x W canvas, pixels."""
  low, high = SIZES[count]
  unit = min(canvas) / 64
  return [
    max(round(v * unit / step), 1) * step for v in rng.uniform(low, high, count)
  ]


def _spread(
  rng: np.random.Generator, lengths: Sequence[float], room: float, gap: float
) -> list[float]:
  """Starts of segments put in order into [0, room] with random spaces."""
  slack = room - sum(lengths) - gap * (len(lengths) - 1)
  shares = rng.random(len(lengths) + 1)
  shares = np.cumsum(shares / shares.sum()) * max(slack, 0)
  starts, at = [], 0.0
  for length, before in zip(lengths, shares):
    starts.append(at + before)
    at += length + gap
  return starts


def _boxes(centres_x, centres_y, sizes, canvas, step) -> list[Box]:
  height, width = canvas
  boxes = []
  for x, y, size in zip(centres_x, centres_y, sizes):
    # Down to the lattice: sides are multiples of the step, so that boxes that
    # did not overlap still do not.
    x0 = _down(np.clip(round(x - size / 2), 0, width - size), step)
    y0 = _down(np.clip(round(y - size / 2), 0, height - size), step)
    boxes.append((x0, y0, x0 + size, y0 + size))
  return boxes


def _down(length: float, step: int) -> int:
  """The next multiple of `step` at or below."""
  return int(length // step) * step


def _fixed(slots, canvas: tuple[int, int]) -> list[Box]:
  height, width = canvas
  short = min(canvas)
  left, top = (width - short) // 2, (height - short) // 2
  boxes = []
  for x, y, side in slots:
    x, y, side = (v * short // 64 for v in (x, y, side))
    boxes.append((left + x, top + y, left + x + side, top + y + side))
  return boxes


def fixed_list(count: int, canvas: tuple[int, int]) -> list[Box]:
  """The place of each of `count` listed objects."""
  return _fixed(_LIST[count], canvas)


def fixed_row(count: int, canvas: tuple[int, int], vertical: bool) -> list[Box]:
  """Two or three objects side by side in order (or one above the other)."""
  slots = _ROW[count]
  if vertical:
    slots = [(y, x, side) for x, y, side in slots]
  return _fixed(slots, canvas)


def fixed_grid(
  cells: Sequence[tuple[int, int]], canvas: tuple[int, int]
) -> list[Box]:
  """Objects in (row, column) cells of a 2 x 2 grid."""
  return _fixed([(c * _CELL, r * _CELL, _CELL) for r, c in cells], canvas)


def row(
  rng: np.random.Generator,
  sizes: Sequence[int],
  canvas: tuple[int, int],
  vertical: bool,
  step: int = 1,
) -> list[Box]:
  """Objects side by side in order (or one above the other)."""
  unit = min(canvas) / 64
  room, across = canvas if vertical else canvas[::-1]
  # Drawings fill their boxes; on a coarse lattice a gap would cost a step.
  gap = 2 * unit if step < 16 * unit else 0
  fits = (room - gap * len(sizes)) / sum(sizes)
  sizes = [max(_down(s * min(1, fits), step), step) for s in sizes]
  starts = _spread(rng, sizes, room - gap, gap)
  along = [gap / 2 + a + s / 2 for a, s in zip(starts, sizes)]
  tallest = max(sizes)
  line = rng.uniform(tallest / 2, across - tallest / 2)
  reach = 0.15 * min(sizes)
  level = [line + rng.uniform(-reach, reach) for _ in sizes]
  return _boxes(
    *((level, along) if vertical else (along, level)), sizes, canvas, step
  )


def grid(
  rng: np.random.Generator,
  cells: Sequence[tuple[int, int]],
  sizes: Sequence[int],
  canvas: tuple[int, int],
  step: int = 1,
) -> list[Box]:
  """Objects in (row, column) cells of a 2 x 2 grid."""
  unit = min(canvas) / 64
  gap = 2 * unit
  middles = []
  for axis, room in ((0, canvas[0]), (1, canvas[1])):
    widest = [
      max((s for c, s in zip(cells, sizes) if c[axis] == i), default=0)
      for i in (0, 1)
    ]
    starts = _spread(rng, widest, room - gap, gap)
    middles.append([gap / 2 + a + w / 2 for a, w in zip(starts, widest)])
  x = [middles[1][c[1]] + rng.uniform(-unit, unit) for c in cells]
  y = [middles[0][c[0]] + rng.uniform(-unit, unit) for c in cells]
  return _boxes(x, y, sizes, canvas, step)


def scatter(
  rng: np.random.Generator,
  sizes: Sequence[int],
  canvas: tuple[int, int],
  step: int = 1,
) -> list[Box] | None:
  """Anywhere, without overlap; None if no place was found."""
  height, width = canvas
  boxes: list[Box] = []
  for size in sizes:
    for _ in range(30):
      x0 = int(rng.integers(0, (width - size) // step + 1)) * step
      y0 = int(rng.integers(0, (height - size) // step + 1)) * step
      box = (x0, y0, x0 + size, y0 + size)
      if not any(overlap(box, other) for other in boxes):
        boxes.append(box)
        break
    else:
      return None
  return boxes


def overlap(a: Box, b: Box) -> bool:
  """Whether two boxes share a pixel."""
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def relation_between(a: Box, b: Box) -> str | None:
  """How a stands to b: "left", "right", "above", "below", or None.

  None when it would be open to doubt (a diagonal).
  """
  side = (a[2] - a[0] + b[2] - b[0]) / 2
  dx = (a[0] + a[2] - b[0] - b[2]) / 2
  dy = (a[1] + a[3] - b[1] - b[3]) / 2
  if abs(dx) >= ALONG * side and abs(dy) <= ACROSS * side:
    return "left" if dx < 0 else "right"
  if abs(dy) >= ALONG * side and abs(dx) <= ACROSS * side:
    return "above" if dy < 0 else "below"
  return None
