"""Matrix products and convolutions of a compiled program: their FLOPs, and what
the tiles of a matrix unit make of them.

TPU compilers write every product as a convolution. A batch axis is then a
window that meets one real element at each place (`size=2 lhs_dilate=2`), a
second output axis one that slides over padding (`size=3 pad=2_2`): what counts
are the pairs of an output and a tap that fall on an element.
"""

from __future__ import annotations

import dataclasses
import math
import re

from star_jax.compile_check.hlo import Computation, Instruction, Shape

# Rows of an operand are fed to the matrix unit eight at a time.
ROWS = 8
_PASSES = {"highest": 3, "high": 2}


@dataclasses.dataclass(frozen=True)
class Product:
  """One product.

  Attributes:
    flops: 2 per multiply-add, without padding.
    outer, rows, depth, columns: it is `outer` products [rows, depth] x
      [depth, columns].
    passes: of the matrix unit in bfloat16, 6 for float32 at precision highest.
  """

  flops: int
  outer: int
  rows: int
  depth: int
  columns: int
  passes: int

  def padded_flops(self, side: int) -> int:
    """With depth and columns in whole tiles of `side`, times the passes."""
    depth, columns = (_up(x, side) for x in (self.depth, self.columns))
    rows = _up(self.rows, ROWS)
    return 2 * self.outer * rows * depth * columns * self.passes


def product_of(
  instruction: Instruction, computation: Computation
) -> Product | None:
  """What a `dot` or `convolution` does; None for everything else."""
  if instruction.kind not in ("dot", "convolution"):
    return None
  left, right = (computation.defined(x) for x in instruction.operands[:2])
  passes = _passes(instruction, (left, right))
  if instruction.kind == "dot":
    return _dot(instruction, left, right, passes)
  return _convolution(instruction, left, right, passes)


def _dot(i: Instruction, left: Shape, right: Shape, passes: int) -> Product:
  batch, contract = (
    [
      int(x)
      for x in i.attribute(f"lhs_{kind}_dims").strip("{}").split(",")
      if x
    ]
    for kind in ("batch", "contracting")
  )
  outer = math.prod(left.dims[x] for x in batch)
  depth = math.prod(left.dims[x] for x in contract)
  rows = math.prod(left.dims) // (outer * depth)
  columns = math.prod(right.dims) // (outer * depth)
  flops = 2 * outer * rows * depth * columns
  return Product(flops, outer, rows, depth, columns, passes)


def _convolution(
  i: Instruction, left: Shape, right: Shape, passes: int
) -> Product:
  labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels"))
  lhs, rhs, out = labels.groups()
  result = i.results[0]
  window = dict(re.findall(r"(\w+)=([^\s}]+)", i.attribute("window")))
  rows = result.dims[out.index("b")]
  depth = right.dims[rhs.index("i")]
  columns = result.dims[out.index("f")]
  flops, outer = 2 * rows * depth * columns, 1
  for axis in range(len(out) - 2):
    length = left.dims[lhs.index(str(axis))]
    count = result.dims[out.index(str(axis))]
    taps = right.dims[rhs.index(str(axis))]
    hits = _pairs(length, taps, count, axis, window)
    flops *= hits
    if length == 1:
      # Each tap has a place of its own: a second axis of columns.
      columns *= hits
    elif count == 1:
      # All taps add up in one place: a second axis that is summed over.
      depth *= hits
    else:
      # Every tap is a product; the places that it meets are its rows.
      outer *= taps
      rows *= -(-hits // taps)
  return Product(flops, outer, rows, depth, columns, passes)


def _pairs(length: int, taps: int, count: int, axis: int, window) -> int:
  """(Output, tap) that meet an element of the left operand, along one axis."""

  def of(name: str, default: str) -> str:
    return window[name].split("x")[axis] if name in window else default

  stride, left_step = int(of("stride", "1")), int(of("lhs_dilate", "1"))
  right_step = int(of("rhs_dilate", "1"))
  before = int(of("pad", "0_0").split("_")[0])
  total = 0
  for tap in range(taps):
    for output in range(count):
      place = output * stride - before + tap * right_step
      total += place % left_step == 0 and 0 <= place // left_step < length
  return total


def _passes(i: Instruction, operands: tuple[Shape, Shape]) -> int:
  """A float32 number at precision highest is three of bfloat16: six products
  of the nine matter, three where one side is bfloat16 already."""
  words = i.attribute("operand_precision").strip("{}").split(",")
  words = words if len(words) == 2 else ["default"] * 2
  parts = sorted(
    _PASSES.get(word, 1) if shape.dtype == "f32" else 1
    for word, shape in zip(words, operands)
  )
  return {(3, 3): 6, (2, 2): 3}.get(tuple(parts), max(parts))


def _up(x: int, side: int) -> int:
  return -(-x // side) * side
