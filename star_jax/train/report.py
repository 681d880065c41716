"""What a run prints once at its start: parameters, compile time, FLOPs."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from jax.sharding import Mesh

from star_jax import compilation
from star_jax.chips import peak_flops
from star_jax.sharding import path_name
from star_jax.train import flops as flops_lib
from star_jax.train.global_arrays import HOST_MEMORY
from star_jax.train.state import of_players

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


def memory_table(state: PyTree, mesh: Mesh) -> str:
  """Where each part of the state lies, and what one device holds of it.

  Args:
    state: a TrainState of shapes with shardings.
  """
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
  rows: dict[tuple[str, str], list[int]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    part, *names = path_name(path).split("/")
    name = _array_name(names) if part == "params" else "(as the parameters)"
    cut = tuple(leaf.sharding.spec) if part == "params" else ""
    whole = math.prod(leaf.shape) * leaf.dtype.itemsize
    here = math.prod(leaf.sharding.shard_shape(leaf.shape))
    if leaf.sharding.memory_kind == HOST_MEMORY:
      name, here = "(as the parameters, on the host)", 0
    row = rows.setdefault((f"{part} {name}", _cut_text(cut)), [0, 0])
    row[0] += whole
    row[1] += here * leaf.dtype.itemsize
  width = max(len(name) for name, _ in rows)
  lines = [f"Mesh: {axes}. MiB of all, MiB of one device, cut over"]
  for (name, cut), (whole, here) in rows.items():
    sizes = f"{whole / 2**20:>10,.1f}  {here / 2**20:>10,.1f}"
    lines.append(f"  {name:<{width}}  {sizes}  {cut}")
  total = [sum(sizes) for sizes in zip(*rows.values())]
  sizes = f"{total[0] / 2**20:>10,.1f}  {total[1] / 2**20:>10,.1f}"
  return "\n".join([*lines, f"  {'total':<{width}}  {sizes}"])


def _array_name(names: list[str]) -> str:
  """Vectors of a module are one row, its matrices are each their own."""
  if names[-1] in ("bias", "q_bias", "v_bias", "scale", "scale_mul"):
    return "/".join([*names[:1], "vectors"])
  return "/".join(names)


def _cut_text(spec: tuple) -> str:
  """(None, ("data", "fsdp")) -> "-, data fsdp"; "" where nothing is cut."""
  words = [
    "-" if axis is None else axis if isinstance(axis, str) else " ".join(axis)
    for axis in spec
  ]
  return ", ".join(words)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """The compiled training step and what is known of it before it runs.

  flops: of all devices together, what remat computes again among them.
  model_flops: without that and without the optimizer; 0 where nothing is known
    to compare it with.
  """

  call: Any
  seconds: float
  flops: int
  model_flops: int
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
  lowered = step_fn.lower(state, frozen, batch, key, **static)
  compiled = compilation.compile_step(lowered, static.get("mesh"))
  seconds = time.perf_counter() - start
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (state, frozen, batch, key),
  )
  counted = flops_lib.count_flops(
    lambda *args: step_fn(*args, **static), *abstract
  )
  model_flops = 0
  if peak_flops(jax.devices()[0].device_kind):
    state, *rest = abstract
    loss_fn = of_players(static["loss_fn"])
    model_flops = flops_lib.count_model_flops(
      loss_fn, state.players, state.extra, *rest, state.step
    )
  memory = compiled.memory_analysis()
  return CompiledStep(
    call=compiled,
    seconds=seconds,
    flops=counted,
    model_flops=model_flops,
    argument_bytes=getattr(memory, "argument_size_in_bytes", 0),
    temporary_bytes=getattr(memory, "temp_size_in_bytes", 0),
  )


class Work(NamedTuple):
  """FLOPs of one step; see `CompiledStep`."""

  flops: int
  model_flops: int


def speeds(
  steps: Sequence[Work], steps_per_second: float, mesh: Mesh
) -> dict[str, float]:
  """What the log shows of the steps since its last row.

  Args:
    steps: FLOPs of each.
    steps_per_second: their mean rate.
    mesh: the devices.

  Returns:
    gflops_per_second, all that is computed, of all devices together; mfu, the
    share of their peak in [0, 1] that the model itself has, where the peak is
    known (star_jax/chips.py).
  """
  rate = steps_per_second / len(steps)
  out = {"gflops_per_second": sum(s.flops for s in steps) * rate / 1e9}
  if peak := peak_flops(mesh.devices.flat[0].device_kind):
    model = sum(s.model_flops for s in steps) * rate
    out["mfu"] = model / (peak * mesh.size)
  return out


def peak_memory_bytes() -> int:
  """Largest resident size of this process so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024
