"""The roofline: times of hand-made schedules, literal numbers."""

import dataclasses

import pytest

from star_jax.chips import CHIPS
from star_jax.compile_check import hlo
from star_jax.compile_check.collectives import Torus
from star_jax.compile_check.roofline import roofline
from star_jax.compile_check.traffic import hbm_bytes

# A product of [128, 128] x [128, 128] takes 2 ** 22 / 2 ** 20 = 4 s, 2 ** 15
# bytes of HBM 2 s, and 2 ** 15 bytes gathered over two devices 1 s.
CHIP = dataclasses.replace(
  CHIPS["v5e"],
  flops=2.0**20,
  hbm_bandwidth=2.0**14,
  link_bandwidth=2.0**14,
)
PAIR = Torus.of(CHIP, [(0, 0), (1, 0)])
A = "bf16[128,128]{1,0:T(8,128)(2,1)}"
V = "bf16[128,128]{1,0:T(8,128)(2,1)S(1)}"
HALF = "bf16[64,128]{1,0:T(8,128)(2,1)S(1)}"
GATHER = "channel_id=7, replica_groups=[1,2]<=[2], dimensions={0}"


def walk(*lines, before="", torus=PAIR):
  body = "\n".join(f"  {line}" for line in lines)
  entry = f"ENTRY %main (v: {V}, a: {A}, h: {HALF}) -> {V} {{"
  module = hlo.parse(
    f"{before}\n{entry}\n"
    f"  %v = {V} parameter(0)\n  %a = {A} parameter(1)\n"
    f"  %h = {HALF} parameter(2)\n{body}\n}}\n"
  )
  return roofline(module, CHIP, torus)


def product(name, left="v", right="v", into=V):
  return (
    f"%{name} = {into} convolution(%{left}, %{right}), dim_labels=bf_io->bf"
  )


def test_an_instruction_takes_the_longer_of_products_and_bytes():
  found = walk(product("p"))
  assert (found.seconds, found.compute, found.memory) == (4, 4, 0)
  assert (found.flops, found.hbm_bytes, found.bound) == (2**22, 0, "compute")
  # Two operands and the result in HBM: 6 s.
  found = walk(product("p", "a", "a", A))
  assert (found.seconds, found.compute, found.memory) == (6, 0, 6)
  assert (found.hbm_bytes, found.bound) == (3 * 2**15, "memory")


def test_collectives_that_nothing_runs_beside_are_exposed():
  found = walk(f"%g = {V} all-gather(%h), {GATHER}", product("p", "g"))
  assert (found.seconds, found.exposed) == (5, 1)
  (sent,) = found.sent
  assert (sent.count, sent.seconds, sent.exposed) == (1, 1, 1)
  assert found.bytes_sent == {"all-gather": 2**15}


def test_asynchronous_collectives_run_beside_and_after_each_other():
  start = f"({HALF}, {V}) all-gather-start"
  found = walk(
    f"%s1 = {start}(%h), {GATHER}",
    product("p"),
    f"%d1 = {V} all-gather-done(%s1)",
    f"%s2 = {start}(%h), {GATHER}",
    f"%s3 = {start}(%h), {GATHER}",
    f"%d3 = {V} all-gather-done(%s3)",
    f"%d2 = {V} all-gather-done(%s2)",
  )
  assert (found.seconds, found.exposed) == (6, 2)
  assert [sent.exposed for sent in found.sent] == [0, 0, 2]


@pytest.mark.parametrize(
  ("one", "other", "seconds"),
  [
    ("{{0,1},{2,3}}", "{{0,1},{2,3}}", 2),
    ("{{0,1},{2,3}}", "{{0,2},{1,3}}", 1),
    ("{{0,1},{2,3}}", "{{0,1,2,3}}", 1.75),
  ],
)
def test_collectives_along_other_axes_run_at_the_same_time(one, other, seconds):
  square = Torus.of(CHIP, [(0, 0), (0, 1), (1, 0), (1, 1)])

  def start(name, groups):
    return (
      f"%{name} = ({HALF}, {V}) all-gather-start(%h), channel_id=1,"
      f" replica_groups={groups}, dimensions={{0}}"
    )

  found = walk(
    start("s1", one),
    start("s2", other),
    f"%d2 = {V} all-gather-done(%s2)",
    f"%d1 = {V} all-gather-done(%s1)",
    torus=square,
  )
  assert (found.seconds, found.exposed) == (seconds, seconds)


FUSED = f"""
%start (x: {HALF}) -> ({HALF}, {V}) {{
  %x = {HALF} parameter(0)
  %g1 = {V} all-gather(%x), {GATHER}
  ROOT %c1 = ({HALF}, {V}) custom-call(%g1), \
custom_call_target="AsyncCollectiveStart"
}}

%go_on (x2: {HALF}, y2: {V}, z2: {V}) -> ({V}, {V}) {{
  %x2 = {HALF} parameter(0)
  %y2 = {V} parameter(1)
  %z2 = {V} parameter(2)
  %g2 = {V} all-gather(%x2), {GATHER}
  %p2 = {V} convolution(%z2, %z2), dim_labels=bf_io->bf
  ROOT %t2 = ({V}, {V}) tuple(%p2, %g2)
}}

%end (x3: {HALF}, y3: {V}) -> {V} {{
  %x3 = {HALF} parameter(0)
  %y3 = {V} parameter(1)
  %g3 = {V} all-gather(%x3), {GATHER}
  ROOT %c3 = {V} custom-call(%x3, %y3, %g3), \
custom_call_target="AsyncCollectiveDone"
}}

%all-reduce-scatter.1 (x4: {V}) -> {HALF} {{
  %x4 = {V} parameter(0)
  %r4 = {V} all-reduce(%x4), channel_id=9, replica_groups={{{{0,1}}}}
  ROOT %s4 = {HALF} dynamic-slice(%r4), dynamic_slice_sizes={{64,128}}
}}
"""


