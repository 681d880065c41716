"""The parser: what it reads from the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from star_jax.compile_check import hlo

TEXT = """
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})}

%fused (p: bf16[30,5]) -> bf16[1,5] {
  %p = bf16[30,5]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice.1 = bf16[1,5]{1,0:T(2,128)(2,1)S(1)} dynamic-slice(%p, %zero, \
/*index=2*/%zero), dynamic_slice_sizes={1,5}
}

%body (arg: (s32[], bf16[30,5])) -> (s32[], bf16[30,5]) {
  ROOT %arg = (s32[]{:T(128)}, bf16[30,5]{1,0:T(8,128)(2,1)}) parameter(0)
}

%condition (arg.1: (s32[], bf16[30,5])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30)
  %arg.1 = (s32[]{:T(128)}, bf16[30,5]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main.1_spmd (param: f32[8,4]) -> (s32[], bf16[30,5]) {
  %param = f32[8,4]{0,1:T(8,128)S(1)} parameter(0), metadata={op_name="x"}
  %start = ((f32[8,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) \
slice-start(%param), slice={[0:2], [0:4]}
  %init = (s32[]{:T(128)}, bf16[30,5]{1,0:T(8,128)(2,1)}) tuple(%param, %start)
  ROOT %while.3 = (s32[]{:T(128)}, bf16[30,5]{1,0:T(8,128)(2,1)}) \
while(%init), condition=%condition, body=%body, \
metadata={op_name="jit(f)/layers/while" stack_frame_id=1}
}
"""


def test_computations_instructions_and_what_they_read():
  module = hlo.parse(TEXT)
  assert module.entry == "main.1_spmd"
  assert list(module.computations) == [
    "fused", "body", "condition", "main.1_spmd",
  ]  # fmt: skip
  entry = module.computations[module.entry]
  kinds = [i.kind for i in entry.instructions]
  assert kinds == ["parameter", "slice-start", "tuple", "while"]
  loop = entry.root
  assert loop.operands == ("init",)
  assert loop.op_name == "jit(f)/layers/while"
  assert loop.called == ("condition", "body")
  slice_ = module.computations["fused"].root
  assert slice_.operands == ("p", "zero", "zero")
  assert slice_.attribute("dynamic_slice_sizes") == "{1,5}"
  assert entry.users["param"] == list(entry.instructions[1:3])
  with pytest.raises(ValueError, match="no instruction"):
    hlo.parse("HloModule empty")


def test_shapes_with_tiles_and_memory_spaces():
  module = hlo.parse(TEXT)
  param, start = module.computations[module.entry].instructions[:2]
  (shape,) = param.results
  assert (shape.dtype, shape.dims, shape.space) == ("f32", (8, 4), 1)
  # Transposed: the axis of eight is the minor one.
  assert (shape.size, shape.padded_size) == (128, 8 * 128 * 4)
  assert [x.space for x in start.results] == [0, 1, 2]
  assert [str(x) for x in start.results] == ["f32[8,4]", "f32[2,4]", "s32[]"]
  stacked = module.computations["fused"].parameters[0].results[0]
  assert stacked.padded_size == 32 * 128 * 2


def test_trip_counts():
  module = hlo.parse(TEXT)
  assert module.trip_count(module.computations[module.entry].root) == 30
  known = TEXT.replace(
    'metadata={op_name="jit(f)/layers/while" stack_frame_id=1}',
    'backend_config={"known_trip_count":{"n":"7"}}',
  )
  module = hlo.parse(known)
  assert module.trip_count(module.computations[module.entry].root) == 7
  module = hlo.parse(TEXT.replace("direction=LT", "direction=NE"))
  with pytest.raises(ValueError, match="How often the loop while"):
    module.trip_count(module.computations[module.entry].root)


def test_a_real_program_is_read():
  def f(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(c @ c), None), x, length=5)[0]

  text = jax.jit(f).lower(jnp.ones((4, 4))).compile().as_text()
  module = hlo.parse(text)
  every = [i for c in module.computations.values() for i in c.instructions]
  (loop,) = [i for i in every if i.kind == "while"]
  assert module.trip_count(loop) == 5
  assert sum(i.kind == "dot" for i in every) == 1
