"""What accelerators can do at most, by the name that jax gives them.

Dense products of bfloat16 with float32 sums, FLOP/s of one jax device. Sources:
the pages on versions v2 to v6e in the Google Cloud TPU documentation (a chip of
v2 or v3 is two jax devices); NVIDIA's data sheets of A100, L4, L40S, H100, H200
and B200, without sparsity.
"""

from __future__ import annotations

PEAK_FLOPS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
  """FLOP/s of one device in bfloat16; None: not known, such as of a CPU."""
  return PEAK_FLOPS.get(device_kind)
