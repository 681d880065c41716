import numpy as np
import pytest

from star_jax.data import layouts

CANVASES = [(64, 64), (64, 160), (200, 80), (256, 256)]


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


@pytest.mark.parametrize("canvas", CANVASES)
def test_fixed_places(canvas):
  for count in (1, 2, 3, 4):
    check_boxes(layouts.fixed_list(count, canvas), canvas)
  for count, vertical in ((2, False), (2, True), (3, False), (3, True)):
    boxes = layouts.fixed_row(count, canvas, vertical)
    check_boxes(boxes, canvas)
    ahead = "above" if vertical else "left"
    for i in range(count):
      for j in range(i + 1, count):
        assert layouts.relation_between(boxes[i], boxes[j]) == ahead
  boxes = layouts.fixed_grid([(0, 0), (0, 1), (1, 0)], canvas)
  check_boxes(boxes, canvas)
  assert layouts.relation_between(boxes[0], boxes[1]) == "left"
  assert layouts.relation_between(boxes[2], boxes[0]) == "below"


def test_scatter_finds_room_or_says_so():
  rng = np.random.default_rng(0)
  for _ in range(100):
    boxes = layouts.scatter(rng, [28, 28, 20], (64, 64))
    if boxes is not None:
      check_boxes(boxes, (64, 64))
  assert layouts.scatter(rng, [40, 40], (64, 64)) is None
