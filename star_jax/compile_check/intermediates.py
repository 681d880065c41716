"""The arrays of a compiled program, and which of them belong to attention.

Read from the optimised HLO text: every instruction that writes an array of its
own, outside of fusions (what is inside of one never reaches memory). Whose it
is, is said by its `op_name`, which jax writes from the names of the modules and
the compilers keep.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from star_jax.model.config import StarConfig

# Names of the attention modules in `model.blocks`, forward and backward.
_ATTENTION = re.compile(r"\b(cross_)?attn\b")
# These hand on what another instruction has written.
_NO_ARRAY = frozenset((
  "parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
  "call", "optimization-barrier",
))  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$"
)
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_TILE = re.compile(r"T\((\d+),(\d+)\)")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array that a compiled program writes.

  Attributes:
    size: bytes, with the padding of the chip's tiles.
    dtype, shape: of its elements.
    op_name: what made it, "" if the compiler says nothing.
  """

  size: int
  dtype: str
  shape: tuple[int, ...]
  op_name: str

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  kind: str
  result: str
  rest: str
  is_root: bool

  @property
  def op_name(self) -> str:
    found = _OP_NAME.search(self.rest)
    return found.group(1) if found else ""


def arrays_of(hlo: str) -> list[Array]:
  """Every array that the program writes to memory, largest first.

  Args:
    hlo: text of the compiled program, `compiled.as_text()`.

  Raises:
    ValueError: no instruction is found in it.
  """
  computations = _read(hlo)
  fused = {
    _CALLS.search(i.rest).group(1)
    for body in computations.values()
    for i in body
    if i.kind == "fusion"
  }
  found = []
  for name, body in computations.items():
    if name in fused:
      continue
    for instruction in body:
      if instruction.kind not in _NO_ARRAY:
        found += _results(instruction, computations)
  if not found:
    raise ValueError("The compiled program has no instruction that is known.")
  return sorted(found, key=lambda array: -array.size)


def attention_arrays(
  arrays: Iterable[Array], config: StarConfig
) -> list[Array]:
  """Those of self- and cross-attention, forward and backward.

  Whatever the compiler gives no name to is counted as well. Left out is what
  has no axis of tokens, of text or of blocks: weights, their gradients, and
  copies of them, all of whose axes are those of the model.
  """
  width, heads = config.width, config.num_heads
  weights = {1, 3, config.depth, width, 3 * width, 2 * width, heads}
  weights |= {config.head_dim, config.mlp_width}
  return [
    array
    for array in arrays
    if (not array.op_name or _ATTENTION.search(array.op_name))
    and not weights.issuperset(array.shape)
  ]


def _read(hlo: str) -> dict[str, list[_Instruction]]:
  computations: dict[str, list[_Instruction]] = {}
  body: list[_Instruction] = []
  for line in hlo.splitlines():
    if start := _COMPUTATION.match(line):
      body = computations.setdefault(start.group(1), [])
    elif found := _INSTRUCTION.match(line):
      root, name, result, kind, rest = found.groups()
      body.append(_Instruction(name, kind, result, rest, bool(root)))
  return computations


def _results(instruction: _Instruction, computations) -> list[Array]:
  """The arrays of one instruction, several where its result is a tuple."""
  names = [instruction.op_name]
  if instruction.kind == "fusion":
    # Each result of a fusion is named after what it is inside.
    body = computations[_CALLS.search(instruction.rest).group(1)]
    inside = {i.name: i.op_name for i in body}
    root = next(i for i in body if i.is_root)
    if root.kind == "tuple":
      operands = re.findall(r"%?([\w.\-]+)", root.rest.split(")")[0])
      names = [inside.get(operand, "") for operand in operands]
    else:
      names = [root.op_name]
    names = [name or instruction.op_name for name in names]
  found = _ARRAY.findall(instruction.result)
  if len(names) != len(found):
    names = [instruction.op_name] * len(found)
  return [_array(*text, name) for text, name in zip(found, names)]


def _array(dtype: str, axes: str, layout: str, op_name: str) -> Array:
  shape = tuple(int(axis) for axis in axes.split(",") if axis)
  bits = _BITS.search(dtype)
  itemsize = max(int(bits.group()) // 8, 1) if bits else 1
  return Array(itemsize * _padded(shape, layout), dtype, shape, op_name)


def _padded(shape: tuple[int, ...], layout: str) -> int:
  """Elements, with the two minor axes rounded up to the tiles of a TPU."""
  tile = _TILE.search(layout)
  order = [int(i) for i in layout.split(":")[0].split(",") if i]
  if not tile or len(order) < 2:
    return math.prod(shape)
  sides = list(shape)
  for axis, side in zip(order, map(int, reversed(tile.groups()))):
    sides[axis] = -(-sides[axis] // side) * side
  return math.prod(sides)
