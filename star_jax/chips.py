"""What accelerators can do at most, by their makers' data sheets.

Sources: the pages on v2 to v6e in the Google Cloud TPU documentation for peak
compute (a chip of v2 or v3 is two jax devices), HBM and the interconnect of a
chip (1600, 4800 and 3200 Gbit/s of v5e, v5p and v6e, which are divided by its
4, 6 and 4 links here); NVIDIA's data sheets for peak compute (dense, no
sparsity) and bandwidth; the memory of A100 and H100 is what XLA keeps for them.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one chip.

  Attributes:
    name: short, as users write it.
    title: as tables show it.
    flops: of bfloat16 with float32 sums, FLOP/s.
    tf32_flops, float32_flops: of float32 rounded to TF32, and as it is; 0: TPUs
      compute it in passes of bfloat16.
    hbm_bytes: memory.
    hbm_bandwidth: bytes/s.
    link_bandwidth: of one link to a neighbour in one direction, bytes/s; 0: no
      torus.
    torus_axes: of the interconnect; two links each.
    matrix_side: of the matrix unit, in elements; 0: not a systolic array.
    device_kinds: `jax.Device.device_kind` of it.
  """

  name: str
  title: str
  flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float = 0.0
  torus_axes: int = 0
  matrix_side: int = 0
  tf32_flops: float = 0.0
  float32_flops: float = 0.0
  device_kinds: tuple[str, ...] = ()


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v5e", "TPU v5e", 197e12, 16 * 2**30, 819e9,
      link_bandwidth=50e9, torus_axes=2, matrix_side=128,
      device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    Chip(
      "v5p", "TPU v5p", 459e12, 95 * 2**30, 2765e9,
      link_bandwidth=100e9, torus_axes=3, matrix_side=128,
      device_kinds=("TPU v5", "TPU v5p"),
    ),
    Chip(
      "v6e", "TPU v6e", 918e12, 32 * 2**30, 1600e9,
      link_bandwidth=100e9, torus_axes=2, matrix_side=256,
      device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
    Chip(
      "a100", "NVIDIA A100-SXM4-80GB", 312e12, 85_100_068_864, 2039e9,
      tf32_flops=156e12, float32_flops=19.5e12,
      device_kinds=("NVIDIA A100-SXM4-80GB",),
    ),
    Chip(
      "h100", "NVIDIA H100-SXM5-80GB", 989e12, 84_929_347_584, 3350e9,
      tf32_flops=494.5e12, float32_flops=67e12,
      device_kinds=("NVIDIA H100 80GB HBM3",),
    ),
  )
}  # fmt: skip

# FLOP/s in bfloat16 of devices that nothing else is known of, by the name that
# jax gives them.
_OTHERS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
  """FLOP/s of one device in bfloat16; None: not known, such as of a CPU."""
  for chip in CHIPS.values():
    if device_kind in chip.device_kinds:
      return chip.flops
  return _OTHERS.get(device_kind)
