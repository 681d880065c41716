"""Chips that need not be here: their compilers run on any machine.

A TPU program takes the package libtpu, a GPU program jax's CUDA plugin; both
compile from a description of the chip. Nothing here can run a program.
"""

from __future__ import annotations

import dataclasses
import os

import jax
from jax.experimental import topologies

# The compiler's idea of the card: the numbers that XLA itself keeps for it in
# xla/tools/hlo_opt/gpu_specs/a100_sxm_80.txtpb.
_A100_MEMORY = 85_100_068_864
_A100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 167936
  threads_per_core_limit: 2048
  core_count: 108
  fpus_per_core: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 2039040000000
  l2_cache_size: 41943040
  clock_rate_ghz: 1.41
  device_memory_size: {_A100_MEMORY}
  shared_memory_per_block_optin: 166912
  cuda_compute_capability {{ major: 8 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA A100-SXM4-80GB"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator, or the backend at hand.

  Attributes:
    name: as users give it.
    title: as tables show it.
    platform: of jax; "" is the backend at hand.
    memory: bytes on the chip; None where the question makes no sense.
    topology: name of the smallest slice that holds the chip (TPU), or the
      description of the card as text proto (GPU).
  """

  name: str
  title: str
  platform: str = ""
  memory: int | None = None
  topology: str = ""

  @property
  def compiler_options(self) -> dict[str, bool]:
    """What the program is compiled with.

    On a GPU the compiler times the kernels it could use, which takes the card.
    Without it, Triton products of some shapes fail to compile; products then
    go to cuBLAS.
    """
    is_gpu = self.platform == "cuda"
    return {"xla_gpu_enable_triton_gemm": False} if is_gpu else {}


# TPU slices are whole hosts; a program of one chip takes the first of them.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("a100-80gb", "NVIDIA A100-SXM4-80GB", "cuda", _A100_MEMORY, _A100),
    Chip("v5e", "TPU v5e, one chip", "tpu", 16 * 2**30, "v5e:2x2"),
    Chip("v5p", "TPU v5p, one chip", "tpu", 95 * 2**30, "v5p:2x2x1"),
    Chip("cpu", "CPU"),
  )
}
_PACKAGES = {
  "tpu": "libtpu in the version that jax[tpu] asks for",
  "cuda": "jax-cuda13-plugin and jax-cuda13-pjrt in the version of jax"
  f" (pip install --no-deps jax-cuda13-plugin=={jax.__version__}"
  f" jax-cuda13-pjrt=={jax.__version__})",
}


def find_chip(name: str) -> Chip:
  """The chip of that name.

  Raises:
    ValueError: another name.
  """
  if name not in CHIPS:
    raise ValueError(f"--device is one of {', '.join(CHIPS)}, got {name!r}.")
  return CHIPS[name]


def sharding_of(chip: Chip) -> jax.sharding.Sharding | None:
  """Of arrays on that one chip; None on the backend at hand.

  Raises:
    ValueError: its compiler is not installed.
  """
  if not chip.platform:
    return None
  # Otherwise the TPU compiler asks the network what machine this is.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  options = {}
  if chip.platform == "cuda":
    options = {"target_config": chip.topology, "topology": "1x1x1"}
  name = "" if options else chip.topology
  try:
    found = topologies.get_topology_desc(
      name, platform=chip.platform, **options
    )
  # Each plugin has exceptions of its own, some of them bare RuntimeErrors.
  except Exception as error:
    raise ValueError(
      f"Compiling for {chip.name} needs {_PACKAGES[chip.platform]}; no such"
      f" chip is needed. The compiler said: {error}"
    ) from error
  return jax.sharding.SingleDeviceSharding(found.devices[0])