def test_collectives_inside_of_fusions_are_counted_once():
  gte = "get-tuple-element"
  found = walk(
    f"%s = ({HALF}, {V}) fusion(%h), kind=kCustom, calls=%start",
    f"%y = {V} {gte}(%s), index=1",
    f"%m = ({V}, {V}) fusion(%h, %y, %v), kind=kOutput, calls=%go_on",
    f"%z = {V} {gte}(%m), index=1",
    f"%d = {V} fusion(%h, %z), kind=kCustom, calls=%end",
    f"%r = {HALF} fusion(%d), kind=kCustom, calls=%all-reduce-scatter.1,"
    ' metadata={op_name="x/grad"}',
    before=FUSED,
  )
  assert (found.compute, found.exposed, found.seconds) == (4, 1, 5)
  assert found.bytes_sent == {"all-gather": 2**15, "reduce-scatter": 2**15}
  assert [sent.exposed for sent in found.sent] == [0, 1]
  assert found.sent[1].collective.op_name == "x/grad"


def test_copies_to_vmem_run_where_hbm_is_free():
  copy = f"({V}, {A}, u32[]{{:S(2)}}) copy-start(%a)"
  found = walk(
    f"%s = {copy}",
    product("p"),
    f"%d = {V} copy-done(%s)",
    f"%s2 = {copy}",
    f"%neg = {A} negate(%a)",
    f"%d2 = {V} copy-done(%s2)",
  )
  # The second one waits until the negation, 4 s of HBM, is through.
  assert (found.compute, found.memory, found.waited) == (4, 4, 2)
  assert found.seconds == 10 and found.bound == "memory"


def test_bodies_of_loops_count_as_often_as_they_run():
  loop = f"""
%body (t: (s32[], {V})) -> (s32[], {V}) {{
  %t = (s32[], {V}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = {V} get-tuple-element(%t), index=1
  {product("q", "x", "x")}
  %r = {V} all-reduce(%q), channel_id=3, replica_groups={{{{0,1}}}}
  ROOT %u = (s32[], {V}) tuple(%i, %r)
}}

%condition (t2: (s32[], {V})) -> pred[] {{
  %limit = s32[] constant(30)
  %t2 = (s32[], {V}) parameter(0)
  %j = s32[] get-tuple-element(%t2), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}}
"""
  found = walk(
    f"%s = ({HALF}, {V}) all-gather-start(%h), {GATHER}",
    f"%w = (s32[], {V}) while(%v), condition=%condition, body=%body",
    f"%d = {V} all-gather-done(%s)",
    before=loop,
  )
  assert (found.compute, found.exposed, found.seconds) == (120, 60, 180)
  assert found.flops == 30 * 2**22
  reduced = next(s for s in found.sent if s.collective.kind == "all-reduce")
  assert (reduced.count, reduced.seconds, reduced.exposed) == (30, 60, 60)
  assert found.bytes_sent["all-reduce"] == 30 * 2**15


STACK = "bf16[30,64,128]{2,1,0:T(8,128)(2,1)}"
LAYER = "bf16[1,64,128]{2,1,0:T(8,128)(2,1)}"
SLICED = f"""
%sliced (s: {STACK}, i: s32[]) -> {LAYER} {{
  %s = {STACK} parameter(0)
  %i = s32[] parameter(1)
  %b = {STACK} bitcast(%s)
  ROOT %d = {LAYER} dynamic-slice(%b, %i, %i, %i)
}}

%updated (s: {STACK}, l: {LAYER}, i: s32[]) -> {STACK} {{
  %s = {STACK} parameter(0)
  %l = {LAYER} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = {STACK} dynamic-update-slice(%s, %l, %i, %i, %i)
}}
"""


@pytest.mark.parametrize(
  ("line", "layers"),
  [
    (f"{LAYER} fusion(%s, %i), kind=kLoop, calls=%sliced", 2),
    (f"{STACK} fusion(%s, %l, %i), kind=kLoop, calls=%updated", 2),
    (f"{LAYER} dynamic-slice(%s, %i, %i, %i)", 2),
    (f"{STACK} dynamic-update-slice(%s, %l, %i, %i, %i)", 2),
    (f"{STACK} copy(%s)", 60),
    (f"{STACK} bitcast(%s)", 0),
  ],
)
def test_of_a_stack_of_layers_only_slices_are_moved(line, layers):
  module = hlo.parse(
    f"{SLICED}\nENTRY %main (s: {STACK}, l: {LAYER}, i: s32[]) -> {LAYER} {{\n"
    f"  %s = {STACK} parameter(0)\n  %l = {LAYER} parameter(1)\n"
    f"  %i = s32[]{{:S(2)}} parameter(2)\n  ROOT %out = {line}\n}}\n"
  )
  entry = module.computations["main"]
  assert hbm_bytes(module, entry, entry.root) == layers * 64 * 128 * 2
