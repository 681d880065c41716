"""The arrays of a compiled program, and which of them belong to attention.

Read from the optimised HLO text: every instruction that writes an array of its
own, outside of fusions (what is inside of one never reaches memory). Whose it
is, is said by its `op_name`, which jax writes from the names of the modules and
the compilers keep.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from star_jax.compile_check.hlo import Instruction, Module, Shape, parse
from star_jax.model.config import StarConfig

# Names of the attention modules in `model.blocks`, forward and backward.
_ATTENTION = re.compile(r"\b(cross_)?attn\b")
# These hand on what another instruction has written.
_NO_ARRAY = frozenset((
  "parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
  "call", "optimization-barrier",
))  # fmt: skip


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


def arrays_of(hlo: str) -> list[Array]:
  """Every array that the program writes to memory, largest first.

  Args:
    hlo: text of the compiled program, `compiled.as_text()`.

  Raises:
    ValueError: no instruction is found in it.
  """
  module = parse(hlo)
  found = [
    array
    for name, computation in module.computations.items()
    if name not in module.fused
    for instruction in computation.instructions
    if instruction.kind not in _NO_ARRAY
    for array in _results(instruction, module)
  ]
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


def _results(instruction: Instruction, module: Module) -> list[Array]:
  """The arrays of one instruction, several where its result is a tuple."""
  names = [instruction.op_name]
  if instruction.kind == "fusion":
    # Each result of a fusion is named after what it is inside.
    body = module.called(instruction)[0]
    root = body.root
    if root.kind == "tuple":
      names = [body.by_name[operand].op_name for operand in root.operands]
    else:
      names = [root.op_name]
    names = [name or instruction.op_name for name in names]
  found = instruction.results
  if len(names) != len(found):
    names = [instruction.op_name] * len(found)
  return [_array(shape, name) for shape, name in zip(found, names)]


def _array(shape: Shape, op_name: str) -> Array:
  return Array(shape.padded_size, shape.dtype, shape.dims, op_name)
