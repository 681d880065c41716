"""Which layout a scene gets: rows, grids, corners, lists, and what is told.

Every function draws from `rng` and returns None where a draw found no room;
`SceneGenerator` then draws again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from star_jax.data import layouts
from star_jax.data.scene_config import SceneConfig

# Of scenes of four or five objects that may stand in one row.
_ROW_SHARE = 0.3
# Of scenes in rows, those whose caption is a list.
_LIST_SHARE = 0.2


class Placed(NamedTuple):
  """layout: what `write_caption` calls it. boxes: one for each object. told:
  (i, relation, j) that the caption tells."""

  layout: str
  boxes: list[layouts.Box]
  told: tuple[tuple[int, str, int], ...]


def place(rng, count: int, config: SceneConfig, tidy: bool) -> Placed | None:
  """Places for `count` different objects, all relations told being true."""
  canvas, step = config.size, config.step
  sizes = layouts.draw_sizes(rng, count, canvas, step)
  way = rng.random()
  vertical = bool(rng.random() < 0.5)
  if not layouts.row_fits(count, canvas, vertical):
    vertical = canvas[0] > canvas[1]
  corner = count == 3 and layouts.fixed_side(
    (2, 2), canvas
  ) >= layouts.clear_side(canvas)
  if count == 1 or (way < 0.25 and count < 4):
    placed = _list(rng, sizes, config, tidy)
  elif count == 2 or (count == 3 and (way < 0.5 or not corner)):
    placed = _row(rng, sizes, config, tidy, vertical)
  elif count == 3:
    placed = _corner(rng, sizes, config, tidy, vertical)
  elif (
    config.max_objects > 4
    and count < 6
    and way >= 1 - _ROW_SHARE
    and layouts.row_fits(count, canvas, vertical)
  ):
    placed = _row(rng, sizes, config, tidy, vertical)
  else:
    placed = _grid(rng, sizes, config, tidy, listed=way < _LIST_SHARE)
  if placed is None or not _true(placed):
    return None
  return placed


def place_counted(
  rng, total: int, same: int, config: SceneConfig, tidy: bool
) -> list[layouts.Box] | None:
  """Places for a listing of `same` equal objects and `total - same` others."""
  canvas, step = config.size, config.step
  if tidy:
    return layouts.fixed_list(total, canvas)
  sizes = layouts.draw_sizes(rng, total, canvas, step)
  # Equal things are drawn about equally large.
  sizes[1:same] = [sizes[0]] * (same - 1)
  sizes[same:] = sizes[same : same + 1] * (total - same)
  return _anywhere(rng, sizes, config)


def _true(placed: Placed) -> bool:
  return all(
    layouts.relation_between(placed.boxes[i], placed.boxes[j]) == relation
    for i, relation, j in placed.told
  )


def _anywhere(rng, sizes, config: SceneConfig) -> list[layouts.Box] | None:
  """Scattered; many objects, which would find no room so, in loose rows."""
  if len(sizes) <= 4:
    return layouts.scatter(rng, sizes, config.size, config.step)
  rows = layouts.best_rows(len(sizes), config.size)
  return _loose_rows(rng, rows, sizes, config)


def _loose_rows(rng, rows, sizes, config) -> list[layouts.Box] | None:
  """Rows of boxes with random spaces, in common columns."""
  cells = []
  for r, count in enumerate(rows):
    columns = range(count)
    if count < max(rows):
      columns = np.sort(rng.permutation(max(rows))[:count])
    cells += [(r, int(column)) for column in columns]
  boxes = layouts.grid(rng, cells, sizes, config.size, config.step)
  return None if len(sizes) > 4 and layouts.any_overlap(boxes) else boxes


def _list(rng, sizes, config, tidy) -> Placed | None:
  if tidy:
    boxes = layouts.fixed_list(len(sizes), config.size)
  else:
    boxes = _anywhere(rng, sizes, config)
  return boxes and Placed("list", boxes, ())


def _row(rng, sizes, config, tidy, vertical) -> Placed:
  count, canvas = len(sizes), config.size
  if tidy:
    boxes = layouts.fixed_row(count, canvas, vertical)
  else:
    boxes = layouts.row(rng, sizes, canvas, vertical, config.step)
  ahead = "above" if vertical else "left"
  told = tuple((i, ahead, j) for i in range(count) for j in range(i + 1, count))
  return Placed("row", boxes, told)


def _corner(rng, sizes, config, tidy, vertical) -> Placed | None:
  """Three at a corner: 1 beside 0 in the row (or column), 2 off one of them."""
  first = [(0, 0), (0, 1)] if rng.random() < 0.5 else [(0, 1), (0, 0)]
  anchor = int(rng.integers(2))
  third = (1, first[anchor][1])
  cells = [*first, third]
  if rng.random() < 0.5:  # upside down
    cells = [(1 - r, c) for r, c in cells]
  if vertical:
    cells = [(c, r) for r, c in cells]
  if tidy:
    square = layouts.fixed_rows((2, 2), config.size)
    boxes = [square[2 * r + c] for r, c in cells]
  else:
    boxes = layouts.grid(rng, cells, sizes, config.size, config.step)
  told = tuple(
    (i, layouts.relation_between(boxes[i], boxes[j]), j)
    for i, j in ((0, 1), (2, anchor))
  )
  if None in (told[0][1], told[1][1]):
    return None
  return Placed("corner", boxes, told)


def _grid(rng, sizes, config, tidy, listed) -> Placed | None:
  """Four objects or more in rows, told or as a mere list."""
  count, canvas = len(sizes), config.size
  ways = layouts.grids(count, canvas)
  if listed or not ways:
    rows = layouts.best_rows(count, canvas)
  else:
    rows = ways[rng.integers(len(ways)) if len(ways) > 1 else 0]
  if tidy:
    boxes = layouts.fixed_rows(rows, canvas)
  else:
    boxes = _loose_rows(rng, rows, sizes, config)
  if boxes is None:
    return None
  if listed or not ways:
    return Placed("list", boxes, ())
  return Placed("grid", boxes, layouts.told_of_rows(rows))
