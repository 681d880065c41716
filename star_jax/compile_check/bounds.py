"""What a compiled program costs one device: FLOPs, roofline, collectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jax.sharding import Mesh

from star_jax.compile_check.analytic import Analytic
from star_jax.compile_check.collectives import Torus
from star_jax.compile_check.devices import Target
from star_jax.compile_check.hlo import parse
from star_jax.compile_check.memory import Memory
from star_jax.compile_check.programs import Program
from star_jax.compile_check.roofline import Roofline, Sent, roofline
from star_jax.compile_check.traced import traced_roofline


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Of one device and one run of the program.

  Attributes:
    model_flops, executed_flops: see `analytic.Analytic`; None: no formula.
    traced_flops: counted on the jaxpr, its share of one device.
    roofline: of the compiled program; on a GPU, whose products are calls of a
      library that the program says little about, that of the traced products,
      without collectives.
    parts: FLOPs by formula of the parts of a sampler, see `analytic.Analytic`.
    mfu: model_flops by the time of the roofline and the chip's peak.
    counted: whether the roofline is that of the compiled program.
  """

  model_flops: float | None
  executed_flops: float | None
  traced_flops: float
  roofline: Roofline
  mfu: float | None
  counted: bool
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def excess(self) -> float | None:
    """FLOPs that are computed beyond the formula, as a share of it."""
    if self.executed_flops is None:
      return None
    done = self.roofline.flops if self.counted else self.traced_flops
    return done / self.executed_flops - 1

  @property
  def exposed(self) -> float:
    """Share of the time in which nothing but collectives runs."""
    return self.roofline.exposed / self.roofline.seconds

  @property
  def largest_all_gather(self) -> Sent | None:
    found = [s for s in self.roofline.sent if s.collective.kind == "all-gather"]
    return max(found, key=lambda s: s.collective.size, default=None)

  def figures(self) -> dict:
    """For a file."""
    gathered = self.largest_all_gather
    parts = dataclasses.asdict(self.roofline)
    del parts["sent"]
    return {
      "model_flops": self.model_flops,
      "executed_flops": self.executed_flops,
      "traced_flops": self.traced_flops,
      "excess": self.excess,
      "mfu": self.mfu,
      "counted": self.counted,
      "formula_parts": dict(self.parts),
      **parts,
      "bound": self.roofline.bound,
      "bytes_sent": self.roofline.bytes_sent,
      "largest_all_gather": gathered
      and dataclasses.asdict(gathered.collective),
    }


def bounds_of(
  program: Program,
  memory: Memory,
  target: Target,
  mesh: Mesh | None,
  analytic: Analytic | None = None,
) -> Bounds | None:
  """Of a program that was compiled for a chip; None for the backend at hand.

  Args:
    program, memory: before and after the compiler.
    target, mesh: that it was compiled for.
    analytic: FLOPs by formula, of all devices.
  """
  if target.chip is None:
    return None
  count = mesh.size if mesh is not None else 1
  chip, traced = target.chip, program.flops / count
  counted = target.platform == "tpu"
  if counted:
    coords = [device.coords for device in mesh.devices.flat]
    found = roofline(parse(memory.hlo), chip, Torus.of(chip, coords))
  else:
    moved = memory.arguments + memory.outputs
    found = traced_roofline(program.products, chip, moved)
  model = analytic and analytic.model / count
  return Bounds(
    model_flops=model,
    executed_flops=analytic and analytic.executed / count,
    traced_flops=traced,
    roofline=found,
    mfu=model and model / (found.seconds * chip.flops),
    counted=counted,
    parts={k: x / count for k, x in analytic.parts.items()} if analytic else {},
  )
