"""Where the objects of a scene stand, and which relations hold there.

Positions are drawn so that a told relation is beyond doubt: the objects do not
overlap along its axis and are nearly level on the other one. Objects stand in
square boxes; lengths are pixels, `unit` is a 64th of the side of the square
that a canvas stands for, `step` the lattice that boxes keep to: their places
and sides are multiples of it. `rows` are objects a row, from the top: (3, 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Side of an object's box at 64 px, by the number of objects.
SIZES = {
  **{1: (28, 56), 2: (24, 34), 3: (22, 30), 4: (22, 30)},
  **{5: (15, 20), 6: (15, 20), 7: (14, 19), 8: (14, 19), 9: (14, 19)},
}
# A relation holds when the centres are this far apart along its axis and at
# most this far across, in mean box sides.
ALONG, ACROSS = 0.9, 0.35

# Fixed places on squares, (x, y, side) in 64ths, by the objects a row.
_SQUARE = {
  (1,): ((8, 8, 48),),
  (2,): ((0, 16, 32), (32, 16, 32)),
  (1, 1): ((16, 0, 32), (16, 32, 32)),
  (3,): ((0, 24, 16), (24, 24, 16), (48, 24, 16)),
  (1, 1, 1): ((24, 0, 16), (24, 24, 16), (24, 48, 16)),
  (2, 1): ((0, 0, 32), (32, 0, 32), (16, 32, 32)),
  (2, 2): ((0, 0, 32), (32, 0, 32), (0, 32, 32), (32, 32, 32)),
}
# Sides at all other fixed places, in 16ths: few, so that each is met often.
_SIDES = (3, 4, 5, 6, 8, 10, 12)
# Smaller objects than this many pixels, or 16ths, are avoided.
_CLEAR, _CLEAR_16THS = 16, 4
# Rows that are chosen among have sides of at least this share of the best, and
# are at least so full.
_NEARLY, _FULL = 0.85, 0.65

Box = tuple[int, int, int, int]  # x0, y0, x1, y1


def base_side(canvas: tuple[int, int]) -> int:
  """Side of the square that an H x W canvas stands for, pixels.

  Of a rectangle that of equal area, to the nearest 16 pixels: grids of tokens
  meet the area of their square only nearly (`ScaleSchedule.with_aspect`).
  """
  height, width = canvas
  if height == width:
    return height
  return max(round(math.sqrt(height * width) / 16), 1) * 16


def lattice_step(lattice: int, canvas: tuple[int, int]) -> int:
  """`lattice` 64ths of `base_side` in whole pixels, at least one."""
  return max(lattice * base_side(canvas) // 64, 1)


def draw_sizes(
  rng: np.random.Generator, count: int, canvas: tuple[int, int], step: int = 1
) -> list[int]:
  """Sides of `count` boxes on an H x W canvas, pixels."""
  low, high = SIZES[count]
  unit, most = base_side(canvas) / 64, min(canvas) // step
  return [
    min(max(round(v * unit / step), 1), most) * step
    for v in rng.uniform(low, high, count)
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


def even_rows(count: int, num_rows: int) -> tuple[int, ...]:
  """`count` objects in rows of about equal length, longer ones first."""
  short, longer = divmod(count, num_rows)
  return (short + 1,) * longer + (short,) * (num_rows - longer)


def fixed_side(rows: tuple[int, ...], canvas: tuple[int, int]) -> int:
  """Side of the boxes of `fixed_rows` in pixels; 0 when there is no room."""
  if canvas[0] == canvas[1] and rows in _SQUARE:
    return _SQUARE[rows][0][2] * canvas[0] // 64
  sixteenth = lattice_step(4, canvas)
  room = min(canvas[0] // len(rows), canvas[1] // max(rows)) // sixteenth
  return max((s for s in _SIDES if s <= room), default=0) * sixteenth


def fixed_rows(rows: tuple[int, ...], canvas: tuple[int, int]) -> list[Box]:
  """Rows of equal boxes over the whole canvas, shorter rows in the middle.

  Places and sides are multiples of a 16th of `base_side`. There is room, by
  `fixed_side`.
  """
  height, width = canvas
  if height == width and rows in _SQUARE:
    slots = (tuple(v * height // 64 for v in slot) for slot in _SQUARE[rows])
    return [(x, y, x + side, y + side) for x, y, side in slots]
  side, sixteenth = fixed_side(rows, canvas), lattice_step(4, canvas)
  assert side > 0, (rows, canvas)
  height, width = (_down(v, sixteenth) for v in canvas)

  def start(middle: float) -> int:
    return _down(middle - side / 2 + sixteenth / 2, sixteenth)

  boxes = []
  for r, count in enumerate(rows):
    y = start((r + 0.5) * height / len(rows))
    for i in range(count):
      x = start(width / 2 + (i + 0.5 - count / 2) * width / max(rows))
      boxes.append((x, y, x + side, y + side))
  return boxes


def _fullness(rows: tuple[int, ...]) -> float:
  """Share of the places that hold an object."""
  return sum(rows) / (len(rows) * max(rows))


def best_rows(count: int, canvas: tuple[int, int]) -> tuple[int, ...]:
  """The rows in which `count` objects are largest."""

  def key(rows: tuple[int, ...]) -> tuple[float, ...]:
    cell = (canvas[1] / max(rows)) / (canvas[0] / len(rows))
    # Of equally good ones the fullest rows, then the squarest cells.
    square = -round(abs(math.log(cell)), 6)
    return (fixed_side(rows, canvas), _fullness(rows), square, -len(rows))

  return max((even_rows(count, n + 1) for n in range(count)), key=key)


def fixed_list(count: int, canvas: tuple[int, int]) -> list[Box]:
  """The place of each of `count` listed objects."""
  return fixed_rows(best_rows(count, canvas), canvas)


def fixed_row(count: int, canvas: tuple[int, int], vertical: bool) -> list[Box]:
  """Objects side by side in order (or one above the other)."""
  return fixed_rows((1,) * count if vertical else (count,), canvas)


def told_of_rows(rows: Sequence[int]) -> tuple[tuple[int, str, int], ...]:
  """Left and right in every row; of full rows, also what is below what."""
  told, ends = [], np.cumsum(rows)
  for end, count in zip(ends, rows):
    row = range(int(end) - count, int(end))
    told += [(i, "left", j) for i in row for j in row if i < j]
  if len(set(rows)) == 1:
    total, width = sum(rows), rows[0]
    told += [
      (i, "above", j)
      for column in range(width)
      for i in range(column, total, width)
      for j in range(i + width, total, width)
    ]
  return tuple(told)


def clear_side(canvas: tuple[int, int]) -> int:
  """The smallest side of an object in rows that are told, pixels."""
  return min(_CLEAR, _CLEAR_16THS * lattice_step(4, canvas))


def grids(count: int, canvas: tuple[int, int]) -> list[tuple[int, ...]]:
  """The ways to set `count` objects up in two rows or more."""
  least = max(
    clear_side(canvas), _NEARLY * fixed_side(best_rows(count, canvas), canvas)
  )
  ways = (even_rows(count, n) for n in range(2, count))
  return [
    rows
    for rows in ways
    if fixed_side(rows, canvas) >= least and _fullness(rows) >= _FULL
  ]


def row_fits(count: int, canvas: tuple[int, int], vertical: bool) -> bool:
  """Whether there is room for one row (or column) of clear objects.

  The smallest ones need some space between them as well.
  """
  rows = (1,) * count if vertical else (count,)
  if canvas[0] == canvas[1] and rows in _SQUARE:
    return True
  room, side = canvas[0 if vertical else 1], fixed_side(rows, canvas)
  return side >= clear_side(canvas) and (
    side > clear_side(canvas) or count * side < room
  )


def row(
  rng: np.random.Generator,
  sizes: Sequence[int],
  canvas: tuple[int, int],
  vertical: bool,
  step: int = 1,
) -> list[Box]:
  """Objects side by side in order (or one above the other)."""
  unit = base_side(canvas) / 64
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
  """Objects in (row, column) cells of a grid of at least 2 x 2."""
  unit = base_side(canvas) / 64
  gap = 2 * unit
  for room, widest in zip(canvas, _widest(cells, sizes)):
    if sum(widest) > room:
      most = max(_down(room / len(widest) - gap, step), step)
      sizes = [min(size, most) for size in sizes]
  middles = []
  for room, widest in zip(canvas, _widest(cells, sizes)):
    starts = _spread(rng, widest, room - gap, gap)
    middles.append([gap / 2 + a + w / 2 for a, w in zip(starts, widest)])
  x = [middles[1][c[1]] + rng.uniform(-unit, unit) for c in cells]
  y = [middles[0][c[0]] + rng.uniform(-unit, unit) for c in cells]
  return _boxes(x, y, sizes, canvas, step)


def _widest(cells, sizes) -> tuple[list[int], list[int]]:
  """The largest side in every row and in every column of a grid."""
  out = []
  for axis in (0, 1):
    lines = max(2, 1 + max(c[axis] for c in cells))
    out.append(
      [
        max((s for c, s in zip(cells, sizes) if c[axis] == i), default=0)
        for i in range(lines)
      ]
    )
  return out[0], out[1]


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


def any_overlap(boxes: Sequence[Box]) -> bool:
  """Whether any two of the boxes share a pixel."""
  return any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


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
