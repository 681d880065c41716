"""FLOPs of products as TPU compilers write them, against numbers by hand."""

import pytest

from star_jax.compile_check import hlo
from star_jax.compile_check.products import product_of


def product(left, right, result, attributes, kind="convolution"):
  module = hlo.parse(
    f"ENTRY %main (a: {left}, b: {right}) -> {result} {{\n"
    f"  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n"
    f"  ROOT %out = {result} {kind}(%a, %b), {attributes}\n}}\n"
  )
  entry = module.computations["main"]
  return product_of(entry.root, entry)


def shape(found):
  return found.outer, found.rows, found.depth, found.columns


def test_a_plain_product_and_its_tiles():
  found = product(
    "bf16[682,256]", "bf16[256,130]", "bf16[682,130]", "dim_labels=bf_io->bf"
  )
  assert found.flops == 2 * 682 * 256 * 130
  assert shape(found) == (1, 682, 256, 130)
  assert found.padded_flops(128) == 2 * 688 * 256 * 256
  # A transposed weight.
  turned = product(
    "bf16[682,256]", "bf16[130,256]", "bf16[682,130]", "dim_labels=bf_oi->bf"
  )
  assert turned == found


def test_heads_of_64_channels_fill_half_of_the_tiles():
  found = product(
    "bf16[2,30,256,64]",
    "bf16[2,30,384,64]",
    "f32[2,30,256,384]",
    "window={size=2x30 lhs_dilate=2x30}, dim_labels=01bf_01oi->01bf",
  )
  assert found.flops == 2 * 60 * 256 * 64 * 384
  assert shape(found) == (60, 256, 64, 384)
  assert found.padded_flops(128) == 2 * found.flops
  assert found.padded_flops(256) == 2 * 60 * 256 * 256 * 512


def test_a_second_output_axis_slides_over_padding():
  found = product(
    "bf16[2,341,256,1]",
    "bf16[256,3,128,1]",
    "bf16[2,341,3,128]",
    "window={size=1x3 pad=0_0x2_2 rhs_reversal=0x1},"
    " dim_labels=0bf1_i1o0->0b1f",
  )
  assert found.flops == 2 * 2 * 341 * 256 * 3 * 128
  # Rows of both pictures are rows of one product, q, k and v its columns.
  assert shape(found) == (1, 682, 256, 384)


def test_a_second_axis_that_is_summed_over():
  # The gradient of a weight: eight pictures of 77 tokens each.
  found = product(
    "bf16[1920,8,77]",
    "bf16[8,77,1024]",
    "bf16[1920,1024,1]",
    "window={size=77}, dim_labels=bf0_i0o->bf0",
  )
  assert found.flops == 2 * 1920 * 8 * 77 * 1024
  assert shape(found) == (1, 1920, 616, 1024)
  assert found.padded_flops(128) == 2 * 1920 * 640 * 1024


def test_a_convolution_is_a_product_a_tap():
  found = product(
    "f32[2,16,16,32]",
    "f32[3,3,32,32]",
    "f32[2,16,16,32]",
    "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
  )
  assert found.flops == 2 * 2 * 32 * 32 * 46**2
  # 46 of 48 meet an element: 15.3 places a tap and side.
  assert shape(found) == (9, 2 * 16 * 16, 32, 32)


@pytest.mark.parametrize(
  ("size", "window", "result", "pairs"),
  [
    # Three taps at four places, one too many at each end: 10 a side.
    (4, "size=3x3 pad=1_1x1_1", 4, 100),
    (4, "size=3x3 pad=1_1x1_1 stride=2x2", 2, 25),
    # The gradient of that: zeros between the elements are no work.
    (2, "size=3x3 pad=1_2x1_2 lhs_dilate=2x2", 4, 25),
    (5, "size=3x3 rhs_dilate=2x2", 1, 9),
  ],
)
def test_taps_count_where_they_meet_an_element(size, window, result, pairs):
  found = product(
    f"f32[1,{size},{size},8]",
    "f32[3,3,8,16]",
    f"f32[1,{result},{result},16]",
    f"window={{{window}}}, dim_labels=b01f_01io->b01f",
  )
  assert found.flops == 2 * 8 * 16 * pairs


@pytest.mark.parametrize(
  ("left", "right", "words", "passes"),
  [
    ("f32", "f32", "{highest,highest}", 6),
    ("f32", "f32", "{high,high}", 3),
    ("f32", "bf16", "{highest,highest}", 3),
    ("bf16", "bf16", "{highest,highest}", 1),
    ("f32", "f32", "", 1),
  ],
)
def test_exact_products_take_several_passes(left, right, words, passes):
  precision = f", operand_precision={words}" if words else ""
  found = product(
    f"{left}[8,128]",
    f"{right}[128,128]",
    "f32[8,128]",
    f"dim_labels=bf_io->bf{precision}",
  )
  assert found.passes == passes
  assert found.padded_flops(128) == passes * found.flops


def test_a_dot_and_what_is_no_product():
  found = product(
    "f32[3,5,7]",
    "f32[3,7,11]",
    "f32[3,5,11]",
    "lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0},"
    " rhs_contracting_dims={1}",
    kind="dot",
  )
  assert shape(found) == (3, 5, 7, 11)
  assert found.flops == 2 * 3 * 5 * 7 * 11
  assert product("f32[8]", "f32[8]", "f32[8]", "x=1", kind="add") is None
