import numpy as np
import pytest

from star_jax.data import layouts

CANVASES = [(64, 64), (64, 160), (200, 80), (256, 256)]
SHAPES = [(48, 84), (92, 44), (56, 72), (96, 172), (128, 128), (160, 104)]


def box(x, y, side=20):
  return (x, y, x + side, y + side)


@pytest.mark.parametrize(
  "other, relation",
  [
    (box(60, 40), "left"),
    (box(20, 42), "right"),
    (box(40, 62), "above"),
    (box(38, 20), "below"),
    (box(60, 60), None),
    (box(60, 50), None),
    (box(52, 40), None),
  ],
)
def test_relation_between(other, relation):
  assert layouts.relation_between(box(40, 40), other) == relation


def check_boxes(boxes, canvas):
  for i, a in enumerate(boxes):
    assert a[0] >= 0 and a[1] >= 0
    assert a[2] <= canvas[1] and a[3] <= canvas[0]
    assert a[2] - a[0] == a[3] - a[1]
    assert not any(layouts.overlap(a, b) for b in boxes[i + 1 :])


def check_lattice(boxes, step):
  assert not np.any(np.asarray(boxes) % step)


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_row(canvas, vertical, count):
  for seed in range(100):
    rng = np.random.default_rng(seed)
    sizes = layouts.draw_sizes(rng, count, canvas)
    boxes = layouts.row(rng, sizes, canvas, vertical)
    check_boxes(boxes, canvas)
    for i in range(count - 1):
      assert layouts.relation_between(boxes[i], boxes[i + 1]) == (
        "above" if vertical else "left"
      )


@pytest.mark.parametrize("canvas", CANVASES)
def test_grid_has_no_overlap(canvas):
  cells = [(0, 0), (0, 1), (1, 0), (1, 1)]
  for seed in range(100):
    rng = np.random.default_rng(seed)
    sizes = layouts.draw_sizes(rng, 4, canvas)
    boxes = layouts.grid(rng, cells, sizes, canvas)
    check_boxes(boxes, canvas)
    assert boxes[0][0] < boxes[1][0] and boxes[0][1] < boxes[2][1]


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("step", [4, 8])
def test_boxes_on_a_lattice_stay_apart(canvas, step):
  cells = [(0, 0), (0, 1), (1, 1)]
  for seed in range(100):
    rng = np.random.default_rng(seed)
    sizes = layouts.draw_sizes(rng, 3, canvas, step)
    for boxes in (
      layouts.row(rng, sizes, canvas, seed % 2 == 0, step),
      layouts.grid(rng, cells, sizes, canvas, step),
      layouts.scatter(rng, sizes, canvas, step) or [],
    ):
      check_boxes(boxes, canvas)
      check_lattice(boxes, step)


@pytest.mark.parametrize(
  "canvas, side",
  [
    ((64, 64), 64),
    ((100, 100), 100),
    ((48, 84), 64),
    ((92, 44), 64),
    ((128, 92), 112),
    ((96, 172), 128),
    ((508, 508), 508),
    ((480, 544), 512),
  ],
)
def test_side_of_the_square_that_a_canvas_stands_for(canvas, side):
  assert layouts.base_side(canvas) == side
  assert layouts.lattice_step(4, canvas) == side * 4 // 64


@pytest.mark.parametrize("canvas", CANVASES + SHAPES)
def test_fixed_places(canvas):
  for count in range(1, 10):
    boxes = layouts.fixed_list(count, canvas)
    assert len(boxes) == count and len({b[2] - b[0] for b in boxes}) == 1
    check_boxes(boxes, canvas)
    check_lattice(boxes, layouts.lattice_step(4, canvas))
  for count in (2, 3, 4, 5):
    for vertical in (False, True):
      if not layouts.row_fits(count, canvas, vertical):
        continue
      boxes = layouts.fixed_row(count, canvas, vertical)
      check_boxes(boxes, canvas)
      check_lattice(boxes, layouts.lattice_step(4, canvas))
      ahead = "above" if vertical else "left"
      for i in range(count):
        for j in range(i + 1, count):
          assert layouts.relation_between(boxes[i], boxes[j]) == ahead


@pytest.mark.parametrize("canvas", SHAPES)
def test_rows_tell_what_is_true_of_them(canvas):
  for count in range(4, 10):
    for rows in layouts.grids(count, canvas):
      boxes = layouts.fixed_rows(rows, canvas)
      assert sum(rows) == count and len(rows) > 1
      check_boxes(boxes, canvas)
      for i, relation, j in layouts.told_of_rows(rows):
        assert layouts.relation_between(boxes[i], boxes[j]) == relation


def test_what_rows_tell():
  assert layouts.told_of_rows((2, 1)) == ((0, "left", 1),)
  assert set(layouts.told_of_rows((2, 2, 2))) == {
    *((0, "left", 1), (2, "left", 3), (4, "left", 5)),
    *((0, "above", 2), (0, "above", 4), (2, "above", 4)),
    *((1, "above", 3), (1, "above", 5), (3, "above", 5)),
  }


@pytest.mark.parametrize(
  "canvas, count, rows",
  [
    ((64, 64), 3, (2, 1)),
    ((48, 84), 2, (2,)),
    ((84, 48), 2, (1, 1)),
    ((44, 92), 4, (4,)),
    ((92, 44), 4, (1, 1, 1, 1)),
    ((128, 128), 5, (3, 2)),
    ((128, 128), 9, (3, 3, 3)),
    ((88, 184), 8, (4, 4)),
  ],
)
def test_the_rows_in_which_objects_are_largest(canvas, count, rows):
  assert layouts.best_rows(count, canvas) == rows


def test_three_do_not_fit_above_each_other_in_a_low_picture():
  assert not layouts.row_fits(3, (44, 92), vertical=True)
  assert layouts.row_fits(3, (44, 92), vertical=False)
  assert layouts.row_fits(3, (64, 64), vertical=True)


@pytest.mark.parametrize("canvas", SHAPES)
def test_a_grid_shrinks_to_its_room(canvas):
  cells = [(r, c) for r in range(2) for c in range(3)]
  for seed in range(50):
    rng = np.random.default_rng(seed)
    sizes = layouts.draw_sizes(rng, 2, canvas, 2) * 3
    check_boxes(layouts.grid(rng, cells, sizes, canvas, 2), canvas)


def test_scatter_finds_room_or_says_so():
  rng = np.random.default_rng(0)
  for _ in range(100):
    boxes = layouts.scatter(rng, [28, 28, 20], (64, 64))
    if boxes is not None:
      check_boxes(boxes, (64, 64))
  assert layouts.scatter(rng, [40, 40], (64, 64)) is None
