"""What devices send each other in a compiled program, and how long that takes.

Times are those of rings on the torus that TPU chips are connected by
(all-gather of V bytes over g devices: V (g - 1) / g over the bandwidth of the
ring; all-reduce twice that; all-to-all a quarter of all data of the group since
pieces travel a quarter of the ring on average; a permutation as long as its
busiest link takes, each message on the shortest way), without latencies.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from star_jax.chips import Chip
from star_jax.compile_check.hlo import Computation, Instruction, Module

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
  r"mesh\[([^\]]*)\](?:,\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
  r"\s*\{([^}]*)\}"
)
_NUMBERED = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One of them.

  Attributes:
    kind: one of KINDS.
    size: bytes of the larger side on one device: what is gathered, summed,
      scattered or sent.
    arrays: the arrays of that side, for tables.
    group: devices of one group, as the program numbers them.
    channel: its number; "" without one.
    op_name: what made it.
    pairs: source and target of every message of a permutation.
  """

  kind: str
  size: int
  arrays: tuple[str, ...]
  group: tuple[int, ...]
  channel: str
  op_name: str
  pairs: tuple[tuple[int, int], ...] = dataclasses.field(default=(), repr=False)

  def seconds(self, torus: Torus) -> float:
    """On the links of that torus."""
    g = len(self.group)
    if g < 2:
      return 0.0
    ring = torus.ring_bandwidth(self.group)
    share = self.size * (g - 1) / g
    if self.kind == "all-reduce":
      return 2 * share / ring
    if self.kind.endswith("all-to-all"):
      return self.size * g / 4 / ring
    if self.kind == "collective-permute":
      busiest = max(torus.busiest_link(self.pairs), 1)
      return busiest * self.size / torus.chip.link_bandwidth
    return share / ring

  def axes(self, torus: Torus) -> frozenset[int]:
    """Of the torus, those whose links it uses."""
    groups = self.pairs or (self.group,)
    return frozenset(axis for group in groups for axis in torus.extent(group))


@dataclasses.dataclass(frozen=True)
class Torus:
  """Where the devices of a program are.

  Attributes:
    chip: that they are.
    coords: of each device, in the order in which the program numbers them.
    sides: devices along each axis.
    wrapped: whether an axis is closed to a ring.
  """

  chip: Chip
  coords: tuple[tuple[int, ...], ...]
  sides: tuple[int, ...]
  wrapped: tuple[bool, ...]

  @classmethod
  def of(cls, chip: Chip, coords: Sequence[Sequence[int]]) -> Torus:
    """A whole slice: axes of 16 (v5e, v6e) and multiples of 4 (v5p) are rings,
    as cloud.google.com/tpu/docs has it."""
    sides = tuple(max(x) + 1 for x in zip(*coords))
    ring = 16 if chip.torus_axes == 2 else 4
    return cls(
      chip,
      tuple(map(tuple, coords)),
      sides,
      tuple(side % ring == 0 for side in sides),
    )

  def extent(self, group: Sequence[int]) -> list[int]:
    """Axes along which the devices of a group differ."""
    places = zip(*(self.coords[device] for device in group))
    return [axis for axis, at in enumerate(places) if len({*at}) > 1]

  def ring_bandwidth(self, group: Sequence[int]) -> float:
    """Bytes/s that a device sends to its neighbours in the group.

    A ring along every axis that the group extends over, both ways where the
    axis is closed and the group has all of it; groups that lie between each
    other share links.
    """
    found = 0.0
    for axis, (side, wrapped) in enumerate(zip(self.sides, self.wrapped)):
      places = sorted({self.coords[device][axis] for device in group})
      if len(places) > 1:
        ways = 2 if wrapped and len(places) == side else 1
        found += ways * self.chip.link_bandwidth / (places[1] - places[0])
    return found or self.chip.link_bandwidth

  def busiest_link(self, pairs: Sequence[tuple[int, int]]) -> int:
    """Most messages that one link carries in one direction, each of them sent
    along the first axis first and the shorter way round."""
    carried = collections.Counter()
    for source, target in pairs:
      place = list(self.coords[source])
      for axis, side in enumerate(self.sides):
        way = self.coords[target][axis] - place[axis]
        if self.wrapped[axis] and 2 * abs(way) > side:
          way -= math.copysign(side, way)
        step = 1 if way > 0 else -1
        for _ in range(int(abs(way))):
          carried[tuple(place), axis, step] += 1
          place[axis] = (place[axis] + step) % side
    return max(carried.values(), default=0)


