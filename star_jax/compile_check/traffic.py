"""Bytes that an instruction of a compiled program moves between HBM and a core.

Arrays that a TPU compiler has placed in VMEM (memory space 1) cost nothing
here: they come and go by copies of their own, which are counted. What is inside
of a fusion never reaches memory; an operand of which it reads slices counts as
those, a result that it updates in place as the update.
"""

from __future__ import annotations

from star_jax.compile_check.collectives import KINDS
from star_jax.compile_check.hlo import (
  HBM,
  Computation,
  Instruction,
  Module,
  Shape,
)

# These hand on what another instruction has written, or have no array.
NO_TRAFFIC = frozenset((
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
  "conditional", "call", "optimization-barrier", "after-all", "partition-id",
  "replica-id", "add-dependency",
))  # fmt: skip
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_VIEWS = frozenset(("bitcast", "reshape", "get-tuple-element"))


def hbm_bytes(
  module: Module, computation: Computation, instruction: Instruction
) -> int:
  """Read and written by one instruction; collectives are not counted, nor what
  loops and calls do inside."""
  if instruction.kind in NO_TRAFFIC or _is_collective(instruction):
    return 0
  if instruction.kind == "fusion":
    return _fusion_bytes(module, computation, instruction)
  if "AllocateBuffer" in instruction.attributes:
    return 0
  if instruction.kind in _SLICES:
    return 2 * sum(map(_in_hbm, instruction.results))
  if instruction.kind in _UPDATES:
    update = instruction.operands[_UPDATES[instruction.kind]]
    shape = computation.defined(update)
    return 2 * shape.padded_size if _in_hbm(instruction.results[0]) else 0
  read = sum(
    _in_hbm(shape)
    for name in instruction.operands
    if (shape := computation.defined(name)) is not None
  )
  return read + sum(map(_in_hbm, instruction.results))


def _in_hbm(shape: Shape) -> int:
  return shape.padded_size if shape.space == HBM else 0


def _fusion_bytes(
  module: Module, computation: Computation, instruction: Instruction
) -> int:
  inner = module.called(instruction)[0]
  total = 0
  for name, parameter in zip(instruction.operands, inner.parameters):
    shape = computation.defined(name)
    if shape is not None and _in_hbm(shape):
      total += min(_read(module, inner, parameter), shape.padded_size)
  root = inner.root
  names = root.operands if root.kind == "tuple" else (root.name,)
  for shape, name in zip(instruction.results, names):
    if _in_hbm(shape):
      total += min(_written(module, inner, name), shape.padded_size)
  return total


def _read(module: Module, inner: Computation, value: Instruction) -> int:
  """Bytes of `value` that its users in a fused computation look at."""
  whole = value.results[0].padded_size
  total = 0
  for user in inner.users.get(value.name, ()):
    if user.kind in _SLICES and user.operands[0] == value.name:
      total += user.results[0].padded_size
    elif user.kind in _VIEWS:
      total += _read(module, inner, user)
    elif user.kind == "fusion":
      fused = module.called(user)[0]
      total += sum(
        _read(module, fused, parameter)
        for name, parameter in zip(user.operands, fused.parameters)
        if name == value.name
      )
    elif user.kind in _UPDATES and user.operands[0] == value.name:
      continue
    elif not (user.kind == "tuple" or _is_collective(user)):
      return whole
  return min(total, whole)


def _written(module: Module, inner: Computation, name: str) -> int:
  """Bytes that a fusion writes for one of its results."""
  value = inner.by_name[name]
  while value.kind in _VIEWS and value.operands:
    value = inner.by_name[value.operands[0]]
  if value.kind == "parameter" or _is_collective(value):
    return 0
  if value.kind in _UPDATES:
    update = inner.defined(value.operands[_UPDATES[value.kind]])
    return update.padded_size
  if value.kind == "fusion":
    fused = module.called(value)[0]
    if fused.root.kind != "tuple":
      return _written(module, fused, fused.root.name)
  return value.results[0].padded_size


def _is_collective(instruction: Instruction) -> bool:
  return (
    instruction.kind.removesuffix("-start").removesuffix("-done") in KINDS
    or "AsyncCollective" in instruction.attributes
  )
