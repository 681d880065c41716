"""How long the products of a traced program take at the least on a GPU.

Its compiler hands products to libraries and says nothing of them, so each one
of the traced program takes the longer of its FLOPs at the rate of its dtype and
its operands and result over the bandwidth of the memory, one after the other.
What is not a product is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from star_jax.chips import Chip
from star_jax.compile_check.parts import part_of
from star_jax.compile_check.roofline import Roofline
from star_jax.train.flops import TracedProduct


def traced_roofline(
  products: Sequence[TracedProduct], chip: Chip, least_bytes: int
) -> Roofline:
  """The bound of one device.

  Args:
    products: of the program, all on that device.
    chip: a GPU.
    least_bytes: that the program moves in any case: arguments and outputs.
  """
  found = Roofline()
  for product in products:
    compute = product.flops / _rate(product, chip)
    memory = product.bytes / chip.hbm_bandwidth
    seconds = product.times * max(compute, memory)
    flops = product.times * product.flops
    found.seconds += seconds
    found.flops += flops
    found.hbm_bytes += product.times * product.bytes
    if compute >= memory:
      found.compute += seconds
    else:
      found.memory += seconds
    found.count(part_of(product.scope), flops, seconds)
  found.padded_flops = found.flops
  missing = least_bytes / chip.hbm_bandwidth - found.seconds
  if missing > 0:
    found.seconds += missing
    found.memory += missing
  return found


def _rate(product: TracedProduct, chip: Chip) -> float:
  """FLOP/s. Products of float32 are rounded to TF32 unless told not to be."""
  if product.dtype != "float32":
    return chip.flops
  return chip.float32_flops if product.exact else chip.tf32_flops
