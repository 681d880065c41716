"""How long a compiled TPU program takes at the least, by what its chip can do.

The schedule is walked: an instruction takes the longer of its products on the
matrix unit (tile padding and passes counted) and its bytes over the bandwidth
of HBM. Copies and collectives that the program starts and waits for later run
beside: copies one after the other, and so do collectives that travel along the
same axis of the torus. What a wait has to wait is exposed.
Vector work, latencies and the start of programs are not counted: it is a bound.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from star_jax.chips import Chip
from star_jax.compile_check.collectives import (
  KINDS,
  Collective,
  Torus,
  collective_of,
  collectives_in,
)
from star_jax.compile_check.hlo import Computation, Instruction, Module
from star_jax.compile_check.kernels import kernel_of
from star_jax.compile_check.parts import part_of
from star_jax.compile_check.products import Product, product_of
from star_jax.compile_check.traffic import hbm_bytes

_COPIES = ("copy", "slice", "dynamic-slice", "dynamic-update-slice")
_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True)
class Sent:
  """A collective, how often it runs, and what was waited for it (seconds of all
  runs); `seconds` as if alone."""

  collective: Collective
  count: int
  seconds: float
  exposed: float


@dataclasses.dataclass
class Roofline:
  """Of one device and one run of the program.

  Attributes:
    seconds: all; the sum of the next four.
    compute: of instructions that the matrix unit bounds.
    memory: of instructions that HBM bounds.
    waited: for copies between HBM and VMEM.
    exposed: for collectives.
    flops: of products, without padding.
    padded_flops: with tiles and passes.
    hbm_bytes: moved.
    parts: FLOPs and seconds of each of `parts.PARTS`, without what is waited
      for.
    sent: collectives, the same one of a loop once.
  """

  seconds: float = 0.0
  compute: float = 0.0
  memory: float = 0.0
  waited: float = 0.0
  exposed: float = 0.0
  flops: int = 0
  padded_flops: int = 0
  hbm_bytes: int = 0
  parts: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
  sent: list[Sent] = dataclasses.field(default_factory=list)

  @property
  def bound(self) -> str:
    """What takes most of the time."""
    parts = {
      "compute": self.compute,
      "memory": self.memory + self.waited,
      "collectives": self.exposed,
    }
    return max(parts, key=parts.get)

  @property
  def bytes_sent(self) -> dict[str, int]:
    """Bytes of collectives by kind, trips of loops counted."""
    found: dict[str, int] = {}
    for sent in self.sent:
      kind = sent.collective.kind
      found[kind] = found.get(kind, 0) + sent.count * sent.collective.size
    return found

  def count(self, part: str, flops: int, seconds: float) -> None:
    """More of a part."""
    before = self.parts.get(part, (0, 0.0))
    self.parts[part] = (before[0] + flops, before[1] + seconds)

  def add(self, other: Roofline, times: int) -> None:
    for part, (flops, seconds) in other.parts.items():
      self.count(part, times * flops, times * seconds)
    for field in dataclasses.fields(self):
      if field.name not in ("sent", "parts"):
        value = getattr(self, field.name) + times * getattr(other, field.name)
        setattr(self, field.name, value)
    self.sent += [
      Sent(s.collective, s.count * times, s.seconds * times, s.exposed * times)
      for s in other.sent
    ]


def roofline(module: Module, chip: Chip, torus: Torus) -> Roofline:
  """The bound of a scheduled program.

  Args:
    module: `hlo.parse` of what was compiled for that chip.
    chip: a TPU.
    torus: its devices, in the order of the program.
  """
  walks = _Walks(module, chip, torus)
  return walks.of(module.computations[module.entry])


class _Queue:
  """Work that runs beside the program: what needs one of the same ways goes
  first come first served, the rest at the same time."""

  def __init__(self):
    self._left: dict[str, float] = {}
    self._ways: dict[str, frozenset[int]] = {}

  def put(
    self, name: str, seconds: float, ways: frozenset[int] = frozenset({0})
  ) -> None:
    self._left[name], self._ways[name] = seconds, ways

  def run(self, seconds: float) -> None:
    """Time passes."""
    while seconds > 0 and self._left:
      moving = self._moving()
      step = min(seconds, *(self._left[name] for name in moving))
      seconds -= step
      for name in moving:
        self._left[name] -= step
        if self._left[name] <= 0:
          del self._left[name], self._ways[name]

  def wait(self, name: str) -> float:
    """Seconds until that one is done, from now on."""
    free: dict[int, float] = {}  # when each way is
    for other, left in self._left.items():
      ways = self._ways[other]
      end = left + max((free.get(way, 0.0) for way in ways), default=0.0)
      if other == name:
        return end
      free.update(dict.fromkeys(ways, end))
    return 0.0

  def _moving(self) -> list[str]:
    """Those that no earlier one is in the way of."""
    taken: set[int] = set()
    found = []
    for name, ways in self._ways.items():
      if not ways & taken:
        found.append(name)
      taken |= ways
    return found


class _Walks:
  """Walks computations, each once."""

  def __init__(self, module: Module, chip: Chip, torus: Torus):
    self.module, self.chip, self.torus = module, chip, torus
    self._known: dict[str, Roofline] = {}
    # Collectives that one fusion starts and others, maybe in a loop in
    # between, go on with.
    self.staged = frozenset(
      one.channel
      for computation in module.computations.values()
      if any(_START in i.attributes for i in computation.instructions)
      for one in collectives_in(module, computation, len(torus.coords))
    )

  def of(self, computation: Computation) -> Roofline:
    if computation.name not in self._known:
      self._known[computation.name] = _Walk(self, computation).run()
    return self._known[computation.name]


class _Walk:
  """One pass through one computation."""

  def __init__(self, walks: _Walks, computation: Computation):
    self.walks, self.computation = walks, computation
    self.module, self.chip = walks.module, walks.chip
    self.found = Roofline()
    self.copies, self.links = _Queue(), _Queue()
    # Collectives on their way: key -> what, and its place in found.sent.
    self.open: dict[str, int] = {}

  def run(self) -> Roofline:
    for instruction in self.computation.instructions:
      self._step(instruction)
    return self.found

  def _step(self, i: Instruction) -> None:
    if i.kind == "while":
      body = re.search(r"\bbody=%?([\w.\-]+)", i.attributes).group(1)
      inner = self.walks.of(self.module.computations[body])
      self._nested(inner, self.module.trip_count(i))
    elif i.kind in ("conditional", "call"):
      branches = [self.walks.of(c) for c in self.module.called(i)]
      self._nested(max(branches, key=lambda x: x.seconds), 1)
    elif i.kind == "fusion":
      self._fusion(i)
    elif i.kind.endswith("-start"):
      self._start(i)
    elif i.kind.endswith("-done"):
      self._done(i)
    elif sent := collective_of(i, self.computation, self._devices):
      self._begin(i.name, sent)
      self._end(i.name)
    elif kernel := kernel_of(i, self.computation):
      self._work(i.op_name, kernel.products, kernel.hbm_bytes)
    else:
      product = product_of(i, self.computation)
      self._work(i.op_name, [product] if product else [], self._moved(i))

  @property
  def _devices(self) -> int:
    return len(self.walks.torus.coords)

  def _nested(self, inner: Roofline, times: int) -> None:
    self.found.add(inner, times)
    self._pass(inner.seconds * times, inner.seconds * times)

  def _fusion(self, i: Instruction) -> None:
    """Products and bytes; on TPU also the stages of a collective."""
    body = self.module.called(i)[0]
    sent = collectives_in(self.module, body, self._devices)
    targets = [x.attributes for _, x in self.module.inside(body)]
    starts = any(_START in x for x in targets)
    ends = any(_DONE in x for x in targets)
    ended = []
    for one in sent:
      key = f"#{one.channel}"
      if starts or one.channel not in self.walks.staged:
        name = one.op_name or i.op_name
        self._begin(key, dataclasses.replace(one, op_name=name))
      # A fusion that is no stage of one is all of it.
      if key in self.open and (ends or one.channel not in self.walks.staged):
        ended.append(key)
    products, name = [], i.op_name
    for inner, x in self.module.inside(body):
      if product := product_of(x, inner):
        products.append(product)
        name = x.op_name or name
    self._work(name, products, self._moved(i))
    for key in ended:
      self._end(key)

  def _start(self, i: Instruction) -> None:
    kind = i.kind.removesuffix("-start")
    if kind in _COPIES:
      size = max(x.padded_size for x in i.results[1:2] or i.results)
      self.found.hbm_bytes += size
      self.copies.put(i.name, size / self.chip.hbm_bandwidth)
    elif kind in KINDS:
      self._begin(i.name, collective_of(i, self.computation, self._devices))
    else:
      for body in self.module.called(i):
        for one in collectives_in(self.module, body, self._devices):
          self._begin(i.name, one)

  def _done(self, i: Instruction) -> None:
    start = i.operands[0]
    if start in self.open:
      self._end(start)
      return
    wait = self.copies.wait(start)
    self.found.waited += wait
    self.found.seconds += wait
    self._pass(wait, 0.0)

  def _begin(self, key: str, one: Collective) -> None:
    seconds = one.seconds(self.walks.torus)
    self.open[key] = len(self.found.sent)
    self.found.sent.append(Sent(one, 1, seconds, 0.0))
    self.links.put(key, seconds, one.axes(self.walks.torus))

  def _end(self, key: str) -> None:
    wait = self.links.wait(key)
    self.found.exposed += wait
    self.found.seconds += wait
    self._pass(wait, 0.0)
    place = self.open.pop(key)
    sent = self.found.sent[place]
    self.found.sent[place] = dataclasses.replace(sent, exposed=wait)

  def _moved(self, i: Instruction) -> int:
    return hbm_bytes(self.module, self.computation, i)

  def _work(self, name: str, products: Sequence[Product], moved: int) -> None:
    padded = sum(p.padded_flops(self.chip.matrix_side) for p in products)
    compute = padded / self.chip.flops
    memory = moved / self.chip.hbm_bandwidth
    flops = sum(p.flops for p in products)
    self.found.flops += flops
    self.found.padded_flops += padded
    self.found.hbm_bytes += moved
    seconds = max(compute, memory)
    self.found.seconds += seconds
    self.found.count(part_of(name), flops, seconds)
    if compute >= memory:
      self.found.compute += seconds
    else:
      self.found.memory += seconds
    self._pass(seconds, memory)

  def _pass(self, seconds: float, memory: float) -> None:
    """Time passes; HBM is free for copies when the program leaves it alone."""
    self.links.run(seconds)
    self.copies.run(seconds - min(memory, seconds))
