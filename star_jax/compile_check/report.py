"""What `launch/compile_check.py` prints: tables in markdown, line by line,
since every line may take minutes to compile."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from star_jax.compile_check.devices import Target
from star_jax.compile_check.intermediates import arrays_of, attention_arrays
from star_jax.compile_check.memory import (
  USABLE,
  DoesNotFit,
  Memory,
  compile_program,
  largest_batch,
)
from star_jax.compile_check.programs import Program
from star_jax.model.config import StarConfig

_COMPILERS = {"cuda": "jax-cuda13-pjrt", "tpu": "libtpu"}
_HEADER = (
  "program", "batch", "arguments", "outputs", "temporaries", "not read", "peak",
  "of memory", "compiled in",
)  # fmt: skip
# Most bytes of one attention array of one image in one layer of training.
ARRAY_LIMIT = 2**29
# Most bytes of temporaries of the attention of one layer.
LAYER_LIMIT = 10**9
_SHOWN = 3

Make = Callable[[int], Program]


class Compiled(NamedTuple):
  """A program and what its compiler says."""

  program: Program
  memory: Memory


def print_head(
  target: Target, what: str, options: Mapping[str, bool | int] | None = None
) -> None:
  """The chip, the compiler and its options, and that nothing is run."""
  versions = [f"jax {jax.__version__}"]
  if target.platform:
    package = _COMPILERS[target.platform]
    versions.append(f"{package} {importlib.metadata.version(package)}")
  options = {**target.compiler_options, **(options or {})}
  versions += [f"{name}={x}" for name, x in options.items()]
  memory = f" ({_gigabytes(target.memory)})" if target.memory else ""
  print(
    f"{what}. Compiled for {target.title}{memory}, not run;"
    f" {', '.join(versions)}.\n"
  )


def print_memory(
  name: str,
  make: Make,
  batches: Sequence[int],
  target: Target,
  *,
  unit: int = 1,
  largest: bool = False,
) -> dict[int, Compiled]:
  """A table of what the program needs at some batches.

  Args:
    name: of the program.
    make: batch -> program.
    batches: pictures at once.
    target: that they are compiled for.
    unit: pictures that a batch is a multiple of.
    largest: look for the largest batch that takes at most USABLE of the chip's
      memory, too.

  Returns:
    What was compiled, by batch.
  """
  found: dict[int, Compiled] = {}
  peaks: dict[int, float] = {}

  def peak_of(units: int) -> float:
    batch = units * unit
    program = make(batch)
    try:
      memory = compile_program(program, target)
    except DoesNotFit as error:
      print_row((name, batch, *["-"] * 4, _gigabytes(error.peak), "-", "-"))
      return error.peak
    print_row(_cells(name, batch, memory, target))
    found[batch] = Compiled(program, memory)
    return memory.peak

  print_row(_HEADER)
  print_row(["---"] * len(_HEADER))
  for batch in batches:
    if batch % unit:
      raise ValueError(
        f"--batch is a multiple of {unit} on this mesh, got {batch}."
      )
    peaks[batch // unit] = peak_of(batch // unit)
  if largest:
    limit = USABLE * target.memory
    best = unit * largest_batch(peak_of, limit, peaks)
    print(
      f"\nThe largest batch within {USABLE:.0%} of the memory"
      f" ({_gigabytes(limit)}): {best}."
    )
  return found


def attention_within_limit(
  config: StarConfig, batch: int, memory: Memory
) -> bool:
  """Prints the largest arrays of attention in a compiled program.

  Returns:
    Whether none exceeds ARRAY_LIMIT for one image in one layer. Layers are a
    loop: an array inside of it is one layer's.

  Raises:
    ValueError: the program has no such array: nothing was checked.
  """
  every = arrays_of(memory.hlo)
  ours = attention_arrays(every, config)
  if not ours:
    raise ValueError("No array of attention was found in the program.")
  unnamed = sum(not array.op_name for array in ours)
  print(
    f"\nAttention arrays of one image and layer, the largest of {len(ours)}"
    f" ({unnamed} of them without a name) among {len(every)} arrays:\n"
  )
  print_row(("array", "of one image", "made by"))
  print_row(["---"] * 3)
  for array in ours[:_SHOWN]:
    size = array.size / batch / 2**30
    place = "/".join(array.op_name.split("/")[-5:]) or "not named"
    print_row((array, f"{size:.3f} GiB", place.replace("|", "\\|")))
  largest = ours[0].size / batch
  return _verdict("The largest one", largest, ARRAY_LIMIT)


def layer_within_limit(memory: Memory) -> bool:
  """Prints whether the temporaries exceed LAYER_LIMIT."""
  return _verdict("Temporaries", memory.temporaries, LAYER_LIMIT)


def print_caches(memory: Memory, cache: int, batch: int) -> None:
  """How many times the cache of a sampler (bytes) its temporaries are."""
  print(
    f"\nTemporaries of batch {batch}: {memory.temporaries / cache:.2f} times"
    f" the cache of keys and values, {_gigabytes(cache)}."
  )


def _verdict(what: str, size: float, limit: int) -> bool:
  within = size <= limit
  word = "within" if within else "ABOVE"
  print(f"\n{what}: {_gigabytes(size)}, {word} {_gigabytes(limit)}.")
  return within


def _gigabytes(count: float) -> str:
  """Powers of ten, as memory of chips is sold."""
  return f"{count / 1e9:.2f} GB"


def _cells(name: str, batch: int, memory: Memory, target: Target) -> tuple:
  share = f"{memory.peak / target.memory:.0%}" if target.memory else "-"
  sizes = (
    memory.arguments,
    memory.outputs - memory.aliased,
    memory.temporaries,
    memory.unread,
    memory.peak,
  )
  seconds = f"{memory.seconds:.0f} s"
  return (name, batch, *map(_gigabytes, sizes), share, seconds)


def print_row(cells: Sequence) -> None:
  """One line of a table, at once."""
  print(f"| {' | '.join(map(str, cells))} |", flush=True)