def collectives_in(
  module: Module, computation: Computation, devices: int
) -> list[Collective]:
  """Those of a computation and of what is fused into it, in order."""
  found = []
  for inner, instruction in module.inside(computation):
    collective = collective_of(instruction, inner, devices)
    if collective:
      found.append(collective)
  return found


def collective_of(
  instruction: Instruction, computation: Computation, devices: int
) -> Collective | None:
  """What an instruction sends; None if it is no collective or only the end of
  one.

  Args:
    instruction: alone; what is fused or called is not looked into.
    computation: that it is in.
    devices: of the program.
  """
  kind = instruction.kind.removesuffix("-start")
  if kind not in KINDS:
    return None
  read = [
    shape
    for name in instruction.operands
    if (shape := computation.defined(name)) is not None
  ]
  written = list(instruction.results)
  if kind != instruction.kind and len(written) > len(read):
    # (operands, results, flags): results follow the operands.
    written = written[len(read) : 2 * len(read)]
  larger = max(read, written, key=lambda side: sum(x.size for x in side))
  if kind == "all-reduce" and _is_scattered(computation):
    kind = "reduce-scatter"
  return Collective(
    kind,
    sum(x.size for x in larger),
    tuple(map(str, larger)),
    first_group(instruction, devices),
    instruction.attribute("channel_id"),
    instruction.op_name,
    _pairs(instruction) if kind == "collective-permute" else (),
  )


def _is_scattered(computation: Computation) -> bool:
  """TPU compilers write a reduce-scatter as a fusion of an all-reduce and the
  slice that a device keeps."""
  return computation.name.startswith("all-reduce-scatter")


def first_group(instruction: Instruction, devices: int) -> tuple[int, ...]:
  """The devices of the first group; of pairs, the first that are two."""
  text = instruction.attributes
  if "source_target_pairs=" in text:
    return next((pair for pair in _pairs(instruction) if len({*pair}) > 1), ())
  place = text.find("replica_groups=")
  if place < 0:
    return tuple(range(devices))
  text = text[place + len("replica_groups=") :]
  if mesh := _MESH.match(text):
    return _mesh_group(*mesh.groups())
  if iota := _IOTA.match(text):
    groups, sides, order = (_numbers(x) for x in iota.groups())
    ids = _iota(sides, order).reshape(groups)
    return tuple(ids[0].tolist())
  listed = re.match(r"\{\{([\d,]+)\}", text)
  return tuple(_numbers(listed.group(1))) if listed else tuple(range(devices))


def _pairs(instruction: Instruction) -> tuple[tuple[int, int], ...]:
  _, _, text = instruction.attributes.partition("source_target_pairs={")
  text = text.partition("}}")[0]
  found = re.findall(r"\{(\d+),(\d+)", text)
  return tuple((int(a), int(b)) for a, b in found)


def _mesh_group(axes: str, sides: str, order: str, cut: str) -> tuple[int, ...]:
  """Of `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`."""
  named = dict(re.findall(r"'([^']+)'=(\d+)", axes))
  shape = [int(x) for x in named.values()]
  ids = np.arange(math.prod(shape))
  if sides:
    ids = _iota(_numbers(sides), _numbers(order))
  ids = ids.reshape(shape)
  kept = set(re.findall(r"'([^']+)'", cut))
  place = tuple(slice(None) if name in kept else 0 for name in named)
  return tuple(ids[place].reshape(-1).tolist())


def _iota(sides: list[int], order: list[int]) -> np.ndarray:
  ids = np.arange(math.prod(sides)).reshape(sides)
  return ids.transpose(order) if order else ids


def _numbers(text: str | None) -> list[int]:
  return [int(x) for x in _NUMBERED.findall(text or "")]
