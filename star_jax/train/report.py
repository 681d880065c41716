"""What a run prints once at its start: parameters, compile time, FLOPs."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from typing import Any

import jax
from flax import traverse_util

from star_jax.train import flops as flops_lib

PyTree = Any


def parameter_table(params: PyTree, depth: int = 2) -> str:
  """Parameters summed by the first `depth` parts of their paths."""
  groups: dict[str, int] = {}
  for path, leaf in traverse_util.flatten_dict(params).items():
    name = "/".join(path[:depth])
    groups[name] = groups.get(name, 0) + math.prod(leaf.shape)
  total = sum(groups.values())
  width = max(len(name) for name in [*groups, "total"])
  rows = [
    f"  {name:<{width}}  {count:>14,}  {count / total:6.1%}"
    for name, count in sorted(groups.items())
  ]
  rows.append(f"  {'total':<{width}}  {total:>14,}")
  return "\n".join(["Parameters", *rows])


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """The compiled training step and what is known of it before it runs."""

  call: Any
  seconds: float
  flops: int
  argument_bytes: int
  temporary_bytes: int

  def describe(self, batch_size: int) -> str:
    return (
      f"Training step: compiled in {self.seconds:.1f} s,"
      f" {self.flops / 1e9:.2f} GFLOP a step"
      f" ({self.flops / batch_size / 1e9:.3f} an image), state and batch"
      f" {self.argument_bytes / 2**20:.0f} MiB, temporaries"
      f" {self.temporary_bytes / 2**20:.0f} MiB a device"
    )


def compile_step(step_fn, state, frozen, batch, key, **static) -> CompiledStep:
  """Compiles `step_fn(state, frozen, batch, key, **static)` ahead of time."""
  start = time.perf_counter()
  compiled = step_fn.lower(state, frozen, batch, key, **static).compile()
  seconds = time.perf_counter() - start
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (state, frozen, batch, key),
  )
  counted = flops_lib.count_flops(
    lambda *args: step_fn(*args, **static), *abstract
  )
  memory = compiled.memory_analysis()
  return CompiledStep(
    call=compiled,
    seconds=seconds,
    flops=counted,
    argument_bytes=getattr(memory, "argument_size_in_bytes", 0),
    temporary_bytes=getattr(memory, "temp_size_in_bytes", 0),
  )


def peak_memory_bytes() -> int:
  """Largest resident size of this process so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024
